//! What this process knows of one session: its attempts, its grants, its memberships, and when its item was written last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tooz_core::driver::support::attempts::EndedAttempts;
use tooz_core::driver::support::notices::Notices;
use tooz_core::driver::{
    Acquire, AttemptId, Grant, InstanceId, Instant, LockKey, OpenSession, SessionId, Stamp,
};
use tooz_core::{Error, ErrorKind, GroupId, LossReason, MemberId, Result};

use crate::client::Client;
use crate::config::outliving;
use crate::connection::command::Item;

#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) client: Arc<Client>,
    pub(crate) id: SessionId,
    pub(crate) member: MemberId,
    pub(crate) instance: InstanceId,
    pub(crate) ttl: Duration,
    pub(crate) previous: Option<SessionId>,
    pub(crate) stamp: Stamp,
    pub(crate) notices: Notices,
    lease: Mutex<Lease>,
    attempts: Mutex<Attempts>,
    groups: Mutex<BTreeMap<GroupId, Membership>>,
}

/// An item, as it was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// The link over which it was read: 0 is none.
    pub(crate) link: u64,
    pub(crate) cas: u64,
}

impl Version {
    /// The cas number, if it counts on this link.
    pub(crate) fn on(self, link: u64) -> Option<u64> {
        (self.link == link).then_some(self.cas)
    }
}

/// The items that every beat writes again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    pub(crate) session: Version,
    /// The item of the member id, once it was claimed.
    pub(crate) member: Option<Version>,
    /// The item that says that sessions live, and how long it has left.
    pub(crate) lives: Option<(Version, u32)>,
    /// Just after that version of the session's item was written; `None`: that is not known.
    pub(crate) written: Option<Instant>,
    /// The server's clock stood behind; it goes on before this.
    pub(crate) behind_until: Option<Instant>,
}

/// A grant, as it stands on the server.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    /// The gate's value with every token in it, as a beat writes it again.
    pub(crate) gate: Vec<u8>,
    pub(crate) gate_version: Version,
    pub(crate) expires: u32,
    /// The confirmed mark, if it is this grant's.
    pub(crate) mark: Option<(Vec<u8>, Version)>,
    /// A beat has confirmed the mark.
    pub(crate) confirmed: bool,
    /// No other session is at the gate, and none can join.
    pub(crate) alone: bool,
}

/// A membership.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Membership {
    pub(crate) incarnation: u128,
    /// The group as it was when our record was last seen in it.
    pub(crate) seen: Version,
}

#[derive(Debug, Default)]
struct Attempts {
    open: BTreeMap<AttemptId, Attempt>,
    ended: EndedAttempts<()>,
}

#[derive(Debug)]
struct Attempt {
    request: Acquire,
    grant: Option<(Grant, Hold)>,
    /// Something of it may stand on the server, or be on its way there.
    doubtful: bool,
    /// The gate as it stored it.
    gate: Option<Version>,
}

impl SessionState {
    pub(crate) fn new(client: &Arc<Client>, id: SessionId, request: &OpenSession, stamp: Stamp) -> Self {
        Self {
            client: Arc::clone(client),
            id,
            member: request.member.clone(),
            instance: request.instance,
            ttl: client.config.limits.ttl,
            previous: request.previous,
            stamp,
            notices: Notices::default(),
            lease: Mutex::default(),
            attempts: Mutex::default(),
            groups: Mutex::default(),
        }
    }

    pub(crate) fn key(&self) -> Vec<u8> {
        self.client.keys.session(self.id)
    }

    /// For how many seconds this session's items are stored.
    pub(crate) fn expires(&self) -> u32 {
        outliving(self.ttl)
    }

    /// The value of the session's item.
    pub(crate) fn value(&self) -> Vec<u8> {
        let (member, instance) = (self.member.as_bytes(), self.instance);
        [format!("{} ", member.len()).as_bytes(), member, format!(" {instance}").as_bytes()].concat()
    }

    /// The value of the item of the member id.
    pub(crate) fn claim(&self) -> Vec<u8> {
        format!("tooz-rs {}", self.id).into_bytes()
    }

    /// The error of a session that is not on the server any more.
    pub(crate) fn lost(&self) -> Error {
        Error::new(ErrorKind::SessionLost, format!("session {} is gone from the server", self.id))
    }

    /// The data is another's: nothing of this session is left.
    pub(crate) fn data_lost(&self) -> Error {
        self.notices.end(LossReason::Vanished);
        self.lost()
    }

    pub(crate) fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server's clock stands behind: it has stood still, and what it stores now ends early, when its clock goes on.
    /// `item`: the session's, as an exchange over this link found it that was sent at `sent`. Only a version tells whose time of
    /// writing is known: another one may be a beat of before, whose answer was lost.
    pub(crate) fn is_behind(&self, item: &Item, link: u64, sent: Instant) -> bool {
        let lease = self.lease();
        if lease.behind_until.is_some_and(|until| sent < until) {
            return true;
        }
        if lease.session.on(link) != Some(item.cas) {
            return false;
        }
        let Some(written) = lease.written else { return false };
        let passed = u32::try_from(sent.saturating_since(written).as_secs()).unwrap_or(u32::MAX);
        // Each of its two readings is up to a second late.
        let most = self.expires().saturating_sub(passed).saturating_add(2);
        item.left.is_some_and(|left| left > most)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt, or goes on with it.
    pub(crate) fn register(&self, request: &Acquire) -> Result<()> {
        let mut attempts = self.attempts();
        if attempts.ended.contains(request.attempt) {
            return Err(Error::new(ErrorKind::Invalid, format!("attempt {} was withdrawn", request.attempt)));
        }
        let fresh = || Attempt { request: request.clone(), grant: None, doubtful: false, gate: None };
        attempts.open.entry(request.attempt).or_insert_with(fresh);
        Ok(())
    }

    pub(crate) fn request_of(&self, attempt: AttemptId) -> Option<Acquire> {
        self.attempts().open.get(&attempt).map(|attempt| attempt.request.clone())
    }

    /// Something of an attempt may stand on the server from now on, or surely does not any more.
    pub(crate) fn set_doubtful(&self, attempt: AttemptId, doubtful: bool) {
        if let Some(attempt) = self.attempts().open.get_mut(&attempt) {
            attempt.doubtful = doubtful;
        }
    }

    /// Whether something of an attempt may stand on the server.
    pub(crate) fn is_doubtful(&self, attempt: AttemptId) -> bool {
        let attempts = self.attempts();
        attempts.open.get(&attempt).is_none_or(|attempt| attempt.doubtful || attempt.grant.is_some())
    }

    pub(crate) fn set_gate(&self, attempt: AttemptId, gate: Option<Version>) {
        if let Some(attempt) = self.attempts().open.get_mut(&attempt) {
            attempt.gate = gate;
        }
    }

    pub(crate) fn gate(&self, attempt: AttemptId) -> Option<Version> {
        self.attempts().open.get(&attempt).and_then(|attempt| attempt.gate)
    }

    pub(crate) fn grant(&self, grant: &Grant, hold: Hold) {
        if let Some(attempt) = self.attempts().open.get_mut(&grant.attempt) {
            attempt.grant = Some((grant.clone(), hold));
        }
    }

    pub(crate) fn granted(&self, attempt: AttemptId) -> Option<Grant> {
        self.attempts().open.get(&attempt).and_then(|attempt| Some(attempt.grant.as_ref()?.0.clone()))
    }

    pub(crate) fn hold(&self, attempt: AttemptId) -> Option<Hold> {
        self.attempts().open.get(&attempt).and_then(|attempt| Some(attempt.grant.as_ref()?.1.clone()))
    }

    /// A beat wrote the grant again, or read it.
    pub(crate) fn set_hold(&self, attempt: AttemptId, hold: Hold) {
        if let Some((_, known)) =
            self.attempts().open.get_mut(&attempt).and_then(|known| known.grant.as_mut())
        {
            *known = hold;
        }
    }

    /// The attempt is over. `ended`: a request of it that comes later is refused.
    pub(crate) fn forget(&self, attempt: AttemptId, ended: bool) {
        let mut attempts = self.attempts();
        attempts.open.remove(&attempt);
        if ended {
            attempts.ended.put(attempt, ());
        }
    }

    /// Every attempt of which something may stand on the server.
    pub(crate) fn open_attempts(&self) -> Vec<(LockKey, AttemptId)> {
        let attempts = self.attempts();
        let open = attempts.open.iter().filter(|(_, attempt)| attempt.doubtful || attempt.grant.is_some());
        open.map(|(id, attempt)| (attempt.request.key.clone(), *id)).collect()
    }

    pub(crate) fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Membership>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
