//! A driver whose answers a test can bend: `scripted://name` hands everything to the in-process one and changes what
//! comes back. It stands for backends that say what the in-process one never says, such as a ttl per lock.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, BreakRequest, ChangeStream, Clock, Connect, Connecting, Driver, End, Epoch,
    Grant, GroupChange, Groups, Held, HolderRecord, HolderStream, Holders, Instant, LockKey, Locks,
    MemberRecord, Notice, OpenSession, QueueEntry, Registration, Released, Renewal, Session, SessionGroups,
    SessionId, SessionLocks, Turn,
};
use tooz_core::{BackendUrl, Characteristics, Coordinator, Error, FencingToken, GroupId, MemberId, Result};
use tooz_memory::Kit;

const REGISTRATION: Registration = Registration::new("scripted", &["scripted"], characteristics, connect);

/// What shall become of a call of [`SessionLocks::turn`].
pub(crate) enum Wait {
    /// It answers this error.
    Fails(Error),
    /// It never answers.
    Never,
    /// It answers so much later than it could.
    Late(Duration),
}

/// What shall become of a call of [`SessionLocks::request`].
pub(crate) enum Ask {
    /// It is not sent, and answers this error.
    Fails(Error),
    /// It is done, and answers this error.
    Hides(Error),
    /// It is sent so much later.
    Slow(Duration),
}

type Edit = Box<dyn FnOnce(&mut Grant) + Send>;

#[derive(Default)]
struct Plan {
    own_ttl: bool,
    silent: bool,
    grants: VecDeque<Edit>,
    waits: VecDeque<Wait>,
    asks: VecDeque<Ask>,
    beats: VecDeque<Error>,
    withdrawals: VecDeque<Error>,
    groups: BTreeMap<GroupId, ScriptedGroup>,
    reading: Duration,
    log: Vec<&'static str>,
    listed: Held,
}

/// A group of which the script says what is read and what is pushed, whether the one fits the other or not.
struct ScriptedGroup {
    shown: Result<Vec<MemberRecord>>,
    once: Option<Result<Vec<MemberRecord>>>,
    pushed: VecDeque<Option<Result<GroupChange>>>,
    waker: Option<Waker>,
}

/// What one backend of that name is to say.
#[derive(Default)]
pub(crate) struct Script {
    clock: OnceLock<Clock>,
    plan: Mutex<Plan>,
}

static SCRIPTS: Mutex<BTreeMap<String, Arc<Script>>> = Mutex::new(BTreeMap::new());

impl Script {
    fn named(name: &str) -> Arc<Self> {
        Arc::clone(SCRIPTS.lock().unwrap().entry(name.to_owned()).or_default())
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    /// Every grant has a ttl of its own from now on, proved when it was asked for.
    pub(crate) fn own_ttl(&self) {
        self.plan().own_ttl = true;
    }

    /// The backend says nothing by itself any more: only beats tell.
    pub(crate) fn silent(&self) {
        self.plan().silent = true;
    }

    /// Changes the next grant; several changes are for several grants.
    pub(crate) fn next_grant(&self, edit: impl FnOnce(&mut Grant) + Send + 'static) {
        self.plan().grants.push_back(Box::new(edit));
    }

    /// Decides about the next wait for a turn.
    pub(crate) fn next_wait(&self, wait: Wait) {
        self.plan().waits.push_back(wait);
    }

    /// Decides about the next request for a lock.
    pub(crate) fn next_ask(&self, ask: Ask) {
        self.plan().asks.push_back(ask);
    }

    /// The error that the next beat is answered with.
    pub(crate) fn next_beat(&self, error: Error) {
        self.plan().beats.push_back(error);
    }

    /// The error that the next withdrawal is answered with; it is not done.
    pub(crate) fn next_withdrawal(&self, error: Error) {
        self.plan().withdrawals.push_back(error);
    }

    /// The clock of whoever connected first.
    pub(crate) fn clock(&self) -> &Clock {
        self.clock.get().expect("nobody is connected")
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock().now()
    }

    /// What is read of a group from now on. With its first call the group is a scripted one.
    pub(crate) fn show(&self, group: &str, shown: Result<Vec<MemberRecord>>) {
        match self.plan().groups.entry(GroupId::new(group).unwrap()) {
            Entry::Occupied(mut known) => known.get_mut().shown = shown,
            Entry::Vacant(new) => {
                new.insert(ScriptedGroup { shown, once: None, pushed: VecDeque::new(), waker: None });
            }
        }
    }

    /// What the watches of a scripted group deliver next, to whoever looks first; `None` ends one.
    pub(crate) fn push(&self, group: &str, change: Option<Result<GroupChange>>) {
        let waker = {
            let mut plan = self.plan();
            let group = plan.groups.get_mut(&GroupId::new(group).unwrap()).expect("a scripted group");
            group.pushed.push_back(change);
            group.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What the next reading of a scripted group answers, and nobody else.
    pub(crate) fn read_once(&self, group: &str, shown: Result<Vec<MemberRecord>>) {
        self.plan().groups.get_mut(&GroupId::new(group).unwrap()).expect("a scripted group").once =
            Some(shown);
    }

    /// How long reading a scripted group takes. What is shown is what stands there at the end.
    pub(crate) fn reading(&self, time: Duration) {
        self.plan().reading = time;
    }

    /// What was called so far, in the order of beginnings and ends.
    pub(crate) fn log(&self) -> Vec<&'static str> {
        self.plan().log.clone()
    }

    /// What the last beat listed.
    pub(crate) fn listed(&self) -> Held {
        self.plan().listed.clone()
    }

    fn shown(&self, group: &GroupId) -> Option<Result<Vec<MemberRecord>>> {
        self.plan().groups.get(group).map(|group| group.shown.clone())
    }

    fn note(&self, what: &'static str) {
        self.plan().log.push(what);
    }

    fn bend(&self, mut grant: Grant, proved_at: Instant) -> Grant {
        let edit = {
            let mut plan = self.plan();
            grant.proved_at = plan.own_ttl.then_some(proved_at);
            plan.grants.pop_front()
        };
        if let Some(edit) = edit {
            edit(&mut grant);
        }
        grant
    }
}

/// The script, the kit behind it, and a coordinator of each of these members.
pub(crate) async fn scripted<const N: usize>(
    name: &str,
    options: &str,
    members: [&str; N],
) -> (Arc<Script>, Kit, [Coordinator; N]) {
    let kit = Kit::of(&inner(name)).unwrap();
    let mut coordinators = Vec::new();
    for member in members {
        let builder = crate::common::builder(&format!("scripted://{name}?{options}"), member);
        coordinators.push(builder.driver(REGISTRATION).connect().await.unwrap());
    }
    (Script::named(name), kit, coordinators.try_into().unwrap())
}

fn inner(name: &str) -> String {
    format!("memory://scripted-{name}")
}

fn memory(url: &BackendUrl) -> Result<(String, BackendUrl)> {
    let name = url.hosts().first().map(|host| host.name.clone()).unwrap_or_default();
    let mut memory = BackendUrl::parse(&inner(&name))?;
    for (option, value) in url.options() {
        memory.set_option(option, value.clone());
    }
    Ok((name, memory))
}

fn characteristics(url: &BackendUrl) -> Characteristics {
    memory(url).map(|(_, url)| tooz_memory::REGISTRATION.characteristics(&url)).unwrap()
}

fn connect(mut request: Connect) -> Connecting {
    Box::pin(async move {
        let (name, url) = memory(&request.url)?;
        request.url = url;
        let script = Script::named(&name);
        let _ = script.clock.set(request.context.clock.clone());
        Ok(Arc::new(Bent(tooz_memory::connect(request).await?, script)) as Arc<dyn Driver>)
    })
}

/// The driver and its sessions: what is inside, and the script.
struct Bent<T>(T, Arc<Script>);

impl<T: std::fmt::Debug> std::fmt::Debug for Bent<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bent").field(&self.0).finish()
    }
}

#[async_trait]
impl Driver for Bent<Arc<dyn Driver>> {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics()
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(Bent(self.0.open_session(request).await?, Arc::clone(&self.1))))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.1.note("driver closed");
        self.0.close().await
    }
}

#[async_trait]
impl Groups for Bent<Arc<dyn Driver>> {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.0.groups().create(group).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.0.groups().delete(group).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        self.0.groups().list().await
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        if self.1.shown(group).is_none() {
            return self.0.groups().members(group).await;
        }
        self.1.note("read");
        let reading = self.1.plan().reading;
        tokio::time::sleep(reading).await;
        let once = self.1.plan().groups.get_mut(group).and_then(|group| group.once.take());
        once.or_else(|| self.1.shown(group)).unwrap()
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        self.0.groups().member(group, member).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        match self.1.shown(group) {
            None => self.0.groups().watch(group).await,
            Some(shown) => {
                self.1.note("watch");
                let view = GroupChange::View(shown?);
                Ok(Box::pin(Pushed { script: Arc::clone(&self.1), group: group.clone(), view: Some(view) }))
            }
        }
    }
}

/// A watch of a scripted group: a view, then what is pushed.
struct Pushed {
    script: Arc<Script>,
    group: GroupId,
    view: Option<GroupChange>,
}

impl Stream for Pushed {
    type Item = Result<GroupChange>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(view) = self.view.take() {
            return Poll::Ready(Some(Ok(view)));
        }
        let mut plan = self.script.plan();
        let group = plan.groups.get_mut(&self.group).unwrap();
        if let Some(item) = group.pushed.pop_front() {
            return Poll::Ready(item);
        }
        group.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[async_trait]
impl Locks for Bent<Arc<dyn Driver>> {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        self.0.locks().holders(key).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        self.0.locks().break_lock(request).await
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        self.0.locks().raise_tokens(least).await
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        Ok(Box::pin(Twice(self.0.locks().watch(key).await?, None)))
    }
}

/// A driver that polls may show the same again and again: this one shows everything twice.
struct Twice(HolderStream, Option<Result<Holders>>);

impl Stream for Twice {
    type Item = Result<Holders>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(again) = self.1.take() {
            return Poll::Ready(Some(again));
        }
        let next = self.0.as_mut().poll_next(cx);
        if let Poll::Ready(Some(shown)) = &next {
            self.1 = Some(shown.clone());
        }
        next
    }
}

#[async_trait]
impl Session for Bent<Arc<dyn Session>> {
    fn id(&self) -> SessionId {
        self.0.id()
    }

    fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    fn ttl(&self) -> Option<Duration> {
        self.0.ttl()
    }

    fn opened_at(&self) -> Instant {
        self.0.opened_at()
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let error = {
            let mut plan = self.1.plan();
            plan.listed = held.clone();
            plan.beats.pop_front()
        };
        if let Some(error) = error {
            return Err(error);
        }
        self.0.renew(held).await
    }

    async fn notice(&self) -> Notice {
        let notice = self.0.notice().await;
        if self.1.plan().silent { std::future::pending().await } else { notice }
    }

    fn groups(&self) -> &dyn SessionGroups {
        self.0.groups()
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        self.1.note(if end == End::Clean { "close session" } else { "close lost session" });
        let answer = self.0.close(end).await;
        self.1.note("session closed");
        answer
    }
}

#[async_trait]
impl SessionLocks for Bent<Arc<dyn Session>> {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        let (sent, ask) = (self.1.now(), self.1.plan().asks.pop_front());
        self.1.note("ask");
        match &ask {
            Some(Ask::Fails(error)) => return Err(error.clone()),
            Some(Ask::Slow(time)) => tokio::time::sleep(*time).await,
            _ => {}
        }
        let answer = self.0.locks().request(request).await?;
        self.1.note("asked");
        if let Some(Ask::Hides(error)) = ask {
            return Err(error);
        }
        Ok(match answer {
            Acquired::Granted(grant) => Acquired::Granted(self.1.bend(grant, sent)),
            other => other,
        })
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        let wait = self.1.plan().waits.pop_front();
        match wait {
            Some(Wait::Fails(error)) => return Err(error),
            Some(Wait::Never) => std::future::pending().await,
            _ => {}
        }
        let turn = self.0.locks().turn(entry).await?;
        let granted_at = self.1.now();
        if let Some(Wait::Late(late)) = wait {
            tokio::time::sleep(late).await;
        }
        Ok(match turn {
            Turn::Granted(grant) => Turn::Granted(self.1.bend(grant, granted_at)),
            other => other,
        })
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        self.1.note("withdraw");
        let error = self.1.plan().withdrawals.pop_front();
        if let Some(error) = error {
            return Err(error);
        }
        let answer = self.0.locks().withdraw(key, attempt).await;
        self.1.note("withdrawn");
        answer
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        self.1.note(if end == End::Clean { "release" } else { "release uncleanly" });
        let answer = self.0.locks().release(grant, end).await;
        self.1.note("released");
        answer
    }
}
