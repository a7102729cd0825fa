//! The driver without sessions, and what its watches share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tooz_core::driver::{Context, Driver, Groups, Locks, OpenSession, Session};
use tooz_core::{BackendUrl, Characteristics, Error, ErrorKind, Result};
use tooz_local::filesystem::guarantees;

use crate::config::{self, Config};
use crate::engine::paths::Paths;
use crate::engine::tx::Site;
use crate::read_only::Reader;

/// The database that the URL names, for looks.
pub(crate) fn reader(url: &BackendUrl, config: Config, context: &Context) -> Result<Arc<Reader>> {
    let paths = Paths::find(&config.path, config.force_filesystem)?;
    let site = Site::new(&paths, config.boot_id.as_deref(), config.layout, context)?;
    let best = guarantees(config::characteristics(url), paths.known_file_system);
    let characteristics = best - Characteristics::PUSH_WATCHES;
    let closed = AtomicBool::new(false);
    Ok(Arc::new(Reader { paths, site, config, characteristics, closed }))
}

/// Connects for looking.
pub(crate) async fn connect(url: &BackendUrl, config: Config, context: Context) -> Result<Arc<dyn Driver>> {
    let reader = reader(url, config, &context)?;
    // If there is a database, this fails with what is wrong with it.
    reader.look(|_| Ok(())).await?;
    Ok(Arc::new(ReadOnly(reader)))
}

#[derive(Debug)]
pub(crate) struct ReadOnly(pub(crate) Arc<Reader>);

pub(crate) fn refuse() -> Error {
    Error::new(ErrorKind::Unsupported, "a view cannot change anything; connect a coordinator")
}

#[async_trait]
impl Driver for ReadOnly {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, _: &OpenSession) -> Result<Arc<dyn Session>> {
        Err(refuse())
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.closed.store(true, Ordering::Release);
        Ok(())
    }
}
