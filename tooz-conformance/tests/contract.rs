//! The suite itself: that it covers the contract, and that nothing drops out of it unseen.

use std::collections::BTreeSet;
use std::path::Path;

use tooz_conformance::{cases, contract, matrix, targets};
use tooz_core::Characteristics;

const CONTRACT: &str = include_str!("../../docs/contract.md");

#[test]
fn every_clause_has_a_case_and_every_case_a_clause() {
    assert!(contract::clauses(CONTRACT).len() > 50, "the contract is not where it was");
    let differences = contract::differences(CONTRACT);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn doc_comments_name_the_clauses_of_the_table() {
    let documented = contract::documented();
    for case in cases::all() {
        let found: Vec<_> = documented.iter().filter(|(name, _)| name == case.name()).collect();
        let [(_, clauses)] = &found[..] else {
            panic!("{} is documented {} times", case.name(), found.len())
        };
        assert_eq!(clauses, case.clauses(), "{}", case.name());
    }
    assert_eq!(documented.len(), cases::all().len(), "a function is in no table");
}

#[test]
fn names_are_unique() {
    let cases = cases::all();
    let names: BTreeSet<_> = cases.iter().map(|case| case.name()).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn every_claim_has_a_case_and_a_twin() {
    let (all, cases) = (targets::all(), cases::all());
    for flag in Characteristics::all().iter() {
        let needing: Vec<_> = cases.iter().filter(|case| case.needed().contains(flag)).collect();
        for target in all.iter().filter(|target| target.characteristics().contains(flag)) {
            let runs = needing.iter().any(|case| case.why_not(target).is_none());
            assert!(runs, "{} claims {flag}, and no case that needs it runs there", target.name());
        }
        // Where it is not claimed, requiring it is refused: connect_unclaimed_characteristics_are_refused is
        // every characteristic's twin, and runs everywhere.
        let refusal =
            cases.iter().find(|case| case.name() == "connect_unclaimed_characteristics_are_refused");
        assert!(refusal.is_some_and(|case| all.iter().all(|target| case.why_not(target).is_none())));
    }
}

#[test]
fn the_matrix_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("MATRIX.md");
    let now = matrix::render(&targets::all());
    if std::env::var_os("TOOZ_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == now, "MATRIX.md differs; look at the difference after TOOZ_BLESS=1");
}
