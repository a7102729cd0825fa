//! Who holds a lock, for anyone who asks: listing, watching and breaking the holders.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tooz_core::driver::support::feed::HolderFeed;
use tooz_core::driver::support::lock_state::Effect;
use tooz_core::driver::support::rule::Foreign;
use tooz_core::driver::{BreakRequest, HolderRecord, HolderStream, Holders, LockKey, Locks, Previous};
use tooz_core::{ErrorKind, FencingToken, MemberId, Result};

use crate::client::{Client, Tries};
use crate::connection::command::{Batch, Call, Look, Store, Stored};
use crate::driver::Memcached;
use crate::error::unknown_end;
use crate::lock::cell::Cell;
use crate::lock::epoch::Origin;
use crate::lock::give_back::{self, Rest, delete_led};
use crate::lock::record::{self, counted};
use crate::view::{holder_record, holder_records, read_holders, read_lock};

/// How often a watch reads the holders.
const LOOK: Duration = Duration::from_millis(250);
/// For how many seconds it is kept who broke a grant: much longer than from one beat to the next.
const BROKEN: u32 = 7 * 24 * 3_600;
/// How often to look for a stamp that was evicted.
const EVICTED: Duration = Duration::from_millis(100);
/// A lock that changes under so many looks in a row is given up for now.
const ROUNDS: usize = 64;

/// Takes the meant holders off the lock as it was read, and says which.
fn take_off(
    request: &BreakRequest,
    cell: &mut Cell,
) -> (Vec<HolderRecord>, Vec<tooz_core::driver::AttemptId>) {
    if cell.state.foreign != Foreign::None {
        let meant = cell.gate.as_ref().is_some_and(|gate| request.means_foreign(&gate.value));
        let records = if meant { holder_records(cell) } else { Vec::new() };
        if meant {
            drop(cell.state.break_grants(None));
        }
        return (records, Vec::new());
    }
    let (mut records, mut attempts) = (Vec::new(), Vec::new());
    if request.only.is_some() && request.token().is_none() {
        return (records, attempts); // a holder of another library is meant
    }
    for effect in cell.state.break_grants(request.token()) {
        if let Effect::Freed(holder, Previous::Broken) = effect {
            records.push(holder_record(&holder));
            attempts.push(holder.attempt);
        }
    }
    records.sort_by_key(|holder| holder.token);
    (records, attempts)
}

/// A leader whose mark was broken while a beat wrote its gate again.
type Led = Option<(MemberId, Vec<HolderRecord>)>;

/// Breaks what the lock holds now; `None`: it changed meanwhile.
async fn break_once(
    client: &Client,
    tries: &mut Tries<'_>,
    request: &BreakRequest,
    led: &mut Led,
) -> Result<Option<Vec<HolderRecord>>> {
    let mut cell = read_lock(client, tries, &request.key).await?;
    if let Some((member, broken)) = led {
        match delete_led(client, tries, &request.key, &cell, member, Call::Break).await? {
            Rest::Deleted | Rest::Gone => return Ok(Some(std::mem::take(broken))),
            Rest::Changed => return Ok(None),
        }
    }
    let (broken, attempts) = take_off(request, &mut cell);
    // A leader whose session is over leaves a gate that ends with its time.
    let is_dead = matches!(request.key, LockKey::Leader(_))
        && request.only.is_none()
        && cell.gate.is_some()
        && cell.state.foreign == Foreign::None;
    if broken.is_empty() && !is_dead {
        return Ok(Some(broken));
    }
    drop(cell.state.promote(|_| true, record::unwritten));
    let (mut batch, mut operations) = (Batch::new(), 0);
    let note = [&counted(request.by.as_bytes())[..], request.why.as_bytes()].concat();
    for attempt in attempts {
        // Before it is broken: whose beat finds the lock gone looks for the reason.
        batch.set(Store::bytes(&client.keys.broken(attempt), BROKEN, &note));
        operations += 1;
    }
    operations += give_back::store(client, &mut batch, &request.key, &cell);
    batch.get_in(&client.keys.lock(&request.key).gate, Look::Presence, Call::Break);
    let half = |broken: Vec<HolderRecord>| {
        let member = broken.first().and_then(|holder| holder.member.clone());
        member.filter(|_| matches!(request.key, LockKey::Leader(_))).map(|member| (member, broken))
    };
    let Some(mut reply) = tries.follow(&cell.link, &batch).await else {
        *led = half(broken); // its mark may be gone, and the gate not
        return Ok(None);
    };
    let mut stored = Vec::new();
    for _ in 0..operations {
        stored.push(reply.answers.stored()?);
    }
    // The last one is the gate's, and before it the mark's.
    if stored.last().is_none_or(|gate| *gate == Stored::Done) {
        return Ok(Some(broken));
    }
    let mark = stored.len().checked_sub(2).and_then(|at| stored.get(at));
    if mark == Some(&Stored::Done) {
        tries.unsure = true;
        *led = half(broken);
    }
    Ok(None)
}

#[async_trait]
impl Locks for Memcached {
    async fn holders(&self, key: &LockKey) -> Result<Holders> {
        read_holders(&self.client, key).await
    }

    async fn break_lock(&self, request: &BreakRequest) -> Result<Vec<HolderRecord>> {
        let (mut tries, mut led) = (self.client.tries(), None);
        for _ in 0..ROUNDS {
            let once = break_once(&self.client, &mut tries, request, &mut led).await;
            let Some(broken) = once.map_err(|error| tries.failed(error))? else { continue };
            if broken.is_empty() && tries.unsure {
                return Err(unknown_end(&format!("what was to be broken of {} is gone now", request.key)));
            }
            for holder in &broken {
                let token = holder.token.map(FencingToken::get);
                tracing::warn!(key = %request.key, by = %request.by, why = request.why, ?token, "a lock was broken");
            }
            return Ok(broken);
        }
        Err(tries.failed(give_back::changes_too_often(&request.key)))
    }

    async fn raise_tokens(&self, least: FencingToken) -> Result<()> {
        let client = &self.client;
        let key = client.keys.epoch();
        let mut tries = client.tries();
        loop {
            let mut batch = Batch::new();
            batch.get(&key, Look::Whole).get(&client.keys.lives(), Look::Presence);
            let mut reply = tries.ask(&batch).await?;
            let (item, lives) = (reply.answers.item()?, reply.answers.item()?);
            if item.is_none() && lives.is_some() {
                // It was evicted alone: a session that lives stores it again with its next beat.
                client.context.spawner.sleep(EVICTED).await;
                continue;
            }
            let Some(item) = item else {
                Origin::new(client, &reply.link).or_add(client).await?;
                continue;
            };
            let origin = Origin::read(client, &item)?;
            if origin.base >= least.get() - 1 {
                return Ok(());
            }
            let raised = Origin { base: least.get() - 1, ..origin }.write();
            let mut batch = Batch::new();
            batch.cas(Store::bytes(&key, 0, &raised), item.cas);
            if tries.store(&reply.link, &batch).await.map_err(|error| tries.failed(error))? {
                client.base.fetch_max(least.get() - 1, Ordering::AcqRel);
                return Ok(());
            }
        }
    }

    async fn watch(&self, key: &LockKey) -> Result<HolderStream> {
        let (client, key) = (Arc::clone(&self.client), key.clone());
        let feed = HolderFeed::new(read_holders(&client, &key).await?);
        let (told, spawner) = (feed.clone(), client.context.spawner.clone());
        let task = spawner.spawn(async move {
            loop {
                client.context.spawner.sleep(LOOK).await;
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
