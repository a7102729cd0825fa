//! Groups, of a session and of the driver.

use async_trait::async_trait;
use tooz_core::driver::{ChangeStream, Groups, Join, MemberRecord, SessionGroups};
use tooz_core::{Capabilities, GroupId, MemberId, Result};

use crate::driver::Memory;
use crate::faults::gate::Operation;
use crate::session::MemorySession;
use crate::watch::stream;

#[async_trait]
impl SessionGroups for MemorySession {
    async fn join(&self, request: &Join) -> Result<()> {
        let call = self.client.call(Operation::Join, |state| state.join(&self.fate, request));
        self.client.assume_done(call.await, ())
    }

    async fn leave(&self, group: &GroupId) -> Result<()> {
        let call = self.client.call(Operation::Leave, |state| state.leave(&self.fate, group));
        self.client.assume_done(call.await, ())
    }

    async fn update(&self, group: &GroupId, capabilities: &Capabilities) -> Result<()> {
        let call = self.client.call(Operation::Update, |state| state.update(&self.fate, group, capabilities));
        self.client.assume_done(call.await, ())
    }
}

#[async_trait]
impl Groups for Memory {
    async fn create(&self, group: &GroupId) -> Result<()> {
        self.0.call(Operation::Create, |state| state.create_group(&self.0.space, group)).await
    }

    async fn delete(&self, group: &GroupId) -> Result<()> {
        self.0.call(Operation::Delete, |state| state.delete_group(&self.0.space, group)).await
    }

    async fn list(&self) -> Result<Vec<GroupId>> {
        self.0.call(Operation::List, |state| Ok(state.list_groups(&self.0.space))).await
    }

    async fn members(&self, group: &GroupId) -> Result<Vec<MemberRecord>> {
        self.0.call(Operation::Members, |state| Ok(state.group(&self.0.space, group)?.view())).await
    }

    async fn member(&self, group: &GroupId, member: &MemberId) -> Result<MemberRecord> {
        self.0.call(Operation::Members, |state| state.member(&self.0.space, group, member)).await
    }

    async fn watch(&self, group: &GroupId) -> Result<ChangeStream> {
        self.0
            .call(Operation::Watch, |state| Ok(stream(&self.0, state.watch_group(&self.0.space, group)?)))
            .await
    }
}
