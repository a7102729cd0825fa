//! The connected server.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tooz_core::driver::{Connect, Connecting, Driver, Groups, Locks, OpenSession, Session, Task};
use tooz_core::{Characteristics, Result};

use crate::client::Client;
use crate::config::{self, Config};
use crate::connection;
use crate::session::RedisSession;

/// Connects to the server that the URL names.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let Connect { url, limits, context, view, .. } = request;
        let mut config = Config::read(&url, limits)?;
        config.view = view;
        let (client, unkept, supervisor) = connection::connect(config, context).await?;
        Ok(Arc::new(Redis {
            characteristics: config::characteristics(&url) - unkept,
            supervisor: Mutex::new(Some(supervisor)),
            client,
        }) as Arc<dyn Driver>)
    })
}

#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) client: Arc<Client>,
    characteristics: Characteristics,
    supervisor: Mutex<Option<Task<()>>>,
}

#[async_trait]
impl Driver for Redis {
    fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(RedisSession::open(&self.client, request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.client.current.close();
        drop(self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(())
    }
}
