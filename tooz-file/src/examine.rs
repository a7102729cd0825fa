//! What operators should know about the directory; also where connecting fails.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use tooz_core::driver::{Connect, Examining};
use tooz_core::{Characteristics, Finding, Result};

use crate::config::{self, Config};
use crate::error;
use crate::host::filesystem::FileSystem;
use crate::host::os_lock::{Flavor, Hold, InTheWay};
use crate::host::process;
use crate::keys::{self, KeyHash};
use crate::tree::{Directory, Named, Role, lock_records, mutex};

/// A lock or a member is a small file, and so is everything else here; but a full disk grants nothing.
const LITTLE_SPACE: u64 = 16 << 20;

/// Looks at the directory that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, context, .. } = request;
        let config = Config::read(&url)?;
        let best = config::characteristics(&url);
        context.spawner.blocking(move || look(&config, best)).await?
    })
}

fn look(config: &Config, best: Characteristics) -> Result<Vec<Finding>> {
    let path = &config.path;
    // Looking must not make one.
    let Ok(path) = path.canonicalize() else {
        return Ok(vec![Finding::good(
            "place",
            format!("{} does not exist; connecting makes it", path.display()),
        )]);
    };
    let system = FileSystem::of(&path).map_err(|cause| error::file_system(&path, cause))?;
    let mut found =
        vec![judge_file_system(system, config.force_filesystem, best), describe_locks(config.flavor)];
    found.extend(find_unwritable(&path));
    found.extend(check_space(&path));
    found.extend(find_stopped(&path, config));
    Ok(found)
}

fn judge_file_system(system: FileSystem, forced: bool, best: Characteristics) -> Finding {
    let (name, topic) = (system.name(), "file-system");
    if system.is_in_memory() {
        return Finding::warning(
            topic,
            format!("{name}: it is in memory, so after a restart of the machine tokens may begin anew"),
            "put the directory on a disk, unless what the locks protect is gone then, too",
        );
    }
    if system.is_local() {
        return Finding::good(topic, format!("{name}, where locks between processes work"));
    }
    let what = format!("{name}: not known to be local; locks between processes are not to be relied on");
    let advice = "move the directory to a local disk (ext, xfs, btrfs, zfs, f2fs)";
    let finding =
        if forced { Finding::warning(topic, what, advice) } else { Finding::bad(topic, what, advice) };
    finding.lowers(best - config::on_unknown_file_system())
}

fn describe_locks(flavor: Flavor) -> Finding {
    let what = match flavor {
        Flavor::OpenFile => "open-file-description locks, which exclude Python's, too (backend=ofd)",
        Flavor::Portable => "the standard library's locks, which do not exclude Python's (backend=portable)",
    };
    Finding::good("locks", what)
}

fn find_unwritable(path: &Path) -> Option<Finding> {
    let ours = path.join(keys::OURS);
    let paths = [path.to_owned(), ours.join("locks"), ours, path.join(keys::GROUPS)];
    let closed =
        paths.iter().find(|path| path.exists() && access(path.as_path(), AccessFlags::W_OK).is_err())?;
    Some(Finding::bad(
        "writable",
        format!("{} cannot be written to by this user, or is mounted read-only", closed.display()),
        "give write permission for the directory and everything in it, to every user of it",
    ))
}

fn check_space(path: &Path) -> Option<Finding> {
    let answer = statvfs(path).ok()?;
    let free = answer.blocks_available().saturating_mul(answer.fragment_size());
    (free < LITTLE_SPACE).then(|| {
        Finding::warning(
            "space",
            format!("{} KiB are free for {}; on a full disk nothing is granted", free / 1024, path.display()),
            "make room",
        )
    })
}

/// Processes that stand still. One in the middle of a change blocks all others, one that holds locks does not release
/// them.
fn find_stopped(path: &Path, config: &Config) -> Vec<Finding> {
    let open = || -> std::io::Result<(Directory, Directory)> {
        let base = Directory::open_path(path)?;
        let mut home = base.child(keys::OURS)?;
        if let Some(namespace) = &config.namespace {
            home = home.child(keys::NAMESPACES)?.child(&keys::namespace(namespace))?;
        }
        Ok((base, home))
    };
    // No session was here yet, or this user may not look, which connecting reports.
    let Ok((base, home)) = open() else { return Vec::new() };
    let mut found = Vec::new();
    let directory = if config.namespace.is_none() { &base } else { &home };
    if let Some(pid) = find_changing(directory, &home, config.flavor).filter(|pid| process::is_stopped(*pid))
    {
        found.push(Finding::bad(
            "stopped",
            format!("process {pid} stands still in the middle of a change: everybody waits for it"),
            format!("let it go on (kill -CONT {pid}) or end it"),
        ));
    }
    for (pid, locks) in find_stopped_holders(&home) {
        found.push(Finding::warning(
            "stopped",
            format!("process {pid} stands still and keeps its locks, which are {locks}"),
            format!("let it go on (kill -CONT {pid}) or end it, which frees them at once"),
        ));
    }
    found
}

/// The process that is changing groups right now.
fn find_changing(directory: &Directory, home: &Directory, flavor: Flavor) -> Option<u32> {
    let file = directory.open(keys::DRIVER_LOCK).ok()?;
    match flavor.in_the_way(&file, Hold::Alone).ok()?? {
        InTheWay::Process(pid) => Some(pid),
        InTheWay::OpenFile => mutex::read_pid(&home.open(keys::DRIVER_PID).ok()?),
    }
}

/// The processes that stand still and hold locks, and how many each.
fn find_stopped_holders(home: &Directory) -> BTreeMap<u32, u64> {
    let mut holders = BTreeMap::new();
    let Ok(locks) = home.child("locks") else { return holders };
    for stripe in locks.names().unwrap_or_default() {
        let names = locks.child(&stripe).and_then(|stripe| stripe.names()).unwrap_or_default();
        for name in names {
            let Some(Named::Record(record)) =
                KeyHash::of_record(&name).and_then(|key| lock_records::parse(&key, &name))
            else {
                continue;
            };
            if matches!(record.role, Role::Holder(_)) && record.owner.process.is_stopped() {
                *holders.entry(record.owner.process.pid).or_default() += 1;
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use tooz_core::{BackendUrl, Severity};

    use super::*;

    fn looked(url: &str) -> Vec<Finding> {
        let url = BackendUrl::parse(url).unwrap();
        look(&Config::read(&url).unwrap(), config::characteristics(&url)).unwrap()
    }

    #[test]
    fn looking_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let found = looked(&format!("file://{}", path.display()));
        assert!(found[0].what().contains("does not exist") && !path.exists(), "{found:?}");
    }

    #[test]
    fn an_unknown_file_system_is_bad_and_forcing_it_lowers() {
        let refused = looked("file:///proc");
        assert_eq!((refused[0].topic(), refused[0].severity()), ("file-system", Severity::Bad));
        let forced = looked("file:///proc?force_filesystem=true");
        assert_eq!(forced[0].severity(), Severity::Warning);
        assert!(!forced[0].lowered().is_empty());
    }
}
