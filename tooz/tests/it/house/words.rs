//! One word per idea: names that had several meanings, or that had to be explained, are retired.

use std::collections::BTreeSet;

use proc_macro2::{TokenStream, TokenTree};

use super::source::{CRATES, Texts, source};

/// A retired name of an item, a variable or a file, the crates in which it is retired, and what is said instead.
type Retired = (&'static str, &'static [&'static str], &'static str);

const CORE: &[&str] = &["tooz-core"];
const ETCD: &[&str] = &["tooz-etcd"];
const FILE: &[&str] = &["tooz-file"];
const LOCAL: &[&str] = &["tooz-file", "tooz-local", "tooz-sqlite"];
const REDIS: &[&str] = &["tooz-redis"];
const SQLITE: &[&str] = &["tooz-sqlite"];
const SUITE: &[&str] = &["tooz-conformance", "tooz-servers"];
const TESTED: &[&str] = &["tooz-conformance", "tooz-memory"];
const COMMAND: &[&str] = &["tooz-cli"];

const WORDS: &[Retired] = &[
    ("Place", CRATES, "QueueEntry, or what it is the place of: address, path, directory, TestBackend"),
    ("Life", CRATES, "CloseOnDrop, SessionState, LinkHealth: what it is the life of"),
    ("Hub", CRATES, "topics, dispatch or connection"),
    ("hub", CRATES, "topics, dispatch or connection"),
    ("Tenure", CRATES, "SessionLease"),
    ("tenure", CRATES, "lease"),
    ("Watched", CORE, "StateCell or WatchedGroup"),
    ("waits", CORE, "await_point, or what is waited for"),
    ("slots.rs", REDIS, "attempts; slots are those of a cluster"),
    ("operator", ETCD, "holders"),
    ("breaks", FILE, "holders"),
    ("People", SUITE, "Participants"),
    ("people", SUITE, "participants"),
    ("flights", SUITE, "exchanges"),
    ("vigil", CRATES, "monitor"),
    ("bell", SQLITE, "wakeup"),
    ("Bell", SQLITE, "Wakeup"),
    ("ears", CRATES, "inotify or listener"),
    ("Ears", CRATES, "Inotify or Listener"),
    ("ahead", LOCAL, "predecessor"),
    ("Ahead", LOCAL, "Predecessor"),
    ("tail", ETCD, "watcher"),
    ("warden", COMMAND, "supervisor"),
    ("Warden", COMMAND, "Supervisor"),
    ("book", FILE, "records"),
    ("Book", FILE, "Records"),
    ("graves", FILE, "dead"),
    ("bury", FILE, "remove_dead"),
    ("standing", ETCD, "grants or session_state"),
    ("Standing", ETCD, "Grants or SessionState"),
    ("proof", ETCD, "verify"),
    ("truth", TESTED, "oracle"),
    ("Truth", TESTED, "Oracle"),
    ("weather", SUITE, "conditions"),
    ("Weather", SUITE, "Conditions"),
    ("dice", TESTED, "rng"),
    ("Dice", TESTED, "Rng"),
    ("turnstile", FILE, "mutex"),
    ("Doctor", FILE, "LivenessMemo"),
    ("site", FILE, "tree"),
    ("Site", FILE, "Tree"),
];

/// The names in a file's code.
fn names(stream: TokenStream, into: &mut BTreeSet<String>) {
    for token in stream {
        match token {
            TokenTree::Ident(name) => {
                into.insert(name.to_string());
            }
            TokenTree::Group(group) => names(group.stream(), into),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// Where a crate's source says a retired word.
fn said(name: &str, texts: &Texts) -> Vec<String> {
    let mut said = Vec::new();
    for (file, text) in texts {
        let mut used = BTreeSet::new();
        names(text.parse().unwrap_or_else(|error| panic!("{name}/src/{file}: {error}")), &mut used);
        for part in file.split('/') {
            used.insert(part.to_owned());
            used.insert(part.trim_end_matches(".rs").to_owned());
        }
        for (word, _, instead) in WORDS.iter().filter(|(_, crates, _)| crates.contains(&name)) {
            if used.contains(*word) {
                said.push(format!("{name}/src/{file} says {word}: say {instead}"));
            }
        }
    }
    said
}

#[test]
fn retired_words_are_not_said() {
    let said: Vec<_> = CRATES.iter().flat_map(|name| said(name, &source(name))).collect();
    assert!(said.is_empty(), "{}", said.join("\n"));
}

#[test]
fn each_retired_word_is_found() {
    for (word, crates, instead) in WORDS {
        for name in *crates {
            let plant = |file: String, text: String| said(name, &[(file, text)].into());
            let found = if word.contains('.') {
                plant((*word).to_owned(), "fn f() {}".to_owned())
            } else {
                // In prose and within a longer name the word is allowed.
                let prose = format!("//! The {word}.\nfn not_{word}() {{ print(\"{word}\") }}");
                assert!(plant("lib.rs".to_owned(), prose).is_empty(), "{word}");
                assert_eq!(plant(format!("{word}.rs"), String::new()).len(), 1, "{word} as a file");
                plant("lib.rs".to_owned(), format!("fn f() {{ print!(\"{{}}\", {word}) }}"))
            };
            assert!(found.len() == 1 && found[0].ends_with(instead), "{word} in {name}: {found:?}");
        }
    }
}
