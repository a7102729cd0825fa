//! Operators: who holds it, taking it away, and files that somebody tidied up.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::prelude::*;
use super::steps::asks;
use crate::kit::{Call, Fate};

pub(super) const CASES: &[Case] = &[
    case!(incident_hazelcast_1055, "L10"),
    case!(incident_terraform_27033, "L10"),
    case!(incident_terraform_14513, "L7", "L3").ttl().kit(),
    case!(incident_etcd_22082, "L4", "L10"),
    case!(incident_etcd_22115, "L4", "L5").kit(),
    case!(incident_filelock_494, "L1", "X5").files(),
];

/// L10: who holds it, since when, in which mode, and how many wait, asked by somebody who has nothing to do with it.
async fn incident_hazelcast_1055(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let operator = h.coordinator("operator").await?;
    let guard = taken(&a, "x").await?;
    let waiting = asks(&h, b.lock("x")?).await;
    h.waiters("x", 1).await?;
    let shown = operator.lock("x")?.holders().await?;
    let [holder] = &shown.holders[..] else { return Err(format!("{shown:?}").into()) };
    ensure(holder.member.as_ref() == Some(a.member()), format!("{holder:?}"))?;
    ensure(holder.token == Some(guard.token()) && holder.mode == LockMode::Exclusive, format!("{holder:?}"))?;
    ensure(holder.since.is_some(), format!("{holder:?}"))?;
    guard.release().await?;
    let next = h.soon_done("the hand-over", waiting).await???;
    let shown = operator.lock("x")?.holders().await?.holders;
    let right = shown.len() == 1 && shown[0].member.as_ref() == Some(b.member());
    ensure(right && shown[0].token == Some(next.token()), format!("{shown:?}"))
}

/// L10: breaking shows what was broken, and can be told to break nothing else.
async fn incident_terraform_27033(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let operator = h.coordinator("operator").await?;
    let guard = taken(&a, "x").await?;
    let seen = operator.lock("x")?.holders().await?.holders.first().and_then(|holder| holder.token);
    let seen = seen.ok_or("a holder without a token")?;
    // While the operator thinks about it, the lock moves.
    guard.release().await?;
    let next = taken(&b, "x").await?;
    let broken = operator.lock("x")?.break_token(seen, "it looked stuck").await?;
    ensure(broken.is_empty() && next.is_held(), format!("another holder was broken: {broken:?}"))?;
    let broken = operator.lock("x")?.break_token(next.token(), "this one is stuck").await?;
    let [victim] = &broken[..] else { return Err(format!("{broken:?}").into()) };
    ensure(victim.member.as_ref() == Some(b.member()), format!("{victim:?}"))?;
    ensure(victim.token == Some(next.token()) && victim.since.is_some(), format!("{victim:?}"))?;
    let why = within("the loss", h.some_ttl() + h.soon(), next.lost()).await?;
    let told = LossReason::Broken { by: Some(operator.member().clone()), why: "this one is stuck".into() };
    ensure(why == told, format!("{why:?}"))
}

/// L7, L3: somebody deletes the record by hand: its holder notices, and the next token is larger all the same.
async fn incident_terraform_14513(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    let guard = taken(&a, "x").await?;
    let waiting = asks(&h, b.lock("x")?).await;
    h.waiters("x", 1).await?;
    h.kit()?.vanish(h.namespace(), "x");
    let next = within("the lock that nobody holds", h.some_ttl(), waiting).await???;
    ensure(next.token() > guard.token(), format!("{} after {}", next.token(), guard.token()))?;
    let why = within("the loss", h.some_ttl(), guard.lost()).await?;
    ensure(why == LossReason::Vanished && next.is_held(), format!("{why:?}"))
}

/// L4, L10: a release that comes late finds the next grant of the same coordinator, and leaves it alone.
async fn incident_etcd_22082(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for late_is_dropped in [false, true] {
        let old = taken(&a, "x").await?;
        b.lock("x")?.break_lock("enough").await?;
        let new = within("the lock", h.some_ttl() + h.soon(), a.lock("x")?.acquire()).await??;
        if late_is_dropped {
            drop(old);
        } else {
            ensure(old.release().await? == Released::WasNotHolder, "the broken grant was released")?;
        }
        h.pass(millis(50)).await; // whatever comes late
        ensure(new.is_held(), "a late release took the next grant")?;
        held_by_another(&b, "x").await?;
        ensure(new.release().await? == Released::Released, "the holder's release found nothing")?;
    }
    Ok(())
}

/// L4, L5: the answer to a release was lost; whatever repeats it must not find the next grant of the same coordinator.
async fn incident_etcd_22115(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    for fate in [Fate::AnswerLost, Fate::RequestLost] {
        for dropped in [false, true] {
            let old = within("the lock", h.gone(), a.lock("x")?.acquire()).await??;
            h.kit()?.next("a", Call::Release, 1, fate);
            h.kit()?.next("a", Call::Withdraw, 1, fate);
            if dropped {
                drop(old);
            } else {
                drop(old.release().await); // it may say that it does not know
            }
            let new = within("the lock again", h.gone(), a.lock("x")?.acquire()).await??;
            h.pass(h.some_ttl()).await; // whatever comes late
            ensure(new.is_held(), "a repeated release took the next grant")?;
            held_by_another(&b, "x").await?;
            let shown = b.lock("x")?.holders().await?.holders;
            ensure(shown.len() == 1 && shown[0].token == Some(new.token()), format!("{shown:?}"))?;
            ensure(new.release().await? == Released::Released, "the holder's release found nothing")?;
        }
    }
    Ok(())
}

fn files(directory: &Path, found: &mut BTreeMap<PathBuf, u64>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            files(&path, found)?;
        } else {
            found.insert(path.clone(), std::fs::symlink_metadata(&path)?.ino());
        }
    }
    Ok(())
}

/// L1, X5: releasing removes no file that others may be about to lock: what stands there stays the same file.
async fn incident_filelock_494(h: Harness) -> Outcome {
    let (a, b) = h.pair().await?;
    taken(&a, "x").await?.release().await?;
    taken(&b, "x").await?.release().await?;
    let mut before = BTreeMap::new();
    files(h.directory()?, &mut before)?;
    ensure(!before.is_empty(), "there are no files")?;
    for c in [&a, &b, &a] {
        let guard = taken(c, "x").await?;
        held_by_another(if c.member() == a.member() { &b } else { &a }, "x").await?;
        guard.release().await?;
    }
    let mut after = BTreeMap::new();
    files(h.directory()?, &mut after)?;
    let gone: Vec<_> = before.iter().filter(|(path, inode)| after.get(*path) != Some(inode)).collect();
    ensure(gone.is_empty(), format!("removed or replaced by a release: {gone:?}"))
}
