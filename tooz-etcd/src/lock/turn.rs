//! Waiting for one's turn: for the end of whoever is right before, or of the holders if nobody is.
//!
//! So a release wakes one waiter, or all readers up to the next writer, and nobody asks again and again.

use etcd_client::{Event, EventType};
use tooz_core::driver::{LockMode, Place, Turn};
use tooz_core::{ErrorKind, Result};

use crate::connection::watcher::{News, Tail};
use crate::lock::attempt::{Step, Wish};
use crate::lock::state::{State, Verdict, ranges};
use crate::session_state::Life;

/// Waits until the place is granted or gone.
pub(crate) async fn wait(life: &Life, place: &Place) -> Result<Turn> {
    loop {
        match once(life, place).await {
            Ok(turn) => return Ok(turn),
            // Whoever waits waits for the server, too. Asking twice does no harm here: a place can be used up once.
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                tracing::debug!(%error, key = %place.key, "waiting goes on");
                life.client.connection.pause().await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn once(life: &Life, place: &Place) -> Result<Turn> {
    let known = life.place(place.attempt);
    let mut wish =
        Wish::new(life, place.attempt, &place.key, known.map_or(LockMode::Exclusive, |known| known.0));
    wish.place = known.map(|known| known.1);
    let mut state = life.look(&wish).await?;
    loop {
        if let Some(holder) = state.holder(wish.attempt) {
            wish.mode = holder.mode;
            return Ok(life.standing_grant(&wish, holder).await?.map_or(Turn::Gone, Turn::Granted));
        }
        let Some(waiter) = state.waiter(wish.attempt) else {
            life.waits(wish.attempt, None);
            return Ok(Turn::Gone);
        };
        let at = (waiter.mode, waiter.place);
        let elsewhere = wish.place.replace(waiter.place).is_some_and(|place| place != waiter.place);
        wish.mode = waiter.mode;
        life.waits(wish.attempt, Some(at));
        if elsewhere {
            // It was asked for anew: who is before it now was not read.
            state = life.look(&wish).await?;
            continue;
        }
        let verdict = state.verdict(wish.mode, Some(waiter.place))?;
        if verdict == Verdict::Free {
            match life.claim(&wish, &state).await? {
                Step::Granted(grant) => return Ok(Turn::Granted(grant)),
                Step::Otherwise(now) => state = now,
            }
            continue;
        }
        let waiter = waiter.clone();
        let changed = change(life, &wish, &state, &verdict).await?;
        state = match changed {
            Changed::Seen(now) => now,
            Changed::Freed if wish.mode == LockMode::Exclusive && verdict == Verdict::Held => {
                // Most likely it is free now: taking it at once saves the look before. If it is not, the answer is the look.
                let guess = State::free_for(waiter);
                match life.claim(&wish, &guess).await? {
                    Step::Granted(grant) => return Ok(Turn::Granted(grant)),
                    Step::Otherwise(now) => now,
                }
            }
            Changed::Freed | Changed::Anything => life.look(&wish).await?,
        };
    }
}

enum Changed {
    /// Something that stood before us is gone.
    Freed,
    /// It is like this now.
    Seen(State),
    /// Nobody knows what happened.
    Anything,
}

async fn change(life: &Life, wish: &Wish, state: &State, verdict: &Verdict) -> Result<Changed> {
    let client = &life.client;
    let epoch = life.opened.stamp.to_string().into_bytes();
    let mut tail =
        Tail::new(&client.connection, &client.keys, epoch, ranges(&wish.keys, verdict), state.revision);
    tail = tail.hurried();
    let gone = |event: &Event| event.event_type() == EventType::Delete;
    loop {
        match tail.next().await {
            News::Events(events, _) if events.iter().any(gone) => return Ok(Changed::Freed),
            News::Events(..) | News::Resumed | News::Other => {}
            News::Behind => {
                // In a queue that moves, it moved while we began to watch. A second look finds that sooner than the watch does,
                // which stays all the same: if nothing is other than it was, it tells what comes next.
                let now = life.look(wish).await?;
                let place = now.waiter(wish.attempt).map(|waiter| waiter.place);
                if place.is_none() || now.verdict(wish.mode, place)? != *verdict {
                    return Ok(Changed::Seen(now));
                }
            }
            News::Gap => return Ok(Changed::Anything),
            News::End => return Err(crate::error::closed()),
        }
    }
}
