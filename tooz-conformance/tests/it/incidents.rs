//! `docs/incidents.md` and the suite say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tooz_conformance::{cases, matrix};

const PAGE: &str = include_str!("../../../docs/incidents.md");
const MATRIX: &str = include_str!("../../MATRIX.md");

/// How the last column of a row begins.
const VERDICTS: &[&str] = &["covered by ", "cannot happen: ", "not offered: "];

/// A row: the thread, and what becomes of it here.
struct Row {
    thread: &'static str,
    story: &'static str,
    here: &'static str,
}

impl Row {
    /// What stands between backticks in the last column.
    fn named(&self) -> impl Iterator<Item = &'static str> {
        self.here.split('`').skip(1).step_by(2)
    }

    /// `incident_<project>_<number>`, the name that a case about this thread has.
    fn case(&self) -> String {
        let (_, project) = self.thread.split_once('/').expect("a thread is repository#number");
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        format!("incident_{}", project.chars().map(plain).collect::<String>())
    }
}

fn rows() -> Vec<Row> {
    let lines = PAGE.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| thread |"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [thread, story, here] = cells[..] else { panic!("not three columns: {line}") };
            Row { thread, story, here }
        })
        .collect()
}

#[test]
fn every_row_is_a_public_thread_with_a_story_and_a_verdict() {
    let rows = rows();
    assert!(rows.len() >= 60, "{} threads", rows.len());
    let mut seen = BTreeSet::new();
    for row in &rows {
        let well_formed = row.thread.split_once('#').is_some_and(|(repository, number)| {
            repository.split('/').count() == 2 && number.parse::<u32>().is_ok()
        });
        assert!(well_formed, "{} is no owner/repository#number", row.thread);
        assert!(seen.insert(row.thread), "{} stands twice", row.thread);
        assert!(!row.story.is_empty(), "{} has no story", row.thread);
        let verdict = VERDICTS.iter().find_map(|verdict| row.here.strip_prefix(verdict));
        assert!(verdict.is_some_and(|rest| !rest.is_empty()), "{}: {}", row.thread, row.here);
    }
}

#[test]
fn every_case_on_the_page_exists_and_runs_somewhere() {
    // A build may leave out the driver on which one runs; that the table is right is tested beside this.
    let runs: BTreeMap<&str, bool> =
        cases::all().iter().map(|case| (case.name(), matrix::runs_somewhere(MATRIX, case.name()))).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for row in rows() {
        let covered = row.here.starts_with("covered by ");
        assert!(!covered || row.named().next().is_some(), "{} is covered by nothing", row.thread);
        for name in row.named() {
            if let Some((file, test)) = name.split_once(".rs::") {
                let source = std::fs::read_to_string(root.join(format!("{file}.rs")));
                let source = source.unwrap_or_else(|error| panic!("{}: {file}.rs: {error}", row.thread));
                let listed = source.split("cases![").skip(1).chain(source.split("tests![").skip(1)).any(|list| {
                    let (list, _) = list.split_once(']').unwrap_or_default();
                    list.split(',').any(|listed| listed.trim() == test)
                });
                let (before, _) = source
                    .split_once(&format!("fn {test}()"))
                    .unwrap_or_else(|| panic!("{}: there is no test {name}", row.thread));
                let attributes = before.rsplit("\n\n").next().unwrap_or_default();
                let marked = ["test]", "::test("].iter().any(|attribute| attributes.contains(attribute));
                let runs = listed || marked && !attributes.contains("#[ignore");
                assert!(runs, "{}: {name} does not run", row.thread);
            } else if covered {
                let runs =
                    runs.get(name).unwrap_or_else(|| panic!("{}: there is no case {name}", row.thread));
                assert!(runs, "{}: {name} runs on no driver", row.thread);
            }
        }
    }
}

#[test]
fn every_case_of_an_incident_has_the_row_of_its_thread() {
    let rows = rows();
    let cases = cases::all();
    let incidents =
        cases.iter().map(tooz_conformance::Case::name).filter(|name| name.starts_with("incident_"));
    let incidents: BTreeSet<&str> = incidents.collect();
    assert!(incidents.len() > 60, "only {} incidents are cases", incidents.len());
    for name in &incidents {
        let own = rows.iter().find(|row| row.case() == *name && row.named().any(|named| named == *name));
        assert!(own.is_some(), "{name} does not stand in the row of a thread of that name");
    }
    for row in &rows {
        let played = row.named().any(|named| named == row.case());
        assert_eq!(played, incidents.contains(&*row.case()), "{} and {}", row.thread, row.case());
    }
}
