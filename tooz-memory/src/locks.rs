//! A session's locks: asking, waiting for the turn, giving back.

use async_trait::async_trait;
use tooz_core::Result;
use tooz_core::driver::{
    Acquire, Acquired, AttemptId, End, Grant, LockKey, QueueEntry, Released, SessionLocks, Turn,
};

use crate::faults::gate::{Operation, Outcome, refused};
use crate::session::MemorySession;

#[async_trait]
impl SessionLocks for MemorySession {
    async fn request(&self, request: &Acquire) -> Result<Acquired> {
        self.client.call(Operation::Request, |state| state.request(&self.fate, request)).await
    }

    async fn turn(&self, entry: &QueueEntry) -> Result<Turn> {
        let name = Operation::Turn.name();
        let outcome = self.client.gate(Operation::Turn).await.map_err(|error| error.during(name))?;
        match outcome {
            Some(Outcome::Fail) => return Err(refused("let this call fail").during(name)),
            Some(Outcome::Lost) => return Err(self.client.lost_answer().during(name)),
            Some(Outcome::Indeterminate) | None => {}
        }
        let turn = self.client.wait(|state| state.turn(&self.fate, entry)).await;
        if outcome.is_some() {
            return Err(self.client.lost_answer().during(name));
        }
        turn.map_err(|error| error.during(name))
    }

    async fn withdraw(&self, _key: &LockKey, attempt: AttemptId) -> Result<()> {
        let withdrawn = self
            .client
            .call(Operation::Withdraw, |state| {
                state.withdraw(&self.fate, attempt);
                Ok(())
            })
            .await;
        self.client.assume_done(withdrawn, ())
    }

    async fn release(&self, grant: &Grant, end: End) -> Result<Released> {
        let call = self.client.call(Operation::Release, |state| Ok(state.release(&self.fate, grant, end)));
        self.client.assume_done(call.await, Released::Released)
    }
}
