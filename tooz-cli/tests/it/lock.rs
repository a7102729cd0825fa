//! `tooz lock` with real processes on a database of their own.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::common::{Running, TestBackend, eventually, process, runs};
use nix::sys::signal::Signal;
use tooz_servers::lines::fault;

/// Holds `name` until the file `go` is there.
fn holder(place: &TestBackend, name: &str) -> Running {
    let script = "echo $TOOZ_MEMBER > held; until [ -e go ]; do sleep 0.02; done";
    let running = Running::start(place.tooz(&["--member", "first", "lock", name, "--", "sh", "-c", script]));
    place.wait_for("held");
    running
}

#[test]
fn the_exit_code_is_the_commands_own() {
    let place = TestBackend::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(place.run(&["lock", "x", "--", "sh", "-c", script]).code, Some(code), "{script}");
    }
}

#[test]
fn a_command_that_cannot_run_is_reported_as_by_a_shell() {
    let place = TestBackend::new();
    let missing = place.run(&["lock", "x", "--", "no-such-command-anywhere"]);
    assert_eq!(missing.code, Some(127));
    assert!(missing.stderr.contains("no-such-command-anywhere: command not found"), "{}", missing.stderr);
    let script = |name: &str, text: &str, mode: u32| {
        std::fs::write(place.path(name), text).unwrap();
        std::fs::set_permissions(place.path(name), Permissions::from_mode(mode)).unwrap();
    };
    script("plain", "text", 0o644);
    script("interpreter", "#!/no/such/interpreter -x\n", 0o755);
    script("env", "#! no-such-interpreter\n", 0o755);
    script("crlf", "#!/bin/sh\r\nexit 0\r\n", 0o755);
    script("data", "#!./plain\n", 0o755);
    std::fs::create_dir(place.path("directory")).unwrap();
    for (command, code, says) in [
        ("./missing", 127, &["./missing", "command not found", "check its spelling"][..]),
        ("", 127, &["the name of the command is empty"]),
        ("./plain", 126, &["./plain", "not executable", "chmod +x"]),
        ("./directory", 126, &["./directory", "is a directory", "name a program"]),
        ("./plain/x", 126, &["./plain/x", "Not a directory"]),
        ("./interpreter", 126, &["./interpreter", "\"/no/such/interpreter\"", "first line"]),
        ("./env", 126, &["./env", "\"no-such-interpreter\"", "first line"]),
        ("./crlf", 126, &["./crlf", "\"/bin/sh\\r\"", "CR LF", "first line"]),
        ("crlf", 126, &["crlf", "\"/bin/sh\\r\"", "CR LF"]),
        ("./data", 126, &["./data", "\"./plain\"", "not executable"]),
    ] {
        let mut tooz = place.tooz(&["lock", "x", "--", command]);
        let path = std::env::var("PATH").unwrap();
        let output =
            tooz.env("PATH", format!("/nowhere:{}:{path}", place.path("").display())).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}: {line}");
        assert_eq!(fault(&line), None, "{command}: {line}");
        assert!(says.iter().all(|word| line.contains(word)), "{command}: {line}");
    }
    // A shell runs such a file itself, and so does the C library of most systems.
    script("no-line", "exit 3\n", 0o755);
    assert_eq!(place.run(&["lock", "x", "--", "./no-line"]).code, Some(3));
}

#[test]
fn wrong_usage_is_64_and_says_what_to_do() {
    let place = TestBackend::new();
    for (url, says) in [
        ("sqlit:///x", "did you mean sqlite://?"),
        ("reddis://h", "did you mean redis://?"),
        ("sqlite:///x?tll=5s", "did you mean \"ttl\"?"),
        ("redis://h?password=hunter2", "redis://:PASSWORD@host"),
        ("sqlite:///x?hunter2", "option 1 of the URL"),
        ("redis://:a?hunter2@h", "%3F"),
        ("redis://:hunter2:6379", "user:password@host"),
        ("redis://u:hunter2%ff@h", "not UTF-8"),
    ] {
        let finished = place.run(&["--url", url, "lock", "x", "--", "true"]);
        assert_eq!(finished.code, Some(64), "{finished:?}");
        assert!(finished.stderr.contains(says) && !finished.stderr.contains("hunter2"), "{finished:?}");
    }
    std::fs::write(place.path("file"), "").unwrap();
    for arguments in [
        &["lock"][..],
        &["lock", "x"],
        &["lock", "", "--", "true"],
        &["lock", "--try", "--wait", "1s", "x", "--", "true"],
        &["lock", "--wait", "soon", "x", "--", "true"],
        &["--url", "nonsense", "lock", "x", "--", "true"],
        &["--url", "nosuch://x", "lock", "x", "--", "true"],
        &["--url", "sqlite://file/tooz.db", "lock", "x", "--", "true"],
        &["--url", "memory://x?tll=5s", "lock", "x", "--", "true"],
        &["join", "--capabilities", "{", "g"],
        &["__guard"],
    ] {
        let finished = place.run(arguments);
        assert_eq!(finished.code, Some(64), "{arguments:?}: {}", finished.stderr);
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_backend_that_cannot_be_used_is_69() {
    let place = TestBackend::new();
    // No server listens at this port.
    let url = "redis://127.0.0.1:1?connect_timeout=1s";
    let finished = place.run(&["--url", url, "lock", "x", "--", "true"]);
    assert_eq!(finished.code, Some(69), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}

#[test]
fn the_command_finds_name_token_and_member_in_its_environment() {
    let place = TestBackend::new();
    let script = "echo $TOOZ_LOCK_NAME $TOOZ_FENCING_TOKEN $TOOZ_MEMBER";
    let run = || {
        let finished = place.run(&["--member", "me", "lock", "a b", "--", "sh", "-c", script]);
        let token = finished.stdout.strip_prefix("a b ").and_then(|rest| rest.strip_suffix(" me\n"));
        token.and_then(|token| token.parse::<u64>().ok()).unwrap_or_else(|| panic!("{finished:?}"))
    };
    let first = run();
    assert!(run() > first, "every grant has a larger token");
}

#[test]
fn standard_input_and_output_are_the_commands() {
    use std::io::Write;
    let place = TestBackend::new();
    let mut command = place.tooz(&["lock", "x", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"through"[..], Some(0)));
}

#[test]
fn nothing_of_ours_is_left_open_in_the_command() {
    let place = TestBackend::new();
    let list = ["sh", "-c", "ls /proc/$$/fd"];
    // What the test itself was started with is inherited either way.
    let plain = std::process::Command::new(list[0]).args(&list[1..]).stdin(Stdio::null()).output().unwrap();
    let guarded = place.run(&[&["lock", "x", "--"], &list[..]].concat());
    assert_eq!(guarded.stdout, String::from_utf8_lossy(&plain.stdout));
}

#[test]
fn try_gives_up_at_once_and_names_the_holder() {
    let place = TestBackend::new();
    let mut first = holder(&place, "x");
    let second = place.run(&["lock", "--try", "x", "--", "touch", "ran"]);
    assert_eq!(second.code, Some(75), "{}", second.stderr);
    assert!(second.stderr.contains("held by \"first\" exclusive since 20"), "{}", second.stderr);
    assert_eq!(second.stderr.lines().count(), 1);
    let own = ["lock", "--try", "--exit-not-acquired", "3", "x", "--", "touch", "ran"];
    assert_eq!(place.run(&own).code, Some(3));
    assert!(!place.path("ran").exists());
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(first.code(), 0);
    assert_eq!(place.run(&["lock", "--try", "x", "--", "true"]).code, Some(0), "free again");
}

#[test]
fn wait_gives_up_after_its_time_and_succeeds_before() {
    let place = TestBackend::new();
    let mut first = holder(&place, "x");
    assert_eq!(place.run(&["lock", "--wait", "200ms", "x", "--", "true"]).code, Some(75));
    let mut second = Running::start(place.tooz(&["lock", "--wait", "1m", "x", "--", "touch", "ran"]));
    eventually("the second one waits", || place.run(&["holders", "x"]).stdout.contains("waiting: 1"));
    assert!(!place.path("ran").exists());
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!((first.code(), second.code()), (0, 0));
    assert!(place.path("ran").exists());
}

#[test]
fn shared_holders_stand_together_and_keep_a_writer_out() {
    let place = TestBackend::new();
    let script = "echo 1 > held-$0; until [ -e go ]; do sleep 0.02; done";
    let mut readers: Vec<_> = ["a", "b"]
        .map(|name| Running::start(place.tooz(&["lock", "--shared", "x", "--", "sh", "-c", script, name])))
        .into();
    place.wait_for("held-a");
    place.wait_for("held-b");
    assert_eq!(place.run(&["lock", "--try", "x", "--", "true"]).code, Some(75));
    std::fs::write(place.path("go"), "").unwrap();
    assert!(readers.iter_mut().all(|reader| reader.code() == 0));
}

#[test]
fn signals_are_passed_on_to_the_whole_group() {
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        let place = TestBackend::new();
        let name = signal.as_str().trim_start_matches("SIG");
        // The child traps it, too: a shell in the background ignores INT and QUIT only until it says otherwise.
        let child = format!(
            "trap 'echo got > child; exit 0' {name}; echo 1 > child-ready; while :; do sleep 0.02; done"
        );
        let script = format!(
            "trap 'echo got > parent; wait; exit 9' {name}; sh -c \"$0\" & \
             until [ -e child-ready ]; do sleep 0.02; done; echo 1 > ready; while :; do sleep 0.02; done"
        );
        let mut tooz = Running::start(place.tooz(&["lock", "x", "--", "bash", "-c", &script, &child]));
        place.wait_for("ready");
        tooz.signal(signal);
        if matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            // POSIX: a child that a shell starts in the background ignores these two and cannot trap them.
            place.wait_for("parent");
            tooz.signal(Signal::SIGKILL);
            continue;
        }
        assert_eq!(tooz.code(), 9, "{name}");
        assert_eq!(
            (place.read("parent").as_str(), place.read("child").as_str()),
            ("got\n", "got\n"),
            "{name}"
        );
    }
}

#[test]
fn what_is_ignored_for_tooz_stays_ignored_for_the_command() {
    let place = TestBackend::new();
    let script = "trap '' HUP; exec \"$0\" lock x -- sh -c 'kill -HUP $$; kill -HUP $PPID; echo 1 > alive'";
    let mut shell = process("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_tooz")]);
    shell.env("TOOZ_URL", place.url()).current_dir(place.path(""));
    assert_eq!(Running::start(shell).code(), 0);
    assert_eq!(place.read("alive"), "1\n");
}

#[test]
fn a_signal_while_waiting_ends_tooz_and_leaves_no_place_in_the_queue() {
    let place = TestBackend::new();
    let mut first = holder(&place, "x");
    let mut second = Running::start(place.tooz(&["lock", "x", "--", "touch", "ran"]));
    let waits = |place: &TestBackend| place.run(&["holders", "x"]).stdout.contains("waiting: 1");
    eventually("the second one waits", || waits(&place));
    second.signal(Signal::SIGTERM);
    assert_eq!(second.code(), 143);
    assert!(!waits(&place));
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(first.code(), 0);
    assert!(!place.path("ran").exists());
}

#[test]
fn a_broken_lock_ends_the_group_at_once() {
    let place = TestBackend::new();
    let script = "trap '' TERM INT HUP; echo $$ > command; while :; do sleep 0.05; done";
    let mut command = place.tooz(&["--member", "first", "lock", "x", "--", "sh", "-c", script]);
    let mut tooz = Running::start({
        command.stderr(std::fs::File::create(place.path("stderr")).unwrap());
        command
    });
    let pid = place.number("command");
    let broken = place.run(&["--member", "boss", "break", "x", "--reason", "stuck since noon"]);
    assert_eq!(broken.code, Some(0), "{}", broken.stderr);
    assert!(broken.stdout.starts_with("broken: \"first\" exclusive"), "{}", broken.stdout);
    assert_eq!(tooz.code(), 74);
    assert!(!runs(pid));
    let said = place.read("stderr");
    assert!(said.contains("\"boss\"") && said.contains("stuck since noon"), "{said}");
}

#[test]
fn the_exit_code_for_a_loss_can_be_chosen() {
    let place = TestBackend::new();
    let script = "echo $$ > command; while :; do sleep 0.05; done";
    let mut tooz = Running::start(place.tooz(&["lock", "--exit-lost", "5", "x", "--", "sh", "-c", script]));
    place.number("command");
    assert_eq!(place.run(&["break", "x", "--reason", "test"]).code, Some(0));
    assert_eq!(tooz.code(), 5);
}

#[test]
fn a_signal_that_ends_the_command_ends_the_rest_of_its_group_before_the_lock_moves() {
    let place = TestBackend::new();
    let script = "sh -c 'echo $$ > child; while :; do sleep 0.05; done' & \
                  until [ -s child ]; do sleep 0.02; done; kill -KILL $$";
    assert_eq!(place.run(&["lock", "x", "--", "sh", "-c", script]).code, Some(137));
    assert!(!runs(place.number("child")));
}

#[test]
fn what_a_command_leaves_behind_when_it_exits_by_itself_goes_on() {
    let place = TestBackend::new();
    let script = "sh -c 'echo $$ > child; until [ -e go ]; do sleep 0.02; done; echo 1 > done' \
                  >/dev/null 2>&1 & until [ -s child ]; do sleep 0.02; done";
    assert_eq!(place.run(&["lock", "x", "--", "sh", "-c", script]).code, Some(0));
    std::fs::write(place.path("go"), "").unwrap();
    place.wait_for("done");
}

/// A shell that has started something becomes `tooz` (`logger & exec tooz lock …`).
#[test]
fn a_child_that_tooz_had_before_is_no_part_of_the_command() {
    let place = TestBackend::new();
    let script = "sh -c 'echo $$ > before; until [ -e go ]; do sleep 0.02; done' >/dev/null 2>&1 & \
                  until [ -s before ]; do sleep 0.02; done; exec \"$0\" lock --children wait x -- sh -c \"$1\"";
    let start = |command: &str| {
        let mut shell = process("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_tooz"), command]);
        shell.env("TOOZ_URL", place.url()).current_dir(place.path("")).stdin(Stdio::null());
        Running::start(shell)
    };
    assert_eq!(start("exit 3").code(), 3, "nothing to wait for");
    let first = place.number("before");
    let mut lost = start("echo 1 > holds; exec sleep 300");
    place.wait_for("holds");
    assert_eq!(place.run(&["break", "x", "--reason", "test"]).code, Some(0));
    assert_eq!(lost.code(), 74);
    let before = [first, place.number("before")];
    assert!(before.into_iter().all(runs), "the command did not start it");
    std::fs::write(place.path("go"), "").unwrap();
    eventually("nothing stays behind", || !before.into_iter().any(runs));
}

#[test]
fn children_can_be_ended_with_the_command() {
    let place = TestBackend::new();
    let script = "setsid -f sh -c 'trap \"echo asked > asked; exit\" TERM; echo $$ > child; while :; do sleep 0.02; done' \
                  >/dev/null 2>&1; until [ -s child ]; do sleep 0.02; done; exit 5";
    let ended = place.run(&["lock", "--children", "end", "x", "--", "sh", "-c", script]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(5), ""));
    assert!(!runs(place.number("child")));
    assert_eq!(place.read("asked"), "asked\n", "it is asked before it is killed");
}

/// Each would wait for the other for ever.
#[test]
fn the_same_lock_inside_itself_is_refused() {
    let place = TestBackend::new();
    let inside = |outer: &[&str], inner: &[&str], script: &str| {
        let inner = inner.join(" ");
        let script = script.replace("TOOZ", &format!("{} {inner}", env!("CARGO_BIN_EXE_tooz")));
        place.run(&[outer, &["x", "--", "sh", "-c", &script]].concat())
    };
    for (verb, what) in [("lock", "lock \"x\""), ("elect", "leadership of group \"x\"")] {
        let refused = inside(&[verb], &[verb], "TOOZ x -- touch ran");
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.stderr.contains(&format!("{what} is held for this very command")), "{refused:?}");
        assert!(!place.path("ran").exists());
        let deeper = inside(&[verb], &["lock"], "TOOZ y -- sh -c 'TOOZ z -- TOOZ x -- true'");
        assert_eq!(deeper.code, Some(if verb == "lock" { 64 } else { 0 }), "{deeper:?}");
    }
    let shared = inside(&["lock", "--shared"], &["lock", "--shared"], "TOOZ x -- true");
    assert_eq!(shared.code, Some(0), "shared inside shared: {shared:?}");
    let both = inside(&["lock", "--shared"], &["lock"], "TOOZ x -- true");
    assert_eq!(both.code, Some(64), "exclusive inside shared: {both:?}");
    assert!(both.stderr.contains("leave out --shared"), "{both:?}");
    for other in ["--namespace other", "--url sqlite://$DIR/other.db"] {
        let finished = inside(&["lock"], &[other, "lock"], "TOOZ x -- true");
        assert_eq!(finished.code, Some(0), "another lock of this name: {finished:?}");
    }
}

#[test]
fn what_an_outer_tooz_held_once_is_no_hindrance() {
    let place = TestBackend::new();
    let first = place.run(&["lock", "x", "--", "sh", "-c", "echo $TOOZ_HELD"]);
    let held = first.stdout.trim();
    assert!(held.starts_with("lock:") && held.contains(":x:"), "{first:?}");
    let mut other = holder(&place, "x");
    let mut waiting = place.tooz(&["lock", "--try", "x", "--", "true"]);
    let taken = waiting.env("TOOZ_HELD", held).output().unwrap();
    assert_eq!(taken.status.code(), Some(75), "another holds it now: {taken:?}");
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(other.code(), 0);
    let mut free = place.tooz(&["lock", "x", "--", "true"]);
    assert_eq!(free.env("TOOZ_HELD", held).status().unwrap().code(), Some(0));
}

/// With `-v`, as no terminal is there; with and without `elect`.
#[test]
fn a_long_wait_is_told_with_the_holder() {
    for (verb, waiting, got) in [
        (
            "lock",
            "tooz: waiting for lock \"x\": held by \"first\" exclusive since 20",
            "tooz: acquired lock \"x\", token ",
        ),
        (
            "elect",
            "tooz: waiting to lead \"x\": first leads (term ",
            "tooz: elected: leads group \"x\", term ",
        ),
    ] {
        let place = TestBackend::new();
        let script = "echo > held; until [ -e go ]; do sleep 0.02; done";
        let mut first =
            Running::start(place.tooz(&["--member", "first", verb, "x", "--", "sh", "-c", script]));
        place.wait_for("held");
        let waits = |name: &str, level: &[&str]| {
            let mut command = place.tooz(&[level, &[verb, "x", "--", "true"]].concat());
            command.stderr(std::fs::File::create(place.path(name)).unwrap());
            Running::start(command)
        };
        let mut told = waits("told", &["-v"]);
        let mut others = [waits("plain", &[]), waits("quiet", &["-q"])];
        eventually("it is told", || place.read("told").contains(waiting));
        std::fs::write(place.path("go"), "").unwrap();
        assert_eq!((first.code(), told.code()), (0, 0));
        for other in &mut others {
            assert_eq!(other.code(), 0);
        }
        assert!(place.read("told").lines().last().unwrap().starts_with(got), "{}", place.read("told"));
        assert_eq!((place.read("plain").as_str(), place.read("quiet").as_str()), ("", ""));
    }
}

/// As a line of cron that is to send no mail.
#[test]
fn quiet_tells_of_errors_only() {
    let place = TestBackend::new();
    let mut holder = holder(&place, "x");
    for verb in ["lock", "elect"] {
        let mut leader = (verb == "elect").then(|| {
            Running::start(place.tooz(&["elect", "x", "--", "sh", "-c", "echo > leads; exec sleep 300"]))
        });
        if leader.is_some() {
            place.wait_for("leads");
        }
        let taken = place.run(&["-q", verb, "--try", "--exit-not-acquired", "0", "x", "--", "true"]);
        assert_eq!((taken.code, taken.stdout.as_str(), taken.stderr.as_str()), (Some(0), "", ""), "{verb}");
        leader.take();
    }
    let free = place.run(&["break", "-q", "y", "--reason", "test"]);
    assert_eq!((free.code, free.stderr.as_str()), (Some(0), ""));
    let wrong = place.run(&["-q", "--url", "nosuch://x", "lock", "x", "--", "true"]);
    assert!(wrong.code == Some(64) && wrong.stderr.starts_with("tooz: "), "{wrong:?}");
    assert_eq!(place.run(&["-q", "-v", "groups"]).code, Some(64));
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(holder.code(), 0);
}

/// What cannot be said changes nothing.
#[test]
fn a_message_that_nobody_reads_stops_nothing() {
    let place = TestBackend::new();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let closed = std::io::pipe().unwrap().1;
    for stderr in [Stdio::from(full()), closed.into()] {
        let mut command = place.tooz(&["-v", "lock", "x", "--", "sh", "-c", "exit 3"]);
        command.stderr(stderr);
        assert_eq!(Running::start(command).code(), 3);
    }
    let mut wrong = place.tooz(&["--url", "nosuch://x", "holders", "x"]);
    wrong.stderr(full());
    assert_eq!(Running::start(wrong).code(), 64);

    // A pipe whose reader stands still, as that of a pager.
    let (_reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(&writer, &[b'x'; 4096]).is_ok() {}
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let mut command = place.tooz(&["-v", "lock", "x", "--", "sh", "-c", "echo > started; exec sleep 300"]);
    command.stderr(writer.try_clone().unwrap());
    let mut stuck = Running::start(command);
    place.wait_for("started");
    stuck.signal(Signal::SIGTERM);
    assert_eq!(stuck.code(), 143);

    let mut command = place.tooz(&["leader", "--watch", "g"]);
    command.stdout(writer);
    let mut watch = Running::start(command);
    eventually("it catches signals", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", watch.pid())).unwrap();
        status
            .lines()
            .any(|line| line.strip_prefix("SigBlk:").is_some_and(|mask| !mask.trim().ends_with("0000")))
    });
    watch.signal(Signal::SIGTERM);
    assert_eq!(watch.code(), 143);
}
