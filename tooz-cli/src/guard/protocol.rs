//! The lines that the processes exchange: orders go down to the command, reports come up.

use std::fmt;
use std::time::Duration;

use nix::unistd::Pid;

/// From `tooz` down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Until when the lock is held, on `CLOCK_BOOTTIME`; `None`: the session has no ttl.
    Deadline(Option<Duration>),
    /// The group is known all the way up: the command may begin.
    Begin,
    /// The lock is lost: kill everything that the command started, at once.
    End,
    /// The lock is held: ask everything that the command started to end, and kill it after the grace.
    Finish,
    /// Nothing is to be ended any more: go, and leave what runs alone.
    Leave,
}

/// From the launcher up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The command is ready to begin, and waits for [`Order::Begin`].
    Started {
        /// The command. If it has a process group of its own, that has the same number.
        command: Pid,
        launcher: Pid,
    },
    /// It was stopped by this signal.
    Stopped(i32),
    /// Everything that the command started is being ended because the deadline came.
    Expired,
    /// The command exited with this code. What it started may run.
    Exited(u8),
    /// This signal ended the command. What it started may run.
    Signaled(i32),
}

impl Order {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "begin" => Some(Self::Begin),
            None if line == "end" => Some(Self::End),
            None if line == "finish" => Some(Self::Finish),
            None if line == "leave" => Some(Self::Leave),
            Some(("deadline", "none")) => Some(Self::Deadline(None)),
            Some(("deadline", nanos)) => {
                Some(Self::Deadline(Some(Duration::from_nanos(nanos.parse().ok()?))))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline(None) => f.write_str("deadline none"),
            Self::Deadline(Some(at)) => write!(f, "deadline {}", at.as_nanos()),
            Self::Begin => f.write_str("begin"),
            Self::End => f.write_str("end"),
            Self::Finish => f.write_str("finish"),
            Self::Leave => f.write_str("leave"),
        }
    }
}

impl Report {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let numbers: Vec<i32> = words.map(|number| number.parse().ok()).collect::<Option<_>>()?;
        match (word, numbers.as_slice()) {
            // kill(2) gives 0, 1 and negative numbers meanings that must never come from a mangled line.
            ("started", &[command, launcher]) if command > 1 && launcher > 1 => {
                Some(Self::Started { command: Pid::from_raw(command), launcher: Pid::from_raw(launcher) })
            }
            ("stopped", &[signal]) => Some(Self::Stopped(signal)),
            ("expired", []) => Some(Self::Expired),
            ("exited", &[code]) => Some(Self::Exited(u8::try_from(code).ok()?)),
            ("signaled", &[signal]) => Some(Self::Signaled(signal)),
            _ => None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { command, launcher } => write!(f, "started {command} {launcher}"),
            Self::Stopped(signal) => write!(f, "stopped {signal}"),
            Self::Expired => f.write_str("expired"),
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signaled(signal) => write!(f, "signaled {signal}"),
        }
    }
}

/// The clock of the deadlines.
pub(crate) fn boot_time() -> Duration {
    // It exists on every Linux since 2.6.39 and cannot fail.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Longer than any line of the protocol; a longer line is dropped.
const LONGEST: usize = 64;

/// Cuts what a pipe delivers into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// Takes in `bytes` and returns the lines that are whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                if self.0.len() <= LONGEST {
                    lines.extend(String::from_utf8(std::mem::take(&mut self.0)));
                }
                self.0.clear();
            } else if self.0.len() <= LONGEST {
                self.0.push(byte);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_as_it_was_written() {
        let deadlines = [Order::Deadline(None), Order::Deadline(Some(Duration::from_nanos(17)))];
        let words = [Order::Begin, Order::End, Order::Finish, Order::Leave];
        for order in words.into_iter().chain(deadlines) {
            assert_eq!(Order::parse(&order.to_string()), Some(order));
        }
        let reports = [
            Report::Started { command: Pid::from_raw(7), launcher: Pid::from_raw(6) },
            Report::Stopped(20),
            Report::Expired,
            Report::Exited(255),
            Report::Signaled(9),
        ];
        for report in reports {
            assert_eq!(Report::parse(&report.to_string()), Some(report));
        }
    }

    #[test]
    fn mangled_lines_mean_nothing() {
        for line in ["", "deadline", "deadline -1", "deadline x", "ended", "end now", "begin 1"] {
            assert_eq!(Order::parse(line), None, "{line}");
        }
        let started = ["started 1 7", "started 7 0", "started -7 7", "started 7", "started"];
        for line in started.into_iter().chain(["exited 256", "exited x", "exited", "expired 1", "x 1"]) {
            assert_eq!(Report::parse(line), None, "{line}");
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_pipe_cuts_them() {
        let mut lines = Lines::default();
        assert!(lines.push(b"exi").is_empty());
        assert_eq!(lines.push(b"ted 1\nend\nx"), ["exited 1", "end"]);
        assert!(lines.push(&[b'y'; 1_000]).is_empty());
        assert_eq!(lines.push(b"\nend\n"), ["end"]);
    }
}
