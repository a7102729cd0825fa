//! G1, G2, G4, L1: the orders that tooz's own characteristics promise.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(what_has_been_answered_is_seen_by_all, "G4", "L1").needs(Characteristics::LINEARIZABLE),
    case!(what_has_been_answered_is_seen_in_the_end, "G4").lacks(Characteristics::LINEARIZABLE),
    case!(a_clients_changes_keep_their_order, "G4", "W1").needs(Characteristics::SEQUENTIAL),
    case!(an_effect_is_never_seen_without_its_cause, "G4").needs(Characteristics::CAUSAL),
    case!(of_two_that_exclude_each_other_one_happens, "G1", "G2").needs(Characteristics::SERIALIZABLE),
    case!(all_clients_see_one_state, "G4").needs(Characteristics::SAME_VIEW_ACROSS_CLIENTS),
    case!(a_client_that_was_cut_off_is_shown_nothing_old, "G4")
        .needs(Characteristics::SAME_VIEW_UNDER_PARTITIONS),
    case!(a_cut_off_client_gets_an_error, "G4", "X1")
        .needs(Characteristics::SAME_VIEW_UNDER_PARTITIONS)
        .kit(),
    case!(a_view_may_be_older_elsewhere_but_not_for_ever, "G4")
        .lacks(Characteristics::SAME_VIEW_ACROSS_CLIENTS),
    case!(a_view_may_be_old_after_a_partition_but_not_for_ever, "G4")
        .lacks(Characteristics::SAME_VIEW_UNDER_PARTITIONS),
];

async fn number(c: &Coordinator, group: &str, member: &str) -> Result<u32> {
    c.group(group)?.member_capabilities(member).await?.get()
}

/// G4, L1: at once, wherever it is read.
async fn what_has_been_answered_is_seen_by_all(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let group = a.group("g")?;
    group.create().await?;
    for n in 0..30_u32 {
        group.join(Capabilities::new(&n)?).await?;
        ensure(number(&b, "g", "a").await? == n, "a join is answered and not seen")?;
        group.update_capabilities(Capabilities::new(&(n + 1000))?).await?;
        ensure(number(&b, "g", "a").await? == n + 1000, "an update is answered and not seen")?;
        group.leave().await?;
        ensure(ids(&b, "g").await?.is_empty(), "a leave is answered and not seen")?;
        let guard = taken(&a, "x").await?;
        ensure(b.lock("x")?.holders().await?.holders.len() == 1, "a grant is answered and not seen")?;
        guard.release().await?;
        ensure(b.lock("x")?.holders().await?.holders.is_empty(), "a release is answered and not seen")?;
    }
    Ok(())
}

/// G4: without that promise it is seen all the same, soon.
async fn what_has_been_answered_is_seen_in_the_end(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    h.soon_true("the join is seen", async || Ok::<_, Error>(ids(&b, "g").await? == ["a"])).await
}

/// G4, W1: nobody sees them in another one.
async fn a_clients_changes_keep_their_order(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.group("one")?.join_or_create(Capabilities::new(&0)?).await?;
    a.group("two")?.join_or_create(Capabilities::new(&0)?).await?;
    let writing = h.spawn(async move {
        for n in 1..=100_u32 {
            a.group("one")?.update_capabilities(Capabilities::new(&n)?).await?;
            a.group("two")?.update_capabilities(Capabilities::new(&n)?).await?;
        }
        fine(())
    });
    let mut last = 0;
    loop {
        let done = writing.is_finished();
        // The second is written after the first: whoever reads it first must not find the first older.
        let two = number(&b, "two", "a").await?;
        let one = number(&b, "one", "a").await?;
        ensure(one >= two, format!("the second write ({two}) is seen, the first ({one}) is not"))?;
        ensure(two >= last, format!("{two} after {last}"))?;
        last = two;
        if done {
            writing.await??;
            return ensure(last == 100, format!("{last} in the end"));
        }
        tokio::task::yield_now().await;
    }
}

/// G4: b answers to what it read of a; whoever sees the answer sees what was answered.
async fn an_effect_is_never_seen_without_its_cause(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    a.group("g")?.join_or_create(Capabilities::new(&0_u32)?).await?;
    b.group("g")?.join(Capabilities::new(&0_u32)?).await?;
    let writing = h.spawn(async move {
        for n in 1..=50_u32 {
            a.group("g")?.update_capabilities(Capabilities::new(&n)?).await?;
            tokio::task::yield_now().await;
        }
        fine(())
    });
    let answering = h.spawn(async move {
        let mut seen = 0;
        while seen < 50 {
            seen = number(&b, "g", "a").await?;
            b.group("g")?.update_capabilities(Capabilities::new(&seen)?).await?;
            tokio::task::yield_now().await;
        }
        fine(())
    });
    loop {
        let done = answering.is_finished();
        let answer = number(&c, "g", "b").await?;
        let cause = number(&c, "g", "a").await?;
        ensure(cause >= answer, format!("the answer to {answer} is seen beside {cause}"))?;
        if done {
            writing.await??;
            answering.await??;
            return ensure(answer == 50, format!("{answer} in the end"));
        }
        tokio::task::yield_now().await;
    }
}

/// G1, G2: joining a group and deleting it at the same time.
async fn of_two_that_exclude_each_other_one_happens(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for n in 0..30 {
        let name = format!("g{n}");
        a.group(&name)?.create().await?;
        let (joins, deletes) = (a.group(&name)?, b.group(&name)?);
        let join = h.spawn(async move { joins.join(Capabilities::none()).await });
        let delete = h.spawn(async move { deletes.delete().await });
        match (join.await?, delete.await?) {
            (Ok(()), Err(error)) => ensure(error.kind() == ErrorKind::GroupNotEmpty, format!("{error}"))?,
            (Err(error), Ok(())) => ensure(error.kind() == ErrorKind::GroupNotFound, format!("{error}"))?,
            (Ok(()), Ok(())) => return Err("a member of a deleted group".into()),
            (Err(join), Err(delete)) => return Err(format!("neither happened: {join}; {delete}").into()),
        }
        let (one, two) = (a.group(&name)?, b.group(&name)?);
        let one = h.spawn(async move { one.create().await.is_ok() });
        let two = h.spawn(async move { two.create().await.is_ok() });
        ensure(!(one.await? && two.await?), "a group was created twice")?;
    }
    Ok(())
}

/// G4: what one client has read, no other reads older.
async fn all_clients_see_one_state(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let c = h.coordinator("c").await?;
    a.group("g")?.join_or_create(Capabilities::new(&0_u32)?).await?;
    let writing = h.spawn(async move {
        for n in 1..=60_u32 {
            a.group("g")?.update_capabilities(Capabilities::new(&n)?).await?;
            tokio::task::yield_now().await;
        }
        fine(())
    });
    let mut newest = 0;
    while newest < 60 {
        for reader in [&b, &c] {
            let seen = number(reader, "g", "a").await?;
            ensure(seen >= newest, format!("{newest} was read elsewhere, and {seen} here afterwards"))?;
            newest = seen;
        }
        tokio::task::yield_now().await;
    }
    Ok(writing.await??)
}

/// G4: a client that has just connected reads what others read.
async fn a_client_that_was_cut_off_is_shown_nothing_old(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    a.group("g")?.join_or_create(Capabilities::new(&0_u32)?).await?;
    for n in 1..=10_u32 {
        a.group("g")?.update_capabilities(Capabilities::new(&n)?).await?;
        let new = h.builder(format!("reader-{n}")).connect().await?;
        ensure(number(&new, "g", "a").await? == n, "a new client reads old capabilities")?;
        new.close().await?;
    }
    Ok(())
}

/// G4, X1: and never what it remembers.
async fn a_cut_off_client_gets_an_error(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").operation_timeout(secs(1))).await?;
    let b = h.coordinator("b").await?;
    b.group("g")?.join_or_create(caps("old")?).await?;
    ensure(a.group("g")?.member_capabilities("b").await? == caps("old")?, "not what was written")?;
    h.kit()?.cut(h.namespace(), "a");
    b.group("g")?.update_capabilities(caps("new")?).await?;
    let error = a.group("g")?.member_capabilities("b").await.err().ok_or("an answer across a cut")?;
    ensure(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), format!("{error}"))?;
    h.kit()?.heal(h.namespace(), "a");
    h.soon_true("it is seen again", async || match a.group("g")?.member_capabilities("b").await {
        Ok(seen) if seen == caps("new")? => Ok(true),
        Ok(_) => Err("old capabilities after the cut".into()),
        Err(_) => Ok::<_, crate::Failure>(false),
    })
    .await
}

/// G4: the twin of one state.
async fn a_view_may_be_older_elsewhere_but_not_for_ever(h: Harness) -> Outcome {
    what_has_been_answered_is_seen_in_the_end(h).await
}

/// G4: the twin of nothing old.
async fn a_view_may_be_old_after_a_partition_but_not_for_ever(h: Harness) -> Outcome {
    what_has_been_answered_is_seen_in_the_end(h).await
}
