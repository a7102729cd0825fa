//! S2, S6, S9, L1, L8, E4, X6: other processes, killed and stopped for real.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(processes_exclude_each_other, "L1").processes(),
    case!(processes_never_overlap, "L1", "L3").processes().budget(90),
    case!(a_program_that_ends_leaves_nothing_held, "S3", "L5", "L12").processes().budget(90),
    case!(processes_share_groups, "G4", "W1").processes(),
    case!(processes_share_elections, "E1").processes(),
    case!(a_killed_process_is_gone, "S2", "G4").processes(),
    case!(a_killed_holder_is_followed, "S2", "L12", "L3").processes(),
    case!(a_killed_leader_is_followed, "E4").processes(),
    case!(a_killed_waiter_is_in_nobodys_way, "L8").processes(),
    case!(a_killed_reader_is_in_nobodys_way, "L9").needs(Characteristics::SHARED_LOCKS).processes(),
    case!(a_killed_process_leaves_its_member_id, "S9").processes(),
    case!(a_kill_is_seen_by_watchers, "W2").processes(),
    case!(a_stopped_process_keeps_what_it_has, "S6", "S2")
        .needs(Characteristics::NON_TIMEOUT_BASED)
        .processes(),
    case!(a_stopped_process_has_lost_when_it_goes_on, "S6")
        .lacks(Characteristics::NON_TIMEOUT_BASED)
        .ttl()
        .processes(),
    case!(a_stopped_process_does_not_hold_up_others, "S6", "L1")
        .needs(Characteristics::NON_TIMEOUT_BASED)
        .processes(),
    case!(killed_in_the_middle_of_writes, "X6", "L1", "L3").processes().budget(90),
    case!(a_holder_stays_alone_though_others_are_killed, "L1")
        .needs(Characteristics::STRICT_EXCLUSION)
        .processes()
        .budget(40),
    case!(tokens_grow_across_processes, "L3").needs(Characteristics::DURABLE_FENCING).processes(),
    case!(versions_of_two_layouts_never_work_side_by_side, "X7").processes(),
    case!(hosts_meet_at_the_backend, "L1", "G4").needs(Characteristics::DISTRIBUTED_ACROSS_HOSTS).processes(),
    case!(other_processes_are_not_promised, "S1").lacks(Characteristics::DISTRIBUTED_ACROSS_PROCESSES),
];

/// L1: this one and another one.
async fn processes_exclude_each_other(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("acquire x").await?;
    held_by_another(&a, "x").await?;
    let holders = a.lock("x")?.holders().await?.holders;
    ensure(
        holders.len() == 1 && holders[0].member.as_ref().is_some_and(|m| m.as_bytes() == b"other"),
        format!("{holders:?}"),
    )?;
    let lock = a.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    ensure(other.ask("release x").await? == "Released", "the holder's release found nothing")?;
    let guard = h.soon_done("the hand-over", waiting).await???;
    other.tell("acquire x")?;
    h.pass(millis(100)).await;
    guard.release().await?;
    other.answer().await.map(|_| ())
}

/// L1, L3: a file that must not exist twice shows every overlap.
async fn processes_never_overlap(h: Harness) -> Outcome {
    let file = std::env::temp_dir().join(format!("tooz-overlap-{:032x}", crate::tools::random()));
    let mut processes = Vec::new();
    for n in 0..4 {
        let mut process = h.process(&format!("p{n}")).await?;
        process.tell(&format!("churn x {} 50", file.display()))?;
        processes.push(process);
    }
    for process in &mut processes {
        process.answer_within(secs(60)).await?;
    }
    Ok(())
}

/// S3, L5, L12: the guard is dropped as the last thing before `main` returns; the next one neither waits nor is told of a crash.
async fn a_program_that_ends_leaves_nothing_held(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    for how in ["scope", "block"] {
        for _ in 0..5 {
            let mut program = h.process("program").await?;
            program.ask(&format!("ends {how} x")).await?;
            program.ended().await?;
            let guard = a.lock("x")?.try_acquire().await?.ok_or_else(|| format!("{how}: still held"))?;
            ensure(guard.previous() == Previous::Clean, format!("{how}: {:?}", guard.previous()))?;
            guard.release().await?;
        }
    }
    Ok(())
}

/// X7: a later version is refused while a session of the earlier one lives, and disturbs it in nothing; afterwards the earlier
/// one is refused, also where it was connected all the time.
async fn versions_of_two_layouts_never_work_side_by_side(h: Harness) -> Outcome {
    let later = || h.builder("later").option("layout", "1000");
    let mut earlier = h.process("earlier").await?;
    let first: u64 = earlier.ask("acquire x").await?.split(' ').next().unwrap_or_default().parse()?;
    earlier.ask("join g").await?;
    earlier.ask("driver").await?;
    earlier.ask("session before").await?;
    let error = later().connect().await.err().ok_or("two layouts are in use at once")?;
    ensure(error.kind() == ErrorKind::Incompatible, format!("{error:?}"))?;
    // Which one, of several, is not promised.
    ensure(error.to_string().contains("member \""), format!("{error}"))?;
    ensure(earlier.ask("held x").await? == "true", "the holder was disturbed")?;
    earlier.ask("session after").await?;
    earlier.ask("release x").await?;
    earlier.ask("close").await?;

    eventually("the layout is the later one", h.gone() * 2, async || match later().connect().await {
        Ok(coordinator) => coordinator.close().await.map(|()| true),
        Err(error) if error.kind() == ErrorKind::Incompatible => Ok(false),
        Err(error) => Err(error),
    })
    .await?;
    let changed = h.keep(later()).await?;
    let guard = changed.lock("x")?.acquire().await?;
    ensure(guard.token().get() > first, format!("{} after {first}", guard.token()))?;
    ensure(ids(&changed, "g").await?.is_empty(), "another group, or a member that left")?;
    for refused in [earlier.ask("session again").await.err(), h.process("again").await.err()] {
        let refused = refused.ok_or("the earlier layout is used beside the later one")?.to_string();
        ensure(refused.contains("layout 1000") && refused.contains("upgrade"), refused)?;
    }
    // It is no longer changed: it is the one.
    let beside = later().connect().await?;
    held_by_another(&beside, "x").await?;
    ensure(guard.is_held(), "the holder was disturbed")?;
    beside.close().await?;
    // Also when no session lives in it.
    changed.close().await?;
    h.outlive().await;
    let refused = earlier.ask("session again").await.err().ok_or("the layout was changed back")?.to_string();
    ensure(refused.contains("layout 1000"), refused)
}

/// G4, W1: members and changes.
async fn processes_share_groups(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let mut watch = a.group("g")?.watch().await?;
    h.soon_done("the snapshot", watch.next()).await?;
    let mut other = h.process("other").await?;
    other.ask("join g").await?;
    ensure(ids(&a, "g").await? == ["a", "other"], "not both are members")?;
    let joined = h.soon_done("the join", watch.next()).await?.ok_or("the watch ended")??;
    ensure(
        matches!(&joined, GroupEvent::Joined(r) if r.member.as_bytes() == b"other"),
        format!("{joined:?}"),
    )?;
    other.ask("close").await?;
    let left = h.soon_done("the leave", watch.next()).await?.ok_or("the watch ended")??;
    ensure(matches!(&left, GroupEvent::Left(..)), format!("{left:?}"))
}

/// E1: one leader among all of them.
async fn processes_share_elections(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    let term = other.ask("campaign g").await?;
    ensure(a.election("g")?.try_campaign().await?.is_none(), "two leaders")?;
    let leader = a.election("g")?.leader().await?.ok_or("nobody leads")?;
    ensure(leader.term.is_some_and(|t| t.to_string() == term), format!("{leader:?}"))
}

/// S2, G4: within its ttl and the grain; at once where there is no ttl.
async fn a_killed_process_is_gone(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("join g").await?;
    ensure(ids(&a, "g").await? == ["other"], "no member")?;
    other.kill()?;
    eventually("the member is gone", h.gone(), async || Ok::<_, Error>(ids(&a, "g").await?.is_empty()))
        .await?;
    Ok(a.group("g")?.delete().await?)
}

/// S2, L12, L3: the next holder learns that the last one did not end well.
async fn a_killed_holder_is_followed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    let answer = other.ask("acquire x").await?;
    let token: u64 = answer.split(' ').next().unwrap_or_default().parse()?;
    let lock = a.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    other.kill()?;
    let guard = within("the lock of the dead", h.gone(), waiting).await???;
    ensure(guard.previous() == Previous::Expired, format!("{:?}", guard.previous()))?;
    ensure(guard.token().get() > token, format!("{} after {token}", guard.token()))
}

/// E4: a standing candidate leads.
async fn a_killed_leader_is_followed(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("campaign g").await?;
    let election = a.election("g")?;
    let campaign = h.spawn(async move { election.campaign().await });
    h.candidates("g", 1).await?;
    other.kill()?;
    let lead = within("the election", h.gone(), campaign).await???;
    ensure(lead.is_held(), "elected, and not leading")
}

/// L8: it is passed over.
async fn a_killed_waiter_is_in_nobodys_way(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let mut other = h.process("other").await?;
    other.tell("acquire x")?;
    h.waiters("x", 1).await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 2).await?;
    other.kill()?;
    guard.release().await?;
    let next = within("the lock behind the dead", h.gone(), waiting).await???;
    ensure(next.is_held(), "granted, and not held")
}

/// L9: no longer than its session.
async fn a_killed_reader_is_in_nobodys_way(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("share x").await?;
    let reader =
        a.lock("x")?.shared().try_acquire().await?.ok_or("readers of two processes exclude each other")?;
    held_by_another(&a, "x").await?;
    reader.release().await?;
    other.kill()?;
    let next = within("the lock of the dead reader", h.gone(), a.lock("x")?.acquire()).await??;
    ensure(next.is_held(), "granted, and not held")
}

/// S9: the next of that id may join once the first is dead, and not before.
async fn a_killed_process_leaves_its_member_id(h: Harness) -> Outcome {
    let mut other = h.process("same").await?;
    other.ask("join g").await?;
    let c = h.coordinator("same").await?;
    refused(c.group("g")?.join(Capabilities::none()).await, ErrorKind::MemberExists)?;
    other.kill()?;
    eventually("its successor may join", h.gone(), async || {
        match c.group("g")?.join(Capabilities::none()).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::MemberExists => Ok(false),
            Err(error) => Err(error),
        }
    })
    .await
}

/// W2: without anybody asking.
async fn a_kill_is_seen_by_watchers(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("join g").await?;
    let mut watch = a.group("g")?.watch().await?;
    h.soon_done("the snapshot", watch.next()).await?;
    other.kill()?;
    let left = within("the leave of the dead", h.gone(), watch.next()).await?.ok_or("the watch ended")??;
    ensure(matches!(&left, GroupEvent::Left(r, _) if r.member.as_bytes() == b"other"), format!("{left:?}"))
}

/// S6, S2: for three times as long as any beat; it is never even suspended.
async fn a_stopped_process_keeps_what_it_has(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("join g").await?;
    other.ask("acquire x").await?;
    other.stop()?;
    for _ in 0..6 {
        h.pass(millis(500)).await;
        held_by_another(&a, "x").await?;
        ensure(ids(&a, "g").await? == ["other"], "a stopped process is no member any more")?;
    }
    other.resume()?;
    ensure(other.ask("held x").await? == "true", "lost while it was stopped")?;
    ensure(other.ask("liveness").await? == "alive", "not alive after it was stopped")?;
    ensure(other.ask("release x").await? == "Released", "lost while it was stopped")
}

/// S6: its first look at the clock tells it.
async fn a_stopped_process_has_lost_when_it_goes_on(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut other = h.process("other").await?;
    other.ask("acquire x").await?;
    other.stop()?;
    let guard = within("the lock of the stopped process", h.gone(), a.lock("x")?.acquire()).await??;
    other.resume()?;
    ensure(other.ask("held x").await? == "false", "two holders: the stopped one does not know")?;
    ensure(guard.is_held(), "lost to a process that went on")
}

/// S6, L1: what it does not hold can be used.
async fn a_stopped_process_does_not_hold_up_others(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut other = h.process("other").await?;
    other.ask("join g").await?;
    other.ask("acquire x").await?;
    other.stop()?;
    for n in 0..20 {
        let c = if n % 2 == 0 { &a } else { &b };
        let guard = within("another lock", h.soon(), c.lock("y")?.acquire()).await??;
        guard.release().await?;
    }
    b.group("g")?.join(Capabilities::none()).await?;
    ensure(ids(&a, "g").await?.len() == 2, "not both are members")
}

/// X6, L1, L3: killed at moments of its own choosing, again and again; nothing is stuck, nothing goes back.
async fn killed_in_the_middle_of_writes(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut last = 0;
    for n in 0..8_u64 {
        let mut busy = h.process("busy").await?;
        busy.ask("join g").await?;
        let file = std::env::temp_dir().join(format!("tooz-busy-{:032x}", crate::tools::random()));
        busy.tell(&format!("churn x {} 100000", file.display()))?;
        h.pass(millis(30 + 7 * n)).await;
        busy.kill()?;
        std::fs::remove_file(&file).ok(); // it may have been killed inside
        let guard = within("the lock of the dead", h.gone(), a.lock("x")?.acquire()).await??;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        last = guard.token().get();
        eventually("the member is gone", h.gone(), async || Ok::<_, Error>(ids(&a, "g").await?.is_empty()))
            .await?;
        guard.release().await?;
    }
    Ok(())
}

/// L1: whatever the dead leave half done, it gives nobody a lock that is held.
async fn a_holder_stays_alone_though_others_are_killed(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    for n in 0..4_u64 {
        let mut busy = h.process("busy").await?;
        let file = std::env::temp_dir().join(format!("tooz-busy-{:032x}", crate::tools::random()));
        busy.tell(&format!("churn y {} 100000", file.display()))?;
        let mut waits = h.process("waits").await?;
        waits.tell("acquire x")?;
        h.pass(millis(30 + 11 * n)).await;
        busy.kill()?;
        waits.kill()?;
        std::fs::remove_file(&file).ok(); // it may have been killed inside
        ensure(guard.is_held(), "lost to somebody else's death")?;
        held_by_another(&b, "x").await?;
    }
    ensure(guard.release().await? == Released::Released, "the holder's release found nothing")
}

/// L3: nobody of ours is connected while another process takes the lock and ends.
async fn tokens_grow_across_processes(h: Harness) -> Outcome {
    let mut last = 0;
    for n in 0..4 {
        let mut process = h.process(&format!("p{n}")).await?;
        let answer = process.ask("acquire x").await?;
        let token: u64 = answer.split(' ').next().unwrap_or_default().parse()?;
        ensure(token > last, format!("{token} after {last}"))?;
        last = token;
        if n % 2 == 0 {
            process.kill()?;
        } else {
            process.ask("close").await?;
        }
    }
    Ok(())
}

/// S1: whoever needs other processes is told at connect that they are not reached.
async fn other_processes_are_not_promised(h: Harness) -> Outcome {
    let builder = h.builder("a").require(Characteristics::DISTRIBUTED_ACROSS_PROCESSES);
    refused(builder.connect().await, ErrorKind::MissingCharacteristic).map(|_| ())
}

/// L1, G4: what stands for hosts here are processes of which each reaches the backend over a way of its own, where the target
/// has such ways; nothing but the backend tells one of the other.
async fn hosts_meet_at_the_backend(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let (mut one, mut two) = (h.process("one").await?, h.process("two").await?);
    a.group("g")?.create().await?;
    one.ask("join g").await?;
    two.ask("join g").await?;
    ensure(ids(&a, "g").await? == ["one", "two"], "not both are members")?;
    one.ask("acquire x").await?;
    two.tell("acquire x")?;
    h.waiters("x", 1).await?;
    held_by_another(&a, "x").await?;
    ensure(one.ask("release x").await? == "Released", "the holder's release found nothing")?;
    two.answer().await?;
    held_by_another(&a, "x").await
}
