//! Killing all that the command started, again and again until none of it is left.

use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use nix::unistd::Pid;

use super::descendants::{Descendants, Left, Spare, reap_adopted};
use super::protocol::boot_time;

/// How long a nested `tooz` that was not asked before has to release its own lock once its command is killed. Enough for
/// one exchange with a backend; the outer lock is lost, and the next holder may be at work.
const NESTED: Duration = Duration::from_millis(250);

/// How often to look again. The kernel needs a few milliseconds to end a process, and no event announces the end of
/// one that is no child.
const LOOK: Duration = Duration::from_millis(2);
/// How often to look for what is there after a second: it waits for a disk, or this user may not signal it. It may still
/// start others.
const LATER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));

/// A killing that goes on.
#[derive(Debug)]
pub(crate) struct Killing {
    asked: bool,
    began: Option<Duration>,
    /// What the last look found; `None`: `/proc` could not be read.
    pub(crate) left: Option<Vec<Left>>,
    /// When to strike again; `None`: nothing is left.
    pub(super) next: Option<Duration>,
}

impl Killing {
    /// Of those that were `asked` to end before, or not.
    pub(crate) fn new(asked: bool) -> Self {
        Self { asked, began: None, left: None, next: None }
    }

    /// Kills what runs now.
    pub(crate) fn strike(&mut self, descendants: &Descendants) {
        let spare = match self.began {
            _ if self.asked => Spare::Nothing,
            None => Spare::AskingNested,
            Some(_) if self.lasts() < NESTED => Spare::Nested,
            Some(_) => Spare::Nothing,
        };
        self.began.get_or_insert_with(boot_time);
        self.left = descendants.kill(spare).ok();
        let pause = if self.lasts() < LATER.0 { LOOK } else { LATER.1 };
        self.next = (!self.is_done()).then(|| boot_time() + pause);
    }

    /// Since when it goes on.
    pub(crate) fn lasts(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| boot_time().saturating_sub(began))
    }

    /// Whether nothing is left.
    pub(crate) fn is_done(&self) -> bool {
        self.left.as_ref().is_some_and(Vec::is_empty)
    }

    /// Strikes until nothing is left but what this user may not signal. Reaps all children but `own`.
    pub(super) fn finish(&mut self, descendants: &Descendants, own: Option<Pid>) {
        loop {
            self.strike(descendants);
            reap_adopted(own);
            if self.left.as_ref().is_some_and(|left| left.iter().all(|left| left.is_refused)) {
                return;
            }
            // It watches nothing: a pause.
            let pause = self.next.map_or(LOOK, |next| next.saturating_sub(boot_time()));
            let _ = poll(&mut [], PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO));
        }
    }
}
