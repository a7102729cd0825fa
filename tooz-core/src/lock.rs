//! Locks: handles without I/O, and how a lock is acquired.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::driver::{BreakRequest, HolderRecord, Holders, LockKey, LockMode, Meant};
use crate::guard::LockGuard;
use crate::session::acquire::{Patience, acquire};
use crate::session::call::holders;
use crate::session::state::{CloseOnDrop, Shared};
use crate::{Error, ErrorKind, FencingToken, LockName, Result};

/// A lock's name, and the way to hold the lock. Making a handle does no I/O.
///
/// A lock is exclusive. [`Lock::shared`] makes the handle of a reader, [`Lock::permits`] that of a semaphore.
///
/// # Examples
/// The usual case: acquire, write with the token, release.
/// ```
/// # use tooz_core::{self as tooz, Coordinator};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-lock", "host-1").connect().await?;
/// let guard = c.lock("reindex")?.acquire().await?;
/// println!("write with token {}", guard.token());
/// guard.release().await?;
/// # c.close().await
/// # }
/// ```
/// A caller that does not want to wait long:
/// ```
/// # use std::time::Duration;
/// # use tooz_core::{self as tooz, Coordinator};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-short-wait", "host-1").connect().await?;
/// # let other = Coordinator::builder("memory://a-short-wait", "host-2").connect().await?;
/// # let held = other.lock("reindex")?.acquire().await?;
/// let lock = c.lock("reindex")?;
/// match lock.acquire_within(Duration::from_millis(50)).await? {
///     Some(guard) => println!("held with token {}", guard.token()),
///     None => println!("held by {:?}", lock.holders().await?.holders),
/// }
/// # held.release().await?;
/// # c.close().await?;
/// # other.close().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Lock {
    pub(crate) shared: Arc<CloseOnDrop>,
    name: LockName,
    pub(crate) mode: LockMode,
}

impl Lock {
    pub(crate) fn new(shared: Arc<CloseOnDrop>, name: LockName) -> Self {
        Self { shared, name, mode: LockMode::Exclusive }
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The same lock, held together with other shared holders and never beside an exclusive one.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self { mode: LockMode::Shared, ..self.clone() }
    }

    /// The same name as a semaphore: at most `limit` holders at a time, the same limit for all who use it.
    ///
    /// # Errors
    /// `Invalid` for a limit of 0. Another limit than that of present holders or waiters is found by the acquire.
    pub fn permits(&self, limit: u32) -> Result<Self> {
        let limit = NonZeroU32::new(limit)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "a semaphore needs a limit of at least 1"))?;
        Ok(Self { mode: LockMode::Permit { limit }, ..self.clone() })
    }

    /// Waits until the lock is held.
    ///
    /// The wait has no limit and survives a restart of the backend. It is not reentrant: a second acquire by the
    /// same coordinator waits for the first.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the backend did not answer the first request within the operation time
    /// limit; `Closed`; `Invalid` for permits of another limit; `Corrupt` if the backend's fencing tokens went
    /// back.
    ///
    /// # Cancel safety
    /// Dropping the future leaves neither a lock nor a place in the queue, within one more round trip, or with
    /// the session's end if the backend is away.
    pub async fn acquire(&self) -> Result<LockGuard> {
        self.acquire_by(Patience::Forever).await?.ok_or_else(|| Error::from(ErrorKind::Backend))
    }

    /// Acquires the lock if it is free and no waiter is before this one; answers at once.
    ///
    /// # Errors
    /// As [`Lock::acquire`]. `None` is never an error in disguise: the backend said that it is held.
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>> {
        self.acquire_by(Patience::None).await
    }

    /// Acquires the lock within `limit`. `None` only if the backend said that another holds it or is before
    /// this one.
    ///
    /// # Errors
    /// As [`Lock::acquire`]; `Unavailable`, indeterminate, if the backend's last word is missing when the time
    /// is over, or if it did not answer the last beat (liveness is `Suspended`), so that its word is old.
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`].
    pub async fn acquire_within(&self, limit: Duration) -> Result<Option<LockGuard>> {
        self.acquire_by(Patience::For(limit)).await
    }

    pub(crate) async fn acquire_by(&self, patience: Patience) -> Result<Option<LockGuard>> {
        let state = acquire(&self.shared, self.key(), self.mode, patience).await?;
        Ok(state.map(|state| LockGuard::new(Arc::clone(&self.shared), self.name.clone(), state)))
    }

    /// Who holds the lock, and how many wait where the backend can say.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn holders(&self) -> Result<Holders> {
        holders(self.shared.reader(), self.key()).await
    }

    /// Frees the lock from outside and returns the holders that lost it; none if it was free.
    ///
    /// The holder is told (`Broken`, with who and `why`) by push or at its next beat. Until then two guards may
    /// be valid: only the fencing token tells them apart.
    ///
    /// # Errors
    /// `HolderUnresponsive` where the holder's process must let go and does not; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// A break that was begun is driven to its end.
    pub async fn break_lock(&self, why: impl Into<String>) -> Result<Vec<HolderRecord>> {
        break_lock(&self.shared, BreakRequest::new(self.key(), self.shared.config.member.clone(), why)).await
    }

    /// As [`Lock::break_lock`], but only the grant with this token.
    ///
    /// # Errors
    /// As [`Lock::break_lock`].
    ///
    /// # Cancel safety
    /// As [`Lock::break_lock`].
    pub async fn break_token(
        &self,
        token: FencingToken,
        why: impl Into<String>,
    ) -> Result<Vec<HolderRecord>> {
        let request = BreakRequest::new(self.key(), self.shared.config.member.clone(), why);
        break_lock(&self.shared, request.only(Meant::Token(token))).await
    }

    /// As [`Lock::break_lock`], but only this holder, as [`Lock::holders`] has told it: if it has let go meanwhile, the
    /// answer is empty, and a later holder keeps the lock.
    ///
    /// # Errors
    /// As [`Lock::break_lock`].
    ///
    /// # Cancel safety
    /// As [`Lock::break_lock`].
    pub async fn break_holder(
        &self,
        holder: &HolderRecord,
        why: impl Into<String>,
    ) -> Result<Vec<HolderRecord>> {
        break_holder(&self.shared, self.key(), holder, why.into()).await
    }

    fn key(&self) -> LockKey {
        LockKey::Named(self.name.clone())
    }
}

/// Breaks one holder of a lock or leadership.
pub(crate) async fn break_holder(
    shared: &Shared,
    key: LockKey,
    holder: &HolderRecord,
    why: String,
) -> Result<Vec<HolderRecord>> {
    let foreign = || Meant::Foreign(holder.foreign.clone().unwrap_or_default());
    let meant = holder.token.map_or_else(foreign, Meant::Token);
    break_lock(shared, BreakRequest::new(key, shared.config.member.clone(), why).only(meant)).await
}

pub(crate) async fn break_lock(shared: &Shared, request: BreakRequest) -> Result<Vec<HolderRecord>> {
    let driver = Arc::clone(&shared.driver);
    tracing::warn!(key = %request.key, by = %request.by, why = %request.why, "breaking a lock");
    let call = Box::pin(async move { driver.locks().break_lock(&request).await });
    shared.plain_call(call).await.map_err(|error| error.during("break"))
}
