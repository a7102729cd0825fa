//! The golden table: which case runs where, and which driver claims what.

use std::fmt::Write as _;

use tooz_core::Characteristics;

use crate::cases;
use crate::target::Target;

/// The table of these targets, as `MATRIX.md` holds it.
pub fn render(targets: &[Target]) -> String {
    let mut text = String::from(
        "# What runs where\n\nWritten by the suite (`TOOZ_BLESS=1 cargo test -p tooz-conformance --test it contract`) and \
         compared by it: a driver that claims more or less, and a case that runs somewhere or no longer, shows in \
         the diff.\n\n## What each driver claims\n\n",
    );
    let names: Vec<&str> = targets.iter().map(Target::name).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for flag in Characteristics::all().iter() {
        let row: Vec<&str> = targets
            .iter()
            .map(|target| if target.characteristics().contains(flag) { "yes" } else { "–" })
            .collect();
        let _ = writeln!(text, "| {flag} | {} |", row.join(" | "));
    }
    let _ = writeln!(text, "\n## Cases\n\n| case | clauses | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(names.len()));
    for case in cases::all() {
        let row: Vec<String> = targets
            .iter()
            .map(|target| match case.why_not(target) {
                None if case.is_virtual(target) => "runs (virtual clock)".to_owned(),
                None => "runs".to_owned(),
                Some(why) => format!("*{}*", why.replace('|', "and")),
            })
            .collect();
        let _ = writeln!(text, "| {} | {} | {} |", case.name(), case.clauses().join(" "), row.join(" | "));
    }
    text
}

/// The columns of a table that [`render`] wrote, as far as they are of `targets`: a build may leave drivers out.
pub fn restrict(table: &str, targets: &[Target]) -> String {
    let mut kept: Option<Vec<bool>> = None;
    let mut lines = Vec::new();
    for line in table.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            kept = None;
            lines.push(line.to_owned());
            continue;
        };
        let cells: Vec<&str> = row.split('|').collect();
        // The first row of a table names its columns.
        let kept = kept.get_or_insert_with(|| {
            let named = |cell: &&str| match cell.trim() {
                "" | "case" | "clauses" => true,
                name => targets.iter().any(|target| target.name() == name),
            };
            cells.iter().map(named).collect()
        });
        let cells: Vec<&str> =
            cells.into_iter().zip(kept.iter()).filter(|(_, kept)| **kept).map(|(cell, _)| cell).collect();
        lines.push(format!("|{}|", cells.join("|")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Whether a case runs on any target, by a table that [`render`] wrote.
pub fn runs_somewhere(table: &str, case: &str) -> bool {
    let row = table.lines().find(|line| line.starts_with(&format!("| {case} |")));
    row.is_some_and(|row| row.contains("| runs "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::TestBackend;

    fn target(name: &str) -> Target {
        Target::new(name, |_| Ok(TestBackend::new("nothing://")))
    }

    #[test]
    fn a_table_of_fewer_targets_is_part_of_the_table_of_more() {
        let [one, two, three] = ["one", "two", "three"].map(target);
        let all = render(&[one.clone(), two.clone(), three.clone()]);
        assert_eq!(restrict(&all, &[one.clone(), two, three.clone()]), all);
        assert_eq!(restrict(&all, &[one.clone(), three.clone()]), render(&[one.clone(), three.clone()]));
        // One that the table does not know shows as a difference.
        assert_ne!(restrict(&all, &[one.clone(), target("four")]), render(&[one, target("four")]));
    }

    #[test]
    fn what_runs_somewhere_is_read_off_the_table() {
        let table = "| case | clauses | a | b |\n|---|---|---|---|\n| x | S1 | *no* | runs |\n| y | S1 | *it runs elsewhere* | *no* |\n";
        assert!(runs_somewhere(table, "x") && !runs_somewhere(table, "y") && !runs_somewhere(table, "z"));
    }
}
