//! The test kit: makes a backend misbehave from outside, and counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tooz_core::driver::{LockKey, Previous, SessionId};
use tooz_core::{BackendUrl, GroupId, LockName, LossReason, MemberId, Result};

use super::gate::{Cut, Operation, Outcome};
use super::oracle::{Happened, Listener};
use crate::config::Config;
use crate::store::Backend;
use crate::store::state::{Lock, State};

/// The other end of a `memory://` backend, for tests.
///
/// Everything acts on the whole backend of that name; what names a lock or a group acts in the namespace of the
/// URL (`?namespace=`, default `tooz`). A name that no lock, group or member can have matches nothing. The kit itself
/// never waits, and what it does to others does not delay it.
///
/// ```
/// use tooz_core::driver::{Clock, Connect, Context, Entropy, InstanceId, Notice, OpenSession, Spawner};
/// use tooz_core::{BackendUrl, LossReason, MemberId, Runtime};
/// use tooz_memory::{Kit, Operation, Outcome};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tooz_core::Result<()> {
/// let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Library)?);
/// let driver = tooz_memory::connect(Connect::new(BackendUrl::parse("memory://kit-doc")?, context)?).await?;
/// let kit = Kit::of("memory://kit-doc")?;
///
/// let me = OpenSession::new(MemberId::new("host-1")?, InstanceId(1));
/// kit.next(Operation::Open, 1, Outcome::Fail);
/// assert!(driver.open_session(&me).await.is_err());
///
/// let session = driver.open_session(&me).await?;
/// assert_eq!(kit.sessions(), 1);
/// kit.expire("host-1");
/// assert!(matches!(session.notice().await, Notice::SessionLost(LossReason::Expired)));
/// assert_eq!((kit.sessions(), kit.calls(Operation::Open)), (0, 2));
/// # Ok(())
/// # }
/// ```
pub struct Kit {
    backend: Arc<Backend>,
    space: Arc<str>,
}

impl Kit {
    /// The kit of the backend that this URL names; the backend lives at least as long as the kit.
    ///
    /// # Errors
    /// `InvalidUrl`, `InvalidOption`: it is not a URL of this driver.
    pub fn of(url: &str) -> Result<Self> {
        let config = Config::read(&BackendUrl::parse(url)?)?;
        Ok(Self { backend: Backend::named(&config.name), space: config.namespace.as_str().into() })
    }

    /// Changes what happens to calls, and lets all waiting calls look again.
    fn change_plan<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.backend.act(|state| {
            state.wakes.push(state.changed.clone());
            change(state)
        })
    }

    /// Ends the sessions of a member as if their ttl had passed, and returns how many there were.
    pub fn expire(&self, member: impl AsRef<[u8]>) -> usize {
        self.backend.act(|state| {
            let of =
                state.sessions.iter().filter(|(_, session)| session.member.as_bytes() == member.as_ref());
            let ids: Vec<SessionId> = of.map(|(id, _)| *id).collect();
            for id in &ids {
                state.end_session(*id, &LossReason::Expired, Previous::Expired);
            }
            ids.len()
        })
    }

    /// Cuts a member off: its coordinator's calls hang or fail, and nothing reaches it, until [`Kit::heal`]. On the
    /// backend its session goes on as long as it can.
    pub fn cut_off(&self, member: impl AsRef<[u8]>, how: Cut) {
        if let Ok(member) = MemberId::new(member) {
            self.change_plan(|state| state.plan.cut.insert(member, how));
        }
    }

    /// Ends [`Kit::cut_off`]; calls that hang go on.
    pub fn heal(&self, member: impl AsRef<[u8]>) {
        if let Ok(member) = MemberId::new(member) {
            self.change_plan(|state| state.plan.cut.remove(&member));
        }
    }

    /// Stops the backend: every call hangs until [`Kit::resume`]. Sessions with a ttl go on ageing.
    pub fn pause(&self) {
        self.change_plan(|state| state.plan.paused = true);
    }

    /// Ends [`Kit::pause`].
    pub fn resume(&self) {
        self.change_plan(|state| state.plan.paused = false);
    }

    /// Delays every call that begins from now on; zero ends it.
    pub fn delay(&self, duration: Duration) {
        self.backend.act(|state| state.plan.delay = duration);
    }

    /// Delays the answer of every call that is done from now on: the call has taken effect long before its caller
    /// learns it. Waiting for a turn is not delayed. Zero ends it.
    pub fn delay_answers(&self, duration: Duration) {
        self.backend.act(|state| state.plan.answer_delay = duration);
    }

    /// Decides what shall become of the next `count` calls of an operation, by any caller. Several decisions are used
    /// up one after the other.
    pub fn next(&self, operation: Operation, count: u64, outcome: Outcome) {
        self.backend.act(|state| state.plan.next(operation, None, count, outcome));
    }

    /// As [`Kit::next`], for the calls of one member's coordinator.
    pub fn next_of(&self, member: impl AsRef<[u8]>, operation: Operation, count: u64, outcome: Outcome) {
        if let Ok(member) = MemberId::new(member) {
            self.backend.act(|state| state.plan.next(operation, Some(member), count, outcome));
        }
    }

    /// Forgets what [`Kit::next`] and [`Kit::next_of`] decided for calls that have not been made.
    pub fn forget_next(&self) {
        self.backend.act(|state| state.plan.next.clear());
    }

    /// Breaks a lock, naming no member as the breaker, and returns how many held it.
    pub fn break_lock(&self, name: impl AsRef<[u8]>, why: &str) -> usize {
        LockName::new(name).map_or(0, |name| self.break_key(&LockKey::Named(name), why))
    }

    /// Takes the leadership of a group from its leader, and returns whether there was one.
    pub fn depose(&self, group: impl AsRef<[u8]>, why: &str) -> bool {
        GroupId::new(group).is_ok_and(|group| self.break_key(&LockKey::Leader(group), why) > 0)
    }

    fn break_key(&self, key: &LockKey, why: &str) -> usize {
        self.backend.act(|state| state.break_lock(&self.space, key, None, None, why).len())
    }

    /// Deletes a lock with its queue as if by hand: holders find out at their next beat, waiters ask again.
    /// Returns how many held it.
    pub fn forget_lock(&self, name: impl AsRef<[u8]>) -> usize {
        let Ok(name) = LockName::new(name) else { return 0 };
        self.backend.act(|state| state.forget_lock(&self.space, &LockKey::Named(name)))
    }

    /// Removes a member's record from a group while its session lives, and returns whether there was one.
    pub fn evict(&self, group: impl AsRef<[u8]>, member: impl AsRef<[u8]>) -> bool {
        let (Ok(group), Ok(member)) = (GroupId::new(group), MemberId::new(member)) else { return false };
        self.backend.act(|state| state.evict(&self.space, &group, &member))
    }

    /// The backend loses all its data and gets another epoch; only the fencing token keeps growing.
    pub fn lose_data(&self) {
        self.backend.act(State::lose_data);
    }

    /// Tells `listener` everything that happens in this namespace from now on, in the step in which it happens;
    /// an earlier listener hears no more. It runs inside the backend's lock: it must not call the kit or a driver.
    pub fn listen(&self, listener: impl FnMut(&Happened) + Send + 'static) {
        let listener = Listener { space: self.space.clone(), tell: Box::new(listener) };
        drop(self.backend.act(|state| state.listener.replace(listener)));
    }

    /// How often an operation was called, also when it failed.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.backend.act(|state| state.plan.calls.get(&operation).copied().unwrap_or_default())
    }

    /// How many calls of any kind there were.
    pub fn all_calls(&self) -> u64 {
        self.backend.act(|state| state.plan.calls.values().sum())
    }

    /// Counts calls from zero again.
    pub fn reset_calls(&self) {
        self.backend.act(|state| state.plan.calls.clear());
    }

    /// How many calls hang now because of [`Kit::pause`] or [`Kit::cut_off`].
    pub fn hanging(&self) -> usize {
        self.backend.act(|state| state.plan.hanging)
    }

    /// How many sessions live, in all namespaces.
    pub fn sessions(&self) -> usize {
        self.backend.act(|state| state.sessions.len())
    }

    /// How many grants of locks and leaderships there are, in all namespaces.
    pub fn held(&self) -> usize {
        self.sum_locks(|lock| lock.holders.len())
    }

    /// How many attempts wait, in all namespaces.
    pub fn queued(&self) -> usize {
        self.sum_locks(|lock| lock.queue.len())
    }

    fn sum_locks(&self, count: fn(&Lock) -> usize) -> usize {
        self.backend
            .act(|state| state.spaces.values().flat_map(|space| space.locks.values()).map(count).sum())
    }

    /// How many watches of groups and locks there are, in all namespaces.
    pub fn watchers(&self) -> usize {
        self.backend.act(|state| {
            let groups: usize = state.logs.values().map(|log| log.watchers).sum();
            let locks = state.spaces.values().flat_map(|space| space.watched.values());
            groups + locks.map(|watched| watched.watchers).sum::<usize>()
        })
    }
}

impl fmt::Debug for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kit").field("namespace", &self.space).finish_non_exhaustive()
    }
}
