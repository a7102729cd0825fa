//! Clearing away the sessions that died, and files that no process uses any longer.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use tooz_core::Result;
use tooz_core::driver::SessionId;
use tooz_local::os_lock::Hold;

use crate::client::Client;
use crate::error::{self, existing};
use crate::keys::{self, KeyHash};
use crate::tree::{Access, Directory, Entry, Moment, Named, Topic, Tree, lock_records, members};

/// How often some process clears the dead away without an event that tells of a death. For Python, a member of a
/// session is dead when it is cleared away, and after Python's own option `timeout`, of which this is a third by
/// default.
pub(crate) const ROUND: Duration = Duration::from_secs(3);

/// As [`reap_all`], unless another process did so a moment ago: with many processes it would be all that they do.
pub(crate) async fn reap_in_turn(client: &Client, tree: &Tree) -> Result<()> {
    let failed = |cause| error::io(tree.home.path.join(keys::REAPED).display(), cause);
    let wall = client.context.clock.wall();
    let file = tree.home.open_or_create(keys::REAPED).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    let last = data.modified().map_err(failed)?;
    // Processes that come at about the same time are to come at about the same time again.
    let round = ROUND.mul_f32(0.8);
    // A time in the future is that of a clock that was set back since, and means nothing; an empty file is a new one.
    if data.len() > 0 && wall.duration_since(last).is_ok_and(|age| age < round) {
        return Ok(());
    }
    let write = || std::os::unix::fs::FileExt::write_all_at(&file, b"\n", 0).map_err(failed);
    if data.len() == 0 {
        write()?;
    }
    match file.set_modified(wall) {
        // A user who does not own the file may set no other time than that of a write.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => write()?,
        answer => answer.map_err(failed)?,
    }
    reap_all(client, tree).await?;
    tidy(client, tree)
}

/// Clears away every session that is dead.
pub(crate) async fn reap_all(client: &Client, tree: &Tree) -> Result<()> {
    let path = &tree.sessions.directory.path;
    for id in tree.sessions.ids().map_err(|cause| error::io(path.display(), cause))? {
        if tree.sessions.is_local(id) {
            continue; // its owner clears it away
        }
        let owner = tree.sessions.owner_of(id);
        if owner.is_some_and(|owner| owner.session == id && tree.sessions.is_dead(&owner)) {
            reap(client, tree, id).await?;
        }
    }
    Ok(())
}

async fn reap(client: &Client, tree: &Tree, id: SessionId) -> Result<()> {
    let failed = |cause| error::io(format!("clearing away the dead session {id}"), cause);
    // The lock is held until everything is gone.
    let Some((file, file_id)) = tree.sessions.lock_dead(id).map_err(failed)? else { return Ok(()) };
    remove_lock_records(client, tree, id).await?;
    {
        let _lock = client.driver_lock(tree, Hold::Alone).await?;
        members::remove_dead(tree, id)?;
    }
    let name = id.to_string();
    if tree.sessions.directory.has(&name, file_id) {
        tree.sessions.directory.remove(&name).map_err(failed)?;
    }
    tracing::debug!(session = %id, "cleared away a dead session");
    drop(file);
    Ok(())
}

/// Removes every record of a lock that a session left, wherever it stands.
async fn remove_lock_records(client: &Client, tree: &Tree, id: SessionId) -> Result<()> {
    let deadline = client.deadline();
    let belongs = format!(".{id}.");
    for number in 0..keys::STRIPES {
        let failed = |cause| error::io("the records of locks", cause);
        let Some(directory) = existing(tree.mutexes.stripe(number)).map_err(failed)? else { continue };
        let names: Vec<String> =
            directory.names().map_err(failed)?.into_iter().filter(|name| name.contains(&belongs)).collect();
        if names.is_empty() {
            continue;
        }
        let work = |directory: &Directory| {
            for name in &names {
                let Some(key) = KeyHash::of_record(name) else { continue };
                let Some(Named::Record(record)) = lock_records::parse(&key, name) else { continue };
                if record.owner.session == id && directory.stat(name).is_ok_and(|found| found.is_some()) {
                    let entry = Entry { name: name.clone(), record };
                    // What cannot be a record stays, and the others are removed.
                    if error::skip_unreadable(lock_records::remove_record(directory, &key, &entry))
                        .map_err(failed)?
                        .is_some()
                    {
                        tree.notify(&Topic::Lock(key));
                    }
                }
            }
            Ok(Moment::Done(()))
        };
        client.in_stripe(tree, number, Access::Change, deadline, work).await?;
    }
    Ok(())
}

/// The age at which a file counts as left over from a process that died in the middle of something; everything that
/// is under way takes milliseconds. Every watch has long seen by then which members left.
pub(crate) const LEFTOVER: Duration = Duration::from_mins(1);
/// How long the request stays on record that broke a lock (L10).
const BROKEN_RETENTION: Duration = Duration::from_hours(1);

/// Removes files that no process will look for any more.
fn tidy(client: &Client, tree: &Tree) -> Result<()> {
    let now = client.context.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    for (directory, age) in
        [(&*tree.tmp, LEFTOVER), (&tree.break_requests, LEFTOVER), (&tree.broken, BROKEN_RETENTION)]
    {
        let failed = |cause| error::io(directory.path.display(), cause);
        for name in directory.names().map_err(failed)? {
            let Some(data) = directory.stat(&name).map_err(failed)? else { continue };
            let changed = Duration::from_secs(u64::try_from(data.st_ctime).unwrap_or(0));
            if now.saturating_sub(changed) > age {
                error::skip_unreadable(directory.remove(&name)).map_err(failed)?;
            }
        }
    }
    Ok(())
}
