//! The connected database.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{Connect, Connecting, Driver, Groups, Locks, OpenSession, Session};
use tooz_core::{Characteristics, Result};
use tooz_local::filesystem::guarantees;

use crate::client::Client;
use crate::config::{self, Config};
use crate::engine::jobs::Level;
use crate::read_only;
use crate::session::SqliteSession;

/// Connects to the database that the URL names, creating it if it is missing.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let Connect { url, limits, context, view, .. } = request;
        let config = Config::read(&url, limits)?;
        if view {
            return read_only::driver::connect(&url, config, context).await;
        }
        let client = Arc::new(Client::new(config, &context)?);
        // Opens the database, or fails with the reason.
        client.call_within(Level::Read, limits.connect_timeout, |_| Ok(())).await?;
        let characteristics = guarantees(config::characteristics(&url), client.jobs.paths.known_file_system);
        Ok(Arc::new(SqliteDriver { client, characteristics }) as Arc<dyn Driver>)
    })
}

/// A connected database. The files `groups` and `holders` implement its other two traits.
#[derive(Debug)]
pub(crate) struct SqliteDriver {
    pub(crate) client: Arc<Client>,
    characteristics: Characteristics,
}

#[async_trait]
impl Driver for SqliteDriver {
    fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(SqliteSession::open(&self.client, request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.client.close().await
    }
}
