//! What operators should know about the directory; also where connecting fails.

use std::collections::BTreeMap;
use std::path::Path;

use tooz_core::driver::{Connect, Examining};
use tooz_core::{Characteristics, Finding, Result, Severity};
use tooz_local::examine::{
    check_space, find_stopped_writer, find_unwritable, judge_file_system, stopped_holder,
};
use tooz_local::filesystem::FileSystem;
use tooz_local::os_lock::{Flavor, Hold, InTheWay};

use crate::config::{self, Config};
use crate::keys::{self, KeyHash};
use crate::tree::{Directory, Named, Role, lock_records, mutex};

/// Looks at the directory that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, limits, context, .. } = request;
        let config = Config::read(&url, limits)?;
        let best = config::characteristics(&url);
        context.spawner.blocking(move || look(&config, best)).await?
    })
}

fn look(config: &Config, best: Characteristics) -> Result<Vec<Finding>> {
    let exists = config.path.canonicalize();
    // Looking must not make it, so where it would be is looked at. A link that leads nowhere stands there, too.
    let stands = |path: &&Path| path.symlink_metadata().is_ok();
    let nearest = config.path.ancestors().find(stands).unwrap_or(Path::new("/"));
    let path = nearest.canonicalize().unwrap_or_default();
    if !path.is_dir() {
        let what = format!("{} is not a directory, nor a link to one", nearest.display());
        return Ok(vec![Finding::bad("place", what, "name a directory, or remove what stands there")]);
    }
    let system = FileSystem::of(&path)?;
    let locks = match config.flavor {
        Flavor::OpenFile => "open-file-description locks, which exclude Python's, too (backend=ofd)",
        Flavor::Portable => "the standard library's locks, which do not exclude Python's (backend=portable)",
    };
    let mut found = vec![
        judge_file_system(system, "directory", config.force_filesystem, best),
        Finding::good("locks", locks),
    ];
    let ours = path.join(keys::OURS);
    let written = [path.clone(), ours.join("locks"), ours, path.join(keys::GROUPS)];
    let written = if exists.is_ok() { &written[..] } else { &written[..1] };
    found.extend(find_unwritable(written, "the directory and everything in it"));
    found.extend(check_space(&path));
    if exists.is_ok() {
        found.extend(find_stopped(&path, config));
    }
    let is_usable = found.iter().all(|finding| finding.severity() != Severity::Bad);
    if is_usable && (exists.is_err() || is_unused(&path, config)) {
        let here = config.path.display();
        let what = if exists.is_ok() {
            format!("no lock was ever granted in {here}; the first session creates what is missing")
        } else {
            format!("{here} does not exist yet; the first session creates it")
        };
        found.push(Finding::good(Finding::UNUSED, what));
    }
    Ok(found)
}

/// Whether a session, or the first lock, would create what stays.
fn is_unused(path: &Path, config: &Config) -> bool {
    let ours = path.join(keys::OURS);
    let stamp = match &config.namespace {
        None => ours.join(keys::EPOCH),
        Some(namespace) => ours.join(keys::NAMESPACES).join(keys::namespace(namespace)).join(keys::EPOCH),
    };
    [stamp, ours.join(keys::FENCE)].iter().any(|file| matches!(file.try_exists(), Ok(false)))
}

/// Processes that stand still. One in the middle of a change blocks all others, one that holds locks does not release
/// them.
fn find_stopped(path: &Path, config: &Config) -> Vec<Finding> {
    let open = || -> std::io::Result<(Directory, Directory)> {
        let base = Directory::open_path(path, config.mode)?;
        let mut home = base.child(keys::OURS)?;
        if let Some(namespace) = &config.namespace {
            home = home.child(keys::NAMESPACES)?.child(&keys::namespace(namespace))?;
        }
        Ok((base, home))
    };
    // No session was here yet, or this user may not look, which connecting reports.
    let Ok((base, home)) = open() else { return Vec::new() };
    let directory = if config.namespace.is_none() { &base } else { &home };
    let changing = find_changing(directory, &home, config.flavor);
    let mut found = Vec::from_iter(find_stopped_writer(changing, "in the middle of a change"));
    found.extend(find_stopped_holders(&home).into_iter().map(|(pid, locks)| stopped_holder(pid, locks)));
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
    use tooz_core::BackendUrl;
    use tooz_core::driver::Limits;

    use super::*;

    fn looked(url: &str) -> Vec<Finding> {
        let url = BackendUrl::parse(url).unwrap();
        let config = Config::read(&url, Limits::of(&url).unwrap()).unwrap();
        look(&config, config::characteristics(&url)).unwrap()
    }

    #[test]
    fn looking_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let found = looked(&format!("file://{}/below", path.display()));
        let unused = found.iter().find(|finding| finding.topic() == Finding::UNUSED).unwrap();
        assert!(unused.what().contains("does not exist") && !path.exists(), "{found:?}");
        std::fs::write(&path, "").unwrap();
        let found = looked(&format!("file://{}/below", path.display()));
        assert_eq!(found.iter().map(Finding::topic).collect::<Vec<_>>(), ["place"], "a file is in the way");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for url in [format!("file://{}", link.display()), format!("file://{}/below", link.display())] {
            let found = looked(&url);
            assert_eq!(found.iter().map(Finding::topic).collect::<Vec<_>>(), ["place"], "{url}");
        }
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
