//! `tooz drivers`: what is compiled in.

use serde_json::{Value, json};
use tooz::driver::{OptionSpec, Registration};
use tooz::{BackendUrl, COMMON_OPTIONS, drivers};

use crate::args::List;
use crate::exit::{Code, DONE, Failure};
use crate::text;

pub(crate) fn list(options: &List) -> Result<Code, Failure> {
    for driver in drivers() {
        let names = characteristics(&driver)?;
        if options.json {
            let value = json!({
                "schemes": driver.schemes(),
                "crate": driver.crate_name(),
                "characteristics": names,
                "options": for_users(driver.own_options()).map(json).collect::<Vec<_>>(),
                "common_options": for_users(COMMON_OPTIONS).map(json).collect::<Vec<_>>(),
            });
            text::line(&value.to_string())?;
            continue;
        }
        let schemes: Vec<_> = driver.schemes().iter().map(|scheme| format!("{scheme}://")).collect();
        text::line(&schemes.join(" "))?;
        for name in names {
            text::line(&format!("    {name}"))?;
        }
        show(driver.own_options())?;
    }
    if !options.json {
        text::line("every driver")?;
        show(COMMON_OPTIONS)?;
    }
    Ok(DONE)
}

/// Options as a URL carries them.
fn show(options: &'static [OptionSpec]) -> Result<(), Failure> {
    for_users(options)
        .try_for_each(|option| text::line(&format!("    ?{}=  {}", option.name(), option.doc())))
}

fn json(option: &OptionSpec) -> Value {
    json!({ "name": option.name(), "doc": option.doc() })
}

fn for_users(options: &'static [OptionSpec]) -> impl Iterator<Item = &'static OptionSpec> {
    options.iter().filter(|option| !option.is_for_tests())
}

/// The characteristics that the driver promises at best, for its first scheme without options.
fn characteristics(driver: &Registration) -> Result<Vec<String>, Failure> {
    let Some(scheme) = driver.schemes().first() else { return Ok(Vec::new()) };
    let url = BackendUrl::parse(&format!("{scheme}:///x"))?;
    Ok(driver.characteristics(&url).iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect())
}
