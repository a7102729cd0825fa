//! Locks of one session: asking, waiting, giving back.
//!
//! A grant is decided under the mutex of the lock's records: nobody that lives is before us, our mode fits beside the
//! holders, and, where Python shares the lock, the operating system gave us the lock on its file. Then the record of
//! the waiter is renamed to that of a holder in one step, which fails if somebody removed it meanwhile.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, LockMode, Place, Previous, Released, SessionLocks,
    Turn,
};
use tooz_core::{Error, ErrorKind, LossReason, Result};

use crate::client::Client;
use crate::error;
use crate::keys::{KeyHash, Record, Role};
use crate::reaper::Doctor;
use crate::session_state::{Held, Local, Waiting};
use crate::tree::directory::Directory;
use crate::tree::lock_records::{self, Before, Book};
use crate::tree::open_tree::{Moment, Site};
use crate::tree::predecessor::{Ahead, Hearing};
use crate::tree::python_lock::{self, Tried};
use crate::tree::topics::Topic;

/// How often a waiter looks when nobody tells it, at random between these: a tenth of a second after a release is
/// felt by people, and below 5 ms a hundred waiters would do nothing but look.
const LOCK_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// How often a waiter looks although nobody told it anything: whether whoever is before it still stands and lives, and
/// nothing depends on it unless an event was lost.
const SAFETY_POLL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct FileSessionLocks {
    pub(crate) client: Arc<Client>,
    pub(crate) local: Arc<Local>,
}

/// What is wished for.
struct Wish<'a> {
    attempt: AttemptId,
    key: &'a LockKey,
    hash: &'a KeyHash,
    mode: LockMode,
    /// The record of a waiter that is to become a holder's.
    waiting: Option<&'a str>,
}

enum Outcome {
    Granted(Grant),
    /// Somebody is before us: these, or nobody but an operating-system lock, whose end nobody may tell us.
    Blocked {
        before: Vec<Before>,
        spare: Option<File>,
    },
    /// Our place was removed.
    Gone,
}

pub(crate) fn failed(key: &LockKey, cause: io::Error) -> Error {
    error::io(format!("the records of {key}"), cause)
}

impl FileSessionLocks {
    fn site(&self) -> &Arc<Site> {
        &self.local.site
    }

    /// Under the mutex.
    fn ask(&self, directory: &Directory, request: &Acquire, hash: &KeyHash) -> Result<Moment<Acquired>> {
        let Acquire { attempt, key, mode, wait, .. } = request;
        let failed = |cause| failed(key, cause);
        let mut book = Book::read(directory, hash).map_err(failed)?;
        {
            let mut state = self.local.state();
            state.check_attempt(*attempt)?;
            let known = state.held.get(attempt).map(|held| &held.grant.key);
            if known
                .or(state.waiting.get(attempt).map(|waiting| &waiting.key))
                .is_some_and(|known| known != key)
            {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("attempt {attempt} asked for another lock before; ask with a new attempt"),
                ));
            }
            if let Some(held) = state.held.get(attempt) {
                return Ok(Moment::Done(Acquired::Granted(held.grant.clone())));
            }
            if state.waiting.contains_key(attempt) {
                if book.waiter_of(*attempt).is_some() {
                    return Ok(Moment::Done(Acquired::Queued(Place::new(*attempt, key.clone()))));
                }
                state.waiting.remove(attempt); // somebody removed the place: a new one
            }
        }
        let mut doctor = Doctor::new(self.site());
        let graves = Some((directory, hash, self.site().mode));
        book.make_way(*attempt, *mode, &mut doctor, graves).map_err(failed)?;
        let wish = Wish { attempt: *attempt, key, hash, mode: *mode, waiting: None };
        let spare = match self.grant(directory, &book, &wish, None)? {
            Moment::Busy(who) => return Ok(Moment::Busy(who)),
            Moment::Done(Outcome::Granted(grant)) => return Ok(Moment::Done(Acquired::Granted(grant))),
            Moment::Done(Outcome::Gone) => None, // only of a place
            Moment::Done(Outcome::Blocked { spare, .. }) => spare,
        };
        if !wait {
            return Ok(Moment::Done(Acquired::Held));
        }
        let place = book.next_place();
        let record = self.record(Role::Waiter(place), &wish)?;
        directory.create(&record, self.site().mode).map_err(failed)?;
        let waiting = Waiting {
            key: key.clone(),
            hash: hash.clone(),
            record: record.clone(),
            mode: *mode,
            spare: spare.map(Arc::new),
        };
        let mut state = self.local.state();
        if let Err(error) = state.check_attempt(*attempt) {
            drop(state);
            directory.remove(&record).map_err(failed)?;
            return Err(error);
        }
        state.waiting.insert(*attempt, waiting);
        Ok(Moment::Done(Acquired::Queued(Place::new(*attempt, key.clone()))))
    }

    fn record(&self, role: Role, wish: &Wish<'_>) -> Result<String> {
        let record = Record { role, mode: wish.mode, attempt: wish.attempt, owner: self.local.owner.clone() };
        record.name(wish.hash).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("{}: tooz-file does not know this mode", wish.key))
        })
    }

    /// Grants if it can; under the mutex, with the dead removed from the book.
    fn grant(
        &self,
        directory: &Directory,
        book: &Book,
        wish: &Wish<'_>,
        spare: Option<Arc<File>>,
    ) -> Result<Moment<Outcome>> {
        let Wish { attempt, key, hash, mode, waiting } = *wish;
        let site = self.site();
        let admitted = book
            .admits(attempt, mode)
            .map_err(|error| Error::new(error.kind(), format!("{key}: {}", error.context())))?;
        if !admitted {
            return Ok(Moment::Done(Outcome::Blocked {
                before: book.before(attempt, mode),
                spare: spare.and_then(Arc::into_inner),
            }));
        }
        // L14. A session whose file was removed or replaced cannot be judged by others: it ends itself.
        if !site.sessions.has(&self.local.session().to_string(), self.local.id) {
            self.local.end(LossReason::Vanished);
            self.local.check()?;
        }
        let files = match site.python_path(key) {
            None => Vec::new(),
            Some(path) => match python_lock::try_lock(site, &path, python_lock::hold(mode), spare)? {
                Tried::Locked(file) => vec![file],
                Tried::Busy(file) => {
                    return Ok(Moment::Done(Outcome::Blocked { before: Vec::new(), spare: Some(file) }));
                }
                Tried::NoPlace => Vec::new(),
            },
        };
        let token = match site.fence(self.client.context.clock.wall()) {
            Ok(Some(token)) => token,
            none => {
                python_lock::let_go(files);
                return none.map(|_| Moment::Busy(None));
            }
        };
        let record = self.record(Role::Holder(token.get()), wish)?;
        match waiting {
            Some(waiting) => match directory.rename(waiting, directory, &record) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Moment::Done(Outcome::Gone));
                }
                answer => answer.map_err(|cause| failed(key, cause))?,
            },
            None => drop(directory.create(&record, site.mode).map_err(|cause| failed(key, cause))?),
        }
        let told = match book.mark {
            Some(_) => lock_records::marks(directory, hash),
            None => Vec::new(),
        };
        let grant = Grant::new(attempt, key.clone(), mode, token, book.mark.unwrap_or_default());
        let mut state = self.local.state();
        if let Err(error) = state.check_attempt(attempt) {
            drop(state);
            directory.remove(&record).map_err(|cause| failed(key, cause))?;
            return Err(error);
        }
        state.waiting.remove(&attempt);
        state.held.insert(attempt, Held { grant: grant.clone(), hash: hash.clone(), record, told, files });
        drop(state);
        site.say(&Topic::Lock(hash.clone()));
        Ok(Moment::Done(Outcome::Granted(grant)))
    }

    /// One look of a waiter.
    async fn look(&self, attempt: AttemptId) -> Result<Outcome> {
        let site = self.site();
        let waiting = {
            let state = self.local.state();
            if let Some(held) = state.held.get(&attempt) {
                return Ok(Outcome::Granted(held.grant.clone()));
            }
            state.check()?;
            match state.waiting.get(&attempt) {
                None => return Ok(Outcome::Gone),
                Some(Waiting { key, hash, record, mode, .. }) => {
                    (key.clone(), hash.clone(), record.clone(), *mode)
                }
            }
        };
        let (key, hash, record, mode) = waiting;
        let failed = |cause| failed(&key, cause);
        // Without the mutex first: most looks end here.
        let directory = site.stripe(hash.stripe()).map_err(failed)?;
        let mut book = Book::read(directory, &hash).map_err(failed)?;
        if book.waiter_of(attempt).is_some() {
            book.make_way(attempt, mode, &mut Doctor::new(site), None).map_err(failed)?;
            if !book.admits(attempt, mode)? {
                return Ok(Outcome::Blocked { before: book.before(attempt, mode), spare: None });
            }
        }
        let deadline = self.client.deadline();
        let work = |directory: &Directory| {
            let mut book = Book::read(directory, &hash).map_err(failed)?;
            if book.waiter_of(attempt).is_none() {
                let mut state = self.local.state();
                if let Some(held) = state.held.get(&attempt) {
                    return Ok(Moment::Done(Outcome::Granted(held.grant.clone())));
                }
                state.waiting.remove(&attempt);
                return Ok(Moment::Done(Outcome::Gone));
            }
            let graves = Some((directory, &hash, site.mode));
            book.make_way(attempt, mode, &mut Doctor::new(site), graves).map_err(failed)?;
            let spare = self.local.state().waiting.get_mut(&attempt).and_then(|waiting| waiting.spare.take());
            let wish = Wish { attempt, key: &key, hash: &hash, mode, waiting: Some(&record) };
            let answer = self.grant(directory, &book, &wish, spare)?;
            Ok(match answer {
                Moment::Done(Outcome::Blocked { before, spare }) => {
                    if let Some(waiting) = self.local.state().waiting.get_mut(&attempt) {
                        waiting.spare = spare.map(Arc::new);
                    }
                    Moment::Done(Outcome::Blocked { before, spare: None })
                }
                other => other,
            })
        };
        self.client.in_stripe(site, &hash, deadline, work).await
    }

    async fn take_turn(&self, place: &Place) -> Result<Turn> {
        self.client.check()?;
        let site = self.site();
        let hash = KeyHash::new(&place.key);
        let mut topics = vec![Topic::Lock(hash.clone()), Topic::Deaths, Topic::Session(self.local.session())];
        let path = site.python_path(&place.key);
        topics.extend(path.iter().map(|path| Topic::LockFile(path.join("/"))));
        let mut listener = site.hub.listen(topics);
        let mut ahead = Ahead::default();
        loop {
            let before = match self.look(place.attempt).await? {
                Outcome::Granted(grant) => {
                    ahead.keep_for_the_next(&self.local);
                    return Ok(Turn::Granted(grant));
                }
                Outcome::Gone => return Ok(Turn::Gone),
                Outcome::Blocked { before, .. } => before,
            };
            let hearing = match &path {
                Some(path) if before.is_empty() => {
                    ahead.listen_to_file(site, path);
                    Hearing::Poor // a process that only unlocks the file without closing it makes no event
                }
                _ => ahead.listen(site, &hash, &before),
            };
            let pause = match hearing {
                Hearing::Changed => continue,
                Hearing::Poor => self.client.context.entropy.between(LOCK_POLL.0, LOCK_POLL.1),
                Hearing::Good => SAFETY_POLL,
            };
            while self.client.context.spawner.timeout(pause, listener.heard()).await.is_none() {
                self.client.check()?;
                // The whole queue is not read at each poll: where many wait, most have to poll, for the kernel gives a
                // user 128 inotify instances. Who holds the file and keeps no record cannot be asked like this.
                let recorded = !before.is_empty() && self.has_place(&hash, place.attempt);
                if !(recorded && Ahead::stands(site, &hash, &before)) {
                    break;
                }
            }
            self.client.check()?;
        }
    }

    /// Whether the record of a waiter of ours stands.
    fn has_place(&self, hash: &KeyHash, attempt: AttemptId) -> bool {
        let record = self.local.state().waiting.get(&attempt).map(|waiting| waiting.record.clone());
        let stripe = self.site().stripe(hash.stripe());
        record.zip(stripe.ok()).is_some_and(|(record, stripe)| matches!(stripe.stat(&record), Ok(Some(_))))
    }

    /// Ends an attempt, whether it holds or waits.
    pub(crate) async fn take_back(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        // Before the mutex: a request that is under way is refused even if it gets there first.
        self.local.withdraw(attempt);
        let (site, hash) = (self.site(), KeyHash::new(key));
        let work = |directory: &Directory| {
            let (held, waiting) = {
                let mut state = self.local.state();
                (state.held.remove(&attempt), state.waiting.remove(&attempt))
            };
            // A grant that nobody used leaves the mark: nobody has seen how the holder before it ended. The files are
            // let go first: whoever finds the record gone finds them free.
            let records = [held.map(|held| held.record), waiting.map(|waiting| waiting.record)];
            for record in records.iter().flatten() {
                directory.remove(record).map_err(|cause| failed(key, cause))?;
            }
            Ok(Moment::Done(()))
        };
        self.client.in_stripe(site, &hash, self.client.deadline(), work).await?;
        site.say(&Topic::Lock(hash));
        Ok(())
    }

    async fn give_back(&self, grant: &Grant, end: End) -> Result<Released> {
        self.client.check_process()?;
        let failed = |cause| failed(&grant.key, cause);
        let site = self.site();
        let held = {
            let mut state = self.local.state();
            match state.held.get(&grant.attempt) {
                Some(held) if held.grant.key == grant.key => state.held.remove(&grant.attempt),
                _ => None,
            }
        };
        let Some(mut held) = held else { return Ok(Released::WasNotHolder) };
        self.local.withdraw(grant.attempt);
        let directory = site.stripe(held.hash.stripe()).map_err(failed)?;
        // First: whoever is woken by the record's end finds the file free.
        python_lock::let_go(std::mem::take(&mut held.files));
        let removed = match end {
            // Unlinking is atomic, and the name is that of this grant alone.
            End::Clean if held.told.is_empty() => directory.remove(&held.record).map_err(failed),
            End::Clean | End::Unclean => self.remove_and_mark(&held, end.previous()).await,
        };
        match removed {
            Ok(found) => {
                site.say(&Topic::Lock(held.hash));
                Ok(if found { Released::Released } else { Released::WasNotHolder })
            }
            Err(error) => {
                // The record still stands and excludes everybody: to be released again.
                self.local.state().held.insert(grant.attempt, held);
                Err(error)
            }
        }
    }

    /// Under the mutex: who reads the records one after the other sees the record or the mark.
    async fn remove_and_mark(&self, held: &Held, how: Previous) -> Result<bool> {
        let site = self.site();
        let work = |directory: &Directory| {
            let marked = match how {
                Previous::Clean => lock_records::unmark(directory, &held.hash, &held.told),
                how => lock_records::mark(directory, &held.hash, how, held.grant.attempt, site.mode),
            };
            let removed = marked.and_then(|()| directory.remove(&held.record));
            removed.map(Moment::Done).map_err(|cause| failed(&held.grant.key, cause))
        };
        self.client.in_stripe(site, &held.hash, self.client.deadline(), work).await
    }
}

#[async_trait]
impl SessionLocks for FileSessionLocks {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let asked = async {
            self.client.check()?;
            if request.mode == (LockMode::Permit { limit: 0 }) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{}: a limit of 0 permits lets nobody in", request.key),
                ));
            }
            let hash = KeyHash::new(&request.key);
            let work = |directory: &Directory| self.ask(directory, request, &hash);
            self.client.in_stripe(self.site(), &hash, self.client.deadline(), work).await
        };
        asked.await.map_err(|error| error.during("request"))
    }

    async fn turn(&self, place: &Place) -> Result<Turn> {
        self.take_turn(place).await.map_err(|error| error.during("turn"))
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        self.client.check_process().map_err(|error| error.during("withdraw"))?;
        if self.local.is_over() {
            return Ok(()); // whoever ended it clears everything away
        }
        self.take_back(key, attempt).await.map_err(|error| error.during("withdraw"))
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        self.give_back(grant, end).await.map_err(|error| error.during("release"))
    }
}
