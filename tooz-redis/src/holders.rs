//! Who holds a lock, for anyone who asks: listing, watching and breaking the holders.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tooz_core::driver::support::feed::HolderFeed;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Meant};
use tooz_core::{Error, ErrorKind, FencingToken, Result};

use crate::connection::reply::Parts;
use crate::connection::subscription::Subscription;
use crate::driver::Redis;
use crate::scripts;
use crate::view::{holder_records, read_holders};

/// How often a watch reads the holders without a message: a Python holder publishes nothing, nor does a holder that dies.
const LOOK: Duration = Duration::from_secs(1);

#[async_trait]
impl Locks for Redis {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        read_holders(&self.client, key).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let (client, lock) = (&self.client, self.client.keys.lock(&request.key));
        let meant = match &request.only {
            None => Vec::new(),
            Some(Meant::Foreign(value)) => [b"f", &value[..]].concat(),
            Some(_) => request.token().map(|token| token.to_string()).unwrap_or_default().into_bytes(),
        };
        let call = scripts::BREAK
            .call()
            .keys(lock.keys())
            .keys([client.keys.fence()])
            .number(client.config().retention().as_millis())
            .arg(&lock.base)
            .arg(meant)
            .arg(request.by.as_bytes())
            .arg(&request.why);
        let answer = client.call(&call).await?;
        let broken = holder_records(Parts::of(answer.value)?)?;
        if broken.is_empty() && answer.repeated {
            let why = format!("{}: the reply was lost; what was to be broken is gone now", request.key);
            return Err(Error::new(ErrorKind::Unavailable, why).indeterminate());
        }
        for holder in &broken {
            let token = holder.token.map(FencingToken::get);
            tracing::warn!(key = %request.key, by = %request.by, why = request.why, ?token, "a lock was broken");
        }
        Ok(broken)
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let client = &self.client;
        let call = scripts::RAISE.call().keys([client.keys.fence()]).number(least.get() - 1).confirm();
        // The server has the new value; a replica that is promoted might not.
        let unconfirmed = client.call(&call).await?.unconfirmed;
        unconfirmed.map_or(Ok(()), |why| Err(why.indeterminate()))
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (client, key) = (Arc::clone(&self.client), key.clone());
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let listener = move |_: Option<&[u8]>| notify.notify_one();
        let subscription =
            Subscription::start(&client, client.keys.lock(&key).channel, Arc::new(listener)).await?;
        let feed = HolderFeed::new(read_holders(&client, &key).await?);
        let (told, spawner) = (feed.clone(), client.context().spawner.clone());
        let task = spawner.spawn(async move {
            let _subscription = subscription;
            loop {
                tokio::select! {
                    biased; // a change that was published is read at once
                    () = changed.notified() => {}
                    () = client.context().spawner.sleep(LOOK) => {}
                }
                match read_holders(&client, &key).await {
                    Ok(now) => told.set(now),
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(%error, "the holders could not be read");
                    }
                    Err(error) if error.kind() == ErrorKind::Closed => return told.fail(error),
                    Err(error) => told.report(error),
                }
            }
        });
        Ok(feed.stream(task))
    }
}
