//! What the command says on standard error. `--quiet` leaves errors only, `--verbose` adds what goes well.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tooz::{Coordinator, Event};

const QUIET: u8 = 1;
const VERBOSE: u8 = 2;

/// One for the process: also a message of the deepest function is one of the command.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Longer waits are told.
const LONG: Duration = Duration::from_secs(2);

pub(crate) fn set(quiet: bool, verbose: bool) {
    LEVEL.store(
        if quiet {
            QUIET
        } else if verbose {
            VERBOSE
        } else {
            0
        },
        Ordering::Relaxed,
    );
}

pub(crate) fn is_quiet() -> bool {
    LEVEL.load(Ordering::Relaxed) == QUIET
}

fn is_verbose() -> bool {
    LEVEL.load(Ordering::Relaxed) == VERBOSE
}

/// One line, whatever happens.
pub(crate) fn error(text: &str) {
    // A backend's message may hold line breaks: print one line.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    eprintln!("tooz: {text}");
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
        if is_verbose() || (!is_quiet() && std::io::stderr().is_terminal()) {
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
