//! `tooz holders`, `tooz break` and `tooz tokens raise`.

use std::fmt;

use tooz::driver::HolderRecord;
use tooz::{Coordinator, Election, FencingToken, Lock};

use crate::args::{Break, Holders, Raise};
use crate::backend::{ask, connect, view};
use crate::exit::{Code, DONE, Failure, NO};
use crate::messages;
use crate::settings::Backend;
use crate::text::{self, bytes};

pub(crate) async fn holders(backend: &Backend, options: &Holders) -> Result<Code, Failure> {
    let viewer = view(backend).await?;
    let all = ask(viewer.holders(bytes(&options.name))).await?;
    for record in &all.holders {
        let json = || {
            let mut value = text::holder_json(record);
            value["waiters"] = all.waiters.into();
            value
        };
        text::show(options.json, json, || text::holder(record))?;
    }
    if all.holders.is_empty() {
        messages::notice(&format!("lock \"{}\" has no holder", bytes(&options.name).escape_ascii()));
    }
    if let (Some(waiters @ 1..), false) = (all.waiters, options.json) {
        text::line(&format!("waiting: {waiters}"))?;
    }
    let _ = viewer.close().await;
    Ok(DONE)
}

pub(crate) async fn break_lock(backend: &Backend, options: &Break) -> Result<Code, Failure> {
    let coordinator = connect(backend).await?;
    let result = break_shown(&coordinator, options).await;
    let _ = coordinator.close().await;
    result
}

/// Breaks those who hold the lock now. Each is compared in the step that breaks it.
async fn break_shown(coordinator: &Coordinator, options: &Break) -> Result<Code, Failure> {
    let target = Target::new(coordinator, options)?;
    let shown = target.holders().await?.holders;
    let is_free = shown.is_empty();
    let id = options.held_by.as_deref().map(bytes);
    let is_meant = |record: &HolderRecord| {
        options.token.is_none_or(|token| record.token.map(FencingToken::get) == Some(token))
            && id.is_none_or(|id| record.member.as_ref().is_some_and(|member| member.as_bytes() == id))
    };
    let meant: Vec<_> = shown.into_iter().filter(is_meant).collect();
    if meant.is_empty() {
        let chosen = options.token.is_some() || options.held_by.is_some();
        let whom = if is_free || !chosen { "no holder" } else { "other holders only; nothing was changed" };
        let hint = if is_free && !options.leader && leads_a_group(coordinator, options).await {
            "; to depose the leader of the group of this name, add --leader"
        } else {
            ""
        };
        messages::notice(&format!("{target} had {whom}{hint}"));
        return Ok(Code::of_answer(!chosen));
    }
    let mut code = DONE;
    for record in &meant {
        let broken = target.break_holder(record, &options.reason).await?;
        for record in &broken {
            let line = || format!("broken: {}", text::holder(record));
            text::show(options.json, || text::holder_json(record), line)?;
        }
        if broken.is_empty() {
            let who = text::holder(record);
            messages::notice(&format!("{who} let go of {target} meanwhile; nothing was changed"));
            code = NO;
        }
    }
    Ok(code)
}

/// Whether somebody leads the group of this name.
async fn leads_a_group(coordinator: &Coordinator, options: &Break) -> bool {
    let Ok(election) = coordinator.election(bytes(&options.name)) else { return false };
    election.holders().await.is_ok_and(|leaders| !leaders.holders.is_empty())
}

/// What is to be broken.
enum Target {
    Lock(Lock),
    Leadership(Election),
}

impl Target {
    fn new(coordinator: &Coordinator, options: &Break) -> tooz::Result<Self> {
        let name = bytes(&options.name);
        if options.leader {
            return coordinator.election(name).map(Self::Leadership);
        }
        coordinator.lock(name).map(Self::Lock)
    }

    async fn holders(&self) -> tooz::Result<tooz::driver::Holders> {
        match self {
            Self::Lock(lock) => lock.holders().await,
            Self::Leadership(election) => election.holders().await,
        }
    }

    async fn break_holder(&self, record: &HolderRecord, why: &str) -> tooz::Result<Vec<HolderRecord>> {
        match self {
            Self::Lock(lock) => lock.break_holder(record, why).await,
            Self::Leadership(election) => election.break_holder(record, why).await,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(lock) => write!(f, "lock \"{}\"", lock.name()),
            Self::Leadership(election) => write!(f, "the leadership of group \"{}\"", election.group()),
        }
    }
}

pub(crate) async fn raise_tokens(backend: &Backend, options: &Raise) -> Result<Code, Failure> {
    let coordinator = connect(backend).await?;
    let raised = coordinator.raise_tokens(options.least).await;
    let _ = coordinator.close().await;
    raised?;
    text::line(&format!("every later token is at least {}", options.least))?;
    Ok(DONE)
}
