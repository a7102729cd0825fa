//! Groups: who is there, and what they publish about themselves.

use std::fmt;
use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use crate::driver::{Join, MemberRecord, Session};
use crate::shared::{Kept, Life, Membership, Owned, Reads, Shared, read};
use crate::tenure::Tenure;
use crate::watch::GroupWatch;
use crate::{Capabilities, Error, ErrorKind, GroupId, MemberId, Result};

/// A named set of members; making a handle does no I/O.
#[derive(Clone)]
pub struct Group {
    life: Arc<Life>,
    id: GroupId,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Group {
    pub(crate) fn new(life: Arc<Life>, id: GroupId) -> Self {
        Self { life, id }
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
        let (driver, id) = (Arc::clone(&self.life.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().create(&id).await });
        self.life.plain_call(call).await.map_err(|error| error.during("create"))
    }

    /// Deletes the group, which must have no living member.
    ///
    /// # Errors
    /// `GroupNotFound`, `GroupNotEmpty`; `Unavailable`, `Timeout`.
    ///
    /// # Cancel safety
    /// A deletion that was begun is driven to its end.
    pub async fn delete(&self) -> Result<()> {
        let (driver, id) = (Arc::clone(&self.life.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().delete(&id).await });
        self.life.plain_call(call).await.map_err(|error| error.during("delete"))
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
        self.limited(self.join_as(capabilities, false)).await.map_err(|error| error.during("join"))
    }

    /// As [`Group::join`], and creates the group in the same step if it is missing.
    ///
    /// # Errors
    /// As [`Group::join`], except `GroupNotFound`.
    ///
    /// # Cancel safety
    /// As [`Group::join`]; the group may have been created.
    pub async fn join_or_create(&self, capabilities: Capabilities) -> Result<()> {
        self.limited(self.join_as(capabilities, true)).await.map_err(|error| error.during("join"))
    }

    async fn join_as(&self, capabilities: Capabilities, create: bool) -> Result<()> {
        let change = Change::begin(&self.life).await?;
        if self.life.joined().contains_key(&self.id) {
            return Err(Error::new(
                ErrorKind::MemberExists,
                format!("\"{}\" is in group \"{}\" already", self.life.config.member, self.id),
            ));
        }
        let join = Join::new(self.id.clone(), capabilities.clone()).create(create);
        let Change { tenure, session, turn } = change;
        let (shared, id) = (Arc::clone(&self.life), self.id.clone());
        let call = Box::pin(async move {
            session.groups().join(&join).await?;
            // INVARIANT: noted in the same poll in which the backend's answer came, so no rejoin can miss it.
            shared.joined().insert(id, Membership { capabilities, session: Some(session.id()) });
            Ok(())
        });
        let (shared, id, kept) = (Arc::clone(&self.life), self.id.clone(), Arc::clone(&turn));
        let undo = Box::new(|unfinished: Owned<Result<()>>| -> Owned<()> {
            Box::pin(async move {
                // Or until the session is over, which takes the record along.
                let answer = tenure.or_lost(unfinished).await;
                if !answer.is_some_and(|answer| answer.is_err_and(|error| !error.is_indeterminate())) {
                    shared.joined().remove(&id);
                    leave_until_answered(&shared, &tenure, &id).await;
                }
                drop(kept); // only now may the next change begin, or this would undo it
            })
        });
        self.life.call(call, undo).await
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// `MemberNotFound`, `GroupNotFound`; `Unavailable`, `Timeout`: it goes on in the background.
    ///
    /// # Cancel safety
    /// A leave that was begun is driven to its end.
    pub async fn leave(&self) -> Result<()> {
        let result = self.limited(self.leave_group()).await;
        result.map_err(|error| error.during("leave"))
    }

    async fn leave_group(&self) -> Result<()> {
        let Change { tenure, session, turn } = Change::begin(&self.life).await?;
        let now = session.id();
        let wanted = self.life.joined().remove(&self.id);
        let id = self.id.clone();
        let call = Box::pin(async move {
            // What could not be sent goes on in the background, so it may take effect yet.
            session
                .groups()
                .leave(&id)
                .await
                .map_err(|e| if e.is_retryable() { e.indeterminate() } else { e })
        });
        let (shared, id, kept) = (Arc::clone(&self.life), self.id.clone(), Arc::clone(&turn));
        let finish = Box::new(|unfinished: Owned<Result<()>>| -> Owned<()> {
            Box::pin(async move {
                let answer = tenure.or_lost(unfinished).await;
                if answer.is_some_and(|answer| answer.is_err_and(|error| error.is_indeterminate())) {
                    leave_until_answered(&shared, &tenure, &id).await;
                }
                drop(kept);
            })
        });
        match self.life.call(call, finish).await {
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
        let result = self.limited(self.update(capabilities)).await;
        result.map_err(|error| error.during("update_capabilities"))
    }

    /// One time limit for everything that a change waits for: its turn, a session, the answer.
    async fn limited<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.life.config.operation_timeout;
        self.life.limited(limit, change).await.unwrap_or_else(|| Err(self.life.timed_out()))
    }

    async fn update(&self, capabilities: Capabilities) -> Result<()> {
        let Change { tenure, session, turn } = Change::begin(&self.life).await?;
        let (shared, id) = (Arc::clone(&self.life), self.id.clone());
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
        let kept = Arc::clone(&turn);
        let finish = Box::new(|unfinished: Owned<Result<()>>| -> Owned<()> {
            Box::pin(async move {
                tenure.or_lost(unfinished).await;
                drop(kept);
            })
        });
        self.life.call(call, finish).await
    }

    /// The living members with what they publish, sorted by id, as one consistent view.
    ///
    /// # Errors
    /// `GroupNotFound`; `Unavailable`, `Timeout`; `Corrupt` where a record cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn members(&self) -> Result<Vec<MemberRecord>> {
        members(self.life.reader(), &self.id).await
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
        let (driver, id) = (Arc::clone(&self.life.driver), self.id.clone());
        let call = Box::pin(async move { driver.groups().member(&id, &member).await });
        read(self.life.reader(), call).await.map_err(|error| error.during("member"))
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
        watch(self.life.reader(), &self.id, Some(Arc::clone(&self.life) as Kept)).await
    }
}

pub(crate) async fn groups(reader: &dyn Reads) -> Result<Vec<GroupId>> {
    let driver = reader.driver();
    let call = Box::pin(async move { driver.groups().list().await });
    read(reader, call).await.map_err(|error| error.during("groups"))
}

pub(crate) async fn members(reader: &dyn Reads, id: &GroupId) -> Result<Vec<MemberRecord>> {
    let (driver, id) = (reader.driver(), id.clone());
    let call = Box::pin(async move { driver.groups().members(&id).await });
    read(reader, call).await.map_err(|error| error.during("members"))
}

pub(crate) async fn watch(reader: &dyn Reads, id: &GroupId, kept: Option<Kept>) -> Result<GroupWatch> {
    let (driver, id) = (reader.driver(), id.clone());
    // The answer is a type of ours: with the stream's trait object in it, rustc would not see that this is `Send`.
    let call = Box::pin(async move { Ok(GroupWatch::new(kept, driver.groups().watch(&id).await?)) });
    read(reader, call).await.map_err(|error| error.during("watch"))
}

/// The right to change memberships, on a living session.
struct Change {
    tenure: Arc<Tenure>,
    session: Arc<dyn Session>,
    /// Kept until the backend has answered for good.
    turn: Arc<OwnedMutexGuard<()>>,
}

impl Change {
    async fn begin(shared: &Arc<Shared>) -> Result<Self> {
        shared.check()?;
        let turn = Arc::clone(&shared.membership).lock_owned();
        let turn = shared.limited(shared.config.operation_timeout, turn).await.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "an earlier change of membership has not been answered yet")
        })?;
        let (tenure, session) = shared.tenure_soon().await?;
        Ok(Self { tenure, session, turn: Arc::new(turn) })
    }
}

/// Leaves until the backend has answered, or the session is over and the membership with it.
async fn leave_until_answered(shared: &Shared, tenure: &Tenure, id: &GroupId) {
    shared
        .until_answered(tenure, |session| {
            Box::pin(async move {
                match session.groups().leave(id).await {
                    Err(error)
                        if matches!(error.kind(), ErrorKind::MemberNotFound | ErrorKind::GroupNotFound) =>
                    {
                        Ok(())
                    }
                    result => result,
                }
            })
        })
        .await;
}

/// Joins again every group that the program is a member of and whose record is missing. Answers what was
/// rejoined and what is gone; the rest is tried again.
pub(crate) async fn rejoin(shared: Arc<Shared>, session: Arc<dyn Session>, create: bool) -> Rejoined {
    let _turn = Arc::clone(&shared.membership).lock_owned().await;
    let missing: Vec<_> = shared
        .joined()
        .iter()
        .filter(|(_, membership)| membership.session != Some(session.id()))
        .map(|(id, membership)| Join::new(id.clone(), membership.capabilities.clone()).create(create))
        .collect();
    let mut rejoined = Rejoined::default();
    for join in missing {
        let joined = match session.groups().join(&join).await {
            // Perhaps it is this session's: the answer to an earlier try was lost. Only an own record can be updated.
            Err(error) if error.kind() == ErrorKind::MemberExists => {
                let ours = session.groups().update(&join.group, &join.capabilities).await;
                ours.map_err(|other| if other.kind() == ErrorKind::MemberNotFound { error } else { other })
            }
            joined => joined,
        };
        match joined {
            Ok(()) => {
                if let Some(membership) = shared.joined().get_mut(&join.group) {
                    membership.session = Some(session.id());
                }
                rejoined.joined.push(join.group);
            }
            Err(error) if error.kind() == ErrorKind::GroupNotFound => {
                shared.joined().remove(&join.group);
                rejoined.deleted.push(join.group);
            }
            Err(error) => {
                tracing::warn!(group = %join.group, %error, "rejoining is tried again");
                rejoined.open = true;
            }
        }
    }
    rejoined
}

/// What became of a rejoin.
#[derive(Debug, Default)]
pub(crate) struct Rejoined {
    pub(crate) joined: Vec<GroupId>,
    pub(crate) deleted: Vec<GroupId>,
    /// Whether some could not be rejoined yet.
    pub(crate) open: bool,
}
