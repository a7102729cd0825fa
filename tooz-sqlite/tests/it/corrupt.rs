//! X2: single values that somebody wrote into a database that is otherwise good: of another type, missing, negative or
//! huge, in every column of every table. Whoever meets one is told where it is and what to do, nobody gets a lock
//! beside its holder, and everything else goes on.
#![allow(clippy::disallowed_methods)] // its helpers are tests as well; a task is started

use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{Acquired, BreakRequest, Driver, End, Grant, LockKey, QueueEntry, Session, Turn};
use tooz_core::{Capabilities, Error, ErrorKind, Result};

const VALUES: [&str; 7] = ["NULL", "''", "'diary'", "x''", "x'ff00'", "-7", "9223372036854775807"];

/// Two processes that serve one test after the other databases.
struct Others {
    neighbor: Actor,
    vandal: Actor,
}

impl Others {
    fn start() -> Self {
        Self { neighbor: Actor::start("neighbor", &[]).0, vandal: Actor::start("vandal", &[]).0 }
    }

    fn damage(&mut self, directory: &std::path::Path, table: &str, set: &str) -> String {
        self.vandal.tell(&format!("{}\t{table}\t{set}", directory.display()));
        self.vandal.hear()
    }
}

/// A database in use: `one` holds `x` and `y` is the neighbor's; `two` waits for both; all are members of `g`.
struct Scene {
    directory: tempfile::TempDir,
    driver: Arc<dyn Driver>,
    one: Arc<dyn Session>,
    two: Arc<dyn Session>,
    three: Arc<dyn Session>,
    x: Grant,
    places: [QueueEntry; 2],
}

async fn scene(others: &mut Others) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "operation_timeout=5s");
    others.neighbor.tell(&url);
    assert_eq!(others.neighbor.hear(), "there");
    let driver = connect(&url).await;
    let (one, two) = (session(&driver, "one").await, session(&driver, "two").await);
    let three = session(&driver, "three").await;
    for session in [&one, &two] {
        session.groups().join(&join("g")).await.unwrap();
    }
    driver.groups().create(&group("other")).await.unwrap();
    let x = granted(&one, &ask("x", Exclusive)).await;
    let places = [queued(&two, &ask("x", Exclusive)).await, queued(&two, &ask("y", Exclusive)).await];
    Scene { directory, driver, one, two, three, x, places }
}

/// An answer, or an error that says where to look; never a panic of the database's thread, and never "try again".
fn clear<T>(what: &str, result: Result<T>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(error) => {
            clear_error(what, &error);
            None
        }
    }
}

fn clear_error(what: &str, error: &Error) {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Corrupt => {
            assert!(
                text.contains("table") && (text.contains("delete") || text.contains("correct")),
                "{what}: {text}"
            );
        }
        // The value made it another record, or none.
        ErrorKind::GroupNotFound
        | ErrorKind::GroupNotEmpty
        | ErrorKind::MemberNotFound
        | ErrorKind::MemberExists
        | ErrorKind::SessionLost
        | ErrorKind::Invalid => {}
        _ => panic!("{what}: {text} {error:?}"),
    }
}

impl Scene {
    /// Everything that can be asked, of what is damaged and of what is not.
    async fn ask_all(&self, what: &str, tokens: bool) {
        let Self { driver, one, two, three, x, places, .. } = self;
        let (groups, locks) = (driver.groups(), driver.locks());
        clear(what, groups.list().await);
        clear(what, groups.members(&group("g")).await);
        for name in ["one", "neighbor"] {
            clear(what, groups.member(&group("g"), &id(name)).await);
        }
        clear(what, groups.delete(&group("g")).await);
        clear(what, two.groups().update(&group("g"), &Capabilities::new("two").unwrap()).await);
        for name in ["x", "y"] {
            clear(what, locks.holders(&key(name)).await);
            let request = ask(name, Exclusive).wait(false);
            if let Some(Acquired::Granted(grant)) = clear(what, three.locks().request(&request).await) {
                // Only if whoever had it has lost it.
                if name == "x" {
                    let renewal = clear(what, one.renew(&held(&[x], &[], &[])).await);
                    let lost =
                        renewal.is_none_or(|renewal| renewal.lost.is_some() || !renewal.gone.is_empty());
                    assert!(lost, "{what}: two holders");
                }
                clear(what, three.locks().release(&grant, End::Clean).await);
            }
        }
        clear(what, one.renew(&held(&[x], &[], &["g"])).await);
        clear(what, two.renew(&held(&[], &[&places[0], &places[1]], &["g"])).await);
        // What has nothing to do with it.
        groups.create(&group("new")).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(groups.members(&group("other")).await.unwrap().is_empty());
        three.groups().join(&join("new")).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(groups.members(&group("new")).await.unwrap().len(), 1, "{what}");
        three.groups().leave(&group("new")).await.unwrap();
        groups.delete(&group("new")).await.unwrap();
        if tokens {
            let z = granted(three, &ask("z", Exclusive)).await;
            three.locks().release(&z, End::Clean).await.unwrap();
        }
        let newcomer = session(driver, "newcomer").await;
        newcomer.close(End::Clean).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    /// Whatever somebody damaged of theirs, sessions can end, and take nothing of others along.
    async fn end_all(self, what: &str, others: &mut Others, tokens: bool) {
        let Self { directory, driver, one, two, three, x, .. } = self;
        clear(what, one.locks().release(&x, End::Clean).await);
        let breaking = BreakRequest::new(key("y"), id("three"), "");
        clear(what, driver.locks().break_lock(&breaking).await);
        let z = if tokens { Some(granted(&two, &ask("z", Exclusive)).await) } else { None };
        one.close(End::Clean).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        two.close(End::Clean).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        others.neighbor.tell("");
        assert_eq!(others.neighbor.hear(), "left");
        if let Some(z) = z {
            assert!(granted(&three, &ask("z", Exclusive)).await.token > z.token, "{what}");
        }
        three.close(End::Clean).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        driver.close().await.unwrap();
        let again = try_connect(&url(directory.path(), "")).await;
        if let Some(driver) = clear(what, again) {
            driver.close().await.unwrap();
        }
    }
}

/// Three values of seven for each column, others for the next; every one if `TOOZ_EVERY_VALUE` is set.
fn values(column: usize) -> Vec<&'static str> {
    let few = if std::env::var_os("TOOZ_EVERY_VALUE").is_some() { VALUES.len() } else { 3 };
    VALUES.into_iter().cycle().skip(column * 3).take(few).collect()
}

/// One table, the columns in it, and which rows.
async fn vandalized(table: &str, columns: &[&str], rows: &[&str], tokens: bool) {
    let mut others = Others::start();
    let mut damaged = 0;
    for (number, column) in columns.iter().enumerate() {
        for value in values(number) {
            let scene = scene(&mut others).await;
            let rows = rows[damaged % rows.len()];
            let what = format!("{table}.{column} = {value} WHERE {rows}");
            let done =
                others.damage(scene.directory.path(), table, &format!("{column} = {value} WHERE {rows}"));
            if done == "damaged" {
                damaged += 1;
                scene.ask_all(&what, tokens).await;
            } else {
                assert!(done.starts_with("refused"), "{what}: {done}");
            }
            scene.end_all(&what, &mut others, tokens).await;
        }
    }
    assert!(damaged > columns.len(), "{table}: only {damaged} values could be written");
}

#[tokio::test]
async fn in_holders() {
    let columns = ["namespace", "kind", "name", "attempt", "session", "mode", "token", "previous", "since"];
    vandalized("holders", &columns, &["name = x'78'", "name = x'79'"], true).await;
}

#[tokio::test]
async fn in_waiters() {
    let columns = ["namespace", "kind", "name", "attempt", "session", "mode"];
    vandalized("waiters", &columns, &["name = x'78'", "name = x'79'"], true).await;
}

#[tokio::test]
async fn in_sessions() {
    let columns = [
        "id",
        "namespace",
        "member",
        "instance",
        "inode",
        "pid",
        "started",
        "pid_namespace",
        "boot_id",
        "bell",
    ];
    vandalized(
        "sessions",
        &columns,
        &["member = CAST('one' AS BLOB)", "member = CAST('neighbor' AS BLOB)"],
        true,
    )
    .await;
}

#[tokio::test]
async fn in_members_groups_and_claims() {
    let columns = ["member", "session", "capabilities", "incarnation", "joined_at", "updated_at"];
    vandalized(
        "members",
        &columns,
        &["member = CAST('one' AS BLOB)", "member = CAST('neighbor' AS BLOB)"],
        true,
    )
    .await;
    vandalized("groups", &["namespace", "name"], &["name = CAST('g' AS BLOB)"], true).await;
    vandalized("claims", &["namespace", "member", "session"], &["member = CAST('one' AS BLOB)"], true).await;
}

#[tokio::test]
async fn in_the_counter_and_in_the_log() {
    vandalized("fence", &["next", "ceiling"], &["one = 1"], false).await;
    let columns =
        ["topic", "namespace", "name", "member", "capabilities", "incarnation", "session", "attempt"];
    vandalized("events", &columns, &["1"], true).await;
}

/// While a guard is held and a waiter waits: neither is told something false, and both go on when it is good again.
#[tokio::test]
async fn a_waiter_goes_on_when_the_record_is_good_again() {
    let mut others = Others::start();
    let scene = scene(&mut others).await;
    let path = scene.directory.path().to_owned();
    assert_eq!(others.damage(&path, "waiters", "mode = 'diary' WHERE name = x'78'"), "damaged");
    let waiting = tokio::spawn({
        let (two, place) = (scene.two.clone(), scene.places[0].clone());
        async move { two.locks().turn(&place).await }
    });
    scene.one.locks().release(&scene.x, End::Clean).await.unwrap();
    let error = scene.three.locks().request(&ask("x", Exclusive)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("\"x\"") && error.to_string().contains("table waiters"), "{error}");
    let renewal = scene.two.renew(&held(&[], &[&scene.places[0]], &[])).await.unwrap();
    assert!(renewal.unqueued.is_empty() && !waiting.is_finished());
    assert_eq!(others.damage(&path, "waiters", "mode = 0 WHERE name = x'78'"), "damaged");
    match soon(waiting).await.unwrap().unwrap() {
        Turn::Granted(grant) => assert!(grant.token > scene.x.token),
        other => panic!("{other:?}"),
    }
    // The same of a holder that another process is, and that dies.
    assert_eq!(others.damage(&path, "holders", "token = x'00' WHERE name = x'79'"), "damaged");
    others.neighbor.kill();
    let waiting = tokio::spawn({
        let (two, place) = (scene.two.clone(), scene.places[1].clone());
        async move { two.locks().turn(&place).await }
    });
    // What a dead session held is free, whatever stands in it.
    assert!(matches!(soon(waiting).await.unwrap().unwrap(), Turn::Granted(_)));
    assert_eq!(scene.places[1].key, LockKey::clone(&key("y")));
    tokio::time::timeout(Duration::from_secs(5), scene.two.close(End::Clean)).await.unwrap().unwrap();
}
