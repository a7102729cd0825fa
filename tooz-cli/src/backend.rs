//! The backend that the options name, and the member that connects to it.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use tokio::time::{sleep, timeout};
use tooz::{Builder, Characteristics, Coordinator, ErrorKind, Liveness, MAX_NAME_BYTES, Viewer};

use crate::args::Backend;
use crate::exit::{Closing, Failure, QUICK, UNAVAILABLE, USAGE};
use crate::guard::boot_time;

/// Characters that the path of a backend URL holds percent-encoded.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'?').add(b'%');

/// Between two attempts to connect to a backend that is away.
const PAUSE: Duration = Duration::from_millis(200);

/// Connects as the options say.
pub(crate) async fn connect(options: &Backend) -> Result<Coordinator, Failure> {
    Ok(builder(options)?.connect().await?)
}

/// Ends the session. What cannot be released ends with it; the caller wants the command's own exit code.
pub(crate) async fn close(coordinator: &Coordinator, result: Result<u8, Failure>) -> Result<u8, Failure> {
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
    options: &Backend,
    limit: Duration,
    again: bool,
) -> Result<Coordinator, Failure> {
    let end = boot_time() + limit;
    let left = || end.saturating_sub(boot_time());
    loop {
        let mut connecting = pin!(builder(options)?.connect());
        let error = match timeout(left(), &mut connecting).await {
            Ok(Ok(coordinator)) => return Ok(coordinator),
            Ok(Err(error)) => error,
            Err(_) => {
                let told = no_answer(limit).told();
                let leaving = async {
                    if let Ok(coordinator) = connecting.await {
                        let _ = coordinator.close().await;
                    }
                };
                let _ = timeout(QUICK, leaving).await;
                return Err(told);
            }
        };
        let is_away = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        if !again || !is_away || timeout(left(), sleep(PAUSE)).await.is_err() {
            return Err(error.into());
        }
    }
}

/// The backend did not answer in time.
pub(crate) fn no_answer(limit: Duration) -> Failure {
    let why =
        format!("the backend did not answer within {limit:?}; check that it runs, or wait longer (--wait)");
    Failure::new(UNAVAILABLE, why).closing(Closing::Quick)
}

/// Connects without a session. That works on a full store, and for a user who may only read.
pub(crate) async fn view(options: &Backend) -> Result<Viewer, Failure> {
    Ok(builder(options)?.view().await?)
}

/// The URL from the options, else from the environment, else that of the user's own database.
pub(crate) fn url(options: &Backend) -> Result<String, Failure> {
    match (&options.url, std::env::var_os("TOOZ_URL")) {
        (Some(url), _) => Ok(url.clone()),
        (None, Some(url)) if !url.is_empty() => url
            .into_string()
            .map_err(|_| Failure::new(USAGE, "TOOZ_URL is not UTF-8; percent-encode its bytes (%XX)")),
        (None, _) => embedded(),
    }
}

/// The directory of the user's own database, if no other backend is named.
pub(crate) fn own_directory(options: &Backend) -> Result<Option<PathBuf>, Failure> {
    let named = options.url.is_some() || std::env::var_os("TOOZ_URL").is_some_and(|url| !url.is_empty());
    if named { Ok(None) } else { embedded_directory().map(Some) }
}

/// A builder for what coordinates processes: within one process there is nobody but `tooz` itself.
pub(crate) fn builder(options: &Backend) -> Result<Builder, Failure> {
    Ok(any_builder(options)?.require(Characteristics::DISTRIBUTED_ACROSS_PROCESSES))
}

/// A builder with the URL, the member and the options of the command line.
pub(crate) fn any_builder(options: &Backend) -> Result<Builder, Failure> {
    let url = url(options)?;
    if let Some(directory) = own_directory(options)? {
        create_private(&directory).map_err(|error| {
            let why = format!(
                "cannot create the directory {} ({error}); give --url or set TOOZ_URL",
                directory.display()
            );
            Failure::new(UNAVAILABLE, why)
        })?;
    }
    let member = options.member.as_deref().map_or_else(default_member, |member| bytes(member).to_vec());
    let mut builder = Coordinator::builder(url, member);
    if let Some(ttl) = options.ttl {
        builder = builder.ttl(ttl);
    }
    if let Some(namespace) = &options.namespace {
        builder = builder.namespace(namespace);
    }
    Ok(builder)
}

/// The bytes of a name given on the command line.
#[cfg(unix)]
pub(crate) fn bytes(text: &OsStr) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(text)
}

/// The bytes of a name given on the command line, in Rust's superset of UTF-8.
#[cfg(not(unix))]
pub(crate) fn bytes(text: &OsStr) -> &[u8] {
    text.as_encoded_bytes()
}

/// `host-pid-random`: unique, and tells an operator the process.
fn default_member() -> Vec<u8> {
    #[cfg(unix)]
    let host = nix::unistd::gethostname().unwrap_or_default();
    #[cfg(not(unix))]
    let host = OsString::new();
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

fn embedded_directory() -> Result<PathBuf, Failure> {
    let found = state_directory(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"));
    found.ok_or_else(|| {
        Failure::new(USAGE, "neither XDG_STATE_HOME nor HOME names a directory; give --url or set TOOZ_URL")
    })
}

/// The URL of the user's own database.
fn embedded() -> Result<String, Failure> {
    let path = embedded_directory()?.join("tooz.db");
    Ok(format!("sqlite://{}", percent_encode(bytes(path.as_os_str()), IN_PATH)))
}

/// A relative path counts as not set, as the XDG base directory specification says.
fn state_directory(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let state = xdg.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".local/state")))?;
    Some(state.join("tooz"))
}

fn create_private(directory: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
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

    #[test]
    fn the_state_directory_follows_the_environment() {
        let path = |xdg: Option<&str>, home: Option<&str>| {
            state_directory(xdg.map(Into::into), home.map(Into::into))
        };
        assert_eq!(path(Some("/s"), Some("/h")), Some("/s/tooz".into()));
        assert_eq!(path(None, Some("/h")), Some("/h/.local/state/tooz".into()));
        assert_eq!(path(Some("s"), Some("/h")), Some("/h/.local/state/tooz".into()));
        assert_eq!(path(Some("s"), Some("h")), None);
        assert_eq!(path(None, None), None);
    }
}
