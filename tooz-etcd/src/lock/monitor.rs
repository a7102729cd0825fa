//! The monitor of a session. It sees at once, and not at the next beat, that the session or one of its grants ended.
//!
//! A renewal that succeeds does not prove that a session lives: while a leader's disk stands still, a lease can be
//! renewed through another member and is revoked all the same when the disk goes on (etcd-io/etcd#12528 and #15247, in
//! 3.4 before 3.4.31 and 3.5 before 3.5.13). Then the keys go, and the monitor sees that.
//!
//! The monitor watches on one stream, and each key by itself: a prefix would tell every session of the locks of all others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Event, EventType};
use tooz_core::LossReason;
use tooz_core::driver::{AttemptId, Notice, Sleep};

use crate::connection::watcher::{News, Watcher};
use crate::keys::{below, only};
use crate::lock::record;
use crate::lock::verify::Verified;
use crate::session_state::{KnownGrant, SessionState};

/// The monitor does not watch a lock that is held for less, as most are. It misses nothing: a watch begins at the revision
/// of the grant.
const FOLLOW_AFTER: Duration = Duration::from_millis(100);

/// Runs until the session or the driver ends.
pub(crate) async fn run(session: Arc<SessionState>) {
    let ranges = vec![below(&session.key())];
    let watcher = session.watch(ranges, session.opened.revision);
    let mut monitor = Monitor { session: Arc::clone(&session), followed: BTreeMap::new(), waiting: None };
    if let Some(reason) = monitor.run(watcher).await {
        session.notices.end(reason);
    }
}

struct Monitor {
    session: Arc<SessionState>,
    /// The numbers of the ranges that are watched for each grant.
    followed: BTreeMap<AttemptId, Vec<i64>>,
    /// Until the watched keys are brought up to the present grants.
    waiting: Option<Sleep>,
}

impl Monitor {
    /// Why the session ended; `None`: the driver did.
    async fn run(&mut self, mut watcher: Watcher) -> Option<LossReason> {
        loop {
            let Self { session, waiting, .. } = self;
            let (suspects, gap) = match watcher.next_or(due(session, waiting)).await {
                News::End => return None,
                News::Behind => continue,
                News::Other => {
                    self.follow(&mut watcher).await;
                    continue;
                }
                News::Events(events, _) => {
                    let mut suspects = Vec::new();
                    for event in &events {
                        match self.read(event) {
                            Some(Read::Over) => return Some(LossReason::Expired),
                            Some(Read::Broken(attempt, reason)) => self.lose(vec![(attempt, reason)]).await,
                            Some(Read::Suspect(which)) => suspects.extend(which),
                            None => {}
                        }
                    }
                    if suspects.is_empty() {
                        continue;
                    }
                    (suspects, false)
                }
                // Servers before 3.4.24 may lose events of the interruption.
                News::Resumed => (self.session.held(), false),
                // The history is gone, or the data.
                News::Gap => (self.session.held(), true),
            };
            // Those that are not there are lost.
            let session = &self.session;
            let verify = || session.verify(&suspects);
            let verified = session.client.connection.ask_again("what is held", verify).await?;
            let Some(Verified { revision, gone }) = verified else {
                return Some(if gap { LossReason::Vanished } else { LossReason::Expired });
            };
            self.lose(gone).await;
            if gap {
                watcher.restart(self.session.data_epoch(), revision);
            }
        }
    }

    /// Watches the keys of present grants, and no longer those of grants that ended.
    async fn follow(&mut self, watcher: &mut Watcher) {
        let held = self.session.held();
        let attempts: BTreeSet<AttemptId> = held.iter().map(|known| known.attempt).collect();
        let ended = self.followed.extract_if(.., |attempt, _| !attempts.contains(attempt));
        let ended: Vec<i64> = ended.flat_map(|(_, numbers)| numbers).collect();
        for number in ended {
            watcher.remove(number).await;
        }
        for known in held {
            if self.followed.contains_key(&known.attempt) {
                continue;
            }
            let mut numbers = Vec::new();
            for key in known.keys(&self.session.client.keys) {
                numbers.push(watcher.add(only(&key), known.created).await);
            }
            self.followed.insert(known.attempt, numbers);
        }
    }

    fn read(&self, event: &Event) -> Option<Read> {
        let kv = event.kv()?;
        let put = event.event_type() == EventType::Put;
        let own = self.session.key();
        if kv.key() == own {
            return (!put).then_some(Read::Over);
        }
        if kv.key().starts_with(&own) {
            let attempt =
                self.session.client.keys.parse_broken(self.session.opened.id, kv.key()).filter(|_| put)?;
            return Some(Read::Broken(attempt, record::read_broken(kv.value())?));
        }
        // A grant that this session is releasing is not held any more.
        let mut held = self.session.held();
        held.retain(|known| known.keys(&self.session.client.keys).iter().any(|key| key == kv.key()));
        Some(Read::Suspect(held))
    }

    async fn lose(&self, gone: Vec<(AttemptId, LossReason)>) {
        let mut any = false;
        for (attempt, reason) in gone {
            if self.session.mark_lost(attempt) {
                any = true;
                self.session.notices.add(Notice::GrantLost(attempt, reason));
            }
        }
        if any {
            self.session.clear_lost().await;
        }
    }
}

/// What an event means.
enum Read {
    /// The session's key is gone.
    Over,
    Broken(AttemptId, LossReason),
    /// A key of these grants changed.
    Suspect(Vec<KnownGrant>),
}

/// Waits until a grant came or went, and [`FOLLOW_AFTER`] longer.
async fn due(session: &SessionState, waiting: &mut Option<Sleep>) {
    if waiting.is_none() {
        session.grants_changed.notified().await;
    }
    waiting.get_or_insert_with(|| session.client.connection.context.spawner.sleep(FOLLOW_AFTER)).await;
    *waiting = None;
}
