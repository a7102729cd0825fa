//! A group's changes as a stream: a snapshot, then each change, and after any gap a resync.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::driver::{ChangeStream, Departure, GroupChange, MemberRecord};
use crate::session::call::{Kept, Reads, read};
use crate::{GroupId, Result};

/// What happened in a group. Applying one after the other always yields the group's real membership.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupEvent {
    /// The members at the start.
    Snapshot(Vec<MemberRecord>),
    /// A member joined.
    Joined(MemberRecord),
    /// A member left, was removed, or died, and which of these.
    Left(MemberRecord, Departure),
    /// A member published other capabilities.
    Updated(MemberRecord),
    /// The members after a gap: forget what was known.
    Resync(Vec<MemberRecord>),
    /// The group was deleted; the watch ends.
    Deleted,
}

/// The changes of a group as a stream: a snapshot first, then each change. Dropping it ends the watch.
///
/// After a gap (a reconnect, a reader that is too slow) the stream delivers a [`GroupEvent::Resync`] with all members.
/// Applying one event after the other therefore always gives the group's real membership.
///
/// # Examples
/// ```
/// # use std::collections::BTreeMap;
/// # use tooz_core::{self as tooz, Capabilities, Coordinator, GroupEvent};
/// # use tooz_memory as _;
/// # #[tokio::main]
/// # async fn main() -> tooz::Result<()> {
/// # let c = Coordinator::builder("memory://a-watch", "host-1").connect().await?;
/// let group = c.group("workers")?;
/// group.create().await?;
/// let mut watch = group.watch().await?;
/// let mut members = BTreeMap::new();
/// # let mut joins = Some(group.clone());
/// while let Some(event) = watch.next().await {
///     match event? {
///         // The beginning, or a gap: forget what was known.
///         GroupEvent::Snapshot(all) | GroupEvent::Resync(all) => {
///             members = all.into_iter().map(|member| (member.member.clone(), member)).collect();
///         }
///         GroupEvent::Joined(member) | GroupEvent::Updated(member) => {
///             members.insert(member.member.clone(), member);
///         }
///         GroupEvent::Left(member, _) => drop(members.remove(&member.member)),
///         _ => break, // the group was deleted
///     }
///     println!("{} members", members.len());
/// #   match joins.take() {
/// #       Some(group) => group.join(Capabilities::none()).await?,
/// #       None => break,
/// #   }
/// }
/// # assert_eq!(members.len(), 1);
/// # c.close().await
/// # }
/// ```
pub struct GroupWatch {
    /// None where the coordinator itself keeps the watch, for its hooks: it must not keep itself alive.
    _kept: Option<Kept>,
    stream: Option<ChangeStream>,
    started: bool,
}

impl fmt::Debug for GroupWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupWatch").field("started", &self.started).finish_non_exhaustive()
    }
}

impl GroupWatch {
    pub(crate) async fn open(reader: &dyn Reads, id: &GroupId, kept: Option<Kept>) -> Result<Self> {
        let (driver, id) = (reader.driver(), id.clone());
        // The answer is a type of ours: with the stream's trait object in it, rustc would not see that this is `Send`.
        let call = Box::pin(async move {
            let stream = driver.groups().watch(&id).await?;
            Ok(Self { _kept: kept, stream: Some(stream), started: false })
        });
        read(reader, call).await.map_err(|error| error.during("watch"))
    }

    /// The next event; `None` after [`GroupEvent::Deleted`].
    ///
    /// # Errors
    /// What the backend refuses for good; a backend that is merely away is waited for.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<Result<GroupEvent>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for GroupWatch {
    type Item = Result<GroupEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let Some(change) = std::task::ready!(stream.as_mut().poll_next(cx)) else {
            self.stream = None;
            return Poll::Ready(None);
        };
        Poll::Ready(Some(change.map_err(|error| error.during("watch")).map(|change| match change {
            GroupChange::View(members) if self.started => GroupEvent::Resync(members),
            GroupChange::View(members) => {
                self.started = true;
                GroupEvent::Snapshot(members)
            }
            GroupChange::Joined(member) => GroupEvent::Joined(member),
            GroupChange::Updated(member) => GroupEvent::Updated(member),
            GroupChange::Left(member, how) => GroupEvent::Left(member, how),
            GroupChange::Deleted => GroupEvent::Deleted,
        })))
    }
}
