//! Sessions that ended without a word: what they held, waited for, or seemed to be.

use super::super::prelude::*;
use super::steps::{alive, asks, free};

pub(super) const CASES: &[Case] = &[
    case!(incident_curator_1121, "L14", "L1"),
    case!(incident_curator_1112, "L15", "S2").deaths(),
    case!(incident_amazon_dynamodb_lock_client_34, "L2", "L12", "S2").deaths(),
    case!(incident_roboflow_56, "L3").deaths().budget(60),
    case!(incident_redislock_94, "L3").lasting(),
    case!(incident_kazoo_412, "L4", "L12").deaths(),
    case!(incident_etcd_17470, "S11", "L5").kit(),
    case!(incident_etcd_client_87, "S7", "L14"),
    case!(incident_hazelcast_17436, "S7").ttl().kit(),
    case!(incident_hazelcast_17260, "X1", "L2").kit(),
    case!(incident_delfin_640, "S7", "E4", "W5").ttl().kit(),
];

/// L14, L1: a client of the same name reconnects while its earlier self still holds: the record is not its own.
async fn incident_curator_1121(h: Harness) -> Outcome {
    let (old, new) = (h.coordinator("same").await?, h.coordinator("same").await?);
    let guard = taken(&old, "x").await?;
    let lead = old.election("g")?.campaign().await?;
    held_by_another(&new, "x").await?;
    ensure(new.election("g")?.try_campaign().await?.is_none(), "elected because of its name")?;
    ensure(!new.hooks().stand_down("g").await?, "it stood down for its earlier self")?;
    old.close().await?;
    ensure(!guard.is_held() && !lead.is_held(), "held after close")?;
    let next = taken(&new, "x").await?;
    ensure(next.token() > guard.token(), "the earlier self's token")?;
    drop((guard, lead));
    linger().await;
    ensure(next.is_held(), "the earlier self released its successor's lock")
}

/// L15, S2: permits of a session that died are given to others.
async fn incident_curator_1112(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut dead = h.victim("dead").await?;
    let one = a.lock("x")?.permits(2)?.acquire().await?;
    dead.ask("permit x 2").await?;
    let lock = a.lock("x")?.permits(2)?;
    ensure(lock.try_acquire().await?.is_none(), "a third permit of two")?;
    let waiting = asks(&h, lock).await;
    h.waiters("x", 1).await?;
    dead.die()?;
    let two = within("the permit of the dead", h.gone(), waiting).await???;
    ensure(one.is_held() && two.is_held(), "a permit was lost")?;
    ensure(a.lock("x")?.permits(2)?.try_acquire().await?.is_none(), "a third permit of two")
}

/// L2, L12, S2: whoever comes after a crash takes the lock at the first try, not after a lease of its own waiting.
async fn incident_amazon_dynamodb_lock_client_34(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut dead = h.victim("dead").await?;
    let token = dead.ask_token("acquire x").await?;
    dead.die()?;
    eventually("the record of the dead is gone", h.gone(), async || {
        Ok::<_, Error>(a.lock("x")?.holders().await?.holders.is_empty())
    })
    .await?;
    let newcomer = h.coordinator("newcomer").await?;
    let guard = taken(&newcomer, "x").await?;
    ensure(guard.token().get() > token, "the token of the dead")?;
    ensure(guard.previous() == Previous::Expired, format!("{:?}", guard.previous()))
}

/// L3: strictly, across releases, drops, breaks, crashes and closed sessions.
async fn incident_roboflow_56(h: Harness) -> Outcome {
    let keeper = h.coordinator("keeper").await?;
    let mut last = 0;
    for round in 0..12 {
        let token = match round % 4 {
            0 => {
                let mut dead = h.victim(&format!("dead-{round}")).await?;
                let token = dead.ask_token("acquire x").await?;
                dead.die()?;
                token
            }
            1 => {
                let c = h.coordinator("closes").await?;
                let guard = within("the lock", h.gone(), c.lock("x")?.acquire()).await??;
                c.close().await?;
                guard.token().get()
            }
            2 => {
                let guard = within("the lock", h.gone(), keeper.lock("x")?.acquire()).await??;
                let token = guard.token().get();
                guard.release().await?;
                ensure(token > last, format!("{token} after {last}, in round {round}"))?;
                last = token;
                taken(&keeper, "x").await?.token().get() // dropped
            }
            _ => {
                let guard = within("the lock", h.gone(), keeper.lock("x")?.acquire()).await??;
                keeper.lock("x")?.break_lock("the next one, please").await?;
                guard.token().get()
            }
        };
        ensure(token > last, format!("{token} after {last}, in round {round}"))?;
        last = token;
        free(&h, &keeper, "x").await?;
    }
    Ok(())
}

/// L3: one token for one grant: beats do not change it, holders show it, and zero is none.
async fn incident_redislock_94(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut last = 0;
    for c in [&a, &b, &a] {
        let guard = taken(c, "x").await?;
        let token = guard.token();
        ensure(token.get() > last, format!("{token} after {last}"))?;
        for _ in 0..3 {
            c.heartbeat().await?;
            h.pass(h.some_ttl() / 3).await;
            ensure(guard.token() == token, "a beat changed the token")?;
            let shown = b.lock("x")?.holders().await?.holders.first().and_then(|holder| holder.token);
            ensure(shown == Some(token), format!("{shown:?} is shown for {token}"))?;
        }
        last = token.get();
        guard.release().await?;
    }
    Ok(())
}

/// L4, L12: a release that was acknowledged is a release, although its process dies right after it.
async fn incident_kazoo_412(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut dead = h.victim("dead").await?;
    dead.ask("acquire x").await?;
    ensure(dead.ask("release x").await? == "Released", "the holder's release found nothing")?;
    dead.die()?;
    let guard = taken(&a, "x").await?; // at once: nobody waits for a session to end
    ensure(guard.previous() == Previous::Clean, format!("{:?}", guard.previous()))
}

/// S11, L5: the user is gone, and nothing keeps what it held alive.
async fn incident_etcd_17470(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    let a = h.builder("a").connect().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let lock = a.lock("x")?;
    let guard = lock.acquire().await?;
    drop((a, lock));
    h.pass(h.some_ttl() * 2).await;
    ensure(guard.is_held(), "lost although its guard lives")?;
    drop(guard);
    free(&h, &b, "x").await?;
    h.soon_true("the member is gone", async || Ok::<_, Error>(ids(&b, "g").await?.is_empty())).await?;
    b.close().await?;
    let before = h.kit()?.round_trips();
    h.pass(h.some_ttl() * 5).await;
    let beats = h.kit()?.round_trips() - before;
    ensure(beats == 0, format!("{beats} round trips for nobody"))
}

/// S7, L14: a keep-alive for a session that is gone must say so.
async fn incident_etcd_client_87(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let session = h.session(&driver, "a").await?;
    let grant = granted(&session, "x", false).await?;
    let nothing = tooz_core::driver::Held::default();
    ensure(session.renew(&nothing).await?.lost.is_none(), "lost while it lives")?;
    session.close(End::Clean).await?;
    let renewal = session.renew(&nothing).await;
    ensure(!renewal.is_ok_and(|renewal| renewal.lost.is_none()), "an ended session was renewed")?;
    ensure(driver.locks().holders(&grant.key).await?.holders.is_empty(), "its renewal kept a lock")
}

/// S7: handles that were made before the backend lost everything work afterwards.
async fn incident_hazelcast_17436(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let (lock, group, election) = (a.lock("x")?, a.group("g")?, a.election("g")?);
    group.join_or_create(caps("mine")?).await?;
    let (guard, lead) = (lock.acquire().await?, election.campaign().await?);
    h.kit()?.lose_data();
    within("both losses", h.gone(), async { (guard.lost().await, lead.lost().await) }).await?;
    eventually("a is a member again", h.gone(), async || match ids(&b, "g").await {
        Ok(ids) => Ok(ids == ["a"]),
        Err(error) if error.kind() == ErrorKind::GroupNotFound => Ok(false),
        Err(error) => Err(error),
    })
    .await?;
    let again = within("the lock", h.gone(), lock.acquire()).await??;
    let leads = within("the election", h.gone(), election.campaign()).await??;
    group.update_capabilities(caps("new")?).await?;
    ensure(again.is_held() && leads.is_held(), "granted, and not held")?;
    ensure(again.token() > guard.token() && leads.term() > lead.term(), "an older token")?;
    held_by_another(&b, "x").await
}

/// X1, L2: while the backend is away a handle answers in time, and the same handle works when it is back.
async fn incident_hazelcast_17260(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").operation_timeout(secs(1))).await?;
    let (lock, group) = (a.lock("x")?, a.group("g")?);
    group.join_or_create(caps("mine")?).await?;
    lock.acquire().await?.release().await?;
    for _ in 0..2 {
        h.kit()?.pause();
        let limit = secs(1) + h.soon();
        let error = within("an answer", limit, lock.try_acquire()).await?.err().ok_or("granted by nobody")?;
        ensure(error.is_retryable(), format!("not worth another try: {error}"))?;
        let error = within("an answer", limit, group.members()).await?.err().ok_or("listed by nobody")?;
        ensure(error.is_retryable(), format!("not worth another try: {error}"))?;
        h.kit()?.resume();
        alive(&h, &a).await?;
        within("the lock", h.gone(), lock.acquire()).await??.release().await?;
        group.members().await?;
    }
    Ok(())
}

/// S7, E4, W5: a leader elected by hooks lost its lock and went on as one; here it runs again, and wins again.
async fn incident_delfin_640(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.hooks().watch_elected_as_leader("g", |_| Ok(())).await?;
    ensure(a.hooks().run_elect_coordinator().await?.len() == 1, "not elected though nobody leads")?;
    h.kit()?.cut(h.namespace(), "a");
    let lead = within("the next leader", h.gone(), b.election("g")?.campaign()).await??;
    h.kit()?.heal(h.namespace(), "a");
    alive(&h, &a).await?;
    for _ in 0..3 {
        ensure(a.hooks().run_elect_coordinator().await?.is_empty(), "elected beside a leader")?;
        h.pass(h.some_ttl() / 3).await;
    }
    ensure(lead.is_held(), "the next leader lost it")?;
    lead.resign().await?;
    ensure(a.hooks().run_elect_coordinator().await?.len() == 1, "never elected again")
}
