//! The holders of a lock without a session: a listing, and a watch that compares what it reads.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks};
use tooz_core::{FencingToken, Result};

use crate::keys::Lock;
use crate::read_only::Reader;
use crate::read_only::driver::{Feed, LOOK, ReadOnly, refuse};
use crate::view;

#[async_trait]
impl Locks for ReadOnly {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        read_holders(&self.reader, key).await
    }

    async fn break_lock(&self, _: &BreakRequest) -> Result<Vec<HolderRecord>> {
        Err(refuse())
    }

    async fn raise_tokens(&self, _: FencingToken) -> Result<()> {
        Err(refuse())
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (reader, key) = (Arc::clone(&self.reader), key.clone());
        let mut seen = read_holders(&reader, &key).await?;
        let (changes, stream) = mpsc::channel(1);
        let task = self.reader.context.spawner.spawn(async move {
            let mut next = Some(Ok(seen.clone()));
            loop {
                if let Some(next) = next.take()
                    && changes.send(next).await.is_err()
                {
                    return; // the stream was dropped
                }
                reader.context.spawner.sleep(LOOK).await;
                next = match read_holders(&reader, &key).await {
                    // A change of the number of waiters is no change of holders.
                    Ok(now) if now.holders == seen.holders => None,
                    Ok(now) => {
                        seen = now.clone();
                        Some(Ok(now))
                    }
                    Err(_) if reader.is_closed() => return,
                    Err(error) if error.is_retryable() => None,
                    Err(error) => Some(Err(error)),
                };
            }
        });
        Ok(Box::pin(Feed { stream, _task: task }))
    }
}

async fn read_holders(reader: &Arc<Reader>, key: &LockKey) -> Result<Holders> {
    let lock = Lock::new(&reader.config.namespace, key);
    let found = reader.look("holders", move |tx| view::holders(tx, &lock)).await?;
    Ok(found.unwrap_or_else(|| Holders::new(Vec::new(), Some(0))))
}
