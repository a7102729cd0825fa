//! The command on a real memcached.

use tooz_servers::memcached::Memcached;

use crate::common::counting::no_update_is_lost_or_done_twice;
use crate::common::{Backend, TestBackend, worse_than_good};
use crate::doctor::is_left_as_it_was;
use crate::lines::{HTTP, said, stranger};

pub(crate) const TESTS: [(&str, fn()); 4] = tests![
    no_update_is_lost_or_done_twice_on_memcached,
    a_memcached_is_left_as_it_was,
    a_healthy_memcached_is_young_at_worst,
    memcached_that_is_none
];

fn no_update_is_lost_or_done_twice_on_memcached() {
    let memcached = Memcached::start().unwrap();
    // Hundreds of processes on few cores may let a holder wait for its turn longer than a short ttl.
    let ttl = if std::env::var_os("TOOZ_STRESS").is_some() { 8 } else { 2 };
    no_update_is_lost_or_done_twice(Backend::Memcached(memcached.address(), ttl));
}

fn a_memcached_is_left_as_it_was() {
    let memcached = Memcached::start().unwrap();
    is_left_as_it_was(&format!("memcached://{}", memcached.address()), || {
        let all = memcached.everything().unwrap();
        let shown = all.into_iter().map(|(key, value)| (String::from_utf8_lossy(&key).into_owned(), value));
        // Both expire by themselves: whose session was the latest, and who left a group.
        let expires = |key: &str| key == "_TOOZ_RS:lives" || key.starts_with("_TOOZ_RS:q:");
        shown.filter(|(key, _)| !expires(key)).collect()
    });
}

fn a_healthy_memcached_is_young_at_worst() {
    let memcached = Memcached::start().unwrap();
    let place = TestBackend::on(Backend::Memcached(memcached.address(), 2));
    let finished = place.run(&["doctor", "--json", &place.url()]);
    assert_eq!(worse_than_good(&finished), ["age"], "{finished:?}");
}

fn memcached_that_is_none() {
    let place = TestBackend::new();
    let (http, closer) = (stranger(HTTP), stranger(b""));
    for (address, says) in [
        (http, &["does not speak memcached's text protocol", "check the host and the port"][..]),
        (closer, &["closes the connection", "TLS proxy"]),
        ("127.0.0.1:1".parse().unwrap(), &["connection refused", "check that memcached runs there"]),
    ] {
        said(&place, &format!("memcached://{address}"), 69, &[says, &[&*address.to_string()]].concat());
    }
    said(&place, "memcached://no.such.invalid", 69, &["no.such.invalid", "no address", "check the host"]);
}
