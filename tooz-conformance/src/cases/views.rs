//! S13: looking without a session.

use tooz_core::Viewer;

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(a_view_shows_what_others_do, "S13", "G4", "L10"),
    case!(a_view_follows_a_group, "S13", "W1"),
    case!(a_view_sees_a_deleted_group_end, "S13", "W4"),
    case!(a_view_follows_an_election, "S13", "E3"),
    case!(a_view_does_not_show_the_dead, "S13", "G4").deaths(),
    case!(a_view_follows_a_death, "S13", "W2").deaths(),
    case!(a_view_leaves_nothing_behind, "S13", "S9"),
    case!(a_view_of_nothing_is_empty, "S13", "G7"),
    case!(a_view_makes_no_file, "S13", "X5").files(),
    case!(a_view_of_another_layout_is_refused, "S13", "X7").processes(),
    case!(a_closed_view_is_closed, "S13", "X1"),
    case!(a_watch_keeps_its_view, "S13"),
    case!(a_view_is_connected_as_a_coordinator_is, "S13", "S1"),
    case!(a_view_and_writers_that_come_and_go, "S13", "L1").processes().budget(60),
];

async fn view(h: &Harness, member: &str) -> Outcome<Viewer> {
    Ok(h.builder(member).view().await?)
}

/// S13, G4, L10: groups, members, holders, waiters and leaders, as a coordinator shows them.
async fn a_view_shows_what_others_do(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let viewer = view(&h, "eye").await?;
    let group = a.group("g")?;
    group.join_or_create(Capabilities::new("seen")?).await?;
    b.group("h")?.create().await?;
    let guard = a.lock("x")?.acquire().await?;
    let led = b.election("g")?.campaign().await?;
    ensure(viewer.groups().await? == b.groups().await?, "the groups differ")?;
    let members = viewer.members("g").await?;
    ensure(members == group.members().await? && members.len() == 1, format!("{members:?}"))?;
    ensure(members[0].capabilities == Capabilities::new("seen")?, "its capabilities differ")?;
    ensure(viewer.members("h").await?.is_empty(), "the other group has members")?;
    let found = viewer.holders("x").await?;
    ensure(found == b.lock("x")?.holders().await?, format!("{found:?}"))?;
    ensure(found.holders.len() == 1 && found.holders[0].token == Some(guard.token()), format!("{found:?}"))?;
    let leader = viewer.leader("g").await?;
    ensure(leader.as_ref().and_then(|leader| leader.term) == Some(led.term()), format!("{leader:?}"))?;
    ensure(leader.and_then(|leader| leader.member).as_ref() == Some(b.member()), "another leads")?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    ensure(viewer.holders("x").await?.waiters.is_none_or(|waiters| waiters == 1), "nobody waits")?;
    let token = guard.token();
    guard.release().await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    let found = viewer.holders("x").await?;
    ensure(
        found.holders.len() == 1 && found.holders[0].token == Some(next.token()) && next.token() > token,
        format!("{found:?}"),
    )?;
    next.release().await?;
    led.resign().await?;
    ensure(viewer.holders("x").await?.holders.is_empty(), "a lock that was given back has a holder")?;
    ensure(viewer.leader("g").await?.is_none(), "somebody leads who resigned")?;
    Ok(viewer.close().await?)
}

/// S13, W1: a snapshot, then each change.
async fn a_view_follows_a_group(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let viewer = view(&h, "eye").await?;
    let mut watch = viewer.watch("g").await?;
    let first = h.soon_done("the snapshot", watch.next()).await?.ok_or("it ended")??;
    ensure(matches!(&first, GroupEvent::Snapshot(members) if members.len() == 1), format!("{first:?}"))?;
    let group = b.group("g")?;
    group.join(Capabilities::none()).await?;
    let next = h.soon_done("the join", watch.next()).await?.ok_or("it ended")??;
    ensure(matches!(&next, GroupEvent::Joined(record) if record.member == *b.member()), format!("{next:?}"))?;
    group.update_capabilities(Capabilities::new("new")?).await?;
    let next = h.soon_done("the update", watch.next()).await?.ok_or("it ended")??;
    ensure(
        matches!(&next, GroupEvent::Updated(record) if record.member == *b.member()),
        format!("{next:?}"),
    )?;
    group.leave().await?;
    let next = h.soon_done("the leave", watch.next()).await?.ok_or("it ended")??;
    ensure(matches!(&next, GroupEvent::Left(record, _) if record.member == *b.member()), format!("{next:?}"))
}

/// S13, W4: a group that is deleted ends the watch; one that does not exist cannot be watched.
async fn a_view_sees_a_deleted_group_end(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let viewer = view(&h, "eye").await?;
    refused(viewer.watch("g").await, ErrorKind::GroupNotFound)?;
    refused(viewer.members("g").await, ErrorKind::GroupNotFound)?;
    a.group("g")?.create().await?;
    let mut watch = viewer.watch("g").await?;
    h.soon_done("the snapshot", watch.next()).await?.ok_or("it ended")??;
    a.group("g")?.delete().await?;
    let next = h.soon_done("the end", watch.next()).await?.ok_or("it ended without a word")??;
    ensure(next == GroupEvent::Deleted, format!("{next:?}"))?;
    ensure(watch.next().await.is_none(), "it goes on")
}

/// S13, E3: vacant, led, vacant; also where nobody has run before.
async fn a_view_follows_an_election(h: Harness) -> Outcome {
    let viewer = view(&h, "eye").await?;
    let mut observer = viewer.observe("g").await?;
    let first = h.soon_done("the first state", observer.next()).await?.ok_or("it ended")??;
    ensure(first.is_none(), format!("{first:?}"))?;
    let a = h.coordinator("a").await?;
    let led = a.election("g")?.campaign().await?;
    let next = h.soon_done("the leader", observer.next()).await?.ok_or("it ended")??;
    ensure(next.as_ref().and_then(|leader| leader.term) == Some(led.term()), format!("{next:?}"))?;
    led.resign().await?;
    let next = h.soon_done("the vacancy", observer.next()).await?.ok_or("it ended")??;
    ensure(next.is_none(), format!("{next:?}"))
}

/// S13, G4: whoever is gone is left out, although nobody else is there to clear it away.
async fn a_view_does_not_show_the_dead(h: Harness) -> Outcome {
    let mut victim = h.victim("victim").await?;
    victim.ask("join g").await?;
    victim.ask("acquire x").await?;
    let viewer = view(&h, "eye").await?;
    ensure(viewer.members("g").await?.len() == 1, "it is not shown while it lives")?;
    ensure(viewer.holders("x").await?.holders.len() == 1, "its lock is not shown")?;
    victim.die()?;
    eventually("the dead are not shown", h.gone(), async || {
        let (members, found) = (viewer.members("g").await?, viewer.holders("x").await?);
        Ok::<_, tooz_core::Error>(members.is_empty() && found.holders.is_empty())
    })
    .await
}

/// S13, W2: whoever follows a group hears of a death, although nobody else is there to clear it away.
async fn a_view_follows_a_death(h: Harness) -> Outcome {
    let mut victim = h.victim("victim").await?;
    victim.ask("join g").await?;
    let viewer = view(&h, "eye").await?;
    let mut watch = viewer.watch("g").await?;
    h.soon_done("the snapshot", watch.next()).await?.ok_or("it ended")??;
    victim.die()?;
    let next = within("the death", h.gone(), watch.next()).await?.ok_or("it ended")??;
    ensure(
        matches!(&next, GroupEvent::Left(..)) || matches!(&next, GroupEvent::Resync(all) if all.is_empty()),
        format!("{next:?}"),
    )
}

/// S13, S9: it is no member and holds no member id, and what it looked at stays as it was.
async fn a_view_leaves_nothing_behind(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = a.lock("x")?.acquire().await?;
    // The member id is another's: a view has no use for it.
    let viewer = view(&h, "a").await?;
    let _watch = viewer.watch("g").await?;
    let _observer = viewer.observe("g").await?;
    viewer.holders("x").await?;
    viewer.holders("never").await?;
    let again = view(&h, "b").await?;
    let b = h.coordinator("b").await?;
    b.group("g")?.join(Capabilities::none()).await?;
    ensure(again.members("g").await?.len() == 2, "somebody else is a member")?;
    ensure(again.groups().await?.len() == 1, "there is another group")?;
    ensure(guard.is_held() && again.holders("x").await?.holders.len() == 1, "the lock is not held")?;
    drop((viewer, again));
    ensure(a.group("g")?.members().await?.len() == 2, "a member went with the view")?;
    guard.release().await.map(|_| ()).map_err(Into::into)
}

/// S13, G7: in a namespace that nobody has used there is nothing, and it is seen when it comes.
async fn a_view_of_nothing_is_empty(h: Harness) -> Outcome {
    let _keeps_the_backend = h.coordinator("a").await?;
    let elsewhere = || h.builder("eye").namespace("never-used");
    let viewer = elsewhere().view().await?;
    ensure(viewer.groups().await?.is_empty(), "there are groups")?;
    ensure(viewer.holders("x").await?.holders.is_empty(), "somebody holds a lock")?;
    ensure(viewer.leader("g").await?.is_none(), "somebody leads")?;
    refused(viewer.members("g").await, ErrorKind::GroupNotFound)?;
    refused(viewer.watch("g").await, ErrorKind::GroupNotFound)?;
    let b = h.keep(h.builder("b").namespace("never-used")).await?;
    b.group("g")?.join_or_create(Capabilities::none()).await?;
    ensure(viewer.members("g").await?.len() == 1, "the first member is not seen")
}

/// S13, X5: looking makes no file, also where nothing is.
async fn a_view_makes_no_file(h: Harness) -> Outcome {
    let viewer = view(&h, "eye").await?;
    ensure(viewer.groups().await?.is_empty(), "there are groups")?;
    ensure(viewer.holders("x").await?.holders.is_empty(), "somebody holds a lock")?;
    refused(viewer.members("g").await, ErrorKind::GroupNotFound)?;
    let files = || -> Outcome<Vec<std::ffi::OsString>> {
        let names = std::fs::read_dir(h.directory()?)?.map(|entry| Ok(entry?.file_name()));
        let mut names: Vec<_> = names.collect::<Result<_, std::io::Error>>()?;
        names.sort();
        Ok(names)
    };
    ensure(files()?.is_empty(), format!("there is something: {:?}", files()?))?;
    // Nor where others were.
    let a = h.builder("a").connect().await?;
    a.group("g")?.create().await?;
    a.close().await?;
    let before = files()?;
    ensure(viewer.members("g").await?.is_empty(), "there are members")?;
    ensure(viewer.holders("x").await?.holders.is_empty(), "somebody holds a lock")?;
    ensure(files()? == before, format!("{:?} instead of {before:?}", files()?))
}

/// S13, X7: of a later layout, and of an earlier one, too: nobody lives in it, and a view cannot change it.
async fn a_view_of_another_layout_is_refused(h: Harness) -> Outcome {
    let pretended = |number: &str| h.builder("later").option("layout", number);
    let later = pretended("1000").connect().await?;
    refused(h.builder("eye").view().await, ErrorKind::Incompatible)?;
    later.close().await?;
    refused(h.builder("eye").view().await, ErrorKind::Incompatible)?;
    refused(pretended("1001").view().await, ErrorKind::Incompatible)?;
    pretended("1000").view().await?.close().await?;
    Ok(())
}

/// S13, X1: after `close` every call says so; it can be called twice, and a stream ends.
async fn a_closed_view_is_closed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    let viewer = view(&h, "eye").await?;
    let clone = viewer.clone();
    let mut watch = viewer.watch("g").await?;
    viewer.close().await?;
    h.soon_done("the stream's end", async { while let Some(Ok(_)) = watch.next().await {} }).await?;
    viewer.close().await?;
    refused(clone.groups().await, ErrorKind::Closed)?;
    refused(clone.members("g").await, ErrorKind::Closed)?;
    refused(clone.watch("g").await, ErrorKind::Closed)?;
    refused(clone.holders("x").await, ErrorKind::Closed)?;
    refused(clone.leader("g").await, ErrorKind::Closed)?;
    refused(clone.observe("g").await, ErrorKind::Closed)?;
    ensure(a.groups().await?.len() == 1, "the coordinator beside it was closed")
}

/// S13: a watch goes on after the last handle of its view is gone.
async fn a_watch_keeps_its_view(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.create().await?;
    let viewer = view(&h, "eye").await?;
    let mut watch = viewer.watch("g").await?;
    let mut observer = viewer.observe("g").await?;
    drop(viewer);
    h.soon_done("the snapshot", watch.next()).await?.ok_or("it ended")??;
    h.soon_done("the state", observer.next()).await?.ok_or("it ended")??;
    a.group("g")?.join(Capabilities::none()).await?;
    let led = a.election("g")?.campaign().await?;
    h.soon_done("the join", watch.next()).await?.ok_or("it ended")??;
    let leader = h.soon_done("the leader", observer.next()).await?.ok_or("it ended")??;
    ensure(leader.is_some(), "nobody leads")?;
    Ok(led.resign().await.map(|_| ())?)
}

/// S13, S1: what is wrong with the URL, an option, a name or what is required is told as by `connect`.
async fn a_view_is_connected_as_a_coordinator_is(h: Harness) -> Outcome {
    refused(h.builder_at("nosuchscheme://x", "a").view().await, ErrorKind::UnknownScheme)?;
    refused(h.builder("a").option("tll", "9s").view().await, ErrorKind::InvalidOption)?;
    refused(h.builder("").view().await, ErrorKind::Invalid)?;
    for flag in (Characteristics::all() - h.claimed()).iter() {
        refused(h.builder("a").require(flag).view().await, ErrorKind::MissingCharacteristic)?;
    }
    // Where others are told by what a session writes, a view looks again and again.
    let least = h.claimed() - Characteristics::PUSH_WATCHES;
    let viewer = h.builder("a").require(least).view().await?;
    let kept = viewer.characteristics();
    ensure(kept.contains(least) && h.claimed().contains(kept), format!("{kept} is kept"))?;
    refused(viewer.holders("").await, ErrorKind::Invalid)?;
    refused(viewer.members([b'g'; 256]).await, ErrorKind::Invalid)?;
    Ok(())
}

/// S13, L1: looks go on while others connect and close, here and in other processes: each look is answered, and nobody is
/// granted what another holds.
async fn a_view_and_writers_that_come_and_go(h: Harness) -> Outcome {
    let viewer = view(&h, "eye").await?;
    let (tell, mut told) = tokio::sync::oneshot::channel::<()>();
    let looking = h.spawn(async move {
        let (mut looks, mut most) = (0_u32, 0);
        while told.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            viewer.groups().await?;
            most = most.max(viewer.holders("x").await?.holders.len());
            looks += 1;
            tokio::task::yield_now().await;
        }
        viewer.close().await?;
        fine((looks, most))
    });
    for round in 0..6 {
        let a = h.builder(format!("a{round}")).connect().await?;
        let guard = a.lock("x")?.acquire().await?;
        let mut other = h.process("other").await?;
        ensure(a.lock("x")?.try_acquire().await?.is_none(), "granted twice")?;
        guard.release().await?;
        if round % 2 == 0 {
            a.close().await?;
        }
        other.ask("acquire x").await?;
        let b = h.builder("b").connect().await?;
        held_by_another(&b, "x").await?;
        other.ask("release x").await?;
        other.ask("close").await?;
        b.close().await?;
        a.close().await?;
    }
    drop(tell);
    let (looks, most) = h.soon_done("the last look", looking).await???;
    ensure(looks > 10 && most == 1, format!("{looks} looks, at most {most} holders"))
}
