//! A coordinator's session on the server: an item that expires, written again by every beat.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, Instant, LockKey, Notice, OpenSession, Renewal, Session, SessionGroups,
    SessionId, SessionLocks, Task, earlier_layout_in_use,
};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, Result};

use crate::client::{Client, Reply, Tries};
use crate::connection::command::{Answers, Batch, Call, Item, Look, Store, Stored};
use crate::connection::link::Link;
use crate::error;
use crate::lock::epoch::Origin;
use crate::lock::give_back::{Ending, give_back};
use crate::lock::renewal::{Renewals, parse_broken};
use crate::lock::take::drop_gate;
use crate::session_state::{Lease, SessionState, Version};
use crate::view::{Own, read_members};

/// The first session on a server that was just started waits until it is so old: the base of tokens is the server's time in
/// whole seconds, and no token of before the start may come again.
const LEAST_AGE: Duration = Duration::from_secs(1);
/// A beat whose locks others change under so many looks in a row has failed.
const ROUNDS: usize = 8;
/// How often to look for a stamp that was evicted.
const EVICTED: Duration = Duration::from_millis(100);
/// How often a beat is sent again to a server whose clock stands behind, and the pause between.
const BEHIND: (usize, Duration) = (2, Duration::from_millis(1_100));

/// For how many seconds it is kept that sessions live. A longer time is a date to memcached.
fn twice(expires: u32) -> u32 {
    expires.saturating_mul(2).min(30 * 24 * 3_600)
}

/// One session; dropping it leaves it to expire.
#[derive(Debug)]
pub(crate) struct MemcachedSession {
    pub(crate) state: Arc<SessionState>,
    opened_at: Instant,
}

/// Which data the namespace holds, in the layout of this version.
async fn origin(client: &Client, tries: &mut Tries<'_>) -> Result<Origin> {
    let (key, lives, ours) = (client.keys.epoch(), client.keys.lives(), client.config.layout);
    let shown = client.keys.shown();
    loop {
        let mut batch = Batch::new();
        batch.get(&key, Look::Whole).get(&lives, Look::Whole);
        let mut reply = tries.ask(&batch).await?;
        let (item, living) = (reply.answers.item()?, reply.answers.item()?);
        if item.is_none() && living.is_some() {
            // It was evicted alone: a session that lives stores it again with its next beat.
            client.context.spawner.sleep(EVICTED).await;
            continue;
        }
        let Some(item) = item else {
            let age = reply.link.greeting.age(client.context.clock.now());
            client.context.spawner.sleep(LEAST_AGE.saturating_sub(age)).await;
            Origin::new(client, &reply.link).or_add(client).await?;
            continue;
        };
        let found = Origin::read(client, &item)?;
        if found.stamp.compare(&shown, ours)?.is_eq() {
            return Ok(found);
        }
        let in_use = |living: &Item| {
            let who = String::from_utf8_lossy(&living.value);
            let who = format!("a session (the latest is that of member \"{who}\")");
            earlier_layout_in_use(&shown, found.stamp.layout, ours, &who)
        };
        if let Some(living) = living {
            return Err(in_use(&living));
        }
        let mut changed = found;
        changed.stamp.layout = ours;
        let value = changed.write();
        let mut batch = Batch::new();
        batch.cas(Store::bytes(&key, 0, &value), item.cas).get(&key, Look::Cas).get(&lives, Look::Whole);
        let Some(mut reply) = tries.follow(&reply.link, &batch).await else { continue };
        let (stored, now, living) = (reply.answers.stored()?, reply.answers.item()?, reply.answers.item()?);
        if let (Stored::Done, Some(now), Some(living)) = (stored, now, living) {
            // A session began meanwhile.
            let mut batch = Batch::new();
            batch.cas(Store::bytes(&key, 0, &item.value), now.cas);
            tries.follow(&reply.link, &batch).await;
            return Err(in_use(&living));
        }
    }
}

impl MemcachedSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let mut tries = client.tries();
        for _ in 0..ROUNDS {
            let origin = origin(client, &mut tries).await?;
            // A new id for each try: an item that was stored by an earlier one would end earlier.
            let id = SessionId(client.context.entropy.id());
            let state = SessionState::new(client, id, request, origin.stamp);
            let (key, lives, expires) = (state.key(), client.keys.lives(), state.expires());
            let mut batch = Batch::new();
            let previous = request.previous.map(|previous| client.keys.session(previous));
            if let Some(previous) = &previous {
                batch.delete_own(previous);
            }
            batch
                .add(Store::bytes(&key, expires, &state.value()))
                .add(Store::bytes(&lives, twice(expires), state.member.as_bytes()))
                .get(&lives, Look::Whole)
                .get(&client.keys.epoch(), Look::Whole)
                .get_in(&key, Look::Whole, Call::Open);
            let link = client.link(0, client.config.limits.operation_timeout).await?;
            let Some(Reply { sent, mut answers, .. }) = tries.follow(&link, &batch).await else {
                client.link(link.number, client.config.limits.operation_timeout).await?;
                continue;
            };
            let received = client.context.clock.now();
            if previous.is_some() {
                answers.stored()?;
            }
            answers.stored()?;
            answers.stored()?;
            let (living, epoch, own) = (answers.item()?, answers.item()?, answers.item()?);
            let epoch = epoch.map(|epoch| Origin::read(client, &epoch)).transpose()?;
            if living.as_ref().is_none_or(|living| living.left.is_some_and(|left| left < expires)) {
                // Of a session that may end before this one. What is stored now is read by the next try.
                let living = living.map(|living| living.cas);
                let mut batch = Batch::new();
                batch
                    .delete_own(&key)
                    .replace(Store::bytes(&lives, twice(expires), state.member.as_bytes()), living);
                tries.follow(&link, &batch).await;
                continue;
            }
            let Some(own) = own.filter(|_| epoch.is_some_and(|epoch| epoch.stamp == origin.stamp)) else {
                // The data is another's meanwhile.
                client.ask(Batch::new().delete_own(&key)).await?;
                continue;
            };
            let version = |item: &Item| Version { link: link.number, cas: item.cas };
            *state.lease() = Lease {
                session: version(&own),
                member: None,
                lives: living.map(|living| (version(&living), living.left.unwrap_or(u32::MAX))),
                written: Some(received),
                behind_until: None,
            };
            return Ok(Self { state: Arc::new(state), opened_at: sent });
        }
        let why = format!(
            "{}: no session can be opened, for the connections end again and again",
            client.config.shown()
        );
        Err(tries.failed(Error::new(ErrorKind::Unavailable, why)))
    }

    /// Ends an attempt because the session closes.
    fn end(&self, key: LockKey, attempt: AttemptId, end: End) -> Task<Result<()>> {
        let state = Arc::clone(&self.state);
        let spawner = state.client.context.spawner.clone();
        spawner.spawn(async move {
            let held = state.hold(attempt).is_some();
            let ending = if held { Ending::Release(end) } else { Ending::Withdraw };
            let mut tries = state.client.tries();
            give_back(&state.client, &mut tries, &key, (state.id, attempt), ending).await?;
            if !held {
                drop_gate(&state, &key, attempt).await;
            }
            state.forget(attempt, true);
            Ok(())
        })
    }

    /// One beat. `None`: the server's clock stands behind, so the beat proves nothing.
    async fn beat(&self, held: &Held) -> Result<Option<Renewal>> {
        let (state, client) = (&self.state, &self.state.client);
        let link = client.link(0, client.config.beat_limit()).await?;
        let exchange = async |batch: Batch| {
            let reply = client.exchange_beat(&link, &batch).await;
            reply.ok_or_else(|| error::lost().indeterminate())
        };
        let mut locks = Renewals::new(state, &held.grants, &link);
        let mut renewal = Renewal::confirmed();
        let mut items = Items::new(state, &link);
        let groups: Vec<GroupId> = held.groups.clone();
        let mut changed = Vec::new();
        let mut kept = false;
        for _ in 0..ROUNDS {
            let mut batch = Batch::new();
            items.prepare(&mut batch);
            locks.prepare(&mut batch);
            if batch.commands() > 0 {
                let Reply { mut answers, .. } = exchange(batch).await?;
                if !items.prepared(&link, &mut answers)? {
                    return self.gone().await.map(Some);
                }
                locks.prepared(&link, &mut answers)?;
            }
            let mut batch = Batch::new();
            if !kept {
                items.write(&mut batch);
                for group in &groups {
                    batch.get(&client.keys.group(group).members, Look::Cas);
                }
            }
            locks.write(&mut batch);
            batch.get_in(&state.key(), Look::Presence, Call::Renew);
            let Reply { sent, mut answers, .. } = exchange(batch).await?;
            if !kept {
                match items.written(&link, sent, &mut answers)? {
                    Wrote::Kept => kept = true,
                    Wrote::Again => {}
                    Wrote::Gone => return self.gone().await.map(Some),
                    Wrote::Behind => return Ok(None),
                }
                for group in &groups {
                    let seen = answers.item()?.map(|item| Version { link: link.number, cas: item.cas });
                    let known = state.groups().get(group).map(|membership| membership.seen);
                    if (seen.is_none() || seen != known) && !changed.contains(group) {
                        changed.push(group.clone());
                    }
                }
            }
            locks.written(&link, &mut answers)?;
            if answers.item()?.is_none() {
                return self.gone().await.map(Some);
            }
            if kept && !locks.is_pending() {
                if items.lacks_lives || items.lacks_epoch {
                    self.restore(&mut items, &link).await?;
                }
                renewal.evicted = self.evicted(&link, changed, items.is_claim_lost).await?;
                renewal.gone = self.reasons(locks.gone()).await?;
                return Ok(Some(renewal));
            }
        }
        let why = "others change the locks of this session again and again";
        Err(Error::new(ErrorKind::Unavailable, why).indeterminate())
    }

    /// Stores again what was evicted alone, or would end before this session.
    async fn restore(&self, items: &mut Items<'_>, link: &Arc<Link>) -> Result<()> {
        let (state, client) = (&self.state, &self.state.client);
        for _ in 0..ROUNDS {
            if !items.lacks_lives {
                break;
            }
            let mut batch = Batch::new();
            items.write_lives(&mut batch);
            let reply = client.exchange_beat(link, &batch).await;
            let mut answers = reply.ok_or_else(|| error::lost().indeterminate())?.answers;
            items.lacks_lives = !items.has_lives(&mut answers)?;
        }
        if items.lacks_epoch {
            Origin::again(client, link, state.stamp).or_add(client).await?;
        }
        Ok(())
    }

    /// The session's item is gone: whether only that, or all data.
    async fn gone(&self) -> Result<Renewal> {
        let client = &self.state.client;
        let mut batch = Batch::new();
        batch.get(&client.keys.epoch(), Look::Whole);
        let epoch = client.ask(&batch).await?.answers.item()?;
        let epoch = epoch.map(|epoch| Origin::read(client, &epoch)).transpose()?;
        let stands = epoch.is_some_and(|epoch| epoch.stamp == self.state.stamp);
        Ok(Renewal::lost(if stands { LossReason::Expired } else { LossReason::Vanished }))
    }

    /// The groups among these in which our record is missing.
    async fn evicted(&self, link: &Link, groups: Vec<GroupId>, claim_lost: bool) -> Result<Vec<GroupId>> {
        let (state, client) = (&self.state, &self.state.client);
        if claim_lost {
            return Ok(state.groups().keys().cloned().collect());
        }
        if groups.is_empty() {
            return Ok(groups);
        }
        let mut batch = Batch::new();
        for group in &groups {
            batch.get(&client.keys.group(group).members, Look::Whole);
        }
        let mut reply = client.ask(&batch).await?;
        let mut evicted = Vec::new();
        for group in groups {
            let item = reply.answers.item()?;
            let entries = item.as_ref().and_then(|item| read_members(&item.value)).unwrap_or_default();
            let own = |membership: u128| {
                let is_own = |own: Own| own.session == state.id && own.incarnation == membership;
                entries.iter().any(|entry| entry.own.is_some_and(is_own))
            };
            let mut known = state.groups();
            match (known.get_mut(&group), item.as_ref()) {
                (Some(membership), Some(item)) if own(membership.incarnation) => {
                    let here = reply.link.number == link.number;
                    membership.seen =
                        if here { Version { link: link.number, cas: item.cas } } else { Version::default() };
                }
                (Some(_), _) => evicted.push(group),
                (None, _) => {} // it left meanwhile
            }
        }
        Ok(evicted)
    }

    /// Why these grants are gone.
    async fn reasons(&self, gone: Vec<AttemptId>) -> Result<Vec<(AttemptId, LossReason)>> {
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let client = &self.state.client;
        let mut batch = Batch::new();
        for attempt in &gone {
            batch.get(&client.keys.broken(*attempt), Look::Whole);
        }
        let mut answers = client.ask(&batch).await?.answers;
        let mut reasons = Vec::new();
        for attempt in gone {
            let note = answers.item()?;
            self.state.forget(attempt, true);
            reasons.push((attempt, parse_broken(note.as_ref().map(|note| &note.value[..]))));
        }
        Ok(reasons)
    }
}

/// The session's own items in one beat.
struct Items<'a> {
    state: &'a SessionState,
    link: u64,
    session: Option<u64>,
    /// `Some` once the member id was claimed; then its cas number, if it stands there.
    member: Option<Claim>,
    /// Another session has the member id.
    is_claim_lost: bool,
    /// The item that says that sessions live ends too early.
    lacks_lives: bool,
    /// The stamp is not there: it was evicted alone.
    lacks_epoch: bool,
}

enum Claim {
    Unread,
    Stands(u64),
    Missing,
}

enum Wrote {
    Kept,
    Again,
    Gone,
    Behind,
}

impl<'a> Items<'a> {
    fn new(state: &'a SessionState, link: &Link) -> Self {
        let lease = state.lease().clone();
        let member = lease.member.map(|version| version.on(link.number).map_or(Claim::Unread, Claim::Stands));
        Self {
            state,
            link: link.number,
            session: lease.session.on(link.number),
            member,
            is_claim_lost: false,
            lacks_lives: false,
            lacks_epoch: false,
        }
    }

    /// Asks for what is not known on this link.
    fn prepare(&self, batch: &mut Batch) {
        let client = &self.state.client;
        if self.session.is_none() {
            batch.get(&self.state.key(), Look::Whole);
        }
        if matches!(self.member, Some(Claim::Unread)) {
            batch.get(&client.keys.member(&self.state.member), Look::Whole);
        }
    }

    /// Whether the session is there.
    fn prepared(&mut self, link: &Link, answers: &mut Answers) -> Result<bool> {
        if self.session.is_none() {
            self.session = answers.item()?.map(|item| item.cas);
            let Some(cas) = self.session else { return Ok(false) };
            let mut lease = self.state.lease();
            lease.session = Version { link: link.number, cas };
            lease.written = None;
        }
        if matches!(self.member, Some(Claim::Unread)) {
            let item = answers.item()?;
            self.claimed(item.as_ref());
        }
        Ok(true)
    }

    /// The item of the member id was read.
    fn claimed(&mut self, item: Option<&Item>) {
        self.member = match item {
            Some(item) if item.value == self.state.claim() => Some(Claim::Stands(item.cas)),
            Some(_) => {
                self.is_claim_lost = true;
                None
            }
            None => Some(Claim::Missing),
        };
    }

    fn write(&self, batch: &mut Batch) {
        let (state, client) = (self.state, &self.state.client);
        let (key, expires) = (state.key(), state.expires());
        batch
            .get(&key, Look::Whole)
            .replace(Store::bytes(&key, expires, &state.value()), Some(self.session.unwrap_or_default()))
            .get(&key, Look::Whole)
            .get(&client.keys.epoch(), Look::Whole);
        self.write_lives(batch);
        if let Some(claim) = &self.member {
            let member = client.keys.member(&state.member);
            let cas = if let Claim::Stands(cas) = claim { Some(*cas) } else { None };
            batch.replace(Store::bytes(&member, expires, &state.claim()), cas).get(&member, Look::Whole);
        }
    }

    /// Keeps the item that says that sessions live: for twice as long as this one needs it, and never for shorter than another
    /// session did.
    fn write_lives(&self, batch: &mut Batch) {
        let (lives, expires) = (self.state.client.keys.lives(), twice(self.state.expires()));
        let known = self.state.lease().lives.filter(|(_, left)| *left < expires);
        let known = known.and_then(|(version, _)| version.on(self.link));
        batch.replace(Store::bytes(&lives, expires, self.state.member.as_bytes()), known);
        batch.get(&lives, Look::Whole);
    }

    /// Whether that item outlives the session.
    fn has_lives(&mut self, answers: &mut Answers) -> Result<bool> {
        answers.stored()?;
        let item = answers.item()?;
        let lives =
            item.map(|item| (Version { link: self.link, cas: item.cas }, item.left.unwrap_or(u32::MAX)));
        self.state.lease().lives = lives;
        Ok(lives.is_some_and(|(_, left)| left >= self.state.expires()))
    }

    fn written(&mut self, link: &Link, sent: Instant, answers: &mut Answers) -> Result<Wrote> {
        let state = self.state;
        let before = answers.item()?;
        let stored = answers.stored()?;
        let (after, epoch) = (answers.item()?, answers.item()?);
        self.lacks_lives = !self.has_lives(answers)?;
        if self.member.is_some() {
            answers.stored()?;
            let item = answers.item()?;
            self.claimed(item.as_ref());
        }
        let (Some(before), Some(after)) = (before, after) else { return Ok(Wrote::Gone) };
        if state.is_behind(&before, link.number, sent) {
            // What was written ends early; when the clock has gone on, it is written again.
            let now = state.client.context.clock.now();
            let mut lease = state.lease();
            lease.session = Version { link: link.number, cas: after.cas };
            (lease.written, lease.behind_until) = (None, Some(now + BEHIND.1));
            return Ok(Wrote::Behind);
        }
        if stored != Stored::Done {
            self.session = None; // a beat of before that came late wrote it
            return Ok(Wrote::Again);
        }
        let version = |cas| Version { link: link.number, cas };
        let mut lease = state.lease();
        lease.session = version(after.cas);
        lease.written = Some(state.client.context.clock.now());
        lease.member = match (&self.member, lease.member) {
            // Given up while the beat was under way.
            (Some(_), None) => None,
            (Some(Claim::Stands(cas)), _) => Some(version(*cas)),
            (Some(_), _) => Some(Version::default()),
            // Claimed while the beat was under way, or lost to another session.
            (None, known) => known.filter(|_| !self.is_claim_lost),
        };
        drop(lease);
        let Some(epoch) = epoch else {
            self.lacks_epoch = true;
            return Ok(Wrote::Kept);
        };
        let same = Origin::read(&state.client, &epoch)?.stamp == state.stamp;
        Ok(if same { Wrote::Kept } else { Wrote::Gone })
    }
}

#[async_trait]
impl Session for MemcachedSession {
    fn id(&self) -> SessionId {
        self.state.id
    }

    fn epoch(&self) -> Epoch {
        self.state.stamp.epoch
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.state.ttl)
    }

    fn opened_at(&self) -> Instant {
        self.opened_at
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        for _ in 0..BEHIND.0 {
            if let Some(renewal) = self.beat(held).await? {
                return Ok(renewal);
            }
            self.state.client.context.spawner.sleep(BEHIND.1).await;
        }
        Err(Error::new(ErrorKind::Unavailable, "the server's clock stands behind").indeterminate())
    }

    async fn notice(&self) -> Notice {
        self.state.notices.next().await
    }

    fn groups(&self) -> &dyn SessionGroups {
        self
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        let (state, client) = (&self.state, &self.state.client);
        let mut tries = client.tries();
        let mut failed = None;
        let ending: Vec<_> =
            state.open_attempts().into_iter().map(|(key, attempt)| self.end(key, attempt, end)).collect();
        for ending in ending {
            if let Some(Err(error)) = ending.await {
                failed.get_or_insert(error);
            }
        }
        let joined: Vec<_> = state.groups().keys().cloned().collect();
        for group in joined {
            if let Err(error) = self.leave_at_close(&group, end).await {
                failed.get_or_insert(error);
            }
        }
        let member = client.keys.member(&state.member);
        let mut batch = Batch::new();
        batch.delete_own(&state.key()).get_in(&member, Look::Whole, Call::Close);
        let mut reply = tries.ask(&batch).await?;
        reply.answers.stored()?;
        let claim = reply.answers.item()?.filter(|item| item.value == state.claim());
        if let Some(claim) = claim {
            // If it is not answered, the item ends with its time.
            tries.follow(&reply.link, Batch::new().delete(&member, claim.cas)).await;
        }
        state.notices.end(LossReason::SessionClosed);
        failed.map_or(Ok(()), Err)
    }
}
