//! Groups and sessions at the driver's level, among tasks and among processes.

#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::sync::Arc;

use crate::common::{
    self, Exclusive, Helper, connect, eventually, granted, group, held, holding, id, kind, member, names,
    next, opening, short, soon, url,
};
use tooz_core::driver::{Driver, End, Join, Notice, Session};
use tooz_core::{Capabilities, ErrorKind, GroupId, LossReason};

const FLAVORS: [&str; 2] = ["", "?backend=portable"];

fn caps(value: u32) -> Capabilities {
    Capabilities::new(&value).unwrap()
}

async fn join(session: &Arc<dyn Session>, name: &str) -> tooz_core::Result<()> {
    session.groups().join(&Join::new(group(name), caps(1)).create(true)).await
}

#[tokio::test]
async fn the_life_of_a_group() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let (driver, session) = member(&url(directory.path(), flavor), "m").await;
        let groups = driver.groups();
        let g = group("g");
        assert_eq!(kind(groups.delete(&g).await), ErrorKind::GroupNotFound);
        assert_eq!(kind(groups.members(&g).await), ErrorKind::GroupNotFound);
        assert_eq!(kind(groups.watch(&g).await.map(drop)), ErrorKind::GroupNotFound);
        assert_eq!(
            kind(session.groups().join(&Join::new(g.clone(), caps(1))).await),
            ErrorKind::GroupNotFound
        );
        assert_eq!(kind(session.groups().leave(&g).await), ErrorKind::GroupNotFound);
        groups.create(&g).await.unwrap();
        assert_eq!(kind(groups.create(&g).await), ErrorKind::GroupExists);
        assert_eq!(kind(session.groups().leave(&g).await), ErrorKind::MemberNotFound);
        assert_eq!(kind(session.groups().update(&g, &caps(2)).await), ErrorKind::MemberNotFound);
        session.groups().join(&Join::new(g.clone(), caps(1))).await.unwrap();
        assert_eq!(
            kind(session.groups().join(&Join::new(g.clone(), caps(9))).await),
            ErrorKind::MemberExists
        );
        let before = groups.member(&g, &id("m")).await.unwrap();
        assert_eq!(before.capabilities, caps(1), "those of the first join stay");
        session.groups().update(&g, &caps(2)).await.unwrap();
        let after = groups.member(&g, &id("m")).await.unwrap();
        assert_eq!((after.incarnation, after.joined_at), (before.incarnation, before.joined_at));
        assert!(after.capabilities == caps(2) && after.updated_at >= before.updated_at);
        assert_eq!(kind(groups.delete(&g).await), ErrorKind::GroupNotEmpty);
        assert_eq!(kind(groups.member(&g, &id("other")).await), ErrorKind::MemberNotFound);
        session.groups().leave(&g).await.unwrap();
        groups.delete(&g).await.unwrap();
        assert!(groups.list().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn any_id_is_a_group_and_a_member_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, _session) = member(&url, "m").await;
    let mut ids: Vec<GroupId> = [&b".."[..], b"a/b", b"\0", b"\xff", b"a", b"A", b"groups", &[1; 255]]
        .iter()
        .map(|id| GroupId::new(id).unwrap())
        .collect();
    for id in &ids {
        driver.groups().create(id).await.unwrap();
    }
    ids.sort_unstable();
    assert_eq!(driver.groups().list().await.unwrap(), ids);
    for name in ["..", "a/b", "\0"] {
        let (_driver, session) = member(&url, name).await;
        join(&session, "a").await.unwrap();
        assert_eq!(driver.groups().member(&group("a"), &id(name)).await.unwrap().member, id(name));
        drop(session);
    }
}

#[tokio::test]
async fn capabilities_that_python_could_not_read_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_driver, session) = member(&url(directory.path(), ""), "m").await;
    let odd = Capabilities::new(&std::collections::BTreeMap::from([(1, 2)])).unwrap();
    let request = Join::new(group("g"), odd.clone()).create(true);
    assert_eq!(kind(session.groups().join(&request).await), ErrorKind::Invalid);
    let (_driver, session) = member(&url(directory.path(), "?namespace=ours"), "m").await;
    session.groups().join(&request).await.unwrap();
    let large = Capabilities::from_raw(vec![7; 65_000]).unwrap();
    session.groups().update(&group("g"), &large).await.unwrap();
}

#[tokio::test]
async fn a_watch_tells_what_happens() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, one) = member(&url, "one").await;
        join(&one, "g").await.unwrap();
        let mut watch = driver.groups().watch(&group("g")).await.unwrap();
        assert_eq!(short(next(&mut watch).await), "[one]");
        let mut helper = Helper::start(&url, "two");
        assert_eq!(helper.does("join g"), "Ok(())");
        assert_eq!(short(next(&mut watch).await), "+two");
        one.groups().update(&group("g"), &caps(5)).await.unwrap();
        assert_eq!(short(next(&mut watch).await), "~one");
        helper.kill();
        assert_eq!(short(next(&mut watch).await), "-two");
        one.groups().leave(&group("g")).await.unwrap();
        assert_eq!(short(next(&mut watch).await), "-one");
        driver.groups().delete(&group("g")).await.unwrap();
        driver.groups().create(&group("g")).await.unwrap();
        assert_eq!(short(next(&mut watch).await), "deleted");
        assert_eq!(short(next(&mut watch).await), "end");
    }
}

#[tokio::test]
async fn a_rejoin_between_two_looks_shows_as_left_and_joined() {
    let directory = tempfile::tempdir().unwrap();
    let (driver, one) = member(&url(directory.path(), ""), "one").await;
    join(&one, "g").await.unwrap();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[one]");
    one.groups().leave(&group("g")).await.unwrap();
    join(&one, "g").await.unwrap();
    assert_eq!(short(next(&mut watch).await), "-one");
    assert_eq!(short(next(&mut watch).await), "+one");
}

#[tokio::test]
async fn a_member_id_belongs_to_one_live_session() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let mut helper = Helper::start(&url, "m");
        assert_eq!(helper.does("join g"), "Ok(())");
        let (driver, session) = member(&url, "m").await;
        granted(&session, 1, "x", Exclusive).await; // locking claims nothing
        for name in ["g", "another"] {
            assert_eq!(kind(join(&session, name).await), ErrorKind::MemberExists, "{name}");
        }
        assert!(!driver.groups().list().await.unwrap().contains(&group("another")));
        helper.stop();
        assert_eq!(kind(join(&session, "g").await), ErrorKind::MemberExists, "stopped is not dead");
        helper.kill();
        join(&session, "g").await.unwrap();
        assert_eq!(names(&driver, "g").await, ["m"]);
    }
}

#[tokio::test]
async fn the_dead_are_no_members_and_are_cleared_away() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let mut helper = Helper::start(&url, "victim");
        assert_eq!(helper.does("join g"), "Ok(())");
        helper.does("lock x");
        // Two cleaners, and a newcomer of the same name.
        let (d1, _one) = member(&url, "one").await;
        let (_d2, _two) = member(&url, "two").await;
        helper.kill();
        let (_d3, newcomer) = member(&url, "victim").await;
        join(&newcomer, "g").await.unwrap();
        assert_eq!(names(&d1, "g").await, ["victim"]);
        let ours = directory.path().join(".tooz-rs");
        let count = |name: &str| std::fs::read_dir(ours.join(name)).unwrap().count();
        eventually("the dead session is cleared away", async || count("sessions") == 3).await;
        assert_eq!(names(&d1, "g").await, ["victim"], "the newcomer stays");
        assert!(newcomer.renew(&holding(&[], &[], &["g"])).await.unwrap().evicted.is_empty());
    }
}

#[tokio::test]
async fn a_closed_session_leaves_nothing() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, session) = member(&url, "m").await;
        let (_d2, other) = member(&url, "other").await;
        join(&session, "g").await.unwrap();
        granted(&session, 1, "x", Exclusive).await;
        common::queued(&session, 2, "x", Exclusive).await;
        for _ in 0..2 {
            session.close(End::Clean).await.unwrap();
        }
        assert!(names(&driver, "g").await.is_empty() && !held(&other, "x", Exclusive).await);
        assert_eq!(kind(join(&session, "g").await), ErrorKind::Closed);
        assert_eq!(kind(session.locks().request(&common::ask(3, "x", Exclusive)).await), ErrorKind::Closed);
        let ours = directory.path().join(".tooz-rs");
        let count = |name: &str| std::fs::read_dir(ours.join(name)).unwrap().count();
        assert_eq!((count("sessions"), count("claims"), count("tmp")), (1, 0, 1));
        // For watches, and not for long.
        let left = std::fs::read_dir(ours.join("tmp")).unwrap().next().unwrap().unwrap().file_name();
        assert!(left.to_str().unwrap().starts_with("left."), "{left:?}");
        driver.groups().delete(&group("g")).await.unwrap();
        assert_eq!(count("tmp"), 0);
    }
}

#[tokio::test]
async fn a_dropped_session_ends_as_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, session) = member(&url, "m").await;
    let (_d2, other) = member(&url, "other").await;
    join(&session, "g").await.unwrap();
    granted(&session, 1, "x", Exclusive).await;
    let place = common::queued(&other, 2, "x", Exclusive).await;
    drop(session);
    let grant = common::turn(&other, &place).await;
    assert_eq!(grant.previous, tooz_core::Previous::Expired);
    // The files of one session are closed one after the other.
    eventually("it is no member", async || names(&driver, "g").await.is_empty()).await;
}

#[tokio::test]
async fn a_session_whose_file_is_deleted_ends_itself() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (driver, session) = member(&url, "m").await;
        join(&session, "g").await.unwrap();
        granted(&session, 1, "x", Exclusive).await;
        std::fs::remove_file(directory.path().join(".tooz-rs/sessions").join(session.id().to_string()))
            .unwrap();
        let (_d2, other) = member(&url, "other").await;
        match soon(session.notice()).await {
            Notice::SessionLost(why) => assert_eq!(why, LossReason::Vanished),
            notice => panic!("{notice:?}"),
        }
        assert_eq!(session.renew(&holding(&[], &[], &[])).await.unwrap().lost, Some(LossReason::Vanished));
        eventually("what it held is free", async || !held(&other, "x", Exclusive).await).await;
        eventually("it is no member", async || names(&driver, "g").await.is_empty()).await;
    }
}

#[tokio::test]
async fn a_next_session_takes_over_what_is_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (driver, first) = member(&url, "m").await;
    let (_d2, rival) = member(&url, "m").await;
    let request = opening("m");
    let earlier = driver.open_session(&request).await.unwrap();
    join(&earlier, "g").await.unwrap();
    granted(&earlier, 1, "x", Exclusive).await;
    let next = driver.open_session(&request.clone().after(Some(earlier.id()))).await.unwrap();
    assert_eq!(earlier.renew(&holding(&[], &[], &[])).await.unwrap().lost, Some(LossReason::Expired));
    assert_eq!(kind(join(&rival, "g").await), ErrorKind::MemberExists, "the claim passed on");
    join(&next, "g").await.unwrap();
    assert!(!held(&first, "x", Exclusive).await);
    assert_ne!(next.id(), earlier.id());
    // Not its own: another coordinator's session stays.
    let stranger = driver.open_session(&opening("m").after(Some(next.id()))).await.unwrap();
    assert_eq!(kind(join(&stranger, "g").await), ErrorKind::MemberExists);
    assert!(next.renew(&holding(&[], &[], &["g"])).await.unwrap().lost.is_none());
}

#[tokio::test]
async fn an_evicted_member_is_told_at_its_next_beat() {
    let directory = tempfile::tempdir().unwrap();
    let (driver, session) = member(&url(directory.path(), ""), "m").await;
    join(&session, "g").await.unwrap();
    let groups = directory.path().join("groups");
    let of_group = std::fs::read_dir(groups).unwrap().next().unwrap().unwrap().path();
    for entry in std::fs::read_dir(&of_group).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "raw") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(session.renew(&holding(&[], &[], &["g"])).await.unwrap().evicted, [group("g")]);
    join(&session, "g").await.unwrap();
    assert_eq!(names(&driver, "g").await, ["m"]);
}

#[tokio::test]
async fn foreign_files_are_skipped_and_never_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (driver, session) = member(&url(directory.path(), ""), "m").await;
    join(&session, "g").await.unwrap();
    let groups = directory.path().join("groups");
    let of_group = std::fs::read_dir(&groups).unwrap().next().unwrap().unwrap().path();
    for (name, content) in [("junk.raw", &b"\xc1"[..]), ("half.raw", b"\x84\xacca"), ("other", b"")] {
        std::fs::write(of_group.join(name), content).unwrap();
    }
    std::fs::create_dir(of_group.join("dir.raw")).unwrap();
    std::fs::write(groups.join("stray"), b"x").unwrap();
    std::fs::create_dir(groups.join("empty")).unwrap();
    assert_eq!(names(&driver, "g").await, ["m"]);
    assert_eq!(driver.groups().list().await.unwrap(), [group("g")]);
    session.groups().leave(&group("g")).await.unwrap();
    assert!(driver.groups().delete(&group("g")).await.is_err());
    assert!(of_group.join("other").exists() && of_group.join("junk.raw").exists());
}

#[tokio::test]
async fn a_directory_that_is_deleted_is_made_anew_with_another_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d");
    let (driver, session) = member(&url(&path, ""), "m").await;
    join(&session, "g").await.unwrap();
    let mut watch = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[m]");
    std::fs::remove_dir_all(&path).unwrap();
    assert_eq!(session.renew(&holding(&[], &[], &["g"])).await.unwrap().lost, Some(LossReason::Vanished));
    let after = driver.open_session(&opening("m")).await.unwrap();
    assert_ne!(after.epoch(), session.epoch());
    assert_eq!(short(next(&mut watch).await), "[]", "nobody deleted the group");
    join(&after, "g").await.unwrap();
    assert_eq!(short(next(&mut watch).await), "+m");
}

/// X7: what says that a session lives says in which layout it works, too.
#[tokio::test]
async fn a_deleted_stamp_is_not_replaced_beside_another_layout() {
    let directory = tempfile::tempdir().unwrap();
    // It cannot notice that the stamp is gone, and end.
    let earlier = Helper::start(&url(directory.path(), ""), "m");
    earlier.stop();
    let stamp = directory.path().join(".tooz-rs/epoch");
    std::fs::remove_file(&stamp).unwrap();
    let error = connect(&url(directory.path(), "?layout=1000")).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    assert!(error.to_string().contains("member \"m\""), "{error}");
    assert!(!stamp.exists(), "it would be taken for that of the living");
    earlier.kill();
    connect(&url(directory.path(), "?layout=1000")).await.unwrap();
    assert!(std::fs::read_to_string(stamp).unwrap().starts_with("1000 "));
}

#[tokio::test]
async fn a_read_only_directory_is_refused_clearly() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = connect(&url(&directory.path().join("file"), "")).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUrl);
    assert_eq!(kind(connect("file:///proc/tooz").await.map(drop)), ErrorKind::Unavailable);
}

#[tokio::test]
async fn after_close_every_call_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (driver, session): (Arc<dyn Driver>, _) = member(&url(directory.path(), ""), "m").await;
    let mut watch = {
        join(&session, "g").await.unwrap();
        driver.groups().watch(&group("g")).await.unwrap()
    };
    assert_eq!(short(next(&mut watch).await), "[m]");
    session.close(End::Clean).await.unwrap();
    for _ in 0..2 {
        driver.close().await.unwrap();
    }
    assert_eq!(kind(driver.groups().list().await), ErrorKind::Closed);
    assert_eq!(kind(driver.open_session(&opening("m")).await.map(drop)), ErrorKind::Closed);
    assert_eq!(short(next(&mut watch).await), "end");
}
