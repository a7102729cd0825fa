//! At which awaits of the core a future is suspended: the stack under which it last said "not yet".

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::OnceLock;

use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Metadata, Subscriber, span};

/// Where the core's files are found in a path.
const CORE: &str = "tooz-core/src/";

/// A line of the core: its file below `src`, and the line's number.
pub type Line = (String, usize);

thread_local! {
    /// The lines under which the poll that is being watched on this thread had to wait so far.
    static SEEN: RefCell<Option<BTreeSet<Line>>> = const { RefCell::new(None) };
}

/// Watches one poll.
pub(super) fn watch<T>(poll: impl FnOnce() -> T) -> (T, BTreeSet<Line>) {
    // One dispatcher for all polls: each new one makes every event of the process ask anew who listens. And an idle
    // one beside it: with a single dispatcher, an event that is first emitted outside of its scope is disabled for good (tracing-core 0.1.36, `Rebuilder::JustOne`).
    static LISTENER: OnceLock<[Dispatch; 2]> = OnceLock::new();
    let [listener, _] =
        LISTENER.get_or_init(|| [Dispatch::new(AwaitListener), Dispatch::new(NoSubscriber::default())]);
    SEEN.set(Some(BTreeSet::new()));
    let polled = tracing::dispatcher::with_default(listener, poll);
    (polled, SEEN.take().unwrap_or_default())
}

/// Notes who has to wait, if a poll is being watched.
pub(super) fn look() {
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            // Whatever the environment says about backtraces.
            seen.extend(lines(&Backtrace::force_capture().to_string()));
        }
    });
}

/// The lines of the core in a backtrace as it is shown: a frame's place stands on a line of its own, `at FILE:LINE:COLUMN`.
fn lines(backtrace: &str) -> BTreeSet<Line> {
    let places = backtrace.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
    let ours = places.filter_map(|place| place.split_once(CORE)).filter_map(|(_, place)| {
        let mut parts = place.split(':');
        Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
    });
    ours.collect()
}

/// Receives the events of the core's own awaits.
struct AwaitListener;

impl Subscriber for AwaitListener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == tooz_core::AWAIT_TARGET
    }

    fn event(&self, _: &Event<'_>) {
        look();
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_of_the_core_is_heard() {
        let sleep = std::pin::pin!(async {
            let spawner = tooz_core::driver::Spawner::new(tooz_core::Runtime::Library).unwrap();
            spawner.sleep(std::time::Duration::from_secs(1)).await;
        });
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let (poll, seen) = watch(|| sleep.poll(&mut context));
        assert!(poll.is_pending());
        assert!(seen.iter().any(|(file, _)| file == "platform/runtime.rs"), "{seen:?}");
    }

    #[test]
    fn frames_of_others_are_left_out() {
        let shown = "   3: tooz_core::lock::contend::{{closure}}\n             at /x/tooz-core/src/lock.rs:310:40\n   \
                     4: core::ops\n             at /rustc/core/src/ops.rs:1:1\n   \
                     5: tooz_core::keeper\n             at ./tooz-core/src/keeper/mod.rs:7:9\n";
        let expected = [("keeper/mod.rs".to_owned(), 7), ("lock.rs".to_owned(), 310)];
        assert_eq!(lines(shown), expected.into());
    }
}
