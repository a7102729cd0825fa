//! L12: how the last holder ended, as the next one is told.

use tooz_core::MemberId;
use tooz_core::driver::{BreakRequest, Meant};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(previous_tells_how_it_ended, "L12"),
    case!(previous_is_expired_after_a_crash, "L12").ttl(),
    case!(a_release_says_how_the_work_ended, "L12", "L4"),
    case!(of_several_unclean_ends_a_break_is_told, "L12", "L10"),
    case!(a_grant_that_nobody_used_hides_nothing, "L12", "L6"),
    case!(a_clean_reader_hides_no_unclean_one, "L12", "L9").needs(Characteristics::SHARED_LOCKS),
    case!(a_session_that_was_lost_is_ended_at_once_and_says_so, "L12", "S7"),
    case!(a_holder_that_was_cut_off_did_not_release, "L12", "S6", "S7").ttl().kit(),
    case!(a_coordinator_that_is_closed_after_a_loss_did_not_release, "L12", "S3").ttl().kit(),
    case!(work_that_was_cut_short_did_not_end_well, "L12", "L13"),
    case!(work_under_several_locks_is_cut_short_for_all, "L12", "L13", "L16"),
    case!(a_close_does_not_hide_a_break, "L12", "L10", "S3"),
    case!(a_panic_is_told_although_the_coordinator_is_closed, "L12", "S3", "L5"),
];

/// L12: clean at first, clean after a release or a drop, broken after a break, and then clean again.
async fn previous_tells_how_it_ended(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    ensure(guard.previous() == Previous::Clean, format!("first: {:?}", guard.previous()))?;
    guard.release().await?;
    let guard = taken(&b, "x").await?;
    ensure(guard.previous() == Previous::Clean, format!("after a release: {:?}", guard.previous()))?;
    drop(guard);
    let guard = within("the lock", h.soon(), a.lock("x")?.acquire()).await??;
    ensure(guard.previous() == Previous::Clean, format!("after a drop: {:?}", guard.previous()))?;
    b.lock("x")?.break_lock("the holder hangs").await?;
    let guard = taken(&b, "x").await?;
    ensure(guard.previous() == Previous::Broken, format!("after a break: {:?}", guard.previous()))?;
    guard.release().await?;
    let guard = taken(&b, "x").await?;
    ensure(guard.previous() == Previous::Clean, format!("after a clean end: {:?}", guard.previous()))?;
    a.close().await?;
    let guard = taken(&h.coordinator("c").await?, "y").await?;
    ensure(guard.previous() == Previous::Clean, format!("another name: {:?}", guard.previous()))
}

/// L12: the next holder after a crash is told, once.
async fn previous_is_expired_after_a_crash(h: Harness) -> Outcome {
    let a = h.keep(h.builder("a").manual_heart().rejoin(false)).await?; // it never beats
    let b = h.coordinator("b").await?;
    let _guard = taken(&a, "x").await?;
    let guard = within("the lock", h.gone(), b.lock("x")?.acquire()).await??;
    ensure(guard.previous() == Previous::Expired, format!("{:?}", guard.previous()))?;
    guard.release().await?;
    let guard = taken(&b, "x").await?;
    ensure(guard.previous() == Previous::Clean, format!("after a clean end: {:?}", guard.previous()))
}

/// The one who holds it now, and does so briefly, is told this.
async fn next_is_told(c: &Coordinator, name: &str, how: Previous) -> Outcome {
    let guard = c.lock(name)?.acquire().await?;
    ensure(guard.previous() == how, format!("{name}: {:?} is told instead of {how:?}", guard.previous()))?;
    guard.release().await?;
    Ok(())
}

/// L12, L4: a grant is given back cleanly or not, for each way of holding; the mark goes with the next clean release.
async fn a_release_says_how_the_work_ended(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    for (name, shared) in [("x", false), ("y", true)] {
        let grant = granted(&a, name, shared).await?;
        let released = a.locks().release(&grant, End::Unclean).await?;
        ensure(released == Released::Released, "the holder's release found nothing")?;
        let again = a.locks().release(&grant, End::Unclean).await?;
        ensure(again == Released::WasNotHolder, "released twice")?;
        let next = granted(&b, name, shared).await?;
        ensure(next.previous == Previous::Expired, format!("{name}: {:?}", next.previous))?;
        b.locks().release(&next, End::Clean).await?;
        let next = granted(&a, name, shared).await?;
        ensure(next.previous == Previous::Clean, format!("{name}, told twice: {:?}", next.previous))?;
        a.locks().release(&next, End::Clean).await?;
    }
    Ok(())
}

/// L12, L10: two readers end uncleanly, one of them by a break: the break is told, in whichever order they end.
async fn of_several_unclean_ends_a_break_is_told(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    for break_comes_first in [true, false] {
        let (broken, cut_off) = (granted(&a, "x", true).await?, granted(&b, "x", true).await?);
        let request = BreakRequest::new(broken.key.clone(), MemberId::new("boss")?, "enough")
            .only(Meant::Token(broken.token));
        if !break_comes_first {
            b.locks().release(&cut_off, End::Unclean).await?;
        }
        ensure(
            driver.locks().break_lock(&request).await?.len() == 1,
            "the break found another number of holders",
        )?;
        if break_comes_first {
            b.locks().release(&cut_off, End::Unclean).await?;
        }
        let next = granted(&b, "x", false).await?;
        ensure(
            next.previous == Previous::Broken,
            format!("break first: {break_comes_first}: {:?}", next.previous),
        )?;
        b.locks().release(&next, End::Clean).await?;
    }
    Ok(())
}

/// L12, L6: the grant after an unclean end is withdrawn, because its caller was dropped: the next one is told of that end.
async fn a_grant_that_nobody_used_hides_nothing(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    for (name, shared) in [("x", false), ("y", true)] {
        let cut_off = granted(&a, name, shared).await?;
        a.locks().release(&cut_off, End::Unclean).await?;
        for _ in 0..2 {
            let unused = granted(&b, name, shared).await?;
            ensure(unused.previous == Previous::Expired, format!("{name}: {:?}", unused.previous))?;
            b.locks().withdraw(&unused.key, unused.attempt).await?;
        }
        let next = granted(&a, name, shared).await?;
        ensure(
            next.previous == Previous::Expired,
            format!("{name}, after a withdrawal: {:?}", next.previous),
        )?;
        a.locks().release(&next, End::Clean).await?;
        let next = granted(&b, name, shared).await?;
        ensure(next.previous == Previous::Clean, format!("{name}, told twice: {:?}", next.previous))?;
    }
    Ok(())
}

/// L12, L9: two readers come after one unclean end; one of them ends uncleanly, too, and the other's clean release does not hide
/// that.
async fn a_clean_reader_hides_no_unclean_one(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let (a, b) = (h.session(&driver, "a").await?, h.session(&driver, "b").await?);
    let cut_off = granted(&a, "x", false).await?;
    a.locks().release(&cut_off, End::Unclean).await?;
    let (one, other) = (granted(&a, "x", true).await?, granted(&b, "x", true).await?);
    ensure(one.previous == Previous::Expired, format!("the first reader: {:?}", one.previous))?;
    a.locks().release(&one, End::Unclean).await?;
    b.locks().release(&other, End::Clean).await?;
    let next = granted(&a, "x", false).await?;
    ensure(next.previous == Previous::Expired, format!("the writer: {:?}", next.previous))?;
    a.locks().release(&next, End::Clean).await?;
    let next = granted(&b, "x", false).await?;
    ensure(next.previous == Previous::Clean, format!("told twice: {:?}", next.previous))
}

/// L12, S7: what a lost session held is free when its end was answered, not when its ttl is over.
async fn a_session_that_was_lost_is_ended_at_once_and_says_so(h: Harness) -> Outcome {
    let driver = h.driver().await?;
    let b = h.session(&driver, "b").await?;
    for (end, how) in [(End::Unclean, Previous::Expired), (End::Clean, Previous::Clean)] {
        let a = h.session(&driver, "a").await?;
        for (name, shared) in [("x", false), ("y", true)] {
            granted(&a, name, shared).await?;
        }
        a.close(end).await?;
        a.close(end).await?; // as often as one likes
        for (name, shared) in [("x", false), ("y", true)] {
            let next = granted(&b, name, shared).await?;
            ensure(next.previous == how, format!("{end:?}, {name}: {:?}", next.previous))?;
            b.locks().release(&next, End::Clean).await?;
        }
    }
    Ok(())
}

/// Keeps the backend's answers from `a` until its guard is lost.
async fn cut_until_lost(h: &Harness, guard: &LockGuard) -> Outcome {
    h.kit()?.cut(h.namespace(), "a");
    within("the loss", h.gone(), guard.lost()).await?;
    h.kit()?.heal(h.namespace(), "a");
    Ok(())
}

/// L12, S6, S7: the backend answers again right after the holder stopped believing in its session, and before it ends the
/// session itself.
async fn a_holder_that_was_cut_off_did_not_release(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let readers = a.lock("y")?.shared().acquire().await?;
    let lock = b.lock("x")?;
    let waiting = h.spawn(async move { lock.acquire().await });
    h.waiters("x", 1).await?;
    cut_until_lost(&h, &guard).await?;
    ensure(!readers.is_held(), "held after its deadline")?;
    drop((guard, readers)); // that it was lost comes before that it was dropped
    let next = within("the next holder", h.gone(), waiting).await???;
    ensure(next.previous() == Previous::Expired, format!("after a loss: {:?}", next.previous()))?;
    within("the other lock", h.gone(), next_is_told(&b, "y", Previous::Expired)).await?
}

/// L12, S3: closing afterwards makes it no better.
async fn a_coordinator_that_is_closed_after_a_loss_did_not_release(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    cut_until_lost(&h, &guard).await?;
    a.close().await?;
    within("the next holder", h.gone(), next_is_told(&b, "x", Previous::Expired)).await?
}

/// L12, L13: work is half done when it was dropped or panicked; a program that has put that right says so by releasing.
async fn work_that_was_cut_short_did_not_end_well(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let begun = |name: &'static str| {
        let a = a.clone();
        async move {
            let guard = taken(&a, name).await?;
            let mut running = Box::pin(guard.run(std::future::pending::<()>()));
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(running.as_mut().poll(cx))).await;
            ensure(polled.is_pending(), "the work has ended")?;
            drop(running);
            Ok::<_, crate::Failure>(guard)
        }
    };
    drop(begun("dropped").await?);
    next_is_told(&b, "dropped", Previous::Expired).await?;
    next_is_told(&b, "dropped", Previous::Clean).await?;
    begun("tidied").await?.release().await?;
    next_is_told(&b, "tidied", Previous::Clean).await?;
    let guard = taken(&a, "done").await?;
    guard.run(async {}).await?;
    drop(guard);
    next_is_told(&b, "done", Previous::Clean).await?;
    let guard = taken(&a, "never begun").await?;
    drop(guard.run(std::future::pending::<()>()));
    drop(guard);
    next_is_told(&b, "never begun", Previous::Clean).await?;
    panics_while_it_holds(&h, &a, "panicked").await?;
    next_is_told(&b, "panicked", Previous::Expired).await?;
    let set = a.lock_all(["one", "two"])?.acquire().await?;
    let mut running = Box::pin(set.run(std::future::pending::<()>()));
    drop(std::future::poll_fn(|cx| std::task::Poll::Ready(running.as_mut().poll(cx))).await);
    drop(running);
    drop(set);
    next_is_told(&b, "one", Previous::Expired).await?;
    next_is_told(&b, "two", Previous::Expired).await
}

/// L12, L13, L16: one of several locks is broken; the work under all of them is cancelled, and half done under each.
async fn work_under_several_locks_is_cut_short_for_all(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let set = a.lock_all(["one", "two"])?.acquire().await?;
    let running = h.started(async move { (set.run(std::future::pending::<()>()).await.is_err(), set) }).await;
    b.lock("one")?.break_lock("enough").await?;
    let (cancelled, set) = within("the end of the work", h.some_ttl() + h.soon(), running).await??;
    ensure(cancelled && set.guards()[1].is_held(), "the other lock was lost, too")?;
    drop(set);
    next_is_told(&b, "one", Previous::Broken).await?;
    next_is_told(&b, "two", Previous::Expired).await
}

/// L12, L10, S3: a coordinator that closes right after its lock was broken did not release it, whether it has heard of the
/// break or not.
async fn a_close_does_not_hide_a_break(h: Harness) -> Outcome {
    let b = h.coordinator("b").await?;
    for _ in 0..5 {
        let a = h.coordinator("a").await?;
        let guard = taken(&a, "x").await?;
        b.lock("x")?.break_lock("enough").await?;
        a.close().await?;
        ensure(!guard.is_held(), "held after close")?;
        next_is_told(&b, "x", Previous::Broken).await?;
    }
    Ok(())
}

/// A task takes it and panics, without a word on the terminal.
async fn panics_while_it_holds(h: &Harness, c: &Coordinator, name: &str) -> Outcome {
    let guard = taken(c, name).await?;
    let task = h.spawn(async move {
        let _guard = guard;
        std::panic::resume_unwind(Box::new("the work fails"));
    });
    ensure(task.await.is_err_and(|error| error.is_panic()), "it did not panic")
}

/// L12, S3, L5: the clean end of a session does not overtake the unclean end of a guard.
async fn a_panic_is_told_although_the_coordinator_is_closed(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let names: Vec<String> = (0..20).map(|n| format!("x{n}")).collect();
    let kept = taken(&a, "kept").await?;
    for name in &names {
        panics_while_it_holds(&h, &a, name).await?;
    }
    a.close().await?;
    for name in &names {
        next_is_told(&b, name, Previous::Expired).await?;
    }
    ensure(!kept.is_held(), "held after close")?;
    next_is_told(&b, "kept", Previous::Clean).await
}
