//! A coordinator's session on the server: a hash that expires, renewed by every beat.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use tooz_core::driver::{
    AttemptId, End, Epoch, Held, Instant, Notice, OpenSession, Renewal, Session, SessionGroups, SessionId,
    SessionLocks, Stamp, earlier_layout_in_use,
};
use tooz_core::{Error, FencingToken, LossReason, Result};

use crate::client::Client;
use crate::connection::link::{Link, Outcome};
use crate::connection::reply::{Parts, begins_with, bytes};
use crate::connection::subscription::Subscription;
use crate::scripts::codes::{end_code, parse_broken, parse_previous};
use crate::session_state::{CONFIRMATIONS, SessionState};
use crate::{error, scripts};

/// One session; dropping it leaves it to expire.
#[derive(Debug)]
pub(crate) struct RedisSession {
    pub(crate) state: Arc<SessionState>,
    _inbox: Subscription,
    _epochs: Subscription,
}

impl RedisSession {
    pub(crate) async fn open(client: &Arc<Client>, request: &OpenSession) -> Result<Self> {
        let state = Arc::new(SessionState::new(client, request));
        // Before the session is on the server: the first message is already for it.
        let weak = Arc::downgrade(&state);
        let listener = move |message: Option<&[u8]>| {
            if let Some(state) = weak.upgrade() {
                state.receive(message);
            }
        };
        let inbox = Subscription::start(client, client.keys.inbox(state.id), Arc::new(listener)).await?;
        let weak = Arc::downgrade(&state);
        let listener = move |epoch: Option<&[u8]>| {
            if let (Some(state), Some(epoch)) = (weak.upgrade(), epoch) {
                state.receive_epoch(epoch);
            }
        };
        let epochs = Subscription::start(client, client.keys.epochs(), Arc::new(listener)).await?;
        let session = Self { state, _inbox: inbox, _epochs: epochs };
        let state = &session.state;
        let call = scripts::OPEN
            .call()
            .keys([state.key(), client.keys.epoch(), client.keys.beat(&state.member), client.keys.lives()])
            .arg(state.id.to_string())
            .number(state.ttl.as_millis())
            .arg(Epoch(client.context().entropy.id()).to_string())
            .arg(request.previous.map(|id| id.to_string()).unwrap_or_default())
            .number(client.config().retention().as_millis())
            .arg(state.member.as_bytes())
            .number(client.config().layout)
            .confirm();
        let mut tries = 0;
        let (opened_at, answer) = loop {
            // Counted from here, not from before the subscriptions: those do not prove the session.
            let sent = client.context().clock.now();
            let answer = client.call(&call).await?;
            tries += 1;
            match answer.unconfirmed {
                None => break (sent, answer),
                Some(why) if tries == CONFIRMATIONS => {
                    // It would end by itself.
                    if let Err(error) = session.close(End::Clean).await {
                        tracing::debug!(%error, "a session that does not count could not be closed");
                    }
                    return Err(why);
                }
                Some(_) => {}
            }
        };
        let mut answer = Parts::of(answer.value)?;
        let opened = answer.text("the outcome")? == "ok";
        let stamp = client.keys.read_stamp(&answer.bytes("the stamp")?)?;
        if !opened {
            return Err(refuse(client, stamp, &answer.bytes("who lives")?));
        }
        let _ = state.stamp.set(stamp);
        state.remember_beat(0, opened_at);
        Ok(session)
    }

    fn read_beat(&self, link: &Link, number: u64, held: &Held, mut answer: Parts) -> Result<Renewal> {
        let state = &self.state;
        match answer.text("its outcome")?.as_str() {
            "ok" => {}
            "lost" => {
                let expired = answer.text("the reason")? == "E";
                return Ok(Renewal::lost(if expired { LossReason::Expired } else { LossReason::Vanished }));
            }
            // Another beat went over a newer link meanwhile.
            _ => return Err(error::lost()),
        }
        state.end_beat(link, number, answer.number("the time")?);
        let mut renewal = Renewal::confirmed();
        for one in answer.parts("what is gone")? {
            let mut one = Parts::of(one)?;
            let Some(attempt) = AttemptId::parse(&one.text("an attempt")?) else { continue };
            let why = match one.text("a reason")?.as_str() {
                "B" => parse_broken(&one.bytes("who broke it")?),
                "E" => LossReason::Expired,
                _ => LossReason::Vanished,
            };
            state.attempts.forget(attempt);
            renewal.gone.push((attempt, why));
        }
        for one in answer.parts("what was granted")? {
            let mut one = Parts::of(one)?;
            let attempt = AttemptId::parse(&one.text("an attempt")?);
            let token = u64::try_from(one.number("a token")?).ok().and_then(FencingToken::new);
            let how = parse_previous(&one.text("how the last holder ended")?);
            if let (Some(attempt), Some(token), Some(proved)) = (attempt, token, state.beat_sent_at(number)) {
                // The message was lost; this beat proved the grant.
                state.attempts.grant(attempt, token, how, proved, true);
            }
        }
        for one in answer.parts("what lost its place")? {
            let attempt = bytes(one).and_then(|b| AttemptId::parse(std::str::from_utf8(&b).ok()?));
            renewal.unqueued.extend(attempt);
        }
        for one in answer.parts("where the member is missing")? {
            if let Value::Int(at) = one {
                let group = usize::try_from(at - 1).ok().and_then(|at| held.groups.get(at));
                renewal.evicted.extend(group.cloned());
            }
        }
        Ok(renewal)
    }
}

/// Why no session may live beside data of this stamp.
fn refuse(client: &Client, stamp: Stamp, lives: &[u8]) -> Error {
    let (namespace, ours) = (client.keys.shown(), client.config().layout);
    stamp.compare(&namespace, ours).err().unwrap_or_else(|| {
        let who = String::from_utf8_lossy(lives);
        let who = format!("a session (the latest is that of member \"{who}\")");
        earlier_layout_in_use(&namespace, stamp.layout, ours, &who)
    })
}

#[async_trait]
impl Session for RedisSession {
    fn id(&self) -> SessionId {
        self.state.id
    }

    fn epoch(&self) -> Epoch {
        self.state.stamp.get().map_or(Epoch(0), |stamp| stamp.epoch)
    }

    fn ttl(&self) -> Option<Duration> {
        Some(self.state.ttl)
    }

    fn opened_at(&self) -> Instant {
        self.state.beat_sent_at(0).unwrap_or(self.state.opened_at)
    }

    async fn renew(&self, held: &Held) -> Result<Renewal> {
        let (state, client) = (&self.state, &self.state.client);
        let link = client.current.after(0, client.config().beat_limit(), &client.shared).await?;
        let number = state.begin_beat(&link);
        let mut call = scripts::RENEW
            .call()
            .keys([state.key(), client.keys.epoch(), client.keys.beat(&state.member), client.keys.lives()])
            .arg(state.id.to_string())
            .number(state.ttl.as_millis())
            .number(client.config().retention().as_millis())
            .number(number)
            .arg(state.stamp.get().map(ToString::to_string).unwrap_or_default())
            .arg(state.member.as_bytes())
            .number(held.grants.len())
            .number(held.waiting.len())
            .number(held.groups.len())
            .number(client.config().layout)
            .confirm();
        for (key, attempt) in held.grants.iter().chain(&held.waiting) {
            let lock = client.keys.lock(key);
            call = call.keys(lock.keys()).arg(attempt.to_string()).arg(&lock.base);
        }
        for group in &held.groups {
            let group = client.keys.group(group);
            call = call.keys([group.key, group.own]);
        }
        // Not call(): the core sends another beat instead of repeating one, and none waits behind other confirmations.
        let value = match client.exchange(&link, &call).await {
            Outcome::Answered(value, None) => value,
            // What is not confirmed has not happened, except a loss: a session that is gone here is gone.
            Outcome::Answered(value, _) if begins_with(&value, b"lost") => value,
            Outcome::Answered(_, Some(why)) => {
                state.fail_beat();
                return Err(why);
            }
            Outcome::Refused(refusal) => {
                state.fail_beat();
                return Err(error::of(&refusal));
            }
            Outcome::Lost => return Err(error::lost()),
        };
        self.read_beat(&link, number, held, Parts::of(value)?)
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
        let call = scripts::CLOSE
            .call()
            .keys([state.key(), client.keys.beat(&state.member)])
            .arg(state.id.to_string())
            .number(client.config().retention().as_millis())
            .arg(end_code(end));
        client.call(&call).await.map(|_| ())
    }
}
