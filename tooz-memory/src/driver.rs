//! The connected driver.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{Driver, Groups, Locks, OpenSession, Session, SessionId};
use tooz_core::{Characteristics, Result};

use crate::client::Client;
use crate::faults::gate::Operation;
use crate::session::MemorySession;
use crate::store::state::Fate;

/// A handle on the shared [`Client`]: the driver traits are implemented for it.
#[derive(Debug)]
pub(crate) struct Memory(pub(crate) Arc<Client>);

#[async_trait]
impl Driver for Memory {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        let client = &self.0;
        client.claim_for(&request.member);
        let opened_at = client.context.clock.now();
        let fate = Fate::new(SessionId(client.context.entropy.id()));
        let session: Arc<dyn Session> = client
            .call(Operation::Open, |state| {
                let epoch = state.open_session(&fate, &client.space, request, client.ttl);
                let reported = state.reported_ttl(client.ttl);
                Ok(Arc::new(MemorySession::new(client.clone(), fate.clone(), epoch, reported, opened_at)))
            })
            .await?;
        Ok(session)
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.close();
        Ok(())
    }
}
