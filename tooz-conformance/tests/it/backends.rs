//! The servers that the suite can be run against are named in four places: its targets, `docker-compose.yml` with
//! `scripts/compose.env`, `scripts/backends`, and `scripts/versions`. They say the same.

use std::collections::{BTreeMap, BTreeSet};

use tooz_conformance::targets;
use tooz_core::BackendUrl;

const COMPOSE: &str = include_str!("../../../docker-compose.yml");
const ENVIRONMENT: &str = include_str!("../../../scripts/compose.env");
const VERSIONS: &str = include_str!("../../../scripts/versions");
const PROGRAM: &str = include_str!("../../src/bin/backends.rs");

/// The target that runs against each server of somebody else, by the variable that names the server.
fn targets() -> BTreeMap<&'static str, &'static str> {
    targets::GIVEN.iter().copied().collect()
}

/// Each variable of `compose.env` with its URL.
fn environment() -> BTreeMap<&'static str, BackendUrl> {
    let exports = ENVIRONMENT.lines().filter_map(|line| line.strip_prefix("export "));
    exports
        .map(|export| {
            let (variable, url) = export.split_once('=').unwrap();
            (variable, BackendUrl::parse(url.trim_matches(['\'', '"'])).unwrap())
        })
        .collect()
}

/// The services of the compose file, each with its text; what they take from an anchor is part of it.
fn services() -> BTreeMap<&'static str, String> {
    let (head, services) = COMPOSE.split_once("\nservices:\n").unwrap();
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    let mut anchors: BTreeMap<&str, String> = BTreeMap::new();
    for block in head.split("\nx-") {
        if let Some((_, rest)) = block.split_once(": &") {
            let (anchor, text) = rest.split_once('\n').unwrap();
            anchors.insert(anchor, text.to_owned());
        }
    }
    let mut current = None;
    for line in services.lines() {
        let name = line.strip_prefix("  ").filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some((name, anchor)) = name.and_then(|name| name.split_once(':')) {
            current = Some((name, anchor.trim().strip_prefix('&')));
            found.insert(name, String::new());
            continue;
        }
        let Some((name, anchor)) = current else { continue };
        let text = match line.trim().strip_prefix("<<: *") {
            Some(anchor) => anchors[anchor].clone(),
            None => line.to_owned(),
        };
        for text in [text.as_str(), "\n"] {
            found.get_mut(name).unwrap().push_str(text);
            if let Some(anchor) = anchor {
                anchors.entry(anchor).or_default().push_str(text);
            }
        }
    }
    found
}

/// The numbers that follow any of these words in a text.
fn numbers(text: &str, words: &[&str]) -> BTreeSet<u16> {
    let after = words.iter().flat_map(|word| text.split(word).skip(1));
    after
        .filter_map(|rest| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        })
        .collect()
}

/// Where a service listens for clients.
fn ports(service: &str) -> BTreeSet<u16> {
    // Of what stands twice the later one holds: a service's own port comes after its anchor's.
    let own = service.rsplit_once("PORT: ").map(|(_, rest)| numbers(&format!("PORT: {rest}"), &["PORT: "]));
    let address = ["--listen-client-urls http://127.0.0.1:", "--listen-client-urls https://127.0.0.1:"];
    let named = numbers(service, &[&["--port ", "--tls-port ", "memcached -p "][..], &address[..]].concat());
    own.unwrap_or_default().into_iter().chain(named).filter(|port| *port != 0).collect()
}

fn servers() -> BTreeMap<&'static str, BTreeSet<u16>> {
    let listening = services().into_iter().map(|(name, text)| (name, ports(&text)));
    listening.filter(|(_, ports)| !ports.is_empty()).collect()
}

#[test]
fn every_server_of_somebody_else_has_a_target_and_a_place() {
    let variables: BTreeSet<_> = targets().into_keys().collect();
    assert_eq!(environment().into_keys().collect::<BTreeSet<_>>(), variables, "scripts/compose.env");
    let kinds = PROGRAM.lines().filter_map(|line| line.trim().strip_prefix("Kind { name: \""));
    let kinds: BTreeMap<_, _> = kinds
        .map(|kind| {
            let mut words = kind.split('"');
            (words.nth(2).unwrap_or_default(), kind.split('"').next().unwrap_or_default())
        })
        .collect();
    for (variable, target) in targets() {
        let name = kinds.get(variable).unwrap_or_else(|| panic!("scripts/backends starts no {variable}"));
        assert_eq!(name.replace('-', "+"), target, "{variable} in scripts/backends");
    }
    assert_eq!(kinds.len(), variables.len(), "scripts/backends starts what has no target");
}

#[test]
fn every_port_is_a_service_of_its_own_and_every_topology_is_whole() {
    let servers = servers();
    let mut seen = BTreeMap::new();
    for (service, ports) in &servers {
        let [port] = ports.iter().collect::<Vec<_>>()[..] else { panic!("{service} listens on {ports:?}") };
        let before = seen.insert(*port, *service);
        assert!(before.is_none(), "{service} and {before:?} listen on {port}");
    }
    for (variable, url) in environment() {
        let hosts: Vec<_> = url.hosts().iter().map(|host| host.port.unwrap()).collect();
        let services: BTreeSet<_> = hosts
            .iter()
            .map(|port| *seen.get(port).unwrap_or_else(|| panic!("nobody listens on {port} of {variable}")))
            .collect();
        assert_eq!(services.len(), hosts.len(), "{variable} names a server twice");
        let kind = variable.trim_start_matches("TOOZ_TEST_").trim_end_matches("_URL").to_lowercase();
        let wanted: &[&str] = match kind.as_str() {
            "redis_sentinel" => &["sentinel-1", "sentinel-2", "sentinel-3"],
            // Any three of the six; the rest is theirs to tell.
            "redis_cluster" => &["cluster-0", "cluster-1", "cluster-2"],
            "etcd_cluster" => &["etcd-0", "etcd-1", "etcd-2"],
            one => &[&*one.replace('_', "-")],
        };
        assert_eq!(services, wanted.iter().copied().collect(), "{variable}");
    }
    let named: BTreeSet<_> = environment().values().flat_map(|url| url.hosts().to_vec()).collect::<Vec<_>>().into_iter().filter_map(|host| host.port).collect();
    let behind: BTreeSet<_> =
        servers.iter().filter(|(_, ports)| ports.is_disjoint(&named)).map(|(service, _)| *service).collect();
    let replicas = ["redis-master", "redis-replica", "cluster-3", "cluster-4", "cluster-5"];
    assert_eq!(behind, replicas.into(), "servers that no URL names");
}

#[test]
fn the_comment_of_the_compose_file_names_its_ports() {
    let comment: String = COMPOSE.lines().take_while(|line| line.starts_with('#')).collect();
    let named = |port: u16| comment.contains(&port.to_string());
    for (service, ports) in servers() {
        // Of a range only its ends are named.
        let inner = matches!(service, "sentinel-2" | "cluster-1" | "cluster-2" | "cluster-3" | "cluster-4");
        assert!(inner || ports.iter().all(|port| named(*port)), "{service}: {ports:?}");
    }
}

#[test]
fn every_version_is_one_of_a_server_that_has_a_target() {
    let (_, rest) = VERSIONS.split_once("versions='\n").unwrap();
    let (table, _) = rest.split_once("'\n").unwrap();
    let names: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 3, "{names:?}");
    for name in names {
        let (server, version) = name.split_once('-').unwrap();
        assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{name}");
        let target = if server == "valkey" { "redis" } else { server };
        assert!(targets().values().any(|known| *known == target), "{name}: there is no target {target}");
    }
    // Images whose names say which.
    for image in COMPOSE.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
        let tag = image.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let server = ["redis:", "etcd:", "memcached:"].iter().any(|server| image.contains(server));
        assert!(!server || tag.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()), "{image}");
    }
}
