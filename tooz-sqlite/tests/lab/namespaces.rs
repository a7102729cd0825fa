//! File systems that are full, read-only or foreign, and a kernel that tells nothing of files.
//!
//! Each test is a process in namespaces of its own: what it mounts there is nobody else's, and needs no rights.
#![allow(clippy::disallowed_methods)] // a failure is one

use std::fs;
use std::path::Path;
use std::process::Command;

use tooz_core::driver::{Acquired, BreakRequest, End, LockMode::Exclusive};
use tooz_core::{Characteristics, ErrorKind};
use tooz_servers::lab::{Case, Failed, Trial, trial};
use tooz_servers::{cases, run};

use crate::common::{Actor, ask, connect, granted, group, id, join, key, opening, session, try_connect, url};

const CASES: &[(&str, Case)] = cases![
    a_full_disk_is_a_clear_error_and_leaves_no_half_record,
    a_read_only_place_is_denied,
    a_foreign_file_system_needs_force_and_claims_less,
    without_file_events_changes_are_looked_for,
    a_database_that_is_mounted_alone_is_refused,
];

/// Names the case that a process is to run.
const CASE: &str = "TOOZ_SQLITE_CASE";

/// Runs a case, if this process was started for that.
pub(crate) fn is_case() -> bool {
    let Ok(name) = std::env::var(CASE) else { return false };
    let (_, case) = CASES.iter().find(|(known, _)| *known == name).expect("there is no such case");
    tooz_servers::block_on(case()).unwrap();
    true
}

/// A program in user and mount namespaces of its own, where it may mount.
fn apart() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]);
    command
}

pub(crate) fn trials() -> Vec<Trial> {
    let missing = run(apart().arg("true")).err().map(|why| format!("namespaces for everybody: {why}"));
    let trial = |(name, _): &(&'static str, Case)| {
        let name = *name;
        trial(format!("namespaces::{name}"), missing.clone(), move || {
            run(apart().arg(std::env::current_exe()?).env(CASE, name)).map_err(Failed::from)
        })
    };
    CASES.iter().map(trial).collect()
}

async fn refused(url: &str, kind: ErrorKind, word: &str) {
    let error = try_connect(url).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

/// A small file system of its own, unmounted at the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tooz-test"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mount.success(), "no tmpfs of {options}");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn remount(&self, options: &str) {
        let mount = Command::new("mount").args(["-o", options]).arg(self.path()).status().unwrap();
        assert!(mount.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

async fn a_full_disk_is_a_clear_error_and_leaves_no_half_record() {
    let disk = Mounted::new("size=1m");
    let driver = connect(&url(disk.path(), "")).await;
    let us = session(&driver, "us").await;
    us.groups().join(&join("g").create(true)).await.unwrap();
    let grant = granted(&us, &ask("x", Exclusive)).await;
    let ballast = disk.path().join("ballast");
    let mut full = fs::File::create(&ballast).unwrap();
    let error = loop {
        if let Err(error) = std::io::Write::write_all(&mut full, &[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    // The log has no room to grow; some small changes may still fit into what it has.
    let mut failed = None;
    let mut last = 0_u32;
    for number in 1..200_u32 {
        let large = tooz_core::Capabilities::new(&(number, "x".repeat(20_000))).unwrap();
        match us.groups().update(&group("g"), &large).await {
            Ok(()) => last = number,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let error = failed.expect("the disk is not full");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("full"), "{error}");
    let member = driver.groups().member(&group("g"), &id("us")).await.unwrap();
    let published = member.capabilities.get::<(u32, String)>().map_or(0, |(number, _)| number);
    assert_eq!(published, last, "the last success stands, whole");
    let error = driver.open_session(&opening("other")).await.map(|_| ()).err();
    assert!(error.is_none_or(|error| error.kind() == ErrorKind::Unavailable));
    // With room again everything goes on.
    drop(full);
    fs::remove_file(&ballast).unwrap();
    us.locks().release(&grant, End::Clean).await.unwrap();
    assert!(granted(&us, &ask("x", Exclusive)).await.token > grant.token);
    let other = driver.open_session(&opening("other")).await.unwrap();
    other.close(End::Clean).await.unwrap();
    us.close(End::Clean).await.unwrap();
    driver.close().await.unwrap();
}

async fn a_read_only_place_is_denied() {
    let disk = Mounted::new("size=4m");
    disk.remount("remount,bind,ro");
    refused(&url(disk.path(), ""), ErrorKind::Denied, "read-only").await;
    disk.remount("remount,bind,rw");
    connect(&url(disk.path(), "")).await.close().await.unwrap();
    disk.remount("remount,bind,ro");
    refused(&url(disk.path(), ""), ErrorKind::Denied, "read-only").await;
    // A look says so, too, and is no error.
    let looking = tooz_core::Coordinator::builder(url(disk.path(), ""), "m").examine();
    let found = looking.await.unwrap();
    let bad: Vec<_> = found.iter().filter(|finding| finding.severity() == tooz_core::Severity::Bad).collect();
    assert!(
        matches!(bad[..], [one] if one.topic() == "writable" && one.what().contains("read-only")),
        "{found:?}"
    );
}

async fn a_foreign_file_system_needs_force_and_claims_less() {
    let directory = tempfile::tempdir().unwrap();
    let mount =
        Command::new("mount").args(["-t", "ramfs", "tooz-test"]).arg(directory.path()).status().unwrap();
    assert!(mount.success());
    let disk = Mounted(directory);
    refused(&url(disk.path(), ""), ErrorKind::Unsupported, "force_filesystem").await;
    let driver = connect(&url(disk.path(), "force_filesystem=true")).await;
    assert!(!driver.characteristics().contains(Characteristics::STRICT_EXCLUSION));
    driver.close().await.unwrap();
    let local = tempfile::tempdir().unwrap();
    let driver = connect(&url(local.path(), "force_filesystem=true")).await;
    assert!(driver.characteristics().contains(Characteristics::STRICT_EXCLUSION));
}

async fn without_file_events_changes_are_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path(), "");
    let driver = connect(&url).await;
    let us = session(&driver, "us").await;
    let first = granted(&us, &ask("x", Exclusive)).await;
    let (mut actor, _) = Actor::start_without_events("member", &[&url, "deaf"]);
    actor.tell("acquire x");
    assert_eq!(actor.hear(), "queued");
    us.locks().release(&first, End::Clean).await.unwrap();
    assert!(actor.hear().parse::<u64>().unwrap() > first.token.get());
    actor.tell("notice");
    driver.locks().break_lock(&BreakRequest::new(key("x"), id("op"), "stuck")).await.unwrap();
    assert!(actor.hear().contains("Broken"));
    let (mut holder, _) = Actor::start("member", &[&url, "holder"]);
    holder.tell("acquire x");
    holder.hear();
    actor.tell("acquire x");
    assert_eq!(actor.hear(), "queued");
    holder.kill();
    actor.hear().parse::<u64>().unwrap();
}

/// Makes `there` another name of `here`.
fn bind(here: &Path, there: &Path) {
    let mount = Command::new("mount").arg("--bind").args([here, there]).status().unwrap();
    assert!(mount.success(), "{} cannot be mounted", here.display());
}

/// A container that is given the file and not its directory has a log and sessions of its own: a second holder.
async fn a_database_that_is_mounted_alone_is_refused() {
    let disk = Mounted::new("size=8m");
    let (host, container) = (disk.path().join("host"), disk.path().join("container"));
    fs::create_dir(&host).unwrap();
    fs::create_dir(&container).unwrap();
    let (mut holder, _) = Actor::start("member", &[&url(&host, ""), "holder"]);
    holder.tell("acquire x");
    holder.hear();
    fs::write(container.join("tooz.db"), "").unwrap();
    bind(&host.join("tooz.db"), &container.join("tooz.db"));
    refused(&url(&container, ""), ErrorKind::Invalid, "mount its directory").await;
    let looking = tooz_core::Coordinator::builder(url(&container, ""), "m").examine();
    let found = looking.await.unwrap();
    assert!(
        found.iter().any(|one| one.severity() == tooz_core::Severity::Bad && one.topic() == "place"),
        "{found:?}"
    );
    assert!(!container.join("tooz.db-sessions").exists(), "nothing was made beside it");
    let unmounted = Command::new("umount").arg(container.join("tooz.db")).status().unwrap();
    assert!(unmounted.success());
    bind(&host, &container);
    let driver = connect(&url(&container, "")).await;
    let us = session(&driver, "us").await;
    let answer = us.locks().request(&ask("x", Exclusive).wait(false)).await.unwrap();
    assert!(matches!(answer, Acquired::Held), "{answer:?}");
}
