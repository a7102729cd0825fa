//! One error type for every driver: what went wrong, what to do about it, and whether the operation may have
//! taken effect.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of every tooz operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of error it is, named by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No linked driver serves the URL's scheme: link the driver crate or correct the scheme.
    UnknownScheme,
    /// The backend URL cannot be read: correct it.
    InvalidUrl,
    /// An option is unknown, malformed or out of range: correct it.
    InvalidOption,
    /// The backend cannot keep a characteristic that was required: choose another backend or ask for less.
    MissingCharacteristic,
    /// The backend is too old, or its data was written by a newer version: upgrade one of them.
    Incompatible,
    /// The backend does not answer or refuses to work: try again later.
    Unavailable,
    /// The backend refused the credentials or the permission: correct them.
    Denied,
    /// The operation did not end within its time limit: look at [`Error::is_indeterminate`], then try again.
    Timeout,
    /// The session ended; whatever it held is gone: acquire or join again.
    SessionLost,
    /// The coordinator was closed: connect a new one.
    Closed,
    /// An asynchronous runtime is needed and none is running: call it inside one.
    NoRuntime,
    /// An argument is not allowed: correct the call.
    Invalid,
    /// The backend holds a record that cannot be understood: a human must look at it.
    Corrupt,
    /// This backend can never do it: use another backend or do without.
    Unsupported,
    /// The group exists already.
    GroupExists,
    /// There is no such group: create it first.
    GroupNotFound,
    /// The group still has members: let them leave first.
    GroupNotEmpty,
    /// The member id is taken by a live session, or has joined already: use another id.
    MemberExists,
    /// The member is not in the group: join first.
    MemberNotFound,
    /// No hook is registered under this id.
    HookNotFound,
    /// The holder could not be made to let go; the message names the process to end.
    HolderUnresponsive,
    /// The backend failed in a way that no other kind describes: read the source error.
    Backend,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownScheme => "unknown scheme",
            Self::InvalidUrl => "invalid backend URL",
            Self::InvalidOption => "invalid option",
            Self::MissingCharacteristic => "missing characteristic",
            Self::Incompatible => "incompatible backend",
            Self::Unavailable => "backend unavailable",
            Self::Denied => "permission denied by the backend",
            Self::Timeout => "timed out",
            Self::SessionLost => "session lost",
            Self::Closed => "coordinator closed",
            Self::NoRuntime => "no asynchronous runtime",
            Self::Invalid => "invalid argument",
            Self::Corrupt => "corrupt record",
            Self::Unsupported => "unsupported by this backend",
            Self::GroupExists => "group exists",
            Self::GroupNotFound => "group not found",
            Self::GroupNotEmpty => "group not empty",
            Self::MemberExists => "member exists",
            Self::MemberNotFound => "member not found",
            Self::HookNotFound => "hook not found",
            Self::HolderUnresponsive => "holder does not let go",
            Self::Backend => "backend error",
        })
    }
}

/// Why an operation failed.
///
/// One pointer wide and cheap to clone, since one loss is told to many guards. `Display` is one line without
/// secrets and never repeats the error's [`source`](StdError::source).
///
/// ```
/// use tooz_core::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::GroupNotFound, "group \"workers\"").during("join");
/// assert_eq!(error.to_string(), "join: group not found: group \"workers\"");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    context: String,
    indeterminate: bool,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `context` names the thing and the remedy and holds no secret.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            operation: "",
            context: context.into(),
            indeterminate: false,
            source: None,
        }))
    }

    /// Names the operation that failed, unless an inner layer named it already.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        if self.0.operation.is_empty() {
            Arc::make_mut(&mut self.0).operation = operation;
        }
        self
    }

    /// Marks that the effect may have happened.
    #[must_use]
    pub fn indeterminate(mut self) -> Self {
        Arc::make_mut(&mut self.0).indeterminate = true;
        self
    }

    /// Takes back that the effect may have happened: what was asked for has none.
    pub(crate) fn without_effect(mut self) -> Self {
        if self.0.indeterminate {
            Arc::make_mut(&mut self.0).indeterminate = false;
        }
        self
    }

    /// Attaches the native cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::from(source.into()));
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed, empty if unknown.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The thing it happened to, and what to do.
    pub fn context(&self) -> &str {
        &self.0.context
    }

    /// What the causes say, one after the other, without what was said before. Many an error says what its own cause says.
    pub fn causes(&self) -> Vec<String> {
        let mut said = self.to_string().to_lowercase();
        let mut causes = Vec::new();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            let mut new = Vec::new();
            for part in text.split(": ") {
                let known = part.split(" (os error").next().unwrap_or(part).to_lowercase();
                // One word alone may stand anywhere.
                if !known.contains(' ') || !said.contains(&known) {
                    said.push_str(&known);
                    said.push('\n');
                    new.push(part);
                }
            }
            if !new.is_empty() {
                causes.push(new.join(": "));
            }
            cause = error.source();
        }
        causes
    }

    /// Whether the same call may succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::SessionLost)
    }

    /// Whether the operation may have taken effect although it failed: its reply was lost.
    pub fn is_indeterminate(&self) -> bool {
        self.0.indeterminate
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.operation.is_empty() {
            write!(f, "{}: ", self.0.operation)?;
        }
        self.0.kind.fmt(f)?;
        if !self.0.context.is_empty() {
            write!(f, ": {}", self.0.context)?;
        }
        if self.0.indeterminate {
            f.write_str(" (it may have taken effect)")?;
        }
        Ok(())
    }
}

/// The message and, behind it, those of all causes: what `fn main() -> tooz::Result<()>` prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        self.causes().iter().try_for_each(|cause| write!(f, "; caused by: {cause}"))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn display_does_not_repeat_the_source() {
        let error = Error::new(ErrorKind::Unavailable, "db.sqlite")
            .caused_by(std::io::Error::other("the native cause"))
            .during("acquire");
        assert!(!error.to_string().contains("native"));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the native cause"));
    }

    #[test]
    fn debug_prints_the_message_and_the_causes() {
        let cause = Error::new(ErrorKind::Denied, "user \"x\"").caused_by(std::io::Error::other("EACCES"));
        let error = Error::new(ErrorKind::Unavailable, "db.sqlite").caused_by(cause).during("acquire");
        assert_eq!(
            format!("{error:?}"),
            "acquire: backend unavailable: db.sqlite; caused by: permission denied by the backend: user \"x\"; \
             caused by: EACCES"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let inner = std::io::Error::other(
            Error::new(ErrorKind::Backend, "h: connection refused").caused_by(refused()),
        );
        let error = Error::new(ErrorKind::Unavailable, "h: connection refused").caused_by(inner);
        assert_eq!(
            format!("{error:?}"),
            "backend unavailable: h: connection refused; caused by: backend error: h"
        );
        let error = Error::new(ErrorKind::Unavailable, "h").caused_by(std::io::Error::other(refused()));
        assert_eq!(error.causes(), ["connection refused"]);
    }

    #[test]
    fn the_innermost_operation_stands() {
        let error = Error::from(ErrorKind::Closed).during("inner").during("outer").indeterminate();
        assert_eq!(error.operation(), "inner");
        assert_eq!(error.to_string(), "inner: coordinator closed (it may have taken effect)");
    }
}
