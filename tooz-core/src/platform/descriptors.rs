//! Too many open files: whose limit is reached, and what to do.

use std::fs::File;
use std::io;

const PROCESS: &str = "this process has too many open files; raise its limit (ulimit -n)";
const MACHINE: &str = "this machine has too many open files; raise its limit (sysctl fs.file-max)";

/// So many files a part of a program opens at once without saying which one failed.
const NEEDED: usize = 8;

/// What to say of an error that a limit on open files causes; `None`: it has another cause.
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    // EMFILE and ENFILE have these numbers on every Unix; the standard library has no stable kind for them.
    match error.raw_os_error() {
        Some(24) if cfg!(unix) => Some(PROCESS),
        Some(23) if cfg!(unix) => Some(MACHINE),
        _ => None,
    }
}

/// The same for a failure that does not tell its cause, as those of SQLite and of the resolver do not: whether the limit is
/// (nearly) reached.
pub fn shortage() -> Option<&'static str> {
    let mut open = Vec::with_capacity(NEEDED);
    for _ in 0..NEEDED {
        match File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => return remedy(&error),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limit_is_a_shortage() {
        let said = |number| remedy(&io::Error::from_raw_os_error(number));
        assert!(said(24).is_some_and(|why| why.contains("ulimit -n")));
        assert!(said(23).is_some_and(|why| why.contains("file-max")));
        assert_eq!((said(13), shortage()), (None, None));
    }
}
