//! Locks of a session.

use std::time::Duration;

use async_trait::async_trait;
use tooz_core::clock::Instant;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, LockMode, Place, Released, SessionLocks, Turn,
};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::client::Repeat;
use crate::connection::reply::Parts;
use crate::scripts::{self, Call, Script};
use crate::session::{Inner, RedisSession, previous, unclean};
use crate::slots::Standing;

/// While Python holds a lock, the first in the queue asks this often: Python tells nobody when it lets go.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(100));
/// Behind one of ours, the k-th looks this much later than the first: it is told, unless something went wrong.
const STAGGER: Duration = Duration::from_millis(20);

/// So often is a grant, or a session, to be confirmed before it is given up: less than half a ttl together. In between,
/// beats have their turn.
pub(crate) const CONFIRMATIONS: usize = 3;

/// The letter of a mode in scripts, and its limit.
pub(crate) fn written(mode: LockMode) -> (&'static str, u32) {
    match mode {
        LockMode::Shared => ("s", 0),
        LockMode::Permit { limit } => ("p", limit),
        _ => ("x", 0),
    }
}

/// The mode of a letter.
pub(crate) fn read_mode(letter: &str, limit: u32) -> LockMode {
    match letter {
        "s" => LockMode::Shared,
        "p" => LockMode::Permit { limit },
        _ => LockMode::Exclusive,
    }
}

impl Inner {
    fn ask(&self, request: &Acquire, wish: &str) -> Call {
        let place = self.client.keys.lock(&request.key);
        let (mode, limit) = written(request.mode);
        self.client
            .script(&scripts::REQUEST)
            .keys(place.keys())
            .keys([self.key(), self.client.keys.fence()])
            .arg(request.attempt.to_string())
            .arg(self.id.to_string())
            .arg(mode)
            .number(limit)
            .number(self.ttl.as_millis())
            .number(self.keep().as_millis())
            .arg(wish)
            .arg(&place.base)
            .arg(self.member.as_bytes())
            .proof()
    }

    async fn asked(&self, request: &Acquire, wish: &str) -> Result<Option<Acquired>> {
        let attempt = request.attempt;
        let sent = self.client.context.clock.now();
        let answer = self.client.call(&self.ask(request, wish), Repeat::Yes).await?;
        let unconfirmed = answer.unconfirmed;
        let mut answer = Parts::of(answer.value)?;
        match answer.text("its outcome")?.as_str() {
            "granted" => {
                let token = u64::try_from(answer.number("a token")?).ok().and_then(FencingToken::new);
                let token =
                    token.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a fencing token is no number"))?;
                let how = previous(&answer.text("how the last holder ended")?);
                let left = Duration::from_millis(u64::try_from(answer.number("the time left")?).unwrap_or(0));
                let proved = proved_at(sent, self.ttl, left);
                match (self.slots.granted(attempt, token, how, proved, unconfirmed.is_none()), unconfirmed) {
                    (Some(grant), None) => Ok(Some(Acquired::Granted(grant))),
                    (Some(_), Some(why)) => Err(why),
                    (None, _) => {
                        Err(Error::new(ErrorKind::Invalid, format!("attempt {attempt} was withdrawn")))
                    }
                }
            }
            "queued" => {
                let foreign = answer.number("who holds it")? == 1;
                let life = Duration::from_millis(u64::try_from(answer.number("for how long")?).unwrap_or(0));
                let before = u32::try_from(answer.number("the place")?).unwrap_or(0);
                self.slots.waits(attempt, self.next_look(foreign, life, before));
                Ok(Some(Acquired::Queued(Place::new(attempt, request.key.clone()))))
            }
            "held" => {
                self.slots.forget(attempt);
                Ok(Some(Acquired::Held))
            }
            "limit" => {
                self.slots.forget(attempt);
                let (other, (_, limit)) = (answer.text("the limit")?, written(request.mode));
                Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "{}: permits of limit {limit} were asked for where permits of limit {other} are in use",
                        request.key
                    ),
                ))
            }
            // Only a look says so.
            "gone" => Ok(None),
            _ => Err(self.lost()),
        }
    }

    fn next_look(&self, foreign: bool, life: Duration, before: u32) -> Duration {
        if foreign && before == 0 {
            self.client.context.entropy.between(POLL.0, POLL.1)
        } else {
            life.max(POLL.0) + STAGGER * (before + 1)
        }
    }

    async fn give_back(
        &self,
        key: &LockKey,
        attempt: AttemptId,
        how: &'static Script,
        end: End,
    ) -> Result<(bool, bool)> {
        let place = self.client.keys.lock(key);
        let call = self
            .client
            .script(how)
            .keys(place.keys())
            .keys([self.key(), self.client.keys.fence()])
            .arg(attempt.to_string())
            .arg(self.id.to_string())
            .number(self.keep().as_millis())
            .arg(&place.base)
            .arg(unclean(end));
        let answer = self.client.call(&call, Repeat::Yes).await?;
        Ok((answer.value == redis::Value::Int(1), answer.repeated))
    }
}

/// From when a grant counts of which the server said, in answer to a request sent at `sent`, that so much of its life is left.
fn proved_at(sent: Instant, ttl: Duration, left: Duration) -> Instant {
    sent - ttl.saturating_sub(left)
}

#[async_trait]
impl SessionLocks for RedisSession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        if request.mode == (LockMode::Permit { limit: 0 }) {
            let why = format!("{}: a limit of 0 permits lets nobody in", request.key);
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        self.inner.slots.note(request)?;
        let wish = if request.wait { "wait" } else { "try" };
        let mut asked = self.inner.asked(request, wish).await;
        for _ in 1..CONFIRMATIONS {
            if asked.is_ok() || !matches!(self.inner.slots.standing(request.attempt), Standing::Unconfirmed) {
                break;
            }
            asked = self.inner.asked(request, "look").await;
        }
        match asked {
            Ok(Some(acquired)) => Ok(acquired),
            Ok(None) => {
                self.inner.slots.forget(request.attempt);
                let why =
                    format!("{}: what was granted is gone, and no replica had confirmed it", request.key);
                Err(Error::new(ErrorKind::Unavailable, why))
            }
            Err(error) if matches!(self.inner.slots.standing(request.attempt), Standing::Unconfirmed) => {
                // Nobody may hold what does not count.
                let back = self.withdraw(&request.key, request.attempt).await;
                Err(if back.is_ok() { error } else { error.indeterminate() })
            }
            Err(error) => {
                if !error.is_indeterminate() {
                    self.inner.slots.forget(request.attempt);
                }
                Err(error)
            }
        }
    }

    async fn turn(&self, place: &Place) -> Result<Turn> {
        let inner = &self.inner;
        loop {
            match inner.slots.standing(place.attempt) {
                Standing::Granted(grant) => return Ok(Turn::Granted(grant)),
                Standing::Unknown => return Ok(Turn::Gone),
                // Looking is what replicas confirm.
                Standing::Unconfirmed => {}
                Standing::Waits(look, woken) => {
                    let told = woken.notified();
                    tokio::pin!(told);
                    // Registered before looking once more, or a grant in between would be missed.
                    told.as_mut().enable();
                    if !matches!(inner.slots.standing(place.attempt), Standing::Waits(again, _) if again == look)
                    {
                        continue;
                    }
                    if !look.is_zero() {
                        tokio::select! {
                            biased; // news make looking needless
                            () = told => continue,
                            () = inner.client.context.spawner.sleep(look) => {}
                        }
                    }
                }
            }
            let Some(request) = inner.slots.request(place.attempt) else { return Ok(Turn::Gone) };
            // Nothing is lost if this is dropped now: what the server granted it also sent as a message.
            match inner.asked(&request, "look").await? {
                Some(Acquired::Queued(_) | Acquired::Granted(_)) => {}
                _ => return Ok(Turn::Gone),
            }
        }
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        self.inner.give_back(key, attempt, &scripts::WITHDRAW, End::Clean).await?;
        self.inner.slots.forget(attempt);
        Ok(())
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let (found, repeated) =
            self.inner.give_back(&grant.key, grant.attempt, &scripts::RELEASE, end).await?;
        if !found && repeated {
            // The first time may have found it.
            let why =
                format!("{}: whether it was given back by this is not known; it is not held now", grant.key);
            return Err(Error::new(ErrorKind::Unavailable, why).indeterminate());
        }
        self.inner.slots.forget(grant.attempt);
        Ok(if found { Released::Released } else { Released::WasNotHolder })
    }
}
