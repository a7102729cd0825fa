//! Several users on one database.
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
use tooz_core::ErrorKind;
use tooz_core::driver::{End, LockMode::Exclusive};

use crate::common::{Actor, ask, connect, granted, join, session, try_connect, url};
use crate::namespaces::run;

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
    what_root_makes_belongs_to_the_owner_of_the_database,
    two_users_of_one_group_share_a_directory,
    a_umask_takes_nothing_away_from_somebody_without_privileges,
    root_gives_nothing_away_that_it_did_not_make,
    what_is_not_the_owners_is_not_taken_for_a_log,
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

/// A directory for a database, and this program where everybody may start it.
struct Scene {
    directory: tempfile::TempDir,
    place: PathBuf,
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
        let place = directory.path().join("place");
        fs::create_dir(&place).unwrap();
        chown(&place, Some(owner), Some(group)).unwrap();
        set_mode(&place, mode);
        Self { directory, place }
    }

    fn start(&self, mut command: Command, part: &str, arguments: &[&str]) -> Actor {
        command.arg(self.directory.path().join("program"));
        Actor::run(command, part, arguments).0
    }

    fn member(&self, command: Command, query: &str, name: &str) -> Actor {
        self.start(command, "member", &[&url(&self.place, query), name])
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.place.join(format!("tooz.db{suffix}"))
    }

    /// Everything that stands there, but for the directory itself. What is moved meanwhile is left out.
    fn everything(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.place.clone()];
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

/// Everybody may use the database and its directories, but not the files of a session, as after a `chmod` by hand.
fn open_to_all(scene: &Scene) {
    for suffix in ["", "-wal", "-shm", "-sessions/.epoch"] {
        set_mode(&scene.beside(suffix), 0o666);
    }
    for suffix in ["-sessions", "-sessions/.bells"] {
        set_mode(&scene.beside(suffix), 0o777);
    }
}

async fn a_dead_holder_is_noticed_although_its_file_may_not_be_read() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = scene.member(as_user(ALICE, ""), "", "holder");
    holder.tell("acquire x");
    holder.hear();
    open_to_all(&scene);
    let mut waiter = scene.member(as_user(BOB, ""), "", "waiter");
    waiter.tell("try x");
    assert_eq!(waiter.hear(), "held", "it lives");
    waiter.tell("acquire x");
    assert_eq!(waiter.hear(), "queued");
    holder.kill();
    waiter.hear().parse::<u64>().unwrap();
}

async fn a_living_holder_that_proc_hides_stays_the_holder() {
    let scene = Scene::new(0, 0, 0o777);
    let mut holder = scene.member(as_user(ALICE, ""), "", "holder");
    holder.tell("acquire x");
    holder.hear();
    for path in scene.everything() {
        set_mode(&path, if path.is_dir() { 0o777 } else { 0o666 });
    }
    let mut other = scene.member(as_user_in_the_dark(BOB), "", "other");
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
    let driver = connect(&url(&scene.place, "")).await;
    let root = session(&driver, "root").await;
    root.groups().join(&join("g").create(true)).await.unwrap();
    let grant = granted(&root, &ask("x", Exclusive)).await;
    scene.assert_all_belong_to(ALICE);
    let mut alice = scene.member(as_user(ALICE, ""), "", "alice");
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
    drop(scene.member(as_user(ALICE, ""), "", "alice"));
    // A cleaner of temporary files.
    fs::remove_dir_all(scene.beside("-sessions")).unwrap();
    let driver = connect(&url(&scene.place, "")).await;
    let root = session(&driver, "root").await;
    let grant = granted(&root, &ask("x", Exclusive)).await;
    scene.assert_all_belong_to(ALICE);
    let mut alice = scene.member(as_user(ALICE, ""), "", "alice");
    alice.tell("acquire x");
    assert_eq!(alice.hear(), "queued");
    root.locks().release(&grant, End::Clean).await.unwrap();
    alice.hear().parse::<u64>().unwrap();
}

async fn two_users_of_one_group_share_a_directory() {
    let scene = Scene::new(0, SHARED, 0o2775);
    let shared = SHARED.to_string();
    let start = |user, name| scene.member(as_user(user, &shared), "mode=0660", name);
    let (mut alice, mut bob) = (start(ALICE, "alice"), start(BOB, "bob"));
    alice.tell("acquire x");
    let first: u64 = alice.hear().parse().unwrap();
    bob.tell("join g");
    assert_eq!(bob.hear(), "joined");
    bob.tell("acquire x");
    assert_eq!(bob.hear(), "queued");
    for path in scene.everything() {
        let data = fs::symlink_metadata(&path).unwrap();
        let mode = if data.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!((data.gid(), data.mode() & 0o7777), (SHARED, mode), "{}", path.display());
    }
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
    let _alice = scene.start(as_user(ALICE, ""), "open-umask", &[&url(&scene.place, "")]);
    let found = scene.everything();
    assert!(found.iter().filter(|path| path.is_dir()).count() == 2, "{found:?}");
    for path in found {
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
    }
}

/// The owner of the directory puts a directory of root's in place of each that root makes, at once.
async fn root_gives_nothing_away_that_it_did_not_make() {
    let scene = Scene::new(ALICE, ALICE, 0o700);
    let path = scene.place.join("treasure");
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
    let _thief = scene.start(as_user(ALICE, ""), "thief", &[&scene.place.display().to_string()]);
    let (mut made, mut removed) = (0, 0);
    for _ in 0..100 {
        // It may fail: the directories are not where they were made.
        if let Ok(driver) = try_connect(&url(&scene.place, "")).await {
            made += 1;
            let _ = driver.close().await;
        }
        let data = treasure.metadata().unwrap();
        assert_eq!(data.uid(), 0, "it was given away");
        for entry in fs::read_dir(&scene.place).unwrap() {
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

/// SQLite would give it to the owner of the database, whosever it was.
async fn what_is_not_the_owners_is_not_taken_for_a_log() {
    let scene = Scene::new(ALICE, ALICE, 0o755);
    let url = url(&scene.place, "");
    connect(&url).await.close().await.unwrap();
    for suffix in ["-wal", "-shm"] {
        let treasure = scene.beside(suffix);
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
