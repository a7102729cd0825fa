//! `tooz doctor`: whether a backend answers, how fast it is, and what about it endangers locks.
//!
//! The driver examines the backend; this file measures the operations and prints the findings.

use std::time::Duration;

use serde_json::{Value, json};
use tooz::driver::{Clock, Instant};
use tooz::{
    BackendUrl, Capabilities, Characteristics, Coordinator, Error, ErrorKind, Finding, Group, Severity,
    drivers,
};

use crate::args::Doctor;
use crate::backend;
use crate::exit::{Code, DONE, ENDANGERED, Failure};
use crate::lock::unless_signaled;
use crate::run::Signals;
use crate::settings::Backend;
use crate::text;

pub(crate) async fn doctor(backend: &Backend, options: &Doctor) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let url = BackendUrl::parse(&backend.url)?;
    let named = Finding::good("backend", format!("{url} ({})", backend.source));
    let mut report = Report { json: options.json, code: DONE };
    let clock = Clock::boot();
    let mut adopted = Vec::new();
    if options.adopt {
        let examined = backend::any_builder(backend).adopt().examine();
        adopted = unless_signaled(&mut signals, examined).await??;
        adopted.retain(|finding| finding.topic() == "adopt");
    }
    let begun = clock.now();
    let connected = unless_signaled(&mut signals, backend::any_builder(backend).connect()).await?;
    let took = clock.now().saturating_since(begun);
    // Examined also if connecting failed: the findings may say why.
    let examined = unless_signaled(&mut signals, backend::any_builder(backend).examine()).await?;
    let found = examined.as_deref().unwrap_or_default();
    let coordinator = match connected {
        Ok(coordinator) => coordinator,
        Err(error) if is_usage(&error) && found.is_empty() => return Err(error.into()),
        Err(error) => {
            report.show(&named)?;
            report.fail("reachable", &error, advice(error.kind()))?;
            adopted.iter().chain(found).try_for_each(|finding| report.show(finding))?;
            return Ok(report.code);
        }
    };
    report.show(&named)?;
    report.show(&Finding::good("reachable", "connected, and a session was opened"))?;
    if !coordinator.characteristics().contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES) {
        report.show(&Finding::bad(
            "processes",
            "what is held here is held within one process; the commands of tooz refuse this backend",
            "name a backend that processes share, such as sqlite:///var/lib/app/tooz.db",
        ))?;
    }
    adopted.iter().chain(found).try_for_each(|finding| report.show(finding))?;
    if let Err(error) = &examined {
        report.fail("examination", error, "the driver could not examine the backend; try again")?;
    }
    let mut times = Times { connect: vec![took], ..Times::default() };
    let group = coordinator.group(format!("tooz-doctor-{}", backend::random_suffix()))?;
    let measured = measure(&coordinator, &group, backend, options.rounds, &clock, &mut times);
    let measured = unless_signaled(&mut signals, measured).await;
    // Also after a signal: remove what was made. What cannot be removed ends with the session.
    let _ = group.leave().await;
    let _ = group.delete().await;
    let kept = coordinator.characteristics();
    let _ = coordinator.close().await;
    let measured = measured?;
    report.latency(&times)?;
    if let Err((operation, error)) = measured {
        report.fail("operation", &error.clone().during(operation), advice(error.kind()))?;
    }
    report.characteristics(promised(&url), kept, found)?;
    Ok(report.code)
}

/// Whether the command line is wrong, and not the backend.
fn is_usage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnknownScheme | ErrorKind::InvalidUrl | ErrorKind::InvalidOption | ErrorKind::Invalid
    )
}

fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Denied => "correct the user, the password, the certificate or the permissions",
        ErrorKind::Unavailable | ErrorKind::Timeout => {
            "check that the backend runs there and that no firewall blocks the connection"
        }
        ErrorKind::Incompatible => "upgrade the older one of backend and tooz",
        _ => "do what the message says, then run `tooz doctor` again",
    }
}

/// The characteristics that the driver promises for this URL at best.
fn promised(url: &BackendUrl) -> Characteristics {
    let drivers = drivers();
    let ours = drivers.iter().find(|driver| driver.schemes().contains(&url.scheme()));
    ours.map_or_else(Characteristics::empty, |driver| driver.characteristics(url))
}

/// How long each operation took, once per round.
#[derive(Debug, Default)]
struct Times {
    connect: Vec<Duration>,
    lock: Vec<Duration>,
    group: Vec<Duration>,
    members: Vec<Duration>,
    beat: Vec<Duration>,
    /// The time from one beat to the next, where sessions have a ttl.
    due: Option<Duration>,
}

impl Times {
    /// The median of each, under its name.
    fn medians(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let median = |times: &Vec<Duration>| {
            let mut times = times.clone();
            times.sort_unstable();
            times.get(times.len() / 2).copied()
        };
        [
            ("connect", median(&self.connect)),
            ("acquire+release", median(&self.lock)),
            ("join+leave", median(&self.group)),
            ("members", median(&self.members)),
            ("beat", median(&self.beat)),
        ]
        .into_iter()
        .filter_map(|(name, time)| Some((name, time?)))
    }
}

/// Measures every operation once per round, under the group's own random name.
async fn measure(
    coordinator: &Coordinator,
    group: &Group,
    backend: &Backend,
    rounds: u32,
    clock: &Clock,
    times: &mut Times,
) -> Result<(), (&'static str, Error)> {
    let since = |begun: Instant| clock.now().saturating_since(begun);
    let lock = coordinator.lock(group.id().as_bytes()).map_err(|error| ("acquire", error))?;
    group.create().await.map_err(|error| ("create", error))?;
    for round in 0..rounds {
        if round > 0 {
            // Another member id, since this coordinator uses ours.
            let other = backend.of_another_member();
            let begun = clock.now();
            let other = backend::any_builder(&other).connect().await.map_err(|error| ("connect", error))?;
            times.connect.push(since(begun));
            let _ = other.close().await;
        }
        let begun = clock.now();
        let guard = lock.acquire().await.map_err(|error| ("acquire", error))?;
        guard.release().await.map_err(|error| ("release", error))?;
        times.lock.push(since(begun));
        let begun = clock.now();
        group.join(Capabilities::none()).await.map_err(|error| ("join", error))?;
        let joined = since(begun);
        let begun = clock.now();
        group.members().await.map_err(|error| ("members", error))?;
        times.members.push(since(begun));
        let begun = clock.now();
        group.leave().await.map_err(|error| ("leave", error))?;
        times.group.push(joined + since(begun));
        let begun = clock.now();
        times.due = coordinator.heartbeat().await.map_err(|error| ("beat", error))?;
        times.beat.push(since(begun));
    }
    Ok(())
}

/// Prints the findings and derives the exit code from them.
struct Report {
    json: bool,
    code: Code,
}

impl Report {
    fn show(&mut self, finding: &Finding) -> Result<(), Failure> {
        self.show_with(finding, json!({}))
    }

    /// `more`: additional fields of the JSON object.
    fn show_with(&mut self, finding: &Finding, mut more: Value) -> Result<(), Failure> {
        if finding.severity() > Severity::Good && self.code == DONE {
            self.code = ENDANGERED;
        }
        if self.json {
            more["severity"] = finding.severity().word().into();
            more["topic"] = finding.topic().into();
            more["what"] = finding.what().into();
            more["advice"] = finding.advice().into();
            more["lowers"] = names(finding.lowered()).into();
            return text::line(&more.to_string());
        }
        // A backend's words may hold line breaks: print one line each.
        let plain =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        let (severity, topic) = (finding.severity().word(), finding.topic());
        text::line(&format!("{severity:<8} {topic:<16} {}", plain(finding.what())))?;
        match finding.advice() {
            Some(advice) => text::line(&format!("{:<25} advice: {}", "", plain(advice))),
            None => Ok(()),
        }
    }

    /// An error; the first one decides the exit code.
    fn fail(&mut self, topic: &'static str, error: &Error, advice: &str) -> Result<(), Failure> {
        let failure = Failure::from(error.clone());
        if matches!(self.code, DONE | ENDANGERED) {
            self.code = failure.code();
        }
        self.show(&Finding::bad(topic, failure.message(), advice))
    }

    fn latency(&mut self, times: &Times) -> Result<(), Failure> {
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let all: Vec<_> =
            times.medians().map(|(name, time)| format!("{name} {} ms", milliseconds(time))).collect();
        let values: serde_json::Map<String, Value> =
            times.medians().map(|(name, time)| (name.to_owned(), milliseconds(time).into())).collect();
        let what = format!("median of {}: {}", times.connect.len(), all.join(", "));
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
        self.show_with(&finding, json!({ "milliseconds": values }))
    }

    /// Prints the characteristics that are kept, and those that are not with the reason.
    fn characteristics(
        &mut self,
        promised: Characteristics,
        kept: Characteristics,
        found: &[Finding],
    ) -> Result<(), Failure> {
        let all = json!({ "kept": names(kept) });
        self.show_with(&Finding::good("kept", names(kept).join(", ")), all)?;
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
            self.show_with(
                &Finding::warning("not-kept", what, advice).lowers(lowered),
                json!({ "because": why }),
            )?;
        }
        Ok(())
    }
}

fn names(characteristics: Characteristics) -> Vec<String> {
    characteristics.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_each_operation() {
        let times = Times {
            beat: [5, 1, 9].map(Duration::from_millis).into(),
            connect: vec![Duration::from_millis(2)],
            ..Times::default()
        };
        let medians: Vec<_> = times.medians().collect();
        assert_eq!(medians, [("connect", Duration::from_millis(2)), ("beat", Duration::from_millis(5))]);
    }

    #[test]
    fn the_first_failure_decides_the_exit_code() {
        let mut report = Report { json: true, code: DONE };
        report.show(&Finding::good("a", "b")).unwrap();
        assert_eq!(report.code, DONE);
        report.show(&Finding::warning("a", "b", "c")).unwrap();
        assert_eq!(report.code, ENDANGERED);
        report.fail("a", &ErrorKind::Denied.into(), "").unwrap();
        report.fail("a", &ErrorKind::Unavailable.into(), "").unwrap();
        assert_eq!(report.code, crate::exit::DENIED);
    }

    #[test]
    fn what_is_lowered_names_why_or_says_that_nobody_knows() {
        let mut report = Report { json: true, code: DONE };
        let durable = Characteristics::DURABLE_FENCING;
        report.characteristics(durable, durable, &[]).unwrap();
        assert_eq!(report.code, DONE);
        report.characteristics(durable, Characteristics::empty(), &[]).unwrap();
        assert_eq!(report.code, ENDANGERED);
    }
}
