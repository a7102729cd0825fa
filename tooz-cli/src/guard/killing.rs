//! Killing all that the command started, again and again until none of it runs.

use std::time::Duration;

use nix::poll::{PollTimeout, poll};

use super::boot_time;
use super::descendants::{Descendants, Left, Spare};

/// How long a nested `tooz` has to release its own lock once its command is killed. Enough for one exchange with a
/// backend; the outer lock is lost, and the next holder may be at work.
const NESTED: Duration = Duration::from_millis(250);

/// How often to look again. The kernel needs a few milliseconds to end a process, and no event announces the end of
/// one that is no child.
const LOOK: Duration = Duration::from_millis(2);

/// A killing that goes on.
#[derive(Debug, Default)]
pub(crate) struct Killing {
    began: Option<Duration>,
    /// What the last look found.
    pub(crate) left: Vec<Left>,
    /// When to strike again; `None`: no strike can change anything.
    pub(super) next: Option<Duration>,
}

impl Killing {
    /// Kills what runs now.
    pub(crate) fn strike(&mut self, descendants: &Descendants) {
        let spare = match self.began {
            None => Spare::AskingNested,
            Some(_) if self.lasts() < NESTED => Spare::Nested,
            Some(_) => Spare::Nothing,
        };
        self.began.get_or_insert_with(boot_time);
        self.left = descendants.kill(spare);
        let in_reach = self.left.iter().any(|left| !left.is_out_of_reach);
        self.next = in_reach.then(|| boot_time() + LOOK);
    }

    /// Since when it goes on.
    pub(crate) fn lasts(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| boot_time().saturating_sub(began))
    }

    /// Strikes until no further strike can change anything.
    pub(super) fn finish(&mut self, descendants: &Descendants) {
        loop {
            self.strike(descendants);
            if self.next.is_none() {
                return;
            }
            // It watches nothing: a pause.
            let _ = poll(&mut [], PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        }
    }
}
