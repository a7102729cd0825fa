//! Watching over a session: its end and what is said to it are heard at once, not at the next beat.
//!
//! A renewal that succeeds does not prove that a session lives: while a leader's disk stands still, a lease can be
//! renewed through another member and is revoked all the same when the disk goes on (etcd-io/etcd#12528 and #15247, in
//! 3.4 before 3.4.31 and 3.5 before 3.5.13). Then the key goes, and that is seen here.

use std::sync::Arc;

use etcd_client::{Event, EventType, Txn, TxnOp};
use tokio::sync::mpsc;
use tooz_core::driver::Notice;
use tooz_core::{ErrorKind, LossReason, Result};

use crate::connection::answer;
use crate::record;
use crate::session::Life;
use crate::tail::{News, Tail, below};

/// Where notices go.
pub(crate) type Post = mpsc::Sender<Notice>;

/// How many notices may wait. What does not fit is found by the next beat.
pub(crate) const POST: usize = 256;

/// Runs until the session or the driver ends.
pub(crate) async fn keep_vigil(life: Arc<Life>, post: Post) {
    let ranges = vec![below(&life.key())];
    let opened = &life.opened;
    let mut tail =
        Tail::new(&life.client.hub, &life.client.keys, opened.epoch_value.clone(), ranges, opened.revision);
    loop {
        match tail.next().await {
            News::End => return,
            News::Behind => {}
            News::Events(events, _) => {
                for event in &events {
                    if let Some(notice) = read(&life, event) {
                        let over = matches!(notice, Notice::SessionLost(_));
                        // Nobody listens fast enough: the next beat says the same.
                        let _ = post.try_send(notice);
                        if over {
                            return;
                        }
                    }
                }
            }
            // History is gone, or the data: what counts is whether our key is there.
            News::Gap => match prove(&life).await {
                Ok(Some(revision)) => tail.restart(opened.epoch_value.clone(), revision),
                Ok(None) => {
                    let _ = post.try_send(Notice::SessionLost(LossReason::Vanished));
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => {
                    tracing::debug!(%error, "whether the session lives cannot be asked; it is asked again");
                    life.client.hub.pause().await;
                }
            },
        }
    }
}

fn read(life: &Life, event: &Event) -> Option<Notice> {
    let kv = event.kv()?;
    if kv.key() == life.key() {
        return (event.event_type() == EventType::Delete).then_some(Notice::SessionLost(LossReason::Expired));
    }
    if event.event_type() != EventType::Put {
        return None;
    }
    let attempt = life.client.keys.parse_broken(life.opened.id, kv.key())?;
    Some(Notice::GrantLost(attempt, record::read_broken(kv.value())?))
}

/// Whether the session's key is there, and at which revision. It writes: a read may be answered from the past by a
/// member that was away (etcd-io/etcd#20418).
async fn prove(life: &Life) -> Result<Option<i64>> {
    let txn =
        Txn::new().when([life.lives()]).and_then([life.move_fence()]).or_else([TxnOp::get(life.key(), None)]);
    match life.client.hub.txn(true, txn).await {
        Ok(response) if response.succeeded() => {
            life.fence_is(answer::revision(&response));
            Ok(Some(answer::revision(&response)))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::SessionLost => Ok(None),
        Err(error) => Err(error),
    }
}
