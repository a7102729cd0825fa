//! The source of a crate: its files, each with its module path and its parsed items.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syn::{Attribute, Item};

/// The crates whose source is read, by their folders.
pub(super) const CRATES: &[&str] = &[
    "tooz",
    "tooz-cli",
    "tooz-conformance",
    "tooz-core",
    "tooz-etcd",
    "tooz-file",
    "tooz-local",
    "tooz-memcached",
    "tooz-memory",
    "tooz-redis",
    "tooz-servers",
    "tooz-sqlite",
];

/// The drivers among them.
pub(super) const DRIVERS: &[&str] =
    &["tooz-etcd", "tooz-file", "tooz-memcached", "tooz-memory", "tooz-redis", "tooz-sqlite"];

/// Texts by their paths below a crate's `src`.
pub(super) type Texts = BTreeMap<String, String>;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file below a folder of the workspace.
pub(super) fn texts(folder: &str) -> Texts {
    fn read(root: &Path, at: &Path, texts: &mut Texts) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(root, &path, texts);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                texts.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = workspace().join(folder);
    let mut texts = Texts::new();
    read(&root, &root, &mut texts);
    assert!(!texts.is_empty(), "{} has no source", root.display());
    texts
}

/// The source of one crate.
pub(super) fn source(name: &str) -> Texts {
    texts(&format!("{name}/src"))
}

/// Whether an item is compiled in tests only.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// The items of a file, without those of its tests.
pub(super) fn items(name: &str, text: &str) -> Vec<Item> {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    file.items
        .into_iter()
        .filter(|item| match item {
            Item::Mod(module) => !is_test(&module.attrs),
            Item::Use(import) => !is_test(&import.attrs),
            Item::Fn(function) => !is_test(&function.attrs),
            Item::Impl(block) => !is_test(&block.attrs),
            _ => true,
        })
        .collect()
}

/// Lines that are neither blank nor comments.
pub(super) fn code_lines(text: &str) -> usize {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}
