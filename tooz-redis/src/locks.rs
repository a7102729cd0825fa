//! Locks of a session.

use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::support::errors::other_limit;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, QueueEntry, Released, SessionLocks, Turn,
};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::connection::reply::Parts;
use crate::scripts::codes::{end_code, mode_code, parse_previous};
use crate::scripts::{self, Script};
use crate::session::RedisSession;
use crate::session_state::{AttemptState, CONFIRMATIONS};

/// While Python holds a lock, the first in the queue asks this often: Python publishes no release.
const POLL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(100));
/// Behind a holder of ours, waiter k asks k × 20 ms later than the first. Normally a message wakes it; this is the fallback.
const STAGGER: Duration = Duration::from_millis(20);

impl RedisSession {
    /// Calls the script; `None`: the attempt is not on the server any more.
    async fn call_request(&self, request: &Acquire, wish: &str) -> Result<Option<Acquired>> {
        let (state, client, attempt) = (&self.state, &self.state.client, request.attempt);
        let (lock, (mode, limit)) = (client.keys.lock(&request.key), mode_code(request.mode));
        let call = scripts::REQUEST
            .call()
            .keys(lock.keys())
            .keys([state.key(), client.keys.fence()])
            .arg(attempt.to_string())
            .arg(state.id.to_string())
            .arg(mode)
            .number(limit)
            .number(state.ttl.as_millis())
            .number(client.config().retention().as_millis())
            .arg(wish)
            .arg(&lock.base)
            .arg(state.member.as_bytes())
            .confirm();
        let sent = client.context().clock.now();
        let answer = client.call(&call).await?;
        let unconfirmed = answer.unconfirmed;
        let mut answer = Parts::of(answer.value)?;
        match answer.text("its outcome")?.as_str() {
            "granted" => {
                let token = u64::try_from(answer.number("a token")?).ok().and_then(FencingToken::new);
                let token =
                    token.ok_or_else(|| Error::new(ErrorKind::Corrupt, "a fencing token is no number"))?;
                let how = parse_previous(&answer.text("how the last holder ended")?);
                let left = Duration::from_millis(u64::try_from(answer.number("the time left")?).unwrap_or(0));
                // If less than the ttl is left, an earlier request proved it.
                let proved = sent - state.ttl.saturating_sub(left);
                match (state.attempts.grant(attempt, token, how, proved, unconfirmed.is_none()), unconfirmed)
                {
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
                state.attempts.set_waiting(attempt, self.recheck_after(foreign, life, before));
                Ok(Some(Acquired::Queued(QueueEntry::new(attempt, request.key.clone()))))
            }
            "held" => {
                state.attempts.forget(attempt);
                Ok(Some(Acquired::Held))
            }
            "limit" => {
                state.attempts.forget(attempt);
                Err(other_limit(&request.key, limit, answer.text("the limit")?))
            }
            // Only a look says so.
            "gone" => Ok(None),
            _ => Err(state.lost()),
        }
    }

    /// When a waiter asks the server again without a message. `life`: how long the holder lives at most.
    fn recheck_after(&self, foreign: bool, life: Duration, before: u32) -> Duration {
        if foreign && before == 0 {
            self.state.client.context().entropy.between(POLL.0, POLL.1)
        } else {
            life.max(POLL.0) + STAGGER * (before + 1)
        }
    }

    /// Returns whether the server found the attempt, and whether the call was sent twice.
    async fn give_back(
        &self,
        key: &LockKey,
        attempt: AttemptId,
        script: &'static Script,
        end: End,
    ) -> Result<(bool, bool)> {
        let (state, client) = (&self.state, &self.state.client);
        let lock = client.keys.lock(key);
        let call = script
            .call()
            .keys(lock.keys())
            .keys([state.key(), client.keys.fence()])
            .arg(attempt.to_string())
            .arg(state.id.to_string())
            .number(client.config().retention().as_millis())
            .arg(&lock.base)
            .arg(end_code(end));
        let answer = client.call(&call).await?;
        Ok((answer.value == redis::Value::Int(1), answer.repeated))
    }
}

#[async_trait]
impl SessionLocks for RedisSession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        self.state.attempts.register(request)?;
        let unconfirmed = || matches!(self.state.attempts.state(request.attempt), AttemptState::Unconfirmed);
        let wish = if request.wait { "wait" } else { "try" };
        let mut asked = self.call_request(request, wish).await;
        for _ in 1..CONFIRMATIONS {
            if asked.is_ok() || !unconfirmed() {
                break;
            }
            asked = self.call_request(request, "look").await;
        }
        match asked {
            Ok(Some(acquired)) => Ok(acquired),
            Ok(None) => {
                self.state.attempts.forget(request.attempt);
                let why = format!("{}: the grant is gone, and no replica had confirmed it", request.key);
                Err(Error::new(ErrorKind::Unavailable, why))
            }
            Err(error) if unconfirmed() => {
                // A grant that does not count must not keep others out.
                let back = self.withdraw(&request.key, request.attempt).await;
                Err(if back.is_ok() { error } else { error.indeterminate() })
            }
            Err(error) => {
                if !error.is_indeterminate() {
                    self.state.attempts.forget(request.attempt);
                }
                Err(error)
            }
        }
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        let (attempts, spawner) = (&self.state.attempts, &self.state.client.context().spawner);
        loop {
            match attempts.state(entry.attempt) {
                AttemptState::Granted(grant) => return Ok(Turn::Granted(grant)),
                AttemptState::Unknown => return Ok(Turn::Gone),
                // Replicas confirm the answer to a look.
                AttemptState::Unconfirmed => {}
                AttemptState::Waiting(recheck, woken) => {
                    let woken = woken.notified();
                    tokio::pin!(woken);
                    // Registered before the second check, or a grant in between would be missed.
                    woken.as_mut().enable();
                    let state = attempts.state(entry.attempt);
                    if !matches!(state, AttemptState::Waiting(again, _) if again == recheck) {
                        continue;
                    }
                    if !recheck.is_zero() {
                        tokio::select! {
                            biased; // a message makes the question needless
                            () = woken => continue,
                            () = spawner.sleep(recheck) => {}
                        }
                    }
                }
            }
            let Some(request) = attempts.request(entry.attempt) else { return Ok(Turn::Gone) };
            // Dropping this future loses nothing: what the server grants, it also sends as a message.
            match self.call_request(&request, "look").await? {
                Some(Acquired::Queued(_) | Acquired::Granted(_)) => {}
                _ => return Ok(Turn::Gone),
            }
        }
    }

    async fn withdraw(&self, key: &LockKey, attempt: AttemptId) -> Result<()> {
        self.give_back(key, attempt, &scripts::WITHDRAW, End::Clean).await?;
        self.state.attempts.forget(attempt);
        Ok(())
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let (found, repeated) = self.give_back(&grant.key, grant.attempt, &scripts::RELEASE, end).await?;
        if !found && repeated {
            // The first call may have found it.
            let why = format!("{}: the reply was lost, and the lock is not held now", grant.key);
            return Err(Error::new(ErrorKind::Unavailable, why).indeterminate());
        }
        self.state.attempts.forget(grant.attempt);
        Ok(if found { Released::Released } else { Released::WasNotHolder })
    }
}
