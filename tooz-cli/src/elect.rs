//! `tooz elect` runs a command under a leadership, `tooz leader` shows the leader.

use serde_json::{Value, json};
use tokio::time::timeout;
use tooz::driver::LockMode;
use tooz::{Coordinator, Deadline, Leader, Leadership};

use crate::args::{self, Elect};
use crate::backend::{bytes, close, view};
use crate::exit::{Closing, Failure, QUICK};
use crate::held::Wanted;
use crate::lock::{cannot_start, conclude, member_text, remedy, unless_signaled};
use crate::patience::{Patience, Wait};
use crate::run::{Hold, Job, Signals, run};
use crate::settings::Backend;
use crate::text;

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

pub(crate) async fn elect(backend: &Backend, options: &Elect) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let patience = Patience::of(&options.guarded);
    let coordinator = unless_signaled(&mut signals, patience.connect(backend)).await??;
    let wanted = Wanted::leadership(&coordinator, backend, bytes(&options.group));
    let result = lead(&coordinator, backend, options, &wanted, patience, &mut signals).await;
    close(&coordinator, result).await
}

async fn lead(
    coordinator: &Coordinator,
    backend: &Backend,
    options: &Elect,
    held: &Wanted,
    patience: Patience,
    signals: &mut Signals,
) -> Result<u8, Failure> {
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
    let leadership = unless_signaled(signals, patience.acquire(campaigning)).await??;
    let Some(leadership) = leadership else {
        let leader = timeout(QUICK, election.leader()).await.ok().and_then(Result::ok).flatten();
        let by = leader.as_ref().map_or_else(|| "another candidate leads or waits before us".into(), leads);
        let why = format!("did not win \"{}\": {by}; {}", election.group(), remedy(wanted));
        return Err(Failure::new(wanted.exit_not_acquired, why).closing(Closing::Quick));
    };
    let term = leadership.term();
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

pub(crate) async fn leader(backend: &Backend, options: &args::Leader) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let viewer = unless_signaled(&mut signals, view(backend)).await??;
    let group = bytes(&options.group);
    let show = |leader: Option<&Leader>| match (leader, options.json) {
        (leader, true) => text::line(&leader.map_or(Value::Null, json).to_string()),
        (Some(leader), false) => text::line(&line(leader)),
        (None, false) if options.watch => text::line("vacant"),
        (None, false) => Ok(()),
    };
    if !options.watch {
        let leader = viewer.leader(group).await?;
        show(leader.as_ref())?;
        let _ = viewer.close().await;
        // As grep does: 1 says that there is no leader, so a script can test for it.
        return Ok(u8::from(leader.is_none()));
    }
    let mut observer = viewer.observe(group).await?;
    let follow = async {
        while let Some(leader) = observer.next().await {
            show(leader?.as_ref())?;
        }
        Ok::<_, Failure>(0)
    };
    unless_signaled(&mut signals, follow).await?
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
