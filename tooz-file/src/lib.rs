#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-file")]

mod client;
mod config;
mod driver;
mod error;
mod examine;
mod groups;
mod holders;
mod keys;
mod locks;
mod reaper;
mod session;
mod session_state;
mod tree;
mod view;
mod watch;

use std::sync::Arc;

use tooz_core::driver::{Connect, Connecting, Driver, Registration};

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use tree::checks;

/// This driver. It registers itself when the crate is linked; pass it by hand where constructors do not run.
pub const REGISTRATION: Registration =
    Registration::new(env!("CARGO_PKG_NAME"), &["file"], config::characteristics, connect)
        .options(config::OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

/// Connects at the driver's level, for programs that work with [`tooz_core::driver`] and for tests of drivers.
/// Other programs connect a coordinator.
///
/// # Errors
/// `InvalidUrl`, `InvalidOption`; `Unsupported`: the file system is not known to be local; `Denied`: permissions or
/// a symlink in the way; `Incompatible`: the directory is used with other locks; `Unavailable`.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let driver = driver::connect(request).await.map_err(|error| error.during("connect"))?;
        Ok(Arc::new(driver) as Arc<dyn Driver>)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn linking_the_crate_registers_it() {
        let drivers = tooz_core::drivers();
        let ours = drivers.iter().find(|driver| driver.crate_name() == "tooz-file").unwrap();
        assert_eq!(ours.schemes(), ["file"]);
    }
}
