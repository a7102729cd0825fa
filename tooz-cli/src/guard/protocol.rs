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
    /// The lock is lost: end the group at once.
    End,
}

/// From the launcher up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The command is ready to begin as the leader of this group, and waits for [`Order::Begin`].
    Started(Pid),
    /// It was stopped by this signal.
    Stopped(i32),
    /// The group is being ended because its deadline came.
    Expired,
    /// The command exited with this code; its background processes go on.
    Exited(u8),
    /// The command was ended by this signal, and its group with it.
    Signaled(i32),
}

impl Order {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "begin" => Some(Self::Begin),
            None if line == "end" => Some(Self::End),
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
        }
    }
}

impl Report {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (word, number) = line.split_once(' ').unwrap_or((line, "0"));
        let number: i32 = number.parse().ok()?;
        match word {
            // kill(2) gives 0, 1 and negative numbers meanings that must never come from a mangled line.
            "started" if number > 1 => Some(Self::Started(Pid::from_raw(number))),
            "stopped" => Some(Self::Stopped(number)),
            "expired" => Some(Self::Expired),
            "exited" => Some(Self::Exited(u8::try_from(number).ok()?)),
            "signaled" => Some(Self::Signaled(number)),
            _ => None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(pid) => write!(f, "started {pid}"),
            Self::Stopped(signal) => write!(f, "stopped {signal}"),
            Self::Expired => f.write_str("expired"),
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signaled(signal) => write!(f, "signaled {signal}"),
        }
    }
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
        for order in [Order::Begin, Order::End].into_iter().chain(deadlines) {
            assert_eq!(Order::parse(&order.to_string()), Some(order));
        }
        let reports = [
            Report::Started(Pid::from_raw(7)),
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
        for line in ["started 1", "started 0", "started -7", "started", "exited 256", "exited x", "x 1"] {
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
