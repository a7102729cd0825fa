//! L9: readers beside each other, never beside a writer.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(readers_hold_together, "L9").needs(Characteristics::SHARED_LOCKS),
    case!(a_reader_keeps_writers_out, "L9", "L1").needs(Characteristics::SHARED_LOCKS),
    case!(a_writer_keeps_readers_out, "L9", "L1").needs(Characteristics::SHARED_LOCKS),
    case!(a_waiting_writer_is_not_starved, "L9").needs(Characteristics::SHARED_LOCKS),
    case!(readers_and_writers_never_overlap, "L9", "L1").needs(Characteristics::SHARED_LOCKS),
    case!(shared_tokens_lie_between_exclusive_ones, "L3", "L9").needs(Characteristics::SHARED_LOCKS),
    case!(a_crashed_reader_is_in_nobodys_way, "L9").needs(Characteristics::SHARED_LOCKS).ttl(),
    case!(shared_sets_are_held_together, "L16", "L9").needs(Characteristics::SHARED_LOCKS),
    case!(shared_is_refused_where_it_is_not_kept, "L9").lacks(Characteristics::SHARED_LOCKS),
];

/// L9: any number of readers, also of one coordinator.
async fn readers_hold_together(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let mut guards = Vec::new();
    for c in [&a, &b, &a, &b] {
        let guard = c.lock("x")?.shared().try_acquire().await?;
        guards.push(guard.ok_or("a reader is refused beside a reader")?);
    }
    ensure(guards.iter().all(|g| g.is_held() && g.mode() == LockMode::Shared), "not held together")
}

/// L9, L1: as long as one reader is left.
async fn a_reader_keeps_writers_out(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let one = a.lock("x")?.shared().acquire().await?;
    let two = b.lock("x")?.shared().acquire().await?;
    held_by_another(&a, "x").await?;
    one.release().await?;
    held_by_another(&a, "x").await?;
    held_by_another(&b, "x").await?;
    two.release().await?;
    taken(&a, "x").await.map(|_| ())
}

/// L9, L1: and so does a writer with readers.
async fn a_writer_keeps_readers_out(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    for c in [&a, &b] {
        ensure(c.lock("x")?.shared().try_acquire().await?.is_none(), "a reader beside a writer")?;
    }
    guard.release().await?;
    ensure(b.lock("x")?.shared().try_acquire().await?.is_some(), "a reader is refused for nobody")
}

/// L9: readers that come and go without a gap do not keep a writer out for ever.
async fn a_waiting_writer_is_not_starved(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let writer = h.coordinator("writer").await?;
    let mut reading = Some(a.lock("x")?.shared().acquire().await?);
    let lock = writer.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    for n in 0..40 {
        if waiting.is_finished() {
            break;
        }
        let c = if n % 2 == 0 { &b } else { &a };
        // The next reader comes before the last one goes: without a rule there is never a gap.
        // A limit that a loaded machine does not keep is no answer either way.
        let next = c.lock("x")?.shared().acquire_within(millis(20)).await.ok().flatten();
        if let Some(last) = std::mem::replace(&mut reading, next) {
            last.release().await?;
        }
    }
    let writer = h.soon_done("the writer, who waits behind readers that came after it", waiting).await???;
    drop(reading);
    ensure(writer.is_held(), "granted, and not held")
}

/// L9, L1: many of both kinds.
async fn readers_and_writers_never_overlap(h: Harness) -> Outcome {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    const WRITER: usize = 1_000;
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for n in 0..6 {
        let (c, inside) = (h.coordinator(format!("c{n}")).await?, Arc::clone(&inside));
        tasks.push(h.spawn(async move {
            let (lock, weight) = if n % 3 == 0 { (c.lock("x")?, WRITER) } else { (c.lock("x")?.shared(), 1) };
            for _ in 0..15 {
                let guard = lock.acquire().await?;
                let others = inside.fetch_add(weight, Ordering::SeqCst);
                linger().await;
                inside.fetch_sub(weight, Ordering::SeqCst);
                if others >= WRITER || (weight == WRITER && others > 0) {
                    return fine(false);
                }
                guard.release().await?;
            }
            fine(true)
        }));
    }
    for task in tasks {
        ensure(task.await??, "a writer beside somebody else")?;
    }
    Ok(())
}

/// L3, L9: larger than every earlier and smaller than every later writer's.
async fn shared_tokens_lie_between_exclusive_ones(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for _ in 0..5 {
        let writer = within("the lock", h.soon(), a.lock("x")?.acquire()).await??;
        let before = writer.token();
        writer.release().await?;
        let one = a.lock("x")?.shared().acquire().await?;
        let two = b.lock("x")?.shared().acquire().await?;
        ensure(one.token() > before && two.token() > before, "a reader's token is not newer")?;
        let newest = one.token().max(two.token());
        one.release().await?;
        two.release().await?;
        let writer = taken(&b, "x").await?;
        ensure(writer.token() > newest, format!("{} after {newest}", writer.token()))?;
        writer.release().await?;
    }
    Ok(())
}

/// L9: a reader that died blocks nobody longer than its session.
async fn a_crashed_reader_is_in_nobodys_way(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let dead = h.keep(h.builder("dead").manual_heart().rejoin(false)).await?; // it never beats
    let crashed = dead.lock("x")?.shared().acquire().await?;
    let reader = a.lock("x")?.shared().acquire().await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.outlive().await;
    ensure(!crashed.is_held() && reader.is_held(), "the wrong reader was lost")?;
    ensure(!waiting.is_finished(), "a writer beside a reader")?;
    reader.release().await?;
    ensure(h.soon_done("the writer's turn", waiting).await???.is_held(), "granted, and not held")
}

/// L16, L9: sets can be shared, too.
async fn shared_sets_are_held_together(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let one = a.lock_all(["x", "y"])?.shared().acquire().await?;
    let two = b.lock_all(["y", "x"])?.shared().try_acquire().await?.ok_or("readers keep each other out")?;
    ensure(one.is_held() && two.is_held(), "not held together")?;
    held_by_another(&b, "y").await
}

/// L9: a driver that cannot keep it says so, and leaves nothing behind.
async fn shared_is_refused_where_it_is_not_kept(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    refused(a.lock("x")?.shared().try_acquire().await, ErrorKind::Unsupported)?;
    refused(a.lock("x")?.shared().acquire().await, ErrorKind::Unsupported)?;
    taken(&b, "x").await.map(|_| ())
}
