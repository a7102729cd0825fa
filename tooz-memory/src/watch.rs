//! Watches: streams that look at the state again and again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tooz_core::Result;

use crate::client::Client;
use crate::store::feed::Watch;
use crate::store::state::{State, Step};

/// The stream of a watch. Dropping it ends the watch.
pub(crate) fn stream<W: Watch>(
    client: &Arc<Client>,
    watch: W,
) -> Pin<Box<dyn Stream<Item = Result<W::Item>> + Send>> {
    let follower = Arc::new(Follower { client: client.clone(), watch: Mutex::new(watch) });
    Box::pin(Following { follower, next: None })
}

struct Follower<W: Watch> {
    client: Arc<Client>,
    watch: Mutex<W>,
}

impl<W: Watch> Follower<W> {
    /// One look at the state; the stream ends when the driver is closed.
    fn look(&self, state: &State) -> Step<Option<W::Item>> {
        if self.client.is_closed() {
            return Step::Done(None);
        }
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).next(state)
    }
}

impl<W: Watch> Drop for Follower<W> {
    fn drop(&mut self) {
        let watch = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.client.backend.act(|state| watch.end(state));
    }
}

type Next<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// Dropping it in the middle of a wait loses no item: the watch moves on only when it returns one.
struct Following<W: Watch> {
    follower: Arc<Follower<W>>,
    next: Option<Next<W::Item>>,
}

impl<W: Watch> Stream for Following<W> {
    type Item = Result<W::Item>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { follower, next } = self.get_mut();
        let future = next.get_or_insert_with(|| {
            let follower = follower.clone();
            Box::pin(async move { follower.client.listen(|state| follower.look(state)).await })
        });
        let item = ready!(future.as_mut().poll(cx));
        *next = None;
        Poll::Ready(item.map(Ok))
    }
}
