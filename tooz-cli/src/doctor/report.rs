//! The findings as they are printed, and the exit code that follows from them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tooz::{Characteristics, Error, Finding, Severity};

use super::measure::Times;
use crate::exit::{Code, DONE, ENDANGERED, Failure};
use crate::messages;
use crate::text;

/// Prints the findings and derives the exit code from them.
pub(super) struct Report<'a> {
    json: bool,
    code: Code,
    /// Topics whose findings do not count, each with whether anything was found on it.
    ignored: BTreeMap<&'a str, bool>,
}

impl<'a> Report<'a> {
    pub(super) fn new(json: bool, ignored: &'a [String]) -> Self {
        Self { json, code: DONE, ignored: ignored.iter().map(|topic| (topic.as_str(), false)).collect() }
    }

    /// The exit code. A topic that nothing was found on is named: it may be misspelled. After a failure more may be missing.
    pub(super) fn end(self) -> Code {
        let is_whole = matches!(self.code, DONE | ENDANGERED);
        for (topic, _) in self.ignored.iter().filter(|(_, found)| is_whole && !**found) {
            messages::notice(&format!("--ignore {}: no finding has this topic", topic.escape_debug()));
        }
        self.code
    }

    fn ignores(&mut self, topic: &str) -> bool {
        self.ignored.get_mut(topic).is_some_and(|found| {
            *found = true;
            true
        })
    }

    pub(super) fn show(&mut self, finding: &Finding) -> Result<(), Failure> {
        let ignored = self.ignores(finding.topic());
        self.show_with(finding, ignored, json!({}))
    }

    /// `more`: additional fields of the JSON object.
    fn show_with(&mut self, finding: &Finding, ignored: bool, mut more: Value) -> Result<(), Failure> {
        let ignored = ignored && finding.severity() > Severity::Good;
        if finding.severity() > Severity::Good && !ignored && self.code == DONE {
            self.code = ENDANGERED;
        }
        if self.json {
            more["severity"] = finding.severity().word().into();
            more["topic"] = finding.topic().into();
            more["what"] = finding.what().into();
            more["advice"] = finding.advice().into();
            more["ignored"] = ignored.into();
            more["lowers"] = names(finding.lowered()).into();
            return text::line(&more.to_string());
        }
        // A backend's words may hold line breaks: print one line each.
        let plain =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        let (severity, topic) = (finding.severity().word(), finding.topic());
        let mark = if ignored { "(ignored) " } else { "" };
        text::line(&format!("{severity:<8} {topic:<16} {mark}{}", plain(finding.what())))?;
        match finding.advice() {
            Some(advice) => text::line(&format!("{:<25} advice: {}", "", plain(advice))),
            None => Ok(()),
        }
    }

    /// An error, which cannot be ignored; the first one decides the exit code.
    pub(super) fn fail(&mut self, topic: &'static str, error: &Error, advice: &str) -> Result<(), Failure> {
        let failure = Failure::from(error.clone());
        if matches!(self.code, DONE | ENDANGERED) {
            self.code = failure.code();
        }
        if self.ignores(topic) {
            messages::notice(&format!("a failure cannot be ignored: --ignore {topic} has no effect"));
        }
        self.show_with(&Finding::bad(topic, failure.message(), advice), false, json!({}))
    }

    pub(super) fn latency(&mut self, times: &Times) -> Result<(), Failure> {
        if times.connect.is_empty() {
            return Ok(());
        }
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let all: Vec<_> =
            times.medians().map(|(name, time)| format!("{name} {} ms", milliseconds(time))).collect();
        let values: serde_json::Map<String, Value> =
            times.medians().map(|(name, time)| (name.to_owned(), milliseconds(time).into())).collect();
        let what = format!("median of {}: {}", times.rounds(), all.join(", "));
        let beat = times.medians().find_map(|(name, time)| (name == "beat").then_some(time));
        let slow = beat.zip(times.due).is_some_and(|(beat, due)| beat > due / 4);
        let finding = if slow {
            Finding::warning(
                "latency",
                format!("{what}; a beat takes more than a quarter of the time between two beats"),
                "set a longer ttl or use a nearer backend: slow renewals may end sessions of living members",
            )
        } else {
            Finding::good("latency", what)
        };
        let ignored = self.ignores(finding.topic());
        self.show_with(&finding, ignored, json!({ "milliseconds": values }))
    }

    /// Prints the characteristics that are kept, and those that are not with the reason. What is not kept for ignored reasons
    /// alone is ignored, too.
    pub(super) fn characteristics(
        &mut self,
        promised: Characteristics,
        kept: Characteristics,
        found: &[Finding],
    ) -> Result<(), Failure> {
        let all = json!({ "kept": names(kept) });
        let finding = Finding::good("kept", names(kept).join(", "));
        let ignored = self.ignores(finding.topic());
        self.show_with(&finding, ignored, all)?;
        for lowered in (promised - kept).iter() {
            let why: Vec<_> = found
                .iter()
                .filter(|finding| finding.lowered().contains(lowered))
                .map(Finding::topic)
                .collect();
            let name = names(lowered).join("");
            let what = if why.is_empty() {
                format!("{name}: this backend does not keep it, and the driver gives no reason")
            } else {
                format!("{name}, because of: {}", why.join(", "))
            };
            let advice = "follow the advice there, or do without it; a program that requires it cannot \
                 connect";
            let accepted = !why.is_empty() && why.iter().all(|topic| self.ignored.contains_key(topic));
            let ignored = self.ignores("not-kept") || accepted;
            let finding = Finding::warning("not-kept", what, advice).lowers(lowered);
            self.show_with(&finding, ignored, json!({ "because": why }))?;
        }
        Ok(())
    }
}

fn names(characteristics: Characteristics) -> Vec<String> {
    characteristics.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use tooz::ErrorKind;

    use super::*;

    #[test]
    fn the_first_failure_decides_the_exit_code() {
        let mut report = Report::new(true, &[]);
        report.show(&Finding::good("a", "b")).unwrap();
        assert_eq!(report.code, DONE);
        report.show(&Finding::warning("a", "b", "c")).unwrap();
        assert_eq!(report.code, ENDANGERED);
        report.fail("a", &ErrorKind::Denied.into(), "").unwrap();
        report.fail("a", &ErrorKind::Unavailable.into(), "").unwrap();
        assert_eq!(report.code, crate::exit::DENIED);
    }

    #[test]
    fn what_is_ignored_does_not_count_and_failures_do() {
        let topics = ["a", "reachable"].map(str::to_owned);
        let mut report = Report::new(true, &topics);
        report.show(&Finding::bad("a", "b", "c")).unwrap();
        assert_eq!((report.code, report.ignored["a"], report.ignored["reachable"]), (DONE, true, false));
        report.fail("reachable", &ErrorKind::Denied.into(), "").unwrap();
        assert_eq!(report.code, crate::exit::DENIED);
    }

    #[test]
    fn what_is_lowered_names_why_or_says_that_nobody_knows() {
        let durable = Characteristics::DURABLE_FENCING;
        let code = |kept, found: &[Finding], ignored: &[&str]| {
            let ignored: Vec<_> = ignored.iter().map(|topic| (*topic).to_owned()).collect();
            let mut report = Report::new(true, &ignored);
            report.characteristics(durable, kept, found).unwrap();
            report.code
        };
        let nothing = Characteristics::empty();
        assert_eq!(code(durable, &[], &[]), DONE);
        assert_eq!(code(nothing, &[], &["a"]), ENDANGERED);
        let found = ["a", "b"].map(|topic| Finding::warning(topic, "", "").lowers(durable));
        assert_eq!(code(nothing, &found, &["a"]), ENDANGERED, "b is a reason, too");
        assert_eq!(code(nothing, &found, &["a", "b"]), DONE);
        assert_eq!(code(nothing, &found, &["not-kept"]), DONE);
    }
}
