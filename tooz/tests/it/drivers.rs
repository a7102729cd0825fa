//! The features link the drivers.

use tooz::{BackendUrl, drivers};

fn schemes() -> Vec<&'static str> {
    drivers().iter().flat_map(tooz::Registration::schemes).copied().collect()
}

/// The scheme of every enabled feature is found.
#[test]
fn every_enabled_driver_is_registered() {
    let expected = [
        ("etcd", cfg!(feature = "etcd")),
        ("file", cfg!(feature = "file")),
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

/// A scheme whose driver is not linked is refused with what to write.
#[tokio::test]
async fn a_scheme_that_is_not_linked_names_the_feature_and_the_crate() {
    let error = tooz::Coordinator::builder("consul://localhost", "me").connect().await.unwrap_err();
    assert_eq!(error.kind(), tooz::ErrorKind::UnknownScheme);
    let said = error.to_string();
    assert!(said.contains("use tooz_consul as _;") && said.contains("feature"), "{said}");
}
