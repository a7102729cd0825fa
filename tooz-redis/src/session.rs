//! A coordinator's life on the server: a hash that expires, renewed by every beat.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tooz_core::clock::Instant;
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, Notice, OpenSession, Previous, Renewal, Session, SessionGroups, SessionId,
    SessionLocks, Stamp, earlier_layout_in_use,
};
use tooz_core::{Error, ErrorKind, FencingToken, LossReason, MemberId, Result};

use crate::client::{Client, Repeat};
use crate::connection::channels::{Heard, Subscription};
use crate::connection::link::{Link, Sent};
use crate::connection::reply::Parts;
use crate::error;
use crate::locks::CONFIRMATIONS;
use crate::scripts;
use crate::slots::Slots;

/// How many beats' moments of sending are kept: a message about an older one comes too late for anything.
const REMEMBERED: usize = 64;
/// What is left of a lock is kept for this long at least, so that the next holder learns how the last one ended.
pub(crate) const KEEP: Duration = Duration::from_hours(1);
/// The server's clock and ours go apart by this much only if one of them was set.
const JUMP: i64 = 1_000;

/// One session; dropping it leaves it to expire.
#[derive(Debug)]
pub(crate) struct RedisSession {
    pub(crate) inner: Arc<Inner>,
    _inbox: Subscription,
    _epochs: Subscription,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) client: Arc<Client>,
    pub(crate) id: SessionId,
    pub(crate) member: MemberId,
    pub(crate) ttl: Duration,
    pub(crate) previous: Option<SessionId>,
    pub(crate) slots: Slots,
    stamp: OnceLock<Stamp>,
    opened_at: Instant,
    beats: Mutex<Beats>,
    /// The number of the last beat that was heard over the connection for messages.
    echoed: AtomicU64,
    notices: Mutex<VecDeque<Notice>>,
    noticed: Notify,
}

#[derive(Debug, Default)]
struct Beats {
    last: u64,
    sent: VecDeque<(u64, Instant)>,
    /// The last one that was answered, and over which link.
    answered: (u64, u64),
    /// The link over which one was sent that is not answered.
    open: u64,
    /// Our clock's reading minus the server's, in milliseconds.
    apart: Option<i64>,
}

impl RedisSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let id = SessionId(client.context.entropy.id());
        let inner = Arc::new(Inner {
            client: Arc::clone(client),
            id,
            member: request.member.clone(),
            ttl: request.ttl.unwrap_or(client.config.ttl),
            previous: request.previous,
            slots: Slots::default(),
            stamp: OnceLock::new(),
            opened_at: client.context.clock.now(),
            beats: Mutex::default(),
            echoed: AtomicU64::new(0),
            notices: Mutex::default(),
            noticed: Notify::new(),
        });
        // Before the session stands: the first message is already for it.
        let weak = Arc::downgrade(&inner);
        let ear = move |heard: Heard<'_>| {
            if let Some(inner) = weak.upgrade() {
                inner.hear(heard);
            }
        };
        let inbox = Subscription::start(client, client.keys.inbox(id), Arc::new(ear)).await?;
        let weak = Arc::downgrade(&inner);
        let ear = move |heard: Heard<'_>| {
            if let (Some(inner), Heard::Message(epoch)) = (weak.upgrade(), heard) {
                inner.hear_epoch(epoch);
            }
        };
        let epochs = Subscription::start(client, client.keys.epochs(), Arc::new(ear)).await?;
        let call = client
            .script(&scripts::OPEN)
            .keys([
                client.keys.session(id),
                client.keys.epoch(),
                client.keys.beat(&inner.member),
                client.keys.lives(),
            ])
            .arg(id.to_string())
            .number(inner.ttl.as_millis())
            .arg(Epoch(client.context.entropy.id()).to_string())
            .arg(request.previous.map(|id| id.to_string()).unwrap_or_default())
            .number(inner.keep().as_millis())
            .arg(inner.member.as_bytes())
            .number(client.config.layout)
            .proof();
        let mut tries = 0;
        let (opened_at, answer) = loop {
            // Counted from here, not from before the subscriptions: the session is not proved by those.
            let sent = client.context.clock.now();
            let answer = client.call(&call, Repeat::Yes).await?;
            tries += 1;
            match answer.unconfirmed {
                None => break (sent, answer),
                Some(why) if tries == CONFIRMATIONS => {
                    // It would end by itself.
                    if let Err(error) = inner.close(End::Clean).await {
                        tracing::debug!(%error, "a session that does not count could not be closed");
                    }
                    return Err(why);
                }
                Some(_) => {}
            }
        };
        let mut answer = Parts::of(answer.value)?;
        let opened = answer.text("the outcome")? == "ok";
        let stamp = stamp(client, &answer.bytes("the stamp")?)?;
        if !opened {
            return Err(refused(client, stamp, &answer.bytes("who lives")?));
        }
        let _ = inner.stamp.set(stamp);
        inner.sent(0, opened_at);
        Ok(Self { inner, _inbox: inbox, _epochs: epochs })
    }
}

impl Inner {
    fn beats(&self) -> std::sync::MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, number: u64, at: Instant) {
        let mut beats = self.beats();
        beats.sent.push_back((number, at));
        if beats.sent.len() > REMEMBERED {
            beats.sent.pop_front();
        }
    }

    fn sent_at(&self, number: u64) -> Option<Instant> {
        self.beats().sent.iter().find(|(other, _)| *other == number).map(|(_, at)| *at)
    }

    pub(crate) fn keep(&self) -> Duration {
        KEEP.max(self.ttl * 10)
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        self.client.keys.session(self.id)
    }

    /// The session is not there any more.
    pub(crate) fn lost(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {} is gone from the server", self.id))
    }

    pub(crate) fn tell(&self, notice: Notice) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push_back(notice);
        self.noticed.notify_one();
    }

    fn hear_epoch(&self, epoch: &[u8]) {
        let ours = self.stamp.get().map(ToString::to_string);
        if ours.is_some_and(|ours| ours.as_bytes() != epoch) {
            self.tell(Notice::SessionLost(LossReason::Vanished));
        }
    }

    fn hear(&self, heard: Heard<'_>) {
        let Heard::Message(message) = heard else { return self.slots.look_all() };
        if self.understand(message).is_none() {
            tracing::warn!(session = %self.id, "a message that cannot be understood was ignored");
        }
    }

    fn understand(&self, message: &[u8]) -> Option<()> {
        let (kind, rest) = (message.first()?, message.get(2..)?);
        match kind {
            b'b' => {
                self.echoed.fetch_max(std::str::from_utf8(rest).ok()?.parse().ok()?, Ordering::AcqRel);
            }
            b'G' => {
                let mut words = std::str::from_utf8(rest).ok()?.split(' ');
                let attempt = AttemptId::parse(words.next()?)?;
                let token = FencingToken::new(words.next()?.parse().ok()?)?;
                let previous = previous(words.next()?);
                match self.sent_at(words.next()?.parse().ok()?) {
                    Some(proved) => {
                        let counts = !self.client.config.confirms();
                        drop(self.slots.granted(attempt, token, previous, proved, counts));
                    }
                    // Too old to say until when: the server is asked.
                    None => self.slots.look_all(),
                }
            }
            b'X' => {
                let (attempt, why) = std::str::from_utf8(rest).ok()?.split_once(' ')?;
                let why = if why == "E" { LossReason::Expired } else { LossReason::Vanished };
                self.tell(Notice::GrantLost(AttemptId::parse(attempt)?, why));
            }
            b'B' => {
                let attempt = AttemptId::parse(std::str::from_utf8(rest.get(..32)?).ok()?)?;
                self.tell(Notice::GrantLost(attempt, broken(rest.get(33..)?)));
            }
            _ => return None,
        }
        Some(())
    }

    /// A beat is about to be sent over this link; the number of it.
    fn begin_beat(&self, link: &Link) -> u64 {
        let now = self.client.context.clock.now();
        let (number, silent, deaf) = {
            let mut beats = self.beats();
            beats.last += 1;
            let silent = beats.open == link.generation;
            beats.open = link.generation;
            // One that is answered just now may be on its way over the other connection.
            let (answered, over) = beats.answered;
            let deaf = over == link.generation && self.echoed.load(Ordering::Acquire) + 1 < answered;
            (beats.last, silent, deaf)
        };
        if silent || deaf {
            self.client.suspect(link.generation, deaf);
        }
        self.sent(number, now);
        number
    }

    fn end_beat(&self, link: &Link, number: u64, server: i64) {
        let ours = self.client.context.clock.now().saturating_since(self.opened_at);
        let apart = i64::try_from(ours.as_millis()).unwrap_or_default() - server;
        let mut beats = self.beats();
        beats.open = 0;
        if number >= beats.answered.0 {
            beats.answered = (number, link.generation);
        }
        let jump = beats.apart.replace(apart).map_or(0, |before| apart - before);
        drop(beats);
        if jump.abs() > JUMP {
            tracing::warn!(
                milliseconds = -jump,
                "the server's clock was set, or this machine stood still: the server may have ended what is held here"
            );
        }
    }

    async fn close(&self, end: End) -> Result<()> {
        let call = self
            .client
            .script(&scripts::CLOSE)
            .keys([self.key(), self.client.keys.beat(&self.member)])
            .arg(self.id.to_string())
            .number(self.keep().as_millis())
            .arg(unclean(end));
        self.client.call(&call, Repeat::Yes).await.map(|_| ())
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let client = &self.client;
        let link = client.link(client.config.beat_limit()).await?;
        let number = self.begin_beat(&link);
        let mut call = client
            .script(&scripts::RENEW)
            .keys([self.key(), client.keys.epoch(), client.keys.beat(&self.member), client.keys.lives()])
            .arg(self.id.to_string())
            .number(self.ttl.as_millis())
            .number(self.keep().as_millis())
            .number(number)
            .arg(self.stamp.get().map(ToString::to_string).unwrap_or_default())
            .arg(self.member.as_bytes())
            .number(held.grants.len())
            .number(held.waiting.len())
            .number(held.groups.len())
            .number(client.config.layout)
            .proof();
        for (key, attempt) in held.grants.iter().chain(&held.waiting) {
            let place = client.keys.lock(key);
            call = call.keys(place.keys()).arg(attempt.to_string()).arg(&place.base);
        }
        for group in &held.groups {
            let place = client.keys.group(group);
            let own = place.own();
            call = call.key(place.key).key(own);
        }
        let value = match client.call_over(&link, &call).await {
            Sent::Answered(value) => value,
            // It has not happened, but for this: what is gone here is gone.
            Sent::Unconfirmed(value, _) if is_lost(&value) => value,
            Sent::Unconfirmed(_, why) => {
                self.beats().open = 0;
                return Err(why);
            }
            Sent::Refused(refusal) => {
                self.beats().open = 0;
                return Err(error::of(refusal));
            }
            Sent::Lost => return Err(error::lost()),
        };
        self.read_beat(&link, number, held, Parts::of(value)?)
    }

    fn read_beat(&self, link: &Link, number: u64, held: &Held, mut answer: Parts) -> Result<Renewal> {
        match answer.text("its outcome")?.as_str() {
            "ok" => {}
            "lost" => {
                let expired = answer.text("the reason")? == "E";
                return Ok(Renewal::lost(if expired { LossReason::Expired } else { LossReason::Vanished }));
            }
            // Another beat went over a newer link meanwhile.
            _ => return Err(error::lost()),
        }
        self.end_beat(link, number, answer.number("the time")?);
        let mut renewal = Renewal::confirmed();
        for one in answer.parts("what is gone")? {
            let mut one = Parts::of(one)?;
            let Some(attempt) = AttemptId::parse(&one.text("an attempt")?) else { continue };
            let why = match one.text("a reason")?.as_str() {
                "B" => broken(&one.bytes("who broke it")?),
                "E" => LossReason::Expired,
                _ => LossReason::Vanished,
            };
            self.slots.forget(attempt);
            renewal.gone.push((attempt, why));
        }
        for one in answer.parts("what was granted")? {
            let mut one = Parts::of(one)?;
            let attempt = AttemptId::parse(&one.text("an attempt")?);
            let token = u64::try_from(one.number("a token")?).ok().and_then(FencingToken::new);
            let how = previous(&one.text("how the last holder ended")?);
            if let (Some(attempt), Some(token), Some(proved)) = (attempt, token, self.sent_at(number)) {
                // The message was lost; this beat proved the grant.
                self.slots.granted(attempt, token, how, proved, true);
            }
        }
        for one in answer.parts("what lost its place")? {
            let attempt = crate::connection::reply::bytes(one)
                .and_then(|b| AttemptId::parse(std::str::from_utf8(&b).ok()?));
            renewal.unqueued.extend(attempt);
        }
        for one in answer.parts("where the member is missing")? {
            if let redis::Value::Int(at) = one {
                let group = usize::try_from(at - 1).ok().and_then(|at| held.groups.get(at));
                renewal.evicted.extend(group.cloned());
            }
        }
        Ok(renewal)
    }
}

pub(crate) fn stamp(client: &Client, text: &[u8]) -> Result<Stamp> {
    Stamp::parse(text).ok_or_else(|| {
        let key = String::from_utf8_lossy(&client.keys.epoch()).into_owned();
        Error::new(
            ErrorKind::Corrupt,
            format!("the key {key} holds no stamp; end all programs that use it, then delete it"),
        )
    })
}

/// The namespace, for messages.
pub(crate) fn place(client: &Client) -> String {
    format!("namespace \"{}\"", client.keys.namespace())
}

/// Why no session may live beside data of this stamp.
fn refused(client: &Client, stamp: Stamp, lives: &[u8]) -> Error {
    let place = place(client);
    let ours = client.config.layout;
    stamp.compare(&place, ours).err().unwrap_or_else(|| {
        let who = String::from_utf8_lossy(lives);
        let who = format!("a session (the last that was heard of is that of member \"{who}\")");
        earlier_layout_in_use(&place, stamp.layout, ours, &who)
    })
}

/// Whether the answer to a beat is that the session is gone.
fn is_lost(answer: &redis::Value) -> bool {
    let redis::Value::Array(parts) = answer else { return false };
    matches!(parts.first(), Some(redis::Value::BulkString(word)) if word == b"lost")
}

/// What a script leaves in a lock for the next holder.
pub(crate) fn unclean(end: End) -> &'static str {
    match end {
        End::Clean => "",
        End::Unclean => "E",
    }
}

/// How the last holder ended, as scripts write it.
pub(crate) fn previous(word: &str) -> Previous {
    match word {
        "E" => Previous::Expired,
        "B" => Previous::Broken,
        "U" => Previous::Unknown,
        _ => Previous::Clean,
    }
}

/// Who broke a lock and why: the length of the first, and both.
fn broken(text: &[u8]) -> LossReason {
    let split = || {
        let colon = text.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&text[..colon]).ok()?.parse().ok()?;
        let end = colon.checked_add(1)?.checked_add(length)?;
        Some((text.get(colon + 1..end)?, text.get(end..)?))
    };
    let (by, why) = split().unwrap_or((b"", text));
    LossReason::Broken { by: MemberId::new(by).ok(), why: String::from_utf8_lossy(why).into_owned() }
}

#[async_trait]
impl Session for RedisSession {
    fn id(&self) -> SessionId {
        self.inner.id
    }

    fn epoch(&self) -> Epoch {
        self.inner.stamp.get().map_or(Epoch(0), |stamp| stamp.epoch)
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.inner.ttl)
    }

    fn opened_at(&self) -> Instant {
        self.inner.sent_at(0).unwrap_or(self.inner.opened_at)
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        self.inner.renew(held).await
    }

    async fn notice(&self) -> Notice {
        loop {
            let noticed = self.inner.noticed.notified();
            if let Some(notice) =
                self.inner.notices.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            {
                return notice;
            }
            noticed.await;
        }
    }

    fn groups(&self) -> &dyn SessionGroups {
        self
    }

    fn locks(&self) -> &dyn SessionLocks {
        self
    }

    async fn close(&self, end: End) -> Result<()> {
        self.inner.close(end).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_why() {
        let told = |text: &[u8]| broken(text);
        assert_eq!(
            told(b"2:meit hangs"),
            LossReason::Broken { by: MemberId::new("me").ok(), why: "it hangs".into() }
        );
        assert_eq!(told(b"0:x"), LossReason::Broken { by: None, why: "x".into() });
        for hostile in [&b""[..], b":", b"99:x", b"18446744073709551615:x", b"x"] {
            assert!(matches!(told(hostile), LossReason::Broken { .. }));
        }
    }
}
