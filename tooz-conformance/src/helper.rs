//! Real processes, the child's side: does what it is told on standard input and answers on standard output.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tooz_core::driver::{Driver, End, InstanceId, OpenSession};
use tooz_core::{Builder, Capabilities, Coordinator, Leadership, Liveness, LockGuard, MemberId};

use crate::process::HELPER;
use crate::tools::{Outcome, random};

/// Runs as a helper if this process was started as one.
pub(crate) fn if_helper() -> Option<ExitCode> {
    let order = std::env::var(HELPER).ok()?;
    Some(match run(&order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("err {error}");
            ExitCode::FAILURE
        }
    })
}

/// What was acquired by order.
#[derive(Debug, Default)]
pub(crate) struct Held {
    guards: BTreeMap<String, LockGuard>,
    leads: BTreeMap<String, Leadership>,
}

fn run(order: &str) -> Outcome {
    let [url, namespace, member] = order.split('\n').collect::<Vec<_>>()[..] else {
        return Err("a helper is told URL, namespace and member".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let coordinator = Coordinator::builder(url, member).namespace(namespace).connect().await?;
        let mut held = Held::default();
        let mut drivers = Vec::new();
        say("ok ready")?;
        // Blocking is fine: the coordinator lives on the library's thread.
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ends", how, name] = words[..] {
                return ends(
                    coordinator,
                    Coordinator::builder(url, "scoped").namespace(namespace),
                    how,
                    name,
                )
                .await;
            }
            let done = match words[..] {
                ["driver"] => {
                    let builder = Coordinator::builder(url, member).namespace(namespace);
                    builder.connect_driver().await.map_err(Into::into).map(|(driver, _)| {
                        drivers.push(driver);
                        String::new()
                    })
                }
                ["session", member] => open(drivers.last(), member).await,
                _ => obey(&coordinator, &mut held, &words).await,
            };
            match done {
                Ok(answer) => say(&format!("ok {answer}"))?,
                Err(error) => say(&format!("err {error}"))?,
            }
        }
        Ok(())
    })
}

/// Opens and closes a session of a driver that was connected before.
async fn open(driver: Option<&Arc<dyn Driver>>, member: &str) -> Outcome<String> {
    let request = OpenSession::new(MemberId::new(member)?, InstanceId(random()));
    let session = driver.ok_or("no driver is connected")?.open_session(&request).await?;
    session.close(End::Clean).await?;
    Ok(session.id().to_string())
}

/// Drops what it holds as the last thing before it ends.
async fn ends(c: Coordinator, builder: Builder, how: &str, name: &str) -> Outcome {
    if how == "scope" {
        return Coordinator::scope(builder, async |scoped| {
            let guard = scoped.lock(name)?.acquire().await?;
            say(&format!("ok {} {:?}", guard.token(), guard.previous()))
        })
        .await;
    }
    let guard = c.lock(name)?.acquire().await?;
    say(&format!("ok {} {:?}", guard.token(), guard.previous()))?;
    drop(guard);
    Ok(c.close_blocking(Duration::from_secs(10))?)
}

fn say(line: &str) -> Outcome {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Does what a line of words says, here or in a process of its own.
pub(crate) async fn obey(c: &Coordinator, held: &mut Held, words: &[&str]) -> Outcome<String> {
    let guard = |held: &Held, name: &str| held.guards.get(name).map(LockGuard::is_held);
    Ok(match *words {
        ["join", group] => {
            c.group(group)?.join_or_create(Capabilities::none()).await?;
            String::new()
        }
        ["leave", group] => {
            c.group(group)?.leave().await?;
            String::new()
        }
        ["acquire", name] => {
            let guard = c.lock(name)?.acquire().await?;
            let answer = format!("{} {:?}", guard.token(), guard.previous());
            held.guards.insert(name.to_owned(), guard);
            answer
        }
        ["share", name] => {
            let guard = c.lock(name)?.shared().acquire().await?;
            let answer = guard.token().to_string();
            held.guards.insert(name.to_owned(), guard);
            answer
        }
        ["permit", name, limit] => {
            let guard = c.lock(name)?.permits(limit.parse()?)?.acquire().await?;
            let answer = guard.token().to_string();
            held.guards.insert(name.to_owned(), guard);
            answer
        }
        ["held", name] => guard(held, name).unwrap_or(false).to_string(),
        ["release", name] => match held.guards.remove(name) {
            Some(guard) => format!("{:?}", guard.release().await?),
            None => return Err("not held".into()),
        },
        ["campaign", group] => {
            let lead = c.election(group)?.campaign().await?;
            let answer = lead.term().to_string();
            held.leads.insert(group.to_owned(), lead);
            answer
        }
        ["raise", n] => {
            c.raise_tokens(n.parse()?).await?;
            String::new()
        }
        ["leads", group] => held.leads.get(group).is_some_and(Leadership::is_held).to_string(),
        ["liveness"] => match c.liveness() {
            Liveness::Alive { .. } => "alive",
            Liveness::Suspended { .. } => "suspended",
            _ => "lost",
        }
        .to_owned(),
        ["churn", name, file, times] => churn(c, name, file, times.parse()?).await?,
        ["close"] => {
            c.close().await?;
            String::new()
        }
        _ => return Err(format!("unknown command {words:?}").into()),
    })
}

/// Takes the lock again and again; a file that must not exist beside another holder shows an overlap.
async fn churn(c: &Coordinator, name: &str, file: &str, times: u32) -> Outcome<String> {
    for _ in 0..times {
        let guard = c.lock(name)?.acquire().await?;
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(file)
            .map_err(|error| format!("two processes hold the lock at once: {error}"))?;
        std::fs::remove_file(file)?;
        guard.release().await?;
    }
    Ok(String::new())
}
