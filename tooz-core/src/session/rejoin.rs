//! How the groups are joined again after a session was lost.

use std::sync::Arc;

use super::cleanup::until_answered;
use super::live::SessionLease;
use super::state::Shared;
use crate::driver::{Join, Session};
use crate::{ErrorKind, GroupId};

/// Leaves until the backend has answered, or the session is over and the membership with it.
pub(crate) async fn leave_until_answered(shared: &Shared, lease: &SessionLease, id: &GroupId) {
    until_answered(shared, lease, "leave", id, |session| {
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
