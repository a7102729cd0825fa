#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-sqlite")]

#[cfg(not(target_os = "linux"))]
compile_error!("tooz-sqlite needs Linux: open-file-description locks and inotify tell who lives");

mod client;
mod config;
mod driver;
mod engine;
mod error;
mod examine;
mod groups;
mod holders;
mod keys;
mod locks;
mod read_only;
mod reaper;
mod session;
mod session_state;
mod view;
mod watch;

use tooz_core::driver::Registration;

/// This driver; also linked programs find it by the scheme `sqlite://`.
pub const REGISTRATION: Registration =
    Registration::new("tooz-sqlite", &["sqlite"], config::characteristics, driver::connect)
        .options(config::OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

pub use driver::connect;
