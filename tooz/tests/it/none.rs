//! Without a driver feature the crate builds, and connecting says what to do.
#![cfg(not(any(feature = "memory", feature = "sqlite")))]

#[tokio::test]
async fn no_driver_is_linked() {
    assert!(tooz::drivers().is_empty());
    let error = tooz::Coordinator::builder("sqlite:///tmp/x.db", "me").connect().await.unwrap_err();
    assert!(error.to_string().contains("linked: none at all"), "{error}");
}
