//! The cancellation sweep, and that nothing drops out of it unseen. `tooz_conformance::sweep` says how that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use tooz_conformance::sweep::source::{Await, awaits, operations};
use tooz_conformance::sweep::{self, Swept};
use tooz_conformance::{Target, targets};

/// Awaits of the core at which no caller can be: the beginning of the file's name and of the place in it, and why.
const NOT_FOR_CALLERS: &[(&str, &str, &str)] = &[
    ("session/keeper/", "", "the keeper's own, or a job of it"),
    ("platform/clock.rs", "", "the keeper's timer"),
    (
        "builder.rs",
        "in_time: let connected",
        "a task of its own, driven to its end whoever waits for it",
    ),
    ("builder.rs", "driver: ", "inside that task"),
    ("builder.rs", "view: let driver", "inside that task"),
    ("builder.rs", "connect: let driver", "inside that task"),
    ("builder.rs", "connect: let session", "inside that task"),
    ("group.rs", "settle: ", "what is left of a dropped call, in the keeper"),
    ("session/rejoin.rs", "leave_until_answered: ", "called for what is left of a dropped call alone"),
    ("session/rejoin.rs", "rejoin: ", "a job of the keeper's"),
    ("session/release.rs", "drop: ", "what is left of a dropped call, in the keeper"),
    ("session/release.rs", "give_back_lost: ", "a job of the keeper's"),
    ("session/release.rs", "release_until_answered: ", "called for what is left of a dropped call, or was lost, alone"),
    ("session/acquire.rs", "drop: ", "the same"),
    ("session/call.rs", "drive: ", "the same"),
    ("hooks.rs", "watch_elected_as_leader: ", "nobody is asked, so it never waits"),
    ("viewer.rs", "close: let _ = answer", "a task of its own, which goes on whoever waits for it"),
    ("viewer.rs", "drop: ", "the same, with nobody to wait for it"),
    (
        "session/state.rs",
        "lease_within: tokio::task::yield_now",
        "only between two steps of another thread: a session that is gone and not lost",
    ),
];

static WITH_TTL: LazyLock<Vec<Swept>> = LazyLock::new(|| sweep::run(&targets::memory::with_ttl(""), false));
static WITHOUT_TTL: LazyLock<Vec<Swept>> =
    LazyLock::new(|| sweep::run(&targets::memory::without_ttl(), false));
static ABANDONED: LazyLock<Vec<Swept>> = LazyLock::new(|| sweep::run(&targets::memory::with_ttl(""), true));

/// The core's files by their path below `src`.
fn core() -> BTreeMap<String, String> {
    fn read(root: &Path, at: &Path, files: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What drivers await is theirs.
                if path != root.join("driver") {
                    read(root, &path, files);
                }
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tooz-core/src");
    let mut files = BTreeMap::new();
    read(&root, &root, &mut files);
    assert!(files.contains_key("lock.rs") && files.len() > 25, "the core is not where it was");
    files
}

/// In which operations the source and the sweep differ.
fn unswept(files: &BTreeMap<String, String>) -> Vec<String> {
    let written = operations(files);
    let swept: BTreeSet<String> = sweep::operations().into_iter().map(str::to_owned).collect();
    let missing = written.difference(&swept).map(|name| format!("{name} has no scene"));
    let gone = swept.difference(&written).map(|name| format!("{name} has a scene and is not in the core"));
    missing.chain(gone).collect()
}

/// Why no caller is ever at an await.
fn excuse(place: &Await) -> Option<&'static (&'static str, &'static str, &'static str)> {
    NOT_FOR_CALLERS
        .iter()
        .find(|(file, what, _)| place.file.starts_with(file) && place.place.starts_with(what))
}

/// At how many points each operation was dropped at an await.
fn hits<'a>(swept: &'a [Swept], place: &Await) -> BTreeMap<&'a str, usize> {
    let line = (place.file.clone(), place.line);
    let mut hits = BTreeMap::new();
    for scene in swept {
        if let Some(count) = scene.lines.get(&line) {
            *hits.entry(scene.operation).or_default() += count;
        }
    }
    hits
}

/// Awaits at which nothing was dropped although callers can be there, and excuses that excuse nothing.
fn unhit(swept: &[Swept], places: &[Await]) -> Vec<String> {
    let mut wrong = Vec::new();
    for place in places {
        let (hit, excuse) = (!hits(swept, place).is_empty(), excuse(place));
        let at = format!("{}:{}, {}", place.file, place.line, place.place);
        match (hit, excuse) {
            (false, None) => wrong.push(format!("nothing was dropped at {at}")),
            (true, Some(_)) => {
                wrong.push(format!("callers are said not to be at {at}, and were dropped there"));
            }
            (true, None) | (false, Some(_)) => {}
        }
    }
    for (file, what, why) in NOT_FOR_CALLERS {
        if !places.iter().any(|place| place.file.starts_with(file) && place.place.starts_with(what)) {
            wrong.push(format!("{file} has no await \"{what}\" any more, of which is said: {why}"));
        }
    }
    wrong
}

#[track_caller]
fn is_clean(swept: &[Swept]) {
    assert!(swept.len() > 100, "only {} scenes were played", swept.len());
    let failed: Vec<_> = swept
        .iter()
        .filter_map(|scene| {
            let failure = scene.failure.as_ref()?;
            Some(format!("{}, {}: {failure}", scene.operation, scene.scene))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn is_clean_on(target: &Target) {
    assert_eq!(target.missing(), None);
    is_clean(&sweep::run(target, false));
}

#[test]
fn every_operation_of_the_core_is_swept() {
    let differences = unswept(&core());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_new_operation_and_a_new_await_would_be_noticed() {
    let mut files = core();
    let text = "impl Lock {\n    pub async fn made_up(&self) {\n        self.never().await;\n    }\n}\n";
    files.insert("made_up.rs".into(), text.into());
    assert_eq!(unswept(&files), ["Lock::made_up has no scene"]);
    let unhit = unhit(&WITH_TTL, &awaits(&files));
    assert_eq!(unhit, ["nothing was dropped at made_up.rs:3, made_up: self.never().await;"]);
}

#[test]
fn nothing_is_left_behind_in_memory() {
    is_clean(&WITHOUT_TTL);
}

#[test]
fn nothing_is_left_behind_in_memory_with_a_ttl() {
    is_clean(&WITH_TTL);
    let blind = WITH_TTL.iter().filter(|scene| scene.looks && scene.points > 1 && scene.lines.is_empty());
    let blind: Vec<_> = blind.map(|scene| format!("{}, {}", scene.operation, scene.scene)).collect();
    assert!(blind.is_empty(), "scenes that show no await: {}", blind.join("; "));
    let points: usize = WITH_TTL.iter().map(|scene| scene.points).sum();
    assert!(points > 3_000, "{points} points tell little");
}

#[test]
fn nothing_is_left_behind_in_sqlite() {
    is_clean_on(&targets::sqlite::target());
}

#[test]
fn nothing_is_left_behind_in_files() {
    is_clean_on(&targets::file::target());
}

#[test]
fn nothing_is_left_behind_in_files_with_portable_locks() {
    is_clean_on(&targets::file::portable());
}

#[test]
fn futures_were_dropped_at_every_await_of_the_core() {
    let wrong = unhit(&WITH_TTL, &awaits(&core()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_the_hand_over_of_unfinished_calls_it_finds_leaks() {
    let leaking: BTreeSet<_> =
        leaks().into_iter().filter(|(_, (leaks, _))| *leaks > 0).map(|(op, _)| op).collect();
    for operation in
        ["Lock::acquire", "LockSet::acquire", "LockGuard::release", "Election::campaign", "Group::join"]
    {
        assert!(leaking.contains(operation), "{operation} leaks nothing");
    }
    for operation in ["Lock::holders", "Group::members", "GroupWatch::next", "LockGuard::lost"] {
        assert!(!leaking.contains(operation), "{operation} has nothing to hand over, and leaks");
    }
}

/// Without the hand-over: in how many of an operation's scenes something was left behind.
fn leaks() -> BTreeMap<&'static str, (usize, usize)> {
    let mut leaks: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for scene in &*ABANDONED {
        let (leaking, all) = leaks.entry(scene.operation).or_default();
        *leaking += usize::from(scene.failure.is_some());
        *all += 1;
    }
    leaks
}

/// An operation's scenes and points.
fn points(swept: &[Swept], operation: &str) -> (usize, usize) {
    let of = swept.iter().filter(|scene| scene.operation == operation);
    of.fold((0, 0), |(scenes, points), scene| (scenes + 1, points + scene.points))
}

fn render() -> String {
    let mut text = String::from(
        "# Where futures were dropped\n\nWritten by `TOOZ_BLESS=1 cargo test -p tooz-conformance --test it sweep` and compared \
         by it. After each point nothing was left behind.\n\n## Operations\n\nHow many scenes were played, at how many \
         points the future was dropped until it ended by itself, and in how many scenes something is left behind when \
         unfinished calls are not handed over (`memory+ttl`). sqlite, file and file+portable are swept in the same way, on \
         the real clock, on which points have no number.\n\n\
         | operation | memory+ttl: scenes | points | memory: scenes | points | leaks without the hand-over |\n\
         |---|---|---|---|---|---|\n",
    );
    let leaks = leaks();
    for operation in sweep::operations() {
        let ((scenes, dropped), (other, also)) =
            (points(&WITH_TTL, operation), points(&WITHOUT_TTL, operation));
        let leaking = leaks.get(operation).map_or(0, |(leaking, _)| *leaking);
        let leaking = if leaking == 0 { "–".to_owned() } else { format!("in {leaking} scenes") };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {operation} | {scenes} | {dropped} | {other} | {also} | {leaking} |");
    }
    let all: usize = WITH_TTL.iter().map(|scene| scene.points).sum();
    let _ = writeln!(text, "| all | {} | {all} | | | |", WITH_TTL.len());
    text.push_str(
        "\n## Awaits\n\nEach await of the core, and how often each operation was dropped there (`memory+ttl`; of modes \
         and conditions that take the same way, one is counted).\n",
    );
    let mut file = String::new();
    for place in awaits(&core()) {
        if file != place.file {
            file.clone_from(&place.file);
            let _ = writeln!(text, "\n### {file}\n");
        }
        let hits = hits(&WITH_TTL, &place);
        let by: Vec<_> = hits.iter().map(|(operation, count)| format!("{operation} {count}")).collect();
        let by = excuse(&place).map_or_else(|| by.join(", "), |(_, _, why)| format!("*{why}*"));
        let _ = writeln!(text, "- `{}`: {by}", place.place);
    }
    text
}

#[test]
fn the_sweep_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SWEEP.md");
    let now = render();
    if std::env::var_os("TOOZ_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let (was, is): (BTreeSet<_>, BTreeSet<_>) = (golden.lines().collect(), now.lines().collect());
    let differences: Vec<_> = was
        .difference(&is)
        .map(|line| format!("- {line}"))
        .chain(is.difference(&was).map(|line| format!("+ {line}")))
        .collect();
    assert!(golden == now, "SWEEP.md says otherwise (TOOZ_BLESS=1 writes it):\n{}", differences.join("\n"));
}
