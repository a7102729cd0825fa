#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-sqlite")]

#[cfg(not(target_os = "linux"))]
compile_error!("tooz-sqlite needs Linux: open-file-description locks and inotify tell who lives");

mod ahead;
mod batch;
mod bell;
mod client;
mod config;
mod driver;
mod ears;
mod engine;
mod error;
mod events;
mod examine;
mod fence;
mod groups;
mod hub;
mod kernel;
mod keys;
mod local;
mod locks;
mod ownership;
mod place;
mod presence;
mod reaper;
mod schema;
mod session;
mod sessionfile;
mod spin;
mod tx;
mod view;
mod vigil;
mod watch;

use tooz_core::Registration;

/// This driver; also linked programs find it by the scheme `sqlite://`.
pub const REGISTRATION: Registration =
    Registration::new("tooz-sqlite", &["sqlite"], config::characteristics, driver::connect)
        .options(config::OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

pub use driver::connect;
