//! A lock as operators see it, without a session: who holds it, and breaking it.

use async_trait::async_trait;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Previous};
use tooz_core::{FencingToken, Result};

use crate::driver::SqliteDriver;
use crate::engine::jobs::Level;
use crate::engine::lock_rows::{mark, remove_holder};
use crate::engine::log::{self, Event};
use crate::engine::tx::{Effect, Tx};
use crate::engine::{fence, queue};
use crate::error::Work;
use crate::keys::{Id, Lock};
use crate::view::{self, HolderRow};
use crate::watch;

/// How long a record of who broke a grant is kept.
const BREAKS_KEPT_MICROS: i64 = 3_600_000_000;

#[async_trait]
impl Locks for SqliteDriver {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        let lock = self.client.lock(key);
        self.client.call(Level::Read, move |tx| view::holders(tx, &lock)).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let (lock, asked) = (self.client.lock(&request.key), request.clone());
        let work = move |tx: &mut Tx<'_>| break_lock(tx, &lock, &asked);
        let broken = self.client.call(Level::Write, work).await?;
        for holder in &broken {
            let token = holder.token.map(FencingToken::get);
            tracing::warn!(key = %request.key, by = %request.by, why = request.why, ?token, "a lock was broken");
        }
        Ok(broken)
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        self.client.call(Level::Durable, move |tx| fence::raise_to(tx, least)).await
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        watch::holders(&self.client, self.client.lock(key)).await
    }
}

/// Frees the lock, leaves a record for the sessions that lose it, and hands the lock on.
fn break_lock(tx: &mut Tx<'_>, lock: &Lock, request: &BreakRequest) -> Work<Vec<HolderRecord>> {
    let now = tx.wall();
    let mut broken = Vec::new();
    for HolderRow { session, attempt, record } in view::holder_rows(tx, lock)? {
        let Some(token) = record.token.filter(|token| request.means(Some(*token))) else { continue };
        tx.run("DELETE FROM breaks WHERE at < ?1", [now.saturating_sub(BREAKS_KEPT_MICROS)])?;
        tx.run(
            "INSERT OR REPLACE INTO breaks (attempt, token, by, why, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            (Id(attempt.0), token.get(), request.by.as_bytes(), &request.why, now),
        )?;
        remove_holder(tx, session, lock, attempt)?;
        mark(tx, lock, Previous::Broken)?;
        if tx.own_session(session).is_some() {
            tx.effect(Effect::Broken(session, attempt));
        } else {
            log::append(tx, &Event::Broken(session, attempt))?;
            queue::wake(tx, session)?;
        }
        broken.push(record);
    }
    Ok(broken)
}
