//! Looking at files that may only be read, and on a full disk; commands that run as another user, and `tooz` as the first
//! process of a container. Root starts processes of other users, who need not exist.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{self, Finished, Running, TestBackend, children, eventually, finding, runs};

pub(crate) const TESTS: [(&str, fn()); 8] = tests![
    a_reader_of_a_database_looks,
    a_reader_of_a_directory_looks,
    a_full_disk_with_a_database_can_be_looked_at,
    a_full_disk_with_a_directory_can_be_looked_at,
    what_runs_as_another_user_is_named_after_a_loss,
    hidden_processes_are_mentioned_after_a_loss,
    the_first_process_of_a_container_reaps_and_does_not_wait_for_strangers,
    the_settings_of_a_machine_are_read_if_root_or_the_user_wrote_them,
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
    let examined = Finished::from(scene.tooz(BOB, &["doctor", "--json"]).output().unwrap());
    assert_eq!(examined.code, Some(77), "{examined:?}");
    let advice = finding(&examined, "reachable")["advice"].to_string();
    assert!(
        advice.contains("writable") && finding(&examined, "writable")["severity"] == "bad",
        "{examined:?}"
    );
    // Nor may he create his own database there.
    let mut own = scene.tooz(BOB, &["doctor", "--json"]);
    own.env("TOOZ_URL", "").env("HOME", scene.path("place")).env_remove("XDG_STATE_HOME");
    let examined = Finished::from(own.output().unwrap());
    assert_eq!(examined.code, Some(78), "{examined:?}");
    assert_eq!(finding(&examined, "writable")["severity"], "bad", "{examined:?}");
    assert!(finding(&examined, "directory")["advice"].to_string().contains("--url"), "{examined:?}");
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
    let script = "mount -t tmpfs -o size=2m,nr_inodes=300 tooz-test \"$PLACE\" && \
                  exec \"$TOOZ\" --member me lock x -- sh -c '\
                  cat /dev/zero >\"$PLACE/fill\" 2>/dev/null; \
                  \"$TOOZ\" holders x; echo \"looked $?\"; \"$TOOZ\" lock y -- true; echo \"wrote $?\"; \
                  \"$TOOZ\" doctor; echo \"examined $?\"; \
                  rm \"$PLACE/fill\"; \
                  n=0; while touch \"$PLACE/fill$n\" 2>/dev/null; do n=$((n + 1)); done; \
                  \"$TOOZ\" doctor; echo \"examined $?\"; \
                  rm \"$PLACE\"/fill*'";
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
    assert!(said.contains("bad      space "), "{output:?}");
    assert!(said.contains("advice: follow the advice of what is bad here: space\n"), "{output:?}");
    assert!(said.contains(" 0 KiB are free for ") && said.contains(" no inode is free for "), "{output:?}");
    assert_eq!(said.matches("examined 69\n").count(), 2, "{output:?}");
}

fn a_full_disk_with_a_database_can_be_looked_at() {
    a_full_disk_can_be_looked_at(|place| format!("sqlite://{}/tooz.db", place.display()));
}

fn a_full_disk_with_a_directory_can_be_looked_at() {
    a_full_disk_can_be_looked_at(|place| format!("file://{}/there", place.display()));
}

/// Breaks the lock of alice's `tooz`, and returns what she is told.
fn broken(scene: &Scene, mut tooz: Running) -> String {
    let broken = scene.tooz(ALICE, &["break", "x", "--reason", "test"]).output().unwrap();
    assert_eq!(broken.status.code(), Some(0), "{broken:?}");
    assert_eq!(tooz.code(), 74);
    fs::read_to_string(scene.path("stderr")).unwrap()
}

fn what_runs_as_another_user_is_named_after_a_loss() {
    let scene = Scene::new(|place| format!("sqlite://{}/tooz.db", place.display()));
    let become_root = scene.path("become-root");
    fs::copy("/usr/bin/setpriv", &become_root).unwrap();
    fs::set_permissions(&become_root, Permissions::from_mode(0o4755)).unwrap();
    let mut command = scene.tooz(ALICE, &["lock", "x", "--"]);
    command.arg(&become_root).args(["--reuid", "0", "--regid", "0", "--clear-groups", "sleep", "300"]);
    command.stderr(File::create(scene.path("stderr")).unwrap());
    let tooz = Running::start(command);
    let below = |pid: i32| children(pid).first().copied().unwrap_or(0);
    let mut sleeper = 0;
    eventually("it runs as root", || {
        sleeper = below(below(below(tooz.pid().as_raw())));
        fs::read_to_string(format!("/proc/{sleeper}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    let said = broken(&scene, tooz);
    assert!(said.contains(&format!("could not end {sleeper} (user root, sleep)")), "{said}");
    assert!(runs(sleeper), "alice may not end it");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn hidden_processes_are_mentioned_after_a_loss() {
    let scene = Scene::new(|place| format!("sqlite://{}/tooz.db", place.display()));
    let lock = scene.tooz(ALICE, &["lock", "x", "--", "sh", "-c", "echo $$ > command; sleep 300"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"", "sh"]);
    command.arg(lock.get_program()).args(lock.get_args());
    command.env("TOOZ_URL", &scene.url).current_dir(scene.path("place"));
    command.stderr(File::create(scene.path("stderr")).unwrap());
    let tooz = Running::start(command);
    eventually("the command runs", || fs::exists(scene.path("place/command")).unwrap());
    let said = broken(&scene, tooz);
    assert!(said.contains("hides processes of other users (hidepid)"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

fn the_first_process_of_a_container_reaps_and_does_not_wait_for_strangers() {
    let place = TestBackend::new();
    let script = "echo 1 > started; until [ -e go ]; do sleep 0.02; done";
    let lock = place.tooz(&["lock", "--children", "wait", "x", "--", "sh", "-c", script]);
    let mut command = common::process("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(lock.get_program()).args(lock.get_args());
    command.env("TOOZ_URL", place.url()).current_dir(place.path(""));
    let mut container = Running::start(command);
    place.wait_for("started");
    let first = children(container.pid().as_raw())[0];
    let guard = children(first);
    assert_eq!(guard.len(), 1);
    let strangers = "(sleep 0.01 &); (sleep 300 &); sleep 0.02";
    let entered = Command::new("nsenter")
        .args(["--pid", "--mount", "--target", &first.to_string(), "sh", "-c", strangers])
        .status()
        .unwrap();
    assert!(entered.success());
    eventually("one is adopted, and the other is reaped", || {
        let adopted: Vec<_> = children(first).into_iter().filter(|pid| !guard.contains(pid)).collect();
        adopted.len() == 1 && fs::read_to_string(format!("/proc/{}/comm", adopted[0])).unwrap() == "sleep\n"
    });
    fs::write(place.path("go"), "").unwrap();
    assert_eq!(container.code(), 0);
}

/// Below a `/etc` that only this process sees.
fn the_settings_of_a_machine_are_read_if_root_or_the_user_wrote_them() {
    let place = TestBackend::new();
    let url = format!("sqlite://{}", place.path("machine.db").display());
    for (owner, code) in [("0", 0), ("65102", 64)] {
        let script = format!(
            "mount -t tmpfs tooz-test /etc && mkdir /etc/tooz && echo 'url = \"{url}\"' > /etc/tooz/config.toml && \
             chown {owner} /etc/tooz/config.toml && exec \"$0\" lock x -- true"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_tooz")]);
        command
            .env_remove("TOOZ_URL")
            .env("XDG_CONFIG_HOME", place.path("none"))
            .env("HOME", place.path("home"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(said.contains("another user owns it"), code == 64, "{said}");
    }
    assert!(place.path("machine.db").exists());
    assert!(!place.path("home").exists(), "the default is not used");
}
