//! `tooz doctor`: whether a backend answers, how fast it is, and what about it endangers locks.
//!
//! The driver examines the backend; [`measure`] measures the operations, and [`report`] prints the findings.

mod measure;
mod report;

use nix::unistd::{AccessFlags, access};
use tooz::{BackendUrl, Characteristics, Error, ErrorKind, Finding, Severity, drivers};

use self::measure::Measured;
use self::report::Report;
use crate::args::Doctor;
use crate::backend::any_builder;
use crate::exit::{Code, Failure};
use crate::lock::unless_signaled;
use crate::run::Signals;
use crate::settings::Backend;

pub(crate) async fn doctor(backend: &Backend, options: &Doctor) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let url = BackendUrl::parse(&backend.url)?;
    let named = Finding::good("backend", format!("{url} ({})", backend.source));
    let mut report = Report::new(options.json, &options.ignore);
    if let Some(directory) = backend.own_directory()?.filter(|directory| !directory.exists()) {
        report.show(&named)?;
        report.show(&without_own_directory(&directory))?;
        return Ok(report.end());
    }
    let mut builder = any_builder(backend);
    if options.adopt {
        builder = builder.adopt();
    }
    let examined = unless_signaled(&mut signals, builder.examine()).await?;
    if let (true, Err(error)) = (options.adopt, &examined) {
        return Err(error.clone().into());
    }
    let found = examined.as_deref().unwrap_or_default();
    let is_unused = found.iter().any(|finding| finding.topic() == Finding::UNUSED);
    // A failed examination does not keep from connecting, which may say more.
    let connected =
        if is_unused { Ok(None) } else { measure::connect(&mut signals, backend).await?.map(Some) };
    let connected = match connected {
        Ok(connected) => connected,
        Err(error) if is_usage(&error) && found.is_empty() => return Err(error.into()),
        Err(error) => {
            report.show(&named)?;
            report.fail("reachable", &error, &advice(error.kind(), found))?;
            found.iter().try_for_each(|finding| report.show(finding))?;
            return Ok(report.end());
        }
    };
    let lowered = found.iter().fold(Characteristics::empty(), |all, finding| all | finding.lowered());
    let (what, kept) = match &connected {
        Some((coordinator, _)) => ("connected, and a session was opened", coordinator.characteristics()),
        None => (
            "no session was opened, since what the first one writes would stay (see: unused)",
            promised(&url) - lowered,
        ),
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
    if let Err(error) = &examined {
        report.fail("examination", error, "the driver could not examine the backend; try again")?;
    }
    let measured = match connected {
        Some(connected) => measure::every_operation(&mut signals, connected, backend, options.rounds).await?,
        // A place on this machine that does not exist has nothing to measure.
        None if !kept.contains(Characteristics::DISTRIBUTED_ACROSS_HOSTS) => Measured::default(),
        None => unless_signaled(&mut signals, measure::without_writing(backend, options.rounds)).await?,
    };
    report.latency(&measured.times)?;
    if let Some((operation, error)) = measured.failed {
        report.fail("operation", &error.clone().during(operation), &advice(error.kind(), found))?;
    }
    report.characteristics(promised(&url), kept, found)?;
    Ok(report.end())
}

/// The user's own database, whose directory does not exist either.
fn without_own_directory(directory: &std::path::Path) -> Finding {
    let shown = directory.display();
    let nearest = directory.ancestors().skip(1).find(|path| path.exists());
    match nearest.filter(|nearest| access(*nearest, AccessFlags::W_OK).is_err()) {
        None => Finding::good(
            Finding::UNUSED,
            format!(
                "{shown} does not exist yet; the first command that connects creates it and the database in it"
            ),
        ),
        Some(closed) => Finding::bad(
            "writable",
            format!("{shown} does not exist, and this user may not create it in {}", closed.display()),
            "give --url, set TOOZ_URL, or create the directory and give this user write permission for it",
        ),
    }
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
