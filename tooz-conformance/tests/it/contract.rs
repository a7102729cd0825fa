//! The suite itself: that it covers the contract, and that nothing drops out of it unseen.

use std::collections::BTreeSet;
use std::path::Path;

use tooz_conformance::{cases, contract, matrix, targets};
use tooz_core::{Capabilities, Characteristics, Coordinator, Result};

const CONTRACT: &str = include_str!("../../../docs/contract.md");

#[test]
fn every_clause_has_a_case_and_every_case_a_clause() {
    assert!(contract::clauses(CONTRACT).len() > 50, "the contract is not where it was");
    let differences = contract::differences(CONTRACT);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn doc_comments_name_the_clauses_of_the_table() {
    let documented = contract::documented();
    for case in cases::all() {
        let found: Vec<_> = documented.iter().filter(|(name, _)| name == case.name()).collect();
        let [(_, clauses)] = &found[..] else {
            panic!("{} is documented {} times", case.name(), found.len())
        };
        assert_eq!(clauses, case.clauses(), "{}", case.name());
    }
    assert_eq!(documented.len(), cases::all().len(), "a function is in no table");
}

#[test]
fn names_are_unique() {
    let cases = cases::all();
    let names: BTreeSet<_> = cases.iter().map(tooz_conformance::Case::name).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn every_claim_has_a_case_and_a_twin() {
    let (all, cases) = (targets::all(), cases::all());
    for flag in Characteristics::all().iter() {
        let needing: Vec<_> = cases.iter().filter(|case| case.needed().contains(flag)).collect();
        for target in all.iter().filter(|target| target.characteristics().contains(flag)) {
            let runs = needing.iter().any(|case| case.why_not(target).is_none());
            assert!(runs, "{} claims {flag}, and no case that needs it runs there", target.name());
        }
        // Where it is not claimed, requiring it is refused: connect_unclaimed_characteristics_are_refused is
        // every characteristic's twin, and runs everywhere.
        let refusal =
            cases.iter().find(|case| case.name() == "connect_unclaimed_characteristics_are_refused");
        assert!(refusal.is_some_and(|case| all.iter().all(|target| case.why_not(target).is_none())));
    }
}

#[test]
fn the_matrix_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("MATRIX.md");
    let targets = targets::all();
    let now = matrix::render(&targets);
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("TOOZ_BLESS").is_some() {
        let whole = cfg!(all(
            feature = "file",
            feature = "redis-tls",
            feature = "etcd-tls",
            feature = "memcached"
        ));
        assert!(whole, "drivers are left out of this build; write MATRIX.md with all of them");
        std::fs::write(&path, &now).unwrap();
    } else {
        let golden = matrix::restrict(&golden, &targets);
        assert!(golden == now, "MATRIX.md differs; look at the difference after TOOZ_BLESS=1");
    }
}

/// Never run: that it compiles is the promise. Whatever a program awaits, it can await in a task of its own.
#[allow(dead_code, clippy::disallowed_methods)]
fn every_future_can_be_spawned(c: Coordinator) {
    tokio::spawn(async move {
        let (group, lock, election) = (c.group("g")?, c.lock("x")?, c.election("g")?);
        group.create().await?;
        group.join(Capabilities::none()).await?;
        group.join_or_create(Capabilities::none()).await?;
        group.update_capabilities(Capabilities::none()).await?;
        drop((group.members().await?, group.member("m").await?, group.member_capabilities("m").await?));
        drop(group.watch().await?.next().await);
        group.leave().await?;
        group.delete().await?;
        drop((lock.try_acquire().await?, lock.acquire_within(std::time::Duration::ZERO).await?));
        let guard = lock.acquire().await?;
        drop((lock.holders().await?, lock.break_lock("").await?, lock.break_token(guard.token(), "").await?));
        guard.lost().await;
        guard.loss_signal().wait().await;
        drop(guard.run(std::future::ready(())).await);
        guard.release().await?;
        let set = c.lock_all(["x", "y"])?;
        drop((set.try_acquire().await?, set.acquire_within(std::time::Duration::ZERO).await?));
        set.acquire().await?.release().await?;
        drop((
            election.try_campaign().await?,
            election.leader().await?,
            election.break_leadership("").await?,
        ));
        drop(election.campaign_within(std::time::Duration::ZERO).await?);
        drop(election.observe().await?.next().await);
        election.campaign().await?.resign().await?;
        c.hooks().watch_join_group("g", |_| Ok(())).await?;
        drop((c.hooks().run_watchers(std::time::Duration::ZERO).await?, c.hooks().run_elect_coordinator().await?));
        drop((c.hooks().stand_down("g").await?, c.groups().await?, c.heartbeat().await?, c.events().next().await));
        c.heart().wait().await;
        c.close().await?;
        Result::<()>::Ok(())
    });
}
