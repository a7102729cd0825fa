//! The scripts beside the state machine that every driver can share: after every step of random histories both say the same.
//!
//! The scripts find out what happened by looking: whose session's key is gone, and what Python's key holds. So the model is told
//! of it when a script looks, and not before. Nothing waits for time: a session dies by the deletion of its key.

use std::collections::BTreeSet;
use std::sync::Arc;

use tooz_core::driver::support::lock_state::{Effect, LockState, Waiter};
use tooz_core::driver::support::rule::{Foreign, Verdict};
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, BreakRequest, Clock, Connect, Context, Driver, End, Entropy, Grant,
    InstanceId, LockKey, LockMode, Meant, OpenSession, Previous, Released, Session, SessionId, Spawner,
};
use tooz_core::{BackendUrl, ErrorKind, FencingToken, LockName, MemberId, Runtime};
use tooz_servers::cases;
use tooz_servers::histories::{Mode, Step, compare};
use tooz_servers::lab::Case;
use tooz_servers::redis::Redis;

pub(crate) const CASES: &[(&str, Case)] = cases![the_scripts_are_the_state_machine];

/// How many histories a normal run compares: 20 s on two busy cores.
const HISTORIES: u64 = 1_000;
const SESSIONS: usize = 4;

async fn the_scripts_are_the_state_machine() {
    // Nothing is restarted here, so nothing need be written to disk.
    let redis = Redis::start_with(&["--appendonly", "no"]).unwrap();
    let url = format!("redis://{}?ttl=1h", redis.address());
    let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Current).unwrap());
    let driver =
        tooz_redis::connect(Connect::new(BackendUrl::parse(&url).unwrap(), context).unwrap()).await.unwrap();
    let plain = ::redis::Client::open(format!("redis://{}", redis.address())).unwrap();
    let mut stage = Stage {
        plain: plain.get_connection().unwrap(),
        driver: Arc::clone(&driver),
        sessions: Vec::new(),
        living: BTreeSet::new(),
        attempts: 0,
        locks: 0,
    };
    for _ in 0..SESSIONS {
        stage.open(stage.sessions.len()).await;
    }
    compare(HISTORIES, true, async |steps| stage.run(steps).await).await;
    driver.close().await.unwrap();
}

struct Stage {
    /// Past the driver.
    plain: ::redis::Connection,
    driver: Arc<dyn Driver>,
    sessions: Vec<Arc<dyn Session>>,
    living: BTreeSet<SessionId>,
    attempts: u128,
    locks: u64,
}

/// A lock in both forms.
struct Lock {
    key: LockKey,
    /// Python's key.
    python: String,
    base: String,
    model: LockState<()>,
    tokens: u64,
    /// Python's key is not what the scripts wrote there, and no script has looked since.
    overwritten: bool,
    /// Python's key holds a word of Python's.
    foreign: bool,
    /// The server's tokens in the order of the model's holders.
    server_tokens: Vec<FencingToken>,
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

fn end(clean: bool) -> End {
    if clean { End::Clean } else { End::Unclean }
}

fn previous(letter: Option<&str>) -> Previous {
    match letter {
        Some("E") => Previous::Expired,
        Some("B") => Previous::Broken,
        Some("U") => Previous::Unknown,
        _ => Previous::Clean,
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, server: &T, model: &T) -> Result<(), String> {
    if server == model {
        Ok(())
    } else {
        Err(format!("{what}: {server:?} on the server, {model:?} in the model"))
    }
}

impl Lock {
    /// What every script begins with.
    fn look(&mut self, living: &BTreeSet<SessionId>) {
        self.model.set_foreign(if self.foreign { Foreign::Exclusive } else { Foreign::None });
        if std::mem::take(&mut self.overwritten) {
            self.model.expire(|_| false);
        }
        self.model.expire(|holder| living.contains(&holder.session));
    }

    fn promote(&mut self, living: &BTreeSet<SessionId>) {
        let tokens = &mut self.tokens;
        self.model.promote(|waiter| living.contains(&waiter.session), |_| next(tokens));
    }

    /// The attempts that hold, then those that wait, of living sessions.
    fn attempts(&self, living: &BTreeSet<SessionId>) -> Vec<(SessionId, AttemptId, LockMode)> {
        let holders = self.model.holders.iter().map(|holder| (holder.session, holder.attempt, holder.mode));
        let queue = self.model.queue.iter().map(|waiter| (waiter.session, waiter.attempt, waiter.mode));
        holders.chain(queue).filter(|(session, ..)| living.contains(session)).collect()
    }

    fn shown(&self) -> Shown {
        let holders = self.model.holders.iter();
        let holders = holders.map(|holder| (holder.attempt, holder.mode, holder.previous)).collect();
        (holders, self.model.queue.iter().map(|waiter| waiter.attempt).collect(), self.model.mark)
    }
}

fn next(tokens: &mut u64) -> FencingToken {
    *tokens += 1;
    FencingToken::new(*tokens).unwrap()
}

impl Stage {
    /// Opens a session at this place.
    async fn open(&mut self, place: usize) {
        let member = MemberId::new(format!("m{place}")).unwrap();
        let session = self.driver.open_session(&OpenSession::new(member, InstanceId(1))).await.unwrap();
        self.living.insert(session.id());
        if place < self.sessions.len() {
            self.sessions[place] = session;
        } else {
            self.sessions.push(session);
        }
    }

    fn session(&self, id: SessionId) -> Arc<dyn Session> {
        let session = self.sessions.iter().find(|session| session.id() == id);
        Arc::clone(session.expect("who lives has a place"))
    }

    fn command(&mut self, words: &[&str]) {
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.exec(&mut self.plain).unwrap();
    }

    /// What stands on the server, read past the driver.
    fn read(&mut self, lock: &mut Lock) -> Shown {
        let (h, q) = (format!("{}h", lock.base), format!("{}q", lock.base));
        let (fields, queue, word): (Vec<(String, String)>, Vec<String>, Option<String>) = ::redis::pipe()
            .cmd("HGETALL")
            .arg(h)
            .cmd("ZRANGE")
            .arg(q)
            .arg(0)
            .arg(-1)
            .cmd("GET")
            .arg(&lock.python)
            .query(&mut self.plain)
            .unwrap();
        let mut holders: Vec<_> = fields
            .iter()
            .filter_map(|(field, text)| {
                let attempt = AttemptId::parse(field)?;
                let words: Vec<_> = text.split(' ').collect();
                let mode = match words[3] {
                    "s" => LockMode::Shared,
                    "p" => LockMode::Permit { limit: words[4].parse().unwrap() },
                    _ => LockMode::Exclusive,
                };
                Some((words[1].parse::<u64>().unwrap(), (attempt, mode, previous(Some(words[6])))))
            })
            .collect();
        holders.sort_by_key(|(token, _)| *token);
        lock.server_tokens = holders.iter().map(|(token, _)| FencingToken::new(*token).unwrap()).collect();
        assert_eq!(
            word.is_some(),
            lock.foreign || (!holders.is_empty() && !lock.overwritten),
            "Python's key"
        );
        let mark = fields.iter().find(|(field, _)| field == "p").map(|(_, letter)| letter.as_str());
        let queue = queue.iter().map(|attempt| AttemptId::parse(attempt).unwrap()).collect();
        (holders.into_iter().map(|(_, holder)| holder).collect(), queue, previous(mark))
    }

    async fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        self.locks += 1;
        let name = format!("x{}", self.locks);
        let mut lock = Lock {
            key: LockKey::Named(LockName::new(&name).unwrap()),
            python: format!("_tooz_{name}_lock"),
            base: format!("_tooz_rs:lock:{name}:"),
            model: LockState::default(),
            tokens: 0,
            overwritten: false,
            foreign: false,
            server_tokens: Vec::new(),
        };
        let outcome = self.run_on(&mut lock, steps).await;
        if outcome.is_err() {
            // The next history finds nothing of this one.
            for place in 0..SESSIONS {
                self.die(place).await;
            }
        }
        outcome
    }

    async fn run_on(&mut self, lock: &mut Lock, steps: &[Step]) -> Result<(), String> {
        for (at, step) in steps.iter().enumerate() {
            let done = self.step(lock, *step).await.and_then(|()| {
                let server = self.read(lock);
                same("the lock", &server, &lock.shown())
            });
            done.map_err(|why| format!("{step:?} at {at}: {why}"))?;
        }
        // Nothing is left behind, and all waiters have their turn in order.
        while !lock.model.is_idle() {
            let step = match lock.attempts(&self.living).first() {
                _ if lock.foreign => Step::ForeignGoes,
                Some(_) => Step::Withdraw(0),
                None if lock.model.holders.is_empty() && lock.model.queue.is_empty() => {
                    self.step(lock, Step::Request { session: 0, mode: Mode::Exclusive, wait: true }).await?;
                    Step::Release { holder: 0, clean: true }
                }
                None => Step::List,
            };
            self.step(lock, step).await?;
            let server = self.read(lock);
            same("the lock at the end", &server, &lock.shown())?;
        }
        Ok(())
    }

    async fn die(&mut self, place: usize) {
        let id = self.sessions[place].id();
        self.command(&["DEL", &format!("_tooz_rs:s:{id}")]);
        self.living.remove(&id);
        self.open(place).await;
    }

    async fn step(&mut self, lock: &mut Lock, step: Step) -> Result<(), String> {
        match step {
            Step::Request { session, mode: wanted, wait } => {
                self.attempts += 1;
                let session = self.sessions[session % SESSIONS].id();
                self.ask(lock, session, AttemptId(self.attempts), mode(wanted), wait).await?;
            }
            Step::Again(number) => {
                let attempts = lock.attempts(&self.living);
                if let Some((session, attempt, mode)) = attempts.get(number % attempts.len().max(1)) {
                    self.ask(lock, *session, *attempt, *mode, true).await?;
                }
            }
            Step::Release { holder, clean } => {
                let mut attempts = lock.attempts(&self.living);
                attempts.retain(|(_, attempt, _)| lock.model.holder(*attempt).is_some());
                let Some((session, attempt, mode)) = attempts.get(holder % attempts.len().max(1)) else {
                    return Ok(());
                };
                let grant = Grant::new(*attempt, lock.key.clone(), *mode, next(&mut 0), Previous::Clean);
                let released = self.session(*session).locks().release(&grant, end(clean)).await.unwrap();
                lock.look(&self.living);
                let held = !lock.model.release(*session, *attempt, end(clean).previous()).is_empty();
                lock.promote(&self.living);
                same("released", &(released == Released::Released), &held)?;
            }
            Step::Withdraw(number) => {
                let attempts = lock.attempts(&self.living);
                if let Some((session, attempt, _)) = attempts.get(number % attempts.len().max(1)) {
                    self.session(*session).locks().withdraw(&lock.key, *attempt).await.unwrap();
                    lock.look(&self.living);
                    lock.model.withdraw(*session, *attempt);
                    lock.promote(&self.living);
                }
            }
            Step::Break(holder) => {
                let by = MemberId::new("operator").unwrap();
                let mut request = BreakRequest::new(lock.key.clone(), by, "stuck");
                let mut only = None;
                if let Some(number) = holder {
                    let Some(index) = number.checked_rem(lock.server_tokens.len()) else { return Ok(()) };
                    request = request.only(Meant::Token(lock.server_tokens[index]));
                    only = Some(lock.model.holders[index].token);
                }
                let broken = self.driver.locks().break_lock(&request).await.unwrap();
                lock.look(&self.living);
                let foreign = only.is_none() && std::mem::take(&mut lock.foreign);
                let ended = lock.model.break_grants(only);
                lock.promote(&self.living);
                same("how many were broken", &broken.len(), &(ended.len() + usize::from(foreign)))?;
            }
            Step::Close { session, clean } => {
                let place = session % SESSIONS;
                let session = Arc::clone(&self.sessions[place]);
                let concerned = lock.attempts(&self.living).iter().any(|(id, ..)| *id == session.id());
                session.close(end(clean)).await.unwrap();
                if concerned {
                    lock.look(&self.living);
                    let effects = lock.model.session_ended(session.id(), end(clean).previous());
                    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Granted(_))));
                    lock.promote(&self.living);
                }
                self.living.remove(&session.id());
                self.open(place).await;
            }
            Step::Die(session) => self.die(session % SESSIONS).await,
            Step::List => {
                let listed = self.driver.locks().holders(&lock.key).await.unwrap();
                lock.look(&self.living);
                lock.promote(&self.living);
                let holders = lock.model.holders.len() + usize::from(lock.foreign);
                let waiters = u64::try_from(lock.model.queue.len()).unwrap();
                same("the list", &(listed.holders.len(), listed.waiters), &(holders, Some(waiters)))?;
            }
            Step::ForeignComes => {
                let python = lock.python.clone();
                self.command(&["SET", &python, "a word of Python's"]);
                lock.foreign = true;
                lock.overwritten = true;
            }
            Step::ForeignGoes => {
                if std::mem::take(&mut lock.foreign) {
                    let python = lock.python.clone();
                    self.command(&["DEL", &python]);
                }
            }
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
        lock.look(&self.living);
        let waiter = || Waiter { attempt, session, mode, data: () };
        // Dead waiters of another limit refuse no request. The others are removed only where the lock is handed on, and a
        // holder gets its answer before that.
        if let LockMode::Permit { limit } = mode
            && lock.model.holder(attempt).is_none()
            && lock.model.waiter(attempt).is_none()
        {
            lock.model.queue.retain(|waiter| match waiter.mode {
                LockMode::Permit { limit: other } if other != limit => self.living.contains(&waiter.session),
                _ => true,
            });
        }
        let mut verdict = lock.model.clone().request(waiter(), wait, |_| next(&mut 0));
        if lock.model.holder(attempt).is_none() && !matches!(verdict, Verdict::OtherLimit { .. }) {
            lock.promote(&self.living);
            let tokens = &mut lock.tokens;
            verdict = lock.model.request(waiter(), wait, |_| next(tokens));
        }
        let expected = match verdict {
            Verdict::Free => {
                format!("granted, previous {:?}", lock.model.holder(attempt).map(|holder| holder.previous))
            }
            Verdict::OtherLimit { .. } => format!("{:?}", ErrorKind::Invalid),
            _ if lock.model.waiter(attempt).is_some() => "queued".into(),
            _ => "held".into(),
        };
        let answer = match answer {
            Ok(Acquired::Granted(grant)) => format!("granted, previous {:?}", Some(grant.previous)),
            Ok(Acquired::Queued(_)) => "queued".into(),
            Ok(_) => "held".into(),
            Err(error) => format!("{:?}", error.kind()),
        };
        same("the answer", &answer, &expected)
    }
}
