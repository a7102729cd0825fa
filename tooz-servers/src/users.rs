//! Scenes with several users: this process, as root, starts processes of users who need not exist.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // a scene that cannot be set up fails its test

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(target_env = "gnu")]
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::lab::{Case, Failed, Trial, trial};
use crate::{block_on, run};

/// One user.
pub const ALICE: u32 = 65_101;
/// Another user.
pub const BOB: u32 = 65_102;
/// A group that both users are in.
pub const SHARED: u32 = 65_200;

/// These cases as tests, which need root's right to start processes of other users.
pub fn trials_of_users(cases: &[(&'static str, Case)]) -> Vec<Trial> {
    let tried = run(as_user(ALICE, "").arg("true")).and_then(|()| run(as_user_in_the_dark(BOB).arg("true")));
    let missing = tried.err().map(|why| format!("root, who may be other users: {why}"));
    let trial = |(name, case): &(&'static str, Case)| {
        let case = *case;
        let play = move || block_on(case()).map_err(|error| Failed::from(error.to_string()));
        trial(format!("users::{name}"), missing.clone(), play)
    };
    cases.iter().map(trial).collect()
}

/// As another user, whose main group has the same number, and who may be in other groups.
pub fn as_user(user: u32, groups: &str) -> Command {
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
pub fn as_user_in_the_dark(user: u32) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t proc -o hidepid=2 tooz-test /proc && exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(user.to_string());
    command
}

/// Sets the permissions of a file or directory.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory of one user, and beside it a copy of this program that every user may start.
#[derive(Debug)]
pub struct Scene {
    directory: tempfile::TempDir,
    /// The directory.
    pub target: PathBuf,
}

impl Scene {
    /// Makes the directory, which belongs to `owner` and `group` and has these permissions.
    pub fn new(owner: u32, group: u32, mode: u32) -> Self {
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
    pub fn program(&self, mut command: Command) -> Command {
        command.arg(self.directory.path().join("program"));
        command
    }

    /// All paths below the directory, but for those that are moved meanwhile.
    pub fn everything(&self) -> Vec<PathBuf> {
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

    /// All directories and files belong to `user`.
    pub fn assert_all_belong_to(&self, user: u32) {
        for path in self.everything() {
            let owner = fs::symlink_metadata(&path).unwrap().uid();
            assert_eq!(owner, user, "the owner of {}", path.display());
        }
    }

    /// All directories and files have these permissions.
    pub fn assert_modes(&self, directories: u32, files: u32) {
        for path in self.everything() {
            let mode = if path.is_dir() { directories } else { files };
            assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, mode, "{}", path.display());
        }
    }

    /// All belongs to the group that both users are in, who may read and write it.
    pub fn assert_all_is_shared(&self) {
        self.assert_modes(0o2770, 0o660);
        for path in self.everything() {
            assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), SHARED, "{}", path.display());
        }
    }

    /// Beside a thief, root connects a hundred times and gives nothing away that it did not make. `connect` says whether it
    /// succeeded, which it may not: the directories are not where they were made.
    pub async fn assert_nothing_is_stolen(&self, connect: impl AsyncFn() -> bool) {
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
#[cfg(target_env = "gnu")] // nix has renameat2 there alone
pub fn steal(directory: &Path) -> ! {
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
