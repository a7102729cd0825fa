//! The connected driver, which its sessions and watches share; and the stamp of the namespace, beside which sessions begin.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Txn, TxnOp};
use tooz_core::Result;
use tooz_core::driver::Stamp;

use crate::config::Config;
use crate::connection::{Connection, answer};
use crate::error::corrupt;
use crate::keys::Keys;

/// One connected driver, shared by its sessions and watches.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Arc<Connection>,
    pub(crate) keys: Keys,
    pub(crate) ttl: Duration,
    pub(crate) layout: u32,
    namespace: String,
    /// The stamp as it was last seen; empty: none.
    stamp: Mutex<Vec<u8>>,
}

impl Client {
    pub(crate) fn new(connection: Arc<Connection>, config: Config) -> Self {
        let Config { ttl, layout, namespace, .. } = config;
        let keys = Keys::new(&namespace);
        Self { connection, keys, ttl, layout, namespace, stamp: Mutex::default() }
    }

    /// For a view: it reads the layout of this version alone. Where no session ever was there is none, and nothing to see.
    pub(crate) async fn check_readable(&self) -> Result<()> {
        let look = [TxnOp::get(self.keys.epoch(), None)];
        let response = self.connection.send(true, Txn::new().and_then(look)).await?;
        match answer::one(&response, 0) {
            Some(kv) => self.parse(kv.value())?.readable(&self.described(), self.layout),
            None => Ok(()),
        }
    }

    /// # Errors
    /// `Corrupt`: this is no stamp.
    pub(crate) fn parse(&self, stamp: &[u8]) -> Result<Stamp> {
        Stamp::parse(stamp).ok_or_else(|| {
            corrupt(&self.keys.epoch(), "holds no stamp; end all programs that use it, then delete it")
        })
    }

    /// The namespace, for messages.
    pub(crate) fn described(&self) -> String {
        format!("namespace \"{}\"", self.namespace)
    }

    /// The stamp as it was last seen; empty: none.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<u8>> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
