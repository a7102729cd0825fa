//! `tooz lock`: runs a command under a lock.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use tooz::driver::{Holders, LockMode};
use tooz::{Coordinator, Deadline, Event, LockGuard};

use crate::args::{Guarded, Lock};
use crate::backend::close;
use crate::exit::{Closing, Code, Failure, QUICK};
use crate::guard::descendants::{Process, some_are_hidden};
use crate::held::Wanted;
use crate::messages::{self, AWAY, BACK};
use crate::patience::{Patience, Wait};
use crate::run::{Ended, Hold, Job, Signals, list, run};
use crate::settings::Backend;
use crate::text::{self, bytes};

impl Hold for LockGuard {
    fn deadline(&self) -> Option<Deadline> {
        LockGuard::deadline(self)
    }

    async fn lost(&self) -> String {
        LockGuard::lost(self).await.to_string()
    }

    fn reason(&self) -> Option<String> {
        self.loss_signal().reason().map(|reason| reason.to_string())
    }
}

pub(crate) async fn lock(backend: &Backend, options: &Lock) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let patience = Patience::of(&options.guarded);
    let coordinator = unless_signaled(&mut signals, patience.connect(backend)).await??;
    let wanted = Wanted::lock(&coordinator, backend, bytes(&options.name));
    let holding = hold(&coordinator, backend, options, &wanted, patience, &mut signals);
    let result = messages::tell_events(&coordinator, tell_outage, Box::pin(holding)).await;
    close(&coordinator, result).await
}

async fn hold(
    coordinator: &Coordinator,
    backend: &Backend,
    options: &Lock,
    held: &Wanted,
    patience: Patience,
    signals: &mut Signals,
) -> Result<Code, Failure> {
    let lock = coordinator.lock(bytes(&options.name))?;
    let lock = if options.shared { lock.shared() } else { lock };
    let wanted = &options.guarded;
    let acquiring = async |limit| match limit {
        Wait::Never => lock.try_acquire().await,
        Wait::For(limit) => lock.acquire_within(limit).await,
        Wait::Forever => lock.acquire().await.map(Some),
    };
    let what = format!("lock \"{}\"", lock.name());
    if held.may_be_held() {
        let ours = if options.shared { LockMode::Shared } else { LockMode::Exclusive };
        for holder in unless_signaled(signals, patience.ask(lock.holders())).await??.holders {
            held.refuse_if_held(&what, holder.token, holder.mode, ours)?;
        }
    }
    let held_by = async || held_by(timeout(QUICK, lock.holders()).await.ok().and_then(Result::ok).as_ref());
    let waiting = messages::tell_if_long(patience.acquire(acquiring), async || {
        format!("waiting for {what}: {}", held_by().await)
    });
    let Some(guard) = unless_signaled(signals, waiting).await?? else {
        return Err(not_acquired(&format!("did not acquire {what}: {}", held_by().await), wanted));
    };
    messages::detail(&format!("acquired {what}, token {}", guard.token()));
    let job = Job {
        command: &options.command,
        backend,
        environment: vec![
            ("TOOZ_LOCK_NAME", options.name.clone()),
            ("TOOZ_FENCING_TOKEN", guard.token().get().to_string().into()),
            ("TOOZ_MEMBER", member_text(coordinator)),
            held.got(guard.token().get()),
        ],
        grace: wanted.ending.kill_grace,
        children: wanted.ending.children,
        held: "lock",
    };
    let ended = run(&job, &guard, signals).await.map_err(|error| cannot_start(&error))?;
    conclude(&what, ended, guard.release(), wanted).await
}

/// Stops waiting when a signal asks `tooz` to end. Dropping the future leaves no lock and no place in a queue.
pub(crate) async fn unless_signaled<F: Future>(signals: &mut Signals, work: F) -> Result<F::Output, Failure> {
    tokio::select! {
        biased;
        // If both are ready, the result wins, and the signal then reaches the command.
        output = work => Ok(output),
        caught = signals.next() => Err(Failure::silent(Code::by_signal(caught.signal as i32))),
    }
}

/// The member's name as the environment carries it.
pub(crate) fn member_text(coordinator: &Coordinator) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(coordinator.member().as_bytes().to_vec())
}

pub(crate) fn cannot_start(error: &std::io::Error) -> Failure {
    Failure::new(
        crate::exit::CANNOT_RUN,
        format!(
            "cannot start the guard process ({}), so the command did not run; check that /proc is \
             mounted",
            crate::exit::told(error)
        ),
    )
}

/// Names the holder and since when it holds the lock.
fn held_by(holders: Option<&Holders>) -> String {
    let holders = holders.map(|all| all.holders.iter().map(text::holder).collect::<Vec<_>>());
    match holders {
        Some(holders) if !holders.is_empty() => format!("held by {}", holders.join(" and by ")),
        _ => "another member held it or waits before us".into(),
    }
}

/// The lock or leadership is taken: an answer, and no error.
pub(crate) fn not_acquired(why: &str, options: &Guarded) -> Failure {
    let remedy = if options.once || options.wait == Some(Duration::ZERO) {
        "try again, or wait with --wait"
    } else {
        "try again, or wait longer"
    };
    let why = if messages::is_quiet() { String::new() } else { format!("{why}; {remedy}") };
    Failure::new(options.exit_not_acquired, why).closing(Closing::Quick)
}

/// Tells that the backend is away while a lock or leadership is held or waited for.
pub(crate) fn tell_outage(event: &Event) {
    match event {
        Event::Suspended => messages::detail(AWAY),
        Event::Recovered => messages::detail(BACK),
        _ => {}
    }
}

/// Says what became of the command after a loss.
pub(crate) fn ended_all(left: &[Process]) -> String {
    let what = match left {
        [] => "tooz ended the command and all that it started".to_owned(),
        left => format!("tooz could not end {}; end it by hand", list(left)),
    };
    let hidden = "; /proc hides processes of other users (hidepid), which tooz does not find then";
    what + if some_are_hidden() { hidden } else { "" }
}

/// Releases the lock or leadership, and returns the exit code. After a loss nothing is released: the next holder may have it,
/// or the backend is away.
pub(crate) async fn conclude(
    what: &str,
    ended: Ended,
    release: impl Future<Output = tooz::Result<tooz::driver::Released>>,
    options: &Guarded,
) -> Result<Code, Failure> {
    let lost = |why: &str| Failure::new(options.exit_lost, format!("lost {what}: {why}"));
    if let Ended::Lost { why, left } = &ended {
        return Err(lost(&format!("{why}; {}", ended_all(left))).closing(Closing::IfAlive));
    }
    match (ended, release.await) {
        (_, Ok(tooz::driver::Released::WasNotHolder)) => {
            Err(lost("it was no longer held when the command ended; check what the command did"))
        }
        (ended, released) => {
            if let Err(error) = released {
                messages::error(&format!(
                    "cannot release {what} ({error}); the backend frees it when the session ends"
                ));
            }
            Ok(match ended {
                Ended::Exited(code) => Code::of_command(code),
                Ended::Signaled(signal) => Code::by_signal(signal),
                Ended::Lost { .. } => options.exit_lost,
            })
        }
    }
}
