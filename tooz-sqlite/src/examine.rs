//! What is wrong with the database and its directory, for operators. This also works where connecting fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tooz_core::driver::{Connect, Context, Examining, Spawner};
use tooz_core::{Characteristics, Finding, Result, Severity};
use tooz_local::examine::{
    check_space, find_stopped_writer, find_unwritable, judge_file_system, stopped_holder,
};
use tooz_local::filesystem::FileSystem;

use crate::client::Client;
use crate::config::{self, Config};
use crate::engine::jobs::Level;
use crate::engine::paths::Paths;
use crate::engine::schema;
use crate::{read_only, reaper};

const ADOPTED: &str =
    "adopted: the database belongs to this place, and what was recorded at another has ended";
const NOTHING_TO_ADOPT: &str = "nothing to adopt: the database belongs to this place";

/// Looks at the database that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, limits, context, adopt, .. } = request;
        let config = Config { adopt, ..Config::read(&url, limits)? };
        let spawner = context.spawner.clone();
        let (looked, best) = (config.clone(), config::characteristics(&url));
        let (mut found, usable) = spawner.blocking(move || examine_outside(&looked, best)).await??;
        let is_unused = usable && {
            let reader = read_only::driver::reader(&url, config.clone(), &context)?;
            // What is wrong with a database is found below.
            matches!(reader.look(|_| Ok(())).await, Ok(None))
        };
        if is_unused {
            let what = format!(
                "nothing is in {} yet; the first session creates what is missing",
                config.path.display()
            );
            found.push(Finding::good(Finding::UNUSED, what));
        } else if usable && config.path.is_file() {
            let unmarked = adopt && is_unmarked(&spawner, &config).await?;
            found.extend(examine_inside(config.clone(), &context).await?);
            if adopt {
                let adopted = unmarked && !is_unmarked(&spawner, &config).await?;
                found.push(Finding::good("adopt", if adopted { ADOPTED } else { NOTHING_TO_ADOPT }));
            }
        }
        Ok(found)
    })
}

async fn is_unmarked(spawner: &Spawner, config: &Config) -> Result<bool> {
    let (path, force) = (config.path.clone(), config.force_filesystem);
    spawner.blocking(move || schema::is_unmarked(&Paths::find(&path, force)?)).await?
}

/// Examines what can be seen without opening the database; also returns whether opening it is worth the try.
fn examine_outside(config: &Config, best: Characteristics) -> Result<(Vec<Finding>, bool)> {
    let mut found = vec![Finding::good("version", format!("SQLite {}", rusqlite::version()))];
    let paths = match Paths::find(&config.path, true) {
        Ok(paths) => paths,
        Err(error) => {
            found.push(Finding::bad("place", error.context(), "correct the path or what stands there"));
            return Ok((found, false));
        }
    };
    if paths.database.exists()
        && let Err(error) = paths.check_mount()
    {
        found.push(Finding::bad("place", error.context(), "mount the directory, not the file"));
        return Ok((found, false));
    }
    let directory = paths.database.parent().unwrap_or(Path::new("/"));
    found.push(judge_file_system(FileSystem::of(directory)?, "database", config.force_filesystem, best));
    let written = [directory.to_owned(), paths.database.clone(), paths.sessions()];
    found.extend(find_unwritable(&written, "the directory, the database and what stands beside it"));
    found.extend(check_space(directory));
    found.extend(stopped_writer(&paths));
    let usable = found.iter().all(|finding| finding.severity() != Severity::Bad);
    Ok((found, usable))
}

/// Whether the process that has the write lock is stopped: then no other process can write.
fn stopped_writer(paths: &Paths) -> Option<Finding> {
    // Not by opening the file: closing it again would drop SQLite's own locks in this process.
    let shared_memory = fs::metadata(paths.beside("-shm")).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    find_stopped_writer(writers(&locks, shared_memory.ino()), "and has the database locked")
}

/// The processes that have a lock for writing on this file, as `/proc/locks` lists them.
fn writers(locks: &str, inode: u64) -> impl Iterator<Item = u32> {
    locks.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "POSIX");
        let (_, _, kind, pid, file) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let (_, number) = file.rsplit_once(':')?;
        (kind == "WRITE" && number.parse() == Ok(inode)).then(|| pid.parse().ok()).flatten()
    })
}

/// Examines what the database itself says.
async fn examine_inside(config: Config, context: &Context) -> Result<Vec<Finding>> {
    // Half of the time there is, so that the findings so far arrive in time.
    let limit = config.limits.connect_timeout / 2;
    let durable = config.durable;
    let client = Client::new(config, context)?;
    let asked = client
        .call_within(Level::Read, limit, |tx| {
            let mode: String = tx.connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
            Ok((mode, reaper::holding(tx)?))
        })
        .await;
    let closed = client.close().await;
    let (mode, holding) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            let advice = "do what the message says; a damaged database is to be restored";
            return Ok(vec![Finding::bad("journal", error.to_string(), advice)]);
        }
    };
    closed?;
    let synced = if durable { "full" } else { "normal; tokens and groups are written at full" };
    let mut found = vec![Finding::good("journal", format!("journal mode {mode}, synchronous {synced}"))];
    let stopped = holding.into_iter().filter(|(process, _)| process.is_stopped());
    found.extend(stopped.map(|(process, locks)| stopped_holder(process.pid, locks)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_read_from_what_the_kernel_lists() {
        let locks = "1: POSIX  ADVISORY  WRITE 77 fd:00:12 120 120\n\
                     2: OFDLCK ADVISORY  WRITE -1 fd:00:12 0 EOF\n\
                     3: POSIX  ADVISORY  READ 78 fd:00:12 123 123\n\
                     4: POSIX  ADVISORY  WRITE 79 fd:00:13 120 120\n\
                     4: -> POSIX  ADVISORY  WRITE 80 fd:00:12 120 120\nnonsense\n";
        assert_eq!(writers(locks, 12).collect::<Vec<_>>(), [77, 80]);
    }
}
