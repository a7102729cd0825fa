//! `tooz doctor` on backends that are well and on such that are not.

use std::path::Path;

use crate::common::{Backend, Finished, Running, TestBackend, finding, worse_than_good};
use nix::sys::signal::Signal;
use nix::sys::statfs;

/// What is warned of on any backend that stands in files there.
fn of_the_disk(path: &Path) -> (Option<i32>, Vec<String>) {
    let in_memory = statfs::statfs(path).unwrap().filesystem_type() == statfs::TMPFS_MAGIC;
    if in_memory { (Some(78), vec!["file-system".into()]) } else { (Some(0), Vec::new()) }
}

/// The rows of every table. What is left out grows with every use: the log of events, which the driver cuts off, and the
/// counters.
fn rows(database: &Path) -> Vec<(String, Vec<Vec<rusqlite::types::Value>>)> {
    let database = rusqlite::Connection::open(database).unwrap();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('events', 'sqlite_sequence', 'fence')";
    let mut names = database.prepare(names).unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let rows = |name: &String| {
        let mut rows = database.prepare(&format!("SELECT * FROM {name}")).unwrap();
        let columns = rows.column_count();
        rows.query_map([], |row| (0..columns).map(|at| row.get(at)).collect())
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    names.iter().map(|name| (name.clone(), rows(name))).collect()
}

/// All that stays in a place. A lock's first use in a directory makes one of 64 directories for the records of locks, which
/// stays with its mutex.
fn what_stays(place: &TestBackend, backend: Backend) -> impl PartialEq + std::fmt::Debug + use<> {
    let rows = matches!(backend, Backend::Sqlite).then(|| rows(&place.path("tooz.db")));
    let paths = place.everything().into_keys().filter(|path| !path.to_str().unwrap().contains("/locks/"));
    (rows, paths.collect::<Vec<_>>())
}

#[test]
fn a_backend_that_is_well_is_good_and_nothing_of_ours_stays() {
    for backend in [Backend::Sqlite, Backend::File] {
        let place = TestBackend::on(backend);
        assert_eq!(place.run(&["lock", "x", "--", "true"]).code, Some(0));
        let before = what_stays(&place, backend);
        let finished = place.run(&["doctor", "--json", "--rounds", "3"]);
        let (code, worse) = of_the_disk(&place.path("."));
        assert_eq!((finished.code, worse_than_good(&finished)), (code, worse), "{finished:?}");
        let latency = finding(&finished, "latency");
        for operation in ["connect", "acquire+release", "join+leave", "members", "beat"] {
            assert!(latency["milliseconds"][operation].as_f64().unwrap() > 0.0, "{operation}: {latency}");
        }
        assert!(latency["what"].as_str().unwrap().starts_with("median of 3: "), "{latency}");
        assert!(finding(&finished, "kept")["kept"].as_array().unwrap().contains(&"durable_fencing".into()));
        assert_eq!(what_stays(&place, backend), before);
        assert_eq!(finished.stderr, "");
    }
}

/// What decides which locks it means, besides the URL.
#[test]
fn namespace_and_ttl_are_named() {
    let place = TestBackend::new();
    let backend = |words: &[&str]| {
        let words = [words, &["doctor", "--json"]].concat();
        finding(&place.run(&words), "backend")["what"].as_str().unwrap().to_owned()
    };
    let both = backend(&["--namespace", "billing", "--ttl", "20s"]);
    assert!(both.ends_with(", namespace \"billing\", ttl 20s"), "{both}");
    let neither = backend(&[]);
    assert!(!neither.contains("namespace") && !neither.contains("ttl"), "{neither}");
}

#[test]
fn nothing_is_made_in_a_place_that_is_not_used_yet() {
    let place = TestBackend::new();
    std::fs::File::create(place.path("empty.db")).unwrap();
    std::fs::create_dir(place.path("empty")).unwrap();
    let urls = [
        "sqlite://new.db",
        "sqlite://empty.db",
        "file://new/below",
        "file://empty",
        "file://empty?namespace=n",
    ];
    let urls = urls.map(|url| url.replacen("://", &format!("://{}", place.path("").display()), 1));
    let before = place.everything();
    for url in urls.iter().map(String::as_str).chain([""]) {
        let home = place.path("home");
        let mut doctor = place.tooz(&["doctor", "--json", "--rounds", "2"]);
        // Without a URL it is the user's own database.
        let doctor = doctor.env("TOOZ_URL", url).env("HOME", &home).env_remove("XDG_STATE_HOME");
        let finished = Finished::from(doctor.output().unwrap());
        assert_eq!(place.everything(), before, "{url}: {finished:?}");
        let disk = of_the_disk(&place.path("."));
        assert_eq!((finished.code, worse_than_good(&finished)), disk, "{url}: {finished:?}");
        let unused = finding(&finished, "unused");
        assert!(unused["what"].as_str().unwrap().contains("first"), "{unused}");
        assert!(!finished.stdout.contains("acquire+release"), "{finished:?}");
        assert!(finished.stderr.is_empty(), "{finished:?}");
    }
}

/// Where the user's own database would be, something else may stand.
#[test]
fn a_home_that_cannot_have_the_database_is_bad() {
    let place = TestBackend::new();
    std::fs::create_dir_all(place.path("file")).unwrap();
    std::fs::write(place.path("file/.local"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("link")).unwrap();
    for (home, topic) in
        [(place.path("file"), "place"), (place.path("link"), "place"), ("/proc".into(), "file-system")]
    {
        let mut doctor = place.tooz(&["doctor", "--json"]);
        let doctor = doctor.env("TOOZ_URL", "").env("HOME", &home).env_remove("XDG_STATE_HOME");
        let finished = Finished::from(doctor.output().unwrap());
        assert_eq!(finished.code, Some(78), "{finished:?}");
        assert_eq!(finding(&finished, topic)["severity"], "bad", "{finished:?}");
        assert!(!finished.stdout.contains("\"unused\""), "{finished:?}");
    }
}

#[test]
fn the_url_may_be_an_argument_and_people_get_text() {
    let place = TestBackend::new();
    let url = format!("file://{}", place.path("other").display());
    assert_eq!(place.run(&["--url", &url, "lock", "x", "--", "true"]).code, Some(0));
    let finished = place.run(&["doctor", &url]);
    assert_eq!(finished.code, of_the_disk(&place.path(".")).0, "{finished:?}");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines[0], format!("good     backend          {url} (from the command line)"));
    assert!(lines.iter().any(|line| line.starts_with("good     latency          median of 5: connect ")));
    assert!(!place.path("tooz.db").exists(), "the argument wins over TOOZ_URL");
}

/// Each process would have a backend of its own, and every lock.
#[test]
fn a_backend_within_one_process_is_bad_and_refused() {
    let place = TestBackend::new();
    let finished = place.run(&["doctor", "--json", "memory://x"]);
    assert_eq!(finished.code, Some(78), "{finished:?}");
    assert_eq!(finding(&finished, "processes")["severity"], "bad", "{finished:?}");
    for verb in [
        &["lock", "x", "--", "touch", "ran"][..],
        &["elect", "x", "--", "touch", "ran"],
        &["join", "x", "--", "touch", "ran"],
        &["holders", "x"],
        &["break", "x", "--reason", "test"],
        &["groups"],
        &["members", "x"],
        &["leader", "x"],
        &["tokens", "raise", "--to", "7"],
    ] {
        let refused = place.run(&[&["--url", "memory://x"], verb].concat());
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(64), ""), "{verb:?}: {refused:?}");
        assert!(refused.stderr.contains("DISTRIBUTED_ACROSS_PROCESSES"), "{refused:?}");
    }
    assert!(!place.path("ran").exists());
}

#[test]
fn what_a_usage_error_is_stays_one() {
    let place = TestBackend::new();
    for url in ["nonsense://x", "redis://a,b", "sqlite://"] {
        let finished = place.run(&["doctor", url]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(64), ""), "{url}: {finished:?}");
        assert!(finished.stderr.starts_with("tooz: "), "{finished:?}");
    }
}

#[test]
fn a_database_that_was_moved_is_adopted_by_order() {
    let place = TestBackend::new();
    let holder =
        Running::start(place.tooz(&["lock", "x", "--", "sh", "-c", "echo >up; while :; do sleep 60; done"]));
    place.wait_for("up");
    let moved = place.path("moved.db");
    for suffix in ["", "-wal"] {
        let from = place.path(&format!("tooz.db{suffix}"));
        std::fs::copy(from, place.path(&format!("moved.db{suffix}"))).unwrap();
    }
    let url = format!("sqlite://{}", moved.display());
    let refused = place.run(&["doctor", "--json", &url]);
    assert_ne!(refused.code, Some(0));
    let why = finding(&refused, "reachable");
    assert!(why["what"].as_str().unwrap().contains("doctor --adopt"), "{why}");
    let adopted = place.run(&["doctor", "--json", "--adopt", &url]);
    assert_eq!((adopted.code, worse_than_good(&adopted)), of_the_disk(&place.path(".")), "{adopted:?}");
    assert!(finding(&adopted, "adopt")["what"].as_str().unwrap().starts_with("adopted"));
    for url in [&*url, "memory://x"] {
        let again = place.run(&["doctor", "--json", "--adopt", url]);
        assert!(
            finding(&again, "adopt")["what"].as_str().unwrap().starts_with("nothing to adopt"),
            "{again:?}"
        );
    }
    drop(holder);
}

#[test]
fn a_process_that_stands_still_with_a_lock_is_named() {
    for backend in [Backend::Sqlite, Backend::File] {
        let place = TestBackend::on(backend);
        let script = "echo $PPID >up; while :; do sleep 60; done";
        let holder = Running::start(place.tooz(&["lock", "x", "--", "sh", "-c", script]));
        place.wait_for("up");
        let pid = holder.pid();
        holder.stop();
        let finished = place.run(&["doctor", "--json"]);
        assert_eq!(finished.code, Some(78), "{finished:?}");
        let stopped = finding(&finished, "stopped");
        assert!(stopped["what"].as_str().unwrap().contains(&pid.to_string()), "{stopped}");
        assert!(stopped["advice"].as_str().unwrap().contains(&format!("kill -CONT {pid}")), "{stopped}");
        holder.signal(Signal::SIGCONT);
    }
}
