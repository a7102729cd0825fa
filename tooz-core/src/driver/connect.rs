//! How a driver is connected, and what it can do without a session.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::groups::Groups;
use super::ids::{InstanceId, SessionId};
use super::locks::Locks;
use super::session::Session;
use crate::platform::clock::Clock;
use crate::platform::entropy::Entropy;
use crate::platform::runtime::Spawner;
use crate::{BackendUrl, Characteristics, MemberId, Result};

/// What a driver is given to connect.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Connect {
    /// The backend URL with all options merged into it, checked against the registration's option list.
    pub url: BackendUrl,
    /// The time limits that the URL names, or their defaults.
    pub limits: Limits,
    /// Clock, randomness, tasks and timers.
    pub context: Context,
    /// For an examination only: a backend that was moved belongs to its new place from now on
    /// ([`Builder::adopt`](crate::Builder::adopt)). Its finding has the topic `adopt`.
    pub adopt: bool,
    /// For looking alone ([`Builder::view`](crate::Builder::view)).
    ///
    /// **Contract** S13: neither connecting nor looking writes anything to the backend, so both work where nothing can be
    /// written: on a full store, for a user who may only read. What does not exist yet is not made: there are no groups and
    /// no holders then. Connecting fails with `Incompatible` on data of another layout, later or earlier (X7). No session
    /// is opened on such a driver, and nothing is created, deleted, broken or raised.
    pub view: bool,
}

impl Connect {
    /// A request to connect to `url`.
    ///
    /// # Errors
    /// As [`Limits::of`].
    pub fn new(url: BackendUrl, context: Context) -> Result<Self> {
        Ok(Self { limits: Limits::of(&url)?, url, context, adopt: false, view: false })
    }
}

/// The time limits that every driver has, under the names of their options ([`COMMON_OPTIONS`](crate::COMMON_OPTIONS)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// How long a session lives without a beat. A driver whose liveness does not depend on time ignores it.
    pub ttl: Duration,
    /// How long the core waits for the driver to connect.
    pub connect_timeout: Duration,
    /// How long the core waits for an operation. Waiting for a lock or a change does not count.
    pub operation_timeout: Duration,
    /// How long the core waits for a session or the driver to close.
    pub close_timeout: Duration,
}

impl Limits {
    /// The limits that `url` names, or their defaults.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption); never for options that passed the check at connect.
    pub fn of(url: &BackendUrl) -> Result<Self> {
        let limit =
            |name, default| url.duration(name).map(|given| given.unwrap_or(Duration::from_secs(default)));
        Ok(Self {
            ttl: limit("ttl", 15)?,
            connect_timeout: limit("connect_timeout", 10)?,
            operation_timeout: limit("operation_timeout", 10)?,
            close_timeout: limit("close_timeout", 5)?,
        })
    }
}

/// The only clock, randomness and task starter that a driver uses.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Context {
    /// Boot-time clock, virtual in simulation.
    pub clock: Clock,
    /// Randomness, seeded in simulation.
    pub entropy: Entropy,
    /// Starts tasks and timers on the runtime on which this coordinator lives.
    pub spawner: Spawner,
}

impl Context {
    /// A context of these three.
    pub fn new(clock: Clock, entropy: Entropy, spawner: Spawner) -> Self {
        Self { clock, entropy, spawner }
    }
}

/// A connected backend: what needs no session.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// What this backend keeps: the registration's claim, lowered by what the server said.
    fn characteristics(&self) -> Characteristics;

    /// Opens a session.
    ///
    /// **Contract** S2, S7, S9: the returned session is alive on the backend. It does not claim the member id
    /// yet; the first join does.
    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>>;

    /// The groups.
    fn groups(&self) -> &dyn Groups;

    /// The locks, as an operator sees them.
    fn locks(&self) -> &dyn Locks;

    /// Ends the connection and all tasks of this driver; can be called twice.
    async fn close(&self) -> Result<()>;
}

/// A request for a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSession {
    /// Whose session it is.
    pub member: MemberId,
    /// The coordinator object, the same for all its sessions.
    pub instance: InstanceId,
    /// The coordinator's earlier session, which ended or may still stand on the backend. The driver ends it
    /// there as far as the backend answers, and takes its member records over instead of reporting them as
    /// `MemberExists` (S7, S9).
    pub previous: Option<SessionId>,
}

impl OpenSession {
    /// A request for a first session.
    pub fn new(member: MemberId, instance: InstanceId) -> Self {
        Self { member, instance, previous: None }
    }

    /// Names the coordinator's earlier session.
    #[must_use]
    pub fn after(mut self, previous: Option<SessionId>) -> Self {
        self.previous = previous;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn limits_are_those_of_the_url_or_the_defaults() {
        let limits = |query: &str| Limits::of(&BackendUrl::parse(&format!("memory://x?{query}")).unwrap());
        let shown = |limits: Limits| {
            let Limits { ttl, connect_timeout, operation_timeout, close_timeout } = limits;
            [ttl, connect_timeout, operation_timeout, close_timeout].map(|limit| limit.as_millis())
        };
        assert_eq!(shown(limits("").unwrap()), [15_000, 10_000, 10_000, 5_000]);
        let given = "ttl=1.5&connect_timeout=2s&operation_timeout=250ms&close_timeout=1m";
        assert_eq!(shown(limits(given).unwrap()), [1_500, 2_000, 250, 60_000]);
        for option in ["ttl", "connect_timeout", "operation_timeout", "close_timeout"] {
            let error = limits(&format!("{option}=hunter2")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains(option) && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
