//! The statements beside the state machine that every driver can share: after every step of random histories both say the same.
//!
//! Only how a holder learns of the end before it differs. The state machine forgets the mark with the next grant, and SQLite
//! with the next clean release (L12 lets both), so that rule stands here a second time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::OpenFlags;
use tooz_core::driver::support::lock_state::{Effect, LockState, Waiter};
use tooz_core::driver::support::rule::Verdict;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, BreakRequest, Driver, End, Grant, LockKey, LockMode, Meant, Previous,
    Released, Session, SessionId,
};
use tooz_core::{ErrorKind, FencingToken};
use tooz_servers::histories::{Mode, Step, compare};

use crate::common::{connect, id, key, session, url};

/// How many histories a normal run compares: 20 s on two busy cores.
const HISTORIES: u64 = 700;
const SESSIONS: usize = 4;

#[tokio::test]
async fn the_statements_are_the_state_machine() {
    // In memory, where there is one: thousands of commits are to cost no disk.
    let shm = Path::new("/dev/shm");
    let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let driver = connect(&url(directory.path(), "force_filesystem=true")).await;
    let database = directory.path().join("tooz.db");
    let mut stage = Stage {
        sessions: Vec::new(),
        database: rusqlite::Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap(),
        driver,
        attempts: 0,
        locks: 0,
    };
    for place in 0..SESSIONS {
        let session = stage.opened(place).await;
        stage.sessions.push(session);
    }
    compare(HISTORIES, false, async |steps| stage.run(steps).await).await;
}

struct Stage {
    sessions: Vec<Arc<dyn Session>>,
    /// Past the driver.
    database: rusqlite::Connection,
    driver: Arc<dyn Driver>,
    attempts: u128,
    locks: u64,
}

/// A lock in both forms.
struct Lock {
    name: String,
    key: LockKey,
    model: LockState<()>,
    tokens: u64,
    mark: Previous,
    /// What each holder was told of the end before it, unless another end came since.
    told: BTreeMap<AttemptId, Previous>,
    /// The database's tokens in the order of the model's holders.
    tokens_there: Vec<FencingToken>,
}

/// The holders in the order of their tokens, the queue, and the mark.
type Shown = (Vec<(AttemptId, LockMode, Previous)>, Vec<AttemptId>, Previous);

fn mode(mode: Mode) -> LockMode {
    match mode {
        Mode::Exclusive => LockMode::Exclusive,
        Mode::Shared => LockMode::Shared,
        Mode::Permit(limit) => LockMode::Permit { limit: limit.try_into().unwrap() },
    }
}

fn mode_of(number: i64) -> LockMode {
    match number {
        0 => LockMode::Exclusive,
        -1 => LockMode::Shared,
        limit => LockMode::Permit { limit: u32::try_from(limit).unwrap().try_into().unwrap() },
    }
}

fn previous_of(number: i64) -> Previous {
    [Previous::Clean, Previous::Expired, Previous::Broken][usize::try_from(number).unwrap()]
}

fn end(clean: bool) -> End {
    if clean { End::Clean } else { End::Unclean }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, there: &T, model: &T) -> Result<(), String> {
    if there == model {
        Ok(())
    } else {
        Err(format!("{what}: {there:?} in the database, {model:?} in the model"))
    }
}

fn next(tokens: &mut u64) -> FencingToken {
    *tokens += 1;
    FencingToken::new(*tokens).unwrap()
}

impl Lock {
    /// A transition, and handing on. `unseen`: what ends was never seen by its owner.
    fn change(&mut self, unseen: bool, change: impl FnOnce(&mut LockState<()>) -> Vec<Effect<()>>) -> usize {
        let changed = change(&mut self.model);
        let ended = changed.iter().filter(|effect| matches!(effect, Effect::Freed(..))).count();
        let tokens = &mut self.tokens;
        let granted = self.model.promote(|_| true, |_| next(tokens));
        for effect in changed.iter().chain(&granted) {
            match effect {
                Effect::Granted(attempt) => drop(self.told.insert(*attempt, self.mark)),
                Effect::Freed(holder, how) => {
                    let told = self.told.remove(&holder.attempt).unwrap();
                    match how {
                        _ if unseen => {}
                        Previous::Clean if told != Previous::Clean => self.mark = Previous::Clean,
                        Previous::Clean => {}
                        _ => {
                            if self.mark != Previous::Broken {
                                self.mark = *how;
                            }
                            self.told.values_mut().for_each(|told| *told = Previous::Clean);
                        }
                    }
                }
                Effect::Unqueued(_) => {}
            }
        }
        ended
    }

    /// The attempts that hold, then those that wait.
    fn attempts(&self) -> Vec<(SessionId, AttemptId, LockMode)> {
        let holders = self.model.holders.iter().map(|holder| (holder.session, holder.attempt, holder.mode));
        let queue = self.model.queue.iter().map(|waiter| (waiter.session, waiter.attempt, waiter.mode));
        holders.chain(queue).collect()
    }

    fn shown(&self) -> Shown {
        let holders = self.model.holders.iter();
        let holders = holders.map(|holder| (holder.attempt, holder.mode, self.told[&holder.attempt]));
        (holders.collect(), self.model.queue.iter().map(|waiter| waiter.attempt).collect(), self.mark)
    }
}

impl Stage {
    async fn opened(&self, place: usize) -> Arc<dyn Session> {
        session(&self.driver, &format!("m{place}")).await
    }

    fn session(&self, id: SessionId) -> &Arc<dyn Session> {
        self.sessions.iter().find(|session| session.id() == id).expect("who lives has a place")
    }

    /// What stands in the database, read past the driver.
    fn read(&self, lock: &mut Lock) -> Shown {
        let attempt = |bytes: [u8; 16]| AttemptId(u128::from_be_bytes(bytes));
        let name = [lock.name.as_bytes()];
        let rows = |sql: &str, read: &mut dyn FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>| {
            let mut statement = self.database.prepare_cached(sql).unwrap();
            let mut rows = statement.query(name).unwrap();
            while let Some(row) = rows.next().unwrap() {
                read(row).unwrap();
            }
        };
        let (mut holders, mut queue, mut mark) = (Vec::new(), Vec::new(), Previous::Clean);
        lock.tokens_there.clear();
        rows(
            "SELECT attempt, mode, previous, token FROM holders WHERE namespace = 'tooz' AND kind = 0 AND name = ?1 \
             ORDER BY token",
            &mut |row| {
                holders.push((attempt(row.get(0)?), mode_of(row.get(1)?), previous_of(row.get(2)?)));
                lock.tokens_there.extend(FencingToken::new(row.get::<_, i64>(3)?.unsigned_abs()));
                Ok(())
            },
        );
        rows(
            "SELECT attempt FROM waiters WHERE namespace = 'tooz' AND kind = 0 AND name = ?1 ORDER BY place",
            &mut |row| {
                queue.push(attempt(row.get(0)?));
                Ok(())
            },
        );
        rows("SELECT how FROM marks WHERE namespace = 'tooz' AND kind = 0 AND name = ?1", &mut |row| {
            mark = previous_of(row.get(0)?);
            Ok(())
        });
        (holders, queue, mark)
    }

    async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        self.locks += 1;
        let name = format!("x{}", self.locks);
        let mut lock = Lock {
            key: key(&name),
            name,
            model: LockState::default(),
            tokens: 0,
            mark: Previous::Clean,
            told: BTreeMap::new(),
            tokens_there: Vec::new(),
        };
        for (at, step) in steps.iter().enumerate() {
            let done = self.step(&mut lock, *step).await;
            let done = done.and_then(|()| same("the lock", &self.read(&mut lock), &lock.shown()));
            done.map_err(|why| format!("{step:?} at {at}: {why}"))?;
        }
        // Nothing is left behind, and all waiters have their turn in order.
        while !lock.attempts().is_empty() {
            self.step(&mut lock, Step::Withdraw(0)).await?;
            same("the lock at the end", &self.read(&mut lock), &lock.shown())?;
        }
        Ok(())
    }

    async fn step(&mut self, lock: &mut Lock, step: Step) -> Result<(), String> {
        match step {
            Step::Request { session, mode: wanted, wait } => {
                self.attempts += 1;
                let session = self.sessions[session % SESSIONS].id();
                self.ask(lock, session, AttemptId(self.attempts), mode(wanted), wait).await?;
            }
            Step::Again(number) => {
                let attempts = lock.attempts();
                if let Some((session, attempt, mode)) = attempts.get(number % attempts.len().max(1)) {
                    self.ask(lock, *session, *attempt, *mode, true).await?;
                }
            }
            Step::Release { holder, clean } => {
                let Some(index) = holder.checked_rem(lock.model.holders.len()) else { return Ok(()) };
                let held = lock.model.holders[index].clone();
                let grant =
                    Grant::new(held.attempt, lock.key.clone(), held.mode, held.token, Previous::Clean);
                let released = self.session(held.session).locks().release(&grant, end(clean)).await.unwrap();
                let how = end(clean).previous();
                let ended = lock.change(false, |model| model.release(held.session, held.attempt, how));
                same("released", &usize::from(released == Released::Released), &ended)?;
            }
            Step::Withdraw(number) => {
                let attempts = lock.attempts();
                if let Some((session, attempt, _)) = attempts.get(number % attempts.len().max(1)) {
                    self.session(*session).locks().withdraw(&lock.key, *attempt).await.unwrap();
                    lock.change(true, |model| model.withdraw(*session, *attempt));
                }
            }
            Step::Break(holder) => {
                let mut request = BreakRequest::new(lock.key.clone(), id("operator"), "stuck");
                let mut only = None;
                if let Some(number) = holder {
                    let Some(index) = number.checked_rem(lock.tokens_there.len()) else { return Ok(()) };
                    request = request.only(Meant::Token(lock.tokens_there[index]));
                    only = Some(lock.model.holders[index].token);
                }
                let broken = self.driver.locks().break_lock(&request).await.unwrap();
                let ended = lock.change(false, |model| model.break_grants(only));
                same("how many were broken", &broken.len(), &ended)?;
            }
            Step::Close { session, clean } => {
                let place = session % SESSIONS;
                self.sessions[place].close(end(clean)).await.unwrap();
                let session = self.sessions[place].id();
                lock.change(false, |model| model.session_ended(session, end(clean).previous()));
                self.sessions[place] = self.opened(place).await;
            }
            Step::Die(session) => {
                let place = session % SESSIONS;
                let next = self.opened(place).await;
                let session = std::mem::replace(&mut self.sessions[place], next).id();
                // The thread clears a dead session away.
                tooz_servers::until("the session is gone", Duration::from_secs(20), async || {
                    let sql = "SELECT count(*) FROM sessions WHERE id = ?1";
                    let id = session.0.to_be_bytes();
                    self.database.query_row(sql, [&id[..]], |row| row.get::<_, i64>(0)).unwrap() == 0
                })
                .await;
                lock.change(false, |model| model.session_ended(session, Previous::Expired));
            }
            Step::List => {
                let listed = self.driver.locks().holders(&lock.key).await.unwrap();
                let waiters = u64::try_from(lock.model.queue.len()).unwrap();
                let model = (lock.model.holders.len(), Some(waiters));
                same("the list", &(listed.holders.len(), listed.waiters), &model)?;
            }
            // No other program writes here.
            Step::ForeignComes | Step::ForeignGoes => {}
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        lock: &mut Lock,
        session: SessionId,
        attempt: AttemptId,
        mode: LockMode,
        wait: bool,
    ) -> Result<(), String> {
        let request = Acquire::new(attempt, lock.key.clone(), mode).wait(wait);
        let answer = self.session(session).locks().request(&request).await;
        let known = lock.model.holder(attempt).is_some();
        let tokens = &mut lock.tokens;
        let waiter = Waiter { attempt, session, mode, data: () };
        let verdict = lock.model.request(waiter, wait, |_| next(tokens));
        let expected = match verdict {
            Verdict::Free => {
                if !known {
                    lock.told.insert(attempt, lock.mark);
                }
                format!("granted, previous {:?}", lock.told[&attempt])
            }
            Verdict::OtherLimit { .. } => format!("{:?}", ErrorKind::Invalid),
            _ if lock.model.waiter(attempt).is_some() => "queued".into(),
            _ => "held".into(),
        };
        let answer = match answer {
            Ok(Acquired::Granted(grant)) => format!("granted, previous {:?}", grant.previous),
            Ok(Acquired::Queued(_)) => "queued".into(),
            Ok(_) => "held".into(),
            Err(error) => format!("{:?}", error.kind()),
        };
        same("the answer", &answer, &expected)
    }
}
