//! A member's handle on everything.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::driver::SessionId;
use crate::election::Election;
use crate::group::Group;
use crate::heart::{Heart, Liveness};
use crate::hooks::Hooks;
use crate::lock::Lock;
use crate::lock_set::LockSet;
use crate::platform::runtime::block_on;
use crate::session::call::{Reads, closed, groups};
use crate::session::events::Events;
use crate::session::state::{CloseOnDrop, Command, Phase, Shared};
use crate::{
    BackendUrl, Characteristics, Error, ErrorKind, FencingToken, GroupId, LockName, LossReason, MemberId,
    Result,
};

/// A member's handle on groups, locks and elections. It owns one session; clones share it.
///
/// The session lives until [`Coordinator::close`], or until the last clone, handle, guard, leadership and watch is
/// dropped. Then it closes in the background, and what runs in the background ends with the process. So a program that
/// is about to end closes its coordinator, or works in a [`Coordinator::scope`].
///
/// Every operation ends within `operation_timeout` (10 s); waiting for a lock does not count. Operations work on any
/// executor, or on none: the library has a runtime thread of its own (see [`Runtime`](crate::Runtime)).
///
/// When the session is lost, every lock and leadership is lost with it. The coordinator then opens a new session and
/// joins its groups again. Locks are not taken back: the program is told and decides.
///
/// # Examples
/// ```
/// # use tooz_core::{self as tooz, Coordinator, Liveness, LossReason};
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// let c = Coordinator::builder("memory://a-coordinator", "host-1").connect().await?;
/// # let kit = tooz_memory::Kit::of("memory://a-coordinator")?;
/// let guard = c.lock("reindex")?.acquire().await?;
/// println!("held until {:?}", guard.deadline());
/// # kit.expire("host-1");
/// // The session expires, and the guard with it.
/// assert_eq!(guard.lost().await, LossReason::Expired);
/// let again = c.lock("reindex")?.acquire().await?; // in the new session
/// assert!(matches!(c.liveness(), Liveness::Alive { .. }) && again.token() > guard.token());
/// c.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Coordinator {
    hooks: Hooks,
    shared: Arc<CloseOnDrop>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("url", &self.shared.config.url)
            .field("member", &self.shared.config.member)
            .field("liveness", &self.liveness())
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let shared = Arc::new(CloseOnDrop(shared));
        Self { hooks: Hooks::new(&shared), shared }
    }

    /// This coordinator's member id.
    pub fn member(&self) -> &MemberId {
        &self.shared.config.member
    }

    /// The backend's URL with all options; showing it shows no secret.
    pub fn url(&self) -> &BackendUrl {
        &self.shared.config.url
    }

    /// What this backend keeps, as it said when it was connected to.
    pub fn characteristics(&self) -> Characteristics {
        self.shared.characteristics
    }

    /// Whether the session lives, computed from the clock now.
    pub fn liveness(&self) -> Liveness {
        let phase = self.shared.phase.borrow().clone();
        match phase {
            Phase::Up(lease) => match (lease.loss(), lease.deadline()) {
                (Some(why), _) => Liveness::Lost { why },
                (None, Some(until)) if lease.is_suspended() => Liveness::Suspended { until },
                (None, until) => Liveness::Alive { until },
            },
            Phase::Down(why) => Liveness::Lost { why },
            Phase::Closed(_) => Liveness::Lost { why: LossReason::SessionClosed },
        }
    }

    /// The present session's id; `None` while there is none.
    pub fn session_id(&self) -> Option<SessionId> {
        match &*self.shared.phase.borrow() {
            Phase::Up(lease) if lease.loss().is_none() => Some(lease.id),
            _ => None,
        }
    }

    /// What happens to the session from now on.
    pub fn events(&self) -> Events {
        Events::new(self.shared.subscribe())
    }

    /// The hooks: callbacks for joins, leaves and elections.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// The heart.
    pub fn heart(&self) -> Heart {
        Heart(Arc::clone(&self.shared))
    }

    /// Whether the session ends unless it is renewed in time.
    pub fn requires_beating(&self) -> bool {
        !self.shared.characteristics.contains(Characteristics::NON_TIMEOUT_BASED)
    }

    /// Beats once by hand, and answers how long it is until the next beat is due; `None` where none is needed.
    /// When the session was lost and the heart is stopped, this opens a new one.
    ///
    /// # Errors
    /// `SessionLost`: this beat found that it is gone. `Unavailable`, `Timeout`: not renewed. `Closed`.
    ///
    /// # Cancel safety
    /// The beat goes on.
    pub async fn heartbeat(&self) -> Result<Option<Duration>> {
        let beat = async {
            self.shared.check()?;
            let (answer, answered) = oneshot::channel();
            self.shared.command(Command::Beat(answer));
            self.shared.in_time(async { answered.await.unwrap_or_else(|_| Err(closed())) }).await
        };
        beat.await.map_err(|error| error.during("heartbeat"))
    }

    /// A lock.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty or longer than 255 bytes.
    pub fn lock(&self, name: impl AsRef<[u8]>) -> Result<Lock> {
        Ok(Lock::new(Arc::clone(&self.shared), LockName::new(name)?))
    }

    /// Several locks to be taken together, in an order that cannot deadlock.
    ///
    /// # Errors
    /// `Invalid` for a name that is empty or longer than 255 bytes.
    pub fn lock_all<I>(&self, names: I) -> Result<LockSet>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let locks: Result<Vec<_>> = names.into_iter().map(|name| self.lock(name)).collect();
        Ok(LockSet::new(locks?))
    }

    /// A group.
    ///
    /// # Errors
    /// `Invalid` for an id that is empty or longer than 255 bytes.
    pub fn group(&self, id: impl AsRef<[u8]>) -> Result<Group> {
        Ok(Group::new(Arc::clone(&self.shared), GroupId::new(id)?))
    }

    /// The election of a group's leader.
    ///
    /// # Errors
    /// `Invalid` for an id that is empty or longer than 255 bytes.
    pub fn election(&self, group: impl AsRef<[u8]>) -> Result<Election> {
        Ok(Election::new(Arc::clone(&self.shared), GroupId::new(group)?))
    }

    /// Every group, sorted by bytes.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn groups(&self) -> Result<Vec<GroupId>> {
        groups(self.shared.reader()).await
    }

    /// Sees to it that every later grant, of each lock and election, has a token of at least `n`: 1 to 2^52
    /// ([`FencingToken::RAISE_LIMIT`]).
    ///
    /// For two occasions: a program moves to another backend, or a backend is restored from a backup. Tokens may then be
    /// smaller than those that the protected resources have seen, and these would refuse every write. Before anything is
    /// locked there, pass one more than the largest token that they hold. `tooz tokens raise --to N` does the same.
    ///
    /// # Guarantees
    /// Once this has returned, every grant has a token of at least `n`, whichever coordinator asks for it and however long it was
    /// waited for. Guards from before stay valid, with the smaller tokens that they have. Tokens never go back: an `n` that
    /// the counter has passed changes nothing, and the call can be repeated. Namespaces may share a counter; then it rises
    /// for all of them. The raise is kept as long as the counter is ([`Characteristics::DURABLE_FENCING`]).
    ///
    /// # Errors
    /// `Invalid`: `n` is 0 or more than 2^52, and nothing was changed. `Unavailable`, `Timeout`: repeat it. `Denied`;
    /// `Corrupt` if the counter cannot be read; `Unsupported` by a driver that has none to raise.
    ///
    /// # Cancel safety
    /// A raise that was begun is driven to its end.
    ///
    /// # Examples
    /// ```
    /// # use tooz_core::{self as tooz, Coordinator};
    /// # use tooz_memory as _;
    /// # #[tokio::main]
    /// # async fn main() -> tooz::Result<()> {
    /// let c = Coordinator::builder("memory://moved", "host-1").connect().await?;
    /// let largest = 1_763_000_000_000_042; // SELECT max(fence) FROM job
    /// c.raise_tokens(largest + 1).await?;
    /// assert!(c.lock("reindex")?.acquire().await?.token().get() > largest);
    /// # c.close().await
    /// # }
    /// ```
    pub async fn raise_tokens(&self, n: u64) -> Result<()> {
        let during = |error: Error| error.during("raise tokens");
        let least = FencingToken::new(n).filter(|least| least.get() <= FencingToken::RAISE_LIMIT);
        let least = least.ok_or_else(|| {
            let limit = FencingToken::RAISE_LIMIT;
            let why = format!("tokens cannot be raised to {n}; give a number from 1 to {limit} (2^52)");
            during(Error::new(ErrorKind::Invalid, why))
        })?;
        tracing::info!(%least, "raising the fencing tokens");
        let driver = Arc::clone(&self.shared.driver);
        let call = Box::pin(async move { driver.locks().raise_tokens(least).await });
        self.shared.plain_call(call).await.map_err(during)
    }

    /// Simulation: lets `duration` pass on this coordinator's clock as if its machine had been suspended, so that no
    /// timer notices. Without effect on the library's own runtime.
    #[doc(hidden)]
    pub fn simulate_suspend(&self, duration: Duration) {
        self.shared.clock.simulate_suspend(duration);
    }

    /// Test of tests: from now on what callers leave unfinished is dropped instead of being driven to its end. A
    /// suite that claims to notice leaks has to notice these.
    #[doc(hidden)]
    pub fn simulate_abandon(&self) {
        self.shared.abandoning.store(true, Ordering::Relaxed);
    }

    /// [`Coordinator::close`] for code that cannot await: blocks this thread for at most `limit`.
    ///
    /// # Errors
    /// As [`Coordinator::close`]; `Unavailable` if `limit` is over first, and closing goes on; `Invalid` on the runtime on
    /// which the coordinator lives ([`Runtime::Current`](crate::Runtime)), which could wait for itself; also on its threads
    /// for blocking work.
    pub fn close_blocking(&self, limit: Duration) -> Result<()> {
        let during = |error: Error| error.during("close");
        if self.shared.spawner.is_here() {
            let why = "close_blocking() would block the coordinator's runtime; await close() instead";
            return Err(during(Error::new(ErrorKind::Invalid, why)));
        }
        block_on(self.close(), limit).unwrap_or_else(|| {
            let why = format!("closing did not end within {limit:?}; it continues in the background");
            Err(during(Error::new(ErrorKind::Unavailable, why)))
        })
    }

    /// Leaves every group, releases every lock, ends the session and the connection. Ends within `close_timeout`
    /// (5 s) also when the backend is away, and can be called twice.
    ///
    /// # Errors
    /// `Unavailable`: the backend did not answer in time; what was held ends with the session.
    ///
    /// # Cancel safety
    /// Closing goes on.
    pub async fn close(&self) -> Result<()> {
        // The parent's keeper would never answer.
        self.shared.check_process()?;
        let mut phase = self.shared.phase.subscribe();
        self.shared.command(Command::Close);
        loop {
            if let Phase::Closed(Some(result)) = &*phase.borrow_and_update() {
                return result.clone();
            }
            phase.changed().await;
        }
    }
}
