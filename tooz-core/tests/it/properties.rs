//! What holds of every URL, name, number and record, whoever wrote them.
//!
//! The same cases on every run, unless `TOOZ_PROPTEST_SEED` names another seed or says `random`;
//! `TOOZ_PROPTEST_CASES` says how many.
#![allow(clippy::format_push_string)] // its helpers are tests as well

use std::collections::BTreeMap;

use crate::checks;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tooz_core::driver::{SessionId, parse_duration};
use tooz_core::{BackendUrl, Capabilities, FencingToken, Term};

pub(crate) fn config() -> ProptestConfig {
    let set = |name| std::env::var(name).ok();
    let rng_seed = match set("TOOZ_PROPTEST_SEED").as_deref() {
        None => RngSeed::Fixed(0x7072_6f70),
        Some("random") => RngSeed::Random,
        Some(number) => RngSeed::Fixed(number.parse().expect("TOOZ_PROPTEST_SEED is a number or \"random\"")),
    };
    let cases = set("TOOZ_PROPTEST_CASES").map_or(256, |number| number.parse().expect("a number of cases"));
    ProptestConfig { rng_seed, cases, ..ProptestConfig::default() }
}

/// Every byte as `%xx`.
fn all_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02x}"))
}

/// Only what has to be.
fn encoded(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let mut bytes = [0; 4];
    text.chars()
        .map(|c| if plain(c) { c.to_string() } else { all_encoded(c.encode_utf8(&mut bytes)) })
        .collect()
}

/// Text in which the separators of a URL are frequent.
fn url_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![":", "/", "?", "#", "@", "&", "=", ",", "[", "]", "%", "+", "://", ".", "%00"])
            .prop_map(str::to_owned),
        3 => "[a-zA-Z0-9]{1,5}",
        1 => "\\PC{1,3}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

/// MessagePack, some of it whole.
fn msgpack() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(vec![0xc0]),
        any::<i64>().prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        any::<f64>().prop_map(|number| rmp_serde::to_vec(&number).unwrap()),
        ".{0,40}".prop_map(|text| rmp_serde::to_vec(&text).unwrap()),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| [
            vec![0xc4, u8::try_from(bytes.len()).unwrap()],
            bytes
        ]
        .concat()),
        // An extension, as Python writes its dates and sets.
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| [
            vec![0xc7, u8::try_from(bytes.len()).unwrap(), 1],
            bytes
        ]
        .concat()),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        let count = |values: &[Vec<u8>], code: u8| vec![code | u8::try_from(values.len()).unwrap()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(move |values| [
                count(&values, 0x90),
                values.concat()
            ]
            .concat()),
            prop::collection::vec((inner.clone(), inner), 0..8).prop_map(|pairs| {
                let count = 0x80 | u8::try_from(pairs.len()).unwrap();
                pairs.into_iter().fold(vec![count], |map, (key, value)| [map, key, value].concat())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_text_is_a_url_or_an_error(text in url_like(), rest in url_like()) {
        checks::url(&text);
        checks::url(&format!("x://{rest}"));
    }

    #[test]
    fn what_was_written_is_read(
        user in proptest::option::of("\\PC{1,8}"),
        password in proptest::option::of(".{0,8}"),
        hosts in prop::collection::vec(("[a-z0-9.-]{1,8}", proptest::option::of(any::<u16>())), 0..4),
        path in prop::collection::vec(any::<u8>(), 0..8),
        options in prop::collection::vec((".{1,6}", ".{0,6}"), 0..4),
    ) {
        let mut text = "x://".to_owned();
        if user.is_some() || password.is_some() {
            text += &encoded(user.as_deref().unwrap_or_default());
            text += &password.as_deref().map(|password| format!(":{}", encoded(password))).unwrap_or_default();
            text += "@";
        }
        let port = |port: &Option<u16>| port.map(|port| format!(":{port}")).unwrap_or_default();
        let shown: Vec<_> = hosts.iter().map(|(name, at)| format!("{name}{}", port(at))).collect();
        text += &shown.join(",");
        text += &path.iter().fold("/".to_owned(), |text, byte| text + &format!("%{byte:02X}"));
        let pairs: Vec<_> =
            options.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        text += &format!("?{}", pairs.join("&"));
        let read = BackendUrl::parse(&text).unwrap();
        prop_assert_eq!(read.user(), user.as_deref());
        prop_assert_eq!(read.password(), password.as_deref());
        let found: Vec<_> = read.hosts().iter().map(|host| (host.name.clone(), host.port)).collect();
        prop_assert_eq!(found, hosts);
        prop_assert_eq!(read.path(), [&b"/"[..], &path].concat());
        prop_assert_eq!(read.options(), &options[..]);
    }

    #[test]
    fn no_password_is_shown(before in ".{0,5}", after in ".{0,5}", user in "[a-z]{0,5}", rest in "[a-z0-9,:/?=&.]{0,12}") {
        let secret = format!("{before}{}{after}", checks::MARK);
        for written in [encoded(&secret), all_encoded(&secret)] {
            checks::hidden(&format!("x://{user}:{written}@h{rest}"));
            checks::hidden(&format!("x://h/{rest}?{rest}&password={written}"));
            checks::hidden(&format!("x://h?PASSPHRASE={written}&secret_key={written}&auth-token={written}"));
        }
    }

    /// What nobody should write and somebody will: the password as it is.
    #[test]
    fn no_password_is_shown_although_it_was_not_encoded(
        before in "[0-9:/?#@&=,%+a-z]{0,6}",
        after in "[0-9:/?#@&=,%+a-z]{0,6}",
        user in "[a-z]{0,5}",
        hosts in "[a-z]{1,3}(:[0-9]{1,4})?(,[a-z]{1,3})?",
    ) {
        checks::hidden(&format!("x://{user}:{before}{}{after}@{hosts}/0?ttl=5s", checks::MARK));
    }

    #[test]
    fn durations_come_back(millis in 0..1_000_000_000_u64) {
        let written = std::time::Duration::from_millis(millis);
        prop_assert_eq!(parse_duration(&format!("{millis}ms")).unwrap().as_millis(), written.as_millis());
        let seconds = format!("{}.{:03}", millis / 1_000, millis % 1_000);
        prop_assert_eq!(parse_duration(&seconds).unwrap().as_millis(), written.as_millis());
    }

    #[test]
    fn any_text_is_a_duration_or_none(text in "[0-9.eE+-]{0,12}[a-zA-Z ]{0,3}") {
        checks::duration(&text);
    }

    #[test]
    fn any_bytes_are_capabilities_or_corrupt(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        checks::capabilities(&bytes);
    }

    #[test]
    fn whole_messagepack_is_kept_and_damaged_is_corrupt(
        bytes in msgpack(),
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        checks::capabilities(&bytes);
        prop_assert!(Capabilities::from_msgpack(&bytes).is_ok());
        prop_assert!(Capabilities::from_msgpack(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(Capabilities::from_msgpack(&[&bytes[..], b"\xc0"].concat()).is_err());
        let mut damaged = bytes;
        let at = at.index(damaged.len());
        damaged[at] = with;
        checks::capabilities(&damaged);
    }

    #[test]
    fn what_a_member_publishes_comes_back(
        map in prop::collection::btree_map(".{0,8}", (any::<i64>(), proptest::option::of(any::<f64>()), ".*"), 0..6),
        raw in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let published = Capabilities::new(&map).unwrap();
        let read: BTreeMap<String, (i64, Option<f64>, String)> = published.get().unwrap();
        prop_assert_eq!(read, map);
        checks::capabilities(&raw);
    }

    #[test]
    fn any_bytes_are_a_name_if_they_are_as_long(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        checks::name(&bytes);
    }

    #[test]
    fn two_names_are_never_shown_alike(
        one in prop::collection::vec(prop::sample::select(b"\\x\"n0f\n\xff\x7f{}u".to_vec()), 1..8),
        other in prop::collection::vec(prop::sample::select(b"\\x\"n0f\n\xff\x7f{}u".to_vec()), 1..8),
        text in "[\\\\\\PC\u{2028}\u{202e}]{1,8}",
    ) {
        checks::names(&one, &other);
        checks::name(text.as_bytes());
        checks::names(&one, text.as_bytes());
    }

    #[test]
    fn an_id_has_one_form(number in any::<u128>(), text in "[+0-9a-fA-F]{31,33}") {
        checks::id(&text);
        let written = format!("{number:032x}");
        checks::id(&written);
        checks::id(&written.to_uppercase());
        prop_assert_eq!(SessionId::parse(&written), Some(SessionId(number)));
    }

    #[test]
    fn tokens_are_ordered_as_their_numbers(one in any::<u64>(), other in any::<u64>()) {
        let fits = i64::try_from(one).ok().filter(|number| *number > 0);
        prop_assert_eq!(FencingToken::new(one).map(FencingToken::as_i64), fits);
        prop_assert!(FencingToken::new(one).is_none_or(|token| token.get() == one));
        if let (Some(a), Some(b)) = (FencingToken::new(one), FencingToken::new(other)) {
            prop_assert_eq!(a.cmp(&b), one.cmp(&other));
            prop_assert_eq!(Term::from(a).cmp(&Term::from(b)), one.cmp(&other));
            prop_assert_eq!((a.to_string(), Term::from(a).get()), (one.to_string(), one));
        }
    }
}
