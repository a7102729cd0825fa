//! X2: single records that somebody damaged in a directory that is otherwise good. Whoever meets one is told which it
//! is and what to do, and everything else goes on.

#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{
    Exclusive, Helper, ask, connect, eventually, granted, group, held, holding, id, key, kind, member, names,
    next, opening, queued, request, short, soon, still_waits, turn, url,
};
use tooz_core::driver::{Acquired, BreakRequest, Driver, End, Join, Notice, Released, Session};
use tooz_core::{Capabilities, Error, ErrorKind, LossReason};

const FLAVORS: [&str; 2] = ["", "?backend=portable"];

/// What a record may be replaced by: nothing, a part, something else, something of a newer version, far too much.
fn contents(good: &[u8]) -> Vec<Vec<u8>> {
    let mut newer = good.to_vec();
    if let Some(first) = newer.first_mut() {
        *first ^= 0xff;
    }
    vec![
        Vec::new(),
        good[..good.len() / 2].to_vec(),
        b"this is somebody's diary\n".repeat(20),
        newer,
        vec![0xff; 64],
        vec![0; 300 * 1024],
    ]
}

/// The files below a directory whose names contain `part`.
fn find(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(find(&path, part));
        } else if path.file_name().unwrap().to_str().unwrap().contains(part) {
            found.push(path);
        }
    }
    found
}

fn only(directory: &Path, part: &str) -> PathBuf {
    let found = find(directory, part);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

/// `Corrupt`, naming the file and what to do with it.
fn names_it(error: &Error, path: &Path) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(["delete it", "remove it", "delete or correct"].iter().any(|word| text.contains(word)), "{text}");
}

/// Another lock and another group of the same directory go on.
async fn others_go_on(driver: &Arc<dyn Driver>, session: &Arc<dyn Session>) {
    assert!(!held(session, "another", Exclusive).await);
    let other = group("another");
    driver.groups().create(&other).await.unwrap();
    session.groups().join(&Join::new(other.clone(), Capabilities::none())).await.unwrap();
    assert_eq!(names(driver, "another").await.len(), 1);
    session.groups().leave(&other).await.unwrap();
    driver.groups().delete(&other).await.unwrap();
    assert!(session.renew(&holding(&[], &[], &[])).await.unwrap().lost.is_none());
}

#[tokio::test]
async fn a_lock_record_of_another_version_lets_nobody_in() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (d, one) = member(&url, "one").await;
        let (_d2, two) = member(&url, "two").await;
        let grant = granted(&one, 1, "x", Exclusive).await;
        let record = only(directory.path(), ".h0");
        let good = record.file_name().unwrap().to_str().unwrap().to_owned();
        let (hash, rest) = good.split_once('.').unwrap();
        // The holder's own record becomes one that nobody understands: a mode, a role and an owner of the future.
        for bad in
            [rest.replacen(".x.", ".z9.", 1), rest.replacen('h', "q", 1), format!("{rest}.9"), String::new()]
        {
            let damaged = record.with_file_name(format!("{hash}.{bad}"));
            fs::write(&damaged, "").unwrap();
            let place = two.locks().request(&ask(2, "x", Exclusive)).await;
            names_it(&place.unwrap_err(), &damaged);
            names_it(&d.locks().holders(&key("x")).await.unwrap_err(), &damaged);
            let breaking = BreakRequest::new(key("x"), id("b"), "");
            names_it(&d.locks().break_lock(&breaking).await.unwrap_err(), &damaged);
            assert!(damaged.exists(), "never deleted unasked");
            others_go_on(&d, &two).await;
            assert!(one.renew(&holding(&[&grant], &[], &[])).await.unwrap().gone.is_empty(), "it holds on");
            fs::remove_file(&damaged).unwrap();
        }
        // While somebody waits: it does not get the lock, is told why, and has left nothing after withdrawing.
        let place = queued(&two, 3, "x", Exclusive).await;
        let waiting = tokio::spawn({
            let (two, place) = (two.clone(), place.clone());
            async move { two.locks().turn(&place).await }
        });
        let damaged = record.with_file_name(format!("{hash}.h{:016x}.newer", 9));
        fs::write(&damaged, "").unwrap();
        assert_eq!(
            one.locks().release(&grant, End::Clean).await.unwrap(),
            Released::Released,
            "the holder can give it back"
        );
        names_it(&soon(waiting).await.unwrap().unwrap_err(), &damaged);
        two.locks().withdraw(&place.key, place.attempt).await.unwrap();
        assert_eq!(find(directory.path(), ".w0"), Vec::<PathBuf>::new());
        fs::remove_file(&damaged).unwrap();
        assert!(granted(&two, 4, "x", Exclusive).await.token > grant.token);
    }
}

#[tokio::test]
async fn a_record_that_becomes_unreadable_is_lost_to_its_holder_and_to_its_waiter() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let (_d, one) = member(&url, "one").await;
        let (_d2, two) = member(&url, "two").await;
        let grant = granted(&one, 1, "x", Exclusive).await;
        let place = queued(&two, 2, "x", Exclusive).await;
        // The waiter's place.
        let record = only(directory.path(), ".w0");
        let damaged = record.with_extension("garbage");
        fs::rename(&record, &damaged).unwrap();
        names_it(&soon(two.locks().turn(&place)).await.unwrap_err(), &damaged);
        assert_eq!(two.renew(&holding(&[], &[&place], &[])).await.unwrap().unqueued, [place.attempt]);
        fs::remove_file(&damaged).unwrap();
        // The holder's record: it is told, and nobody follows while it is not understood.
        let record = only(directory.path(), ".h0");
        let damaged = record.with_extension("garbage");
        fs::rename(&record, &damaged).unwrap();
        let told = soon(one.notice()).await;
        assert!(
            matches!(told, Notice::GrantLost(lost, LossReason::Vanished) if lost == grant.attempt),
            "{told:?}"
        );
        let error = two.locks().request(&ask(3, "x", Exclusive)).await.unwrap_err();
        names_it(&error, &damaged);
        fs::remove_file(&damaged).unwrap();
        // It lets the lock's file go after it was told.
        let next = match request(&two, 4, "x", Exclusive).await {
            Acquired::Queued(place) => turn(&two, &place).await,
            Acquired::Granted(grant) => grant,
            other => panic!("{other:?}"),
        };
        assert!(next.token > grant.token);
    }
}

/// A lock's records are names: what somebody writes into the files changes nothing.
#[tokio::test]
async fn what_is_written_into_a_lock_record_is_of_no_interest() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (_d, one) = member(&url, "one").await;
    let (_d2, two) = member(&url, "two").await;
    let grant = granted(&one, 1, "x", Exclusive).await;
    let place = queued(&two, 2, "x", Exclusive).await;
    for path in find(directory.path(), ".h0").iter().chain(&find(directory.path(), ".w0")) {
        fs::write(path, vec![0xff; 300 * 1024]).unwrap();
    }
    for path in find(directory.path(), ".mutex").iter().chain(&find(directory.path(), ".driver_lock")) {
        fs::write(path, "this is somebody's diary").unwrap();
    }
    assert!(still_waits(&two, &place).await);
    assert_eq!(one.locks().release(&grant, End::Clean).await.unwrap(), Released::Released);
    assert!(turn(&two, &place).await.token > grant.token);
}

#[tokio::test]
async fn a_directory_in_place_of_a_lock_record_is_named_and_keeps_nobody_out_of_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut victim = Helper::start(&url, "victim");
    victim.does("lock x");
    victim.does("lock y");
    let (d, us) = member(&url, "us").await;
    let hash = |name: &str| {
        let records = find(directory.path(), ".h0");
        let grants = records.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        grants.filter(|record| record.contains(name)).collect::<Vec<_>>()
    };
    let mut records = find(directory.path(), ".h0");
    records.sort_by_key(|path| path.file_name().unwrap().to_str().unwrap()[65..].to_owned());
    assert_eq!((records.len(), hash(".h0").len()), (2, 2));
    // The victim dies, and one of its two records cannot be removed.
    victim.kill();
    eventually("the dead one's locks are free", async || !held(&us, "y", Exclusive).await).await;
    let damaged = &records[0];
    eventually("the record is gone", async || !damaged.exists()).await;
    fs::create_dir(damaged).unwrap();
    names_it(&us.locks().request(&ask(1, "x", Exclusive)).await.unwrap_err(), damaged);
    others_go_on(&d, &us).await;
    connect(&url).await.unwrap();
    fs::remove_dir(damaged).unwrap();
    assert!(!held(&us, "x", Exclusive).await);
}

#[tokio::test]
async fn a_members_record_is_skipped_in_lists_and_named_to_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (d, one) = member(&url, "one").await;
    let (_d2, two) = member(&url, "two").await;
    let join = |name: &str| Join::new(group(name), Capabilities::new(name).unwrap()).create(true);
    one.groups().join(&join("g")).await.unwrap();
    let record = only(directory.path(), ".raw");
    two.groups().join(&join("g")).await.unwrap();
    let good = fs::read(&record).unwrap();
    let mut watch = d.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut watch).await), "[one two]");
    for content in contents(&good) {
        fs::write(&record, &content).unwrap();
        eventually("it is skipped", async || names(&d, "g").await == ["two"]).await;
        assert_eq!(short(next(&mut watch).await), "-one");
        names_it(&d.groups().member(&group("g"), &id("one")).await.unwrap_err(), &record);
        let deleting = d.groups().delete(&group("g")).await.unwrap_err();
        assert!(matches!(deleting.kind(), ErrorKind::GroupNotEmpty | ErrorKind::Corrupt), "{deleting}");
        others_go_on(&d, &one).await;
        assert_eq!(fs::read(&record).unwrap(), content, "never deleted unasked");
        // Publishing again writes a whole record.
        one.groups().update(&group("g"), &Capabilities::new("again").unwrap()).await.unwrap();
        assert_eq!(names(&d, "g").await, ["one", "two"]);
        assert_eq!(short(next(&mut watch).await), "+one");
    }
    fs::write(&record, "").unwrap();
    one.groups().leave(&group("g")).await.unwrap();
    assert_eq!(names(&d, "g").await, ["two"]);
    // Somebody else's under our name is not replaced, unless nobody can be behind it.
    fs::write(&record, "somebody's").unwrap();
    names_it(&one.groups().join(&join("g")).await.unwrap_err(), &record);
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
    fs::File::options().write(true).open(&record).unwrap().set_modified(long_ago).unwrap();
    one.groups().join(&join("g")).await.unwrap();
    assert_eq!(names(&d, "g").await, ["one", "two"]);
}

#[tokio::test]
async fn a_groups_record_is_skipped_in_lists_and_named_to_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (d, one) = member(&url, "one").await;
    let join = Join::new(group("g"), Capabilities::none()).create(true);
    one.groups().join(&join).await.unwrap();
    d.groups().create(&group("h")).await.unwrap();
    let record = find(directory.path(), ".metadata")
        .into_iter()
        .find(|path| path.with_file_name("").read_dir().unwrap().count() == 2);
    let record = record.unwrap();
    let good = fs::read(&record).unwrap();
    for content in contents(&good) {
        fs::write(&record, &content).unwrap();
        assert_eq!(d.groups().list().await.unwrap(), [group("h")]);
        names_it(&d.groups().members(&group("g")).await.unwrap_err(), &record);
        names_it(&d.groups().delete(&group("g")).await.unwrap_err(), &record);
        names_it(&one.groups().leave(&group("g")).await.unwrap_err(), &record);
        names_it(&one.groups().join(&join).await.unwrap_err(), &record);
        assert_eq!(kind(d.groups().create(&group("g")).await), ErrorKind::GroupExists);
        assert_eq!(fs::read(&record).unwrap(), content, "never deleted unasked");
        others_go_on(&d, &one).await;
        fs::write(&record, &good).unwrap();
    }
    assert_eq!(d.groups().list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_claim_that_cannot_be_read_is_no_free_id_as_long_as_its_owner_may_live() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut owner = Helper::start(&url, "us");
    assert_eq!(owner.does("join g"), "Ok(())");
    let claims = directory.path().join(".tooz-rs/claims");
    let claim = fs::read_dir(&claims).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&claim).unwrap();
    let (d, us) = member(&url, "us").await;
    let (_d2, other) = member(&url, "other").await;
    let join = Join::new(group("h"), Capabilities::none()).create(true);
    for content in contents(&good) {
        fs::write(&claim, &content).unwrap();
        names_it(&us.groups().join(&join).await.unwrap_err(), &claim);
        others_go_on(&d, &other).await;
        assert_eq!(fs::read(&claim).unwrap(), content, "never deleted unasked");
    }
    // With the owner its right goes, whatever the claim says.
    owner.kill();
    eventually("the id is free", async || match us.groups().join(&join).await {
        Ok(()) => true,
        Err(error) => {
            names_it(&error, &claim);
            false
        }
    })
    .await;
    assert_eq!(names(&d, "h").await, ["us"]);
    // Neither leaving nor closing minds, and a session that follows gets its id.
    fs::write(&claim, "x").unwrap();
    us.groups().leave(&group("h")).await.unwrap();
    us.close(End::Clean).await.unwrap();
    let again = d.open_session(&opening("us")).await.unwrap();
    again.groups().join(&join).await.unwrap();
}

#[tokio::test]
async fn a_session_file_of_garbage_neither_kills_the_living_nor_keeps_the_dead() {
    for flavor in FLAVORS {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), flavor);
        let mut owner = Helper::start(&url, "owner");
        owner.does("lock x");
        assert_eq!(owner.does("join g"), "Ok(())");
        let sessions = directory.path().join(".tooz-rs/sessions");
        let file = fs::read_dir(&sessions).unwrap().next().unwrap().unwrap().path();
        let (d, us) = member(&url, "us").await;
        for content in contents(&fs::read(&file).unwrap()) {
            fs::write(&file, &content).unwrap();
            assert!(held(&us, "x", Exclusive).await);
            assert_eq!(names(&d, "g").await, ["owner"]);
            assert_eq!(d.locks().holders(&key("x")).await.unwrap().holders.len(), 1);
            others_go_on(&d, &us).await;
        }
        let place = queued(&us, 1, "x", Exclusive).await;
        owner.kill();
        turn(&us, &place).await;
        eventually("the dead one is no member", async || names(&d, "g").await.is_empty()).await;
        d.groups().delete(&group("g")).await.unwrap();
        connect(&url).await.unwrap();
    }
}

#[tokio::test]
async fn a_counter_of_garbage_grants_nothing_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (d, one) = member(&url, "one").await;
    let (_d2, two) = member(&url, "two").await;
    let first = granted(&one, 1, "x", Exclusive).await;
    let counter = directory.path().join(".tooz-rs/fence");
    let good = fs::read(&counter).unwrap();
    let mut exhausted = good.clone();
    exhausted[8..24].fill(0xff);
    let mut backwards = good.clone();
    backwards[8..16].copy_from_slice(&1_u64.to_be_bytes());
    for (content, attempt) in contents(&good).into_iter().chain([exhausted]).zip(100..) {
        fs::write(&counter, &content).unwrap();
        names_it(&two.locks().request(&ask(2, "y", Exclusive)).await.unwrap_err(), &counter);
        // Nothing is granted, and what needs no token goes on.
        assert_eq!(d.locks().holders(&key("y")).await.unwrap().holders.len(), 0);
        assert!(held(&two, "x", Exclusive).await);
        assert!(one.renew(&holding(&[&first], &[], &[])).await.unwrap().gone.is_empty());
        let place = queued(&two, attempt, "x", Exclusive).await;
        assert_eq!(fs::read(&counter).unwrap(), content, "never deleted unasked");
        two.locks().withdraw(&place.key, place.attempt).await.unwrap();
        fs::write(&counter, &good).unwrap();
    }
    // An older copy is noticed by whoever has seen larger numbers.
    let place = queued(&two, 4, "x", Exclusive).await;
    fs::write(&counter, &backwards).unwrap();
    one.locks().release(&first, End::Clean).await.unwrap();
    assert!(turn(&two, &place).await.token > first.token);
    // While somebody waits: the release is not kept back, and the waiter is told.
    let place = queued(&one, 5, "x", Exclusive).await;
    fs::write(&counter, "").unwrap();
    fs::remove_file(only(directory.path(), ".h0")).unwrap();
    names_it(&soon(one.locks().turn(&place)).await.unwrap_err(), &counter);
    fs::remove_file(&counter).unwrap();
    let third = turn(&one, &place).await;
    assert!(third.token > first.token, "deleted, it begins above everything that was given out");
}

#[tokio::test]
async fn strange_things_in_our_directories_keep_nobody_from_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let mut victim = Helper::start(&url, "victim");
    victim.does("lock x");
    assert_eq!(victim.does("join g"), "Ok(())");
    let home = directory.path().join(".tooz-rs");
    let name = "0123456789abcdef0123456789abcdef";
    let (d, us) = member(&url, "us").await;
    for place in ["sessions", "claims", "breaks", "broken", "tmp", "locks", "locks/00"] {
        let place = home.join(place);
        fs::create_dir_all(&place).unwrap();
        for strange in ["something", name, &format!("{name}.{name}"), &format!("{}.{name}", us.id())] {
            fs::create_dir(place.join(strange)).unwrap();
        }
        fs::write(place.join("a file"), "garbage").unwrap();
        std::os::unix::fs::symlink("/nowhere", place.join("a link")).unwrap();
    }
    fs::create_dir(directory.path().join("groups/something")).unwrap();
    fs::write(directory.path().join("groups/a file"), "garbage").unwrap();
    fs::create_dir(find(directory.path(), ".raw")[0].with_file_name("dir.raw")).unwrap();
    others_go_on(&d, &us).await;
    let place = queued(&us, 1, "x", Exclusive).await;
    victim.kill();
    turn(&us, &place).await;
    connect(&url).await.unwrap();
    eventually("the dead one is no member", async || names(&d, "g").await.is_empty()).await;
    assert!(matches!(request(&us, 2, "z", Exclusive).await, Acquired::Granted(_)));
    us.close(End::Clean).await.unwrap();
}
