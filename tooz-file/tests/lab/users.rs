//! Several users on one directory.
//!
//! Root starts processes of other users, who need not exist.
#![allow(clippy::disallowed_methods)] // a failure is one

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use tooz_core::Capabilities;
use tooz_core::driver::{End, Join};

use crate::common::{Exclusive, Helper, THIEF, connect, eventually, granted, group, member, names, url};

const ALICE: u32 = 65_101;
const BOB: u32 = 65_102;
/// A group that both are in.
const SHARED: u32 = 65_200;

type Case = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), || Box::pin($name()))),*]
    };
}

const CASES: &[(&str, Case)] = cases![
    a_dead_holder_is_noticed_although_its_file_may_not_be_read,
    a_living_holder_that_proc_hides_stays_the_holder,
    what_root_makes_belongs_to_the_owner_of_the_directory,
    a_directory_that_root_makes_belongs_to_the_owner_of_the_one_above,
    two_users_of_one_group_share_a_directory,
    a_umask_takes_nothing_away_from_somebody_without_privileges,
    root_gives_nothing_away_that_it_did_not_make,
];

/// As another user, whose main group has the same number, and who may be in other groups.
fn as_user(user: u32, groups: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string()]);
    if groups.is_empty() {
        command.arg("--clear-groups")
    } else {
        command.args(["--groups", groups])
    };
    command
}

/// As another user to whom `/proc` shows nobody else's processes.
fn as_user_in_the_dark(user: u32) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t proc -o hidepid=2 tooz-test /proc && exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(user.to_string());
    command
}

/// What a command says that does not succeed.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).trim().to_owned()) }
}

pub(crate) fn trials() -> Vec<Trial> {
    let required = std::env::var("TOOZ_REQUIRE").is_ok_and(|value| value == "all");
    let tried = run(as_user(ALICE, "").arg("true")).and_then(|()| run(as_user_in_the_dark(BOB).arg("true")));
    let missing = tried.err().map(|why| format!("missing: root, who may be other users: {why}"));
    let trial = |(name, case): &(&'static str, Case)| {
        let case = *case;
        let trial = Trial::test(format!("users::{name}"), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(case());
            Ok::<(), Failed>(())
        });
        match missing.as_ref().filter(|_| !required) {
            Some(why) => trial.with_kind(why.replace('\n', " | ")).with_ignored_flag(true),
            None => trial,
        }
    };
    CASES.iter().map(trial).collect()
}

/// A directory, and this program where everybody may start it.
struct Scene {
    directory: tempfile::TempDir,
    target: PathBuf,
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

impl Scene {
    fn new(owner: u32, group: u32, mode: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        let (here, program) = (std::env::current_exe().unwrap(), directory.path().join("program"));
        fs::hard_link(&here, &program).or_else(|_| fs::copy(&here, &program).map(drop)).unwrap();
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        chown(&target, Some(owner), Some(group)).unwrap();
        set_mode(&target, mode);
        Self { directory, target }
    }

    fn helper(&self, mut command: Command, query: &str, name: &str) -> Helper {
        command.arg(self.directory.path().join("program"));
        Helper::run(command, &url(&self.target, query), name)
    }

    /// Everything that stands there, but for the directory itself. What is moved meanwhile is left out.
    fn everything(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.target.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }

    fn assert_all_belong_to(&self, user: u32) {
        for path in self.everything() {
            let owner = fs::symlink_metadata(&path).unwrap().uid();
            assert_eq!(owner, user, "the owner of {}", path.display());
        }
    }
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
    let mut holder = scene.helper(as_user(ALICE, ""), "", "holder");
    holder.does("lock x");
    holder.does("join g");
    open_to_all(&scene, false);
    let mut waiter = scene.helper(as_user(BOB, ""), "", "waiter");
    wait_for_turn(&mut waiter);
    holder.kill();
    waiter.hear().parse::<u64>().unwrap();
}

async fn a_living_holder_that_proc_hides_stays_the_holder() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = scene.helper(as_user(ALICE, ""), "", "holder");
    holder.does("lock /x");
    open_to_all(&scene, true);
    let mut other = scene.helper(as_user_in_the_dark(BOB), "", "other");
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
    let mut alice = scene.helper(as_user(ALICE, ""), "", "alice");
    assert_eq!(alice.does("join g"), "Ok(())");
    assert_eq!(alice.does("queue deep/er/x"), "queued");
    root.locks().release(&grant, End::Clean).await.unwrap();
    alice.hear().parse::<u64>().unwrap();
    root.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
    scene.assert_all_belong_to(ALICE);
    // Now root comes second, and dies.
    alice.does("lock y");
    let mut root = scene.helper(as_user(0, ""), "", "root");
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
    let start = |user, name| scene.helper(as_user(user, &shared), "?mode=0660", name);
    let (mut alice, mut bob) = (start(ALICE, "alice"), start(BOB, "bob"));
    let first: u64 = alice.does("lock deep/x").parse().unwrap();
    assert_eq!(alice.does("join g"), "Ok(())");
    assert_eq!(bob.does("join g"), "Ok(())");
    assert_eq!(bob.does("queue deep/x"), "queued");
    for path in scene.everything() {
        let data = fs::symlink_metadata(&path).unwrap();
        let mode = if data.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!((data.gid(), data.mode() & 0o7777), (SHARED, mode), "{}", path.display());
    }
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
    let mut alice = scene.helper(command, "", "alice");
    alice.does("lock deep/er/x").parse::<u64>().unwrap();
    assert_eq!(alice.does("join g"), "Ok(())");
    for path in scene.everything() {
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
    }
}

/// The owner of the directory puts a directory of root's in place of each that root makes, at once.
async fn root_gives_nothing_away_that_it_did_not_make() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let path = scene.target.join("treasure");
    // Open, so that its number is not used again.
    let hide = || loop {
        while fs::create_dir(&path).is_err() {
            let _ = fs::remove_dir_all(&path);
        }
        // The thief may have exchanged it already, for one that was rightly given away.
        if let Ok(hidden) = fs::File::open(&path)
            && hidden.metadata().unwrap().uid() == 0
        {
            break hidden;
        }
    };
    let mut treasure = hide();
    let mut thief = as_user(ALICE, "");
    thief.arg(scene.directory.path().join("program"));
    let _thief = Helper::run(thief, &scene.target.display().to_string(), THIEF);
    let (mut made, mut removed) = (0, 0);
    for _ in 0..100 {
        // It may fail: the directories are not where they were made.
        if let Ok(driver) = connect(&url(&scene.target, "")).await {
            made += 1;
            let _ = driver.close().await;
        }
        let data = treasure.metadata().unwrap();
        assert_eq!(data.uid(), 0, "it was given away");
        for entry in fs::read_dir(&scene.target).unwrap() {
            let found = entry.unwrap().path();
            if fs::symlink_metadata(&found).is_ok_and(|other| other.ino() != data.ino()) {
                let _ = fs::remove_dir_all(&found).or_else(|_| fs::remove_file(&found));
            } else {
                let _ = fs::rename(&found, &path);
            }
        }
        // Whoever owns a directory may remove what is empty in it, and so may root on the way.
        if treasure.metadata().unwrap().nlink() == 0 {
            removed += 1;
            treasure = hide();
        }
    }
    println!("of 100 tries {made} succeeded; {removed} times the empty directory was removed");
}
