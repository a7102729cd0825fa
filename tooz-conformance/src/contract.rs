//! Compares the cases with the contract's clauses, both ways.

use std::collections::BTreeSet;

use crate::cases;

/// Families of clauses without cases: P, since there is no hash ring yet, and H, which is how [`crate::history`]
/// judges the runs of [`crate::simulation`].
pub const LATER: &[&str] = &["P", "H"];

/// Clauses that no case can show, with the reason why.
pub const NOT_SHOWN: &[(&str, &str)] = &[(
    "X3",
    "TLS and credentials exist on network drivers only; each of those brings the cases for its own servers",
)];

/// The ids of the clauses in a contract: each stands in bold at the start of a list item.
pub fn clauses(contract: &str) -> Vec<String> {
    let lines = contract.lines().filter_map(|line| line.strip_prefix("- **"));
    lines.filter_map(|rest| rest.split_once("**")).map(|(id, _)| id.to_owned()).collect()
}

/// Everything in which contract and cases differ; empty if they agree.
pub fn differences(contract: &str) -> Vec<String> {
    let written = clauses(contract);
    let mut differences = Vec::new();
    let known: BTreeSet<&str> = written.iter().map(String::as_str).collect();
    if known.len() != written.len() {
        differences.push("a clause stands twice in the contract".to_owned());
    }
    let cases = cases::all();
    let tested: BTreeSet<&str> = cases.iter().flat_map(|case| case.clauses().iter().copied()).collect();
    for (clause, _) in NOT_SHOWN {
        if tested.contains(clause) {
            differences.push(format!("{clause} has a case, and is said not to be shown"));
        }
        if !known.contains(clause) {
            differences.push(format!("{clause} is said not to be shown, and is no clause"));
        }
    }
    for clause in &known {
        let later = LATER.iter().any(|family| clause.starts_with(family));
        let excused = later || NOT_SHOWN.iter().any(|(id, _)| id == clause);
        if !excused && !tested.contains(clause) {
            differences.push(format!("{clause} has no case"));
        }
        if later && tested.contains(clause) {
            differences.push(format!("{clause} has a case, and its family is said to come later"));
        }
    }
    for case in &cases {
        for clause in case.clauses().iter().filter(|clause| !known.contains(*clause)) {
            differences.push(format!("{} tests {clause}, which is no clause", case.name()));
        }
    }
    differences
}

/// The clauses that a case's doc comment names, by the case's name.
pub fn documented() -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for source in cases::sources() {
        let lines: Vec<&str> = source.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(rest) = line.strip_prefix("async fn ") else { continue };
            let Some((name, _)) = rest.split_once("(h: Harness) -> Outcome {") else { continue };
            let first =
                lines[..index].iter().rposition(|line| !line.starts_with("///")).map_or(0, |at| at + 1);
            let head = lines[first].trim_start_matches("/// ").split(':').next().unwrap_or_default();
            found.push((name.to_owned(), head.split(", ").map(str::to_owned).collect()));
        }
    }
    found
}
