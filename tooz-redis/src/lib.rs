#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-redis")]

mod client;
mod config;
mod connection;
mod driver;
mod error;
mod examine;
mod groups;
mod holders;
mod keys;
mod locks;
mod scripts;
mod session;
mod session_state;
pub mod shared_with_python;
mod view;
mod watch;

use tooz_core::driver::Registration;

/// This driver. A program that links this crate finds it by its schemes.
pub const REGISTRATION: Registration =
    Registration::new("tooz-redis", config::SCHEMES, config::characteristics, driver::connect)
        .options(config::OPTIONS)
        .foreign_options(config::FOREIGN_OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

pub use driver::connect;
#[doc(hidden)]
pub use scripts::hash_of as script_hash;
