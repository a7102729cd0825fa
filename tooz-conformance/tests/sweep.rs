//! The cancellation sweep, and that nothing drops out of it unseen.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

use std::collections::BTreeMap;
use std::path::Path;

use tooz_conformance::sweep::source::{Await, awaits, operations};
use tooz_conformance::{sweep, targets};

/// The core's files by their path below `src`, but for the driver's traits, which others implement.
fn core() -> BTreeMap<String, String> {
    fn read(root: &Path, at: &Path, files: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(root, &path, files);
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

#[test]
fn try_it() {
    let swept = sweep::run(&targets::memory::with_ttl(""), false);
    for s in &swept {
        println!("{:45} {:60} {:4} {} {:?}", s.operation, s.scene, s.points, s.lines.len(), s.failure);
    }
    let files = core();
    println!(
        "OPS {:#?}",
        operations(&files).iter().filter(|o| !sweep::operations().contains(o.as_str())).collect::<Vec<_>>()
    );
    println!(
        "TOOMANY {:#?}",
        sweep::operations().iter().filter(|o| !operations(&files).contains(**o)).collect::<Vec<_>>()
    );
    let mut hit: BTreeMap<(String, usize), usize> = BTreeMap::new();
    for s in &swept {
        for (l, n) in &s.lines {
            *hit.entry(l.clone()).or_default() += n;
        }
    }
    let all: Vec<Await> = awaits(&files);
    for a in &all {
        let n = hit.remove(&(a.file.clone(), a.line)).unwrap_or(0);
        println!("AWAIT {n:6} {}:{} {}", a.file, a.line, a.place);
    }
    for (l, n) in hit {
        println!("LINE {n} {}:{} {}", l.0, l.1, files[&l.0].lines().nth(l.1 - 1).unwrap());
    }
}
#[test]
fn control() {
    let swept = sweep::run(&targets::memory::with_ttl(""), true);
    for s in &swept {
        println!("{:45} {:60} {:4} {} {:?}", s.operation, s.scene, s.points, s.lines.len(), s.failure);
    }
}
