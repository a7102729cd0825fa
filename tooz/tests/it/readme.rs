//! The README's table says what the drivers say.
#![cfg(all(
    feature = "etcd",
    feature = "file",
    feature = "memcached",
    feature = "memory",
    feature = "redis",
    feature = "sqlite"
))] // its columns

use tooz::{BackendUrl, Characteristics, drivers};

const README: &str = include_str!("../../README.md");

#[test]
fn the_driver_table_is_that_of_the_registrations() {
    let promised = ["memory", "file", "sqlite", "redis", "etcd", "memcached"].map(|scheme| {
        let driver = drivers().into_iter().find(|driver| driver.schemes()[0] == scheme).unwrap();
        driver.characteristics(&BackendUrl::parse(&format!("{scheme}:///x")).unwrap())
    });
    let cell = |kept: bool| if kept { "yes" } else { "–" };
    let rows: Vec<_> = Characteristics::all()
        .iter_names()
        .map(|(name, flag)| {
            let cells = promised.map(|promised| cell(promised.contains(flag)));
            format!("| `{name}` | {} |", cells.join(" | "))
        })
        .collect();
    let head = "| characteristic | `memory://` | `file://` | `sqlite://` | `redis://` | `etcd://` | `memcached://` |\n\
                |---|---|---|---|---|---|---|\n";
    let table = format!("{head}{}\n", rows.join("\n"));
    assert!(README.contains(&table), "put this table into README.md:\n{table}");
}

#[test]
fn every_option_that_the_readme_names_exists() {
    assert!(README.contains("memory://x?ttl=15s"));
    assert!(tooz::COMMON_OPTIONS.iter().any(|option| option.name() == "ttl"));
}
