//! S7: what happens after a loss. Each case loses its session in another way.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(after_a_loss_groups_are_joined_again, "S7").ttl().kit(),
    case!(after_an_expiry_groups_are_joined_again, "S7", "L7").kit(),
    case!(after_a_loss_locks_are_not_taken_back, "S7", "L7").ttl().kit(),
    case!(after_a_loss_leadership_is_not_taken_back, "S7", "E4").ttl().kit(),
    case!(rejoin_can_be_switched_off, "S7").kit(),
    case!(an_evicted_member_joins_again, "S7").ttl().kit(),
    case!(a_group_deleted_meanwhile_is_not_created_again, "S7").ttl().kit(),
    case!(lost_data_is_written_again, "S7", "W1").ttl().kit(),
    case!(losses_again_and_again, "S7").ttl().kit(),
    case!(a_waiting_acquirer_survives_a_loss, "S7", "L2").kit(),
    case!(a_watch_survives_a_loss, "S7", "W1").ttl().kit(),
];

fn rejoined(event: &Event) -> bool {
    matches!(event, Event::Rejoined(_))
}

/// S7: a new session, the same groups, the capabilities as they were last.
async fn after_a_loss_groups_are_joined_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    for group in ["g", "h"] {
        a.group(group)?.join_or_create(caps("first")?).await?;
    }
    a.group("g")?.update_capabilities(caps("second")?).await?;
    let session = a.session_id();
    h.kit()?.cut(h.namespace(), "a");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    eventually("the dead member is gone", h.gone(), async || Ok::<_, Error>(ids(&b, "g").await?.is_empty()))
        .await?;
    h.kit()?.heal(h.namespace(), "a");
    let Event::Rejoined(groups) = event(&mut events, h.gone(), "Rejoined", rejoined).await? else {
        return Err("another event".into());
    };
    let names: Vec<_> = groups.iter().map(ToString::to_string).collect();
    ensure(names == ["g", "h"], format!("rejoined {names:?}"))?;
    ensure(b.group("g")?.member("a").await?.capabilities == caps("second")?, "older capabilities came back")?;
    ensure(b.group("h")?.member("a").await?.capabilities == caps("first")?, "other capabilities came back")?;
    ensure(a.session_id().is_some() && a.session_id() != session, "the session has the old id")?;
    ensure(matches!(a.liveness(), Liveness::Alive { .. }), "not alive again")
}

/// S7, L7: a session that the backend ended is replaced at once; our own older record is no obstacle.
async fn after_an_expiry_groups_are_joined_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(caps("mine")?).await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.expire(h.namespace(), "a");
    event(&mut events, h.gone(), "Rejoined", rejoined).await?;
    ensure(!guard.is_held(), "a guard outlived its session")?;
    let why = h.soon_done("the reason of the loss", guard.lost()).await?;
    ensure(why == LossReason::Expired, format!("{why:?}"))?;
    ensure(b.group("g")?.member("a").await?.capabilities == caps("mine")?, "other capabilities")?;
    taken(&b, "x").await.map(|_| ())
}

/// S7, L7: what was held is gone and reported, once and for all.
async fn after_a_loss_locks_are_not_taken_back(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = taken(&a, "x").await?;
    let signal = guard.loss_signal();
    h.kit()?.cut(h.namespace(), "a");
    within("the loss", h.gone(), guard.lost()).await?;
    h.kit()?.heal(h.namespace(), "a");
    event(&mut events, h.gone(), "Rejoined", rejoined).await?;
    ensure(!guard.is_held() && signal.is_lost(), "a guard came back from lost")?;
    let again = taken(&a, "x").await?;
    ensure(again.token() > guard.token(), "the new grant has the old token")?;
    ensure(guard.release().await? == Released::WasNotHolder, "the lost guard released something")?;
    ensure(again.is_held(), "the lost guard's release took the new grant")?;
    held_by_another(&h.coordinator("b").await?, "x").await
}

/// S7, E4: neither is leadership.
async fn after_a_loss_leadership_is_not_taken_back(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let lead = a.election("g")?.campaign().await?;
    h.kit()?.cut(h.namespace(), "a");
    within("the loss", h.gone(), lead.lost()).await?;
    h.kit()?.heal(h.namespace(), "a");
    event(&mut events, h.gone(), "Rejoined", rejoined).await?;
    ensure(!lead.is_held(), "a leadership came back from lost")?;
    ensure(a.election("g")?.leader().await?.is_none(), "somebody leads though nobody campaigned")
}

/// S7: whoever does not want to rejoin does not.
async fn rejoin_can_be_switched_off(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").rejoin(false)).await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    h.kit()?.expire(h.namespace(), "a");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    eventually("a new session", h.gone(), async || {
        Ok::<_, Error>(matches!(a.liveness(), Liveness::Alive { .. }) && a.groups().await.is_ok())
    })
    .await?;
    h.pass(h.some_ttl()).await;
    ensure(ids(&a, "g").await?.is_empty(), "it rejoined")?;
    Ok(a.group("g")?.join(Capabilities::none()).await?)
}

/// S7: a record that somebody removed is noticed at the next beat, reported, and written again.
async fn an_evicted_member_joins_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(caps("mine")?).await?;
    let guard = taken(&a, "x").await?;
    h.kit()?.evict(h.namespace(), "g", "a");
    let evicted = |event: &Event| matches!(event, Event::Evicted(group) if group.as_bytes() == b"g");
    event(&mut events, h.some_ttl(), "Evicted", evicted).await?;
    eventually("the member is back", h.some_ttl(), async || Ok::<_, Error>(ids(&b, "g").await? == ["a"]))
        .await?;
    ensure(b.group("g")?.member("a").await?.capabilities == caps("mine")?, "other capabilities")?;
    ensure(guard.is_held(), "an eviction from a group cost a lock")
}

/// S7: a group that somebody deleted stays deleted, and its former member is told.
async fn a_group_deleted_meanwhile_is_not_created_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    h.kit()?.cut(h.namespace(), "a");
    eventually("the group can be deleted", h.gone(), async || match b.group("g")?.delete().await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::GroupNotEmpty => Ok(false),
        Err(error) => Err(error),
    })
    .await?;
    h.kit()?.heal(h.namespace(), "a");
    let deleted = |event: &Event| matches!(event, Event::GroupDeleted(group) if group.as_bytes() == b"g");
    event(&mut events, h.gone(), "GroupDeleted", deleted).await?;
    h.pass(h.some_ttl()).await;
    ensure(b.groups().await?.is_empty(), "the group came back")
}

/// S7, W1: a backend that lost its data gets its groups and members back, and watches are told aloud.
async fn lost_data_is_written_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(caps("mine")?).await?;
    let mut watch = b.group("g")?.watch().await?;
    let (mut view, mut resynced) = (super::watch::View::default(), false);
    // What goes before the rest may be heard of first: a member may leave it.
    view.apply(h.soon_done("the snapshot", watch.next()).await?.ok_or("the watch ended")??)?;
    ensure(view.has("a"), "the snapshot lacks a member")?;
    h.kit()?.lose_data();
    event(&mut events, h.gone(), "Rejoined", rejoined).await?;
    ensure(b.group("g")?.member("a").await?.capabilities == caps("mine")?, "other capabilities")?;
    within("a resync, and the member", h.gone(), async {
        while !(resynced && view.has("a")) {
            let event = watch.next().await.ok_or("the watch ended")??;
            resynced |= matches!(event, GroupEvent::Resync(_));
            view.apply(event)?;
        }
        Outcome::Ok(())
    })
    .await?
}

/// S7: it works again every time.
async fn losses_again_and_again(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = a.events();
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    for _ in 0..5 {
        h.kit()?.cut(h.namespace(), "a");
        event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
        h.kit()?.heal(h.namespace(), "a");
        event(&mut events, h.gone(), "Rejoined", rejoined).await?;
        ensure(ids(&b, "g").await? == ["a"], "rejoined, and no member")?;
        taken(&a, "x").await?.release().await?;
    }
    Ok(())
}

/// S7, L2: whoever waits for a lock queues again by himself.
async fn a_waiting_acquirer_survives_a_loss(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut events = b.events();
    let guard = taken(&a, "x").await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    h.kit()?.expire(h.namespace(), "b");
    event(&mut events, h.gone(), "Lost", |event| matches!(event, Event::Lost(_))).await?;
    h.pass(h.some_ttl()).await;
    ensure(!waiting.is_finished(), "acquire gave up, or was granted beside the holder")?;
    guard.release().await?;
    let next = within("the lock", h.gone(), waiting).await???;
    ensure(next.is_held(), "granted, and not held")
}

/// S7, W1: a watch goes on after its coordinator was away, and what it says adds up to the truth.
async fn a_watch_survives_a_loss(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let mut watch = a.group("g")?.watch().await?;
    h.kit()?.cut(h.namespace(), "a");
    b.group("g")?.join(Capabilities::none()).await?;
    h.outlive().await;
    h.kit()?.heal(h.namespace(), "a");
    let mut view = super::watch::View::default();
    within("the member that joined meanwhile", h.gone(), async {
        while !view.has("b") {
            view.apply(watch.next().await.ok_or("the watch ended")??)?;
        }
        Outcome::Ok(())
    })
    .await?
}
