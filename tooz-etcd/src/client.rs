//! What a driver's sessions and watches share: the connection, the keys, and the stamp of the namespace.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{Txn, TxnOp};
use tooz_core::Result;
use tooz_core::driver::Stamp;

use crate::config::Config;
use crate::connection::{Connection, answer};
use crate::error::corrupt;
use crate::keys::Keys;

/// One connected driver.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Arc<Connection>,
    pub(crate) keys: Keys,
    pub(crate) config: Config,
    /// The stamp as it was last seen; empty: none.
    stamp: Mutex<Vec<u8>>,
}

impl Client {
    pub(crate) fn new(connection: Arc<Connection>, config: Config) -> Self {
        Self { connection, keys: Keys::new(&config.namespace), config, stamp: Mutex::default() }
    }

    /// Checks for a view that the data is of this version's layout, the only one that it reads. Where no session ever was
    /// there is no stamp, and nothing to see.
    pub(crate) async fn check_readable(&self) -> Result<()> {
        let look = [TxnOp::get(self.keys.epoch(), None)];
        let response = self.connection.send(true, Txn::new().and_then(look)).await?;
        match answer::one(&response, 0) {
            Some(kv) => self.parse(kv.value())?.readable(&self.described(), self.config.layout),
            None => Ok(()),
        }
    }

    /// # Errors
    /// `Corrupt`: the value is no stamp.
    pub(crate) fn parse(&self, stamp: &[u8]) -> Result<Stamp> {
        Stamp::parse(stamp).ok_or_else(|| {
            corrupt(&self.keys.epoch(), "holds no stamp; end all programs that use it, then delete it")
        })
    }

    /// The namespace, for messages.
    pub(crate) fn described(&self) -> String {
        format!("namespace \"{}\"", self.config.namespace)
    }

    /// The stamp as it was last seen; empty: none.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<u8>> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
