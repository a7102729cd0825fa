//! Two pipes between neighbours, and how the lower one finds its ends.
//!
//! Standard input, output and error belong to the command, so the pipes are handed over by number, which safe
//! Rust cannot turn into an owned descriptor: the lower process opens them anew through `/proc/self/fd` and
//! closes the inherited numbers, so that nothing below it inherits them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::orders::Orders;

/// One's own ends of the two pipes to a neighbour. Neither reading nor writing ever waits.
#[derive(Debug)]
pub(crate) struct Link {
    input: File,
    output: File,
}

/// What was read from the neighbour.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// These bytes, perhaps none.
    Bytes(Vec<u8>),
    /// The neighbour is gone; these bytes were its last.
    Gone(Vec<u8>),
}

impl Link {
    /// The ends that were inherited under these numbers.
    pub(super) fn adopt(input: i32, output: i32) -> io::Result<Self> {
        Ok(Self {
            input: adopt(input, OpenOptions::new().read(true))?,
            output: adopt(output, OpenOptions::new().write(true))?,
        })
    }

    /// Sends a line. A neighbour that is gone or has stopped reading must not stop us: the line is dropped, and
    /// what matters is noticed elsewhere (the end of the pipe; a deadline that stays as it was).
    pub(crate) fn send(&mut self, line: impl std::fmt::Display) {
        // One write of less than PIPE_BUF is whole or not at all.
        let _ = self.output.write(format!("{line}\n").as_bytes());
    }

    /// Everything that can be read now.
    pub(crate) fn read(&mut self) -> Heard {
        let mut bytes = Vec::new();
        let mut buffer = [0; 512];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Heard::Gone(bytes),
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::Bytes(bytes),
                Err(_) => return Heard::Gone(bytes),
            }
        }
    }

    /// For `poll`.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// The two ends apart, for `tooz`, which reads with its runtime.
    pub(crate) fn into_ends(self) -> (OwnedFd, OwnedFd) {
        (self.input.into(), self.output.into())
    }
}

/// Takes over the end of a pipe that was inherited under this number; nothing below inherits it.
pub(super) fn adopt(number: i32, options: &mut OpenOptions) -> io::Result<File> {
    // Without O_NONBLOCK the open itself would wait for a neighbour that has died meanwhile.
    let file = options.custom_flags(OFlag::O_NONBLOCK.bits()).open(format!("/proc/self/fd/{number}"))?;
    nix::unistd::close(number)?;
    Ok(file)
}

/// The next process down, ready to be started.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Its command line; the caller starts it, and drops this value right afterwards.
    pub(crate) command: Command,
    /// Held until it is started: its ends of the pipes.
    #[expect(dead_code, reason = "kept open, not used")]
    theirs: (OwnedFd, OwnedFd),
}

impl Prepared {
    /// The next process in `role`, and our ends of its pipes.
    pub(crate) fn new(role: &str, orders: &Orders) -> io::Result<(Self, Link)> {
        let (their_input, our_output) = io::pipe()?;
        let (our_input, their_output) = io::pipe()?;
        let theirs = (OwnedFd::from(their_input), OwnedFd::from(their_output));
        let ours = Link { input: OwnedFd::from(our_input).into(), output: OwnedFd::from(our_output).into() };
        for end in [ours.input.as_fd(), ours.output.as_fd()] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        for end in [&theirs.0, &theirs.1] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let orders = Orders {
            input: theirs.0.as_raw_fd(),
            output: theirs.1.as_raw_fd(),
            parent: nix::unistd::getpid(),
            ..orders.clone()
        };
        let mut command = ourselves(role, &orders);
        // A group of its own: neither ^C nor `kill -9` of a shell's job reaches it together with `tooz`.
        command.process_group(0);
        Ok((Self { command, theirs }, ours))
    }
}

/// This very program in another role. `/proc/self/exe` is right also when the file was replaced or removed.
pub(super) fn ourselves(role: &str, orders: &Orders) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("tooz").args(orders.to_arguments(role));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_never_reads_does_not_stop_us() {
        let (input, other_output) = io::pipe().unwrap();
        let (_input, output) = io::pipe().unwrap();
        let mut link = Link { input: OwnedFd::from(input).into(), output: OwnedFd::from(output).into() };
        fcntl(&link.output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        fcntl(&link.input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        for _ in 0..100_000 {
            link.send("deadline 1234567890");
        }
        assert_eq!(link.read(), Heard::Bytes(Vec::new()));
        drop(other_output);
        assert_eq!(link.read(), Heard::Gone(Vec::new()));
    }
}
