//! The files: where they may be, who may read them, and what happens when they are taken away.
#![allow(clippy::disallowed_methods)] // its helpers are tests as well; a task is started

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{Acquired, End, Notice, Session, Turn};
use tooz_core::{ErrorKind, LossReason};

fn sql(directory: &Path, statements: &str) {
    let path = directory.join("tooz.db").display().to_string();
    drop(Actor::start("sql", &[&path, statements]));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn session_file(directory: &Path, session: &dyn Session) -> std::path::PathBuf {
    directory.join("tooz.db-sessions").join(session.id().to_string())
}

async fn refused(url: &str, kind: ErrorKind, word: &str) {
    let error = try_connect(url).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[tokio::test]
async fn only_the_owner_may_read_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    // The umask belongs to the whole process: another one opens the database.
    let url = url(directory.path(), "");
    let (_actor, session) = Actor::start("open-umask", &[&url]);
    let file = |suffix: &str| directory.path().join(format!("tooz.db{suffix}"));
    for suffix in ["", "-wal", "-shm", &format!("-sessions/{session}"), "-sessions/.epoch"] {
        assert_eq!(mode(&file(suffix)), 0o600, "{suffix}");
    }
    assert_eq!(mode(&file("-sessions")), 0o700);
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let path = directory.path().join("tooz.db");
    let text = "this is a letter, not a database. ".repeat(100);
    fs::write(&path, &text).unwrap();
    refused(&url, ErrorKind::Corrupt, "not an SQLite database").await;
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    fs::remove_file(&path).unwrap();
    sql(directory.path(), "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)");
    let before = fs::read(&path).unwrap();
    refused(&url, ErrorKind::Corrupt, "another program").await;
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    connect(&url).await.close().await.unwrap();
    sql(directory.path(), "PRAGMA user_version = 99");
    refused(&url, ErrorKind::Incompatible, "layout 99").await;
}

#[tokio::test]
async fn bad_places_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    refused(&url(&missing, ""), ErrorKind::InvalidUrl, "create it first").await;
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("victim"), directory.path().join("tooz.db")).unwrap();
    refused(&url(directory.path(), ""), ErrorKind::Unavailable, "symlink").await;
    fs::write(elsewhere.path().join("victim"), "").unwrap();
    refused(&url(directory.path(), ""), ErrorKind::Denied, "symlink").await;
    assert_eq!(fs::read(elsewhere.path().join("victim")).unwrap(), b"");
    fs::remove_file(directory.path().join("tooz.db")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("tooz.db-sessions")).unwrap();
    refused(&url(directory.path(), ""), ErrorKind::Denied, "not a directory").await;
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn the_directory_of_another_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    connect(&url).await.close().await.unwrap();
    let epoch = directory.path().join("tooz.db-sessions/.epoch");
    let good = fs::read(&epoch).unwrap();
    fs::write(&epoch, "0123456789abcdef0123456789abcdef").unwrap();
    refused(&url, ErrorKind::Corrupt, "belongs to another database").await;
    fs::write(&epoch, good).unwrap();
    connect(&url).await;
}

#[tokio::test]
async fn a_cleaner_that_removes_a_session_file_ends_the_session_and_makes_no_second_holder() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let (mut other, id) = Actor::start("member", &[&url, "other"]);
    // A stopped owner cannot notice: its lock stays, since a missing file is not death.
    other.tell("acquire x");
    other.hear();
    other.stop();
    fs::remove_file(directory.path().join("tooz.db-sessions").join(&id)).unwrap();
    let place = queued(&us, &ask("x", Exclusive)).await;
    let waited = tokio::time::timeout(Duration::from_millis(1_500), us.locks().turn(&place)).await;
    assert!(waited.is_err(), "{waited:?}");
    // When it goes on, it ends its session itself and the lock is handed on.
    other.signal(nix::sys::signal::Signal::SIGCONT);
    let grant = turn(&us, &place).await;
    other.tell("notice");
    assert_eq!(other.hear(), "SessionLost(Vanished)");
    // Our own.
    let lasting = session(&driver, "lasting").await;
    let next = queued(&lasting, &ask("x", Exclusive)).await;
    fs::remove_file(session_file(directory.path(), &*us)).unwrap();
    assert!(matches!(soon(us.notice()).await, Notice::SessionLost(LossReason::Vanished)));
    assert_eq!(us.renew(&held(&[&grant], &[], &[])).await.unwrap().lost, Some(LossReason::Vanished));
    assert_eq!(us.locks().request(&ask("y", Exclusive)).await.unwrap_err().kind(), ErrorKind::SessionLost);
    assert!(turn(&lasting, &next).await.token > grant.token);
    us.close(End::Clean).await.unwrap();
}

#[tokio::test]
async fn a_beat_alone_notices_that_the_file_was_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let us = session(&driver, "us").await;
    let file = session_file(directory.path(), &*us);
    // Replaced by a rename, of which the directory tells only the arrival.
    fs::write(directory.path().join("other"), "").unwrap();
    fs::rename(directory.path().join("other"), &file).unwrap();
    assert_eq!(us.renew(&held(&[], &[], &[])).await.unwrap().lost, Some(LossReason::Vanished));
}

#[tokio::test]
async fn a_deleted_database_ends_its_sessions_and_begins_anew_with_larger_tokens() {
    for replace in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let url = url(directory.path(), "");
        let driver = connect(&url).await;
        let us = session(&driver, "us").await;
        us.groups().join(&join("g").create(true)).await.unwrap();
        let mut watch = driver.groups().watch(&group("g")).await.unwrap();
        assert_eq!(short(next(&mut watch).await), "[us]");
        let grant = granted(&us, &ask("x", Exclusive)).await;
        let path = directory.path().join("tooz.db");
        if replace {
            fs::write(directory.path().join("new"), "").unwrap();
            fs::rename(directory.path().join("new"), &path).unwrap();
        } else {
            for suffix in ["", "-wal", "-shm"] {
                fs::remove_file(directory.path().join(format!("tooz.db{suffix}"))).unwrap();
            }
        }
        assert!(matches!(soon(us.notice()).await, Notice::SessionLost(LossReason::Vanished)));
        assert_eq!(us.renew(&held(&[&grant], &[], &[])).await.unwrap().lost, Some(LossReason::Vanished));
        if replace {
            // The old log still lies there and does not belong to the new file: a human made this, and SQLite
            // drops what does not fit.
            let _ = fs::remove_file(directory.path().join("tooz.db-wal"));
            let _ = fs::remove_file(directory.path().join("tooz.db-shm"));
        }
        let again = driver.open_session(&opening("us").after(Some(us.id()))).await.unwrap();
        assert_ne!(again.epoch(), us.epoch());
        assert_eq!(short(next(&mut watch).await), "[]");
        again.groups().join(&join("g").create(true)).await.unwrap();
        // The first view may come after the join.
        let change = short(next(&mut watch).await);
        assert!(change == "+us", "{change}");
        assert!(granted(&again, &ask("x", Exclusive)).await.token > grant.token);
    }
}

#[tokio::test]
async fn a_vanished_session_directory_ends_the_sessions_and_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let driver = connect(&url(directory.path(), "")).await;
    let us = session(&driver, "us").await;
    let grant = granted(&us, &ask("x", Exclusive)).await;
    fs::remove_dir_all(directory.path().join("tooz.db-sessions")).unwrap();
    assert!(matches!(soon(us.notice()).await, Notice::SessionLost(LossReason::Vanished)));
    let again = driver.open_session(&opening("us").after(Some(us.id()))).await.unwrap();
    eventually(|| async {
        let request = ask("x", Exclusive).wait(false);
        match again.locks().request(&request).await.unwrap() {
            Acquired::Granted(next) => next.token > grant.token,
            _ => false,
        }
    })
    .await;
}

/// With the file alone, two places could hold the same lock: the sessions stand in the directory.
#[tokio::test]
async fn a_database_whose_sessions_are_elsewhere_is_refused_until_it_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&new).unwrap();
    let (mut holder, _) = Actor::start("member", &[&url(&old, ""), "holder"]);
    holder.tell("acquire x");
    let token = holder.hear().parse::<u64>().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("tooz.db{suffix}");
        // This process has neither open: closing them drops nobody's locks.
        fs::copy(old.join(&name), new.join(&name)).unwrap();
    }
    let moved = url(&new, "");
    refused(&moved, ErrorKind::Corrupt, "doctor --adopt").await;
    refused(&moved, ErrorKind::Corrupt, "doctor --adopt").await;
    for word in ["adopted", "nothing to adopt"] {
        let found = tooz_core::Coordinator::builder(&moved, "m").adopt().examine().await.unwrap();
        let adopt = found.iter().find(|finding| finding.topic() == "adopt").map(tooz_core::Finding::what);
        assert!(adopt.is_some_and(|what| what.starts_with(word)), "{found:?}");
    }
    // What the sessions of the former place held is free here.
    let us = session(&connect(&moved).await, "us").await;
    let grant = granted(&us, &ask("x", Exclusive)).await;
    assert_eq!(grant.previous, tooz_core::driver::Previous::Expired);
    assert!(grant.token.get() > token);
}

#[tokio::test]
async fn a_database_whose_sessions_are_known_to_be_over_needs_no_adoption() {
    for (query, dies) in [("", true), ("boot_id=earlier", false)] {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&new).unwrap();
        let (mut holder, _) = Actor::start("member", &[&url(&old, query), "holder"]);
        holder.tell("acquire x");
        holder.hear();
        // Dropped, it is killed and waited for.
        let _alive = (!dies).then_some(holder);
        for name in ["tooz.db", "tooz.db-wal"] {
            fs::copy(old.join(name), new.join(name)).unwrap();
        }
        let us = session(&connect(&url(&new, "")).await, "us").await;
        granted(&us, &ask("x", Exclusive)).await;
    }
}

/// The process that had it open there knows that it is the right place, whatever another cannot do.
#[tokio::test]
async fn a_vanished_session_directory_is_made_anew_although_another_process_stands_still() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let (mut other, _) = Actor::start("member", &[&url, "other"]);
    other.tell("acquire x");
    other.hear();
    other.stop();
    fs::remove_dir_all(directory.path().join("tooz.db-sessions")).unwrap();
    assert!(matches!(soon(us.notice()).await, Notice::SessionLost(LossReason::Vanished)));
    let again = driver.open_session(&opening("us").after(Some(us.id()))).await.unwrap();
    let answer = again.locks().request(&ask("x", Exclusive).wait(false)).await.unwrap();
    assert!(matches!(answer, Acquired::Held), "{answer:?}");
    granted(&again, &ask("y", Exclusive)).await;
}

/// The files of the sessions say, too, that it is the right directory.
#[tokio::test]
async fn a_cleaner_that_removes_the_mark_of_the_directory_shuts_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
    holder.tell("acquire x");
    holder.hear();
    let mark = directory.path().join("tooz.db-sessions/.epoch");
    fs::remove_file(&mark).unwrap();
    let us = session(&connect(&url).await, "us").await;
    let answer = us.locks().request(&ask("x", Exclusive).wait(false)).await.unwrap();
    assert!(matches!(answer, Acquired::Held), "{answer:?}");
    assert!(mark.exists());
}

/// No event tells of it: the database itself is neither moved nor deleted.
#[tokio::test]
async fn a_directory_above_that_is_moved_ends_the_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let (home, elsewhere) = (directory.path().join("home"), directory.path().join("elsewhere"));
    fs::create_dir(&home).unwrap();
    let driver = connect(&url(&home, "")).await;
    let us = session(&driver, "us").await;
    granted(&us, &ask("x", Exclusive)).await;
    fs::rename(&home, &elsewhere).unwrap();
    assert!(matches!(soon(us.notice()).await, Notice::SessionLost(LossReason::Vanished)));
}

#[tokio::test]
async fn nothing_outlives_close_and_the_next_client_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    for _ in 0..20 {
        let driver = connect(&url).await;
        let us = session(&driver, "us").await;
        let first = granted(&us, &ask("x", Exclusive)).await;
        let place = queued(&us, &ask("x", Exclusive)).await;
        let waiting = {
            let us = us.clone();
            tokio::spawn(async move { us.locks().turn(&place).await })
        };
        us.locks().release(&first, End::Clean).await.unwrap();
        assert!(matches!(soon(waiting).await.unwrap().unwrap(), Turn::Granted(_)));
        us.close(End::Clean).await.unwrap();
        driver.close().await.unwrap();
        driver.close().await.unwrap();
        assert_eq!(driver.groups().list().await.unwrap_err().kind(), ErrorKind::Closed);
        // The last one that closes a database removes its log.
        assert!(!directory.path().join("tooz.db-wal").exists());
    }
}

#[tokio::test]
async fn the_ceiling_is_raised_before_it_is_reached() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    connect(&url).await.close().await.unwrap();
    sql(directory.path(), "UPDATE fence SET next = 1000, ceiling = 1003");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    for token in 1000..1010 {
        assert_eq!(granted(&us, &ask(&format!("{token}"), Exclusive)).await.token.get(), token);
    }
    // Also when the last one is needed to hand on.
    us.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
    sql(directory.path(), "UPDATE fence SET next = 2000, ceiling = 2001");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let first = granted(&us, &ask("x", Exclusive)).await;
    let place = queued(&us, &ask("x", Exclusive)).await;
    us.locks().release(&first, End::Clean).await.unwrap();
    assert_eq!(turn(&us, &place).await.token.get(), 2001);
}
