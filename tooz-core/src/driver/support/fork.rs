//! Which process made something. Neither threads nor connections nor locks come along in a fork.

use crate::{Error, ErrorKind, Result};

/// The process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerProcess(u32);

impl OwnerProcess {
    /// This process.
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether it is this process, and not one from which this one was forked.
    pub fn is_current(self) -> bool {
        self.0 == std::process::id()
    }

    /// Fails in a process that was forked from the owner. `what` is what belongs to it: "coordinator", for example.
    ///
    /// # Errors
    /// `Invalid`, with the remedy.
    pub fn check(self, what: &str) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        let (owner, here) = (self.0, std::process::id());
        let why = format!(
            "this {what} belongs to process {owner}, from which process {here} was forked; connect a new \
             {what} after exec"
        );
        Err(Error::new(ErrorKind::Invalid, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may_use_it() {
        assert!(OwnerProcess::current().check("coordinator").is_ok());
        let error = OwnerProcess(u32::MAX).check("coordinator").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("forked"), "{error}");
    }
}
