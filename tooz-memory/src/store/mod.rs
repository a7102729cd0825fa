//! The backends of this process by name, and the one lock around each.
//!
//! A call locks the [`state`], acts on it in one step, and releases the lock.

pub(crate) mod feed;
mod groups;
mod locks;
mod sessions;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use tooz_core::driver::{Context, Epoch, Spawner};

use crate::config::Config;
use state::{State, Step};

/// Weak, so that a backend ends with its last driver, stream or kit, and tests with random names leave nothing.
static BACKENDS: Mutex<BTreeMap<Vec<u8>, Weak<Backend>>> = Mutex::new(BTreeMap::new());

/// Timers stand still while a machine is suspended, and in simulation when the clock is made to jump. A call that
/// waits for a session's end therefore reads the clock at least this often, as the rest of tooz does.
const SLICE: Duration = Duration::from_millis(250);

/// One backend.
pub(crate) struct Backend {
    name: Vec<u8>,
    state: Mutex<State>,
}

impl Backend {
    /// The backend of this name, made if there is none.
    pub(crate) fn named(name: &[u8]) -> Arc<Self> {
        let mut backends = BACKENDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = backends.get(name).and_then(Weak::upgrade) {
            return backend;
        }
        let backend = Arc::new(Self { name: name.to_vec(), state: Mutex::default() });
        backends.insert(name.to_vec(), Arc::downgrade(&backend));
        backend
    }

    /// Counts a driver and returns its number. The first driver brings clock and epoch.
    pub(crate) fn attach(&self, config: &Config, context: &Context) -> u64 {
        self.act(|state| {
            if state.clock.is_none() {
                state.clock = Some(context.clock.clone());
                // As in the other backends: above the tokens of an earlier one, unless the clock was set back.
                let since = context.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
                state.fence = u64::try_from(since.as_micros()).unwrap_or_default();
                state.first_fence = state.fence;
            }
            state.epoch.get_or_insert_with(|| Epoch(context.entropy.id()));
            if let Some(fault) = config.fault {
                tracing::warn!(?fault, "this in-process backend is deliberately wrong from now on");
                state.fault = Some(fault);
            }
            state.drivers += 1;
            state.drivers
        })
    }

    /// One atomic step: first ends the sessions that are due by the clock, then acts. Wakes go out after the lock.
    pub(crate) fn act<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        let (answer, wakes) = {
            // A panic inside would be a defect of this crate; the data is still the best there is.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.reap();
            let answer = step(&mut state);
            (answer, std::mem::take(&mut state.wakes))
        };
        for wake in wakes {
            wake.notify_waiters();
        }
        answer
    }

    /// Looks at the state until `look` is done. Woken by what `look` names, by a change of the kit's plan, and when a
    /// session's time is over.
    ///
    /// # Cancel safety
    /// Between the look that is done and the return there is no await: an answer is returned or still there.
    pub(crate) async fn wait<T>(&self, spawner: &Spawner, mut look: impl FnMut(&mut State) -> Step<T>) -> T {
        loop {
            // The wake-ups count from here, inside the lock, so that none is lost between look and wait.
            let step = self.act(|state| match look(state) {
                Step::Done(answer) => Err(answer),
                Step::Wait(notify) => Ok((
                    notify.notified_owned(),
                    state.changed.clone().notified_owned(),
                    state.until_expiry(),
                )),
            });
            let (woken, changed, expiry) = match step {
                Ok(wait) => wait,
                Err(answer) => return answer,
            };
            let (mut woken, mut changed) = (pin!(woken), pin!(changed));
            let mut sleep = pin!(expiry.map(|left| spawner.sleep(left.min(SLICE))));
            // In this order since a wake-up is the common reason; all of them lead to the same look.
            poll_fn(|cx| {
                let told = woken.as_mut().poll(cx).is_ready() || changed.as_mut().poll(cx).is_ready();
                let over = told || sleep.as_mut().as_pin_mut().is_some_and(|sleep| sleep.poll(cx).is_ready());
                if over { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let mut backends = BACKENDS.lock().unwrap_or_else(PoisonError::into_inner);
        // Another backend may have taken the name since the last reference went.
        if backends.get(&self.name).is_some_and(|backend| backend.strong_count() == 0) {
            backends.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_ends_with_its_last_user() {
        let one = Backend::named(b"a_backend_ends");
        let same = Backend::named(b"a_backend_ends");
        one.act(|state| state.fence = 7);
        assert_eq!(same.act(|state| state.fence), 7);
        drop((one, same));
        assert!(!BACKENDS.lock().unwrap().contains_key(&b"a_backend_ends"[..]));
        assert_eq!(Backend::named(b"a_backend_ends").act(|state| state.fence), 0);
    }
}
