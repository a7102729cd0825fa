//! How long `tooz` tries to get a lock or leadership, from its start: connecting counts.

use std::time::Duration;

use tokio::time::timeout;
use tooz::{Coordinator, ErrorKind};

use crate::args::Guarded;
use crate::backend::{connect, connect_within, no_answer};
use crate::exit::{Closing, Failure, QUICK};
use crate::guard::boot_time;
use crate::settings::Backend;

/// `--try` gives up when the backend has not answered for this long.
const TRY: Duration = Duration::from_secs(2);

/// What to do if the lock is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Never,
    For(Duration),
    Forever,
}

/// The limit, and when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    wait: Wait,
    /// The longest time without the backend's word, and when it is over, on the boot-time clock.
    limit: Option<(Duration, Duration)>,
}

impl Patience {
    /// As the options say, from now on.
    pub(crate) fn of(options: &Guarded) -> Self {
        let until = |limit| Some((limit, boot_time() + limit));
        match (options.once, options.wait) {
            (true, _) | (false, Some(Duration::ZERO)) => Self { wait: Wait::Never, limit: until(TRY) },
            (false, Some(limit)) => Self { wait: Wait::For(limit), limit: until(limit) },
            (false, None) => Self { wait: Wait::Forever, limit: None },
        }
    }

    /// Connects.
    pub(crate) async fn connect(self, backend: &Backend) -> Result<Coordinator, Failure> {
        match (self.wait, self.limit) {
            (Wait::For(limit), Some(_)) => connect_within(backend, limit, true).await,
            (_, Some((limit, _))) => connect_within(backend, limit, false).await,
            (_, None) => connect(backend).await,
        }
    }

    /// The answer to a question that has to be answered before an attempt.
    pub(crate) async fn ask<T>(self, question: impl Future<Output = tooz::Result<T>>) -> Result<T, Failure> {
        let Some((limit, end)) = self.limit else { return Ok(question.await?) };
        let answer = timeout(end.saturating_sub(boot_time()), question).await;
        answer.map_err(|_| no_answer(limit))?.map_err(|error| Failure::from(error).closing(Closing::Quick))
    }

    /// Acquires by `attempt`, which is told how long to wait for the holder. `None`: the backend says that it is taken.
    pub(crate) async fn acquire<T>(
        self,
        attempt: impl AsyncFn(Wait) -> tooz::Result<Option<T>>,
    ) -> Result<Option<T>, Failure> {
        let Some((limit, end)) = self.limit else { return Ok(attempt(self.wait).await?) };
        let left = end.saturating_sub(boot_time());
        let (wait, word) = match self.wait {
            // The backend's last word takes an exchange.
            Wait::For(_) => (Wait::For(left), left + QUICK),
            other => (other, left),
        };
        match timeout(word, attempt(wait)).await {
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => {
                Err(Failure::from(error).closing(Closing::Quick))
            }
            Ok(result) => Ok(result?),
            Err(_) => Err(no_answer(limit)),
        }
    }
}
