//! `tooz drivers`: what is compiled in.

use serde_json::json;
use tooz::driver::Registration;
use tooz::{BackendUrl, drivers};

use crate::args::List;
use crate::exit::Failure;
use crate::text;

pub(crate) fn list(options: &List) -> Result<u8, Failure> {
    for driver in drivers() {
        let names = characteristics(&driver)?;
        if options.json {
            let options: Vec<_> = driver
                .own_options()
                .iter()
                .map(|option| json!({ "name": option.name(), "doc": option.doc() }))
                .collect();
            let value = json!({
                "schemes": driver.schemes(),
                "crate": driver.crate_name(),
                "characteristics": names,
                "options": options,
            });
            text::line(&value.to_string())?;
            continue;
        }
        let schemes: Vec<_> = driver.schemes().iter().map(|scheme| format!("{scheme}://")).collect();
        text::line(&schemes.join(" "))?;
        for name in names {
            text::line(&format!("    {name}"))?;
        }
    }
    Ok(0)
}

/// The characteristics that the driver promises at best, for its first scheme without options.
fn characteristics(driver: &Registration) -> Result<Vec<String>, Failure> {
    let Some(scheme) = driver.schemes().first() else { return Ok(Vec::new()) };
    let url = BackendUrl::parse(&format!("{scheme}:///x"))?;
    Ok(driver.characteristics(&url).iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect())
}
