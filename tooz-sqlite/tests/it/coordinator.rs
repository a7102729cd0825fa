//! The driver found by its scheme and used through the core.

use tooz_core::{Capabilities, Characteristics, Coordinator, ErrorKind};
use tooz_sqlite as _;

#[tokio::test]
async fn the_core_finds_the_driver_and_everything_works_through_it() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/tooz.db?synchronous=full", directory.path().display());
    let wanted = Characteristics::all() - Characteristics::DISTRIBUTED_ACROSS_HOSTS;
    let connect = |member: &str| Coordinator::builder(url.clone(), member).require(wanted).connect();
    let (one, two) = (connect("one").await.unwrap(), connect("two").await.unwrap());
    let guard = one.lock("x").unwrap().acquire().await.unwrap();
    assert!(two.lock("x").unwrap().try_acquire().await.unwrap().is_none());
    let first = guard.token();
    let (released, next) = tokio::join!(guard.release(), async { two.lock("x").unwrap().acquire().await });
    released.unwrap();
    let next = next.unwrap();
    assert!(next.token() > first);
    next.release().await.unwrap();
    let group = one.group("g").unwrap();
    group.create().await.unwrap();
    group.join(Capabilities::none()).await.unwrap();
    two.group("g").unwrap().join(Capabilities::none()).await.unwrap();
    assert_eq!(group.members().await.unwrap().len(), 2);
    let leadership = one.election("g").unwrap().campaign().await.unwrap();
    assert!(leadership.term().get() > first.get());
    two.close().await.unwrap();
    assert_eq!(group.members().await.unwrap().len(), 1);
    one.close().await.unwrap();
}

#[tokio::test]
async fn an_unknown_option_and_a_missing_characteristic_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let url = |query| format!("sqlite://{}/tooz.db?{query}", directory.path().display());
    let error = Coordinator::builder(url("synchronous=off"), "m").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let hosts = Characteristics::DISTRIBUTED_ACROSS_HOSTS;
    let error = Coordinator::builder(url(""), "m").require(hosts).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingCharacteristic);
    assert!(!directory.path().join("tooz.db").exists());
}
