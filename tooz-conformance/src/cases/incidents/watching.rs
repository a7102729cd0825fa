//! Watches that fell silent, went back, or left something out.

use tooz_core::{GroupWatch, HookEvent};

use super::super::prelude::*;
use super::super::watch::View;

pub(super) const CASES: &[Case] = &[
    case!(incident_etcd_589, "W1", "S7").kit(),
    case!(incident_etcd_15271, "W1"),
    case!(incident_etcd_17529, "W1", "W3").budget(40),
    case!(incident_etcd_19179, "W1", "G3"),
    case!(incident_gnocchi_185, "W5", "S7").kit(),
    case!(incident_genestack_1650, "S7", "W1").ttl().kit(),
];

async fn apply_next(watch: &mut GroupWatch, view: &mut View) -> Outcome {
    view.apply(watch.next().await.ok_or("the watch ended")??)
}

/// W1, S7: watches that stood before the backend was away hear what happens after it is back.
async fn incident_etcd_589(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let observer = h.coordinator("observer").await?;
    a.group("g")?.create().await?;
    let (mut watch, mut view) = (observer.group("g")?.watch().await?, View::default());
    let mut leaders = observer.election("g")?.observe().await?;
    h.soon_done("the present", apply_next(&mut watch, &mut view)).await??;
    for round in 0..3 {
        h.kit()?.pause();
        h.pass(h.ttl().map_or(millis(100), |ttl| ttl * 2)).await; // longer than any session lives
        h.kit()?.resume();
        super::steps::alive(&h, &a).await?;
        super::steps::alive(&h, &b).await?;
        a.group("g")?.join(Capabilities::new(&round)?).await?;
        within("the join", h.gone(), async {
            while view.capabilities("a") != Some(Capabilities::new(&round)?) {
                apply_next(&mut watch, &mut view).await?;
            }
            Outcome::Ok(())
        })
        .await??;
        a.group("g")?.leave().await?;
        within("the leave", h.gone(), async {
            while view.has("a") {
                apply_next(&mut watch, &mut view).await?;
            }
            Outcome::Ok(())
        })
        .await??;
        let lead = within("the election", h.gone(), b.election("g")?.campaign()).await??;
        within("the leader", h.gone(), async {
            while leaders.next().await.ok_or("the observer ended")??.and_then(|l| l.term) != Some(lead.term())
            {
            }
            Outcome::Ok(())
        })
        .await??;
        lead.resign().await?;
    }
    Ok(())
}

/// W1: no state is shown after a newer one.
async fn incident_etcd_15271(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::new(&0_u32)?).await?;
    let mut watch = b.group("g")?.watch().await?;
    let writing = h.spawn(async move {
        for n in 1..=200_u32 {
            a.group("g")?.update_capabilities(Capabilities::new(&n)?).await?;
        }
        fine(a)
    });
    let mut newest = 0;
    within("the last state", h.limit(secs(2)), async {
        while newest < 200 {
            let records = match watch.next().await.ok_or("the watch ended")?? {
                GroupEvent::Snapshot(records) | GroupEvent::Resync(records) => records,
                GroupEvent::Updated(record) => vec![record],
                other => return Err(format!("{other:?}").into()),
            };
            let [record] = &records[..] else { return Err(format!("{records:?}").into()) };
            let seen: u32 = record.capabilities.get()?;
            ensure(seen >= newest, format!("{seen} is shown after {newest}"))?;
            newest = seen;
        }
        Outcome::Ok(())
    })
    .await??;
    writing.await??;
    let more = tokio::time::timeout(millis(50), watch.next()).await;
    ensure(more.is_err(), format!("after the last state: {more:?}"))
}

/// W1, W3: a reader that got no time for a long while is brought to the present, and told that it missed something or
/// nothing at all.
async fn incident_etcd_17529(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    b.group("g")?.join(caps("stays")?).await?;
    let (mut watch, mut view) = (b.group("g")?.watch().await?, View::default());
    h.soon_done("the present", apply_next(&mut watch, &mut view)).await??;
    for n in 0..300 {
        a.group("g")?.join(Capabilities::new(&n)?).await?;
        a.group("g")?.leave().await?;
    }
    a.group("g")?.join(caps("last")?).await?;
    within("the present", h.limit(secs(1)), async {
        while view.capabilities("a") != Some(caps("last")?) {
            apply_next(&mut watch, &mut view).await?;
        }
        Outcome::Ok(())
    })
    .await??;
    ensure(view.capabilities("b") == Some(caps("stays")?), "a member got lost on the way")
}

/// W1, G3: members that left while nobody looked are not left behind in the view.
async fn incident_etcd_19179(h: Harness) -> Outcome {
    let observer = h.coordinator("observer").await?;
    observer.group("g")?.join_or_create(Capabilities::none()).await?;
    let mut members = Vec::new();
    for n in 0..5 {
        let c = h.coordinator(format!("m{n}")).await?;
        c.group("g")?.join(Capabilities::none()).await?;
        members.push(c);
    }
    let (mut watch, mut view) = (observer.group("g")?.watch().await?, View::default());
    h.soon_done("the present", apply_next(&mut watch, &mut view)).await??;
    ensure((0..5).all(|n| view.has(&format!("m{n}"))), "the snapshot is not who is there")?;
    for (n, c) in members.iter().enumerate() {
        match n {
            0 => c.close().await?,             // leaves with its session
            1 => c.group("g")?.leave().await?, // leaves
            2 => {
                c.group("g")?.leave().await?; // leaves, comes back, leaves
                c.group("g")?.join(caps("again")?).await?;
                c.group("g")?.leave().await?;
            }
            3 => {
                c.group("g")?.update_capabilities(caps("last words")?).await?;
                c.group("g")?.leave().await?;
            }
            _ => c.group("g")?.update_capabilities(caps("stays")?).await?,
        }
    }
    within("the view to lose them all", h.limit(secs(1)), async {
        while (0..4).any(|n| view.has(&format!("m{n}"))) || view.capabilities("m4") != Some(caps("stays")?) {
            apply_next(&mut watch, &mut view).await?;
        }
        Outcome::Ok(())
    })
    .await??;
    ensure(ids(&observer, "g").await? == ["m4", "observer"], "the group is not what its watch says")
}

/// W5, S7: a program that runs its watchers all the time needs no restart because the backend was away once.
async fn incident_gnocchi_185(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").operation_timeout(secs(1))).await?;
    let b = h.coordinator("b").await?;
    a.group("g")?.create().await?;
    a.hooks().watch_join_group("g", |_| Ok(())).await?;
    h.kit()?.pause();
    for _ in 0..3 {
        // Whatever it says while the backend is away.
        drop(a.hooks().run_watchers(millis(10)).await);
    }
    h.pass(h.ttl().map_or(millis(100), |ttl| ttl * 2)).await;
    h.kit()?.resume();
    super::steps::alive(&h, &b).await?;
    b.group("g")?.join(Capabilities::none()).await?;
    eventually("the join", h.gone(), async || {
        let events = a.hooks().run_watchers(millis(10)).await.unwrap_or_default();
        Ok::<_, Error>(events.iter().any(
            |event| matches!(event, HookEvent::Joined { member, .. } if member.member.as_bytes() == b"b"),
        ))
    })
    .await
}

/// S7, W1: members that the backend forgot are back by themselves, and whoever shares work among them sees it.
async fn incident_genestack_1650(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(caps("a")?).await?;
    b.group("g")?.join(caps("b")?).await?;
    let (mut watch, mut view) = (b.group("g")?.watch().await?, View::default());
    h.soon_done("the present", apply_next(&mut watch, &mut view)).await??;
    for _ in 0..3 {
        let mut events = a.events();
        h.kit()?.evict(h.namespace(), "g", "a");
        event(&mut events, h.some_ttl(), "Evicted", |event| matches!(event, Event::Evicted(_))).await?;
        eventually("both are members", h.some_ttl(), async || {
            Ok::<_, Error>(ids(&b, "g").await? == ["a", "b"])
        })
        .await?;
        let record = b.group("g")?.member("a").await?;
        within("the watch to say the same", h.some_ttl(), async {
            while !view.is(&[record.clone(), b.group("g")?.member("b").await?]) {
                apply_next(&mut watch, &mut view).await?;
            }
            Outcome::Ok(())
        })
        .await??;
    }
    Ok(())
}
