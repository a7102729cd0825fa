//! The one point that every call passes, where the test kit can act.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tooz_core::{Error, ErrorKind, MemberId};

/// The calls of a driver, for the kit to count and to disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening a session.
    Open,
    /// A beat.
    Renew,
    /// Asking for a lock.
    Request,
    /// Waiting for a turn in a queue.
    Turn,
    /// Withdrawing an attempt.
    Withdraw,
    /// Releasing a lock.
    Release,
    /// Joining a group.
    Join,
    /// Leaving a group.
    Leave,
    /// Publishing other capabilities.
    Update,
    /// Creating a group.
    Create,
    /// Deleting a group.
    Delete,
    /// Listing the groups.
    List,
    /// Reading the members of a group, or one of them.
    Members,
    /// Beginning to watch a group or a lock.
    Watch,
    /// Reading who holds a lock.
    Holders,
    /// Breaking a lock.
    Break,
    /// Raising the tokens.
    Raise,
    /// Closing a session.
    Close,
}

impl Operation {
    /// The name that errors carry.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open session",
            Self::Renew => "renew",
            Self::Request => "request lock",
            Self::Turn => "wait for lock",
            Self::Withdraw => "withdraw",
            Self::Release => "release",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Update => "update capabilities",
            Self::Create => "create group",
            Self::Delete => "delete group",
            Self::List => "list groups",
            Self::Members => "members",
            Self::Watch => "watch",
            Self::Holders => "holders",
            Self::Break => "break lock",
            Self::Raise => "raise tokens",
            Self::Close => "close session",
        }
    }
}

/// What shall become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It is not done, and the error says so: a refused connection.
    Fail,
    /// It is done, but its answer is lost: an indeterminate error.
    Indeterminate,
    /// It is never done, and the caller cannot know: the same indeterminate error.
    Lost,
}

/// What becomes of the calls of a member that is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cut {
    /// They hang until the member is healed: a network that drops packets.
    Hang,
    /// They fail at once: a network that answers "no route to host".
    Fail,
}

/// What the kit wants to happen.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) paused: bool,
    pub(crate) delay: Duration,
    pub(crate) answer_delay: Duration,
    pub(crate) cut: BTreeMap<MemberId, Cut>,
    pub(crate) next: VecDeque<Planned>,
    pub(crate) calls: BTreeMap<Operation, u64>,
    /// Calls that hang at the gate now.
    pub(crate) hanging: usize,
}

pub(crate) struct Planned {
    operation: Operation,
    member: Option<MemberId>,
    left: u64,
    outcome: Outcome,
}

impl Plan {
    /// Plans the outcome of the next `left` calls, of one member or of any.
    pub(crate) fn next(
        &mut self,
        operation: Operation,
        member: Option<MemberId>,
        left: u64,
        outcome: Outcome,
    ) {
        if left > 0 {
            self.next.push_back(Planned { operation, member, left, outcome });
        }
    }

    /// Takes what is planned for this call.
    pub(crate) fn take(&mut self, operation: Operation, member: Option<&MemberId>) -> Option<Outcome> {
        let fits = |planned: &Planned| {
            planned.operation == operation && (planned.member.is_none() || planned.member.as_ref() == member)
        };
        let index = self.next.iter().position(fits)?;
        let planned = self.next.get_mut(index)?;
        planned.left -= 1;
        let (left, outcome) = (planned.left, planned.outcome);
        if left == 0 {
            self.next.remove(index);
        }
        Some(outcome)
    }

    /// What stands between this member and the backend now.
    pub(crate) fn obstacle(&self, member: Option<&MemberId>) -> Option<Cut> {
        if self.paused {
            return Some(Cut::Hang);
        }
        self.cut.get(member?).copied()
    }
}

/// The error of a call that was cut off at once.
pub(crate) fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the test kit {what}"))
}

/// The error of a call whose answer is lost.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the test kit lost the answer").indeterminate()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planned_outcomes_are_used_up_in_order() {
        let member = MemberId::new("a").unwrap();
        let mut plan = Plan::default();
        plan.next(Operation::Join, Some(member.clone()), 1, Outcome::Lost);
        plan.next(Operation::Join, None, 2, Outcome::Fail);
        assert_eq!(plan.take(Operation::Leave, Some(&member)), None);
        assert_eq!(plan.take(Operation::Join, None), Some(Outcome::Fail));
        assert_eq!(plan.take(Operation::Join, Some(&member)), Some(Outcome::Lost));
        assert_eq!(plan.take(Operation::Join, Some(&member)), Some(Outcome::Fail));
        assert_eq!(plan.take(Operation::Join, Some(&member)), None);
        plan.next(Operation::Join, None, 1, Outcome::Fail);
        plan.next.clear();
        assert_eq!(plan.take(Operation::Join, Some(&member)), None);
    }
}
