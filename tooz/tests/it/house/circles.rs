//! No two files of a crate reach each other by their imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::imports::{Arrows, arrows};
use super::source::{CRATES, Texts, source};

/// The groups of files that reach each other, each with the names that tie them.
fn circles(arrows: &Arrows) -> Vec<String> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = arrows
        .keys()
        .map(|from| {
            let mut reached = BTreeSet::new();
            let mut next = vec![from.as_str()];
            while let Some(file) = next.pop() {
                let further = arrows.get(file).into_iter().flat_map(BTreeMap::keys).map(String::as_str);
                next.extend(further.filter(|file| reached.insert(*file)));
            }
            (from.as_str(), reached)
        })
        .collect();
    let both = |a: &str, b: &str| reached[a].contains(b) && reached.get(b).is_some_and(|of| of.contains(a));
    let mut groups: BTreeSet<Vec<&str>> = BTreeSet::new();
    for from in reached.keys() {
        let group: Vec<_> = reached.keys().filter(|to| both(from, to)).copied().collect();
        if group.len() > 1 {
            groups.insert(group);
        }
    }
    let show = |group: &Vec<&str>| {
        let mut text = group.join(", ");
        for from in group {
            for (to, names) in arrows[*from].iter().filter(|(to, _)| group.contains(&to.as_str())) {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  {from} -> {to}: {}", names.join(", "));
            }
        }
        text
    };
    groups.iter().map(show).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    for name in CRATES {
        let arrows = arrows(&source(name));
        found.extend(circles(&arrows).into_iter().map(|circle| format!("{name}: {circle}")));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn planted(files: &[(&str, &str)]) -> Vec<String> {
    let texts: Texts = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    circles(&arrows(&texts))
}

#[test]
fn a_direct_circle_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        ("b.rs", "pub struct B; impl B { fn a() -> Option<crate::a::A> { None } }"),
    ]);
    assert_eq!(found, ["a.rs, b.rs\n  a.rs -> b.rs: B\n  b.rs -> a.rs: A"]);
}

#[test]
fn a_circle_over_three_files_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use super::b; pub struct A; fn f() { b::f(); }"),
        ("b.rs", "pub fn f() { println!(\"{}\", crate::c::NUMBER); }"),
        ("c.rs", "use crate::a::A; pub const NUMBER: u32 = 1; impl A { fn number() {} }"),
    ]);
    assert_eq!(found, ["a.rs, b.rs, c.rs\n  a.rs -> b.rs: b, f\n  b.rs -> c.rs: NUMBER\n  c.rs -> a.rs: A"]);
}

#[test]
fn a_circle_over_a_re_export_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod inner; pub use inner::{B as Renamed}; pub use inner::*;"),
        ("a.rs", "use crate::{C, Renamed}; pub fn f(_: Renamed, _: C) {}"),
        ("inner/mod.rs", "mod b; mod c; pub use b::B; pub use c::C;"),
        ("inner/b.rs", "pub struct B; fn f() { crate::a::f(B, crate::C) }"),
        ("inner/c.rs", "pub struct C;"),
    ]);
    assert_eq!(found, ["a.rs, inner/b.rs\n  a.rs -> inner/b.rs: Renamed\n  inner/b.rs -> a.rs: f"]);
}

#[test]
fn a_circle_over_a_name_that_a_macro_makes_is_found() {
    let found = planted(&[
        ("lib.rs", "mod a; mod names; pub use names::Id;"),
        ("a.rs", "use std::fmt; pub fn f() { use crate::Id as _; }"),
        (
            "names.rs",
            "macro_rules! id { ($name:ident) => { pub struct $name; } } id!(Id); fn g() { crate::a::f() }",
        ),
    ]);
    assert_eq!(found, ["a.rs, names.rs\n  a.rs -> names.rs: Id\n  names.rs -> a.rs: f"]);
}

#[test]
fn what_is_no_circle_is_none() {
    let found = planted(&[
        ("lib.rs", "mod a; mod inner; pub use inner::B;"),
        ("a.rs", "use crate::B; use std::fmt; pub fn f(_: B, _: fmt::Error) {}"),
        ("inner/mod.rs", "mod b; pub use b::B; use b::made; pub fn more() { made(); }"),
        (
            "inner/b.rs",
            "pub struct B; pub fn made() {} #[cfg(test)] mod tests { use crate::a::f; use super::super::more; }",
        ),
    ]);
    assert!(found.is_empty(), "{found:?}");
}
