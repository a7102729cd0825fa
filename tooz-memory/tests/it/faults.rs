//! Each planted defect shows at the driver's level, and only where it was planted.

use std::time::Duration;

use crate::common::*;
use tooz_core::driver::{Acquired, BreakRequest, End, Join, LockMode};
use tooz_core::{Capabilities, FencingToken, LossReason};
use tooz_memory::{Cut, Kit, Operation, Outcome};

fn join(name: &str) -> Join {
    Join::new(group(name), Capabilities::none()).create(true)
}

fn is_granted(acquired: &Acquired) -> bool {
    matches!(acquired, Acquired::Granted(_))
}

async fn beside(url: &str, held: LockMode, asked: LockMode) -> bool {
    let (_d, a) = member(url, "a").await;
    granted(&a, 1, held).await;
    !is_granted(&request(&a, 2, asked).await)
}

async fn one_holder(url: &str) -> bool {
    beside(url, Exclusive, Exclusive).await
}

async fn no_reader_beside_a_writer(url: &str) -> bool {
    beside(url, Exclusive, Shared).await
}

async fn a_stale_release_changes_nothing(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let first = granted(&a, 1, Exclusive).await;
    a.locks().release(&first, End::Clean).await.unwrap();
    granted(&a, 2, Exclusive).await;
    a.locks().release(&first, End::Clean).await.unwrap();
    driver.locks().holders(&key("x")).await.unwrap().holders.len() == 1
}

async fn tokens_grow(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let first = granted(&a, 1, Exclusive).await;
    a.locks().release(&first, End::Clean).await.unwrap();
    granted(&a, 2, Exclusive).await.token > first.token
}

async fn a_waiter_is_woken(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let first = granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    a.locks().release(&first, End::Clean).await.unwrap();
    !still_waits(&a, &place).await
}

async fn the_dead_are_not_listed(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    a.close(End::Clean).await.unwrap();
    driver.groups().members(&group("g")).await.unwrap().is_empty()
}

async fn no_event_is_missing(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    a.groups().leave(&group("g")).await.unwrap();
    !quiet(&mut changes).await
}

async fn a_withdrawal_leaves_nothing(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let grant = granted(&a, 1, Exclusive).await;
    a.locks().withdraw(&grant.key, grant.attempt).await.unwrap();
    Kit::of(url).unwrap().held() == 0
}

async fn nobody_passes_the_queue(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    granted(&a, 1, Shared).await;
    queued(&a, 2, Exclusive).await;
    !is_granted(&request(&a, 3, Shared).await)
}

async fn the_victim_hears_of_a_break(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let grant = granted(&a, 1, Exclusive).await;
    driver.locks().break_lock(&BreakRequest::new(key("x"), id("b"), "")).await.unwrap();
    let renewal = a.renew(&held(&[&grant], &[], &[])).await.unwrap();
    let pushed = !never(a.notice()).await;
    assert_eq!(pushed, !renewal.gone.is_empty());
    assert!(renewal.gone.iter().all(|(_, why)| matches!(why, LossReason::Broken { .. })));
    pushed
}

async fn an_update_does_not_join(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    a.groups().leave(&group("g")).await.unwrap();
    let refused = a.groups().update(&group("g"), &Capabilities::none()).await.is_err();
    refused && driver.groups().members(&group("g")).await.unwrap().is_empty()
}

async fn an_update_is_of_the_own_record_only(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let (_d, imposter) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    let forged = Capabilities::new("forged").unwrap();
    let refused = imposter.groups().update(&group("g"), &forged).await.is_err();
    refused && driver.groups().member(&group("g"), &id("a")).await.unwrap().capabilities != forged
}

async fn a_lock_watch_never_goes_back(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let mut holders = driver.locks().watch(&key("x")).await.unwrap();
    let mut highest = None;
    for attempt in 1..=3 {
        let grant = granted(&a, attempt, Exclusive).await;
        while let Ok(Some(seen)) = tokio::time::timeout(Duration::from_millis(1), next(&mut holders)).await {
            let token = seen.holders.first().and_then(|holder| holder.token);
            if token.is_some() && token < highest {
                return false;
            }
            highest = highest.max(token);
        }
        a.locks().release(&grant, End::Clean).await.unwrap();
    }
    true
}

async fn a_session_lives_as_long_as_it_says(url: &str) -> bool {
    let (_d, a) = member(&format!("{url}&ttl=10s"), "a").await;
    let kit = Kit::of(url).unwrap();
    tokio::time::sleep(a.ttl().unwrap().mul_f64(0.99)).await;
    kit.sessions() == 1
}

async fn ids_do_not_meet(url: &str) -> bool {
    let (driver, _a) = member(url, "a").await;
    let mut created = Vec::new();
    for bytes in [&b"g"[..], b"G", b"g\0h"] {
        created.push(driver.groups().create(&tooz_core::GroupId::new(bytes).unwrap()).await.is_ok());
    }
    // Folded, both of the others are the first.
    assert!(created == [true; 3] || created == [true, false, false], "{created:?}");
    created == [true; 3]
}

async fn namespaces_are_apart(url: &str) -> bool {
    let (one, _a) = member(url, "a").await;
    let (two, _b) = member(&format!("{url}&namespace=other"), "b").await;
    one.groups().create(&group("g")).await.unwrap();
    two.groups().list().await.unwrap().is_empty()
}

async fn a_limit_of_permits_is_kept(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    granted(&a, 1, permit(1)).await;
    !is_granted(&request(&a, 2, permit(1)).await)
}

async fn the_first_to_ask_is_the_first_to_be_granted(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let first = granted(&a, 1, Exclusive).await;
    let (second, _third) = (queued(&a, 2, Exclusive).await, queued(&a, 3, Exclusive).await);
    a.locks().release(&first, End::Clean).await.unwrap();
    !still_waits(&a, &second).await
}

async fn a_lock_ends_with_its_session(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    granted(&a, 1, Exclusive).await;
    a.close(End::Clean).await.unwrap();
    Kit::of(url).unwrap().held() == 0
}

async fn a_place_ends_with_its_session(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let (_d, b) = member(url, "b").await;
    let first = granted(&a, 1, Exclusive).await;
    queued(&b, 2, Exclusive).await;
    b.close(End::Clean).await.unwrap();
    a.locks().release(&first, End::Clean).await.unwrap();
    driver.locks().holders(&key("x")).await.unwrap().holders.is_empty()
}

async fn a_session_that_ended_is_not_renewed(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    assert_eq!(Kit::of(url).unwrap().expire("a"), 1);
    a.renew(&held(&[], &[], &[])).await.unwrap().lost.is_some()
}

async fn a_close_ends_the_session(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    a.close(End::Clean).await.unwrap();
    Kit::of(url).unwrap().sessions() == 0
}

async fn a_leave_is_a_leave(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    a.groups().leave(&group("g")).await.unwrap();
    driver.groups().members(&group("g")).await.unwrap().is_empty()
}

async fn a_late_update_changes_nothing(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    let [old, new] = ["old", "new"].map(|word| Capabilities::new(word).unwrap());
    a.groups().update(&group("g"), &old).await.unwrap();
    a.groups().update(&group("g"), &new).await.unwrap();
    driver.groups().member(&group("g"), &id("a")).await.unwrap().capabilities == new
}

async fn tokens_survive_the_loss_of_the_data(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let first = granted(&a, 1, Exclusive).await;
    Kit::of(url).unwrap().lose_data();
    let (_d, b) = member(url, "b").await;
    granted(&b, 2, Exclusive).await.token > first.token
}

async fn a_raise_is_done(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    let least = FencingToken::new(1_000).unwrap();
    driver.locks().raise_tokens(least).await.unwrap();
    granted(&a, 1, Exclusive).await.token == least
}

async fn a_lost_answer_is_not_a_refusal(url: &str) -> bool {
    a_lost_answer_is_reported_as_such(url).await
}

async fn a_lost_answer_is_reported_as_such(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    let kit = Kit::of(url).unwrap();
    kit.next(Operation::Join, 1, Outcome::Indeterminate);
    a.groups().join(&join("g")).await.is_err_and(|error| error.is_indeterminate())
}

async fn a_deletion_is_told(url: &str) -> bool {
    let (driver, _a) = member(url, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[]");
    driver.groups().delete(&group("g")).await.unwrap();
    !quiet(&mut changes).await
}

async fn a_watch_goes_on_with_the_next_change(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[]");
    a.groups().join(&join("g")).await.unwrap();
    !quiet(&mut changes).await
}

async fn a_watch_repeats_nothing_of_its_view(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    driver.groups().create(&group("g")).await.unwrap();
    let _keeps_the_log = driver.groups().watch(&group("g")).await.unwrap();
    a.groups().join(&join("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    quiet(&mut changes).await
}

async fn the_loss_of_the_data_is_told(url: &str) -> bool {
    let (driver, a) = member(url, "a").await;
    a.groups().join(&join("g")).await.unwrap();
    let mut changes = driver.groups().watch(&group("g")).await.unwrap();
    assert_eq!(short(next(&mut changes).await), "[a]");
    Kit::of(url).unwrap().lose_data();
    !quiet(&mut changes).await
}

async fn a_lost_place_is_told(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    granted(&a, 1, Exclusive).await;
    let place = queued(&a, 2, Exclusive).await;
    Kit::of(url).unwrap().forget_lock("x");
    !still_waits(&a, &place).await
}

async fn a_beat_is_answered_by_the_backend(url: &str) -> bool {
    let (_d, a) = member(url, "a").await;
    a.renew(&held(&[], &[], &[])).await.unwrap();
    let kit = Kit::of(url).unwrap();
    kit.cut_off("a", Cut::Fail);
    a.renew(&held(&[], &[], &[])).await.is_err()
}

macro_rules! faults {
    ($($test:ident: $word:literal,)*) => {$(
        mod $test {
            #[tokio::test(start_paused = true)]
            async fn shows() {
                assert!(super::$test(concat!("memory://right-", stringify!($test), "?yield_seed=1")).await);
                assert!(!super::$test(concat!("memory://wrong-", stringify!($test), "?fault=", $word)).await);
            }
        }
    )*};
}

faults! {
    one_holder: "two-holders",
    a_stale_release_changes_nothing: "stale-release",
    tokens_grow: "token-repeats",
    a_waiter_is_woken: "lost-wakeup",
    the_dead_are_not_listed: "dead-member",
    no_event_is_missing: "watch-gap",
    a_withdrawal_leaves_nothing: "cancel-leaks",
    nobody_passes_the_queue: "barging",
    no_reader_beside_a_writer: "reader-beside-writer",
    the_victim_hears_of_a_break: "silent-break",
    an_update_does_not_join: "resurrect",
    an_update_is_of_the_own_record_only: "resurrect",
    a_lock_watch_never_goes_back: "leader-backwards",
    a_session_lives_as_long_as_it_says: "deadline-late",
    ids_do_not_meet: "group-ids-fold",
    namespaces_are_apart: "namespace-leak",
    a_lost_answer_is_not_a_refusal: "unknown-is-failure",
    a_beat_is_answered_by_the_backend: "deadline-from-reply",
    a_lost_answer_is_reported_as_such: "unknown-is-success",
    a_late_update_changes_nothing: "late-update",
    a_watch_goes_on_with_the_next_change: "resume-too-far",
    a_watch_repeats_nothing_of_its_view: "resume-too-early",
    a_lost_place_is_told: "place-lost",
    a_limit_of_permits_is_kept: "too-many-permits",
    a_session_that_ended_is_not_renewed: "renews-the-dead",
    a_place_ends_with_its_session: "dead-waiter",
    a_lock_ends_with_its_session: "orphan-lock",
    the_first_to_ask_is_the_first_to_be_granted: "last-first",
    a_deletion_is_told: "deletion-untold",
    the_loss_of_the_data_is_told: "loss-untold",
    a_close_ends_the_session: "close-leaks",
    a_leave_is_a_leave: "leave-ignored",
    tokens_survive_the_loss_of_the_data: "tokens-restart",
    a_raise_is_done: "raise-ignored",
}
