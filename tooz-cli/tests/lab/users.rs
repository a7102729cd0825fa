//! Looking at files that may only be read, and on a full disk. Root starts processes of other users, who need not exist.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{Running, eventually};

pub(crate) const TESTS: [(&str, fn()); 4] = tests![
    a_reader_of_a_database_looks,
    a_reader_of_a_directory_looks,
    a_full_disk_with_a_database_can_be_looked_at,
    a_full_disk_with_a_directory_can_be_looked_at,
];

const ALICE: u32 = 65_101;
const BOB: u32 = 65_102;

/// Why none of it can be done here.
pub(crate) fn missing() -> Option<String> {
    let mut other = as_user(ALICE);
    let mut mount = Command::new("unshare");
    mount.args(["--mount", "mount", "-t", "tmpfs", "tooz-test", "/mnt"]);
    [other.arg("true"), &mut mount].into_iter().find_map(|command| match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ")),
        Err(error) => Some(format!("{command:?}: {error}")),
    })
}

fn as_user(user: u32) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups"]);
    command
}

/// A directory of one user that all may look into, and the program where everybody may start it.
struct Scene {
    directory: tempfile::TempDir,
    url: String,
}

impl Scene {
    fn new(url: impl Fn(&Path) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("tooz");
        fs::hard_link(env!("CARGO_BIN_EXE_tooz"), &program)
            .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_tooz"), &program).map(drop))
            .unwrap();
        let place = directory.path().join("place");
        fs::create_dir(&place).unwrap();
        chown(&place, Some(ALICE), Some(ALICE)).unwrap();
        for path in [directory.path(), &place] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let url = url(&place);
        Self { directory, url }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tooz(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = as_user(user);
        command.arg(self.path("tooz")).args(arguments);
        command.env("TOOZ_URL", &self.url).current_dir(self.path("place"));
        command
    }

    fn answer(&self, user: u32, arguments: &[&str]) -> String {
        let output = self.tooz(user, arguments).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn everything(&self) -> Vec<PathBuf> {
        let (mut found, mut left) = (Vec::new(), vec![self.path("place")]);
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

/// A user who may read everything and write nothing sees all of it, and makes nothing.
fn a_reader_looks(scene: &Scene) {
    assert_eq!(scene.answer(BOB, &["holders", "x"]), "", "where nobody has been yet");
    assert!(scene.everything().is_empty(), "{:?}", scene.everything());
    let member = Running::start(scene.tooz(ALICE, &["--member", "one", "join", "g"]));
    let holder = Running::start(scene.tooz(ALICE, &["--member", "two", "lock", "x", "--", "sleep", "300"]));
    let leader =
        Running::start(scene.tooz(ALICE, &["--member", "three", "elect", "g", "--", "sleep", "300"]));
    eventually("all of it stands", || {
        scene.answer(ALICE, &["members", "g"]).contains("one")
            && scene.answer(ALICE, &["holders", "x"]).contains("two")
            && scene.answer(ALICE, &["leader", "g"]).contains("three")
    });
    let before = scene.everything();
    assert!(scene.answer(BOB, &["holders", "x"]).contains("two"));
    assert_eq!(scene.answer(BOB, &["groups"]), "g\n");
    assert!(scene.answer(BOB, &["members", "g"]).contains("one"));
    assert!(scene.answer(BOB, &["leader", "g"]).contains("three"));
    assert_eq!(scene.everything(), before, "looking makes nothing");
    let refused = scene.tooz(BOB, &["lock", "y", "--", "true"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    drop((member, holder, leader));
    eventually("the dead are not shown", || {
        let said = ["holders x", "members g", "leader g"].map(|words| {
            let words: Vec<_> = words.split(' ').collect();
            scene.answer(BOB, &words)
        });
        said.iter().all(String::is_empty)
    });
}

fn a_reader_of_a_database_looks() {
    a_reader_looks(&Scene::new(|place| format!("sqlite://{}/tooz.db?mode=644", place.display())));
}

fn a_reader_of_a_directory_looks() {
    a_reader_looks(&Scene::new(|place| format!("file://{}?mode=644", place.display())));
}

/// What stands is shown although nothing can be written any more.
fn a_full_disk_can_be_looked_at(url: impl Fn(&Path) -> String) {
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=2m tooz-test \"$PLACE\" && \
                  exec \"$TOOZ\" --member me lock x -- sh -c '\
                  cat /dev/zero >\"$PLACE/fill\" 2>/dev/null; \
                  \"$TOOZ\" holders x; echo \"looked $?\"; \"$TOOZ\" lock y -- true; echo \"wrote $?\"; \
                  rm \"$PLACE/fill\"'";
    let output: Output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("PLACE", place.path())
        .env("TOOZ", env!("CARGO_BIN_EXE_tooz"))
        .env("TOOZ_URL", url(place.path()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("\"me\" exclusive"), "{output:?}");
    assert!(said.contains("looked 0\n") && said.contains("wrote 69\n"), "{output:?}");
}

fn a_full_disk_with_a_database_can_be_looked_at() {
    a_full_disk_can_be_looked_at(|place| format!("sqlite://{}/tooz.db", place.display()));
}

fn a_full_disk_with_a_directory_can_be_looked_at() {
    a_full_disk_can_be_looked_at(|place| format!("file://{}/there", place.display()));
}
