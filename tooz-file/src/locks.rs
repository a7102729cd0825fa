//! Locks of one session: requesting, waiting, releasing.
//!
//! A grant is decided under the mutex of the lock's records. No live session is before this one, the mode fits beside
//! the holders, and, where Python shares the lock, the operating system has locked its file for this process. Then
//! the record of the waiter is renamed to that of a holder in one step, which fails if the record was removed
//! meanwhile.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::support::rule::Verdict;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, LockMode, Previous, QueueEntry, Released,
    SessionLocks, Turn,
};
use tooz_core::{Error, ErrorKind, LossReason, Result};

use crate::error;
use crate::keys::KeyHash;
use crate::session_state::{Held, SessionState, Waiting};
use crate::tree::{
    Access, Before, Coverage, Directory, LockRecords, Moment, Predecessors, Record, Role, Topic, Tried,
    lock_records, python_lock,
};

/// How often a waiter looks where no event tells of a change, at random between these. Users notice a delay of a
/// tenth of a second after a release, and below 5 ms a hundred waiters would do nothing but look.
const LOCK_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// How often a waiter looks without an event: whether the sessions before it still have their records and live. Nothing
/// depends on this look, unless an event was lost.
const SAFETY_POLL: Duration = Duration::from_secs(1);

/// What may be granted.
struct Contender<'a> {
    attempt: AttemptId,
    key: &'a LockKey,
    hash: &'a KeyHash,
    mode: LockMode,
    /// The record of a waiter that is to become a holder's.
    waiting: Option<&'a str>,
}

enum Outcome {
    Granted(Grant),
    /// These are before it; or none, and only an operating-system lock is in the way, whose end may make no event.
    Blocked {
        before: Vec<Before>,
        spare: Option<File>,
    },
    /// The waiter's record was removed.
    Gone,
}

impl SessionState {
    /// Grants, queues or refuses a request; under the mutex.
    fn grant_or_queue(
        &self,
        directory: &Directory,
        request: &Acquire,
        hash: &KeyHash,
    ) -> Result<Moment<Acquired>> {
        let Acquire { attempt, key, mode, wait, .. } = request;
        let failed = |cause| error::lock_records(key, cause);
        let mut records = LockRecords::read(directory, hash, &self.tree.sessions).map_err(failed)?;
        {
            let mut state = self.state_for(*attempt)?;
            let known = state.held.get(attempt).map(|held| &held.grant.key);
            let known = known.or(state.waiting.get(attempt).map(|waiting| &waiting.key));
            if known.is_some_and(|known| known != key) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("attempt {attempt} asked for another lock before; ask with a new attempt"),
                ));
            }
            if let Some(held) = state.held.get(attempt) {
                return Ok(Moment::Done(Acquired::Granted(held.grant.clone())));
            }
            if state.waiting.contains_key(attempt) {
                if records.is_queued(*attempt) {
                    return Ok(Moment::Done(Acquired::Queued(QueueEntry::new(*attempt, key.clone()))));
                }
                state.waiting.remove(attempt); // its record was removed: it gets a new one
            }
        }
        records.remove_dead_before(*attempt, *mode, Access::Change).map_err(failed)?;
        let contender = Contender { attempt: *attempt, key, hash, mode: *mode, waiting: None };
        let spare = match self.grant(directory, &records, &contender, None)? {
            Moment::Busy(pid) => return Ok(Moment::Busy(pid)),
            Moment::Done(Outcome::Granted(grant)) => return Ok(Moment::Done(Acquired::Granted(grant))),
            Moment::Done(Outcome::Gone) => None, // a new attempt has no record yet
            Moment::Done(Outcome::Blocked { spare, .. }) => spare,
        };
        if !wait {
            return Ok(Moment::Done(Acquired::Held));
        }
        let record = self.name_record(Role::Waiter(records.next_number()), &contender)?;
        directory.create(&record).map_err(failed)?;
        let (name, hash, spare) = (record.clone(), hash.clone(), spare.map(Arc::new));
        let waiting = Waiting { key: key.clone(), hash, record: name, mode: *mode, spare };
        let undo = |error| directory.remove(&record).map_err(failed).and(Err(error));
        let mut state = self.state_for(*attempt).or_else(undo)?;
        state.waiting.insert(*attempt, waiting);
        Ok(Moment::Done(Acquired::Queued(QueueEntry::new(*attempt, key.clone()))))
    }

    fn name_record(&self, role: Role, contender: &Contender<'_>) -> Result<String> {
        let Contender { attempt, key, hash, mode, .. } = *contender;
        let unknown =
            || Error::new(ErrorKind::Unsupported, format!("{key}: tooz-file does not know this mode"));
        let record = Record { role, mode, attempt, owner: self.owner.clone() };
        record.name(hash).ok_or_else(unknown)
    }

    /// Grants if it can; under the mutex, with the dead removed from the records.
    fn grant(
        &self,
        directory: &Directory,
        records: &LockRecords<'_>,
        contender: &Contender<'_>,
        spare: Option<Arc<File>>,
    ) -> Result<Moment<Outcome>> {
        let Contender { attempt, key, hash, mode, waiting } = *contender;
        let failed = |cause| error::lock_records(key, cause);
        let tree = &self.tree;
        if records.verdict(attempt, mode).checked(key)? != Verdict::Free {
            return Ok(Moment::Done(Outcome::Blocked {
                before: records.before(attempt, mode),
                spare: spare.and_then(Arc::into_inner),
            }));
        }
        // L14. Others cannot judge a session whose file was removed or replaced: it ends itself.
        if !tree.sessions.directory.has(&self.id().to_string(), self.file_id) {
            self.end(LossReason::Vanished);
            self.check()?;
        }
        let files = match tree.python_path(key) {
            None => Vec::new(),
            Some(path) => match python_lock::try_lock(tree, &path, python_lock::hold_for(mode), spare)? {
                Tried::Locked(file) => vec![file],
                Tried::Busy(file) => {
                    return Ok(Moment::Done(Outcome::Blocked { before: Vec::new(), spare: Some(file) }));
                }
                Tried::Impossible => Vec::new(),
            },
        };
        let token = match tree.fence.take(self.client.context.clock.wall()) {
            Ok(Some(token)) => token,
            none => {
                python_lock::unlock(files);
                return none.map(|_| Moment::Busy(None));
            }
        };
        let record = self.name_record(Role::Holder(token.get()), contender)?;
        match waiting {
            Some(waiting) => match directory.rename(waiting, directory, &record) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Moment::Done(Outcome::Gone));
                }
                answer => answer.map_err(failed)?,
            },
            None => drop(directory.create(&record).map_err(failed)?),
        }
        let told = match records.mark {
            Some(_) => lock_records::read_marks(directory, hash),
            None => Vec::new(),
        };
        let grant = Grant::new(attempt, key.clone(), mode, token, records.mark.unwrap_or_default());
        let undo = |error| directory.remove(&record).map_err(failed).and(Err(error));
        let mut state = self.state_for(attempt).or_else(undo)?;
        state.waiting.remove(&attempt);
        state.held.insert(attempt, Held { grant: grant.clone(), hash: hash.clone(), record, told, files });
        drop(state);
        tree.notify(&Topic::Lock(hash.clone()));
        Ok(Moment::Done(Outcome::Granted(grant)))
    }

    /// One look of a waiter.
    async fn look(&self, attempt: AttemptId) -> Result<Outcome> {
        let tree = &self.tree;
        let (key, hash, record, mode) = {
            let state = self.state();
            if let Some(held) = state.held.get(&attempt) {
                return Ok(Outcome::Granted(held.grant.clone()));
            }
            self.check()?;
            let Some(waiting) = state.waiting.get(&attempt) else { return Ok(Outcome::Gone) };
            (waiting.key.clone(), waiting.hash.clone(), waiting.record.clone(), waiting.mode)
        };
        let failed = |cause| error::lock_records(&key, cause);
        // Without the mutex first: most looks end here.
        let directory = tree.mutexes.stripe(hash.stripe()).map_err(failed)?;
        let mut records = LockRecords::read(directory, &hash, &tree.sessions).map_err(failed)?;
        if records.is_queued(attempt) {
            records.remove_dead_before(attempt, mode, Access::Look).map_err(failed)?;
            if records.verdict(attempt, mode) != Verdict::Free {
                return Ok(Outcome::Blocked { before: records.before(attempt, mode), spare: None });
            }
        }
        let deadline = self.client.deadline();
        let work = |directory: &Directory| {
            let mut records = LockRecords::read(directory, &hash, &tree.sessions).map_err(failed)?;
            if !records.is_queued(attempt) {
                let mut state = self.state();
                if let Some(held) = state.held.get(&attempt) {
                    return Ok(Moment::Done(Outcome::Granted(held.grant.clone())));
                }
                state.waiting.remove(&attempt);
                return Ok(Moment::Done(Outcome::Gone));
            }
            records.remove_dead_before(attempt, mode, Access::Change).map_err(failed)?;
            let spare = self.state().waiting.get_mut(&attempt).and_then(|waiting| waiting.spare.take());
            let contender = Contender { attempt, key: &key, hash: &hash, mode, waiting: Some(&record) };
            let answer = self.grant(directory, &records, &contender, spare)?;
            Ok(match answer {
                Moment::Done(Outcome::Blocked { before, spare }) => {
                    if let Some(waiting) = self.state().waiting.get_mut(&attempt) {
                        waiting.spare = spare.map(Arc::new);
                    }
                    Moment::Done(Outcome::Blocked { before, spare: None })
                }
                other => other,
            })
        };
        self.client.in_stripe(tree, hash.stripe(), Access::Change, deadline, work).await
    }

    async fn take_turn(&self, entry: &QueueEntry) -> Result<Turn> {
        self.client.check()?;
        let tree = &self.tree;
        let hash = KeyHash::new(&entry.key);
        let mut topics = vec![Topic::Lock(hash.clone()), Topic::Deaths, Topic::Session(self.id())];
        let path = tree.python_path(&entry.key);
        topics.extend(path.iter().map(|path| Topic::LockFile(path.join("/"))));
        let mut listener = tree.topics.listen(topics);
        let mut predecessors = Predecessors::default();
        loop {
            let before = match self.look(entry.attempt).await? {
                Outcome::Granted(grant) => {
                    let old = mem::replace(&mut self.state().predecessors, predecessors.sessions);
                    drop(old); // without the lock of the state
                    return Ok(Turn::Granted(grant));
                }
                Outcome::Gone => return Ok(Turn::Gone),
                Outcome::Blocked { before, .. } => before,
            };
            let coverage = match &path {
                Some(path) if before.is_empty() => {
                    predecessors.watch_lock_file(tree, path);
                    Coverage::Partial // a process that only unlocks the file without closing it makes no event
                }
                _ => predecessors.watch(tree, &hash, &before),
            };
            let pause = match coverage {
                Coverage::Changed => continue,
                Coverage::Partial => self.client.context.entropy.between(LOCK_POLL.0, LOCK_POLL.1),
                Coverage::Complete => SAFETY_POLL,
            };
            while self.client.context.spawner.timeout(pause, listener.heard()).await.is_none() {
                self.client.check()?;
                // A poll does not read the whole queue: where many wait, most have to poll, since the kernel gives a
                // user 128 inotify instances. A process that holds the file without a record cannot be polled like
                // this.
                let recorded = !before.is_empty() && self.has_record(&hash, entry.attempt);
                if !(recorded && Predecessors::are_unchanged(tree, &hash, &before)) {
                    break;
                }
            }
            self.client.check()?;
        }
    }

    /// Whether the record of this session's waiter is there.
    fn has_record(&self, hash: &KeyHash, attempt: AttemptId) -> bool {
        let record = self.state().waiting.get(&attempt).map(|waiting| waiting.record.clone());
        let stripe = self.tree.mutexes.stripe(hash.stripe());
        record.zip(stripe.ok()).is_some_and(|(record, stripe)| matches!(stripe.stat(&record), Ok(Some(_))))
    }

    /// Ends an attempt, whether it holds or waits.
    pub(crate) async fn end_attempt(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        // Before the mutex: a request that is under way is refused even if it gets there first.
        self.mark_withdrawn(attempt);
        let (tree, hash) = (&self.tree, KeyHash::new(key));
        let work = |directory: &Directory| {
            let (held, waiting) = {
                let mut state = self.state();
                (state.held.remove(&attempt), state.waiting.remove(&attempt))
            };
            // A grant that was not used leaves the mark, since its owner has not seen how the holder before it ended.
            // The files are unlocked first: a process that finds the record gone finds them unlocked.
            let records = [held.map(|held| held.record), waiting.map(|waiting| waiting.record)];
            for record in records.iter().flatten() {
                directory.remove(record).map_err(|cause| error::lock_records(key, cause))?;
            }
            Ok(Moment::Done(()))
        };
        self.client.in_stripe(tree, hash.stripe(), Access::Change, self.client.deadline(), work).await?;
        tree.notify(&Topic::Lock(hash));
        Ok(())
    }

    async fn release_grant(&self, grant: &Grant, end: End) -> Result<Released> {
        self.client.check_process()?;
        let failed = |cause| error::lock_records(&grant.key, cause);
        let tree = &self.tree;
        let held = {
            let mut state = self.state();
            match state.held.get(&grant.attempt) {
                Some(held) if held.grant.key == grant.key => state.held.remove(&grant.attempt),
                _ => None,
            }
        };
        let Some(mut held) = held else { return Ok(Released::WasNotHolder) };
        self.mark_withdrawn(grant.attempt);
        let directory = tree.mutexes.stripe(held.hash.stripe()).map_err(failed)?;
        // First: a process that is woken by the record's removal finds the file unlocked.
        python_lock::unlock(mem::take(&mut held.files));
        let removed = match end {
            // Unlinking is atomic, and the name is that of this grant alone.
            End::Clean if held.told.is_empty() => directory.remove(&held.record).map_err(failed),
            End::Clean | End::Unclean => self.remove_and_mark(&held, end.previous()).await,
        };
        match removed {
            Ok(found) => {
                tree.notify(&Topic::Lock(held.hash));
                Ok(if found { Released::Released } else { Released::WasNotHolder })
            }
            Err(error) => {
                // The record is still there and excludes all others: to be released again.
                self.state().held.insert(grant.attempt, held);
                Err(error)
            }
        }
    }

    /// Under the mutex, so that a process that reads the records one after the other sees the record or the mark. An
    /// end that is `Unknown` is not marked.
    pub(crate) async fn remove_and_mark(&self, held: &Held, how: Previous) -> Result<bool> {
        let tree = &self.tree;
        let work = |directory: &Directory| {
            let marked = match how {
                Previous::Clean if held.told.is_empty() => Ok(()),
                Previous::Clean => lock_records::remove_marks(directory, &held.hash, &held.told),
                how => lock_records::write_mark(directory, &held.hash, how, held.grant.attempt),
            };
            let removed = marked.and_then(|()| directory.remove(&held.record));
            removed.map(Moment::Done).map_err(|cause| error::lock_records(&held.grant.key, cause))
        };
        self.client.in_stripe(tree, held.hash.stripe(), Access::Change, self.client.deadline(), work).await
    }
}

#[async_trait]
impl SessionLocks for SessionState {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let asked = async {
            self.client.check()?;
            let hash = KeyHash::new(&request.key);
            let work = |directory: &Directory| self.grant_or_queue(directory, request, &hash);
            self.client
                .in_stripe(&self.tree, hash.stripe(), Access::Change, self.client.deadline(), work)
                .await
        };
        asked.await.map_err(|error| error.during("request"))
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        self.take_turn(entry).await.map_err(|error| error.during("turn"))
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        self.client.check_process().map_err(|error| error.during("withdraw"))?;
        if self.is_over() {
            return Ok(()); // what ended it clears everything away
        }
        self.end_attempt(key, attempt).await.map_err(|error| error.during("withdraw"))
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        self.release_grant(grant, end).await.map_err(|error| error.during("release"))
    }
}
