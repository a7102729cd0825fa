//! Connections to the backend.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tooz::{Builder, Characteristics, Coordinator, ErrorKind, Liveness, MAX_NAME_BYTES, Viewer};

use crate::exit::{Closing, Code, Failure, QUICK, UNAVAILABLE};
use crate::guard::boot_time;
use crate::messages::{AWAY, tell_if_long};
use crate::settings::Backend;
use crate::text::bytes;

/// Between two attempts to connect to a backend that is away.
const PAUSE: Duration = Duration::from_millis(200);

/// Connects as the options say.
pub(crate) async fn connect(backend: &Backend) -> Result<Coordinator, Failure> {
    tell_if_long(builder(backend)?.connect(), not_yet).await.map_err(|error| failed(backend, error))
}

/// Ends the session. What cannot be released ends with it; the caller wants the command's own exit code.
pub(crate) async fn close(coordinator: &Coordinator, result: Result<Code, Failure>) -> Result<Code, Failure> {
    let closing = result.as_ref().map_or_else(Failure::how_to_close, |_| Closing::Patient);
    if closing == Closing::Patient {
        let _ = coordinator.close().await;
        return result;
    }
    let told = result.map_err(Failure::told);
    let is_worth_it = match coordinator.liveness() {
        Liveness::Alive { .. } => true,
        Liveness::Suspended { .. } => closing == Closing::Quick,
        _ => false,
    };
    if is_worth_it {
        let _ = timeout(QUICK, coordinator.close()).await;
    }
    told
}

/// Connects within `limit`. If `again`, a backend that is away is tried again until then. The session of an attempt that
/// comes too late is closed.
pub(crate) async fn connect_within(
    backend: &Backend,
    limit: Duration,
    again: bool,
) -> Result<Coordinator, Failure> {
    let end = boot_time() + limit;
    let left = || end.saturating_sub(boot_time());
    let attempts = async {
        loop {
            let mut connecting = Box::pin(builder(backend)?.connect());
            let error = match timeout(left(), &mut connecting).await {
                Ok(Ok(coordinator)) => return Ok(Ok(coordinator)),
                Ok(Err(error)) => error,
                Err(_) => return Ok(Err(connecting)),
            };
            let is_away = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
            if !again || !is_away || timeout(left(), sleep(PAUSE)).await.is_err() {
                return Err(failed(backend, error));
            }
        }
    };
    match tell_if_long(attempts, not_yet).await? {
        Ok(coordinator) => Ok(coordinator),
        Err(connecting) => {
            let told = no_answer(limit).told();
            let leaving = async {
                if let Ok(coordinator) = connecting.await {
                    let _ = coordinator.close().await;
                }
            };
            let _ = timeout(QUICK, leaving).await;
            Err(told)
        }
    }
}

/// The line about a backend that has not answered yet.
pub(crate) async fn not_yet() -> String {
    format!("{AWAY} yet; waiting for it")
}

/// An error of connecting. Where the URL is wrong it says what named it.
fn failed(backend: &Backend, error: tooz::Error) -> Failure {
    let source = match error.kind() {
        ErrorKind::InvalidUrl | ErrorKind::InvalidOption | ErrorKind::UnknownScheme => {
            format!(" (the backend is {})", backend.source)
        }
        _ => String::new(),
    };
    Failure::from(error).adding(&source)
}

/// The backend did not answer in time.
pub(crate) fn no_answer(limit: Duration) -> Failure {
    let why =
        format!("the backend did not answer within {limit:?}; check that it runs, or wait longer (--wait)");
    Failure::new(UNAVAILABLE, why).closing(Closing::Quick)
}

/// Connects without a session. That works on a full store, and for a user who may only read.
pub(crate) async fn view(backend: &Backend) -> Result<Viewer, Failure> {
    tell_if_long(builder(backend)?.view(), not_yet).await.map_err(|error| failed(backend, error))
}

/// The answer to a question. A long wait for it is told.
pub(crate) async fn ask<T>(question: impl Future<Output = tooz::Result<T>>) -> Result<T, Failure> {
    Ok(tell_if_long(question, not_yet).await?)
}

/// A builder for what coordinates processes: a backend within one process would exclude no other process.
pub(crate) fn builder(backend: &Backend) -> Result<Builder, Failure> {
    if let Some(directory) = backend.own_directory()? {
        create_private(&directory)?;
    }
    Ok(any_builder(backend).require(Characteristics::DISTRIBUTED_ACROSS_PROCESSES))
}

/// A builder with the URL, the member and the options.
pub(crate) fn any_builder(backend: &Backend) -> Builder {
    let member = backend.member.as_deref().map_or_else(default_member, |member| bytes(member).to_vec());
    let mut builder = Coordinator::builder(backend.url.as_str(), member);
    if let Some(ttl) = backend.ttl() {
        builder = builder.ttl(ttl);
    }
    if let Some(namespace) = backend.namespace() {
        builder = builder.namespace(namespace);
    }
    builder
}

/// `host-pid-random`: unique, and tells an operator the process.
fn default_member() -> Vec<u8> {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = bytes(&host);
    let rest = format!("-{}", random_suffix());
    let host = &host[..host.len().min(MAX_NAME_BYTES - rest.len())];
    [if host.is_empty() { b"localhost" } else { host }, rest.as_bytes()].concat()
}

/// `pid-random`: no other process has the same suffix.
pub(crate) fn random_suffix() -> String {
    let mut random = [0; 4];
    // Without randomness of the system the process id still tells members of this machine apart.
    let _ = getrandom::fill(&mut random);
    format!("{}-{:08x}", std::process::id(), u32::from_ne_bytes(random))
}

fn create_private(directory: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let directory = directory.display();
        let why = format!("cannot create the directory {directory} ({error}); give --url or set TOOZ_URL");
        Failure::new(UNAVAILABLE, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_member_names_the_process_and_is_new_each_time() {
        let (one, other) = (default_member(), default_member());
        assert_ne!(one, other);
        assert!(one.len() <= MAX_NAME_BYTES);
        assert!(String::from_utf8_lossy(&one).contains(&format!("-{}-", std::process::id())));
    }
}
