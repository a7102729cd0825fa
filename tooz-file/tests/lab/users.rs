//! Several users on one directory.

use std::process::Command;

use tooz_core::Capabilities;
use tooz_core::driver::{End, Join};
use tooz_servers::cases;
use tooz_servers::lab::{Case, Trial};
use tooz_servers::users::{
    ALICE, BOB, SHARED, Scene, as_user, as_user_in_the_dark, set_mode, trials_of_users,
};

use crate::common::{Exclusive, Helper, THIEF, connect, eventually, granted, group, member, names, url};

const CASES: &[(&str, Case)] = cases![
    a_dead_holder_is_noticed_although_its_file_may_not_be_read,
    a_living_holder_that_proc_hides_stays_the_holder,
    what_root_makes_belongs_to_the_owner_of_the_directory,
    a_directory_that_root_makes_belongs_to_the_owner_of_the_one_above,
    two_users_of_one_group_share_a_directory,
    a_umask_takes_nothing_away_from_somebody_without_privileges,
    root_gives_nothing_away_that_it_did_not_make,
];

pub(crate) fn trials() -> Vec<Trial> {
    trials_of_users(CASES)
}

fn helper(scene: &Scene, command: Command, query: &str, name: &str) -> Helper {
    Helper::run(scene.program(command), &url(&scene.target, query), name)
}

/// Everybody may use the directories and what is in them, as after a `chmod` by hand; files of sessions only if so told.
fn open_to_all(scene: &Scene, sessions: bool) {
    for path in scene.everything() {
        let session = path.parent().is_some_and(|parent| parent.ends_with("sessions"));
        if path.is_dir() {
            set_mode(&path, 0o777);
        } else if sessions || !session {
            set_mode(&path, 0o666);
        }
    }
}

fn wait_for_turn(waiter: &mut Helper) {
    assert_eq!(waiter.does("try x"), "held", "the holder lives");
    assert_eq!(waiter.does("queue x"), "queued");
}

async fn a_dead_holder_is_noticed_although_its_file_may_not_be_read() {
    // The second name is one that is not shared with Python.
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = helper(&scene, as_user(ALICE, ""), "", "holder");
    holder.does("lock x");
    holder.does("join g");
    open_to_all(&scene, false);
    let mut waiter = helper(&scene, as_user(BOB, ""), "", "waiter");
    wait_for_turn(&mut waiter);
    holder.kill();
    waiter.hear().parse::<u64>().unwrap();
}

async fn a_living_holder_that_proc_hides_stays_the_holder() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = helper(&scene, as_user(ALICE, ""), "", "holder");
    holder.does("lock /x");
    open_to_all(&scene, true);
    let mut other = helper(&scene, as_user_in_the_dark(BOB), "", "other");
    assert_eq!(other.does("try /x"), "held");
    assert_eq!(other.does("queue /x"), "queued");
    assert_eq!(holder.does("unlock"), "Released");
    other.hear().parse::<u64>().unwrap();
}

async fn what_root_makes_belongs_to_the_owner_of_the_directory() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let (driver, root) = member(&url(&scene.target, ""), "root").await;
    let join = Join::new(group("g"), Capabilities::none()).create(true);
    root.groups().join(&join).await.unwrap();
    let grant = granted(&root, 1, "deep/er/x", Exclusive).await;
    scene.assert_all_belong_to(ALICE);
    let mut alice = helper(&scene, as_user(ALICE, ""), "", "alice");
    assert_eq!(alice.does("join g"), "Ok(())");
    assert_eq!(alice.does("queue deep/er/x"), "queued");
    root.locks().release(&grant, End::Clean).await.unwrap();
    alice.hear().parse::<u64>().unwrap();
    root.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
    scene.assert_all_belong_to(ALICE);
    // Now root comes second, and dies.
    alice.does("lock y");
    let mut root = helper(&scene, as_user(0, ""), "", "root");
    assert_eq!(root.does("try y"), "held");
    root.does("lock z");
    root.does("lock /z");
    scene.assert_all_belong_to(ALICE);
    root.kill();
    alice.does("lock z").parse::<u64>().unwrap();
    alice.does("lock /z").parse::<u64>().unwrap();
    scene.assert_all_belong_to(ALICE);
}

async fn a_directory_that_root_makes_belongs_to_the_owner_of_the_one_above() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let driver = connect(&url(&scene.target.join("new/er"), "")).await.unwrap();
    driver.close().await.unwrap();
    assert!(scene.target.join("new/er/.tooz-rs").is_dir());
    scene.assert_all_belong_to(ALICE);
}

async fn two_users_of_one_group_share_a_directory() {
    let scene = Scene::new(0, SHARED, 0o2775);
    let shared = SHARED.to_string();
    let start = |user, name| helper(&scene, as_user(user, &shared), "?mode=0660", name);
    let (mut alice, mut bob) = (start(ALICE, "alice"), start(BOB, "bob"));
    let first: u64 = alice.does("lock deep/x").parse().unwrap();
    assert_eq!(alice.does("join g"), "Ok(())");
    assert_eq!(bob.does("join g"), "Ok(())");
    assert_eq!(bob.does("queue deep/x"), "queued");
    scene.assert_all_is_shared();
    // A release of one, then the death of the other.
    assert_eq!(alice.does("unlock"), "Released");
    assert!(bob.hear().parse::<u64>().unwrap() > first);
    assert_eq!(alice.does("queue deep/x"), "queued");
    bob.kill();
    alice.hear().parse::<u64>().unwrap();
    // Root looks, and is no obstacle.
    let driver = connect(&url(&scene.target, "?mode=0660")).await.unwrap();
    eventually("bob has left", async || names(&driver, "g").await == ["alice"]).await;
    let mut bob = start(BOB, "bob");
    assert_eq!(bob.does("join g"), "Ok(())");
    assert_eq!(bob.does("try deep/x"), "held");
}

async fn a_umask_takes_nothing_away_from_somebody_without_privileges() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let mut command = as_user(ALICE, "");
    command.args(["sh", "-c", "umask 777 && exec \"$0\" \"$@\""]);
    let mut alice = helper(&scene, command, "", "alice");
    alice.does("lock deep/er/x").parse::<u64>().unwrap();
    assert_eq!(alice.does("join g"), "Ok(())");
    scene.assert_modes(0o700, 0o600);
}

/// The owner of the directory puts a directory of root's in place of each that root makes, at once.
async fn root_gives_nothing_away_that_it_did_not_make() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let thief = scene.program(as_user(ALICE, ""));
    let _thief = Helper::run(thief, &scene.target.display().to_string(), THIEF);
    let url = url(&scene.target, "");
    let connected = async || match connect(&url).await {
        Ok(driver) => driver.close().await.is_ok(),
        Err(_) => false,
    };
    scene.assert_nothing_is_stolen(connected).await;
}
