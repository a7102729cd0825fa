//! Leader election: an exclusive lock whose holder is public.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_core::Stream;

use crate::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, LockMode, Released};
use crate::guard::LossSignal;
use crate::lock::{break_holder, break_lock};
use crate::platform::clock::Deadline;
use crate::session::acquire::{Patience, acquire};
use crate::session::call::{Kept, Reads, holders, read};
use crate::session::live::GrantState;
use crate::session::release::{release, release_in_background};
use crate::session::run::run;
use crate::session::state::CloseOnDrop;
use crate::{Error, ErrorKind, GroupId, LossReason, Lost, MemberId, Result, Term};

/// The election of a group's leader. Making a handle does no I/O.
///
/// A candidate need not be a member of the group, and the group need not exist.
///
/// # Examples
/// ```
/// # use tooz_core::{self as tooz, Coordinator};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://an-election", "host-1").connect().await?;
/// let election = c.election("scheduler")?;
/// let leadership = election.campaign().await?; // waits until it is won
/// println!("leading in term {}", leadership.term());
/// leadership.resign().await?;
/// assert_eq!(election.leader().await?, None);
/// # c.close().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    shared: Arc<CloseOnDrop>,
    group: GroupId,
}

/// Who leads a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The leader, where the backend knows its name.
    pub member: Option<MemberId>,
    /// Its term, where it has one (a Python leader has none).
    pub term: Option<Term>,
    /// Since when, by the backend's clock where it has one.
    pub since: Option<SystemTime>,
}

impl Leader {
    fn of(holders: Holders) -> Option<Self> {
        let holder = holders.holders.into_iter().next()?;
        Some(Self { member: holder.member, term: holder.token.map(Term::from), since: holder.since })
    }
}

impl Election {
    pub(crate) fn new(shared: Arc<CloseOnDrop>, group: GroupId) -> Self {
        Self { shared, group }
    }

    /// The group.
    pub fn group(&self) -> &GroupId {
        &self.group
    }

    fn key(&self) -> LockKey {
        LockKey::Leader(self.group.clone())
    }

    async fn run_for(&self, patience: Patience) -> Result<Option<Leadership>> {
        let state = acquire(&self.shared, self.key(), LockMode::Exclusive, patience).await?;
        Ok(state.map(|state| Leadership {
            shared: Arc::clone(&self.shared),
            group: self.group.clone(),
            state,
        }))
    }

    /// Runs for leader and waits to win; the wait has no limit and survives a restart of the backend.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the backend did not answer the first request; `Closed`; `Corrupt` if terms
    /// went back.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the candidacy.
    pub async fn campaign(&self) -> Result<Leadership> {
        self.run_for(Patience::Forever).await?.ok_or_else(|| Error::from(ErrorKind::Backend))
    }

    /// Becomes leader if the group has no leader and no earlier candidate; answers at once.
    ///
    /// # Errors
    /// As [`Election::campaign`].
    ///
    /// # Cancel safety
    /// As [`Election::campaign`].
    pub async fn try_campaign(&self) -> Result<Option<Leadership>> {
        self.run_for(Patience::None).await
    }

    /// Runs for leader for at most `limit`.
    ///
    /// # Errors
    /// As [`Election::campaign`]; `Unavailable`, indeterminate, if the backend's last word is missing at the
    /// limit.
    ///
    /// # Cancel safety
    /// As [`Election::campaign`].
    pub async fn campaign_within(&self, limit: Duration) -> Result<Option<Leadership>> {
        self.run_for(Patience::For(limit)).await
    }

    /// The present leader; `None` while there is none.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        leader(self.shared.reader(), &self.group).await
    }

    /// Follows who leads: starts with the present state, reports each change including *vacant* (`None`), and
    /// never an older term after a newer one. A leadership that was over before it could be read may be skipped.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn observe(&self) -> Result<Observer> {
        observe(self.shared.reader(), &self.group, Arc::clone(&self.shared) as Kept).await
    }

    /// Ends the present leadership from outside; see [`Lock::break_lock`](crate::Lock::break_lock).
    ///
    /// # Errors
    /// As [`Lock::break_lock`](crate::Lock::break_lock).
    ///
    /// # Cancel safety
    /// A break that was begun is driven to its end.
    pub async fn break_leadership(&self, why: impl Into<String>) -> Result<Vec<HolderRecord>> {
        break_lock(&self.shared, BreakRequest::new(self.key(), self.shared.config.member.clone(), why)).await
    }

    /// The leadership as a lock: who holds it, and how many wait where the backend can say.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn holders(&self) -> Result<Holders> {
        holders(self.shared.reader(), self.key()).await
    }

    /// As [`Election::break_leadership`], but only this holder, as [`Election::holders`] has told it: if it has resigned
    /// meanwhile, the answer is empty, and a later leader stays.
    ///
    /// # Errors
    /// As [`Lock::break_lock`](crate::Lock::break_lock).
    ///
    /// # Cancel safety
    /// A break that was begun is driven to its end.
    pub async fn break_holder(
        &self,
        holder: &HolderRecord,
        why: impl Into<String>,
    ) -> Result<Vec<HolderRecord>> {
        break_holder(&self.shared, self.key(), holder, why.into()).await
    }
}

pub(crate) async fn leader(reader: &dyn Reads, group: &GroupId) -> Result<Option<Leader>> {
    holders(reader, LockKey::Leader(group.clone())).await.map(Leader::of)
}

pub(crate) async fn observe(reader: &dyn Reads, group: &GroupId, kept: Kept) -> Result<Observer> {
    let (driver, key) = (reader.driver(), LockKey::Leader(group.clone()));
    // The answer is a type of ours, as for a group's watch.
    let call = Box::pin(async move {
        let stream = driver.locks().watch(&key).await?;
        Ok(Observer { _kept: kept, stream, last: None, newest: None })
    });
    read(reader, call).await.map_err(|error| error.during("observe"))
}

/// The proof of leading a group. Dropping it resigns in the background. It guarantees what a
/// [`LockGuard`](crate::LockGuard) guarantees.
///
/// # Examples
/// Lead, and campaign again after a loss:
/// ```
/// # use tooz_core::{self as tooz, Coordinator};
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-leadership", "host-1").connect().await?;
/// # let kit = tooz_memory::Kit::of("memory://a-leadership")?;
/// # let mut rounds = 0;
/// let election = c.election("scheduler")?;
/// loop {
///     let leadership = election.campaign().await?;
///     let led = leadership.run(async {
/// #       rounds += 1;
/// #       if rounds == 1 {
/// #           kit.expire("host-1");
/// #           std::future::pending::<()>().await;
/// #       }
///         println!("working in term {}", leadership.term());
///     });
///     match led.await {
///         Ok(()) => break,
///         Err(lost) => println!("{lost}: another may lead now"),
///     }
/// }
/// # assert_eq!(rounds, 2);
/// # c.close().await
/// # }
/// ```
#[must_use = "a leadership that is dropped is resigned"]
pub struct Leadership {
    shared: Arc<CloseOnDrop>,
    group: GroupId,
    state: Arc<GrantState>,
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("group", &self.group)
            .field("term", &self.term())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

impl Leadership {
    /// The group.
    pub fn group(&self) -> &GroupId {
        &self.group
    }

    /// The term: larger with each leadership of the group. It is the fencing token.
    pub fn term(&self) -> Term {
        self.state.grant.token.into()
    }

    /// Whether it leads now, computed from the clock.
    pub fn is_held(&self) -> bool {
        self.state.loss().is_none()
    }

    /// When it ends unless it is renewed.
    pub fn deadline(&self) -> Option<Deadline> {
        self.state.deadline()
    }

    /// A signal for tasks that do not own the leadership.
    pub fn loss_signal(&self) -> LossSignal {
        LossSignal::new(&self.state)
    }

    /// Waits until the leadership is lost.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn lost(&self) -> LossReason {
        self.state.lost().await
    }

    /// Runs `work` while leading, as [`LockGuard::run`](crate::LockGuard::run) does; the loss cancels it.
    ///
    /// # Errors
    /// As [`LockGuard::run`](crate::LockGuard::run).
    ///
    /// # Cancel safety
    /// Dropping it drops `work`; the leadership stays.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Lost<F::Output>> {
        run(&self.state, work).await
    }

    /// Steps down and waits for the backend's answer. Resigning when it was lost is an answer, no error.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`: it goes on in the background.
    ///
    /// # Cancel safety
    /// Dropping the future lets it go on in the background.
    pub async fn resign(self) -> Result<Released> {
        release(&self.shared, &self.state).await
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        release_in_background(&self.shared, &self.state);
    }
}

/// The leaders of a group, one after the other.
pub struct Observer {
    _kept: Kept,
    stream: HolderStream,
    /// What was reported last, if anything was.
    last: Option<Seen>,
    newest: Option<Term>,
}

/// A state that an observer has reported.
#[derive(Debug, PartialEq)]
enum Seen {
    Vacant,
    Led(Leader),
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Observer {
    /// The next state; the first is the present one. `None`: the stream has ended.
    ///
    /// # Cancel safety
    /// Nothing is skipped.
    pub async fn next(&mut self) -> Option<Result<Option<Leader>>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Whether `state` is news: not what was reported last, and not of a term before it.
    fn is_news(&mut self, state: Option<&Leader>) -> bool {
        if let Some(term) = state.and_then(|leader| leader.term) {
            if self.newest.is_some_and(|newest| term < newest) {
                return false;
            }
            self.newest = Some(term);
        }
        let seen = state.cloned().map_or(Seen::Vacant, Seen::Led);
        if self.last.as_ref() == Some(&seen) {
            return false;
        }
        self.last = Some(seen);
        true
    }
}

impl Stream for Observer {
    type Item = Result<Option<Leader>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::task::ready!(self.stream.as_mut().poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.during("observe")))),
                Some(Ok(holders)) => {
                    let state = Leader::of(holders);
                    if self.is_news(state.as_ref()) {
                        return Poll::Ready(Some(Ok(state)));
                    }
                }
            }
        }
    }
}
