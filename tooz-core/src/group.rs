//! Groups: who is there, and what they publish about themselves.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use crate::driver::support::errors::joined_before;
use crate::driver::{Join, MemberRecord, Session};
use crate::session::call::{Kept, Reads, Settle, members, read};
use crate::session::live::SessionLease;
use crate::session::rejoin::leave_until_answered;
use crate::session::state::{CloseOnDrop, Membership, Shared};
use crate::watch::GroupWatch;
use crate::{Capabilities, Error, ErrorKind, GroupId, LossReason, MemberId, Result};

/// A named set of members, and what each publishes about itself. Making a handle does no I/O.
///
/// # Examples
/// ```
/// # use tooz_core::{self as tooz, Capabilities, Coordinator};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-group", "host-1").connect().await?;
/// let group = c.group("workers")?;
/// group.join_or_create(Capabilities::new(&("gpu", 2))?).await?;
/// for member in group.members().await? {
///     println!("{} offers {:?}", member.member, member.capabilities);
/// }
/// group.leave().await?;
/// # c.close().await
/// # }
/// ```
/// A membership ends with its session. The coordinator then opens a new session, joins its groups again and says so:
/// ```
/// # use tooz_core::{self as tooz, Capabilities, Coordinator, Event};
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-lost-group", "host-1").connect().await?;
/// # let kit = tooz_memory::Kit::of("memory://a-lost-group")?;
/// let mut events = c.events();
/// c.group("workers")?.join_or_create(Capabilities::none()).await?;
/// # kit.expire("host-1");
/// while let Some(event) = events.next().await {
///     match event {
///         Event::Lost(why) => println!("the session is lost: {why}"),
///         Event::Rejoined(groups) => {
///             println!("back in {groups:?}");
///             break;
///         }
///         other => println!("{other:?}"),
///     }
/// }
/// # c.close().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    shared: Arc<CloseOnDrop>,
    id: GroupId,
}

impl Group {
    pub(crate) fn new(shared: Arc<CloseOnDrop>, id: GroupId) -> Self {
        Self { shared, id }
    }

    /// The group's id.
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    /// Creates the group.
    ///
    /// # Errors
    /// `GroupExists`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// A creation that was begun is driven to its end.
    pub async fn create(&self) -> Result<()> {
        let (driver, id) = (Arc::clone(&self.shared.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().create(&id).await });
        self.shared.plain_call(call).await.map_err(|error| error.during("create"))
    }

    /// Deletes the group, which must have no living member.
    ///
    /// # Errors
    /// `GroupNotFound`, `GroupNotEmpty`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// A deletion that was begun is driven to its end.
    pub async fn delete(&self) -> Result<()> {
        let (driver, id) = (Arc::clone(&self.shared.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().delete(&id).await });
        self.shared.plain_call(call).await.map_err(|error| error.during("delete"))
    }

    /// Joins the group and publishes `capabilities`.
    ///
    /// The membership lasts until [`Group::leave`], the coordinator's end, or the session's end; after a loss of
    /// the session it is renewed with the newest capabilities (option `rejoin`).
    ///
    /// # Errors
    /// `GroupNotFound`; `MemberExists` if this coordinator is a member already (what it published stays) or the
    /// member id belongs to another living session; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no membership behind, within one more round trip or by the session's end.
    pub async fn join(&self, capabilities: Capabilities) -> Result<()> {
        self.shared.in_time(self.join_as(capabilities, false)).await.map_err(|error| error.during("join"))
    }

    /// As [`Group::join`], and creates the group in the same step if it is missing.
    ///
    /// # Errors
    /// As [`Group::join`], except `GroupNotFound`.
    ///
    /// # Cancel safety
    /// As [`Group::join`]; the group may have been created.
    pub async fn join_or_create(&self, capabilities: Capabilities) -> Result<()> {
        self.shared.in_time(self.join_as(capabilities, true)).await.map_err(|error| error.during("join"))
    }

    async fn join_as(&self, capabilities: Capabilities, create: bool) -> Result<()> {
        let Change { lease, session, turn } = Change::begin(&self.shared).await?;
        if self.shared.joined().contains_key(&self.id) {
            return Err(joined_before(&self.id, &self.shared.config.member));
        }
        let join = Join::new(self.id.clone(), capabilities.clone()).create(create);
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        let call = Box::pin(async move {
            session.groups().join(&join).await?;
            // INVARIANT: noted in the same poll in which the backend's answer came, so no rejoin can miss it.
            shared.joined().insert(id, Membership { capabilities, session: Some(session.id()) });
            Ok(())
        });
        let unless_refused = |answer| !matches!(answer, Ok(Err(error)) if !Error::is_indeterminate(&error));
        self.shared.call(call, self.settle(lease, turn, unless_refused)).await
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// `MemberNotFound`, `GroupNotFound`; `Unavailable`, `Timeout`: it goes on in the background.
    ///
    /// # Cancel safety
    /// A leave that was begun is driven to its end.
    pub async fn leave(&self) -> Result<()> {
        let result = self.shared.in_time(self.leave_group()).await;
        result.map_err(|error| error.during("leave"))
    }

    async fn leave_group(&self) -> Result<()> {
        let Change { lease, session, turn } = Change::begin(&self.shared).await?;
        let now = session.id();
        let wanted = self.shared.joined().remove(&self.id);
        let id = self.id.clone();
        let call = Box::pin(async move {
            // What could not be sent goes on in the background, so it may take effect yet.
            session
                .groups()
                .leave(&id)
                .await
                .map_err(|e| if e.is_retryable() { e.indeterminate() } else { e })
        });
        let if_unknown = |answer| matches!(answer, Ok(Err(error)) if Error::is_indeterminate(&error));
        match self.shared.call(call, self.settle(lease, turn, if_unknown)).await {
            // Lost with its session and not rejoined yet: it is out, as was wanted.
            Err(error)
                if error.kind() == ErrorKind::MemberNotFound
                    && wanted.is_some_and(|w| w.session != Some(now)) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Publishes other capabilities.
    ///
    /// # Errors
    /// `MemberNotFound`, `GroupNotFound`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// An update that was begun is driven to its end.
    pub async fn update_capabilities(&self, capabilities: Capabilities) -> Result<()> {
        let result = self.shared.in_time(self.update(capabilities)).await;
        result.map_err(|error| error.during("update_capabilities"))
    }

    async fn update(&self, capabilities: Capabilities) -> Result<()> {
        let Change { lease, session, turn } = Change::begin(&self.shared).await?;
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        let call = Box::pin(async move {
            let updated = session.groups().update(&id, &capabilities).await;
            let mut joined = shared.joined();
            let wanted = joined.get_mut(&id);
            // Lost with its session, or removed, and not joined again yet: the rejoin publishes what is newest.
            let away = wanted.as_ref().is_some_and(|membership| membership.session != Some(session.id()));
            // What may have been done is the newest, too: a rejoin that published what was before would undo it.
            let done = match updated {
                Err(error) if error.is_indeterminate() => Err(error),
                Err(error) if error.kind() != ErrorKind::MemberNotFound || !away => return Err(error),
                _ => Ok(()),
            };
            if let Some(membership) = wanted {
                membership.capabilities = capabilities;
            }
            done
        });
        self.shared.call(call, self.settle(lease, turn, |_| false)).await
    }

    /// What is left of a change whose caller is gone: it is driven to its end, or to that of the session, which takes
    /// the record along. `undo` says after which answers the member has to leave.
    fn settle(
        &self,
        lease: Arc<SessionLease>,
        turn: OwnedMutexGuard<()>,
        undo: fn(Result<Result<()>, LossReason>) -> bool,
    ) -> Settle<()> {
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        Box::new(move |unfinished| {
            Box::pin(async move {
                if undo(lease.or_lost(unfinished).await) {
                    shared.joined().remove(&id);
                    leave_until_answered(&shared, &lease, &id).await;
                }
                drop(turn); // only now may the next change begin, or this would undo it
            })
        })
    }

    /// The living members with what they publish, sorted by id, as one consistent view.
    ///
    /// # Errors
    /// `GroupNotFound`; `Unavailable`, `Timeout`; `Corrupt` where a record cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn members(&self) -> Result<Vec<MemberRecord>> {
        members(self.shared.reader(), &self.id).await
    }

    /// One living member.
    ///
    /// # Errors
    /// `GroupNotFound`, `MemberNotFound`; `Invalid` for an id that cannot be one; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn member(&self, member: impl AsRef<[u8]>) -> Result<MemberRecord> {
        let member = MemberId::new(member)?;
        let (driver, id) = (Arc::clone(&self.shared.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().member(&id, &member).await });
        read(self.shared.reader(), call).await.map_err(|error| error.during("member"))
    }

    /// What one living member publishes.
    ///
    /// # Errors
    /// As [`Group::member`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn member_capabilities(&self, member: impl AsRef<[u8]>) -> Result<Capabilities> {
        self.member(member).await.map(|record| record.capabilities)
    }

    /// Follows the group: a snapshot first, then each change.
    ///
    /// # Errors
    /// `GroupNotFound`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// Nothing is left behind.
    pub async fn watch(&self) -> Result<GroupWatch> {
        GroupWatch::open(self.shared.reader(), &self.id, Some(Arc::clone(&self.shared) as Kept)).await
    }
}

/// The right to change memberships, on a living session.
struct Change {
    lease: Arc<SessionLease>,
    session: Arc<dyn Session>,
    /// Kept until the backend has answered for good.
    turn: OwnedMutexGuard<()>,
}

impl Change {
    async fn begin(shared: &Arc<Shared>) -> Result<Self> {
        shared.check()?;
        let turn = Arc::clone(&shared.membership).lock_owned();
        let turn = shared.limited(shared.config.limits.operation_timeout, turn).await.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "an earlier change of membership has not been answered yet")
        })?;
        let (lease, session) = shared.lease_within(shared.config.limits.operation_timeout).await?;
        Ok(Self { lease, session, turn })
    }
}
