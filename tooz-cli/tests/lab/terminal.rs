//! `tooz lock` on a terminal: who reads it, ^C, ^Z, and that it goes back.
//!
//! A terminal becomes a session's by being opened by a leader that has none, so this program runs itself as that
//! leader (safe Rust can run nothing between fork and exec).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::common::{self, Running, TestBackend, eventually, process};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, tcsetpgrp};

/// Names the terminal to the session leader.
const TERMINAL: &str = "TOOZ_TEST_TERMINAL";
/// Asks the session leader for [`lead_with_a_late_comer`].
const LATE_COMER: &str = "TOOZ_TEST_LATE_COMER";

pub(crate) const TESTS: [(&str, fn()); 21] = tests![
    the_command_reads_the_terminal,
    an_interrupt_reaches_the_command_once,
    the_terminal_goes_back,
    the_terminal_goes_back_after_a_kill,
    in_the_background_it_takes_no_terminal,
    a_stop_stops_the_job_and_fg_continues_it,
    without_a_shell_nothing_is_stopped_for_ever,
    a_hang_up_ends_it,
    a_command_with_another_input_asks_the_terminal,
    the_next_command_of_a_pipeline_keeps_the_terminal,
    behind_another_command_of_a_pipeline_the_terminal_can_be_asked,
    an_interrupt_in_a_script_reaches_the_command_once,
    a_stop_stops_a_whole_pipeline,
    a_stop_while_waiting_stops_tooz,
    output_that_the_terminal_stops_is_written,
    a_terminal_that_goes_away_ends_a_script_and_its_command,
    the_terminal_comes_back_from_a_command_with_jobs_of_its_own,
    the_terminal_goes_back_for_one_that_came_late,
    a_message_while_the_command_has_the_terminal_stops_nothing,
    a_long_wait_is_told_on_a_terminal,
    an_interrupt_ends_a_script,
];

/// Leads the session, if this process was started for that.
pub(crate) fn lead_if_told() {
    if let Some(terminal) = std::env::var_os(TERMINAL) {
        lead(&terminal);
    }
}

/// The session leader: takes the terminal and becomes the command of its arguments.
fn lead(terminal: &std::ffi::OsStr) -> ! {
    nix::unistd::setsid().unwrap();
    let terminal = File::options().read(true).write(true).open(terminal).unwrap();
    nix::unistd::dup2_stdin(&terminal).unwrap();
    nix::unistd::dup2_stdout(&terminal).unwrap();
    nix::unistd::dup2_stderr(&terminal).unwrap();
    drop(terminal);
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if std::env::var_os(LATE_COMER).is_some() {
        lead_with_a_late_comer(&arguments);
    }
    let error = Command::new(&arguments[0]).args(&arguments[1..]).env_remove(TERMINAL).exec();
    panic!("{}: {error}", arguments[0].display());
}

/// Runs `tooz` in a group that has the terminal, and a reader of the terminal that comes into this group when the command runs:
/// as a shell that is slow to start the rest of a pipeline.
fn lead_with_a_late_comer(tooz: &[OsString]) -> ! {
    let in_group = |program: &OsStr, arguments: &[OsString], group| {
        Command::new(program).args(arguments).env_remove(TERMINAL).process_group(group).spawn().unwrap()
    };
    let seen = |name: &str| eventually(name, || Path::new(name).exists());
    let mut tooz = in_group(&tooz[0], &tooz[1..], 0);
    let group = Pid::from_raw(i32::try_from(tooz.id()).unwrap());
    tcsetpgrp(std::io::stdin(), group).unwrap();
    std::fs::write("given", "").unwrap();
    seen("started");
    let script = "echo 1 > late; until [ -e over ]; do sleep 0.02; done; read line; echo \"got <$line>\"";
    let mut reader = in_group(OsStr::new("sh"), &["-c".into(), script.into()], group.as_raw());
    seen("late");
    std::fs::write("go", "").unwrap();
    tooz.wait().unwrap();
    std::fs::write("over", "").unwrap();
    // After a kill the reader may be quicker than the guard, and be stopped for reading.
    eventually("the reader ends", || {
        let _ = killpg(group, Signal::SIGCONT);
        reader.try_wait().unwrap().is_some()
    });
    std::process::exit(0);
}

/// A session on a terminal of its own, and the keyboard and screen of it.
struct Session {
    place: TestBackend,
    leader: Running,
    master: File,
    screen: String,
}

impl Session {
    /// Runs `sh -c SCRIPT` or the like; `$TOOZ` is the command under test.
    fn start(command: &[&str]) -> Self {
        Self::start_with(command, &[])
    }

    fn start_with(command: &[&str], environment: &[(&str, &str)]) -> Self {
        let place = TestBackend::new();
        // No child may inherit it: the terminal hangs up when its last copy is closed.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = nix::pty::posix_openpt(flags).unwrap();
        nix::pty::grantpt(&master).unwrap();
        nix::pty::unlockpt(&master).unwrap();
        let terminal = nix::pty::ptsname_r(&master).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(&terminal)
            .unwrap();
        let mut leader = process(std::env::current_exe().unwrap());
        leader
            .args(command)
            .env(TERMINAL, terminal)
            .env("TOOZ", env!("CARGO_BIN_EXE_tooz"))
            .env("TOOZ_URL", place.url())
            .envs(environment.iter().copied())
            .current_dir(place.path(""));
        let leader = Running::start(leader);
        let master = File::from(OwnedFd::from(master));
        let mut session = Self { place, leader, master, screen: String::new() };
        // Ours is closed only when the leader has its own, or the terminal would hang up in between.
        session.shows("", 0);
        eventually("the leader has the terminal", || {
            nix::unistd::getsid(Some(session.leader.pid())).is_ok_and(|sid| sid == session.leader.pid())
        });
        std::mem::forget(slave);
        session
    }

    fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn look(&mut self) {
        let mut buffer = [0; 1024];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => self.screen.push_str(&String::from_utf8_lossy(&buffer[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return, // EIO: nobody has the other side any more
            }
        }
    }

    /// Waits until the screen shows `text` that many times.
    fn shows(&mut self, text: &str, times: usize) {
        if text.is_empty() {
            return;
        }
        eventually(&format!("{text:?} on the screen"), || {
            self.look();
            self.screen.matches(text).count() >= times
        });
    }

    fn code(&mut self) -> i32 {
        self.leader.code()
    }
}

fn the_command_reads_the_terminal() {
    let mut session = Session::start(&["sh", "-c", "exec $TOOZ lock x -- cat"]);
    session.types("hello\n");
    session.shows("hello", 2); // the terminal's echo, and cat's answer
    session.types("\x04");
    assert_eq!(session.code(), 0);
}

fn an_interrupt_reaches_the_command_once() {
    let script =
        "exec $TOOZ lock x -- sh -c 'trap \"echo caught >> caught\" INT; echo ready; read a; read a'";
    let mut session = Session::start(&["sh", "-c", script]);
    session.shows("ready", 1);
    session.types("\x03");
    eventually("it is caught", || session.place.read("caught") == "caught\n");
    session.types("go\ngo\n");
    session.code();
    assert_eq!(session.place.read("caught"), "caught\n");
    let mut session = Session::start(&["sh", "-c", "exec $TOOZ lock x -- sh -c 'echo ready; exec cat'"]);
    session.shows("ready", 1);
    session.types("\x03");
    assert_eq!(session.code(), 130);
}

fn the_terminal_goes_back() {
    let script = "$TOOZ lock x -- true; echo back; read line; echo \"got <$line>\"";
    let mut session = Session::start(&["sh", "-c", script]);
    session.shows("back", 1);
    session.types("abc\n");
    session.shows("got <abc>", 1);
    assert_eq!(session.code(), 0);
}

fn the_terminal_goes_back_after_a_kill() {
    // Without job control the shell itself would never take it back.
    let inner = "up() { sed \"s/.*) . //; s/ .*//\" /proc/$1/stat; }; kill -KILL $(up $(up $PPID)); sleep 60";
    let script = format!("$TOOZ lock x -- sh -c '{inner}'; echo back; read line; echo \"got <$line>\"");
    let mut session = Session::start(&["sh", "-c", &script]);
    session.shows("back", 1);
    // The shell may be quicker than the guard; until then it is stopped for reading, as it would be by ^Z.
    session.types("abc\n");
    let pid = session.leader.pid();
    eventually("the shell reads", || {
        session.look();
        let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
        session.screen.contains("got <abc>")
    });
    assert_eq!(session.code(), 0);
}

fn in_the_background_it_takes_no_terminal() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo 1 > started; until [ -e go ]; do sleep 0.02; done' & \
                  until [ -e started ]; do sleep 0.02; done; echo ready; read line; echo \"got <$line>\"; \
                  touch go; wait; echo over";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("ready", 1);
    session.types("abc\n");
    session.shows("got <abc>", 1);
    session.shows("over", 1);
}

fn a_stop_stops_the_job_and_fg_continues_it() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo ready; read line; echo \"got <$line>\"'; \
                  echo \"stopped $?\"; fg; echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("ready", 1);
    session.types("\x1a");
    session.shows("stopped 147", 1); // 128 + SIGSTOP
    let waits = session.place.run(&["lock", "--try", "x", "--", "true"]);
    assert_eq!(waits.code, Some(75), "it still holds the lock");
    session.types("abc\n");
    session.shows("got <abc>", 1);
    session.shows("over 0", 1);
}

fn without_a_shell_nothing_is_stopped_for_ever() {
    let mut session = Session::start(&["sh", "-c", "exec $TOOZ lock x -- sh -c 'echo ready; exec cat'"]);
    session.shows("ready", 1);
    session.types("\x1a");
    session.types("abc\n");
    session.shows("abc", 2);
    session.types("\x04");
    assert_eq!(session.code(), 0);
}

fn a_hang_up_ends_it() {
    let mut session =
        Session::start(&["sh", "-c", "exec $TOOZ lock x -- sh -c 'echo $$ > command; exec cat'"]);
    let command = session.place.number("command");
    session.leader.signal(Signal::SIGHUP);
    assert_eq!(session.code(), 129);
    assert!(!common::runs(command));
}

/// As ssh, sudo, git and gpg do.
fn a_command_with_another_input_asks_the_terminal() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo ready; read line </dev/tty; echo \"got <$line>\"' </dev/null; \
                  echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("ready", 1);
    session.types("abc\n");
    session.shows("got <abc>", 1);
    session.shows("over 0", 1);
}

/// As less does: it reads keys from the terminal while the command runs.
fn the_next_command_of_a_pipeline_keeps_the_terminal() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo line; until [ -e go ]; do sleep 0.02; done' | \
                  sh -c 'read line; echo \"pager $line\"; read key </dev/tty; echo \"key <$key>\"; echo 1 > go'; \
                  echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("pager line", 1);
    session.types("abc\n");
    session.shows("key <abc>", 1);
    session.shows("over 0", 1);
}

fn behind_another_command_of_a_pipeline_the_terminal_can_be_asked() {
    let script = "set -m; sh -c 'echo data; until [ -e go ]; do sleep 0.02; done' | \
                  $TOOZ lock x -- sh -c 'read data; echo \"piped $data\"; read key </dev/tty; echo \"key <$key>\"; \
                  echo 1 > go'; echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("piped data", 1);
    session.types("abc\n");
    session.shows("key <abc>", 1);
    session.shows("over 0", 1);
}

fn an_interrupt_in_a_script_reaches_the_command_once() {
    let script = "trap : INT; $TOOZ lock x -- \
                  sh -c 'trap \"echo caught >> caught\" INT; echo ready; read a; read a; exit 5'; echo \"over $?\"";
    let mut session = Session::start(&["sh", "-c", script]);
    session.shows("ready", 1);
    session.types("\x03");
    eventually("it is caught", || session.place.read("caught") == "caught\n");
    session.types("go\ngo\n");
    session.shows("over 5", 1);
    assert_eq!(session.place.read("caught"), "caught\n");
}

fn a_stop_stops_a_whole_pipeline() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo ready; until [ -e go ]; do sleep 0.02; done; echo done' | cat; \
                  echo \"stopped $?\"; fg; echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("ready", 1);
    session.types("\x1a");
    session.shows("stopped 148", 1); // 128 + SIGTSTP
    std::fs::write(session.place.path("go"), "").unwrap();
    session.shows("done", 1);
    session.shows("over 0", 1);
}

fn a_stop_while_waiting_stops_tooz() {
    let script = "set -m; $TOOZ lock x -- sh -c 'echo 1 > held; until [ -e go ]; do sleep 0.02; done' & \
                  until [ -e held ]; do sleep 0.02; done; echo ready; \
                  $TOOZ --member second lock x -- echo ran; echo \"stopped $?\"; echo 1 > go; fg; echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("ready", 1);
    eventually("the second one waits", || session.place.run(&["holders", "x"]).stdout.contains("waiting: 1"));
    session.types("\x1a");
    session.shows("stopped 148", 1);
    session.shows("ran", 1);
    session.shows("over 0", 1);
}

fn output_that_the_terminal_stops_is_written() {
    for end in ["", " | cat"] {
        let script =
            format!("set -m; stty tostop; $TOOZ lock x -- sh -c 'echo one; echo two'{end}; echo \"over $?\"");
        let mut session = Session::start(&["bash", "-c", &script]);
        session.shows("two", 1);
        session.shows("over 0", 1);
    }
}

fn a_terminal_that_goes_away_ends_a_script_and_its_command() {
    for script in [
        "exec $TOOZ lock x -- sh -c 'echo $$ > command; exec cat'",
        "$TOOZ lock x -- sh -c 'echo $$ > command; exec cat'; :",
    ] {
        let mut session = Session::start(&["sh", "-c", script]);
        let command = session.place.number("command");
        session.master = File::open("/dev/null").unwrap();
        session.code();
        eventually("the command has ended", || !common::runs(command));
        eventually("the lock is free", || {
            session.place.run(&["lock", "--try", "x", "--", "true"]).code == Some(0)
        });
    }
}

/// As from a shell below `tooz` in which an editor was in the foreground when the lock was lost.
fn the_terminal_comes_back_from_a_command_with_jobs_of_its_own() {
    let inner = "bash -c \"set -m; sh -c \\\"echo inside; exec cat\\\"; :\"";
    let script =
        format!("set -m; $TOOZ lock x -- {inner}; echo \"lost $?\"; read line; echo \"got <$line>\"");
    let mut session = Session::start(&["bash", "-c", &script]);
    session.shows("inside", 1);
    assert_eq!(session.place.run(&["break", "x", "--reason", "test"]).code, Some(0));
    session.shows("lost 74", 1);
    session.types("abc\n");
    session.shows("got <abc>", 1);
}

/// While the command runs, its own group has the terminal: no other process was in that of `tooz`.
fn the_terminal_goes_back_for_one_that_came_late() {
    for end in ["", "kill -KILL $TOP"] {
        let script = format!(
            "until [ -e given ]; do sleep 0.02; done; export TOP=$$; \
             exec $TOOZ lock x -- sh -c 'echo 1 > started; until [ -e go ]; do sleep 0.02; done; {end}'"
        );
        let mut session = Session::start_with(&["sh", "-c", &script], &[(LATE_COMER, "yes")]);
        eventually("tooz has ended", || session.place.path("over").exists());
        session.types("abc\n");
        session.shows("got <abc>", 1);
        assert_eq!(session.code(), 0);
    }
}

/// Otherwise `tooz` would be stopped in the middle of its work, and the session would not be renewed.
fn a_message_while_the_command_has_the_terminal_stops_nothing() {
    let script = "set -m; stty tostop; $TOOZ lock x -- sh -c 'setsid -f sleep 3'; echo \"over $?\"";
    let mut session = Session::start(&["bash", "-c", script]);
    session.shows("still runs without the lock", 1);
    session.shows("over 0", 1);
}

fn a_long_wait_is_told_on_a_terminal() {
    let script = "$TOOZ --member first lock x -- sh -c 'echo > held; until [ -e go ]; do sleep 0.02; done' & \
                  until [ -e held ]; do sleep 0.02; done; $TOOZ lock x -- echo ran";
    let mut session = Session::start(&["sh", "-c", script]);
    session.shows("tooz: waiting for lock \"x\": held by \"first\" exclusive since", 1);
    std::fs::write(session.place.path("go"), "").unwrap();
    session.shows("ran", 1);
    assert_eq!(session.code(), 0);
}

/// The rule of M. Cracauer's *Proper handling of SIGINT/SIGQUIT*, which bash follows: the script ends if the program died of the signal.
fn an_interrupt_ends_a_script() {
    let holds = "$TOOZ lock x -- sh -c 'echo ready; exec sleep 300'; echo \"went on\"";
    let waits = "$TOOZ lock x -- sh -c 'echo > held; until [ -e go ]; do sleep 0.02; done' & \
                 until [ -e held ]; do sleep 0.02; done; $TOOZ -v lock x -- true; echo \"went on\"";
    for (script, shows) in [(holds, "ready"), (waits, "waiting for lock")] {
        let mut session = Session::start(&["bash", "-c", script]);
        session.shows(shows, 1);
        session.types("\x03");
        assert_eq!(session.code(), 130);
        session.look();
        assert!(!session.screen.contains("went on"), "{}", session.screen);
        std::fs::write(session.place.path("go"), "").unwrap();
    }
}
