//! `tooz doctor`: whether a backend answers, how fast it is, and what about it endangers locks.
//!
//! The driver examines the backend; [`measure`] measures the operations, and [`report`] prints the findings.

mod measure;
mod report;

use std::path::Path;
use std::time::Duration;

use tooz::{BackendUrl, Characteristics, Coordinator, Error, ErrorKind, Finding, Severity, drivers};

use self::measure::Measured;
use self::report::Report;
use crate::args::Doctor;
use crate::backend::any_builder;
use crate::exit::{Code, Failure};
use crate::lock::unless_signaled;
use crate::run::Signals;
use crate::settings::Backend;

/// How far doctor got.
enum Reached {
    /// A session is open, after so long.
    Session(Coordinator, Duration),
    /// No session was opened, so that nothing is written.
    Measured(Measured),
}

pub(crate) async fn doctor(backend: &Backend, options: &Doctor) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let url = BackendUrl::parse(&backend.url)?;
    let namespace =
        backend.namespace().map_or_else(String::new, |namespace| format!(", namespace {namespace:?}"));
    let ttl = backend.ttl().map_or_else(String::new, |ttl| format!(", ttl {ttl:?}"));
    let named = Finding::good("backend", format!("{url} ({}){namespace}{ttl}", backend.source));
    let mut report = Report::new(options.json, &options.ignore);
    if let Some(directory) = backend.own_directory()?.filter(|directory| !directory.exists()) {
        let found = unless_signaled(&mut signals, without_own_directory(backend, &directory)).await??;
        report.show(&named)?;
        found.iter().try_for_each(|finding| report.show(finding))?;
        return Ok(report.end());
    }
    let mut builder = any_builder(backend);
    if options.adopt {
        builder = builder.adopt();
    }
    let (found, failed) = match unless_signaled(&mut signals, builder.examine()).await? {
        Ok(found) => (found, None),
        Err(error) if options.adopt || is_usage(&error) => return Err(error.into()),
        Err(error) => (Vec::new(), Some(error)),
    };
    let reached = match reach(&mut signals, backend, options.rounds, &found, failed.as_ref()).await? {
        Ok(reached) => reached,
        Err(error) if is_usage(&error) && found.is_empty() => return Err(error.into()),
        Err(error) => {
            report.show(&named)?;
            report.fail("reachable", &error, &advice(error.kind(), &found))?;
            found.iter().try_for_each(|finding| report.show(finding))?;
            return Ok(report.end());
        }
    };
    let lowered = found.iter().fold(Characteristics::empty(), |all, finding| all | finding.lowered());
    let (what, kept) = match (&reached, &failed) {
        (Reached::Session(coordinator, _), _) => {
            ("connected, and a session was opened", coordinator.characteristics())
        }
        (Reached::Measured(_), None) => (
            "no session was opened, since what the first one writes would stay (see: unused)",
            promised(&url) - lowered,
        ),
        (Reached::Measured(_), Some(_)) => {
            ("no session was opened, since the examination failed (see: examination)", promised(&url))
        }
    };
    report.show(&named)?;
    report.show(&Finding::good("reachable", what))?;
    if !kept.contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES) {
        report.show(&Finding::bad(
            "processes",
            "what is held here is held within one process; the commands of tooz refuse this backend",
            "name a backend that processes share, such as sqlite:///var/lib/app/tooz.db",
        ))?;
    }
    found.iter().try_for_each(|finding| report.show(finding))?;
    if let Some(error) = &failed {
        report.fail("examination", error, "the driver could not examine the backend; try again")?;
    }
    let measured = match reached {
        Reached::Session(coordinator, took) => {
            measure::every_operation(&mut signals, (coordinator, took), backend, options.rounds).await?
        }
        Reached::Measured(measured) => measured,
    };
    report.latency(&measured.times)?;
    if let Some((operation, error)) = measured.failed {
        report.fail("operation", &error.clone().during(operation), &advice(error.kind(), &found))?;
    }
    // What a failed examination did not see may lower more.
    if failed.is_none() {
        report.characteristics(promised(&url), kept, &found)?;
    }
    Ok(report.end())
}

/// Opens a session where a lock was granted before. Where that is not known, what a session writes might stay: measures
/// what writes nothing.
async fn reach(
    signals: &mut Signals,
    backend: &Backend,
    rounds: u32,
    found: &[Finding],
    failed: Option<&Error>,
) -> Result<Result<Reached, Error>, Failure> {
    let across_hosts =
        promised(&BackendUrl::parse(&backend.url)?).contains(Characteristics::DISTRIBUTED_ACROSS_HOSTS);
    match failed {
        None if found.iter().all(|finding| finding.topic() != Finding::UNUSED) => {
            let connected = measure::connect(signals, backend).await?;
            return Ok(connected.map(|(coordinator, took)| Reached::Session(coordinator, took)));
        }
        // A place on this machine that does not exist has nothing to measure.
        None if !across_hosts => return Ok(Ok(Reached::Measured(Measured::default()))),
        // Connecting would wait as long again.
        Some(error) if error.kind() == ErrorKind::Timeout || !across_hosts => return Ok(Err(error.clone())),
        _ => {}
    }
    let measured = unless_signaled(signals, measure::without_writing(backend, rounds)).await?;
    Ok(match measured {
        Measured { failed: Some(("connect", error)), times } if times.connect.is_empty() => Err(error),
        measured => Ok(Reached::Measured(measured)),
    })
}

/// The user's own database, whose directory does not exist either. What exists of the way there is examined.
async fn without_own_directory(backend: &Backend, directory: &Path) -> Result<Vec<Finding>, Error> {
    let stands = |path: &&Path| path.symlink_metadata().is_ok();
    let nearest = directory.ancestors().find(stands).unwrap_or(Path::new("/"));
    // Nothing stands at this name yet: it is that of the first directory to create.
    let missing = directory.strip_prefix(nearest).ok().and_then(|rest| rest.iter().next());
    let database = nearest.join(missing.unwrap_or("tooz.db".as_ref()));
    let mut found = any_builder(&backend.with_database(&database)).examine().await?;
    found.retain(|finding| finding.topic() != Finding::UNUSED);
    let shown = directory.display();
    found.push(if found.iter().all(|finding| finding.severity() < Severity::Bad) {
        Finding::good(
            Finding::UNUSED,
            format!(
                "{shown} does not exist yet; the first command that connects creates it and the database in it"
            ),
        )
    } else {
        Finding::bad(
            "directory",
            format!("{shown} does not exist, and {} does not allow to create it", nearest.display()),
            "give --url, set TOOZ_URL, or create the directory and give this user write permission for it",
        )
    });
    Ok(found)
}

/// Whether the command line is wrong, and not the backend.
fn is_usage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnknownScheme | ErrorKind::InvalidUrl | ErrorKind::InvalidOption | ErrorKind::Invalid
    )
}

/// What to do about an error. Where the driver found what does not work, its own advice is the one to follow.
fn advice(kind: ErrorKind, found: &[Finding]) -> String {
    let bad: Vec<_> =
        found.iter().filter(|one| one.severity() == Severity::Bad).map(Finding::topic).collect();
    if !bad.is_empty() {
        return format!("follow the advice of what is bad here: {}", bad.join(", "));
    }
    let advice = match kind {
        ErrorKind::Denied => "correct the user, the password, the certificate or the permissions",
        ErrorKind::Unavailable | ErrorKind::Timeout => {
            "do what the message says, or check that the backend runs there and that no firewall blocks the connection"
        }
        ErrorKind::Incompatible => "upgrade the older one of backend and tooz",
        _ => "do what the message says, then run `tooz doctor` again",
    };
    advice.to_owned()
}

/// The characteristics that the driver promises for this URL at best.
fn promised(url: &BackendUrl) -> Characteristics {
    let drivers = drivers();
    let ours = drivers.iter().find(|driver| driver.schemes().contains(&url.scheme()));
    ours.map_or_else(Characteristics::empty, |driver| driver.characteristics(url))
}
