//! The simulation: whatever the seed, nothing that the contract forbids happens; and it notices when it does.
//!
//! `TOOZ_SEEDS=n` makes n runs instead of the default; `TOOZ_FIRST=n` begins at seed n. `TOOZ_SEED=n` makes the run of
//! one seed and prints its trace.
#![allow(clippy::print_stdout)] // a trace is for reading, and a test says by panicking

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tooz_conformance::simulation::{CLOCKS_STOP, Plan, Run, many, run};

/// So few that they cost a second; the stage `simulation` of `scripts/test` makes thousands.
const SEEDS: u64 = 100;

/// How often a long run says how far it is: about every three minutes on two cores.
const SAID_EVERY: u64 = 10_000;

/// Seeds that are run twice, to compare the traces.
const REPLAYED: u64 = 100;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, and is {text:?}")))
}

/// Does the same with each on all cores, and answers what came of it in the same order.
fn on_all_cores<P: Sync, T: Send>(items: &[P], act: impl Fn(&P) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else { return };
                    let seen = act(item);
                    done.lock().unwrap().push((place, seen));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, seen)| seen).collect()
}

#[test]
fn nothing_forbidden_happens_whatever_the_seed() {
    if let Some(seed) = number("TOOZ_SEED") {
        let run = run(&Plan::new(seed));
        println!("{}", run.report());
        assert!(run.violations.is_empty(), "seed {seed}: {}", run.violations[0]);
        return;
    }
    let first = number("TOOZ_FIRST").unwrap_or(0);
    let done = AtomicU64::new(0);
    let summary = many(first..first + number("TOOZ_SEEDS").unwrap_or(SEEDS), Plan::new, |run| {
        if let Some(violation) = run.violations.first() {
            println!("seed {}: {violation}", run.seed);
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(SAID_EVERY) {
            println!("{done} seeds");
        }
    });
    println!("{summary}");
    assert!(summary.is_well(), "{summary}");
}

#[test]
fn a_seed_replays_byte_by_byte() {
    let twice: Vec<u64> = (0..REPLAYED).flat_map(|seed| [seed, seed]).collect();
    let traces = on_all_cores(&twice, |seed| (*seed, run(&Plan::new(*seed)).trace));
    for pair in traces.chunks(2) {
        let [(seed, one), (_, other)] = pair else { unreachable!("each seed is run twice") };
        let line = one.lines().zip(other.lines()).position(|(one, other)| one != other);
        if let Some(line) = line {
            let [one, other] = [one, other].map(|trace| trace.lines().nth(line).unwrap());
            panic!("seed {seed} differs in line {line}:\n{one}\n{other}");
        }
        assert!(one == other && one.lines().count() > 100, "seed {seed}");
    }
}

/// A run that panics is a failed seed like any other, and says so.
#[test]
fn a_failed_seed_takes_nothing_from_the_others() {
    let summary = many(0..4, |seed| Plan::new(seed).with_fault("two-holders"), |_| {});
    assert!(summary.failed > 0 && summary.seeds == 4, "{summary}");
    let said = summary.to_string();
    for seed in summary.shown.keys() {
        assert!(said.contains(&format!("TOOZ_SEED={seed}: ")), "{said}");
    }
}

/// Which clauses' checkers are there for which planted fault. `SIMULATED.md` says which of them saw it first, and
/// in which seed.
const SEEN: &[(&str, &[&str])] = &[
    ("two-holders", &["L1", "L9"]),
    ("stale-release", &["L1", "L9", "L15"]),
    ("token-repeats", &["L3", "H"]),
    ("lost-wakeup", &["L6", "L8"]),
    ("dead-member", &["S3", "S7"]),
    ("watch-gap", &["W1"]),
    ("cancel-leaks", &["L6", "L8"]),
    ("barging", &["L8"]),
    ("reader-beside-writer", &["L9"]),
    ("silent-break", &["L10"]),
    ("resurrect", &["G5"]),
    ("leader-backwards", &["E3"]),
    ("deadline-late", &["S6", "L1", "L9", "L15"]),
    ("group-ids-fold", &["G1", "G2"]),
    ("namespace-leak", &["G7"]),
    ("deadline-from-reply", &["S6", "L1"]),
    ("unknown-is-failure", &["H", "L6"]),
    ("unknown-is-success", &["L4", "L6", "G2", "G3", "G5"]),
    ("late-update", &["G5"]),
    ("resume-too-far", &["W1"]),
    ("resume-too-early", &["W1"]),
    ("place-lost", &["L8"]),
    ("too-many-permits", &["L15"]),
    ("renews-the-dead", &["L8", "L10", "S7"]),
    ("dead-waiter", &["L6", "L8"]),
    ("orphan-lock", &["L6", "L8"]),
    ("last-first", &["L8"]),
    ("deletion-untold", &["W1", "W4"]),
    ("loss-untold", &["W1"]),
    ("close-leaks", &["S3"]),
    ("leave-ignored", &["G3"]),
    ("tokens-restart", &["L3"]),
    (CLOCKS_STOP, &["S6", "L1"]),
];

/// A fault that shows in none of so many seeds is taken to be invisible.
const LOOKED: u64 = 500;

/// The first seed that shows a fault to a checker which is there for it.
fn first_seen(fault: &'static str, clauses: &[&str]) -> Option<Run> {
    let seen = |run: &Run| run.violations.iter().any(|violation| clauses.contains(&violation.clause));
    (0..LOOKED).map(|seed| run(&Plan::new(seed).with_fault(fault))).find(seen)
}

#[test]
fn every_planted_fault_is_seen_by_its_checkers() {
    let mut table = format!(
        "# Which checker of the simulation sees which fault\n\nWritten by `TOOZ_BLESS=1 cargo test -p \
         tooz-conformance --test it simulation` and compared by it. Seeds from 0 to {} are run until one shows the \
         fault to a checker that is there for it; the clauses are those of all that complain in that run. \
         `FAULTS.md` says which cases of the suite turn red.\n\n| fault | first seed | clauses |\n|---|---|---|\n",
        LOOKED - 1
    );
    let mut hidden = Vec::new();
    for ((fault, expected), run) in
        SEEN.iter().zip(on_all_cores(SEEN, |(fault, clauses)| first_seen(fault, clauses)))
    {
        let Some(run) = run else {
            hidden.push(format!("{fault} as {expected:?}"));
            continue;
        };
        let mut clauses: Vec<&str> = run.violations.iter().map(|violation| violation.clause).collect();
        clauses.sort_unstable();
        clauses.dedup();
        println!("{fault}: seed {}: {}", run.seed, run.violations[0]);
        let _ = writeln!(table, "| `{fault}` | {} | {} |", run.seed, clauses.join(", "));
    }
    assert!(hidden.is_empty(), "not seen within {LOOKED} seeds: {hidden:#?}\n{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SIMULATED.md");
    if std::env::var_os("TOOZ_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == table, "the checkers see other things than SIMULATED.md says:\n{table}");
}

/// Faults that no history shows, and why.
const NOT_SEEN: &[(&str, &str)] = &[
    ("ends-unmarked", "what the next holder is told of the last one is no part of a history; the suite's cases ask for it"),
    ("raise-ignored", "nobody raises tokens in a simulation; the suite's cases do"),
];

#[test]
fn every_fault_is_in_the_table() {
    let refused = tooz_memory::Kit::of("memory://words?fault=none").unwrap_err();
    let (_, words) = refused.context().split_once("one of ").expect("the refusal names the words");
    let mut words: Vec<&str> = words.split(", ").collect();
    words.push(CLOCKS_STOP);
    let not_seen = NOT_SEEN.iter().map(|(fault, _)| *fault);
    let mut known: Vec<&str> = SEEN.iter().map(|(fault, _)| *fault).chain(not_seen).collect();
    words.sort_unstable();
    known.sort_unstable();
    assert_eq!(words, known);
}
