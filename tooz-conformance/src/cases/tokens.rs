//! L3, E1: tokens that an operator raised.

use std::collections::BTreeSet;

use super::prelude::*;
use tooz_core::FencingToken;

pub(super) const CASES: &[Case] = &[
    case!(raised_tokens_are_those_of_every_later_grant, "L3", "L8").budget(60),
    case!(a_raise_leaves_what_is_held, "L3", "L10"),
    case!(a_raise_lowers_nothing, "L3"),
    case!(a_raise_out_of_range_is_refused, "L3"),
    case!(the_largest_raise_leaves_room, "L3", "L9"),
    case!(a_raise_is_for_terms_and_readers, "L3", "E1"),
    case!(a_raise_stands_when_nobody_is_connected, "L3").needs(Characteristics::DURABLE_FENCING).real(),
    case!(a_raise_is_seen_by_other_processes, "L3").needs(Characteristics::DURABLE_FENCING).processes(),
];

/// Further than tokens come by themselves while a case runs: they count grants, or microseconds, of which this is a quarter
/// of an hour.
const FAR: u64 = 1_000_000_000;

fn at_least(token: FencingToken, n: u64) -> Outcome {
    ensure(token.get() >= n, format!("{token} after the tokens were raised to {n}"))
}

/// L3, L8: also of a lock that was waited for before; twenty wait and one holds.
async fn raised_tokens_are_those_of_every_later_grant(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let held = taken(&a, "x").await?;
    let mut waiting = Vec::new();
    for n in 0..20 {
        let lock = h.coordinator(format!("waiter-{n}")).await?.lock("x")?;
        waiting.push(h.spawn(async move {
            let guard = lock.acquire().await?;
            let token = guard.token();
            guard.release().await?;
            fine(token)
        }));
        h.waiters("x", n + 1).await?;
    }
    let n = held.token().get() + FAR;
    b.raise_tokens(n).await?;
    ensure(held.is_held() && held.token().get() < n, "a guard from before is not as it was")?;
    held.release().await?;
    let mut tokens = Vec::new();
    for waiter in waiting {
        tokens.push(h.soon_done("its turn", waiter).await???);
    }
    for token in &tokens {
        at_least(*token, n)?;
    }
    ensure(tokens.iter().collect::<BTreeSet<_>>().len() == 20, format!("not all differ: {tokens:?}"))?;
    at_least(taken(&b, "another").await?.token(), n)
}

/// L3, L10: what is held keeps its token, which is also the one that is shown and broken.
async fn a_raise_leaves_what_is_held(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let shown =
        async || Ok::<_, Error>(b.lock("x")?.holders().await?.holders.pop().and_then(|held| held.token));
    let before = taken(&a, "x").await?;
    let n = before.token().get() + FAR;
    b.raise_tokens(n).await?;
    ensure(shown().await? == Some(before.token()), "the raise changed the token that is shown")?;
    ensure(before.release().await? == Released::Released, "a guard from before was not released")?;
    let after = taken(&a, "x").await?;
    at_least(after.token(), n)?;
    b.raise_tokens(n + FAR).await?;
    ensure(shown().await? == Some(after.token()), "another raise changed the token that is shown")?;
    let broken = b.lock("x")?.break_token(after.token(), "by its token").await?;
    ensure(broken.len() == 1 && broken[0].token == Some(after.token()), "its token does not break it")
}

/// L3: a smaller number changes nothing, and neither does the same one again.
async fn a_raise_lowers_nothing(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let first = taken(&a, "x").await?;
    let n = first.token().get() + FAR;
    first.release().await?;
    a.raise_tokens(n).await?;
    let mut last = taken(&a, "y").await?.token();
    at_least(last, n)?;
    for smaller in [1, n / 2, n, last.get()] {
        a.raise_tokens(smaller).await?;
        let next = within("the lock", h.soon(), a.lock("x")?.acquire()).await??.token();
        ensure(next > last && next.get() < last.get() + FAR / 2, format!("{next} after {last}"))?;
        last = next;
    }
    Ok(())
}

/// L3: the error names the range, and nothing is changed.
async fn a_raise_out_of_range_is_refused(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let before = taken(&a, "x").await?.token();
    for n in [0, FencingToken::RAISE_LIMIT + 1, 1 << 53, u64::MAX] {
        let error = refused(a.raise_tokens(n).await, ErrorKind::Invalid)?;
        let text = error.to_string();
        ensure(text.contains("from 1 to 4503599627370496"), format!("the range is not named: {text}"))?;
    }
    let after = taken(&a, "y").await?.token();
    ensure(after > before && after.get() < before.get() + FAR / 2, format!("{after} after {before}"))
}

/// L3, L9: many grants follow the largest raise, in the right order, and each fits into a signed column.
async fn the_largest_raise_leaves_room(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    a.raise_tokens(FencingToken::RAISE_LIMIT).await?;
    let mut last = FencingToken::RAISE_LIMIT - 1;
    for n in 0..50 {
        let c = if n % 2 == 0 { &a } else { &b };
        let guard = within("the lock", h.soon(), c.lock("x")?.acquire()).await??;
        ensure(guard.token().get() > last, format!("{} after {last}", guard.token()))?;
        ensure(u64::try_from(guard.token().as_i64())? == guard.token().get(), "it does not fit")?;
        last = guard.token().get();
        guard.release().await?;
    }
    a.raise_tokens(FencingToken::RAISE_LIMIT).await?;
    let next = within("the lock", h.soon(), a.lock("x")?.acquire()).await??.token();
    ensure(next.get() > last && next.get() < last + FAR, format!("{next} after {last}"))
}

/// L3, E1: for every kind of grant.
async fn a_raise_is_for_terms_and_readers(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let lead = within("the election", h.soon(), a.election("g")?.campaign()).await??;
    let n = lead.term().get() + FAR;
    b.raise_tokens(n).await?;
    ensure(lead.is_held() && lead.term().get() < n, "a leadership from before is not as it was")?;
    lead.resign().await?;
    let lead = within("the election", h.soon(), b.election("g")?.campaign()).await??;
    at_least(lead.term().token(), n)?;
    let shown = a.election("g")?.leader().await?.and_then(|leader| leader.term);
    ensure(shown == Some(lead.term()), "another term is shown")?;
    at_least(taken(&a, "x").await?.token(), n)?;
    if h.claimed().contains(Characteristics::SHARED_LOCKS) {
        at_least(within("the lock", h.soon(), a.lock("y")?.shared().acquire()).await??.token(), n)?;
    }
    at_least(within("a permit", h.soon(), a.lock("z")?.permits(2)?.acquire()).await??.token(), n)
}

/// L3: everybody closes, and whoever comes then gets no smaller token.
async fn a_raise_stands_when_nobody_is_connected(h: Harness) -> Outcome {
    let mut n = 1;
    for _ in 0..3 {
        let a = h.builder("a").connect().await?;
        let before = taken(&a, "x").await?.token();
        at_least(before, n)?;
        n = before.get() + FAR;
        a.raise_tokens(n).await?;
        a.close().await?;
    }
    let b = h.coordinator("b").await?;
    at_least(taken(&b, "x").await?.token(), n)
}

/// L3: of whoever raised them nothing is needed any more: it is killed right after.
async fn a_raise_is_seen_by_other_processes(h: Harness) -> Outcome {
    let (mut here, mut operator) = (h.process("here").await?, h.process("operator").await?);
    let before: u64 = here.ask("acquire x").await?.split(' ').next().unwrap_or_default().parse()?;
    let n = before + FAR;
    operator.ask(&format!("raise {n}")).await?;
    operator.kill()?;
    for (process, name) in [(&mut here, "y"), (&mut h.process("later").await?, "z")] {
        let answer = process.ask(&format!("acquire {name}")).await?;
        let token: u64 = answer.split(' ').next().unwrap_or_default().parse()?;
        ensure(token >= n, format!("{token} after the tokens were raised to {n}"))?;
    }
    Ok(())
}
