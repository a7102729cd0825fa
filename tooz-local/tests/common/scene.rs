//! What the tests of the drivers for files share: cases as trials, and scenes with several users.
//!
//! Root starts processes of other users, who need not exist.

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

pub(crate) const ALICE: u32 = 65_101;
pub(crate) const BOB: u32 = 65_102;
/// A group that both are in.
pub(crate) const SHARED: u32 = 65_200;

pub(crate) type Case = fn() -> Pin<Box<dyn Future<Output = ()>>>;

#[allow(unused_macros)] // only the labs have cases
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), || Box::pin($name()))),*]
    };
}
pub(crate) use cases;

/// These cases as trials, which are ignored, with the reason, if something is missing.
pub(crate) fn trials(
    module: &str,
    cases: &[(&'static str, Case)],
    missing: Option<String>,
    play: fn(&str, Case) -> Result<(), Failed>,
) -> Vec<Trial> {
    let required = std::env::var("TOOZ_REQUIRE").is_ok_and(|value| value == "all");
    let missing = missing.filter(|_| !required).map(|why| format!("missing: {}", why.replace('\n', " | ")));
    let trial = |(name, case): &(&'static str, Case)| {
        let (name, case) = (*name, *case);
        let trial = Trial::test(format!("{module}::{name}"), move || play(name, case));
        match &missing {
            Some(why) => trial.with_kind(why).with_ignored_flag(true),
            None => trial,
        }
    };
    cases.iter().map(trial).collect()
}

/// What a command says that does not succeed.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).trim().to_owned()) }
}

/// As another user, whose main group has the same number, and who may be in other groups.
pub(crate) fn as_user(user: u32, groups: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string()]);
    if groups.is_empty() {
        command.arg("--clear-groups")
    } else {
        command.args(["--groups", groups])
    };
    command
}

/// As another user to whom `/proc` shows no other user's processes.
pub(crate) fn as_user_in_the_dark(user: u32) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t proc -o hidepid=2 tooz-test /proc && exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(user.to_string());
    command
}

/// These cases as trials, if this process may start processes of other users.
pub(crate) fn trials_of_users(cases: &[(&'static str, Case)]) -> Vec<Trial> {
    let tried = run(as_user(ALICE, "").arg("true")).and_then(|()| run(as_user_in_the_dark(BOB).arg("true")));
    let missing = tried.err().map(|why| format!("root, who may be other users: {why}"));
    trials("users", cases, missing, |_, case| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(case());
        Ok(())
    })
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory of some user, and beside it this program where everybody may start it.
pub(crate) struct Scene {
    directory: tempfile::TempDir,
    pub(crate) target: PathBuf,
}

impl Scene {
    pub(crate) fn new(owner: u32, group: u32, mode: u32) -> Self {
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

    /// This program, started by that command.
    pub(crate) fn program(&self, mut command: Command) -> Command {
        command.arg(self.directory.path().join("program"));
        command
    }

    /// Everything that stands there, but for the directory itself. What is moved meanwhile is left out.
    pub(crate) fn everything(&self) -> Vec<PathBuf> {
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

    pub(crate) fn assert_all_belong_to(&self, user: u32) {
        for path in self.everything() {
            let owner = fs::symlink_metadata(&path).unwrap().uid();
            assert_eq!(owner, user, "the owner of {}", path.display());
        }
    }

    /// All directories and files have these permissions.
    pub(crate) fn assert_modes(&self, directories: u32, files: u32) {
        for path in self.everything() {
            let mode = if path.is_dir() { directories } else { files };
            assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
        }
    }

    /// All belongs to the group that both users are in, who may read and write it.
    pub(crate) fn assert_all_is_shared(&self) {
        self.assert_modes(0o2770, 0o660);
        for path in self.everything() {
            assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), SHARED, "{}", path.display());
        }
    }

    /// Beside a thief, root connects a hundred times and gives nothing away that it did not make. `connect` says whether it
    /// succeeded, which it may not: the directories are not where they were made.
    pub(crate) async fn assert_nothing_is_stolen(&self, connect: impl AsyncFn() -> bool) {
        let path = self.target.join(TREASURE);
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
        let (mut made, mut removed) = (0, 0);
        for _ in 0..100 {
            made += u32::from(connect().await);
            let data = treasure.metadata().unwrap();
            assert_eq!(data.uid(), 0, "it was given away");
            for entry in fs::read_dir(&self.target).unwrap() {
                let found = entry.unwrap().path();
                if fs::symlink_metadata(&found).is_ok_and(|other| other.ino() != data.ino()) {
                    let _ = fs::remove_dir_all(&found).or_else(|_| fs::remove_file(&found));
                } else {
                    let _ = fs::rename(&found, &path);
                }
            }
            // The owner of a directory may remove what is empty in it, and so may root on the way.
            if treasure.metadata().unwrap().nlink() == 0 {
                removed += 1;
                treasure = hide();
            }
        }
        println!("of 100 tries {made} succeeded; {removed} times the empty directory was removed");
    }
}

/// A directory of root's in a directory of another user.
const TREASURE: &str = "treasure";

/// Exchanges each directory that is made there with root's, and back, as fast as it can, until the input ends.
pub(crate) fn steal(directory: &Path) -> ! {
    let treasure = directory.join(TREASURE);
    std::thread::spawn(|| {
        std::io::stdin().lines().for_each(drop);
        std::process::exit(0);
    });
    loop {
        let found = fs::read_dir(directory).unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        for path in found.filter(|path| *path != treasure && path.is_dir()) {
            for _ in 0..2 {
                let _ = renameat2(AT_FDCWD, &treasure, AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE);
            }
        }
    }
}
