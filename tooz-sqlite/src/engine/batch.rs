//! Running jobs: a batch of jobs becomes one transaction, so that one sync and one lock serve many callers.

use std::time::Duration;

use tooz_core::driver::Instant;
use tooz_core::{Error, ErrorKind, Result};

use crate::engine::database::Database;
use crate::engine::jobs::{Job, Level};
use crate::engine::state::{Engine, REAP_LIMIT};
use crate::engine::tx::{Effect, Tx};
use crate::engine::{fence, queue};
use crate::error::{self, Fail, Work};

/// The most jobs of one transaction: beyond this the first of them waits noticeably for the last.
pub(crate) const MOST_JOBS: usize = 256;
/// How long one attempt waits for another process's transaction before the reads of the batch run.
const SLICE: Duration = Duration::from_millis(20);
/// How long raising the ceiling may wait: the jobs that need it have waited for the write lock already.
const CEILING_LIMIT: Duration = Duration::from_secs(10);

type Batch = Vec<Job>;

/// How a transaction ended.
enum Ended {
    /// Every job has its answer, except those here, which need a higher ceiling.
    Done(Batch),
    /// Nothing was done: another process writes.
    Busy(Batch),
    /// Nothing was done: a job failed and must not undo the others, so each needs a savepoint.
    Carefully(Batch),
}

fn fail(jobs: Batch, error: &Error) {
    for job in jobs {
        job.call.finish(Err(error.clone()));
    }
}

impl Engine {
    /// Runs jobs; returns `false` if it has put jobs back in front of the queue since they have to wait.
    pub(crate) fn run(&mut self, jobs: Batch) -> bool {
        let Some(deadline) = jobs.iter().map(|job| job.deadline).min() else { return true };
        if let Err(error) = self.open(deadline) {
            fail(jobs, &error);
            return true;
        }
        // First without savepoints: they would be a third of the statements, and jobs hardly ever fail.
        let ended = match self.transact(jobs, false) {
            Ended::Carefully(jobs) => self.transact(jobs, true),
            ended => ended,
        };
        match ended {
            Ended::Done(again) if again.is_empty() => {}
            Ended::Done(again) => match self.raise_ceiling() {
                Ok(()) => self.jobs.put_back(again),
                Err(error) => fail(again, &error),
            },
            Ended::Busy(jobs) | Ended::Carefully(jobs) => {
                let (reads, writes): (Batch, Batch) =
                    jobs.into_iter().partition(|job| job.level == Level::Read);
                // Reads do not wait for writers. A read that is still busy meets a recovery, and waits with the writes.
                let mut waiting = Vec::new();
                if !reads.is_empty() {
                    match self.transact(reads, false) {
                        Ended::Busy(jobs) | Ended::Done(jobs) | Ended::Carefully(jobs) => waiting = jobs,
                    }
                }
                waiting.extend(writes);
                self.postpone(waiting);
                return false;
            }
        }
        true
    }

    /// Gives up the jobs whose time is over and puts the others back.
    fn postpone(&mut self, jobs: Batch) {
        let now = self.now();
        let (late, waiting): (Batch, Batch) = jobs.into_iter().partition(|job| job.deadline <= now);
        if !late.is_empty() {
            fail(late, &self.busy_error());
        }
        self.jobs.put_back(waiting);
    }

    fn busy_error(&self) -> Error {
        let who = match self.database.as_ref().and_then(Database::writer) {
            Some(pid) if pid > 0 => format!(
                "process {pid} is inside a write transaction and does not end it; check whether it is \
                 stopped, then continue or end it"
            ),
            Some(_) => {
                "a process of another container is inside a write transaction and does not end it".into()
            }
            None => "other processes held the write lock the whole time; try again".into(),
        };
        Error::new(ErrorKind::Unavailable, format!("{}: {who}", self.jobs.paths.database.display()))
    }

    fn transact(&mut self, mut jobs: Batch, careful: bool) -> Ended {
        let now = self.now();
        let Self { database: Some(database), site, sessions, probes, .. } = self else {
            return Ended::Busy(jobs); // not reached: run() opens it
        };
        let Some(site) = site.as_deref() else { return Ended::Busy(jobs) };
        let level = jobs.iter().map(|job| job.level).max().unwrap_or(Level::Read);
        let deadline = jobs.iter().map(|job| job.deadline).min().unwrap_or(now);
        database.wait_until(deadline.min(now + SLICE));
        match begin(database, level) {
            Ok(()) => {}
            Err(error) if error::is_busy(&error) => return Ended::Busy(jobs),
            Err(error) => {
                fail(jobs, &error::native(error));
                return Ended::Done(Vec::new());
            }
        }
        // One failing job must not undo the others; a single job is undone with its transaction.
        let savepoints = careful && level != Level::Read;
        let optimistic = !careful && level != Level::Read && jobs.len() > 1;
        let mut tx = Tx::new(&database.connection, site, sessions, probes);
        let mut outcomes: Vec<Result<(), Fail>> = Vec::with_capacity(jobs.len());
        let mut broken = None;
        for job in &mut jobs {
            match run_one(&mut tx, job, savepoints) {
                Ok(outcome) => {
                    let failed = outcome.is_err();
                    outcomes.push(outcome);
                    if failed && optimistic {
                        break;
                    }
                }
                Err(error) => {
                    // The transaction itself is gone (disk full, for example), and every job with it.
                    broken = Some(error);
                    break;
                }
            }
        }
        // While another process recovers the log, or closes it as the last, even reads have to wait.
        let busy = |outcome: &_| matches!(outcome, Err(Fail::Sql(error)) if error::is_busy(error));
        let locked = level == Level::Read && outcomes.iter().any(busy);
        let single_failed = !savepoints && level != Level::Read && outcomes.iter().any(Result::is_err);
        let mut effects = std::mem::take(&mut tx.effects);
        let committed = match broken {
            Some(error) => Err(error.into_error()),
            None if single_failed => Ok(false),
            None => fence::flush(&mut tx)
                .map_err(Fail::into_error)
                .and_then(|()| statement(database, "COMMIT").map_err(error::commit))
                .map(|()| true),
        };
        if !database.connection.is_autocommit()
            && let Err(error) = statement(database, "ROLLBACK")
        {
            tracing::warn!(%error, "a transaction could not be rolled back; the database is opened again");
            self.database = None;
        }
        if locked {
            return Ended::Busy(jobs);
        }
        if optimistic && committed.as_ref().is_ok_and(|committed| !committed) {
            return Ended::Carefully(jobs);
        }
        match committed {
            Ok(committed) => {
                if !committed {
                    effects.retain(is_suspicion);
                }
                self.apply(effects);
                let mut again = Vec::new();
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(()) => job.call.finish(Ok(())),
                        Err(Fail::NeedCeiling) => again.push(job),
                        Err(fail) => job.call.finish(Err(fail.into_error())),
                    }
                }
                Ended::Done(again)
            }
            Err(error) => {
                fail(jobs, &error);
                Ended::Done(Vec::new())
            }
        }
    }

    /// INVARIANT: alone in its transaction and synced, before any token at or above the old ceiling is given out.
    fn raise_ceiling(&mut self) -> Result<()> {
        self.write(Level::Durable, self.now() + CEILING_LIMIT, |tx| fence::raise_ceiling(tx))
    }

    /// A reading transaction of the thread itself.
    pub(crate) fn read<T>(&mut self, work: impl FnMut(&mut Tx<'_>) -> Work<T>) -> Result<T> {
        self.write(Level::Read, self.now() + REAP_LIMIT, work)
    }

    /// A transaction of the thread itself.
    pub(crate) fn write<T>(
        &mut self,
        level: Level,
        deadline: Instant,
        mut work: impl FnMut(&mut Tx<'_>) -> Work<T>,
    ) -> Result<T> {
        for _ in 0..2 {
            let (Some(database), Some(site)) = (self.database.as_mut(), self.site.as_deref()) else {
                return Err(Error::new(ErrorKind::Unavailable, "the database is not open"));
            };
            database.wait_until(deadline);
            if let Err(error) = begin(database, level) {
                return Err(if error::is_busy(&error) { self.busy_error() } else { error::native(error) });
            }
            let mut tx = Tx::new(&database.connection, site, &self.sessions, &mut self.probes);
            let outcome = work(&mut tx).and_then(|answer| {
                queue::settle(&mut tx)?;
                fence::flush(&mut tx)?;
                Ok(answer)
            });
            let effects = std::mem::take(&mut tx.effects);
            let outcome = match outcome {
                Ok(answer) => statement(database, "COMMIT").map(|()| answer).map_err(Fail::Sql),
                Err(fail) => Err(fail),
            };
            if !database.connection.is_autocommit() {
                statement(database, "ROLLBACK").map_err(error::native)?;
            }
            match outcome {
                Ok(answer) => {
                    self.apply(effects);
                    return Ok(answer);
                }
                Err(Fail::NeedCeiling) => {
                    // Handing on took the last token of the range. Raising takes none, so this goes one deep.
                    self.raise_ceiling()?;
                }
                Err(fail) => return Err(fail.into_error()),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the range of fencing tokens is too small for one transaction",
        ))
    }
}

/// Begins a transaction. A read sees a snapshot and waits for no other process. A write begins as one, since a write that
/// began as a read would fail at once if another process committed in between.
fn begin(database: &mut Database, level: Level) -> rusqlite::Result<()> {
    if level == Level::Read {
        return statement(database, "BEGIN");
    }
    database.set_full(level == Level::Durable)?;
    statement(database, "BEGIN IMMEDIATE")?;
    database.reset_wait();
    Ok(())
}

fn statement(database: &Database, sql: &str) -> rusqlite::Result<()> {
    database.connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Whether an effect outlives a rollback: a suspicion comes from what the kernel said, not from what the transaction did.
fn is_suspicion(effect: &Effect) -> bool {
    matches!(effect, Effect::Suspect(_))
}

/// Runs one job. The outer error is that of the whole transaction.
fn run_one(tx: &mut Tx<'_>, job: &mut Job, savepoint: bool) -> Result<Result<(), Fail>, Fail> {
    let savepoint = savepoint && job.level != Level::Read;
    let (effects, fence) = (tx.effects.len(), tx.fence);
    if savepoint {
        tx.run("SAVEPOINT job", [])?;
    }
    let outcome = job.call.run(tx).and_then(|()| queue::settle(tx));
    if outcome.is_err() {
        tx.unsettled.clear();
        let kept: Vec<_> = tx.effects.drain(effects..).filter(is_suspicion).collect();
        tx.effects.extend(kept);
        tx.fence = fence;
        if tx.connection.is_autocommit() && job.level != Level::Read {
            return Err(outcome.err().unwrap_or(Fail::NeedCeiling));
        }
    }
    if savepoint {
        if outcome.is_err() {
            tx.run("ROLLBACK TO job", [])?;
        }
        tx.run("RELEASE job", [])?;
    }
    Ok(outcome)
}
