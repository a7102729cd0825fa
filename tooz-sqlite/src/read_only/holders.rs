//! The holders of a lock without a session: a listing, and a watch that compares what it reads.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::support::feed::HolderFeed;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks};
use tooz_core::{FencingToken, Result};

use crate::keys::Lock;
use crate::read_only::driver::{ReadOnly, refuse};
use crate::read_only::{LOOK, Reader};
use crate::view;

#[async_trait]
impl Locks for ReadOnly {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        read_holders(&self.0, key).await
    }

    async fn break_lock(&self, _: &BreakRequest) -> Result<Vec<HolderRecord>> {
        Err(refuse())
    }

    async fn raise_tokens(&self, _: FencingToken) -> Result<()> {
        Err(refuse())
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (reader, key) = (Arc::clone(&self.0), key.clone());
        let feed = HolderFeed::new(read_holders(&reader, &key).await?);
        let told = feed.clone();
        let task = self.0.site.context.spawner.spawn(async move {
            loop {
                reader.site.context.spawner.sleep(LOOK).await;
                match read_holders(&reader, &key).await {
                    Ok(now) => told.set(now),
                    Err(_) if reader.is_closed() => return told.end(),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => told.report(error),
                }
            }
        });
        Ok(feed.stream(task))
    }
}

async fn read_holders(reader: &Arc<Reader>, key: &LockKey) -> Result<Holders> {
    let lock = Lock::new(&reader.config.namespace, key);
    let found = reader.look(move |tx| view::holders(tx, &lock)).await?;
    Ok(found.unwrap_or_else(|| Holders::new(Vec::new(), Some(0))))
}
