//! `tooz groups`, `tooz members`, `tooz join`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tooz::driver::MemberRecord;
use tooz::{Capabilities, Coordinator, ErrorKind, Event, GroupEvent, GroupWatch, Viewer};

use crate::args::{Join, List, Members};
use crate::backend::{bytes, close, connect, view};
use crate::exit::{Closing, Code, DONE, Failure, LOST, USAGE};
use crate::lock::{cannot_start, ended_all, member_text, unless_signaled};
use crate::messages::{self, AWAY, BACK};
use crate::run::{Ended, Hold, Job, Signals, run};
use crate::settings::Backend;
use crate::text;
use crate::watching::watch;

/// Between two looks whether a group exists.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn groups(backend: &Backend, options: &List) -> Result<Code, Failure> {
    let viewer = view(backend).await?;
    let groups = viewer.groups().await?;
    for group in groups {
        let value = || json!({ "group": text::name(group.as_bytes()) });
        text::show(options.json, value, || group.to_string())?;
    }
    let _ = viewer.close().await;
    Ok(DONE)
}

pub(crate) async fn members(backend: &Backend, options: &Members) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let viewer = unless_signaled(&mut signals, view(backend)).await??;
    let group = bytes(&options.group);
    if !options.watch {
        for record in viewer.members(group).await? {
            text::show(options.json, || text::member_json(&record), || text::member_line(&record))?;
        }
        let _ = viewer.close().await;
        return Ok(DONE);
    }
    let follow = async {
        let mut events = appears(&viewer, group).await?;
        while let Some(event) = events.next().await {
            show(&event?, options.json)?;
        }
        Ok(())
    };
    watch(&mut signals, follow, async || viewer.members(group).await.map(drop)).await
}

/// Follows a group from the time when it exists.
async fn appears(viewer: &Viewer, group: &[u8]) -> Result<GroupWatch, Failure> {
    let mut is_told = false;
    loop {
        match viewer.watch(group).await {
            Err(error) if error.kind() == ErrorKind::GroupNotFound => {
                if !std::mem::replace(&mut is_told, true) {
                    messages::notice(&format!("{error}; waiting for it"));
                }
                sleep(LOOK).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Prints one line for each change; for a snapshot a heading and one line for each member.
fn show(event: &GroupEvent, json: bool) -> Result<(), Failure> {
    let now = text::now();
    let one = |word: &str, record: &MemberRecord| {
        text::line(&if json {
            let mut value = text::member_json(record);
            value["event"] = word.into();
            value["time"] = (&*now).into();
            value.to_string()
        } else {
            format!("{now} {word} {}", text::member_line(record))
        })
    };
    let all = |word: &str, records: &[MemberRecord]| {
        if json {
            let members: Vec<Value> = records.iter().map(text::member_json).collect();
            return text::line(&json!({ "event": word, "time": now, "members": members }).to_string());
        }
        text::line(&format!("{now} {word} of {}", records.len()))?;
        records.iter().try_for_each(|record| one("member", record))
    };
    match event {
        GroupEvent::Snapshot(records) => all("snapshot", records),
        GroupEvent::Resync(records) => all("resync", records),
        GroupEvent::Joined(record) => one("joined", record),
        GroupEvent::Left(record) => one("left", record),
        GroupEvent::Updated(record) => one("updated", record),
        GroupEvent::Deleted => {
            text::show(json, || json!({ "event": "deleted", "time": now }), || format!("{now} deleted"))
        }
        _ => Ok(()),
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
    unless_signaled(signals, group.join_or_create(capabilities)).await??;
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
        Event::Lost(why) => format!("the membership is gone ({why}); joining again"),
        Event::Rejoined(_) => "a member again".to_owned(),
        Event::Evicted(group) => format!("this member was removed from group \"{group}\"; joining again"),
        Event::GroupDeleted(group) => {
            format!("group \"{group}\" was deleted, and the membership with it; join again")
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
