//! The features link the drivers.

use tooz::{BackendUrl, drivers};

fn schemes() -> Vec<&'static str> {
    drivers().iter().flat_map(tooz::driver::Registration::schemes).copied().collect()
}

/// The scheme of every enabled feature is found.
#[test]
fn every_enabled_driver_is_registered() {
    let expected = [
        ("etcd", cfg!(feature = "etcd")),
        ("file", cfg!(feature = "file")),
        ("memcached", cfg!(feature = "memcached")),
        ("memory", cfg!(feature = "memory")),
        ("redis", cfg!(feature = "redis")),
        ("sqlite", cfg!(feature = "sqlite")),
    ];
    for (scheme, enabled) in expected {
        assert_eq!(schemes().contains(&scheme), enabled, "{scheme}://");
    }
    assert_eq!(drivers().len(), expected.iter().filter(|(_, enabled)| *enabled).count());
}

/// No two drivers serve one scheme, and what is promised is known without connecting.
#[test]
fn schemes_are_distinct_and_promise_something() {
    let mut all = schemes();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    for driver in drivers() {
        let url = BackendUrl::parse(&format!("{}:///x", driver.schemes()[0])).unwrap();
        assert!(!driver.characteristics(&url).is_empty(), "{driver:?}");
    }
}

/// The core's table of features and schemes, which it needs for drivers that are not linked, is that of those that are.
#[test]
fn the_table_of_schemes_is_that_of_the_drivers() {
    let registered = schemes();
    let listed = |scheme| tooz::FEATURES.iter().any(|(_, schemes)| schemes.contains(scheme));
    assert!(registered.iter().all(listed), "not in the core's table: {registered:?}");
    let expected = [
        ("etcd", cfg!(feature = "etcd")),
        ("etcd-tls", cfg!(feature = "etcd-tls")),
        ("file", cfg!(feature = "file")),
        ("memcached", cfg!(feature = "memcached")),
        ("memory", cfg!(feature = "memory")),
        ("redis", cfg!(feature = "redis")),
        ("redis-tls", cfg!(feature = "redis-tls")),
        ("sqlite", cfg!(feature = "sqlite")),
    ];
    for (feature, schemes) in tooz::FEATURES {
        let (_, enabled) =
            expected.iter().find(|(name, _)| name == feature).expect("a feature of this crate");
        let there = schemes.iter().filter(|scheme| registered.contains(scheme)).count();
        // Another crate of the build may have turned it on for all.
        assert!(there == schemes.len() || (there == 0 && !enabled), "{feature}: {there} of {schemes:?}");
    }
    for driver in drivers() {
        let feature = tooz::FEATURES.iter().find(|(_, schemes)| schemes.contains(&driver.schemes()[0]));
        assert_eq!(
            feature.map(|(feature, _)| format!("tooz-{feature}")).as_deref(),
            Some(driver.crate_name())
        );
    }
}

/// A scheme without a driver is not sent looking for a crate that does not exist.
#[tokio::test]
async fn a_scheme_without_a_driver_names_no_crate() {
    let error = tooz::Coordinator::builder("consul://localhost", "me").connect().await.unwrap_err();
    assert_eq!(error.kind(), tooz::ErrorKind::UnknownScheme);
    let said = error.to_string();
    assert!(said.contains("there is no driver for it") && !said.contains("use tooz_"), "{said}");
}

/// The options of Python tooz are refused with ours, where there is one.
#[tokio::test]
async fn options_of_python_tooz_are_refused_with_ours() {
    let all = [
        (cfg!(feature = "memory"), "memory://x?membership_timeout=30", "write ttl"),
        (cfg!(feature = "redis"), "redis://localhost?sentinel=mymaster", "redis+sentinel://"),
        (cfg!(feature = "redis"), "redis://localhost?socket_timeout=3", "write operation_timeout"),
        (cfg!(feature = "redis"), "redis://localhost?lock_timeout=30", "write ttl"),
        (cfg!(feature = "etcd"), "etcd3+http://localhost?api_version=v3", "leave it out"),
        (cfg!(feature = "memcached"), "memcached://localhost?max_pool_size=3", "leave it out"),
        (cfg!(feature = "memcached"), "memcached://localhost?lock_timeout=30", "write ttl"),
    ];
    for (_, url, instead) in all.into_iter().filter(|(enabled, ..)| *enabled) {
        let error = tooz::Coordinator::builder(url, "me").connect().await.unwrap_err();
        assert_eq!(error.kind(), tooz::ErrorKind::InvalidOption, "{url}");
        assert!(error.to_string().contains(instead), "{error}");
    }
}
