//! The driver: what needs no session.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{Connect, Connecting, Driver, Groups, Locks, OpenSession, Session};
use tooz_core::{Characteristics, Result};

use crate::client::Client;
use crate::config::{self, Config};
use crate::connection::{Connection, version};
use crate::error::is_for_the_role;
use crate::session::EtcdSession;

/// The driver.
#[derive(Debug)]
pub(crate) struct Etcd {
    pub(crate) client: Arc<Client>,
    characteristics: Characteristics,
}

/// Connects at the driver's level, for programs that work with [`tooz_core::driver`] and for tests of drivers;
/// other programs connect a coordinator.
///
/// # Errors
/// `InvalidUrl`, `InvalidOption`: the URL is none of this driver, or a file that it names cannot be read.
/// `Unavailable`, `Denied`, `Incompatible`: what the server says. Whether every option is known is checked by the core.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let (config, view) = (Config::read(&request.url, request.limits)?, request.view);
        let options = config.connect_options(&request.context).await?;
        let connection = Connection::new(&config, options, request.context);
        let status = connection.call(true, |mut channel| async move { channel.client.status().await }).await;
        let best = config::characteristics(&request.url);
        let characteristics = match status {
            Ok(status) => version::lower(best, status.version())?,
            // Some roles may not ask for the status; opening a session shows what they may do.
            Err(error) if config.user.is_some() && is_for_the_role(&error) => version::lower(best, "")?,
            Err(error) => return Err(error),
        };
        let client = Arc::new(Client::new(connection, config));
        if view {
            client.check_readable().await?;
        }
        Ok(Arc::new(Etcd { client, characteristics }) as Arc<dyn Driver>)
    })
}

#[async_trait]
impl Driver for Etcd {
    fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(EtcdSession::open(&self.client, request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.client.connection.close();
        Ok(())
    }
}
