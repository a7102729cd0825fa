//! Waiting in the queue. A waiter watches the key of the waiter right before it; the first one watches the holders.
//!
//! So a release wakes one waiter, or all readers up to the next writer, and no waiter polls.

use etcd_client::{Event, EventType};
use tooz_core::driver::{LockMode, QueueEntry, Turn};
use tooz_core::{ErrorKind, Result};

use crate::connection::watcher::News;
use crate::error::closed;
use crate::lock::attempt::{Attempt, Step};
use crate::lock::state::{State, Verdict, ranges};
use crate::session_state::SessionState;

/// Waits until the attempt is granted, or is no longer in the queue.
pub(crate) async fn wait(session: &SessionState, entry: &QueueEntry) -> Result<Turn> {
    loop {
        match once(session, entry).await {
            Ok(turn) => return Ok(turn),
            // A waiter waits for the server, too. Asking twice does no harm: a position can be used only once.
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                tracing::debug!(%error, key = %entry.key, "waiting goes on");
                session.client.connection.pause().await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn once(session: &SessionState, entry: &QueueEntry) -> Result<Turn> {
    let known = session.position(entry.attempt);
    let mut attempt =
        Attempt::new(session, entry.attempt, &entry.key, known.map_or(LockMode::Exclusive, |known| known.0));
    attempt.position = known.map(|known| known.1);
    let mut state = session.look(&attempt).await?;
    loop {
        if let Some(holder) = state.holder(attempt.id) {
            attempt.mode = holder.mode;
            return Ok(session.confirm_grant(&attempt, holder).await?.map_or(Turn::Gone, Turn::Granted));
        }
        let Some(waiter) = state.waiter(attempt.id) else {
            session.set_position(attempt.id, None);
            return Ok(Turn::Gone);
        };
        let at = (waiter.mode, waiter.position);
        let elsewhere =
            attempt.position.replace(waiter.position).is_some_and(|position| position != waiter.position);
        attempt.mode = waiter.mode;
        session.set_position(attempt.id, Some(at));
        if elsewhere {
            // The attempt was queued anew: the look did not read what is before its new position.
            state = session.look(&attempt).await?;
            continue;
        }
        let verdict = state.verdict(attempt.mode, Some(waiter.position));
        if verdict == Verdict::Free {
            match session.claim(&attempt, &state).await? {
                Step::Granted(grant) => return Ok(Turn::Granted(grant)),
                Step::Otherwise(now) => state = now,
            }
            continue;
        }
        let waiter = waiter.clone();
        let changed = change(session, &attempt, &state, &verdict).await?;
        state = match changed {
            Changed::Seen(now) => now,
            Changed::Freed if attempt.mode == LockMode::Exclusive && verdict == Verdict::Held => {
                // Most likely the lock is free now: claiming it at once saves a look. If it is not free, the answer of
                // the claim is that look.
                let guess = State::free_for(waiter);
                match session.claim(&attempt, &guess).await? {
                    Step::Granted(grant) => return Ok(Turn::Granted(grant)),
                    Step::Otherwise(now) => now,
                }
            }
            Changed::Freed | Changed::Anything => session.look(&attempt).await?,
        };
    }
}

enum Changed {
    /// A key that this attempt waited for is gone.
    Freed,
    /// The lock is in this state now.
    Seen(State),
    /// The history is gone: anything may have happened.
    Anything,
}

/// Waits until a key changes that keeps this attempt waiting.
async fn change(
    session: &SessionState,
    attempt: &Attempt,
    state: &State,
    verdict: &Verdict,
) -> Result<Changed> {
    let mut watcher = session.watch(ranges(&attempt.keys, verdict), state.revision);
    watcher.hurried = true;
    let gone = |event: &Event| event.event_type() == EventType::Delete;
    loop {
        match watcher.next().await {
            News::Events(events, _) if events.iter().any(gone) => return Ok(Changed::Freed),
            News::Events(..) | News::Resumed | News::Other => {}
            News::Behind => {
                // A moving queue moved while the watch began. A second look shows that sooner than the watch does. If the
                // verdict is the same, the watch goes on and tells the next change.
                let now = session.look(attempt).await?;
                let position = now.waiter(attempt.id).map(|waiter| waiter.position);
                if position.is_none() || now.verdict(attempt.mode, position) != *verdict {
                    return Ok(Changed::Seen(now));
                }
            }
            News::Gap => return Ok(Changed::Anything),
            News::End => return Err(closed()),
        }
    }
}
