//! The verbs that list, follow, join and lead.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::common::{Backend, Running, TestBackend, eventually, runs};
use nix::sys::signal::Signal;
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

/// The lines of a verb that goes on until a signal.
struct Following {
    running: Running,
    lines: BufReader<std::process::ChildStdout>,
}

impl Following {
    fn start(place: &TestBackend, arguments: &[&str]) -> Self {
        Self::of(place.tooz(arguments))
    }

    fn of(mut command: std::process::Command) -> Self {
        let mut running = Running::start({
            command.stdout(Stdio::piped());
            command
        });
        let lines = BufReader::new(running.0.stdout.take().unwrap());
        Self { running, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// A line without its time.
    fn change(&mut self) -> String {
        let line = self.line();
        let (time, change) = line.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 20, "{line}");
        change.to_owned()
    }

    /// An object, with its time.
    fn json(&mut self) -> Value {
        let value = json_lines(&self.line()).remove(0);
        assert!(value["time"].as_str().unwrap().ends_with('Z'), "{value}");
        value
    }
}

#[test]
fn holders_are_listed_as_text_and_as_json() {
    let place = TestBackend::new();
    assert_eq!(place.run(&["holders", "x"]).stdout, "");
    let script = "$TOOZ holders x; $TOOZ holders --json x; $TOOZ --namespace other holders x";
    let mut command = place.tooz(&["--member", "me", "lock", "x", "--", "sh", "-c", script]);
    let output = command.env("TOOZ", env!("CARGO_BIN_EXE_tooz")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (line, json) = text.split_once('\n').unwrap();
    assert!(line.starts_with("\"me\" exclusive since 20") && line.contains(", token "), "{line}");
    let records = json_lines(json);
    assert_eq!(records.len(), 1, "the other namespace has none");
    assert_eq!((&records[0]["member"], &records[0]["mode"]), (&"me".into(), &"exclusive".into()));
    assert!(records[0]["token"].as_u64().unwrap() > 0);
    assert_eq!(records[0]["waiters"], 0);
}

#[test]
fn breaking_what_nobody_holds_says_so() {
    let place = TestBackend::new();
    let finished = place.run(&["break", "x", "--reason", "test"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), ""));
    assert_eq!(finished.stderr, "tooz: lock \"x\" had no holder\n");
}

/// Two shared holders and a leader: each is broken alone.
#[test]
fn a_break_hits_whom_it_names() {
    let place = TestBackend::new();
    let hold = |id: &str, verb: &[&str]| {
        let script = format!("echo $TOOZ_FENCING_TOKEN > {id}; exec sleep 300");
        let words = [&["--member", id], verb, &["x", "--", "sh", "-c", &script]].concat();
        let running = Running::start(place.tooz(&words));
        eventually("it holds", || place.read(id).ends_with('\n'));
        running
    };
    let mut first = hold("first", &["lock", "--shared"]);
    let mut second = hold("second", &["lock", "--shared"]);
    let mut leader = hold("leader", &["elect"]);
    let break_ = |arguments: &[&str]| place.run(&[&["break", "x", "--reason", "test"], arguments].concat());
    for other in [&["--token", "1"][..], &["--held-by", "third"], &["--leader", "--held-by", "first"]] {
        let finished = break_(other);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{other:?}: {finished:?}");
        assert!(finished.stderr.contains("had other holders only"), "{finished:?}");
    }
    assert_eq!(break_(&["--held-by", "first", "--token", "1"]).code, Some(64));
    let by_name = break_(&["--held-by", "first"]);
    assert!(by_name.stdout.starts_with("broken: \"first\" shared"), "{by_name:?}");
    assert_eq!(first.code(), 74);
    let by_token = break_(&["--token", place.read("second").trim()]);
    assert!(by_token.stdout.starts_with("broken: \"second\" shared"), "{by_token:?}");
    assert_eq!(second.code(), 74);
    let nobody = break_(&[]);
    assert!(nobody.stderr.contains("had no holder") && nobody.stderr.contains("add --leader"), "{nobody:?}");
    assert_eq!(leader.0.try_wait().unwrap(), None, "another kind of lock");
    let deposed = break_(&["--leader"]);
    assert!(deposed.stdout.starts_with("broken: \"leader\""), "{deposed:?}");
    assert_eq!(leader.code(), 74);
}

fn next_token(place: &TestBackend) -> u64 {
    let run = place.run(&["lock", "x", "--", "sh", "-c", "echo $TOOZ_FENCING_TOKEN"]);
    run.stdout.trim().parse().unwrap_or_else(|_| panic!("{run:?}"))
}

#[test]
fn tokens_are_raised_and_never_lowered() {
    for backend in [Backend::Sqlite, Backend::File] {
        let place = TestBackend::on(backend);
        let least = next_token(&place) + 1_000_000;
        let raise = |to: &str| place.run(&["tokens", "raise", "--to", to]);
        let raised = raise(&least.to_string());
        assert_eq!((raised.code, raised.stderr.as_str()), (Some(0), ""), "{raised:?}");
        assert_eq!(raised.stdout, format!("every later token is at least {least}\n"));
        assert_eq!(next_token(&place), least);
        assert_eq!(raise("1").code, Some(0));
        for wrong in ["0", "4503599627370497"] {
            let refused = raise(wrong);
            assert_eq!((refused.code, refused.stdout.as_str()), (Some(64), ""), "{refused:?}");
            assert!(refused.stderr.contains("from 1 to 4503599627370496 (2^52)"), "{}", refused.stderr);
        }
        assert_eq!(raise("-1").code, Some(64));
        assert_eq!(next_token(&place), least + 1);
    }
    let place = TestBackend::new();
    let help = place.run(&["tokens", "raise", "--help"]).stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["restored from a backup", "another backend", "it can be repeated"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn members_come_and_go() {
    let place = TestBackend::new();
    assert_eq!(place.run(&["members", "g"]).code, Some(1), "no such group yet");
    let join = ["--member", "one", "join", "g", "--capabilities", r#"{"weight": 3}"#];
    let mut one = Running::start(place.tooz(&join));
    eventually("one is listed", || place.run(&["members", "g"]).stdout == "one {\"weight\":3}\n");
    assert_eq!(place.run(&["groups"]).stdout, "g\n");
    assert_eq!(json_lines(&place.run(&["groups", "--json"]).stdout)[0]["group"], "g");
    let record = &json_lines(&place.run(&["members", "--json", "g"]).stdout)[0];
    assert_eq!((&record["member"], &record["capabilities"]["weight"]), (&"one".into(), &3.into()));

    let mut watch = Following::start(&place, &["members", "--watch", "g"]);
    let mut json = Following::start(&place, &["members", "--watch", "--json", "g"]);
    assert_eq!(
        (watch.change().as_str(), watch.change().as_str()),
        ("snapshot of 1", "member one {\"weight\":3}")
    );
    assert_eq!(json.json()["members"][0]["member"], "one");

    // With a command: a member as long as it runs.
    let script = "echo $TOOZ_GROUP $TOOZ_MEMBER > seen; until [ -e go ]; do sleep 0.02; done; exit 5";
    let mut two = Running::start(place.tooz(&["--member", "two", "join", "g", "--", "sh", "-c", script]));
    assert_eq!(watch.change(), "joined two");
    assert_eq!(json.json()["event"], "joined");
    place.wait_for("seen");
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(two.code(), 5);
    assert_eq!(place.read("seen"), "g two\n");
    // One by one: what goes between two looks of a watch is told in the order of the ids.
    let left = |json: &mut Following, member: &str| {
        let event = json.json();
        assert_eq!((&event["event"], &event["member"]), (&"left".into(), &member.into()));
    };
    assert_eq!(watch.change(), "left two");
    left(&mut json, "two");
    one.signal(Signal::SIGTERM);
    assert_eq!(one.code(), 143);
    assert_eq!(watch.change(), "left one {\"weight\":3}");
    left(&mut json, "one");
    let mut three = Running::start(place.tooz(&["--member", "three", "join", "g"]));
    assert_eq!(watch.change(), "joined three");
    assert_eq!(json.json()["event"], "joined");
    three.signal(Signal::SIGKILL);
    assert_eq!(three.code(), 137);
    assert_eq!(watch.change(), "died three");
    assert_eq!(json.json()["event"], "died");
    watch.running.signal(Signal::SIGINT);
    assert_eq!(watch.running.code(), 130);
}

#[test]
fn a_watch_waits_for_its_group() {
    let place = TestBackend::new();
    let mut command = place.tooz(&["members", "--watch", "g"]);
    command.stderr(std::fs::File::create(place.path("stderr")).unwrap());
    let mut watch = Following::of(command);
    eventually("it waits", || {
        place.read("stderr").contains("\"g\"") && place.read("stderr").ends_with("waiting for it\n")
    });
    let one = Running::start(place.tooz(&["--member", "one", "join", "g"]));
    let first = watch.change();
    // It may come between the group and its member.
    let last = if first == "snapshot of 0" { "joined one" } else { "member one" };
    assert_eq!(watch.change(), last, "{first}");
    drop(one);
}

#[test]
fn a_taken_member_id_is_refused() {
    let place = TestBackend::new();
    let mut one = Running::start(place.tooz(&["--member", "one", "join", "g"]));
    eventually("one is listed", || place.run(&["members", "g"]).stdout == "one\n");
    let second = place.run(&["--member", "one", "join", "g", "--", "true"]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("member exists"), "{}", second.stderr);
    one.signal(Signal::SIGINT);
    assert_eq!(one.code(), 130);
}

#[test]
fn whoever_is_listed_runs() {
    let place = TestBackend::new();
    let script = "echo $$ > command; while :; do sleep 60; done";
    let one = Running::start(place.tooz(&["--member", "one", "join", "g", "--", "sh", "-c", script]));
    let command = place.number("command");
    one.signal(Signal::SIGKILL);
    eventually("the command is gone", || !runs(command));
    eventually("nobody is listed", || place.run(&["members", "g"]).stdout.is_empty());
}

#[test]
fn one_leads_at_a_time_and_observers_see_it() {
    let place = TestBackend::new();
    let vacant = place.run(&["leader", "g"]);
    assert_eq!((vacant.code, vacant.stdout.as_str()), (Some(1), ""));
    assert_eq!(place.run(&["leader", "--json", "g"]).stdout, "null\n");
    let mut watch = Following::start(&place, &["leader", "--watch", "--json", "g"]);
    assert_eq!(watch.json()["leader"], Value::Null);

    let script = "echo $TOOZ_GROUP $TOOZ_TERM $TOOZ_FENCING_TOKEN > new-$TOOZ_MEMBER; \
                  mv new-$TOOZ_MEMBER lead-$TOOZ_MEMBER; until [ -e go-$TOOZ_MEMBER ]; do sleep 0.02; done";
    let elect =
        |name: &str| Running::start(place.tooz(&["--member", name, "elect", "g", "--", "sh", "-c", script]));
    let mut one = elect("one");
    place.wait_for("lead-one");
    assert!(place.run(&["leader", "g"]).stdout.starts_with("one term "));
    let first = watch.json()["leader"]["term"].as_u64().unwrap();
    let refused = place.run(&["--member", "three", "elect", "--try", "g", "--", "true"]);
    assert_eq!(refused.code, Some(75));
    assert!(refused.stderr.contains("did not win \"g\": one leads (term "), "{}", refused.stderr);

    let mut two = elect("two");
    std::fs::write(place.path("go-one"), "").unwrap();
    place.wait_for("lead-two");
    assert_eq!(one.code(), 0);
    let mut seen = Value::Null;
    while seen["member"] != "two" {
        seen = watch.json()["leader"].take();
    }
    assert!(seen["term"].as_u64().unwrap() > first);
    let text = place.read("lead-two");
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!((words[0], words[1]), ("g", words[2]), "the term is the fencing token");
    std::fs::write(place.path("go-two"), "").unwrap();
    assert_eq!(two.code(), 0);
}

#[test]
fn drivers_are_listed_with_what_they_promise() {
    let place = TestBackend::new();
    let text = place.run(&["drivers"]).stdout;
    assert!(text.contains("memory://") && text.contains("sqlite://"), "{text}");
    assert!(text.contains("    ?mode=  permissions of new files") && text.contains("    ?ttl=  "), "{text}");
    assert!(!text.contains("?layout=") && !text.contains("?fault="), "what is for tests: {text}");
    let records = json_lines(&place.run(&["drivers", "--json"]).stdout);
    let sqlite = records.iter().find(|record| record["schemes"][0] == "sqlite").unwrap();
    assert_eq!(sqlite["crate"], "tooz-sqlite");
    let names = |options: &Value| -> Vec<_> {
        options.as_array().unwrap().iter().map(|option| option["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(
        names(&sqlite["options"]).contains(&"mode".into())
            && names(&sqlite["common_options"]).contains(&"ttl".into())
    );
    assert!(!names(&sqlite["options"]).contains(&"layout".into()), "it is for tests");
    let promised = sqlite["characteristics"].as_array().unwrap();
    assert!(promised.contains(&"distributed_across_processes".into()), "{promised:?}");
}

#[test]
fn completions_know_the_verbs_and_not_the_hidden_roles() {
    let place = TestBackend::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.run(&["completions", shell]).stdout;
        assert!(script.contains("holders") && !script.contains("__guard"), "{shell}");
    }
}

/// What bash would offer for the last word of `words`.
fn offered_by_bash(place: &TestBackend, words: &[&str]) -> String {
    let script = "source /dev/stdin <<< \"$(\"$TOOZ\" completions bash)\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  _tooz_or_its_command tooz \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; \
                  echo \"${COMPREPLY[@]}\"";
    let mut command = crate::common::process("bash");
    command.args(["--norc", "-c", script, "bash"]).args(words);
    command.env("TOOZ", env!("CARGO_BIN_EXE_tooz")).current_dir(place.path(""));
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_verbs_and_the_command_behind_two_dashes() {
    let place = TestBackend::new();
    std::fs::write(place.path("its-file"), "").unwrap();
    assert!(offered_by_bash(&place, &["tooz", "hol"]).contains("holders"));
    assert!(offered_by_bash(&place, &["tooz", "lock", "--child"]).contains("--children"));
    let commands = offered_by_bash(&place, &["tooz", "lock", "x", "--", "ca"]);
    assert!(commands.split_whitespace().any(|command| command == "cat"), "{commands}");
    assert_eq!(offered_by_bash(&place, &["tooz", "lock", "x", "--", "cat", "its"]), "its-file\n");
}

#[test]
fn manual_pages_come_from_the_same_definition() {
    let place = TestBackend::new();
    let page = place.run(&["man", "lock"]).stdout;
    for word in [".TH tooz-lock 1", "kill\\-grace", "systemd\\-run"] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert!(page.contains("\n.SH NOTES\n"), "{page}");
    let page = place.run(&["man"]).stdout;
    for title in ["EXIT STATUS", "ENVIRONMENT AND FILES"] {
        assert!(page.contains(&format!("\n.SH \"{title}\"\n")), "{title}: {page}");
    }
    assert!(!page.contains(".SH EXTRA") && !page.contains("tooz\\-help"), "{page}");
    assert_eq!(place.run(&["man", "nonsense"]).code, Some(64));
    let pages = place.path("pages");
    let directory = pages.to_str().unwrap();
    assert_eq!(place.run(&["man", "--directory", directory]).code, Some(64), "it does not exist");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(place.run(&["man", "--directory", directory]).code, Some(0));
    for name in ["tooz.1", "tooz-lock.1", "tooz-tokens-raise.1"] {
        assert!(pages.join(name).exists(), "{name}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_listing_silently() {
    let place = TestBackend::new();
    let mut watch = Following::start(&place, &["leader", "--watch", "g"]);
    assert_eq!(watch.change(), "vacant");
    // Also where nothing changes any more.
    drop(watch.lines);
    assert_eq!(watch.running.code(), 141);
    // Some programs give their children sockets.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = place.tooz(&["leader", "--watch", "g"]);
    command.stdout(std::os::fd::OwnedFd::from(theirs));
    let mut watch = Running::start(command);
    let mut line = String::new();
    BufReader::new(&ours).read_line(&mut line).unwrap();
    drop(ours);
    assert_eq!(watch.code(), 141);
}

#[test]
fn without_a_url_the_database_of_the_user_is_used() {
    let place = TestBackend::new();
    let mut command = place.tooz(&["lock", "x", "--", "true"]);
    let status =
        command.env_remove("TOOZ_URL").env("XDG_STATE_HOME", place.path("state #1")).status().unwrap();
    assert!(status.success());
    assert!(place.path("state #1/tooz/tooz.db").exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(place.path("state #1/tooz")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn help_tells_the_exit_codes_and_what_escapes() {
    let place = TestBackend::new();
    let help = place.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(
        help.stdout.contains("\n  75                  the lock or leadership was not acquired"),
        "{}",
        help.stdout
    );
    // Wrapped to the width of a terminal.
    let lock = place.run(&["lock", "--help"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in ["TOOZ_FENCING_TOKEN", "systemd-run", "the next holder may run already", "kill -9"] {
        assert!(lock.contains(word), "{word}");
    }
    assert_eq!(place.run(&["--version"]).code, Some(0));
}
