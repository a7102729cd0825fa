//! Looking alone: a database that is read and never written, also by a user who may only read it, or on a full disk.
//!
//! Each look opens the database, reads in one transaction and closes it. So nothing stays open that could keep others
//! from clearing the log away, and a database that is deleted or comes later needs no care. A look takes turns with the
//! opening and closing of the database by this process ([`presence`]). Who follows something looks again and again: a bell of
//! its own would have to be written.
//!
//! SQLite makes a log where it misses one, also for a reader. So the database is locked as a reader locks it before the log is
//! looked for: the last writer to close the database then leaves the log, and the changes in it, where they are.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Polling, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use nix::libc;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::mpsc;
use tooz_core::driver::{
    BreakRequest, ChangeStream, Context, Driver, GroupChange, Groups, HolderRecord, HolderStream, Holders,
    LockKey, Locks, MemberRecord, OpenSession, Session, earlier_layout,
};
use tooz_core::runtime::Task;
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, FencingToken, GroupId, MemberId, Result};

use crate::config::{self, Config};
use crate::engine::paths::Place;
use crate::engine::presence;
use crate::engine::schema;
use crate::engine::tx::{Probes, Site, Tx};
use crate::error::{self, Fail, Work, native};
use crate::groups;
use crate::host::kernel::{self, Process};
use crate::keys::{Id, Lock};
use crate::locks;

/// How often a stream of a group or a lock looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long a look waits for a process that recovers the log or closes the database as the last.
const BUSY: Duration = Duration::from_secs(5);

/// Connects for looking.
pub(crate) async fn connect(url: &BackendUrl, config: Config, context: Context) -> Result<Arc<dyn Driver>> {
    let place = Place::find(&config.path, config.force_filesystem)?;
    let best =
        if place.known_file_system { config::characteristics(url) } else { config::on_unknown_file_system() };
    let boot_id = match &config.boot_id {
        Some(boot_id) => boot_id.clone(),
        None => kernel::boot_id().map_err(|error| error::io("/proc/sys/kernel/random/boot_id", error))?,
    };
    let site = Site {
        sessions: place.sessions(),
        process: Process::this(),
        boot_id,
        layout: config.layout,
        bell: None,
        known: None,
        adopt: false,
        clock: context.clock.clone(),
        entropy: context.entropy.clone(),
    };
    let view = View(Arc::new(Shared {
        place,
        site,
        config,
        context,
        characteristics: best - Characteristics::PUSH_WATCHES,
        closed: AtomicBool::new(false),
    }));
    // Says what is wrong with it, if it is there.
    view.0.look("connect", |_| Ok(())).await?;
    Ok(Arc::new(view))
}

struct Shared {
    place: Place,
    site: Site,
    config: Config,
    context: Context,
    characteristics: Characteristics,
    closed: AtomicBool,
}

#[derive(Debug)]
struct View(Arc<Shared>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("database", &self.place.database).finish_non_exhaustive()
    }
}

/// A path as SQLite takes it with parameters, for a database that nobody changes meanwhile.
fn immutable(path: &Path) -> PathBuf {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri.push_str("?immutable=1");
    PathBuf::from(uri)
}

impl Shared {
    /// Reads in one transaction; `None`: no session ever was here.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        what: &'static str,
        work: impl FnMut(&mut Tx<'_>) -> Work<T> + Send + 'static,
    ) -> Result<Option<T>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "connect a new view"));
        }
        let shared = Arc::clone(self);
        let looked = self.context.spawner.blocking(move || shared.look_here(work)).await;
        looked.and_then(|looked| looked).map_err(|error| error.during(what))
    }

    fn look_here<T>(&self, mut work: impl FnMut(&mut Tx<'_>) -> Work<T>) -> Result<Option<T>> {
        let missing =
            |path: &Path| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if missing(&self.place.database) {
            return Ok(None);
        }
        self.place.check()?;
        let look = presence::look();
        if look.has(&self.place.database) {
            // The log stays as long as this process has it.
            return self.read(false, &mut work);
        }
        let reader = self.lock()?;
        let (log, shared_memory) = (self.place.beside("-wal"), self.place.beside("-shm"));
        let mut looked = None;
        if missing(&log) {
            // No process has the database open.
            looked = Some(self.read(true, &mut work));
        }
        // Else a writer has opened it meanwhile, whose changes stand in the log.
        if !missing(&log) {
            if missing(&shared_memory) {
                let what = format!(
                    "{} is missing beside {}; connect once with a program that may write",
                    shared_memory.display(),
                    log.display()
                );
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            looked = Some(self.read(false, &mut work));
        }
        drop(reader);
        looked.unwrap_or_else(|| Err(Error::new(ErrorKind::Unavailable, "the log came and went; look again")))
    }

    /// Locks the database as a reader does. INVARIANT: this process has it open in no other way than by looks, since closing
    /// the file drops the POSIX locks of all.
    fn lock(&self) -> Result<File> {
        let path = &self.place.database;
        let failed = |error| error::io(path.display().to_string(), error);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(failed)?;
        let limit = self.context.clock.now() + BUSY.min(self.config.operation_timeout);
        while !kernel::try_lock_as_reader(&file).map_err(failed)? {
            if self.context.clock.now() >= limit {
                let what =
                    format!("{} is being closed or recovered by another process; look again", path.display());
                return Err(Error::new(ErrorKind::Unavailable, what));
            }
            std::thread::park_timeout(self.context.entropy.between(schema::BUSY_LOW, schema::BUSY_HIGH));
        }
        Ok(file)
    }

    fn read<T>(&self, alone: bool, work: &mut impl FnMut(&mut Tx<'_>) -> Work<T>) -> Result<Option<T>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX // one thread only
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = if alone {
            let uri = immutable(&self.place.database);
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
        } else {
            Connection::open_with_flags(&self.place.database, flags)
        };
        let connection = connection.map_err(native)?;
        connection.busy_timeout(BUSY.min(self.config.operation_timeout)).map_err(native)?;
        let transaction = connection.unchecked_transaction().map_err(native)?;
        let (shown, ours) = (self.place.database.display(), self.site.layout);
        match schema::check(&transaction, &shown, ours)? {
            0 => return Ok(None),
            earlier if earlier < ours => return Err(earlier_layout(&shown, earlier, ours)),
            _ => {}
        }
        let (locals, mut probes) = (HashMap::new(), Probes::default());
        // Who looks dead is left out, and left for others to clear away.
        let found = work(&mut Tx::new(&transaction, &self.site, &locals, &mut probes));
        found.map(Some).map_err(Fail::into_error)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

fn may_not() -> Error {
    Error::new(ErrorKind::Unsupported, "a view changes nothing; connect a coordinator")
}

#[async_trait]
impl Driver for View {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, _: &OpenSession) -> Result<Arc<dyn Session>> {
        Err(may_not())
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[async_trait]
impl Groups for View {
    async fn create(&self, _: &GroupId) -> Result<()> {
        Err(may_not())
    }

    async fn delete(&self, _: &GroupId) -> Result<()> {
        Err(may_not())
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        let namespace = self.0.config.namespace.clone();
        let found = self.0.look("list groups", move |tx| groups::list(tx, &namespace)).await?;
        Ok(found.unwrap_or_default())
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        let (namespace, id) = (self.0.config.namespace.clone(), group.clone());
        let found = self.0.look("members", move |tx| groups::members(tx, &namespace, &id)).await?;
        found.ok_or_else(|| groups::not_found(group))
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        let (namespace, id, who) = (self.0.config.namespace.clone(), group.clone(), member.clone());
        let found = self.0.look("member", move |tx| groups::member(tx, &namespace, &id, &who)).await?;
        found.ok_or_else(|| groups::not_found(group))
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        let shared = Arc::clone(&self.0);
        let first = shared.group(group).await?;
        let Some((known, Some(members))) = first else { return Err(groups::not_found(group)) };
        let (changes, stream) = mpsc::channel(1);
        let follower = Follower { shared, group: group.clone(), known, members: by_id(members), changes };
        let task = self.0.context.spawner.spawn(follower.run());
        Ok(Box::pin(Feed { stream, _task: task }))
    }
}

#[async_trait]
impl Locks for View {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        self.0.holders(key).await
    }

    async fn break_lock(&self, _: &BreakRequest) -> Result<Vec<HolderRecord>> {
        Err(may_not())
    }

    async fn raise_tokens(&self, _: FencingToken) -> Result<()> {
        Err(may_not())
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (shared, key) = (Arc::clone(&self.0), key.clone());
        let mut seen = shared.holders(&key).await?;
        let (changes, stream) = mpsc::channel(1);
        let task = self.0.context.spawner.spawn(async move {
            let mut next = Some(Ok(seen.clone()));
            loop {
                if let Some(next) = next.take()
                    && changes.send(next).await.is_err()
                {
                    return; // nobody reads
                }
                shared.context.spawner.sleep(LOOK).await;
                next = match shared.holders(&key).await {
                    // How many wait is no change of holders.
                    Ok(now) if now.holders == seen.holders => None,
                    Ok(now) => {
                        seen = now.clone();
                        Some(Ok(now))
                    }
                    Err(_) if shared.is_closed() => return,
                    Err(error) if error.is_retryable() => None,
                    Err(error) => Some(Err(error)),
                };
            }
        });
        Ok(Box::pin(Feed { stream, _task: task }))
    }
}

/// Which data, and which group of that name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Which {
    epoch: u128,
    /// 0: there is none.
    id: i64,
}

impl Shared {
    async fn holders(self: &Arc<Self>, key: &LockKey) -> Result<Holders> {
        let lock = Lock::new(&self.config.namespace, key);
        let found = self.look("holders", move |tx| locks::holders(tx, &lock)).await?;
        Ok(found.unwrap_or_else(|| Holders::new(Vec::new(), Some(0))))
    }

    /// A group as it stands; the members are `None` if there is no such group.
    async fn group(self: &Arc<Self>, group: &GroupId) -> Result<Option<(Which, Option<Vec<MemberRecord>>)>> {
        let (namespace, group) = (self.config.namespace.clone(), group.clone());
        let work = move |tx: &mut Tx<'_>| {
            let epoch = tx.first("SELECT epoch FROM tooz", [], |row| row.get::<_, Id>(0))?;
            let epoch = epoch.map_or(0, |epoch| epoch.0);
            match groups::find(tx, &namespace, &group) {
                Ok(id) => Ok((Which { epoch, id }, Some(groups::members(tx, &namespace, &group)?))),
                Err(Fail::Tooz(error)) if error.kind() == ErrorKind::GroupNotFound => {
                    Ok((Which { epoch, id: 0 }, None))
                }
                Err(fail) => Err(fail),
            }
        };
        self.look("watch group", work).await
    }
}

type Members = BTreeMap<MemberId, MemberRecord>;

fn by_id(members: Vec<MemberRecord>) -> Members {
    members.into_iter().map(|record| (record.member.clone(), record)).collect()
}

/// Looks at a group again and again, and tells the differences. It waits for a slow reader before it looks again.
struct Follower {
    shared: Arc<Shared>,
    group: GroupId,
    known: Which,
    members: Members,
    changes: mpsc::Sender<Result<GroupChange>>,
}

impl Follower {
    async fn run(mut self) {
        let mut next = vec![Ok(self.view())];
        loop {
            for change in next {
                let over = matches!(change, Ok(GroupChange::Deleted));
                if self.changes.send(change).await.is_err() || over {
                    return;
                }
            }
            self.shared.context.spawner.sleep(LOOK).await;
            next = match self.shared.group(&self.group).await {
                Ok(found) => self.compare(found).into_iter().map(Ok).collect(),
                Err(_) if self.shared.is_closed() => return,
                Err(error) if error.is_retryable() => Vec::new(),
                Err(error) => vec![Err(error)],
            };
        }
    }

    fn view(&self) -> GroupChange {
        GroupChange::View(self.members.values().cloned().collect())
    }

    fn compare(&mut self, found: Option<(Which, Option<Vec<MemberRecord>>)>) -> Vec<GroupChange> {
        let (which, members) = found.unwrap_or((Which { epoch: 0, id: 0 }, None));
        let lost = which.epoch != self.known.epoch || self.known.id == 0;
        if !lost && which.id != self.known.id {
            return vec![GroupChange::Deleted];
        }
        let now = by_id(members.unwrap_or_default());
        let before = std::mem::replace(&mut self.members, now);
        let known = std::mem::replace(&mut self.known, which);
        if lost {
            // Its data was lost, and the group with it: nobody deleted it, and it may come back.
            let same = known == which && before == self.members;
            return if same { Vec::new() } else { vec![self.view()] };
        }
        let mut changes = Vec::new();
        for (id, old) in &before {
            if self.members.get(id).is_none_or(|new| new.incarnation != old.incarnation) {
                changes.push(GroupChange::Left(old.clone()));
            }
        }
        for (id, new) in &self.members {
            match before.get(id) {
                Some(old) if old == new => {}
                Some(old) if old.incarnation == new.incarnation => {
                    changes.push(GroupChange::Updated(new.clone()));
                }
                _ => changes.push(GroupChange::Joined(new.clone())),
            }
        }
        changes
    }
}

/// What a task feeds; dropping it ends the task.
struct Feed<T> {
    stream: mpsc::Receiver<T>,
    _task: Task<()>,
}

impl<T> Stream for Feed<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Polling<'_>) -> Poll<Option<T>> {
        self.stream.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_path_is_a_parameter() {
        let uri = immutable(Path::new("/a b/c?mode=rw#%25.db"));
        assert_eq!(uri, Path::new("file:/a%20b/c%3Fmode%3Drw%23%2525.db?immutable=1"));
    }
}
