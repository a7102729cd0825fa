//! What handles, guards and reasons show of themselves in a log.

use std::fmt::Debug;

use crate::common::*;
use tooz_core::{Capabilities, LossReason, MemberId};

#[track_caller]
fn shows(value: &impl Debug, words: &[&str]) {
    let text = format!("{value:?}");
    for word in words {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_handle_shows_which_one_it_is_and_how_it_stands() {
    let c = connect("memory://shown?ttl=15s", "a").await;
    let lock = c.lock("reindex").unwrap();
    shows(&lock, &["Lock", "reindex", "Exclusive"]);
    shows(&lock.shared(), &["reindex", "Shared"]);
    let guard = lock.acquire().await.unwrap();
    let token = guard.token().to_string();
    shows(&guard, &["LockGuard", "reindex", "Exclusive", &token, "held: true"]);
    shows(&guard.loss_signal(), &["LossSignal", "None"]);
    let signal = guard.loss_signal();
    guard.release().await.unwrap();
    shows(&signal, &["LossSignal", "Released"]);

    let group = c.group("workers").unwrap();
    group.join_or_create(Capabilities::none()).await.unwrap();
    shows(&group, &["Group", "workers"]);
    let mut watch = group.watch().await.unwrap();
    shows(&watch, &["GroupWatch", "started: false"]);
    watch.next().await.unwrap().unwrap();
    shows(&watch, &["started: true"]);

    let election = c.election("workers").unwrap();
    shows(&election, &["Election", "workers"]);
    let mut observer = election.observe().await.unwrap();
    shows(&observer, &["Observer", "None"]);
    observer.next().await.unwrap().unwrap();
    shows(&observer, &["Vacant"]);
    let lead = election.campaign().await.unwrap();
    assert_eq!((lead.group().as_bytes(), election.group().as_bytes()), (&b"workers"[..], &b"workers"[..]));
    shows(&lead, &["Leadership", "workers", &lead.term().to_string(), "held: true"]);
    assert!(lead.deadline().is_some_and(|deadline| !deadline.has_passed()));

    shows(&c.heart(), &["Heart", "is_alive: true", "beats"]);
    shows(&c.events(), &["Events"]);
    shows(&tooz_core::driver::Clock::boot(), &["Clock(boot)"]);
    shows(&tooz_core::driver::Clock::tokio(std::time::SystemTime::UNIX_EPOCH), &["Clock(tokio)"]);
    shows(&tooz_core::driver::Clock::boot().now(), &["Instant("]);
}

#[test]
fn a_reason_of_a_loss_can_be_read() {
    let by = Some(MemberId::new("operator").unwrap());
    for (reason, words) in [
        (LossReason::Expired, "not renewed in time"),
        (LossReason::Unreachable, "did not answer"),
        (LossReason::Broken { by, why: "stuck".into() }, "broken by \"operator\": stuck"),
        (LossReason::Broken { by: None, why: "stuck".into() }, "broken: stuck"),
        (LossReason::Vanished, "record is gone"),
        (LossReason::SessionClosed, "session was closed"),
        (LossReason::Released, "released"),
    ] {
        assert!(reason.to_string().contains(words), "{reason}");
    }
}
