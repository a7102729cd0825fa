//! Groups, memberships and their watches.

use crate::common::*;
use tooz_core::driver::{End, GroupChange};
use tooz_core::{Capabilities, ErrorKind};

#[tokio::test]
async fn every_refusal_has_its_kind() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    let groups = driver.groups();
    let kind = |result: tooz_core::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(groups.delete(&group("g")).await), ErrorKind::GroupNotFound);
    assert_eq!(kind(a.groups().join(&join("g")).await), ErrorKind::GroupNotFound);
    assert_eq!(kind(a.groups().leave(&group("g")).await), ErrorKind::GroupNotFound);
    assert_eq!(groups.members(&group("g")).await.unwrap_err().kind(), ErrorKind::GroupNotFound);
    assert_eq!(groups.watch(&group("g")).await.err().unwrap().kind(), ErrorKind::GroupNotFound);
    groups.create(&group("g")).await.unwrap();
    assert_eq!(kind(groups.create(&group("g")).await), ErrorKind::GroupExists);
    assert_eq!(kind(a.groups().leave(&group("g")).await), ErrorKind::MemberNotFound);
    let none = Capabilities::none();
    assert_eq!(kind(a.groups().update(&group("g"), &none).await), ErrorKind::MemberNotFound);
    let mut first = join("g");
    first.capabilities = Capabilities::new(&1).unwrap();
    a.groups().join(&first).await.unwrap();
    assert_eq!(kind(a.groups().join(&join("g")).await), ErrorKind::MemberExists);
    let member = groups.member(&group("g"), &id("a")).await.unwrap();
    assert_eq!(member.capabilities.get::<u32>().unwrap(), 1, "the first join's capabilities stay");
    assert!(member.joined_at.is_some() && member.joined_at == member.updated_at);
    assert_eq!(groups.member(&group("g"), &id("b")).await.unwrap_err().kind(), ErrorKind::MemberNotFound);
    assert_eq!(kind(groups.delete(&group("g")).await), ErrorKind::GroupNotEmpty);
    a.groups().leave(&group("g")).await.unwrap();
    groups.delete(&group("g")).await.unwrap();
    a.groups().join(&join("g").create(true)).await.unwrap();
    assert_eq!(groups.list().await.unwrap(), [group("g")]);
}

#[tokio::test]
async fn a_watch_delivers_every_change_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let other = connect(&url(directory.path(), "namespace=other")).await;
    let (a, b) = (session(&driver, "a").await, session(&driver, "b").await);
    let stranger = session(&other, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[a]");
    stranger.groups().join(&join("g").create(true)).await.unwrap();
    b.groups().join(&join("g")).await.unwrap();
    let published = Capabilities::new("news").unwrap();
    b.groups().update(&group("g"), &published).await.unwrap();
    a.groups().leave(&group("g")).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    b.close(End::Clean).await.unwrap();
    a.close(End::Clean).await.unwrap();
    driver.groups().delete(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "+b");
    match next(&mut watch).await.unwrap().unwrap() {
        GroupChange::Updated(record) => assert_eq!(record.capabilities, published),
        other => panic!("{other:?}"),
    }
    for expected in ["-a", "+a", "-b", "-a", "deleted", "end"] {
        assert_eq!(short(next(&mut watch).await), expected);
    }
}

#[tokio::test]
async fn a_slow_reader_gets_a_view_and_loses_nothing_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let a = session(&driver, "a").await;
    a.groups().join(&join("g").create(true)).await.unwrap();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    for number in 0..600 {
        a.groups().update(&group("g"), &Capabilities::new(&number).unwrap()).await.unwrap();
    }
    let mut views = 0;
    let mut last = 0;
    while last < 599 {
        let record = match next(&mut watch).await.unwrap().unwrap() {
            GroupChange::View(members) => {
                views += 1;
                members[0].clone()
            }
            GroupChange::Updated(record) => record,
            other => panic!("{other:?}"),
        };
        // The first view is from before there was a number.
        let number = record.capabilities.get::<u32>().unwrap_or(0);
        assert!(number >= last, "{number} after {last}");
        last = number;
    }
    assert!(views >= 1 && is_quiet(&mut watch).await);
    a.groups().leave(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "-a");
}

#[tokio::test]
async fn changes_of_another_process_arrive_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    driver.groups().create(&group("g")).await.unwrap();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[]");
    let (busy, _) = Actor::start("many-changes", &[&url, "100"]);
    assert_eq!(short(next(&mut watch).await), "+busy");
    for number in 0..100_u32 {
        match next(&mut watch).await.unwrap().unwrap() {
            GroupChange::Updated(record) => assert_eq!(record.capabilities.get::<u32>().unwrap(), number),
            other => panic!("{other:?}"),
        }
    }
    drop(busy);
    assert_eq!(short(next(&mut watch).await), "-busy");
}

/// The reader is not slow here: its whole process is, so that the log is cut before it was read.
#[tokio::test]
async fn a_process_that_slept_through_the_log_gets_a_view() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut follower, _) = Actor::start("follow", &[&url, "g"]);
    follower.stop();
    let driver = connect(&url).await;
    let a = session(&driver, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    for number in 0..1_300 {
        a.groups().update(&group("g"), &Capabilities::new(&number).unwrap()).await.unwrap();
    }
    follower.signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(follower.hear(), "[a]");
    a.groups().leave(&group("g")).await.unwrap();
    assert_eq!(follower.hear(), "-a");
    follower.kill();
}
