//! Typed options. An unknown option is an error: a typing mistake must not weaken a lock silently.

use std::time::Duration;

use crate::near::nearest;
use crate::url::invisible;
use crate::{BackendUrl, Error, ErrorKind, Result};

/// One option that a backend URL, or a builder beside it, may carry.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    name: &'static str,
    kind: OptionKind,
    doc: &'static str,
    repeatable: bool,
    is_for_tests: bool,
}

/// What an option's value looks like.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum OptionKind {
    /// `250ms`, `15s`, `2m`, `1h`, `1d`, or a number of seconds such as `1.5`.
    Duration {
        /// The least allowed.
        min: Duration,
        /// The most allowed.
        max: Duration,
    },
    /// A whole number.
    Integer {
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
}

impl OptionSpec {
    /// An option of this name and kind; `doc` is one line that says its default.
    pub const fn new(name: &'static str, kind: OptionKind, doc: &'static str) -> Self {
        Self { name, kind, doc, repeatable: false, is_for_tests: false }
    }

    /// Allows it to be given several times.
    #[must_use]
    pub const fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// Marks it as one that only tests use: lists for users leave it out.
    #[must_use]
    pub const fn for_tests(mut self) -> Self {
        self.is_for_tests = true;
        self
    }

    /// Whether only tests use it.
    pub const fn is_for_tests(&self) -> bool {
        self.is_for_tests
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, in one line.
    pub const fn doc(&self) -> &'static str {
        self.doc
    }

    fn check(&self, value: &str) -> Result<()> {
        let (fits, wanted) = match self.kind {
            OptionKind::Duration { min, max } => {
                let duration = parse_duration(value).ok_or_else(|| {
                    refuse(self.name, "write a duration such as 250ms, 15s, 2m, or a number of seconds")
                })?;
                ((min..=max).contains(&duration), format!("between {min:?} and {max:?}"))
            }
            OptionKind::Integer { min, max } => (
                value.parse::<u64>().is_ok_and(|number| (min..=max).contains(&number)),
                format!("a whole number between {min} and {max}"),
            ),
            OptionKind::Flag => (parse_flag(value).is_some(), "true or false".to_owned()),
            OptionKind::Word(words) => (words.contains(&value), format!("one of {}", words.join(", "))),
            OptionKind::Text => return Ok(()),
        };
        if fits { Ok(()) } else { Err(refuse(self.name, &format!("it must be {wanted}"))) }
    }
}

/// The value is not shown: it may be a secret that was put under the wrong name.
fn refuse(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("option \"{}\": {why}", name.escape_debug()))
}

/// Options of Python tooz, whatever the backend, and what to write instead.
pub(crate) const FOREIGN_OPTIONS: &[(&str, &str)] = &[
    ("timeout", LIFETIME),
    ("membership_timeout", LIFETIME),
    ("lock_timeout", LIFETIME),
    ("leader_timeout", LIFETIME),
    ("executor", "leave it out: every call is asynchronous"),
    ("max_workers", "leave it out: every call is asynchronous"),
];
const LIFETIME: &str = "write ttl: how long a session and what it holds live without a renewal";

/// Checks every option of `url` against those that exist; `foreign`: names that others use, and what to write
/// instead.
pub(crate) fn check(url: &BackendUrl, known: &[OptionSpec], foreign: &[(&str, &str)]) -> Result<()> {
    for (index, (name, value)) in url.options().iter().enumerate() {
        let Some(spec) = known.iter().find(|spec| spec.name == name) else {
            return Err(unknown(url.scheme(), index + 1, name, known, foreign));
        };
        // The namespace among them: one that looks the same would be another, without a word.
        if let Some(why) = invisible(value) {
            return Err(refuse(name, &why));
        }
        if !spec.repeatable && url.options()[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(refuse(name, "it is given twice; remove one"));
        }
        spec.check(value)?;
    }
    Ok(())
}

/// There is no such option. Its name is shown only if it is nearly one that exists: it may be a secret, since a '?' in a password
/// begins the options.
fn unknown(scheme: &str, nth: usize, name: &str, known: &[OptionSpec], foreign: &[(&str, &str)]) -> Error {
    if let Some((_, instead)) = foreign.iter().find(|(other, _)| *other == name) {
        return refuse(name, &format!("{scheme}:// does not know this option of Python tooz; {instead}"));
    }
    let mut names: Vec<_> = known.iter().filter(|spec| !spec.is_for_tests).map(|spec| spec.name).collect();
    names.sort_unstable();
    let why =
        |more: &str| format!("{scheme}:// does not know this option; {more}it knows {}", names.join(", "));
    match nearest(name, names.iter().copied()) {
        Some(meant) => refuse(name, &why(&format!("did you mean \"{meant}\"? "))),
        None => Error::new(ErrorKind::InvalidOption, format!("option {nth} of the URL: {}", why(""))),
    }
}

/// Typed values of options. Each answers `None` if the option is not given.
impl BackendUrl {
    /// A duration.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; never for an option that passed the check at connect.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>> {
        let value = self.option(name);
        value
            .map(|text| parse_duration(text).ok_or_else(|| refuse(name, "it must be a duration")))
            .transpose()
    }

    /// A whole number.
    ///
    /// # Errors
    /// As [`BackendUrl::duration`].
    pub fn integer(&self, name: &str) -> Result<Option<u64>> {
        let value = self.option(name);
        value.map(|text| text.parse().map_err(|_| refuse(name, "it must be a whole number"))).transpose()
    }

    /// A flag.
    ///
    /// # Errors
    /// As [`BackendUrl::duration`].
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        let value = self.option(name);
        value.map(|text| parse_flag(text).ok_or_else(|| refuse(name, "it must be true or false"))).transpose()
    }
}

/// Reads `250ms`, `15s`, `2m`, `1h`, `1d`, or a number of seconds such as `1.5`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    let limit = 1e9; // some thirty years: everything beyond is a mistake
    (number >= 0.0).then_some(number * seconds).filter(|total| *total <= limit).map(Duration::from_secs_f64)
}

fn parse_flag(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [("250ms", 250), ("15s", 15_000), ("2m", 120_000), ("1.5", 1_500), ("0", 0)] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1x", "nan", "inf", "1e99", "1 s", "1s2"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_malformed_repeated_and_out_of_range_options_are_refused_without_their_value() {
        const KNOWN: &[OptionSpec] = &[OptionSpec::new(
            "ttl",
            OptionKind::Duration { min: Duration::from_secs(1), max: Duration::from_mins(1) },
            "",
        )];
        for query in ["tll=5s", "ttl=hunter2", "ttl=0", "ttl=90s", "ttl=5s&ttl=6s"] {
            let error =
                check(&BackendUrl::parse(&format!("memory://x?{query}")).unwrap(), KNOWN, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption, "{query}");
            assert!(error.to_string().contains("ttl") && !error.to_string().contains("hunter"), "{error}");
        }
        check(&BackendUrl::parse("memory://x?ttl=1.5").unwrap(), KNOWN, &[]).unwrap();
        let said = |query: &str| {
            let url = BackendUrl::parse(&format!("memory://x?{query}")).unwrap();
            check(&url, KNOWN, &[]).unwrap_err().to_string()
        };
        assert!(said("tll=5s").contains("\"tll\"") && said("tll=5s").contains("did you mean \"ttl\"?"));
        // A secret may have been written where a name belongs.
        for query in ["hunter2", "hunter2=", "ttl=5s&hunter2=x", "hunter2%00=", "%20hunter2"] {
            let nth = if query.starts_with("ttl") { "option 2" } else { "option 1" };
            let said = said(query);
            assert!(
                said.contains(nth) && said.contains("it knows ttl") && !said.contains("hunter"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_names_of_others_are_refused_with_ours() {
        let url = BackendUrl::parse("memory://x?lock_timeout=hunter2").unwrap();
        let error = check(&url, &[], FOREIGN_OPTIONS).unwrap_err().to_string();
        assert!(
            error.contains("lock_timeout") && error.contains("write ttl") && !error.contains("hunter"),
            "{error}"
        );
    }
}
