//! What a look at the cluster finds, for operators: members, quorum, alarms, space and the versions' known bugs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmResponse, AlarmType, Client, Compare, CompareOp, ConnectOptions, StatusResponse, Txn,
    TxnOp,
};
use tooz_core::driver::{Connect, Context, Examining};
use tooz_core::{Characteristics, Error, ErrorKind, Finding, Result, Severity};

use crate::config::Config;
use crate::connection::host_and_port;
use crate::connection::version::{self, Version};
use crate::error::{Peer, closed, explain, is_for_the_role};
use crate::keys::Keys;

/// The quota of a server that is not told another one, and does not tell it: etcd before 3.6.
const DEFAULT_QUOTA: u64 = 2 << 30;
/// From this part of the quota on the database is nearly full, in per cent.
const NEARLY: u64 = 80;
/// A member is behind from so many changes on that are committed and not applied.
const BEHIND: u64 = 1000;
const MIB: u64 = 1 << 20;
/// The alarm after which every write is refused.
const NOSPACE: &str = "NOSPACE";

/// Looks at the cluster that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, limits, context, .. } = request;
        let config = Config::read(&url, limits)?;
        // The whole examination takes no longer than connecting may, with one or two members that do not answer.
        let limit = limits.connect_timeout / 5;
        let options = config.connect_options(&context).await?.with_connect_timeout(limit);
        let examiner = Arc::new(Examiner { context, options, limit, config });
        Box::pin(examiner.look()).await
    })
}

struct Examiner {
    context: Context,
    options: ConnectOptions,
    limit: Duration,
    config: Config,
}

/// A member that answered; no status: the user's role may not ask for it.
type Answer = (Client, Option<StatusResponse>);

/// The status that one member tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MemberStatus {
    version: String,
    leader: u64,
    db_size: u64,
    in_use: u64,
    /// 0: it does not tell.
    quota: u64,
    /// How many changes are committed and not applied.
    behind: u64,
    errors: Vec<String>,
}

impl From<&StatusResponse> for MemberStatus {
    fn from(status: &StatusResponse) -> Self {
        let size = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
        Self {
            version: status.version().to_owned(),
            leader: status.leader(),
            db_size: size(status.db_size()),
            in_use: size(status.raft_used_db_size()),
            quota: size(status.db_size_quota()),
            behind: status.raft_index().saturating_sub(status.raft_applied_index()),
            errors: status.errors().to_vec(),
        }
    }
}

/// A member that votes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    answers: bool,
    /// `None` also where the user's role may not ask for it.
    status: Option<MemberStatus>,
}

impl Examiner {
    async fn call<T>(
        &self,
        endpoint: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T> {
        let peer = Peer { name: host_and_port(endpoint), files: self.config.files.as_ref(), is_known: false };
        match self.context.spawner.timeout(self.limit, call).await {
            Some(answer) => answer.map_err(|error| explain(&error, &peer).0),
            None => Err(Error::new(ErrorKind::Timeout, format!("no answer within {:?}", self.limit))),
        }
    }

    async fn ask(&self, endpoint: &str) -> Result<Answer> {
        let mut client =
            Box::pin(self.call(endpoint, Client::connect([endpoint], Some(self.options.clone())))).await?;
        match self.call(endpoint, client.status()).await {
            Ok(status) => Ok((client, Some(status))),
            Err(error) if self.config.user.is_some() && is_for_the_role(&error) => Ok((client, None)),
            Err(error) => Err(error),
        }
    }

    /// Asks all of these at the same time; the answers are in their order.
    async fn ask_each(self: &Arc<Self>, endpoints: impl IntoIterator<Item = String>) -> Vec<Result<Answer>> {
        let ask = |endpoint: String| {
            let examiner = Arc::clone(self);
            self.context.spawner.spawn(async move { examiner.ask(&endpoint).await })
        };
        let mut answers = Vec::new();
        for asking in endpoints.into_iter().map(ask).collect::<Vec<_>>() {
            answers.push(asking.await.unwrap_or_else(|| Err(closed())));
        }
        answers
    }

    async fn look(self: Arc<Self>) -> Result<Vec<Finding>> {
        let endpoints = &self.config.endpoints;
        let asked = self.ask_each(endpoints.clone()).await;
        let mut dead = Vec::new();
        // All that were asked, by host and port, and the answers with a status, by the member's id.
        let (mut answers, mut statuses, mut client) = (BTreeMap::new(), BTreeMap::new(), None);
        for (endpoint, answer) in endpoints.iter().zip(asked) {
            answers.insert(host(endpoint).to_owned(), answer.is_ok());
            match answer {
                Ok((one, status)) => {
                    if let Some(status) = status {
                        let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
                        statuses.insert(id, MemberStatus::from(&status));
                    }
                    client.get_or_insert(one);
                }
                Err(error) => dead.push((endpoint, error)),
            }
        }
        let Some(mut client) = client else {
            let first = dead.into_iter().next();
            return Err(first.map_or_else(|| ErrorKind::Unavailable.into(), |(_, error)| error));
        };
        let listed = self.call("etcd", client.member_list()).await;
        let (members, judged) = match listed {
            Ok(listed) => {
                let members = self.members(listed.members(), &answers, statuses).await;
                let judged = quorum(&members);
                (members, judged)
            }
            Err(error) => {
                let members = named_members(endpoints, &answers, statuses);
                let judged = unlisted(&members, &error);
                (members, judged)
            }
        };
        let decides = judged.severity() < Severity::Bad
            && members.iter().filter_map(|member| member.status.as_ref()).all(|status| status.leader != 0);
        // Without a majority these are not answered.
        let unused = if decides {
            self.look_for_stamp(&mut client).await
        } else {
            Some(self.unknown("no majority answers"))
        };
        let asked = if decides {
            self.call("etcd", client.alarm(AlarmAction::Get, AlarmType::None, None)).await.ok()
        } else {
            None
        };
        let alarms = asked.iter().flat_map(AlarmResponse::alarms).map(|alarm| alarm.alarm().as_str_name());
        let alarms: Vec<&str> = alarms.collect();
        let mut found = findings(&members, judged, &alarms);
        found.extend(dead.iter().map(|(endpoint, error)| dead_endpoint(endpoint, error)));
        // After this alarm no session can begin, and connecting says so.
        let full = found.iter().any(|finding| finding.what().starts_with(NOSPACE));
        found.extend(unused.filter(|unused| !full || unused.severity() > Severity::Good));
        Ok(found)
    }

    /// The members that vote. Asks those that have not been asked yet, all at the same time.
    async fn members(
        self: &Arc<Self>,
        listed: &[etcd_client::Member],
        answers: &BTreeMap<String, bool>,
        mut statuses: BTreeMap<u64, MemberStatus>,
    ) -> Vec<Member> {
        let (mut members, mut open) = (Vec::new(), Vec::new());
        for member in listed.iter().filter(|member| !member.is_learner()) {
            let status = statuses.remove(&member.id());
            let urls = member.client_urls();
            let answers_itself = urls.iter().any(|url| answers.get(host(url)) == Some(&true));
            let answered = status.is_some() || answers_itself;
            if !answered {
                let new = urls.iter().filter(|url| !answers.contains_key(host(url)));
                open.extend(new.map(|url| (members.len(), url.clone())));
            }
            members.push(Member { name: named(member.name(), urls), answers: answered, status });
        }
        let (at, urls): (Vec<usize>, Vec<String>) = open.into_iter().unzip();
        for (at, answer) in at.into_iter().zip(self.ask_each(urls).await) {
            if let Ok((_, status)) = answer {
                members[at].answers = true;
                members[at].status = status.as_ref().map(MemberStatus::from).or(members[at].status.take());
            }
        }
        members
    }

    /// Looks whether a session was ever opened here, and whether one could be opened.
    async fn look_for_stamp(&self, client: &mut Client) -> Option<Finding> {
        let stamp = Keys::new(&self.config.namespace).epoch();
        match self.call("etcd", client.get(stamp.clone(), None)).await {
            Ok(answer) if answer.count() != 0 => return None,
            Ok(_) => {}
            Err(error) => return Some(self.unknown(error.context())),
        }
        // On a condition that cannot hold. The server checks the user's permission as for any write. It must not be a put:
        // one that the quota has no room for raises the alarm NOSPACE, whatever the condition.
        let never = Compare::version(stamp.clone(), CompareOp::Less, 0);
        let write = Txn::new().when([never]).and_then([TxnOp::delete(stamp, None)]);
        match self.call("etcd", client.txn(write)).await {
            Ok(_) => {
                let what = format!(
                    "no session was ever opened in namespace \"{}\"; the first one writes the stamp of its data and the first \
                     token",
                    self.config.namespace
                );
                Some(Finding::good(Finding::UNUSED, what))
            }
            // Connecting says what this user may not do.
            Err(error) if is_for_the_role(&error) => None,
            Err(error) => Some(self.unknown(error.context())),
        }
    }

    fn unknown(&self, why: &str) -> Finding {
        let namespace = &self.config.namespace;
        let what =
            format!("it is not known whether a session was ever opened in namespace \"{namespace}\": {why}");
        Finding::warning(Finding::UNUSED, what, "do what the message says, then look again")
    }
}

/// The members that the URL names, where they cannot be listed.
fn named_members(
    endpoints: &[String],
    answers: &BTreeMap<String, bool>,
    statuses: BTreeMap<u64, MemberStatus>,
) -> Vec<Member> {
    let mut statuses = statuses.into_values();
    let mut members: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let answers = answers.get(host(endpoint)) == Some(&true);
            // Which of them told which status does not matter.
            let status = if answers { statuses.next() } else { None };
            Member { name: endpoint.clone(), answers, status }
        })
        .collect();
    members.dedup();
    members
}

/// The host and the port of a URL.
fn host(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// An endpoint of the URL that does not work from here.
fn dead_endpoint(endpoint: &str, error: &Error) -> Finding {
    let host = host(endpoint);
    let what = format!("{host}, which the URL names, cannot be used from here: {}", error.context());
    Finding::warning("endpoint", what, "start it again, or take it out of the URL")
}

fn named(name: &str, urls: &[String]) -> String {
    let urls = urls.join(", ");
    if name.is_empty() { urls } else { format!("{name} ({urls})") }
}

/// What the state of the cluster means for locks: its members, as `judged`, and its alarms, as far as members answered.
fn findings(members: &[Member], judged: Finding, alarms: &[&str]) -> Vec<Finding> {
    let answered: Vec<&MemberStatus> = members.iter().filter_map(|member| member.status.as_ref()).collect();
    let mut versions: Vec<&str> = answered.iter().map(|status| status.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let version = match &versions[..] {
        [] => "etcd, whose version this user may not ask for".to_owned(),
        known => format!("etcd {}", known.join(", ")),
    };
    let mut found = vec![Finding::good("version", version), judged];
    if answered.iter().any(|status| status.leader == 0) {
        found.push(Finding::bad(
            "leader",
            "a member knows no leader: nothing can be acquired or renewed there",
            "see whether a majority of the members run and reach each other",
        ));
    }
    let errors = || answered.iter().flat_map(|status| &status.errors);
    let alarmed = |word: &str| alarms.contains(&word) || errors().any(|error| error.contains(word));
    if alarmed(NOSPACE) {
        found.push(Finding::bad(
            "alarm",
            "NOSPACE: the database has reached its quota, and every write is refused: no new session, lock or member",
            "compact (etcdctl compact REVISION), defragment (etcdctl defrag), then etcdctl alarm disarm (etcdctl alarm \
             list shows what is left); turn auto-compaction on or raise --quota-backend-bytes",
        ));
    }
    if alarmed("CORRUPT") {
        found.push(Finding::bad(
            "alarm",
            "CORRUPT: the members' data differ; locks may be granted twice",
            "stop using the cluster for locks, replace the member that is wrong, then etcdctl alarm disarm",
        ));
    }
    found.extend(answered.iter().max_by_key(|status| status.db_size).map(|status| space(status)));
    found.extend(answered.iter().map(|status| status.behind).max().and_then(load));
    found.push(Finding::good(
        "clock",
        "leases are counted without the wall clock: a clock that is wrong hurts nothing",
    ));
    found.extend(known_bugs(versions.first().unwrap_or(&"")));
    found
}

fn quorum(members: &[Member]) -> Finding {
    let topic = "members";
    let (all, needed) = (members.len(), members.len() / 2 + 1);
    let silent: Vec<&str> =
        members.iter().filter(|member| !member.answers).map(|member| member.name.as_str()).collect();
    let answering = all - silent.len();
    if answering < needed {
        return Finding::bad(
            topic,
            format!("{answering} of {all} members answer, and {needed} are needed: {}", silent.join("; ")),
            "start them again, or check the network: without a majority every session ends at its deadline",
        );
    }
    if !silent.is_empty() {
        let then = if answering == needed { "one more failure stops every lock" } else { "others take over" };
        return Finding::warning(
            topic,
            format!("{answering} of {all} members answer from here; {then}. Silent: {}", silent.join("; ")),
            "start them again, or replace them (etcdctl member remove, member add)",
        );
    }
    match all {
        1 | 2 => Finding::warning(
            "redundancy",
            format!(
                "members: {all}, of which none may fail: if one fails, no lock is granted, and every session ends at \
                 its deadline"
            ),
            "use 3 or 5 members (etcdctl member add)",
        ),
        all if all % 2 == 0 => Finding::warning(
            topic,
            format!("{all} members tolerate no more failures than {}", all - 1),
            "use an odd number, 3 or 5",
        ),
        all => Finding::good(topic, format!("members: {all}, all of them answer; {} may fail", all - needed)),
    }
}

/// What can be said about the members that the URL names, where a member does not list all.
fn unlisted(members: &[Member], error: &Error) -> Finding {
    if is_for_the_role(error) {
        return Finding::warning(
            "members",
            "the user may not list the members, so how many may fail is not known",
            "name a user who may (role root), or ask etcdctl member list",
        );
    }
    let judged = quorum(members);
    if judged.severity() == Severity::Bad {
        return judged;
    }
    Finding::bad(
        "members",
        format!("a member answers and cannot list the others: {}", error.context()),
        "see whether a majority of the members run and reach each other",
    )
}

fn space(status: &MemberStatus) -> Finding {
    let (quota, said) = match status.quota {
        0 => (
            DEFAULT_QUOTA,
            "not known, since etcd before 3.6 tells it only as the metric etcd_server_quota_backend_bytes; its default \
             is 2048 MiB"
                .to_owned(),
        ),
        quota => (quota, format!("{} MiB", quota / MIB)),
    };
    let what = format!(
        "the database has {} MiB, {} of them in use; the quota is {said}",
        status.db_size / MIB,
        status.in_use / MIB
    );
    if status.db_size.saturating_mul(100) / quota < NEARLY {
        return Finding::good("space", what);
    }
    Finding::warning(
        "space",
        format!("{what}; at the quota every write is refused"),
        "turn auto-compaction on, defragment (etcdctl defrag), or raise --quota-backend-bytes",
    )
}

/// Whether a member is about to refuse requests ("too many requests"): it does so from 5000 changes on that are committed
/// and not applied.
fn load(behind: u64) -> Option<Finding> {
    (behind >= BEHIND).then(|| {
        Finding::warning(
            "load",
            format!("a member has {behind} committed changes to apply; from 5000 on it refuses requests"),
            "look at its disk and processor, and at clients that write much",
        )
    })
}

fn known_bugs(version: &str) -> Vec<Finding> {
    let topic = "known-bugs";
    let Some(number) = Version::parse(version) else {
        let lost = Characteristics::STRICT_EXCLUSION | Characteristics::LINEARIZABLE;
        let advice = "give the user a role that may ask for the status";
        let what = "the version is not known, so what old ones do not keep counts as not kept";
        return vec![Finding::warning(topic, what, advice).lowers(lost)];
    };
    let mut found: Vec<_> = number
        .bugs()
        .map(|bug| {
            let fixed = match bug.fixed {
                (0, new) => format!("3.5.{new}"),
                (old, 0) => format!("3.4.{old}"),
                (old, new) => format!("3.4.{old} and 3.5.{new}"),
            };
            let what = format!("{}; fixed in {fixed}", bug.what);
            Finding::warning(topic, what, "upgrade etcd").lowers(bug.lowers)
        })
        .collect();
    if number < version::MAINTAINED {
        found.push(Finding::warning(
            topic,
            "the 3.4 series is no longer maintained",
            "upgrade to a maintained series, one minor version at a time",
        ));
    }
    if found.is_empty() {
        found.push(Finding::good(topic, "none that concerns locks"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: &str) -> MemberStatus {
        MemberStatus { version: version.into(), leader: 1, db_size: MIB, ..MemberStatus::default() }
    }

    fn member(status: Option<MemberStatus>) -> Member {
        Member { name: "m".into(), answers: status.is_some(), status }
    }

    fn bad(members: &[Member], alarms: &[&str]) -> Vec<&'static str> {
        let found = findings(members, quorum(members), alarms);
        found.iter().filter(|f| f.severity() > Severity::Good).map(Finding::topic).collect()
    }

    fn cluster(answering: usize, silent: usize) -> Vec<Member> {
        let answering = (0..answering).map(|_| member(Some(status("3.6.1"))));
        answering.chain((0..silent).map(|_| member(None))).collect()
    }

    #[test]
    fn what_endangers_locks_is_named() {
        for (answering, silent, worst) in [
            (3, 0, Severity::Good),
            (1, 0, Severity::Warning),
            (5, 0, Severity::Good),
            (2, 1, Severity::Warning),
            (4, 1, Severity::Warning),
            (2, 0, Severity::Warning),
            (1, 2, Severity::Bad),
        ] {
            assert_eq!(quorum(&cluster(answering, silent)).severity(), worst, "{answering} and {silent}");
        }
        let healthy = cluster(3, 0);
        assert_eq!(bad(&healthy, &[]), [""; 0]);
        assert_eq!(bad(&healthy, &["NOSPACE", "CORRUPT"]), ["alarm", "alarm"]);
        let mut leaderless = healthy.clone();
        leaderless[0].status = Some(MemberStatus { leader: 0, ..status("3.6.1") });
        assert_eq!(bad(&leaderless, &[]), ["leader"]);
        // A user who may not ask for alarms finds them in the status.
        let errors = vec!["memberID:1 alarm:NOSPACE ".to_owned()];
        let mut full = healthy;
        full[0].status = Some(MemberStatus { errors, ..status("3.6.1") });
        assert_eq!(bad(&full, &[]), ["alarm"]);
    }

    #[test]
    fn a_user_who_may_not_ask_is_told_what_is_not_known() {
        let unjudged = Member { name: "m".into(), answers: true, status: None };
        assert_eq!(quorum(&vec![unjudged.clone(); 3]).severity(), Severity::Good);
        assert_eq!(bad(std::slice::from_ref(&unjudged), &[]), ["redundancy", "known-bugs"]);
        let denied = Error::new(ErrorKind::Denied, crate::error::NOT_ALLOWED);
        let judged = unlisted(std::slice::from_ref(&unjudged), &denied);
        assert!(judged.severity() == Severity::Warning && judged.what().contains("not known"), "{judged:?}");
        let late = Error::new(ErrorKind::Timeout, "no answer");
        for members in [cluster(1, 2), cluster(1, 0)] {
            assert_eq!(unlisted(&members, &late).severity(), Severity::Bad, "{members:?}");
        }
    }

    #[test]
    fn a_member_that_falls_behind_is_told() {
        let behind = |behind| [member(Some(MemberStatus { behind, ..status("3.6.1") }))];
        assert_eq!(bad(&behind(999), &[]), ["redundancy"]);
        assert_eq!(bad(&behind(1000), &[]), ["redundancy", "load"]);
    }

    #[test]
    fn the_quota_is_the_servers_or_the_default() {
        let told = |quota| space(&MemberStatus { quota, ..status("3.6.1") }).what().to_owned();
        assert!(told(0).contains("not known") && told(64 * MIB).contains("the quota is 64 MiB"));
        let full = |db_size, quota| space(&MemberStatus { db_size, quota, ..status("3.6.1") }).severity();
        assert_eq!(full(100 * MIB, 0), Severity::Good);
        assert_eq!(full(1800 * MIB, 0), Severity::Warning);
        assert_eq!(full(100 * MIB, 120 * MIB), Severity::Warning);
        assert_eq!(full(1800 * MIB, 8192 * MIB), Severity::Good);
    }

    #[test]
    fn the_versions_bugs_lower_what_connecting_lowers() {
        let best = Characteristics::all();
        for version in ["3.4.23", "3.4.38", "3.4.42", "3.5.1", "3.5.23", "3.5.28", "3.6.0", "none"] {
            let lowered =
                known_bugs(version).iter().fold(Characteristics::empty(), |all, f| all | f.lowered());
            assert_eq!(best - lowered, version::lower(best, version).unwrap(), "{version}");
        }
        assert_eq!(known_bugs("3.5.1").len(), 4, "watches are about 3.4 only");
        assert_eq!(known_bugs("3.4.23").len(), 5, "differing data are about 3.5 only; 3.4 is unmaintained");
        assert_eq!(known_bugs("3.6.1")[0].severity(), Severity::Good);
    }
}
