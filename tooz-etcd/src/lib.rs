#![doc = include_str!("../README.md")]
#![doc(html_root_url = "https://docs.rs/tooz-etcd")]

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

/// This driver. It registers itself when the crate is linked; pass it by hand where constructors do not run.
pub const REGISTRATION: Registration =
    Registration::new(env!("CARGO_PKG_NAME"), config::SCHEMES, config::characteristics, driver::connect)
        .options(config::OPTIONS)
        .foreign_options(config::FOREIGN_OPTIONS)
        .examine(examine::examine);

tooz_core::inventory::submit! { REGISTRATION }

/// What a server of this version guarantees, for tests that start servers.
#[doc(hidden)]
pub use connection::version::lower as kept;
pub use driver::connect;

#[cfg(test)]
mod tests {
    #[test]
    fn linking_the_crate_registers_it() {
        let drivers = tooz_core::drivers();
        let ours = drivers.iter().find(|driver| driver.crate_name() == "tooz-etcd").unwrap();
        let (schemes, options) = if cfg!(feature = "tls") {
            (
                &["etcd", "etcd3", "etcd3+http", "etcds", "etcd3+https"][..],
                &["ca_cert", "cert_cert", "cert_key", "layout"][..],
            )
        } else {
            (&["etcd", "etcd3", "etcd3+http"][..], &["layout"][..])
        };
        assert_eq!(ours.schemes(), schemes);
        let known: Vec<_> = ours.own_options().iter().map(tooz_core::driver::OptionSpec::name).collect();
        assert_eq!(known, options);
    }
}
