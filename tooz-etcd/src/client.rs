//! The driver: what needs no session.

use std::cmp::Ordering;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp};
use tooz_core::driver::{
    Connect, Driver, Epoch, Groups, Locks, OpenSession, Session, SessionId, Stamp, earlier_layout_in_use,
};
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use crate::config::{self, Config};
use crate::connection::version;
use crate::connection::{Connection, answer};
use crate::error::corrupt;
use crate::keys::Keys;
use crate::lock::fence;
use crate::lock::record;
use crate::session::{EtcdSession, Opened};

/// How often a session is opened whose lease ends before anything could be written with it.
const OPENINGS: u32 = 3;
/// How often a session is opened while others change the stamp, which they do once in the data's life.
const STAMPINGS: u32 = 5;

/// One connected driver, shared by its sessions and watches.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Arc<Connection>,
    pub(crate) keys: Keys,
    ttl: Duration,
    layout: u32,
    namespace: String,
    /// The stamp as it was last seen; empty: none.
    stamp: Mutex<Vec<u8>>,
    characteristics: Characteristics,
}

/// The driver.
pub(crate) struct Etcd(pub(crate) Arc<Client>);

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Etcd").field(&self.0.connection).finish()
    }
}

impl Etcd {
    pub(crate) async fn connect(request: Connect) -> Result<Self> {
        let (config, view) = (Config::read(&request.url)?, request.view);
        let options = config.connect_options(&request.context).await?;
        let connection = Connection::new(&config, options, request.context);
        let status = connection.call(true, |channel| async move { channel.raw().status().await }).await;
        let best = config::characteristics(&request.url);
        let characteristics = match status {
            Ok(status) => version::lower(best, status.version())?,
            // Some roles may not ask; what they may do is seen when a session is opened.
            Err(error)
                if error.kind() == ErrorKind::Denied && config.user.is_some() && is_about_status(&error) =>
            {
                version::lower(best, "")?
            }
            Err(error) => return Err(error),
        };
        let keys = Keys::new(&config.namespace);
        let Config { ttl, layout, namespace, .. } = config;
        let client =
            Client { connection, keys, ttl, layout, namespace, stamp: Mutex::default(), characteristics };
        if view {
            client.check_readable().await?;
        }
        Ok(Self(Arc::new(client)))
    }
}

/// Whether the user is known and only this was denied.
fn is_about_status(error: &Error) -> bool {
    error.context().contains("permission denied")
}

/// What has to hold for a session to begin, and what makes it so.
struct Beginning {
    stamp: Stamp,
    compares: Vec<Compare>,
    /// Nothing, if the stamp stands already.
    write: Vec<TxnOp>,
}

impl Client {
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    async fn open(self: &Arc<Self>, request: &OpenSession) -> Result<EtcdSession> {
        let wanted = request.ttl.unwrap_or(self.ttl);
        let previous = request.previous.map(lease_of);
        let mut tries = OPENINGS;
        let (opened, ttl, opened_at) = loop {
            tries -= 1;
            let opened_at = self.connection.context.clock.now();
            let granted = self.connection.grant_lease(wanted).await?;
            let lease = granted.id();
            let revision = granted.header().map_or(0, ResponseHeader::revision);
            let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default());
            let id = SessionId(
                (self.connection.context.entropy.id() >> 64 << 64) | u128::from(lease.cast_unsigned()),
            );
            match self.write_session(request, id, (lease, revision), previous).await {
                Ok(opened) => break (opened, ttl, opened_at),
                // The server took longer than the lease lives.
                Err(error) if error.kind() == ErrorKind::SessionLost && tries > 0 => {
                    tracing::debug!(%error, ?ttl, "a session ended before it began; it is opened anew");
                }
                Err(error) => {
                    // Whoever cannot write must not leave leases behind at every try; if this fails, too, it ends by
                    // itself.
                    let _ = self.connection.revoke(lease).await;
                    return Err(error);
                }
            }
        };
        if let Some(previous) = previous
            && let Err(error) = self.connection.revoke(previous).await
        {
            tracing::debug!(%error, "the earlier session could not be ended; it ends by its ttl");
        }
        Ok(EtcdSession::new(self, request.member.clone(), opened, ttl, opened_at))
    }

    /// Writes the session's key, makes the stamp where it is missing, and takes the member id over from our earlier
    /// session, so that nobody gets it while we reconnect. All of it only beside the stamp that was seen.
    async fn write_session(
        &self,
        request: &OpenSession,
        id: SessionId,
        (lease, revision): (i64, i64),
        previous: Option<i64>,
    ) -> Result<Opened> {
        let with_lease = || Some(PutOptions::new().with_lease(lease));
        let mut seen = self.seen().clone();
        for _ in 0..STAMPINGS {
            let Beginning { stamp, compares, write } = self.beginning(&seen, revision).await?;
            let mut operations =
                vec![TxnOp::put(self.keys.session(id), record::write_session(&request.member), with_lease())];
            if let Some(previous) = previous {
                let claim = self.keys.claim(&request.member);
                operations.push(TxnOp::txn(
                    Txn::new()
                        .when([Compare::lease(claim.clone(), CompareOp::Equal, previous)])
                        .and_then([TxnOp::put(claim, id.to_string(), with_lease())]),
                ));
            }
            operations.extend(write);
            let look = [TxnOp::get(self.keys.epoch(), None)];
            let txn = Txn::new().when(compares).and_then(operations).or_else(look);
            let response = self.connection.send(false, txn).await?;
            if response.succeeded() {
                *self.seen() = stamp.to_string().into_bytes();
                let claimed = previous.is_some()
                    && answer::nested(&response, 1).is_some_and(|nested| nested.succeeded());
                return Ok(Opened {
                    id,
                    lease,
                    previous,
                    claimed,
                    stamp,
                    revision: answer::revision(&response),
                });
            }
            seen = answer::value(&response, 0);
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the stamp of namespace \"{}\" changes all the time; connect again", self.namespace),
        ))
    }

    /// For a view: it reads the layout of this version alone. Where no session ever was there is none, and nothing to see.
    async fn check_readable(&self) -> Result<()> {
        let look = [TxnOp::get(self.keys.epoch(), None)];
        let response = self.connection.send(true, Txn::new().and_then(look)).await?;
        match answer::one(&response, 0) {
            Some(kv) => self.parse(kv.value())?.readable(&self.place(), self.layout),
            None => Ok(()),
        }
    }

    fn parse(&self, stamp: &[u8]) -> Result<Stamp> {
        Stamp::parse(stamp).ok_or_else(|| {
            corrupt(&self.keys.epoch(), "holds no stamp; end all programs that use it, then delete it")
        })
    }

    /// The namespace, for messages.
    fn place(&self) -> String {
        format!("namespace \"{}\"", self.namespace)
    }

    fn seen(&self) -> MutexGuard<'_, Vec<u8>> {
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
        let same = stamp.compare(&self.place(), self.layout)? == Ordering::Equal;
        Ok(same.then(|| Beginning { stamp, compares, write: Vec::new() }))
    }

    /// How a session begins; `seen`: the stamp as it was last seen; `revision`: of now, or a little before.
    ///
    /// # Errors
    /// `Incompatible`: the data is of a later layout, or of an earlier one in which a session lives. `Corrupt`: a session lives
    /// in a layout that is not known.
    async fn beginning(&self, seen: &[u8], revision: i64) -> Result<Beginning> {
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
                Some(found) => earlier_layout_in_use(&self.place(), found.layout, self.layout, &who),
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

/// The lease of a session: it stands in the id.
pub(crate) fn lease_of(id: SessionId) -> i64 {
    let low = u64::try_from(id.0 & u128::from(u64::MAX)).unwrap_or_default();
    low.cast_signed()
}

#[async_trait]
impl Driver for Etcd {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(self.0.open(request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.connection.close();
        Ok(())
    }
}
