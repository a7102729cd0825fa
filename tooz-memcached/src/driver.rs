//! The connected server.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{Connect, Connecting, Driver, Groups, Locks, OpenSession, Session};
use tooz_core::{Characteristics, Result};

use crate::client::Client;
use crate::config::{self, Config};
use crate::connection::command::{Batch, Look};
use crate::lock::epoch::Origin;
use crate::session::MemcachedSession;

/// Connects to the server that the URL names.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let Connect { url, limits, context, view, .. } = request;
        let mut config = Config::read(&url, limits)?;
        config.view = view;
        let client = Client::connect(config, context).await?;
        if view {
            check_layout(&client).await?;
        }
        Ok(Arc::new(Memcached { characteristics: config::characteristics(&url), client }) as Arc<dyn Driver>)
    })
}

/// A view reads data of its own layout alone, and cannot change it.
async fn check_layout(client: &Client) -> Result<()> {
    let mut batch = Batch::new();
    batch.get(&client.keys.epoch(), Look::Whole);
    match client.ask(&batch).await?.answers.item()? {
        Some(item) => {
            let origin = Origin::read(client, &item)?;
            origin.stamp.readable(&client.keys.shown(), client.config.layout)
        }
        None => Ok(()),
    }
}

#[derive(Debug)]
pub(crate) struct Memcached {
    pub(crate) client: Arc<Client>,
    characteristics: Characteristics,
}

#[async_trait]
impl Driver for Memcached {
    fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(MemcachedSession::open(&self.client, request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.client.close();
        Ok(())
    }
}
