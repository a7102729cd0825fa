//! The golden table: which case runs where, and which driver claims what.

use std::fmt::Write as _;

use tooz_core::Characteristics;

use crate::cases;
use crate::target::Target;

/// The table of these targets, as `MATRIX.md` holds it.
pub fn render(targets: &[Target]) -> String {
    let mut text = String::from(
        "# What runs where\n\nWritten by the suite (`TOOZ_BLESS=1 cargo test -p tooz-conformance --test contract`) and \
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
