//! What each process tells the process that it starts, as arguments.

use std::ffi::OsString;
use std::time::Duration;

use nix::unistd::Pid;

/// The first argument under which `tooz` runs as its own guard.
pub(crate) const GUARD: &str = "__guard";
pub(super) const LAUNCH: &str = "__launch";
pub(super) const EXEC: &str = "__exec";

/// The arguments of a process.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// The end of the pipe from the parent, by number; 0 if there is none.
    pub(crate) input: i32,
    /// The end of the pipe to the parent, by number; 0 if there is none.
    pub(crate) output: i32,
    /// The parent's process id: if `getppid` returns another one, the parent is dead.
    pub(crate) parent: Pid,
    /// `tooz`, which the launcher watches, too: the guard may be stopped when it dies.
    pub(crate) top: Pid,
    /// The process group of `tooz`, from which the command takes the terminal and to which it goes back.
    pub(crate) home: Pid,
    /// Whether the command stays in that group.
    pub(crate) shares_group: bool,
    /// How long before the deadline all that the command started is asked to end.
    pub(crate) grace: Duration,
    /// The command and its arguments.
    pub(crate) command: Vec<OsString>,
}

impl Orders {
    pub(super) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut number = || arguments.next()?.to_str()?.parse::<i32>().ok().filter(|number| *number >= 0);
        let (input, output, parent, top, home) = (number()?, number()?, number()?, number()?, number()?);
        let (shares_group, grace) = (number()? == 1, number()?);
        let command: Vec<_> = arguments.collect();
        (!command.is_empty()).then_some(Self {
            input,
            output,
            parent: Pid::from_raw(parent),
            top: Pid::from_raw(top),
            home: Pid::from_raw(home),
            shares_group,
            grace: Duration::from_millis(grace.unsigned_abs().into()),
            command,
        })
    }

    /// As arguments, in the order in which they are parsed.
    pub(super) fn to_arguments(&self, role: &str) -> Vec<OsString> {
        let grace = i32::try_from(self.grace.as_millis()).unwrap_or(i32::MAX);
        let (parent, top, home) = (self.parent.as_raw(), self.top.as_raw(), self.home.as_raw());
        let numbers = [self.input, self.output, parent, top, home, i32::from(self.shares_group), grace];
        let mut arguments = vec![OsString::from(role)];
        arguments.extend(numbers.map(|number| number.to_string().into()));
        arguments.extend(self.command.iter().cloned());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let orders = Orders {
            input: 3,
            output: 4,
            parent: Pid::from_raw(10),
            top: Pid::from_raw(8),
            home: Pid::from_raw(9),
            shares_group: true,
            grace: Duration::from_millis(1_500),
            command: vec!["-x".into(), "".into(), "--".into()],
        };
        let mut arguments = orders.to_arguments(GUARD).into_iter();
        assert_eq!(arguments.next().unwrap(), GUARD);
        let read = Orders::parse(arguments).unwrap();
        assert_eq!(format!("{read:?}"), format!("{orders:?}"));
    }
}
