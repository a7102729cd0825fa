//! Who may depend on whom, asked of cargo: normal and build dependencies; tests may use what they like.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::source::{CRATES, DRIVERS};

/// May name drivers, each behind a feature of its own.
const ABOVE_THE_DRIVERS: [&str; 3] = ["tooz", "tooz-cli", "tooz-conformance"];
/// Neither drivers nor above them.
const BELOW_OR_BESIDE: [&str; 3] = ["tooz-core", "tooz-local", "tooz-servers"];
/// The drivers for files of one host, and what they share.
const ON_FILES: [&str; 2] = ["tooz-file", "tooz-sqlite"];
const LOCAL: &str = "tooz-local";

/// Our crates, each with our crates that it depends on and whether that is optional.
fn arrows() -> BTreeMap<String, Vec<(String, bool)>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let names: Vec<_> = packages.iter().map(|package| text(&package["name"])).collect();
    packages
        .iter()
        .map(|package| {
            let ours = package["dependencies"].as_array().unwrap().iter().filter(|dependency| {
                dependency["kind"] != "dev" && names.contains(&text(&dependency["name"]))
            });
            let arrows = ours.map(|to| (text(&to["name"]), to["optional"] == true)).collect();
            (text(&package["name"]), arrows)
        })
        .collect()
}

fn is_driver(name: &str) -> bool {
    !ABOVE_THE_DRIVERS.contains(&name) && !BELOW_OR_BESIDE.contains(&name)
}

#[test]
fn every_arrow_is_allowed() {
    let arrows = arrows();
    assert!(arrows.contains_key("tooz-core") && arrows.keys().any(|name| is_driver(name)), "{arrows:?}");
    for (from, targets) in &arrows {
        for (to, optional) in targets {
            let allowed = match from.as_str() {
                "tooz-core" | "tooz-servers" => false,
                // The facade, through which the command takes its drivers, knows the core.
                "tooz" => to == "tooz-core" || is_driver(to),
                // Its targets start servers.
                "tooz-conformance" => to == "tooz-core" || to == "tooz-servers" || is_driver(to),
                "tooz-cli" => to == "tooz" || is_driver(to),
                from => to == "tooz-core" || (to == LOCAL && ON_FILES.contains(&from)),
            };
            assert!(allowed, "{from} must not depend on {to}");
            assert!(*optional || !is_driver(to), "{from} must have {to} behind a feature");
        }
    }
}

#[test]
fn every_driver_depends_on_the_core_and_the_facade_has_a_feature_for_it() {
    let arrows = arrows();
    for driver in arrows.keys().filter(|name| is_driver(name)) {
        assert!(arrows[driver].contains(&("tooz-core".to_owned(), false)), "{driver}");
        assert_eq!(arrows[driver].contains(&(LOCAL.to_owned(), false)), ON_FILES.contains(&driver.as_str()));
        assert!(arrows["tooz"].contains(&(driver.clone(), true)), "the facade lacks {driver}");
    }
}

#[test]
fn the_source_of_every_crate_is_read() {
    let all = arrows();
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(names, CRATES);
    let drivers: Vec<_> = names.into_iter().filter(|name| is_driver(name)).collect();
    assert_eq!(drivers, DRIVERS);
}
