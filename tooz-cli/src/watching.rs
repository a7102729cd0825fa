//! What `--watch` does: it follows changes until a signal arrives or its output is read no more, and tells when the backend is
//! away.

use std::io::stdout;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::{sleep, timeout};
use tooz::ErrorKind;

use crate::exit::{Code, DONE, Failure};
use crate::lock::unless_signaled;
use crate::messages::{self, AWAY, BACK};
use crate::run::Signals;

/// Between two questions whether the backend answers; a watch waits in silence for one that is away.
const ASK: Duration = Duration::from_secs(5);

/// Between two looks whether the output is read.
const LOOK: Duration = Duration::from_millis(250);

/// Does `follow` until a signal arrives or the other end of the output is closed. `ask` is any question to the backend.
pub(crate) async fn watch(
    signals: &mut Signals,
    follow: impl Future<Output = Result<(), Failure>>,
    ask: impl AsyncFn() -> tooz::Result<()>,
) -> Result<Code, Failure> {
    let watching = async {
        tokio::select! {
            biased;
            ended = follow => ended.map(|()| DONE),
            () = output_is_closed() => Err(Failure::silent(Code::BROKEN_PIPE)),
            () = tell_outages(ask) => Ok(DONE),
        }
    };
    unless_signaled(signals, watching).await?
}

/// Tells once when the backend stops answering, and once when it answers again. Never ends.
async fn tell_outages(ask: impl AsyncFn() -> tooz::Result<()>) {
    let mut is_away = false;
    loop {
        sleep(ASK).await;
        let answers = match timeout(ASK, ask()).await {
            Ok(Err(error)) => !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
            Ok(Ok(())) => true,
            Err(_) => false,
        };
        if answers == is_away {
            is_away = !answers;
            messages::notice(if is_away { AWAY } else { BACK });
        }
    }
}

/// Ends when the other end of the output is closed, if it is a pipe, a socket or a terminal. It looks now and then: a runtime
/// that is told of readiness wakes at once for an output that can be written.
async fn output_is_closed() {
    let output = stdout();
    loop {
        let mut state = [PollFd::new(output.as_fd(), PollFlags::empty())];
        let _ = poll(&mut state, PollTimeout::ZERO);
        let closed = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        if state[0].revents().is_some_and(|found| found.intersects(closed)) {
            return;
        }
        sleep(LOOK).await;
    }
}
