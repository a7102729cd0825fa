//! Locks as an operator sees them, and who follows them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, LockMode, Locks};
use tooz_core::{Error, ErrorKind, FencingToken, MemberId, Result};

use crate::client::{Client, Repeat};
use crate::connection::channels::{Heard, Subscription};
use crate::connection::reply::Parts;
use crate::groups::moment;
use crate::locks::read_mode;
use crate::scripts;
use crate::session::KEEP;
use crate::watch::{Outlet, Tap};

/// A Python holder that comes or goes tells nobody, nor does one that dies.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct RedisLocks(pub(crate) Arc<Client>);

fn holder(mut parts: Parts) -> Result<HolderRecord> {
    let token = parts.text("a token")?.parse().ok().and_then(FencingToken::new);
    let since = moment(&parts.text("since when")?);
    let (mode, limit) = (parts.text("a mode")?, parts.text("a limit")?);
    let member = MemberId::new(parts.bytes("a member")?).ok();
    Ok(HolderRecord::new(member, token, read_mode(&mode, limit.parse().unwrap_or(0)), since))
}

fn keep(client: &Client) -> Duration {
    KEEP.max(client.config.ttl * 10)
}

async fn read(client: &Client, key: &LockKey) -> Result<Holders> {
    let place = client.keys.lock(key);
    let call = client
        .question(&scripts::WHO_HOLDS)
        .keys(place.keys())
        .key(client.keys.fence())
        .number(keep(client).as_millis())
        .arg(&place.base);
    let mut answer = Parts::of(client.call(&call, Repeat::Yes).await?.value)?;
    let waiters = u64::try_from(answer.number("how many wait")?).unwrap_or_default();
    let foreign = answer.number("who holds it")? == 1;
    answer.number("for how long")?;
    let mut holders =
        answer.map(Parts::of).map(|parts| parts.and_then(holder)).collect::<Result<Vec<_>>>()?;
    holders.sort_by_key(|holder| holder.token);
    if foreign {
        // Python's lock holds a random word: nobody knows whose.
        holders.push(HolderRecord::new(None, None, LockMode::Exclusive, None));
    }
    Ok(Holders::new(holders, Some(waiters)))
}

#[async_trait]
impl Locks for RedisLocks {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        read(&self.0, key).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let (client, place) = (&self.0, self.0.keys.lock(&request.key));
        let call = client
            .script(&scripts::BREAK)
            .keys(place.keys())
            .key(client.keys.fence())
            .number(keep(client).as_millis())
            .arg(&place.base)
            .arg(request.token.map(|token| token.to_string()).unwrap_or_default())
            .arg(request.by.as_bytes())
            .arg(&request.why);
        let answer = client.call(&call, Repeat::Yes).await?;
        let mut broken = Parts::of(answer.value)?
            .map(Parts::of)
            .map(|parts| parts.and_then(holder))
            .collect::<Result<Vec<_>>>()?;
        if broken.is_empty() && answer.repeated {
            let why = format!("{}: the answer was lost, and nobody holds it now", request.key);
            return Err(Error::new(ErrorKind::Unavailable, why).indeterminate());
        }
        broken.sort_by_key(|holder| holder.token);
        for holder in &broken {
            let token = holder.token.map(FencingToken::get);
            tracing::warn!(key = %request.key, by = %request.by, why = request.why, ?token, "a lock was broken");
        }
        Ok(broken)
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let call = self.0.script(&scripts::RAISE).key(self.0.keys.fence()).number(least.get() - 1).proof();
        // The server has it; a replica that took its place might not.
        let unconfirmed = self.0.call(&call, Repeat::Yes).await?.unconfirmed;
        unconfirmed.map_or(Ok(()), |why| Err(why.indeterminate()))
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (client, key) = (Arc::clone(&self.0), key.clone());
        let changed = Arc::new(Notify::new());
        let heard = Arc::clone(&changed);
        let ear = move |_: Heard<'_>| heard.notify_one();
        let subscription =
            Subscription::start(&client, client.keys.lock(&key).channel, Arc::new(ear)).await?;
        let first = read(&client, &key).await?;
        let outlet = Arc::new(Outlet::default());
        outlet.put_only(Ok(first.clone()));
        let (feed, spawner) = (Arc::clone(&outlet), client.context.spawner.clone());
        let task = spawner.spawn(async move {
            let _subscription = subscription;
            let mut last = first;
            loop {
                tokio::select! {
                    biased; // a change that was told is looked at first
                    () = changed.notified() => {}
                    () = client.context.spawner.sleep(LOOK) => {}
                }
                match read(&client, &key).await {
                    // How many wait is no change of holders.
                    Ok(now) if now.holders == last.holders => {}
                    Ok(now) => {
                        last = now.clone();
                        feed.put_only(Ok(now));
                    }
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(%error, "the holders could not be read");
                    }
                    Err(error) => {
                        let over = error.kind() == ErrorKind::Closed;
                        feed.put_only(Err(error));
                        if over {
                            feed.end();
                            return;
                        }
                    }
                }
            }
        });
        Ok(Box::pin(Tap::new(outlet, task)))
    }
}
