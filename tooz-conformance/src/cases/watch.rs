//! W1 to W4, W6, W7: watches.

use std::collections::BTreeMap;

use tooz_core::{GroupWatch, MemberRecord};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(a_watch_starts_with_a_snapshot, "W1"),
    case!(each_change_is_delivered_once_and_in_order, "W1"),
    case!(a_new_incarnation_shows_as_left_and_joined, "W1"),
    case!(what_is_delivered_is_the_membership, "W1").budget(40),
    case!(two_watches_do_not_take_from_each_other, "W1", "W3"),
    case!(a_close_is_a_leave, "W1", "S3"),
    case!(a_leave_is_told_from_a_death, "W7").deaths(),
    case!(a_removed_member_did_not_leave, "W7").kit(),
    case!(a_change_is_pushed, "W2").needs(Characteristics::PUSH_WATCHES),
    case!(a_change_is_found, "W2").lacks(Characteristics::PUSH_WATCHES),
    case!(a_change_is_pushed_without_delay, "W2").needs(Characteristics::PUSH_WATCHES).exact(),
    case!(a_crash_is_delivered, "W2").ttl(),
    case!(a_crash_is_delivered_in_a_busy_group, "W2", "G4").deaths(),
    case!(a_slow_reader_delays_nobody, "W3").budget(40),
    case!(a_slow_reader_ends_in_the_truth, "W3", "W1").budget(40),
    case!(a_deleted_group_ends_its_watch, "W4"),
    case!(an_unknown_group_cannot_be_watched, "W4"),
    case!(a_group_created_again_is_another_group, "W4"),
    case!(dropping_a_watch_frees_it, "W6").kit(),
    case!(a_dropped_watch_is_quiet, "W6"),
];

/// What a reader knows who applies everything that is delivered.
#[derive(Debug, Default)]
pub(super) struct View(BTreeMap<String, MemberRecord>);

impl View {
    pub(super) fn has(&self, member: &str) -> bool {
        self.0.contains_key(member)
    }

    pub(super) fn capabilities(&self, member: &str) -> Option<Capabilities> {
        self.0.get(member).map(|record| record.capabilities.clone())
    }

    /// Applies an event, which has to fit to what came before.
    pub(super) fn apply(&mut self, event: GroupEvent) -> Outcome {
        match event {
            GroupEvent::Snapshot(members) | GroupEvent::Resync(members) => {
                self.0 = members.into_iter().map(|record| (record.member.to_string(), record)).collect();
            }
            GroupEvent::Joined(record) => {
                let id = record.member.to_string();
                ensure(!self.has(&id), format!("{id} joined, and was a member already"))?;
                self.0.insert(id, record);
            }
            GroupEvent::Updated(record) => {
                let id = record.member.to_string();
                let known = self.0.get(&id).ok_or_else(|| format!("{id} was updated, and is no member"))?;
                ensure(known.incarnation == record.incarnation, format!("{id} changed its incarnation"))?;
                self.0.insert(id, record);
            }
            GroupEvent::Left(record, _) => {
                let id = record.member.to_string();
                ensure(self.0.remove(&id).is_some(), format!("{id} left, and was no member"))?;
            }
            other => return Err(format!("{other:?}").into()),
        }
        Ok(())
    }

    pub(super) fn is(&self, members: &[MemberRecord]) -> bool {
        self.0.values().eq(members.iter())
    }
}

async fn next(h: &Harness, watch: &mut GroupWatch, what: &str) -> Outcome<GroupEvent> {
    Ok(h.soon_done(what, watch.next()).await?.ok_or("the watch ended")??)
}

/// A watch that has shown its snapshot.
async fn watching(h: &Harness, c: &Coordinator) -> Outcome<(GroupWatch, View)> {
    let mut watch = c.group("g")?.watch().await?;
    let mut view = View::default();
    match next(h, &mut watch, "the snapshot").await? {
        snapshot @ GroupEvent::Snapshot(_) => view.apply(snapshot)?,
        other => return Err(format!("it starts with {other:?}").into()),
    }
    Ok((watch, view))
}

/// Reads until the view is what the group is.
async fn caught_up(limit: Duration, watch: &mut GroupWatch, view: &mut View, c: &Coordinator) -> Outcome {
    let members = c.group("g")?.members().await?;
    within("the view to be the membership", limit, async {
        while !view.is(&members) {
            view.apply(watch.next().await.ok_or("the watch ended")??)?;
        }
        Outcome::Ok(())
    })
    .await?
}

/// W1: with who is there, also if that is nobody.
async fn a_watch_starts_with_a_snapshot(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (_watch, view) = watching(&h, &b).await?;
    ensure(view.is(&[]), "members of an empty group")?;
    a.group("g")?.join(caps("mine")?).await?;
    let (_watch, view) = watching(&h, &b).await?;
    ensure(view.is(&b.group("g")?.members().await?) && view.has("a"), "not who is there")
}

/// W1: joined, updated, left; each with its record.
async fn each_change_is_delivered_once_and_in_order(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let group = a.group("g")?;
    group.create().await?;
    let (mut watch, mut view) = watching(&h, &b).await?;
    for round in 0..3 {
        group.join(Capabilities::new(&round)?).await?;
        let joined = next(&h, &mut watch, "the join").await?;
        let right =
            matches!(&joined, GroupEvent::Joined(r) if r.capabilities.get::<i32>().ok() == Some(round));
        ensure(right, format!("a join is {joined:?}"))?;
        view.apply(joined)?;
        group.update_capabilities(Capabilities::new("new")?).await?;
        let updated = next(&h, &mut watch, "the update").await?;
        let right = matches!(&updated, GroupEvent::Updated(r) if r.capabilities == caps("new")?);
        ensure(right, format!("an update is {updated:?}"))?;
        view.apply(updated)?;
        group.leave().await?;
        let left = next(&h, &mut watch, "the leave").await?;
        ensure(
            matches!(&left, GroupEvent::Left(r, _) if r.member.as_bytes() == b"a"),
            format!("a leave is {left:?}"),
        )?;
        view.apply(left)?;
    }
    let quiet = tokio::time::timeout(millis(50), watch.next()).await;
    ensure(quiet.is_err(), format!("more than happened: {quiet:?}"))
}

/// W1: whoever left and came back is somebody new, also for a reader that did not look meanwhile.
async fn a_new_incarnation_shows_as_left_and_joined(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(caps("same")?).await?;
    let (mut watch, mut view) = watching(&h, &b).await?;
    a.group("g")?.leave().await?;
    a.group("g")?.join(caps("same")?).await?;
    let first = next(&h, &mut watch, "the leave").await?;
    if matches!(first, GroupEvent::Resync(_)) {
        view.apply(first)?; // a gap, and said so
    } else {
        ensure(matches!(first, GroupEvent::Left(..)), format!("{first:?}"))?;
        view.apply(first)?;
        let second = next(&h, &mut watch, "the join").await?;
        ensure(matches!(second, GroupEvent::Joined(_)), format!("{second:?}"))?;
        view.apply(second)?;
    }
    ensure(view.is(&b.group("g")?.members().await?), "not who is there")
}

/// W1: many members come, change and go at once; the view is the group, whatever was read in between.
async fn what_is_delivered_is_the_membership(h: Harness) -> Outcome {
    let observer = h.coordinator("observer").await?;
    observer.group("g")?.create().await?;
    let (mut early, mut early_view) = watching(&h, &observer).await?;
    let mut members = Vec::new();
    for n in 0..6_u64 {
        let c = h.coordinator(format!("m{n}")).await?;
        members.push(h.spawn(async move {
            let group = c.group("g")?;
            let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1);
            let mut inside = false;
            for step in 0..40_u64 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match (inside, random % 3) {
                    (false, _) => group.join(Capabilities::new(&step)?).await?,
                    (true, 0) => group.leave().await?,
                    (true, _) => group.update_capabilities(Capabilities::new(&step)?).await?,
                }
                inside = !(inside && random.is_multiple_of(3));
                if random.is_multiple_of(5) {
                    tokio::task::yield_now().await;
                }
            }
            fine(())
        }));
        if n == 3 {
            // A reader that reads while everything moves.
            for _ in 0..10 {
                if let Ok(Some(event)) = tokio::time::timeout(millis(5), early.next()).await {
                    early_view.apply(event?)?;
                }
            }
        }
    }
    let (mut late, mut late_view) = watching(&h, &observer).await?;
    for member in members {
        member.await??;
    }
    caught_up(h.limit(secs(1)), &mut early, &mut early_view, &observer).await?;
    caught_up(h.limit(secs(1)), &mut late, &mut late_view, &observer).await
}

/// W1, W3: every watch sees everything.
async fn two_watches_do_not_take_from_each_other(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (mut one, mut first) = watching(&h, &a).await?;
    let (mut two, mut second) = watching(&h, &a).await?;
    let (mut three, mut third) = watching(&h, &b).await?;
    b.group("g")?.join(Capabilities::none()).await?;
    caught_up(h.soon(), &mut one, &mut first, &a).await?;
    caught_up(h.soon(), &mut two, &mut second, &a).await?;
    caught_up(h.soon(), &mut three, &mut third, &a).await
}

/// W1, S3: closing leaves all groups, and watchers see it.
async fn a_close_is_a_leave(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let (mut watch, _) = watching(&h, &b).await?;
    a.close().await?;
    let left = next(&h, &mut watch, "the leave").await?;
    ensure(
        matches!(&left, GroupEvent::Left(record, _) if record.member.as_bytes() == b"a"),
        format!("{left:?}"),
    )
}

/// Waits until each watch shows the member.
async fn told_of_join(watches: &mut [GroupWatch], limit: Duration, member: &str) -> Outcome {
    let is_it = |record: &MemberRecord| record.member.as_bytes() == member.as_bytes();
    for watch in watches {
        let what = format!("the join of {member}");
        let shown = within(&what, limit, async {
            while let Some(event) = watch.next().await {
                match event? {
                    GroupEvent::Joined(record) if is_it(&record) => return Outcome::Ok(()),
                    GroupEvent::Resync(all) if all.iter().any(is_it) => return Ok(()),
                    _ => {}
                }
            }
            Err("the watch ended".into())
        });
        shown.await??;
    }
    Ok(())
}

/// Each watch has to tell that the member is gone, and that it went like this. `false`: one had a gap, after which it shows who is
/// there, and not how others went (W1).
async fn told_of_end(
    watches: &mut [GroupWatch],
    limit: Duration,
    member: &str,
    how: Departure,
) -> Outcome<bool> {
    let is_it = |record: &MemberRecord| record.member.as_bytes() == member.as_bytes();
    let mut all_told = true;
    for watch in watches {
        let what = format!("the end of {member}");
        let told = within(&what, limit, async {
            while let Some(event) = watch.next().await {
                match event? {
                    GroupEvent::Left(record, told) if is_it(&record) && told == how => return Ok(true),
                    GroupEvent::Resync(all) if !all.iter().any(is_it) => return Ok(false),
                    GroupEvent::Resync(_) => {}
                    event => return Err(format!("{member} went as {how:?}, and is told as {event:?}").into()),
                }
            }
            Err::<_, crate::Failure>("the watch ended".into())
        });
        all_told &= told.await??;
    }
    Ok(all_told)
}

/// How often a round is played whose word is lost in a gap.
const ROUNDS: usize = 5;

/// W7: a leave and a close say so, a session that ends without a word died. A view tells it, too, also where there is no
/// session to clear the dead away.
async fn a_leave_is_told_from_a_death(h: Harness) -> Outcome {
    let viewer = h.builder("eye").view().await?;
    let coordinator = h.coordinator("watcher").await?;
    coordinator.group("g")?.create().await?;
    let mut watches = vec![viewer.watch("g").await?, coordinator.group("g")?.watch().await?];
    for watch in &mut watches {
        h.soon_done("the snapshot", watch.next()).await?;
    }
    // A layout may hold members whose ids have a slash elsewhere.
    for id in ["a", "a/b"] {
        for closes in [false, true] {
            let mut told = false;
            for _ in 0..ROUNDS {
                told = told || leaves(&h, &mut watches, id, closes).await?;
            }
            ensure(told, "a gap in every round")?;
        }
    }
    // Also of one that had left before.
    for (id, with_sessions) in [("dead", true), ("dead/too", true), ("dead as well", false)] {
        if !with_sessions {
            watches.truncate(1);
            coordinator.close().await?;
        }
        let mut told = false;
        for round in 0..ROUNDS {
            told = told || dies(&h, &mut watches, &format!("{id} {round}")).await?;
        }
        ensure(told, "a gap in every round")?;
    }
    Ok(viewer.close().await?)
}

async fn leaves(h: &Harness, watches: &mut [GroupWatch], id: &str, closes: bool) -> Outcome<bool> {
    let a = h.builder(id).connect().await?;
    let group = a.group("g")?;
    group.join(Capabilities::none()).await?;
    told_of_join(watches, h.soon(), id).await?;
    if !closes {
        group.leave().await?;
    }
    let left_before = !closes && told_of_end(watches, h.soon(), id, Departure::Left).await?;
    a.close().await?;
    Ok(left_before || (closes && told_of_end(watches, h.soon(), id, Departure::Left).await?))
}

async fn dies(h: &Harness, watches: &mut [GroupWatch], id: &str) -> Outcome<bool> {
    let mut victim = h.victim(id).await?;
    victim.ask("join g").await?;
    told_of_join(watches, h.soon(), id).await?;
    victim.ask("leave g").await?;
    told_of_end(watches, h.soon(), id, Departure::Left).await?;
    victim.ask("join g").await?;
    told_of_join(watches, h.soon(), id).await?;
    victim.die()?;
    told_of_end(watches, h.gone(), id, Departure::Died).await
}

/// W7: a member that another took out of the group did not leave.
async fn a_removed_member_did_not_leave(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let (mut watch, _) = watching(&h, &b).await?;
    h.kit()?.evict(h.namespace(), "g", "a");
    let told = told_of_end(std::slice::from_mut(&mut watch), h.gone(), "a", Departure::Died).await?;
    ensure(told || !h.is_virtual(), "a gap where nothing stands still")
}

/// W2: where changes are pushed, one comes at once.
async fn a_change_is_pushed(h: Harness) -> Outcome {
    delivered(&h, h.soon()).await
}

/// W2: elsewhere within the interval at which the driver looks.
async fn a_change_is_found(h: Harness) -> Outcome {
    delivered(&h, h.limit(secs(1))).await
}

async fn delivered(h: &Harness, limit: Duration) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (mut watch, mut view) = watching(h, &b).await?;
    h.pass(millis(500)).await; // whatever polls has settled to its slowest
    a.group("g")?.join(Capabilities::none()).await?;
    caught_up(limit, &mut watch, &mut view, &a).await
}

/// W2: within a round trip and 10 ms.
async fn a_change_is_pushed_without_delay(h: Harness) -> Outcome {
    delivered(&h, millis(10)).await
}

/// W2: a member that died leaves within its ttl and the grain.
async fn a_crash_is_delivered(h: Harness) -> Outcome {
    let dead = h.keep(h.builder("dead").manual_heart().rejoin(false)).await?; // it never beats
    let b = h.coordinator("b").await?;
    dead.group("g")?.join_or_create(Capabilities::none()).await?;
    let (mut watch, _) = watching(&h, &b).await?;
    let left = within("the leave of the dead", h.gone(), watch.next()).await?.ok_or("the watch ended")??;
    ensure(
        matches!(&left, GroupEvent::Left(record, _) if record.member.as_bytes() == b"dead"),
        format!("{left:?}"),
    )
}

/// W2, G4: also where another member never stops changing what it publishes: news do not put off looking for the dead.
async fn a_crash_is_delivered_in_a_busy_group(h: Harness) -> Outcome {
    let (busy, b) = h.pair().await?;
    busy.group("g")?.join_or_create(Capabilities::none()).await?;
    let mut victim = h.victim("dead").await?;
    victim.ask("join g").await?;
    let (mut watch, mut view) = watching(&h, &b).await?;
    let pace = h.clone();
    let changes = h.spawn(async move {
        let group = busy.group("g")?;
        for n in 0..u64::MAX {
            group.update_capabilities(Capabilities::new(&n)?).await?;
            pace.pass(millis(100)).await;
        }
        fine(())
    });
    victim.die()?;
    let seen = within("the leave of the dead", h.gone(), async {
        while view.has("dead") {
            view.apply(watch.next().await.ok_or("the watch ended")??)?;
        }
        Outcome::Ok(())
    })
    .await;
    let lasting = !changes.is_finished();
    changes.abort();
    seen??;
    ensure(lasting, "the group became quiet")?;
    ensure(ids(&b, "g").await? == ["a"], "the dead is a member, or the living is none")
}

/// Many changes that a reader does not read.
async fn flood(c: &Coordinator) -> Result<()> {
    let group = c.group("g")?;
    group.join(Capabilities::none()).await?;
    for n in 0..1_500 {
        group.update_capabilities(Capabilities::new(&n)?).await?;
    }
    group.leave().await
}

/// W3: neither other watchers nor those who make the changes.
async fn a_slow_reader_delays_nobody(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let _slow = watching(&h, &b).await?;
    flood(&a).await?;
    let (mut quick, mut view) = watching(&h, &b).await?;
    a.group("g")?.join(caps("last")?).await?;
    caught_up(h.soon(), &mut quick, &mut view, &a).await
}

/// W3, W1: what it could not keep it is told at once as a resync.
async fn a_slow_reader_ends_in_the_truth(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (mut watch, mut view) = watching(&h, &b).await?;
    flood(&a).await?;
    flood(&a).await?;
    a.group("g")?.join(caps("last")?).await?;
    caught_up(h.limit(secs(1)), &mut watch, &mut view, &a).await?;
    ensure(view.capabilities("a") == Some(caps("last")?), "not the truth")
}

/// W4: the last word is that the group was deleted.
async fn a_deleted_group_ends_its_watch(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (mut watch, _) = watching(&h, &b).await?;
    a.group("g")?.delete().await?;
    let last = next(&h, &mut watch, "the last word").await?;
    ensure(last == GroupEvent::Deleted, format!("{last:?}"))?;
    ensure(h.soon_done("the end", watch.next()).await?.is_none(), "more after the last word")
}

/// W4: and says so.
async fn an_unknown_group_cannot_be_watched(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    refused(a.group("g")?.watch().await, ErrorKind::GroupNotFound)?;
    ensure(a.groups().await?.is_empty(), "watching created the group")
}

/// W4: a watch does not go over to the next group of that name.
async fn a_group_created_again_is_another_group(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let (mut watch, _) = watching(&h, &b).await?;
    a.group("g")?.delete().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let last = next(&h, &mut watch, "the last word").await?;
    ensure(last == GroupEvent::Deleted, format!("{last:?}"))
}

/// W6: on the backend, too.
async fn dropping_a_watch_frees_it(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    let before = h.kit()?.watches();
    let mut watches = Vec::new();
    for c in [&a, &b] {
        watches.push(watching(&h, c).await?);
    }
    let mut observer = b.election("g")?.observe().await?;
    h.soon_done("the present", observer.next()).await?;
    ensure(h.kit()?.watches() > before, "the kit does not count")?;
    drop((watches, observer));
    h.soon_true("the watches are gone", async || Ok::<_, crate::Failure>(h.kit()?.watches() == before)).await
}

/// W6: nobody waits for its reader.
async fn a_dropped_watch_is_quiet(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.create().await?;
    for _ in 0..50 {
        let (watch, _) = watching(&h, &b).await?;
        drop(watch);
    }
    a.group("g")?.join(Capabilities::none()).await?;
    a.group("g")?.leave().await?;
    Ok(a.group("g")?.delete().await?)
}
