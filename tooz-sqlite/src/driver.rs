//! The connected database: what needs no session.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{
    BreakRequest, Connect, Driver, Groups, HolderRecord, HolderStream, Holders, LockKey, Locks, OpenSession,
    Session,
};
use tooz_core::{Characteristics, Connecting, FencingToken, Result};

use crate::config::{self, Config};
use crate::engine::fence;
use crate::engine::jobs::{Level, User};
use crate::engine::tx::{Effect, Tx};
use crate::groups::SqliteGroups;
use crate::keys::Lock;
use crate::locks;
use crate::read_only;
use crate::session::SqliteSession;
use crate::watch::{HoldersStream, LockWatch};

/// Connects to the database that the URL names, creating it if it is missing.
pub fn connect(request: Connect) -> Connecting {
    Box::pin(async move {
        let Connect { url, context, view, .. } = request;
        let config = Config::from_url(&url)?;
        if view {
            return read_only::connect(&url, config, context).await;
        }
        let limit = config.connect_timeout;
        let user = Arc::new(User::new(config, &context)?);
        // Opens the database, or says why not.
        user.call_within(Level::Read, limit, |_| Ok(())).await.map_err(|error| error.during("connect"))?;
        let known = user.client().place.known_file_system;
        let characteristics =
            if known { config::characteristics(&url) } else { config::on_unknown_file_system() };
        let driver = SqliteDriver {
            groups: SqliteGroups { user: user.clone() },
            locks: SqliteLocks { user: user.clone() },
            user,
            characteristics,
        };
        Ok(Arc::new(driver) as Arc<dyn Driver>)
    })
}

#[derive(Debug)]
struct SqliteDriver {
    user: Arc<User>,
    characteristics: Characteristics,
    groups: SqliteGroups,
    locks: SqliteLocks,
}

#[async_trait]
impl Driver for SqliteDriver {
    fn characteristics(&self) -> Characteristics {
        self.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        Ok(Arc::new(SqliteSession::open(&self.user, request).await?))
    }

    fn groups(&self) -> &dyn Groups {
        &self.groups
    }

    fn locks(&self) -> &dyn Locks {
        &self.locks
    }

    async fn close(&self) -> Result<()> {
        self.user.close().await
    }
}

#[derive(Debug)]
struct SqliteLocks {
    user: Arc<User>,
}

impl SqliteLocks {
    fn lock(&self, key: &LockKey) -> Lock {
        Lock::new(&self.user.config.namespace, key)
    }
}

#[async_trait]
impl Locks for SqliteLocks {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        let lock = self.lock(key);
        let work = move |tx: &mut Tx<'_>| locks::holders(tx, &lock);
        self.user.call(Level::Read, work).await.map_err(|error| error.during("holders"))
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let (lock, request) = (self.lock(&request.key), request.clone());
        let (key, by, why) = (request.key.clone(), request.by.clone(), request.why.clone());
        let work = move |tx: &mut Tx<'_>| locks::break_lock(tx, &lock, &request);
        let broken = self.user.call(Level::Write, work).await.map_err(|error| error.during("break"))?;
        for holder in &broken {
            let token = holder.token.map(FencingToken::get);
            tracing::warn!(%key, %by, why, ?token, "a lock was broken");
        }
        Ok(broken)
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let work = move |tx: &mut Tx<'_>| fence::raise_to(tx, least);
        self.user.call(Level::Durable, work).await.map_err(|error| error.during("raise tokens"))
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let watch = Arc::new(LockWatch::new(self.lock(key)));
        let work = {
            let watch = watch.clone();
            move |tx: &mut Tx<'_>| {
                let holders = locks::holders(tx, &watch.lock)?;
                tx.effect(Effect::WatchLock(watch.clone(), holders));
                Ok(())
            }
        };
        self.user.call(Level::Read, work).await.map_err(|error| error.during("watch lock"))?;
        Ok(Box::pin(HoldersStream { watch, user: self.user.clone(), refused: false }))
    }
}
