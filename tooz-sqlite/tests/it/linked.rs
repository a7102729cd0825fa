//! A program that takes the core and this driver, without the facade.

use tooz_core::{Coordinator, drivers};
use tooz_sqlite as _; // a crate that is never named registers nothing

#[tokio::test]
async fn naming_the_crate_is_enough() {
    assert!(drivers().iter().any(|driver| driver.schemes().contains(&"sqlite")));
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/tooz.db", directory.path().display());
    let coordinator = Coordinator::builder(url, "me").connect().await.unwrap();
    coordinator.close().await.unwrap();
}
