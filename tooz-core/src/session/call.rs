//! One call to the driver: its time limit, and what happens to it when its caller goes away. And what is read without a
//! session.

use std::any::Any;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::driver::{Driver, Holders, LockKey, MemberRecord};
use crate::platform::runtime::Spawner;
use crate::{Error, ErrorKind, GroupId, Result};

/// A future that stands on its own: it can be handed over to the keeper.
pub(crate) type Owned<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What has to be done with a call that outlives its caller. Boxed: a closure's own type in the futures of the
/// API would hide from rustc that they are `Send`, and no program could spawn them (rust-lang/rust#110338).
pub(crate) type Settle<T> = Box<dyn FnOnce(Owned<Result<T>>) -> Owned<()> + Send>;

/// What a stream keeps alive while it is read.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// Who can read from the backend: a coordinator, and a view.
pub(crate) trait Reads: Send + Sync {
    fn driver(&self) -> Arc<dyn Driver>;

    /// On whose runtime the time limit runs, and the limit of one operation.
    fn limit(&self) -> (&Spawner, Duration);

    /// # Errors
    /// `Invalid` in a forked child, `Closed`.
    fn check(&self) -> Result<()>;

    /// Drives what a caller left unfinished to its end.
    fn settle(&self, job: Owned<()>);
}

/// A call that changes nothing: when its time is over, nothing can have taken effect.
pub(crate) async fn read<T: Send + 'static>(reader: &dyn Reads, call: Owned<Result<T>>) -> Result<T> {
    reader.check()?;
    let (spawner, limit) = reader.limit();
    let call = Call::new(call, Box::new(drive::<T>), reader);
    let answered = limited(spawner, limit, call).await.unwrap_or_else(|| Err(no_answer(limit)));
    answered.map_err(Error::without_effect)
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

pub(crate) async fn holders(reader: &dyn Reads, key: LockKey) -> Result<Holders> {
    let driver = reader.driver();
    let call = Box::pin(async move { driver.locks().holders(&key).await });
    read(reader, call).await.map_err(|error| error.during("holders"))
}

/// Polls `future` for at most `limit`; `None` when the time is over.
pub(crate) async fn limited<F: Future>(spawner: &Spawner, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    // Most calls of an embedded backend are done at once: then no timer is made.
    if let Poll::Ready(output) = poll_once(future.as_mut()).await {
        return Some(output);
    }
    spawner.timeout(limit, future).await
}

pub(crate) fn no_answer(limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("no answer within {limit:?} (option operation_timeout)"))
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "connect a new coordinator")
}

/// Nothing but its end is wanted of an unfinished call.
pub(crate) fn drive<T: Send + 'static>(unfinished: Owned<Result<T>>) -> Owned<()> {
    Box::pin(async move { drop(unfinished.await) })
}

/// Polls once and answers what that gave.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// A call to the backend that is handed over when its caller goes away, and driven to its end.
pub(crate) struct Call<'a, T: Send + 'static> {
    call: Option<(Owned<Result<T>>, Settle<T>)>,
    reader: &'a dyn Reads,
}

impl<'a, T: Send + 'static> Call<'a, T> {
    pub(crate) fn new(call: Owned<Result<T>>, settle: Settle<T>, reader: &'a dyn Reads) -> Self {
        Self { call: Some((call, settle)), reader }
    }
}

impl<T: Send + 'static> Future for Call<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let Some((call, _)) = &mut self.call else { return Poll::Ready(Err(closed())) };
        let output = call.as_mut().poll(cx);
        if let Poll::Ready(Err(error)) = &output
            && error.is_indeterminate()
        {
            // It may have taken effect: what has to be done about that starts with this answer.
            if let Some((_, settle)) = self.call.take() {
                let error = error.clone();
                self.reader.settle(settle(Box::pin(async move { Err(error) })));
            }
        } else if output.is_ready() {
            self.call = None;
        }
        output
    }
}

impl<T: Send + 'static> Drop for Call<'_, T> {
    fn drop(&mut self) {
        if let Some((call, settle)) = self.call.take() {
            self.reader.settle(settle(call));
        }
    }
}
