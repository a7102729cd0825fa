//! `tooz groups`, `tooz members`, `tooz join`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tooz::driver::MemberRecord;
use tooz::{Capabilities, Coordinator, Departure, ErrorKind, Event, GroupEvent, GroupWatch, Viewer};

use crate::args::{Join, List, Members};
use crate::backend::{ask, close, connect, not_yet, view};
use crate::exit::{Closing, Code, DONE, Failure, LOST, USAGE};
use crate::lock::{cannot_start, ended_all, member_text, unless_signaled};
use crate::messages::{self, AWAY, BACK, tell_if_long};
use crate::run::{Ended, Hold, Job, Signals, run};
use crate::settings::Backend;
use crate::text::{self, bytes};
use crate::watching::watch;

/// Between two looks whether a group exists.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn groups(backend: &Backend, options: &List) -> Result<Code, Failure> {
    let viewer = view(backend).await?;
    let groups = ask(viewer.groups()).await?;
    for group in groups {
        let value = || json!({ "group": text::name(group.as_bytes()) });
        text::show(options.json, value, || group.to_string())?;
    }
    let _ = viewer.close().await;
    Ok(DONE)
}

pub(crate) async fn members(backend: &Backend, options: &Members) -> Result<Code, Failure> {
    let group = bytes(&options.group);
    if !options.watch {
        let viewer = view(backend).await?;
        for record in ask(viewer.members(group)).await? {
            text::show(options.json, || text::member_json(&record), || text::member_line(&record))?;
        }
        let _ = viewer.close().await;
        return Ok(DONE);
    }
    let mut signals = Signals::catch()?;
    let viewer = unless_signaled(&mut signals, view(backend)).await??;
    let follow = async {
        let mut events = appears(&viewer, group).await?;
        while let Some(event) = events.next().await {
            if let Some(text) = change(&event?, options.json) {
                text::line_in_background(text).await?;
            }
        }
        Ok(())
    };
    watch(&mut signals, follow, async || viewer.members(group).await.map(drop)).await
}

/// Follows a group from the time when it exists.
async fn appears(viewer: &Viewer, group: &[u8]) -> Result<GroupWatch, Failure> {
    let mut is_told = false;
    loop {
        match viewer.watch(group).await.map_err(|error| (error.kind(), error)) {
            Ok(events) => return Ok(events),
            Err((ErrorKind::GroupNotFound, _)) => {
                if !std::mem::replace(&mut is_told, true) {
                    let group = group.escape_ascii();
                    messages::notice(&format!("group \"{group}\" does not exist yet; waiting for it"));
                }
            }
            // Told by the watch.
            Err((ErrorKind::Unavailable | ErrorKind::Timeout, _)) if is_told => {}
            Err((_, error)) => return Err(error.into()),
        }
        sleep(LOOK).await;
    }
}

/// One line for each change; for a snapshot a heading and one line for each member. `None`: not known here.
fn change(event: &GroupEvent, json: bool) -> Option<String> {
    let now = text::now();
    let one = |word: &str, record: &MemberRecord| {
        if json {
            let mut value = text::member_json(record);
            value["event"] = word.into();
            value["time"] = (&*now).into();
            value.to_string()
        } else {
            format!("{now} {word} {}", text::member_line(record))
        }
    };
    let all = |word: &str, records: &[MemberRecord]| {
        if json {
            let members: Vec<Value> = records.iter().map(text::member_json).collect();
            return json!({ "event": word, "time": now, "members": members }).to_string();
        }
        let heading = format!("{now} {word} of {}", records.len());
        let members = records.iter().map(|record| one("member", record));
        std::iter::once(heading).chain(members).collect::<Vec<_>>().join("\n")
    };
    Some(match event {
        GroupEvent::Snapshot(records) => all("snapshot", records),
        GroupEvent::Resync(records) => all("resync", records),
        GroupEvent::Joined(record) => one("joined", record),
        GroupEvent::Left(record, how) => one(departure(*how), record),
        GroupEvent::Updated(record) => one("updated", record),
        GroupEvent::Deleted if json => json!({ "event": "deleted", "time": now }).to_string(),
        GroupEvent::Deleted => format!("{now} deleted"),
        _ => return None,
    })
}

/// How a member went, in a word.
fn departure(how: Departure) -> &'static str {
    match how {
        Departure::Left => "left",
        Departure::Died => "died",
        _ => "gone",
    }
}

/// The session joins the group again after a loss, so only the end of `tooz` ends the command.
#[derive(Debug)]
struct Membership;

impl Hold for Membership {
    async fn lost(&self) -> String {
        std::future::pending().await
    }
}

pub(crate) async fn join(backend: &Backend, options: &Join) -> Result<Code, Failure> {
    let capabilities = options.capabilities.as_deref().map_or_else(|| Ok(Capabilities::none()), published)?;
    let mut signals = Signals::catch()?;
    let coordinator = unless_signaled(&mut signals, connect(backend)).await??;
    let taking_part = take_part(&coordinator, backend, options, capabilities, &mut signals);
    let result = messages::tell_events(&coordinator, tell, Box::pin(taking_part)).await;
    close(&coordinator, result).await
}

async fn take_part(
    coordinator: &Coordinator,
    backend: &Backend,
    options: &Join,
    capabilities: Capabilities,
    signals: &mut Signals,
) -> Result<Code, Failure> {
    let group = coordinator.group(bytes(&options.group))?;
    unless_signaled(signals, tell_if_long(group.join_or_create(capabilities), not_yet)).await??;
    if options.command.is_empty() {
        let caught = signals.next().await;
        return Ok(Code::by_signal(caught.signal as i32));
    }
    let job = Job {
        command: &options.command,
        backend,
        environment: vec![("TOOZ_GROUP", options.group.clone()), ("TOOZ_MEMBER", member_text(coordinator))],
        grace: options.ending.kill_grace,
        children: options.ending.children,
        held: "membership",
    };
    match run(&job, &Membership, signals).await.map_err(|error| cannot_start(&error))? {
        Ended::Exited(code) => Ok(Code::of_command(code)),
        Ended::Signaled(signal) => Ok(Code::by_signal(signal)),
        Ended::Lost { why, left } => {
            Err(Failure::new(LOST, format!("{why}; {}", ended_all(&left))).closing(Closing::IfAlive))
        }
    }
}

/// Tells what becomes of the membership.
fn tell(event: &Event) {
    let text = match event {
        Event::Suspended => AWAY.to_owned(),
        Event::Recovered => BACK.to_owned(),
        Event::Lost(why) => format!("the membership is gone: {why}"),
        Event::Rejoined(groups) if !groups.is_empty() => "joined again".to_owned(),
        Event::Evicted(group) => format!("this member was removed from group \"{group}\""),
        Event::GroupDeleted(group) => {
            format!("group \"{group}\" was deleted, and the membership with it; start tooz again to join it")
        }
        _ => return,
    };
    messages::notice(&text);
}

/// Capabilities given as JSON.
fn published(json: &str) -> Result<Capabilities, Failure> {
    let value: Value = serde_json::from_str(json).map_err(|error| {
        Failure::new(
            USAGE,
            format!("--capabilities is not JSON ({error}); write for example '{{\"weight\": 3}}'"),
        )
    })?;
    Ok(Capabilities::new(&value)?)
}
