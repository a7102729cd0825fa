#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-memcached")]

mod client;
mod config;
mod connection;
mod driver;
mod error;
mod examine;
mod groups;
mod holders;
mod keys;
mod lock;
mod locks;
mod session;
mod session_state;
pub mod shared_with_python;
mod view;
mod watch;

use tooz_core::driver::Registration;

/// This driver. A program that links this crate finds it by its schemes.
pub const REGISTRATION: Registration =
    Registration::new("tooz-memcached", config::SCHEMES, config::characteristics, driver::connect)
        .options(config::OPTIONS)
        .foreign_options(config::FOREIGN_OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

pub use driver::connect;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use lock::checks;
