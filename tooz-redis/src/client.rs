//! Calls over the current link, repeated over the next one where a link ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Cmd, Value};
use tooz_core::driver::Context;
use tooz_core::{Error, ErrorKind, Result};

use crate::config::Config;
use crate::connection::current::CurrentLink;
use crate::connection::link::{Link, Outcome, Shared};
use crate::connection::reply::begins_with;
use crate::error;
use crate::keys::Keys;
use crate::scripts::{Call, Script};

/// A call is tried over at most this many links; then the server counts as unavailable.
const TRIES: usize = 5;

pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) keys: Keys,
    pub(crate) current: CurrentLink,
    /// The server is older than Redis 7, which brought `EVALSHA_RO`.
    lacks_read_only: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.config().topology).finish()
    }
}

/// What the server answered to a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// The call was sent before, and whether the server ran it then is not known.
    pub(crate) repeated: bool,
    /// Why a call that needs confirmation does not count although the server ran it: too few replicas have it.
    pub(crate) unconfirmed: Option<Error>,
}

/// The links that one call is tried over, each newer than the one before.
pub(crate) struct Links<'a> {
    client: &'a Client,
    newer_than: u64,
    left: usize,
}

impl Links<'_> {
    pub(crate) async fn next(&mut self) -> Result<Arc<Link>> {
        let (config, current) = (self.client.config(), &self.client.current);
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let why = format!("the connections to {} end again and again", config.topology);
            Error::new(ErrorKind::Unavailable, why)
        })?;
        let link =
            current.after(self.newer_than, config.limits.operation_timeout, &self.client.shared).await?;
        self.newer_than = link.generation;
        Ok(link)
    }
}

impl Client {
    /// Without a link; the supervisor makes one.
    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            keys: Keys::new(&shared.config.namespace, shared.config.db),
            shared: Arc::new(shared),
            current: CurrentLink::new(),
            lacks_read_only: AtomicBool::new(false),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn context(&self) -> &Context {
        &self.shared.context
    }

    pub(crate) fn links(&self) -> Links<'_> {
        Links { client: self, newer_than: 0, left: TRIES }
    }

    /// Calls a script until the server answers or refuses, or the time is over. A script that is run twice finds what it did
    /// the first time. Where its answer cannot say so, `repeated` does.
    pub(crate) async fn call(&self, call: &Call) -> Result<Answer> {
        let unsure = |error: Error, repeated| if repeated { error.indeterminate() } else { error };
        let (mut links, mut repeated) = (self.links(), false);
        loop {
            let link = links.next().await.map_err(|error| unsure(error, repeated))?;
            let outcome = {
                let in_turn = call.needs_confirmation && self.config().confirms();
                let _turn = if in_turn { Some(link.confirming.lock().await) } else { None };
                self.exchange(&link, call).await
            };
            match outcome {
                // Refused: it came over an older link than the newest that the script has heard of.
                Outcome::Answered(value, _) if begins_with(&value, b"late") => {}
                Outcome::Answered(value, unconfirmed) => return Ok(Answer { value, repeated, unconfirmed }),
                // Not run, and the supervisor looks for the server that will run it.
                Outcome::Refused(refusal)
                    if self.config().topology.is_discovered() && error::is_elsewhere(&refusal) => {}
                Outcome::Refused(refusal) => return Err(unsure(error::of(&refusal), repeated)),
                Outcome::Lost => repeated = true,
            }
        }
    }

    /// Calls a script over this link, with its source where the server does not know it.
    pub(crate) async fn exchange(&self, link: &Link, call: &Call) -> Outcome {
        let mut whole = false;
        loop {
            let read_only = call.only_reads && !self.lacks_read_only.load(Ordering::Relaxed);
            let command = call.command(&self.keys, link.generation, whole, read_only);
            match link.exchange(&command, call.needs_confirmation).await {
                Outcome::Refused(refusal) if read_only && error::is_unknown_command(&refusal) => {
                    self.lacks_read_only.store(true, Ordering::Relaxed);
                }
                Outcome::Refused(refusal) if !whole && error::is_unknown_script(&refusal) => whole = true,
                outcome => return outcome,
            }
        }
    }

    /// Sends a command that changes nothing until the server answers or refuses, or the time is over.
    pub(crate) async fn read(&self, command: &Cmd) -> Result<Value> {
        let mut links = self.links();
        loop {
            match links.next().await?.exchange(command, false).await {
                Outcome::Answered(value, _) => return Ok(value),
                Outcome::Refused(refusal) => return Err(error::of(&refusal)),
                Outcome::Lost => {}
            }
        }
    }

    /// An id that nothing has, as scripts take it.
    pub(crate) fn fresh_id(&self) -> String {
        format!("{:032x}", self.context().entropy.id())
    }

    /// A call of one of two scripts with the same answer: `tidying` writes on the way, `looking` is for a view, which may not
    /// write.
    pub(crate) fn question(&self, tidying: &'static Script, looking: &'static Script) -> Call {
        let view = self.config().view;
        let mut call = if view { looking } else { tidying }.call();
        call.only_reads = view;
        call
    }
}
