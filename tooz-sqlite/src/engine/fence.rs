//! The counter of fencing tokens, by the rule of [`tooz_local::fence`]: one row.
//!
//! A commit at `synchronous=normal` may be lost when the machine loses power. The granting transaction itself takes `next`.
//! A higher ceiling is committed alone at `synchronous=full`.

use tooz_core::FencingToken;
use tooz_local::fence;

use crate::engine::tx::{Fence, Tx};
use crate::error::{self, Fail, Work};

const STEP: i64 = fence::STEP.cast_signed();

/// The largest token after which another reboot still fits. A number above was not counted but written by hand.
const MOST: i64 = i64::MAX - 2 * STEP;

fn corrupt(what: &str) -> Fail {
    error::corrupt(format!("the fencing counter, table fence of the database, {what}")).into()
}

fn missing() -> Fail {
    corrupt("is missing; restore the database")
}

/// Takes the next token.
pub(crate) fn take(tx: &mut Tx<'_>) -> Work<FencingToken> {
    let mut fence = match tx.fence {
        Some(fence) => fence,
        None => tx
            .first("SELECT next, ceiling FROM fence", [], |row| {
                Ok(Fence { next: row.get(0)?, ceiling: row.get(1)? })
            })?
            .ok_or_else(missing)?,
    };
    if fence.next > MOST || fence.ceiling > MOST {
        let what = "is close to the largest number there is; correct it to above the largest token granted";
        return Err(corrupt(what));
    }
    let token = u64::try_from(fence.next).ok().and_then(FencingToken::new);
    let Some(token) = token.filter(|_| fence.ceiling >= fence.next) else {
        let what = "is damaged; correct it to above the largest token granted";
        return Err(corrupt(what));
    };
    if fence.next >= fence.ceiling {
        return Err(Fail::NeedCeiling);
    }
    fence.next += 1;
    // Kept over the jobs of one transaction and written once before its commit. A job that is rolled back leaves
    // a gap, which is allowed.
    tx.fence = Some(fence);
    Ok(token)
}

/// Writes the counter; the last step of every transaction that took a token.
pub(crate) fn flush(tx: &mut Tx<'_>) -> Work<()> {
    if let Some(fence) = tx.fence.take() {
        tx.run("UPDATE fence SET next = ?1", [fence.next])?;
    }
    Ok(())
}

/// Raises the ceiling; alone in its transaction, at `synchronous=full`. Does nothing if another process did it.
pub(crate) fn raise_ceiling(tx: &Tx<'_>) -> Work<()> {
    tx.run("UPDATE fence SET ceiling = ceiling + ?1 WHERE next >= ceiling AND ceiling <= ?2", [STEP, MOST])?;
    Ok(())
}

/// No token below `least` is given out after this transaction, which has to be synced: the ceiling rises with the counter,
/// so a reboot goes on above `least`, too.
pub(crate) fn raise_to(tx: &mut Tx<'_>, least: FencingToken) -> Work<()> {
    // Jobs of the same transaction may have taken tokens before, and may take some after this.
    flush(tx)?;
    let least = least.as_i64();
    let raised = tx.run(
        "UPDATE fence SET next = max(next, ?1), ceiling = max(ceiling, ?2)",
        (least, least.saturating_add(STEP)),
    )?;
    if raised == 0 { Err(missing()) } else { Ok(()) }
}

/// After a reboot: the numbers below the ceiling may have been given out, whatever `next` says.
pub(crate) fn skip_after_reboot(tx: &Tx<'_>) -> Work<()> {
    // The right-hand sides see the row as it was.
    tx.run(
        "UPDATE fence SET next = ceiling, ceiling = ceiling + ?1, boot_id = ?2 WHERE boot_id <> ?2 AND ceiling <= ?3",
        (STEP, &tx.site.boot_id, MOST),
    )?;
    Ok(())
}
