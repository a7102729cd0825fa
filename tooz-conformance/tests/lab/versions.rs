//! This version beside an earlier one: the suite's program, built from an earlier commit, is the other process.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::path::{Path, PathBuf};
use std::time::Duration;

use tooz_conformance::{Outcome, Process, Target, Time, Wish, eventually, targets};
use tooz_core::driver::Released;
use tooz_core::{Characteristics, Coordinator, ErrorKind};
use tooz_servers::lab::{Failed, Trial, trial};

/// Names the program; the stage `earlier` of `scripts/test` builds it.
const EARLIER: &str = "TOOZ_EARLIER";

const NAMESPACE: &str = "versions";
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    let Some(program) = std::env::var_os(EARLIER).map(PathBuf::from) else {
        let why = format!("needs {EARLIER}, see scripts/test");
        let failed = Failed::from(why.clone());
        let none = Trial::test("versions", move || Err(failed));
        return vec![none.with_kind(why).with_ignored_flag(true)];
    };
    // The earlier version has no driver for memcached.
    let shared = |target: &Target| {
        target.characteristics().contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES)
            && target.name() != "memcached"
    };
    let trial = |target: Target| {
        let (name, missing) = (target.name().to_owned(), target.missing().map(str::to_owned));
        let program = program.clone();
        trial(format!("versions::{name}"), missing, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(&target, &program)).map_err(|error| error.to_string().into())
        })
    };
    targets::all().into_iter().filter(shared).map(trial).collect()
}

/// X7, L1, L3: an earlier version with the same layout takes part; one with an earlier layout is waited for, and refused then.
async fn run(target: &Target, program: &Path) -> Outcome {
    let place = target.fresh(Wish { time: Time::Real, lasting: true })?;
    let now = || Coordinator::builder(place.url(), "now").namespace(NAMESPACE).connect();
    let earlier = |member: &'static str| Process::start_other(program, place.url(), NAMESPACE, member);
    let mut holder = earlier("earlier").await?;
    let first = token(&holder.ask("acquire x").await?)?;
    // Where the layout has changed since.
    let changed = target.name().starts_with("etcd");
    match now().await {
        Ok(now) => {
            assert!(!changed, "the earlier version works beside this one");
            assert!(now.lock("x")?.try_acquire().await?.is_none(), "both versions hold the lock");
            holder.ask("release x").await?;
            let guard = now.lock("x")?.acquire().await?;
            assert!(guard.token().get() > first, "{} after {first}", guard.token());
            holder.tell("acquire x")?;
            eventually("the earlier version waits", LIMIT, async || {
                Ok::<_, tooz_core::Error>(
                    now.lock("x")?.holders().await?.waiters.is_none_or(|waiters| waiters == 1),
                )
            })
            .await?;
            assert!(guard.is_held());
            let second = guard.token().get();
            assert_eq!(guard.release().await?, Released::Released);
            let third = token(&holder.answer_within(LIMIT).await?)?;
            assert!(third > second, "{third} after {second}");
            now.close().await?;
        }
        Err(error) => {
            assert!(changed, "{error}");
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
            assert_eq!(holder.ask("held x").await?, "true", "the holder was disturbed");
            holder.ask("release x").await?;
            holder.ask("close").await?;
            eventually("the layout is changed", LIMIT, async || match now().await {
                Ok(now) => now.close().await.map(|()| true),
                Err(error) if error.kind() == ErrorKind::Incompatible => Ok(false),
                Err(error) => Err(error),
            })
            .await?;
            let now = now().await?;
            let guard = now.lock("x")?.acquire().await?;
            assert!(guard.token().get() > first, "{} after {first}", guard.token());
            let Err(refused) = earlier("again").await else {
                return Err("the earlier version works beside this one".into());
            };
            assert!(refused.to_string().contains("incompatible"), "{refused}");
            assert!(guard.is_held());
            now.close().await?;
        }
    }
    Ok(())
}

fn token(answer: &str) -> Outcome<u64> {
    Ok(answer.split(' ').next().unwrap_or_default().parse()?)
}
