//! Several users on one database.
#![allow(clippy::disallowed_methods)] // a failure is one

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use tooz_core::ErrorKind;
use tooz_core::driver::{End, LockMode::Exclusive};
use tooz_servers::cases;
use tooz_servers::lab::{Case, Trial};
use tooz_servers::users::{
    ALICE, BOB, SHARED, Scene, as_user, as_user_in_the_dark, set_mode, trials_of_users,
};

use crate::common::{Actor, ask, connect, granted, join, session, try_connect, url};

const CASES: &[(&str, Case)] = cases![
    a_dead_holder_is_noticed_although_its_file_may_not_be_read,
    a_living_holder_that_proc_hides_stays_the_holder,
    what_root_makes_belongs_to_the_owner_of_the_directory,
    what_root_makes_belongs_to_the_owner_of_the_database,
    two_users_of_one_group_share_a_directory,
    a_umask_takes_nothing_away_from_somebody_without_privileges,
    root_gives_nothing_away_that_it_did_not_make,
    what_is_not_the_owners_is_not_taken_for_a_log,
];

pub(crate) fn trials() -> Vec<Trial> {
    trials_of_users(CASES)
}

fn start(scene: &Scene, command: Command, part: &str, arguments: &[&str]) -> Actor {
    Actor::run(scene.program(command), part, arguments).0
}

fn member(scene: &Scene, command: Command, query: &str, name: &str) -> Actor {
    start(scene, command, "member", &[&url(&scene.target, query), name])
}

fn beside(scene: &Scene, suffix: &str) -> PathBuf {
    scene.target.join(format!("tooz.db{suffix}"))
}

/// Everybody may use the database and its directories, but not the files of a session, as after a `chmod` by hand.
fn open_to_all(scene: &Scene) {
    for suffix in ["", "-wal", "-shm", "-sessions/.epoch"] {
        set_mode(&beside(scene, suffix), 0o666);
    }
    for suffix in ["-sessions", "-sessions/.bells"] {
        set_mode(&beside(scene, suffix), 0o777);
    }
}

async fn a_dead_holder_is_noticed_although_its_file_may_not_be_read() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = member(&scene, as_user(ALICE, ""), "", "holder");
    holder.tell("acquire x");
    holder.hear();
    open_to_all(&scene);
    let mut waiter = member(&scene, as_user(BOB, ""), "", "waiter");
    waiter.tell("try x");
    assert_eq!(waiter.hear(), "held", "it lives");
    waiter.tell("acquire x");
    assert_eq!(waiter.hear(), "queued");
    holder.kill();
    waiter.hear().parse::<u64>().unwrap();
}

async fn a_living_holder_that_proc_hides_stays_the_holder() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = member(&scene, as_user(ALICE, ""), "", "holder");
    holder.tell("acquire x");
    holder.hear();
    for path in scene.everything() {
        set_mode(&path, if path.is_dir() { 0o777 } else { 0o666 });
    }
    let mut other = member(&scene, as_user_in_the_dark(BOB), "", "other");
    other.tell("try x");
    assert_eq!(other.hear(), "held");
    other.tell("acquire x");
    assert_eq!(other.hear(), "queued");
    holder.tell("release x");
    assert_eq!(holder.hear(), "Released");
    other.hear().parse::<u64>().unwrap();
}

async fn what_root_makes_belongs_to_the_owner_of_the_directory() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let driver = connect(&url(&scene.target, "")).await;
    let root = session(&driver, "root").await;
    root.groups().join(&join("g").create(true)).await.unwrap();
    let grant = granted(&root, &ask("x", Exclusive)).await;
    scene.assert_all_belong_to(ALICE);
    let mut alice = member(&scene, as_user(ALICE, ""), "", "alice");
    alice.tell("join g");
    assert_eq!(alice.hear(), "joined");
    alice.tell("acquire x");
    assert_eq!(alice.hear(), "queued");
    root.locks().release(&grant, End::Clean).await.unwrap();
    assert!(alice.hear().parse::<u64>().unwrap() > grant.token.get());
    root.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
    scene.assert_all_belong_to(ALICE);
}

/// As in `/tmp`, where the directory is root's.
async fn what_root_makes_belongs_to_the_owner_of_the_database() {
    let scene = Scene::new(0, 0, 0o1777);
    drop(member(&scene, as_user(ALICE, ""), "", "alice"));
    // A cleaner of temporary files.
    fs::remove_dir_all(beside(&scene, "-sessions")).unwrap();
    let driver = connect(&url(&scene.target, "")).await;
    let root = session(&driver, "root").await;
    let grant = granted(&root, &ask("x", Exclusive)).await;
    scene.assert_all_belong_to(ALICE);
    let mut alice = member(&scene, as_user(ALICE, ""), "", "alice");
    alice.tell("acquire x");
    assert_eq!(alice.hear(), "queued");
    root.locks().release(&grant, End::Clean).await.unwrap();
    alice.hear().parse::<u64>().unwrap();
}

async fn two_users_of_one_group_share_a_directory() {
    let scene = Scene::new(0, SHARED, 0o2775);
    let shared = SHARED.to_string();
    let start = |user, name| member(&scene, as_user(user, &shared), "mode=0660", name);
    let (mut alice, mut bob) = (start(ALICE, "alice"), start(BOB, "bob"));
    alice.tell("acquire x");
    let first: u64 = alice.hear().parse().unwrap();
    bob.tell("join g");
    assert_eq!(bob.hear(), "joined");
    bob.tell("acquire x");
    assert_eq!(bob.hear(), "queued");
    scene.assert_all_is_shared();
    // A release of one, then the death of the other.
    alice.tell("release x");
    assert_eq!(alice.hear(), "Released");
    assert!(bob.hear().parse::<u64>().unwrap() > first);
    alice.tell("acquire x");
    assert_eq!(alice.hear(), "queued");
    bob.kill();
    alice.hear().parse::<u64>().unwrap();
    // The files of whoever closed it last are gone: the other one makes them anew.
    drop((alice, bob));
    let mut bob = start(BOB, "bob");
    bob.tell("acquire x");
    bob.hear().parse::<u64>().unwrap();
    let mut alice = start(ALICE, "alice");
    alice.tell("try x");
    assert_eq!(alice.hear(), "held");
}

async fn a_umask_takes_nothing_away_from_somebody_without_privileges() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let _alice = start(&scene, as_user(ALICE, ""), "open-umask", &[&url(&scene.target, "")]);
    let found = scene.everything();
    assert!(found.iter().filter(|path| path.is_dir()).count() == 2, "{found:?}");
    scene.assert_modes(0o700, 0o600);
}

/// The owner of the directory puts a directory of root's in place of each that root makes, at once.
async fn root_gives_nothing_away_that_it_did_not_make() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let _thief = start(&scene, as_user(ALICE, ""), "thief", &[&scene.target.display().to_string()]);
    let url = url(&scene.target, "");
    let connected = async || match try_connect(&url).await {
        Ok(driver) => driver.close().await.is_ok(),
        Err(_) => false,
    };
    scene.assert_nothing_is_stolen(connected).await;
}

/// SQLite would give it to the owner of the database, whosever it was.
async fn what_is_not_the_owners_is_not_taken_for_a_log() {
    let scene = Scene::new(ALICE, ALICE, 0o755);
    let url = url(&scene.target, "");
    connect(&url).await.close().await.unwrap();
    for suffix in ["-wal", "-shm"] {
        let treasure = beside(&scene, suffix);
        fs::write(&treasure, "root's own").unwrap();
        let error = try_connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("does not belong to the owner of the database"), "{error}");
        assert_eq!(fs::metadata(&treasure).unwrap().uid(), 0);
        assert_eq!(fs::read(&treasure).unwrap(), b"root's own");
        fs::remove_file(&treasure).unwrap();
    }
    connect(&url).await.close().await.unwrap();
}
