#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-memory")]

mod client;
mod config;
mod driver;
mod faults;
mod groups;
mod holders;
mod locks;
mod session;
mod store;
mod watch;

use std::sync::Arc;

use tooz_core::Finding;
use tooz_core::driver::{Connect, Connecting, Driver, Examining, Registration};

use client::Client;
use driver::Memory;
pub use faults::gate::{Cut, Operation, Outcome};
pub use faults::kit::Kit;
pub use faults::oracle::Happened;

/// This driver. It registers itself when the crate is linked; pass it by hand where constructors do not run.
pub const REGISTRATION: Registration =
    Registration::new(env!("CARGO_PKG_NAME"), config::SCHEMES, config::characteristics, connect)
        .options(config::OPTIONS)
        .examine(examine);

tooz_core::inventory::submit! { REGISTRATION }

/// Connects at the driver's level, for programs that work with [`tooz_core::driver`] and for tests of drivers. Other
/// programs connect a coordinator.
///
/// # Errors
/// `InvalidUrl`, `InvalidOption`: the URL is not of this driver, or has a value that the driver cannot read. The core
/// checks whether every option is known.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move { Ok(Arc::new(Memory(Arc::new(Client::connect(request)?))) as Arc<dyn Driver>) })
}

/// What `tooz doctor` shows.
fn examine(_: Connect) -> Examining {
    let what = "it lives in this process and ends with it; no other process sees it";
    Box::pin(async move { Ok(vec![Finding::good("scope", what)]) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn linking_the_crate_registers_it() {
        let drivers = tooz_core::drivers();
        let ours = drivers.iter().find(|driver| driver.crate_name() == "tooz-memory").unwrap();
        assert_eq!(ours.schemes(), ["memory", "zake"]);
        let options: Vec<_> = ours.own_options().iter().map(tooz_core::driver::OptionSpec::name).collect();
        assert_eq!(options, ["fault", "yield_seed"]);
    }
}
