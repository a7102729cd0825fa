//! Every driver has the same table of contents, and each part of the driver's contract stands in its file.

use syn::Item;

use super::source::{DRIVERS, Texts, code_lines, items, source};

/// What each driver has.
const REQUIRED: &[&str] = &["lib", "config", "driver", "session", "locks", "groups", "watch", "holders"];
/// What a driver may have besides. Everything else stands in a folder.
const ALLOWED: &[&str] =
    &["keys", "error", "client", "session_state", "view", "examine", "reaper", "shared_with_python"];
/// Which file implements which trait.
const IMPLEMENTED_IN: &[(&str, &str)] = &[
    ("Driver", "driver"),
    ("Session", "session"),
    ("SessionLocks", "locks"),
    ("Locks", "holders"),
    ("SessionGroups", "groups"),
    ("Groups", "groups"),
];
/// A smaller file is not worth opening.
const LEAST: usize = 25;
/// The exceptions: the index of a folder, and a module whose path is public.
const SMALL: &[&str] = &["mod", "shared_with_python"];

/// The name of a file without folder and ending.
fn stem(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// The traits of the driver's contract that a file implements.
fn implemented(file: &str, text: &str) -> Vec<String> {
    let blocks = items(file, text).into_iter().filter_map(|item| match item {
        Item::Impl(block) => {
            block.trait_.and_then(|(_, path, _)| Some(path.segments.last()?.ident.to_string()))
        }
        _ => None,
    });
    blocks.filter(|name| IMPLEMENTED_IN.iter().any(|(of, _)| name == of)).collect()
}

/// The files that are not worth opening.
fn too_small(texts: &Texts) -> impl Iterator<Item = String> {
    let lines = texts.iter().map(|(file, text)| (file, code_lines(text)));
    let small = lines.filter(|(file, lines)| *lines < LEAST && !SMALL.contains(&stem(file)));
    small.map(|(file, lines)| format!("{file} has {lines} lines of code: fold it into another"))
}

/// What is wrong with a driver's files.
fn wrong(texts: &Texts) -> Vec<String> {
    let mut wrong = Vec::new();
    let top = || texts.keys().filter(|file| !file.contains('/')).map(|file| stem(file));
    for name in REQUIRED {
        if !top().any(|file| file == *name) {
            wrong.push(format!("{name}.rs is missing"));
        }
    }
    for name in top() {
        if !REQUIRED.contains(&name) && !ALLOWED.contains(&name) {
            wrong.push(format!("{name}.rs belongs into a folder"));
        }
    }
    for (name, home) in IMPLEMENTED_IN {
        let text = texts.get(&format!("{home}.rs"));
        if text.is_some_and(|text| !implemented(home, text).iter().any(|of| of == name)) {
            wrong.push(format!("{home}.rs does not implement {name}"));
        }
    }
    for (file, text) in texts {
        for name in implemented(file, text) {
            let of = IMPLEMENTED_IN.iter().find(|(of, _)| name == *of);
            if let Some((_, home)) = of.filter(|(_, home)| stem(file) != *home) {
                wrong.push(format!("{file} implements {name}, which belongs into {home}.rs"));
            }
        }
    }
    wrong.extend(too_small(texts));
    let folders: std::collections::BTreeSet<_> =
        texts.keys().filter_map(|file| file.split_once('/')).map(|(folder, _)| folder).collect();
    if folders.len() > 3 {
        wrong.push(format!("too many folders: {folders:?}"));
    }
    wrong
}

/// What the drivers for files share is what they are: parts, none of which implements a driver's trait.
#[test]
fn what_drivers_share_is_no_driver() {
    let texts = source("tooz-local");
    let mut wrong: Vec<_> = too_small(&texts).filter(|what| !what.starts_with("lib.rs")).collect();
    for (file, text) in &texts {
        wrong.extend(implemented(file, text).into_iter().map(|name| format!("{file} implements {name}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_driver_has_the_same_table_of_contents() {
    let all = DRIVERS
        .iter()
        .flat_map(|name| wrong(&source(name)).into_iter().map(move |what| format!("{name}: {what}")));
    let all: Vec<_> = all.collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn no_file_of_the_servers_is_too_small() {
    let small: Vec<_> = too_small(&source("tooz-servers")).collect();
    assert!(small.is_empty(), "{}", small.join("\n"));
}

#[test]
fn what_stands_in_the_wrong_place_is_found() {
    let long = "pub struct A;\n".repeat(LEAST);
    let required = REQUIRED.iter().map(|file| {
        let here = IMPLEMENTED_IN.iter().filter(|(_, home)| home == file);
        let blocks: Vec<_> = here.map(|(name, _)| format!("impl {name} for A {{}}")).collect();
        (format!("{file}.rs"), format!("{long}{}", blocks.join("\n")))
    });
    let mut texts: Texts = required.collect();
    assert_eq!(wrong(&texts), [""; 0]);
    texts.insert("groups.rs".into(), format!("{long}impl Groups for A {{}}"));
    for folder in ["a", "b", "c", "d"] {
        texts.insert(format!("{folder}/e.rs"), long.clone());
    }
    texts.insert("client.rs".into(), format!("{long}impl Driver for A {{}}"));
    texts.insert("more.rs".into(), long.clone());
    texts.insert("parts/small.rs".into(), "pub struct B;".into());
    texts.insert("parts/holders.rs".into(), format!("{long}impl tooz_core::driver::Locks for A {{}}"));
    texts.remove("watch.rs");
    assert_eq!(
        wrong(&texts),
        [
            "watch.rs is missing",
            "more.rs belongs into a folder",
            "groups.rs does not implement SessionGroups",
            "client.rs implements Driver, which belongs into driver.rs",
            "parts/small.rs has 1 lines of code: fold it into another",
            "too many folders: {\"a\", \"b\", \"c\", \"d\", \"parts\"}",
        ]
    );
}
