//! Streams of changes. The database thread feeds them; dropping a stream ends its watch.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tooz_core::driver::support::feed::HolderFeed;
use tooz_core::driver::{ChangeStream, GroupChange, HolderStream, Holders};
use tooz_core::{GroupId, Result};

use crate::client::Client;
use crate::engine::jobs::Level;
use crate::engine::log;
use crate::engine::tx::{Effect, Tx};
use crate::engine::watches::{GroupWatch, LockWatch};
use crate::keys::Lock;
use crate::view;

/// How long a new view of a group may take. The stream asks again when this fails, so no caller depends on it.
const VIEW_LIMIT: Duration = Duration::from_secs(10);

/// Watches a group.
pub(crate) async fn group(client: &Arc<Client>, namespace: Arc<str>, group: GroupId) -> Result<ChangeStream> {
    let watch = Arc::new(GroupWatch::new(namespace, group));
    let told = watch.clone();
    let work = move |tx: &mut Tx<'_>| {
        let seq = log::latest(tx)?;
        let view = GroupChange::View(view::members(tx, &told.namespace, &told.group)?);
        tx.effect(Effect::WatchGroup(told.clone(), seq, view));
        Ok(())
    };
    client.call(Level::Read, work).await?;
    Ok(Box::pin(WatchStream { watch, client: client.clone(), poll: poll_group, refused: false }))
}

/// Watches the holders of a lock.
pub(crate) async fn holders(client: &Arc<Client>, lock: Lock) -> Result<HolderStream> {
    let watch = Arc::new(LockWatch { lock, feed: HolderFeed::default() });
    let told = watch.clone();
    let work = move |tx: &mut Tx<'_>| {
        let holders = view::holders(tx, &told.lock)?;
        tx.effect(Effect::WatchLock(told.clone(), holders));
        Ok(())
    };
    client.call(Level::Read, work).await?;
    let poll: PollWatch<LockWatch, Holders> = |watch, _, cx| watch.feed.poll(cx);
    Ok(Box::pin(WatchStream { watch, client: client.clone(), poll, refused: false }))
}

fn poll_group(
    watch: &Arc<GroupWatch>,
    client: &Client,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<GroupChange>>> {
    watch.poll(cx, || {
        let (again, failed) = (watch.clone(), watch.clone());
        let work = move |tx: &mut Tx<'_>| {
            let (seq, change) = view::view_again(tx, &again)?;
            tx.effect(Effect::WatchGroup(again.clone(), seq, change));
            Ok(())
        };
        client.jobs.submit(Level::Read, VIEW_LIMIT, work, move |answer| {
            if let Err(error) = answer {
                failed.fail_view(error);
            }
        });
    })
}

type PollWatch<W, T> = fn(&Arc<W>, &Client, &mut Context<'_>) -> Poll<Option<Result<T>>>;

/// The stream of a watch.
#[derive(Debug)]
struct WatchStream<W, T> {
    watch: Arc<W>,
    client: Arc<Client>,
    poll: PollWatch<W, T>,
    /// The stream has ended since it is in a forked child.
    refused: bool,
}

impl<W, T> Stream for WatchStream<W, T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.refused {
            return Poll::Ready(None);
        }
        if let Err(error) = self.client.jobs.check_process() {
            self.refused = true;
            return Poll::Ready(Some(Err(error)));
        }
        (self.poll)(&self.watch, &self.client, cx)
    }
}
