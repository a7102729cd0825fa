//! `tooz elect` runs a command under a leadership, `tooz leader` shows the leader.

use serde_json::{Value, json};
use tokio::time::timeout;
use tooz::driver::LockMode;
use tooz::{Coordinator, Deadline, Leader, Leadership};

use crate::args::{self, Elect};
use crate::backend::{ask, close, view};
use crate::exit::{Code, Failure, QUICK};
use crate::held::Wanted;
use crate::lock::{cannot_start, conclude, member_text, not_acquired, tell_outage, unless_signaled};
use crate::messages;
use crate::patience::{Patience, Wait};
use crate::run::{Hold, Job, Signals, run};
use crate::settings::Backend;
use crate::text::{self, bytes};
use crate::watching::watch;

impl Hold for Leadership {
    fn deadline(&self) -> Option<Deadline> {
        Leadership::deadline(self)
    }

    async fn lost(&self) -> String {
        Leadership::lost(self).await.to_string()
    }

    fn reason(&self) -> Option<String> {
        self.loss_signal().reason().map(|reason| reason.to_string())
    }
}

pub(crate) async fn elect(backend: &Backend, options: &Elect) -> Result<Code, Failure> {
    let mut signals = Signals::catch()?;
    let patience = Patience::of(&options.guarded);
    let coordinator = unless_signaled(&mut signals, patience.connect(backend)).await??;
    let wanted = Wanted::leadership(&coordinator, backend, bytes(&options.group));
    let leading = lead(&coordinator, backend, options, &wanted, patience, &mut signals);
    let result = messages::tell_events(&coordinator, tell_outage, Box::pin(leading)).await;
    close(&coordinator, result).await
}

async fn lead(
    coordinator: &Coordinator,
    backend: &Backend,
    options: &Elect,
    held: &Wanted,
    patience: Patience,
    signals: &mut Signals,
) -> Result<Code, Failure> {
    let election = coordinator.election(bytes(&options.group))?;
    let wanted = &options.guarded;
    let campaigning = async |limit| match limit {
        Wait::Never => election.try_campaign().await,
        Wait::For(limit) => election.campaign_within(limit).await,
        Wait::Forever => election.campaign().await.map(Some),
    };
    let what = format!("the leadership of group \"{}\"", election.group());
    if held.may_be_held() {
        let leader = unless_signaled(signals, patience.ask(election.leader())).await??;
        let token = leader.and_then(|leader| leader.term).map(tooz::Term::token);
        held.refuse_if_held(&what, token, LockMode::Exclusive, LockMode::Exclusive)?;
    }
    let led_by = async || {
        let leader = timeout(QUICK, election.leader()).await.ok().and_then(Result::ok).flatten();
        leader.as_ref().map_or_else(|| "another candidate leads or waits before us".into(), leads)
    };
    let waiting = messages::tell_if_long(patience.acquire(campaigning), async || {
        format!("waiting to lead \"{}\": {}", election.group(), led_by().await)
    });
    let Some(leadership) = unless_signaled(signals, waiting).await?? else {
        let why = format!("did not win \"{}\": {}", election.group(), led_by().await);
        return Err(not_acquired(&why, wanted));
    };
    let term = leadership.term();
    messages::detail(&format!("elected: leads group \"{}\", term {term}", election.group()));
    let job = Job {
        command: &options.command,
        backend,
        environment: vec![
            ("TOOZ_GROUP", options.group.clone()),
            ("TOOZ_TERM", term.to_string().into()),
            ("TOOZ_FENCING_TOKEN", term.to_string().into()),
            ("TOOZ_MEMBER", member_text(coordinator)),
            held.got(term.get()),
        ],
        grace: wanted.ending.kill_grace,
        children: wanted.ending.children,
        held: "leadership",
    };
    let ended = run(&job, &leadership, signals).await.map_err(|error| cannot_start(&error))?;
    conclude(&what, ended, leadership.resign(), wanted).await
}

pub(crate) async fn leader(backend: &Backend, options: &args::Leader) -> Result<Code, Failure> {
    let group = bytes(&options.group);
    if !options.watch {
        let viewer = view(backend).await?;
        let leader = ask(viewer.leader(group)).await?;
        match &leader {
            _ if options.json => text::line(&leader.as_ref().map_or(Value::Null, json).to_string())?,
            Some(leader) => text::line(&line(leader))?,
            None => {}
        }
        let _ = viewer.close().await;
        return Ok(Code::of_answer(leader.is_some()));
    }
    let mut signals = Signals::catch()?;
    let viewer = unless_signaled(&mut signals, view(backend)).await??;
    let follow = async {
        let mut observer = viewer.observe(group).await?;
        while let Some(leader) = observer.next().await {
            text::line_in_background(change(leader?.as_ref(), options.json)).await?;
        }
        Ok(())
    };
    watch(&mut signals, follow, async || viewer.leader(group).await.map(drop)).await
}

fn change(leader: Option<&Leader>, json: bool) -> String {
    let now = text::now();
    if json {
        return json!({ "time": now, "leader": leader.map(self::json) }).to_string();
    }
    format!("{now} {}", leader.map_or_else(|| "vacant".to_owned(), line))
}

fn name(leader: &Leader) -> String {
    leader.member.as_ref().map_or_else(|| "an unknown member".to_owned(), ToString::to_string)
}

/// `node1 leads (term 113, since 2026-01-31T12:00:00Z)`, with what is known.
fn leads(leader: &Leader) -> String {
    let term = leader.term.map(|term| format!("term {term}"));
    let since = leader.since.map(|since| format!("since {}", text::time(since)));
    let known: Vec<_> = term.into_iter().chain(since).collect();
    let known = if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) };
    format!("{} leads{known}", name(leader))
}

fn line(leader: &Leader) -> String {
    let term = leader.term.map_or_else(String::new, |term| format!(" term {term}"));
    format!("{}{term}{}", name(leader), text::since(leader.since))
}

fn json(leader: &Leader) -> Value {
    json!({
        "member": text::member(leader.member.as_ref()),
        "term": leader.term.map(tooz::Term::get),
        "since": leader.since.map(text::time),
    })
}
