//! The connected driver, which its sessions and watches share; and the stamp of the namespace, beside which sessions begin.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use tooz_core::Result;
use tooz_core::driver::{Epoch, Stamp, earlier_layout_in_use};

use crate::config::Config;
use crate::connection::{Connection, answer};
use crate::error::corrupt;
use crate::keys::Keys;
use crate::lock::{fence, record};

/// One connected driver, shared by its sessions and watches.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Arc<Connection>,
    pub(crate) keys: Keys,
    pub(crate) ttl: Duration,
    layout: u32,
    namespace: String,
    /// The stamp as it was last seen; empty: none.
    stamp: Mutex<Vec<u8>>,
}

/// What has to hold for a session to begin, and what makes it so.
pub(crate) struct Beginning {
    pub(crate) stamp: Stamp,
    pub(crate) compares: Vec<Compare>,
    /// Nothing, if the stamp stands already.
    pub(crate) write: Vec<TxnOp>,
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

    fn parse(&self, stamp: &[u8]) -> Result<Stamp> {
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

    /// How a session begins beside a stamp that need not be changed; `None`: it is missing, or of an earlier layout.
    ///
    /// # Errors
    /// `Incompatible`: it is of a later layout; `Corrupt`: it cannot be read.
    fn beside(&self, seen: &[u8]) -> Result<Option<Beginning>> {
        if seen.is_empty() {
            return Ok(None);
        }
        let stamp = self.parse(seen)?;
        let compares = vec![Compare::value(self.keys.epoch(), CompareOp::Equal, seen)];
        let same = stamp.compare(&self.described(), self.layout)? == Ordering::Equal;
        Ok(same.then(|| Beginning { stamp, compares, write: Vec::new() }))
    }

    /// How a session begins; `seen`: the stamp as it was last seen; `revision`: of now, or a little before.
    ///
    /// # Errors
    /// `Incompatible`: the data is of a later layout, or of an earlier one in which a session lives. `Corrupt`: a session lives
    /// in a layout that is not known.
    pub(crate) async fn beginning(&self, seen: &[u8], revision: i64) -> Result<Beginning> {
        if let Some(beginning) = self.beside(seen)? {
            return Ok(beginning);
        }
        let (key, (from, end)) = (self.keys.epoch(), self.keys.sessions());
        let list = TxnOp::get(from.clone(), Some(GetOptions::new().with_range(end.clone())));
        let look = Txn::new().and_then([TxnOp::get(key.clone(), None), list]);
        let response = self.connection.send(true, look).await?;
        let stands = answer::value(&response, 0);
        if let Some(beginning) = self.beside(&stands)? {
            return Ok(beginning);
        }
        let found = (!stands.is_empty()).then(|| self.parse(&stands)).transpose()?;
        let mut living = answer::found(&response, 1).into_iter().filter(|kv| self.keys.is_session(kv.key()));
        if let Some(kv) = living.next() {
            let who = record::read_session(kv.value())
                .map_or_else(|| "a session".to_owned(), |member| format!("member \"{member}\""));
            return Err(match found {
                Some(found) => earlier_layout_in_use(&self.described(), found.layout, self.layout, &who),
                None => {
                    corrupt(&key, &format!("is missing, although {who} lives; end all programs that use it"))
                }
            });
        }
        let stamp = match found {
            Some(found) => Stamp { layout: self.layout, ..found },
            None => Stamp { layout: self.layout, epoch: Epoch(self.connection.context.entropy.id()) },
        };
        let mut write = vec![TxnOp::put(key.clone(), stamp.to_string(), None)];
        // Layout 1 had no raises.
        let raised = found.is_some_and(|found| found.layout > 1);
        write.extend(
            (!raised).then(|| fence::first(self.keys.fence(), &self.connection.context.clock, revision)),
        );
        let unchanged = match found {
            Some(_) => Compare::value(key, CompareOp::Equal, stands),
            None => Compare::version(key, CompareOp::Equal, 0),
        };
        // No session has begun since.
        let next = answer::revision(&response).saturating_add(1);
        let none = Compare::mod_revision(from, CompareOp::Less, next).with_range(end);
        Ok(Beginning { stamp, compares: vec![unchanged, none], write })
    }
}
