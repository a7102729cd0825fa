//! Locks without a session: reading holders, watching them, breaking a lock, raising the tokens.

use async_trait::async_trait;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Meant};
use tooz_core::{FencingToken, Result};

use crate::driver::Memory;
use crate::faults::gate::Operation;
use crate::watch::stream;

#[async_trait]
impl Locks for Memory {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        self.0.call(Operation::Holders, |state| Ok(state.holders(&self.0.space, key))).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let BreakRequest { key, only, by, why, .. } = request;
        // There are no others here.
        if matches!(only, Some(Meant::Foreign(_))) {
            return Ok(Vec::new());
        }
        let only = request.token();
        self.0
            .call(Operation::Break, |state| Ok(state.break_lock(&self.0.space, key, only, Some(by), why)))
            .await
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        self.0
            .call(Operation::Raise, |state| {
                state.raise_tokens(least);
                Ok(())
            })
            .await
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        self.0.call(Operation::Watch, |state| Ok(stream(&self.0, state.watch_lock(&self.0.space, key)))).await
    }
}
