//! Why the kernel does not run a command: its error is about the file, about the interpreter of a script, or about the way there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::exit::{CANNOT_RUN, Code, NOT_FOUND, told};

/// As much of a script's first line as the kernel reads.
const FIRST_LINE: u64 = 256;

/// The exit code, and what to say about a command that was not run for this error.
pub(super) fn explain(program: &OsStr, error: &io::Error) -> (Code, String) {
    if program.is_empty() {
        return (NOT_FOUND, "the name of the command is empty; name a program".to_owned());
    }
    match (error.kind(), find(program)) {
        (ErrorKind::NotFound, Some(file)) => (CANNOT_RUN, not_startable(&file)),
        (ErrorKind::NotFound, None) => {
            (NOT_FOUND, "command not found; check its spelling and PATH".to_owned())
        }
        (ErrorKind::PermissionDenied, Some(file)) => (CANNOT_RUN, not_permitted(&file)),
        // Some C libraries run such a file with sh, as shells do; others leave that to their caller.
        _ if error.raw_os_error() == Some(Errno::ENOEXEC as i32) => {
            let why = "neither a program for this machine nor a script that begins with #!; name the program that runs it \
                       (a shell would take sh)";
            (CANNOT_RUN, why.to_owned())
        }
        _ => (CANNOT_RUN, format!("cannot run: {}", told(error))),
    }
}

/// The file that a command names, by itself or in one of the directories of PATH.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|file| file.exists());
    }
    let directories = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    std::env::split_paths(&directories).map(|directory| directory.join(program)).find(|file| file.exists())
}

/// The file is there, and what the kernel would start for it is not.
fn not_startable(file: &Path) -> String {
    let Some(interpreter) = interpreter(file) else {
        return "the loader that it needs does not exist; it is built for another system".to_owned();
    };
    let shown = interpreter.display().to_string();
    let shown = shown.escape_debug();
    if interpreter.as_os_str().as_encoded_bytes().ends_with(b"\r") {
        return format!(
            "its first line ends in CR LF, so its interpreter would be \"{shown}\"; give it the line ends of Unix, LF \
             (dos2unix)"
        );
    }
    format!("its interpreter \"{shown}\" does not exist; correct its first line, or install the interpreter")
}

/// The file is there, and this user may not run it.
fn not_permitted(file: &Path) -> String {
    if file.is_dir() {
        return "is a directory; name a program in it".to_owned();
    }
    let is_executable = |file: &Path| {
        fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if !is_executable(file) {
        return "not executable; make it executable (chmod +x) or name a program".to_owned();
    }
    match interpreter(file) {
        Some(interpreter) if !is_executable(&interpreter) => {
            let shown = interpreter.display().to_string();
            format!("its interpreter \"{}\" is not executable; correct its first line", shown.escape_debug())
        }
        _ => "this user may not run it; look at its permissions, and at the mount option noexec".to_owned(),
    }
}

/// What the first line of a script names after `#!`.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let mut beginning = Vec::new();
    File::open(file).ok()?.take(FIRST_LINE).read_to_end(&mut beginning).ok()?;
    let line = beginning.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let name = line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(name.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// glibc runs a file without `#!` by itself; the C library of other systems does not.
    #[test]
    fn a_file_that_the_kernel_cannot_read_is_no_missing_one() {
        let (code, why) = explain(OsStr::new("/bin/sh"), &Errno::ENOEXEC.into());
        assert!(code == CANNOT_RUN && why.contains("#!") && why.contains("sh"), "{why}");
        let (code, why) = explain(OsStr::new("/bin/sh"), &Errno::EMFILE.into());
        assert!(code == CANNOT_RUN && why.contains("ulimit -n"), "{why}");
        // An ELF file whose loader is missing.
        let (code, why) = explain(std::env::current_exe().unwrap().as_os_str(), &Errno::ENOENT.into());
        assert!(code == CANNOT_RUN && why.contains("loader"), "{why}");
    }
}
