//! Leases: the keys that hang on a lease go when it ends.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::LeaseGrantResponse;
use tooz_core::{Error, ErrorKind, Result};

use crate::connection::Connection;
use crate::error::{Then, closed};

impl Connection {
    /// Grants a lease for whole seconds, never for less than `ttl`. If the answer is lost, the lease ends by itself.
    pub(crate) async fn grant_lease(self: &Arc<Self>, ttl: Duration) -> Result<LeaseGrantResponse> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        self.call(true, move |channel| async move { channel.leases().grant(seconds, None).await }).await
    }

    /// For how long a lease lives after each prolonging; zero if it is gone.
    pub(crate) async fn granted_ttl(self: &Arc<Self>, lease: i64) -> Result<Duration> {
        let found = self
            .call(true, move |channel| async move { channel.leases().time_to_live(lease, None).await })
            .await?;
        Ok(Duration::from_secs(u64::try_from(found.granted_ttl()).unwrap_or_default()))
    }

    /// Ends a lease and everything that hangs on it. Ending one that is gone is no error.
    pub(crate) async fn revoke(self: &Arc<Self>, lease: i64) -> Result<()> {
        let revoked =
            self.call(true, move |channel| async move { channel.leases().revoke(lease).await }).await;
        match revoked {
            Err(error) if error.kind() != ErrorKind::SessionLost => Err(error),
            _ => Ok(()),
        }
    }

    /// Prolongs a lease of a session with this ttl; `false`: it is gone.
    pub(crate) async fn prolong(self: &Arc<Self>, lease: i64, ttl: Duration) -> Result<bool> {
        let connection = Arc::clone(self);
        let prolonging = self.context.spawner.spawn(async move {
            // Again at once if the server surely did not prolong it: until the next beat a third of the ttl would pass.
            let once = || connection.prolong_once(lease, ttl);
            match once().await {
                Err((_, Then::Elsewhere | Then::Anew)) => once().await,
                prolonged => prolonged,
            }
        });
        let prolonged = prolonging.await.unwrap_or_else(|| Err((closed(), Then::Nothing)));
        prolonged.map_err(|(error, _)| error)
    }

    /// Prolongs a lease over the present connection. The connection is given up after a sixth of the ttl. The answer is
    /// waited for longer, because a late one proves as much.
    async fn prolong_once(&self, lease: i64, ttl: Duration) -> Result<bool, (Error, Then)> {
        let (limit, spawner) = (ttl / 6, &self.context.spawner);
        let exchanged = self.exchange(limit, |channel| async move {
            let mut leases = channel.leases();
            spawner.timeout(limit + ttl, leases.keep_alive(lease)).await.transpose()
        });
        match Box::pin(exchanged).await {
            Ok(Some(_)) => Ok(true),
            Ok(None) => {
                let error = Error::new(ErrorKind::Timeout, "no answer to the prolonging of a lease");
                Err((error.indeterminate(), Then::Unknown))
            }
            Err((error, _)) if error.kind() == ErrorKind::SessionLost => Ok(false),
            Err(failed) => Err(failed),
        }
    }
}
