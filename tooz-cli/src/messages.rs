//! What the command says on standard error. `--quiet` leaves errors only, `--verbose` adds what goes well.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io::{self, IsTerminal, Write};
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use nix::sys::signal::SigSet;
use tokio::time::sleep;
use tooz::{Coordinator, Event};

const QUIET: u8 = 1;
const VERBOSE: u8 = 2;

/// One for the process: also a message of the deepest function is one of the command.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// So long the last lines may take.
const LAST: Duration = Duration::from_secs(1);

/// Longer waits are told.
const LONG: Duration = Duration::from_secs(2);

pub(crate) fn set(quiet: bool, verbose: bool) {
    let level = match (quiet, verbose) {
        (true, _) => QUIET,
        (false, true) => VERBOSE,
        (false, false) => 0,
    };
    LEVEL.store(level, Ordering::Relaxed);
}

pub(crate) fn is_quiet() -> bool {
    LEVEL.load(Ordering::Relaxed) == QUIET
}

fn is_verbose() -> bool {
    LEVEL.load(Ordering::Relaxed) == VERBOSE
}

/// Prints one line on standard error. It does not wait until the line is read: a thread writes it. So a reader that stands
/// still stops no renewal and no signal, and one that is gone is no failure.
pub(crate) fn error(text: &str) {
    // A backend's message may hold line breaks: print one line.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match WRITER.get_or_init(start_writer) {
        // A line beyond that is dropped: the reader stands still, and the lines must not take the memory, too.
        Some(writer) => drop(writer.try_send(Job::Line(text))),
        None => write(&text),
    }
}

fn write(text: &str) {
    let _ = writeln!(io::stderr(), "tooz: {text}");
}

/// Waits until all lines are written, but no longer than [`LAST`]: the reader may stand still.
pub(crate) fn flush() {
    let Some(Some(writer)) = WRITER.get() else { return };
    let (written, done) = sync_channel(1);
    if writer.try_send(Job::Flush(written)).is_ok() {
        let _ = done.recv_timeout(LAST);
    }
}

/// What the writer does.
enum Job {
    Line(String),
    Flush(SyncSender<()>),
}

static WRITER: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();

/// How many lines may wait for the reader.
const MOST_LINES: usize = 64;

/// Starts the thread that writes; `None` if the system has no thread left. Signals are for the other threads.
fn start_writer() -> Option<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(MOST_LINES);
    let before = SigSet::thread_get_mask().ok()?;
    SigSet::all().thread_set_mask().ok()?;
    let work = move || {
        for job in jobs {
            match job {
                Job::Line(text) => write(&text),
                Job::Flush(written) => drop(written.send(())),
            }
        }
    };
    let started = std::thread::Builder::new().name("messages".into()).spawn(work);
    before.thread_set_mask().ok()?;
    started.is_ok().then_some(sender)
}

/// What should be known, and is no error.
pub(crate) fn notice(text: &str) {
    if !is_quiet() {
        error(text);
    }
}

/// What goes as it should.
pub(crate) fn detail(text: &str) {
    if is_verbose() {
        error(text);
    }
}

/// Does `work`. If it takes long, and people watch, the line that `what` finds says what for.
pub(crate) async fn tell_if_long<F: Future>(work: F, what: impl AsyncFnOnce() -> String) -> F::Output {
    let line = async {
        if is_verbose() || (!is_quiet() && io::stderr().is_terminal()) {
            sleep(LONG).await;
            error(&what().await);
        }
        pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        output = Box::pin(work) => output,
        never = line => match never {},
    }
}

/// Does `work`, and tells by `say` what happens to the session meanwhile.
pub(crate) async fn tell_events<T>(
    coordinator: &Coordinator,
    say: fn(&Event),
    mut work: Pin<Box<dyn Future<Output = T> + '_>>,
) -> T {
    let mut events = coordinator.events();
    loop {
        tokio::select! {
            biased;
            output = &mut work => return output,
            Some(event) = events.next() => say(&event),
        }
    }
}

pub(crate) const AWAY: &str = "the backend does not answer";
pub(crate) const BACK: &str = "the backend answers again";
