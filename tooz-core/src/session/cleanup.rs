//! What is repeated until the backend has answered, after a caller has gone away.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::live::SessionLease;
use super::state::{Command, Shared};
use crate::driver::{AttemptId, LockKey, Session};
use crate::{ErrorKind, Result};

/// Sees to it that an attempt neither holds, nor waits, nor ever will; ends when the backend said so or the
/// session is over.
pub(crate) async fn withdraw(shared: &Shared, lease: &SessionLease, key: &LockKey, attempt: AttemptId) {
    lease.stop_waiting(attempt);
    until_answered(shared, lease, "withdraw", key, |session| {
        Box::pin(async move { session.locks().withdraw(key, attempt).await })
    })
    .await;
}

/// Repeats an idempotent call until the backend has answered it definitely, or the session is over. The log names the
/// `operation` and what it is `of`.
pub(crate) async fn until_answered<'a, F>(
    shared: &Shared,
    lease: &SessionLease,
    operation: &'static str,
    of: &(dyn Display + Sync),
    call: F,
) where
    F: Fn(Arc<dyn Session>) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> + Send,
{
    let mut pause = shared.config.backoff();
    while let Some(session) = lease.session() {
        let Ok(answer) = lease.or_lost(call(session)).await else { return };
        match answer {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::SessionLost => {
                shared.command(Command::Suspect);
                return;
            }
            Err(error) if error.is_retryable() || error.is_indeterminate() => {
                tracing::debug!(operation, %of, %error, "cleaning up is tried again");
            }
            Err(error) => {
                // Nothing that repeating would mend; the session's end takes it along.
                tracing::warn!(operation, %of, %error, "cleaning up failed");
                return;
            }
        }
        let nap = shared.spawner.sleep(pause.next(&shared.entropy));
        tokio::select! {
            biased; // nothing is left to do once the session is over
            _ = lease.lost() => return,
            () = nap => {}
        }
    }
}
