//! What a look at the server finds, for operators: its version, clock, persistence, eviction and replicas.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{RedisError, Value};
use tooz_core::driver::{Connect, Context, Examining, SessionId};
use tooz_core::{Characteristics, Error, ErrorKind, Finding, Result, Severity};

use crate::client::Client;
use crate::config::Config;
use crate::connection::address::{Address, Topology};
use crate::connection::discovery::Discovery;
use crate::connection::link::Outcome;
use crate::connection::reply::Parts;
use crate::connection::{self, server_info};
use crate::error;

/// A clock that is this far off is likely to be corrected by a jump, and a jump ends or prolongs every session.
const CLOCK_OFF: Duration = Duration::from_secs(5);
/// A limit is nearly reached from this part of it on, in per cent.
const NEARLY: u64 = 90;
/// A replica reports every second what it has. One that has not for more seconds than this hangs, or is cut off.
const LAG: u64 = 5;

/// Looks at the server that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, limits, context, .. } = request;
        let config = Config::read(&url, limits)?;
        let (silent, down_after) = ask_endpoints(&config, &context).await;
        let (client, _, supervisor) = connection::connect(config, context).await?;
        let found = look(&client, silent, down_after).await;
        client.current.close();
        drop(supervisor);
        found
    })
}

/// The sentinels or nodes of the URL that do not tell where the server is, and after how long sentinels call a server down.
/// All are asked at the same time.
async fn ask_endpoints(config: &Config, context: &Context) -> (Vec<Finding>, Option<Duration>) {
    let endpoints = match &config.topology {
        Topology::Server(_) => &[][..],
        Topology::Sentinel { sentinels, .. } => sentinels,
        Topology::Cluster { seeds, .. } => seeds,
    };
    let ask = |who: &Address| {
        let (config, spawner, who) = (config.clone(), context.spawner.clone(), who.clone());
        let asking = async move {
            let mut discovery = Discovery::default();
            match discovery.ask(&config, &spawner, &who).await {
                // Its machine, or ours, may have stood still for a moment.
                Err(_) => discovery.ask(&config, &spawner, &who).await,
                found => found,
            }
        };
        context.spawner.spawn(asking)
    };
    let (mut silent, mut down_after) = (Vec::new(), None);
    for asking in endpoints.iter().map(ask).collect::<Vec<_>>() {
        match asking.await {
            Some(Ok(found)) => down_after = down_after.max(found.down_after),
            Some(Err(error)) => {
                let what =
                    format!("an endpoint of the URL does not tell where the server is: {}", error.context());
                silent.push(Finding::warning("endpoint", what, "start it again, or take it out of the URL"));
            }
            None => {}
        }
    }
    (silent, down_after)
}

async fn look(
    client: &Client,
    mut found: Vec<Finding>,
    down_after: Option<Duration>,
) -> Result<Vec<Finding>> {
    let config = client.config();
    // Where the server is discovered, its replicas confirm what is written.
    let replicated = config.topology.is_discovered();
    match client.read(&redis::cmd("INFO")).await {
        Ok(info) => {
            let appendfsync = setting(client, "appendfsync").await?;
            let info = server_info::fields(&info);
            found.extend(judge(&info, appendfsync.as_deref(), replicated));
            found.extend(redundancy(&info, config, hang(client, down_after).await?));
        }
        Err(error) if error.kind() == ErrorKind::Denied => found.push(
            Finding::warning(
                "permissions",
                "the user may not call INFO: what the server keeps is not known and counts as not kept, and redundancy is \
                 not judged",
                "allow it: ACL SETUSER <user> +info +config|get",
            )
            .lowers(Characteristics::DURABLE_FENCING | Characteristics::CAUSAL),
        ),
        Err(error) => return Err(error),
    }
    found.push(clock(client).await?);
    let refused = writing(client).await?;
    // No session can begin where writes are refused, and connecting says so.
    let counts = |unused: &Finding| refused.is_none() || unused.severity() > Severity::Good;
    found.extend(unused(client).await.filter(counts));
    found.extend(refused);
    Ok(found)
}

/// How long a replica may hang before it is called down: the setting's name, and its value if that can be known.
async fn hang(client: &Client, down_after: Option<Duration>) -> Result<(&'static str, Option<Duration>)> {
    if !matches!(client.config().topology, Topology::Cluster { .. }) {
        return Ok(("down-after-milliseconds", down_after));
    }
    let name = "cluster-node-timeout";
    let value = setting(client, name).await?.and_then(|value| value.parse().ok());
    Ok((name, value.map(Duration::from_millis)))
}

/// Whether no lock was ever granted in this namespace, or that this cannot be known.
async fn unused(client: &Client) -> Option<Finding> {
    let shown = client.keys.shown();
    // Not EXISTS: who may read keys may not always call that.
    for key in [client.keys.epoch(), client.keys.fence()] {
        match client.read(redis::cmd("GET").arg(key)).await {
            Ok(Value::Nil) => {
                let what = format!(
                    "no lock was ever granted in {shown}; the first session writes the stamp of its data, the first lock \
                     the counter of tokens"
                );
                return Some(Finding::good(Finding::UNUSED, what));
            }
            Ok(_) => {}
            Err(error) => {
                let what = format!(
                    "it is not known whether a lock was ever granted in {shown}: {}",
                    error.context()
                );
                let advice = "do what the message says, then look again";
                return Some(Finding::warning(Finding::UNUSED, what, advice));
            }
        }
    }
    None
}

/// Why the server refuses a write. The write is that of a key which does not exist, on the condition that it does.
async fn writing(client: &Client) -> Result<Option<Finding>> {
    let key = client.keys.session(SessionId(client.context().entropy.id()));
    let mut write = redis::cmd("SET");
    write.arg(key).arg("").arg("XX");
    match client.links().next().await?.exchange(&write, false).await {
        Outcome::Refused(refusal) => Ok(Some(judge_refusal(&refusal))),
        Outcome::Answered(..) | Outcome::Lost => Ok(None),
    }
}

/// What to do about a server that refuses to write.
fn judge_refusal(refusal: &RedisError) -> Finding {
    let advice = match refusal.code().unwrap_or_default() {
        "OOM" => {
            "raise maxmemory (CONFIG SET maxmemory), or remove or move other data; INFO memory shows what is used"
        }
        "NOREPLICAS" => {
            "start the replicas again and look at INFO replication, or lower min-replicas-to-write (CONFIG SET)"
        }
        "MISCONF" => {
            "look for space and errors where the server keeps its data, and in its log; once BGSAVE succeeds, writes \
             are accepted again"
        }
        "READONLY" => "name the master, or write redis+sentinel:// with its sentinels",
        "LOADING" => {
            "wait until the server has loaded its data; INFO persistence says how long (loading_eta_seconds)"
        }
        "NOPERM" => "give the user the permissions that the driver's README names",
        _ => "do what the message says",
    };
    let said = [refusal.code(), refusal.detail()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let error = error::of(refusal);
    Finding::bad("writing", format!("the server refuses writes: {} ({said})", error.context()), advice)
}

/// A setting; `None` where the user may not ask, or a provider has taken the command away.
async fn setting(client: &Client, name: &str) -> Result<Option<String>> {
    match client.read(redis::cmd("CONFIG").arg("GET").arg(name)).await {
        Ok(answer) => Ok(server_info::setting(answer)),
        Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Backend) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks for the server's time, and compares it with ours halfway between question and answer.
async fn clock(client: &Client) -> Result<Finding> {
    let clock = &client.context().clock;
    let (asked, before) = (clock.now(), clock.wall());
    let answer = client.read(&redis::cmd("TIME")).await;
    let took = clock.now().saturating_since(asked);
    let mut parts = match answer {
        Ok(answer) => Parts::of(answer)?,
        Err(error) if error.kind() == ErrorKind::Denied => {
            return Ok(Finding::warning(
                "clock",
                "the user may not ask for the server's time; scripts need it, too",
                "allow it: ACL SETUSER <user> +time",
            ));
        }
        Err(error) => return Err(error),
    };
    let (seconds, micros) = (parts.number("the seconds")?, parts.number("the microseconds")?);
    let since = |number: i64| u64::try_from(number).unwrap_or_default();
    let theirs = Duration::from_secs(since(seconds)) + Duration::from_micros(since(micros));
    let theirs = UNIX_EPOCH
        .checked_add(theirs)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the server's time is out of all bounds"))?;
    Ok(compare(theirs, before + took / 2, took / 2))
}

fn compare(theirs: SystemTime, ours: SystemTime, within: Duration) -> Finding {
    let (difference, word) = match theirs.duration_since(ours) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let what = format!(
        "the server's clock is {} {word} ours, give or take {}",
        milliseconds(difference),
        milliseconds(within)
    );
    if difference.saturating_sub(within) < CLOCK_OFF {
        return Finding::good("clock", what);
    }
    Finding::warning(
        "clock",
        format!("{what}; if the clock is corrected in one step, every session ends early or lives longer"),
        "let a time service such as chrony keep both, and slew instead of stepping",
    )
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// What the answer to `INFO` means for locks. `appendfsync`: `None` where the user may not ask. `replicated`: the URL's
/// scheme waits for replicas by itself.
fn judge(info: &BTreeMap<String, String>, appendfsync: Option<&str>, replicated: bool) -> Vec<Finding> {
    let say = |name: &str| info.get(name).map_or("", String::as_str);
    let number = |name: &str| say(name).parse::<u64>().unwrap_or(0);
    let version = match (say("valkey_version"), say("redis_version")) {
        ("", "") => "the server does not say its version".to_owned(),
        ("", redis) => format!("Redis {redis}"),
        (valkey, _) => format!("Valkey {valkey}"),
    };
    let mut found = vec![Finding::good("version", version), persistence(say("aof_enabled"), appendfsync)];
    if say("aof_enabled") == "1" && say("aof_last_write_status") == "err" {
        found.push(Finding::bad(
            "disk",
            "the last write to the append-only file failed; until it succeeds, writes are refused",
            "look for space and errors where the server keeps its data",
        ));
    }
    if say("rdb_last_bgsave_status") == "err" {
        found.push(Finding::bad(
            "disk",
            "the last snapshot failed; with stop-writes-on-bgsave-error, as it is by default, writes are refused",
            "look for space and errors where the server keeps its data, and in its log",
        ));
    }
    let (used, most) = (number("used_memory"), number("maxmemory"));
    found.push(eviction(say("maxmemory_policy"), most));
    found.extend(nearly(
        "memory",
        ("bytes", used, most),
        "a full server grants nothing new",
        "raise maxmemory, or move other data to another server",
    ));
    found.extend(nearly(
        "connections",
        ("clients", number("connected_clients"), number("maxclients")),
        "a full server takes no new connections, not even to renew what is held",
        "raise maxclients, or find who keeps so many connections",
    ));
    found.extend(replicas(number("connected_slaves"), replicated));
    found
}

fn persistence(enabled: &str, appendfsync: Option<&str>) -> Finding {
    const ADVICE: &str = "set appendonly yes and appendfsync always; without, let what a lock protects compare \
                          fencing tokens, and expect locks and members to be gone after a restart";
    let topic = "persistence";
    let finding = match (enabled, appendfsync) {
        ("1", Some("always")) => {
            return Finding::good(
                topic,
                "every write is on disk before it is answered (appendonly yes, appendfsync always)",
            );
        }
        ("1", Some(other)) => Finding::warning(
            topic,
            format!(
                "appendfsync is {other}: a power cut takes back the last writes, locks and tokens among them"
            ),
            ADVICE,
        ),
        ("1", None) => Finding::warning(
            topic,
            "the user may not ask for appendfsync (CONFIG GET), so it counts as not always",
            "allow it: ACL SETUSER <user> +config|get; the setting should be always",
        ),
        ("", _) => Finding::warning(
            topic,
            "not known, since INFO does not say aof_enabled, and counts as off: a restart may forget locks, members and \
             the last token",
            ADVICE,
        ),
        _ => Finding::warning(
            topic,
            "the append-only file is off (appendonly no): a restart forgets locks, members and the last token",
            ADVICE,
        ),
    };
    finding.lowers(Characteristics::DURABLE_FENCING)
}

fn eviction(policy: &str, most: u64) -> Finding {
    let topic = "eviction";
    if policy == "noeviction" {
        return Finding::good(topic, "nothing is evicted when the memory is full (noeviction)");
    }
    let policy = if policy.is_empty() { "not known" } else { policy };
    let when = if most == 0 { "; maxmemory is not set, so nothing is evicted yet" } else { "" };
    Finding::warning(
        topic,
        format!("maxmemory-policy is {policy}: a server whose memory is full throws locks away{when}"),
        "set maxmemory-policy noeviction, or use a server of its own for locks",
    )
    .lowers(Characteristics::DURABLE_FENCING)
}

fn nearly(topic: &'static str, level: (&str, u64, u64), then: &str, advice: &str) -> Option<Finding> {
    let (unit, used, most) = level;
    (most > 0 && used.saturating_mul(100) / most >= NEARLY)
        .then(|| Finding::warning(topic, format!("{used} of {most} {unit} are in use; {then}"), advice))
}

fn replicas(count: u64, waited_for: bool) -> Option<Finding> {
    if count == 0 || waited_for {
        return None;
    }
    let finding = Finding::warning(
        "replicas",
        format!(
            "replicas: {count}, and writes do not wait for them: if a replica is promoted, the locks and \
             tokens that it has not received are lost"
        ),
        "write redis+sentinel:// if sentinels promote it, promote none by hand while locks are held, and let what a lock \
         protects compare fencing tokens",
    );
    Some(finding.lowers(Characteristics::DURABLE_FENCING | Characteristics::CAUSAL))
}

/// How many replicas have what was written a moment ago. One that still loads its data or hangs is connected, too.
fn following(info: &BTreeMap<String, String>) -> u32 {
    let is_replica = |name: &str| name.strip_prefix("slave").is_some_and(|n| n.parse::<u32>().is_ok());
    let follows = |state: &str| {
        let pairs: BTreeMap<_, _> = state.split(',').filter_map(|pair| pair.split_once('=')).collect();
        pairs.get("state") == Some(&"online")
            && pairs.get("lag").is_none_or(|lag| lag.parse::<u64>().is_ok_and(|lag| lag <= LAG))
    };
    let count = info.iter().filter(|(name, state)| is_replica(name) && follows(state)).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What the loss of one server costs. `hang`: how long a replica may hang before it is called down, and the setting's name.
fn redundancy(
    info: &BTreeMap<String, String>,
    config: &Config,
    (setting, hang): (&str, Option<Duration>),
) -> Option<Finding> {
    let topic = "redundancy";
    let stops = "no lock is granted, and every session ends at its deadline";
    if !config.topology.is_discovered() {
        // `replicas` is about those that there are.
        return info.get("connected_slaves").is_none_or(|count| count == "0").then(|| {
            let what = format!("one server without a replica: while it is down, {stops}");
            let advice =
                "give it two replicas and sentinels (redis+sentinel://), or use a cluster (redis+cluster://)";
            Finding::warning(topic, what, advice)
        });
    }
    if config.wait_replicas == Some(0) {
        return Some(Finding::warning(
            topic,
            "wait_replicas=0: a grant counts before a replica has it, so a fail-over may lose locks and tokens",
            "leave wait_replicas out, or set at least 1",
        ));
    }
    // Without the option a grant waits for all that are called healthy: one that is called down is not missed.
    let (replicas, needed) = (following(info), config.wait_replicas.unwrap_or(1));
    let advice = "add a replica or start the missing ones; where the URL sets wait_replicas, a smaller number helps, too";
    let spare = match replicas.checked_sub(needed) {
        None => {
            let what = format!("replicas: {replicas}, and a grant waits for {needed}: {stops}");
            return Some(Finding::bad(topic, what, advice));
        }
        Some(0) => {
            let what = format!("replicas: {replicas}, of which none may fail: if one fails, {stops}");
            return Some(Finding::warning(topic, what, advice));
        }
        Some(spare) => format!("replicas: {replicas}, of which {spare} may fail"),
    };
    let ttl = config.limits.ttl;
    Some(match (config.wait_replicas, hang) {
        (None, Some(hang)) if hang > ttl / 2 => Finding::warning(
            topic,
            format!(
                "{spare}, but one that hangs stops every grant and renewal until it is called down: {setting} is \
                 {hang:?}, and with a ttl of {ttl:?} locks are lost meanwhile"
            ),
            format!(
                "set {setting} to less than half of the ttl, or a longer ttl, or wait_replicas=1, with which a fail-over \
                 may lose what not every replica has"
            ),
        ),
        (None, None) => Finding::good(
            topic,
            format!("{spare}; it is not known how long one that hangs stops every grant ({setting})"),
        ),
        _ => Finding::good(topic, spare),
    })
}

#[cfg(test)]
mod tests {
    use tooz_core::BackendUrl;
    use tooz_core::driver::Limits;

    use super::*;

    fn fields(info: &str) -> BTreeMap<String, String> {
        let info = info.split_whitespace().filter_map(|pair| pair.split_once(':'));
        info.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn judged(info: &str, appendfsync: Option<&str>) -> Vec<Finding> {
        judge(&fields(info), appendfsync, false)
    }

    fn bad(found: &[Finding]) -> Vec<&'static str> {
        found.iter().filter(|f| f.severity() > Severity::Good).map(Finding::topic).collect()
    }

    #[test]
    fn what_endangers_locks_is_named() {
        let good = "redis_version:7.0.15 aof_enabled:1 maxmemory_policy:noeviction maxmemory:0";
        assert_eq!(bad(&judged(good, Some("always"))), [""; 0]);
        for (info, appendfsync, topics) in [
            (good.to_owned(), Some("everysec"), &["persistence"][..]),
            (good.to_owned(), None, &["persistence"]),
            (format!("{good} aof_last_write_status:err"), Some("always"), &["disk"]),
            (format!("{good} rdb_last_bgsave_status:err"), Some("always"), &["disk"]),
            (format!("{good} connected_slaves:2"), Some("always"), &["replicas"]),
            (format!("{good} connected_clients:9 maxclients:10"), Some("always"), &["connections"]),
            (
                "maxmemory_policy:noeviction maxmemory:100 used_memory:95".into(),
                None,
                &["persistence", "memory"],
            ),
            (String::new(), None, &["persistence", "eviction"]),
        ] {
            assert_eq!(bad(&judged(&info, appendfsync)), topics, "{info}");
        }
    }

    #[test]
    fn what_cannot_bear_a_loss_is_told() {
        let judged = |url: &str, info: &str, hang: Option<u64>| {
            let url = BackendUrl::parse(url).unwrap();
            let config = Config::read(&url, Limits::of(&url).unwrap()).unwrap();
            redundancy(&fields(info), &config, ("the-setting", hang.map(Duration::from_secs)))
        };
        let severity = |url: &str, replicas: u32, hang| {
            let each = (0..replicas).map(|n| format!("slave{n}:ip=::1,port=1,state=online,offset=1,lag=1 "));
            let info = format!("connected_slaves:{replicas} {}", each.collect::<String>());
            judged(url, &info, hang).map(|finding| finding.severity())
        };
        let (good, warning, bad) = (Some(Severity::Good), Some(Severity::Warning), Some(Severity::Bad));
        let alone = "redis://a";
        assert_eq!((severity(alone, 0, None), severity(alone, 1, None)), (warning, None));
        let url = "redis+sentinel://a/m?ttl=15s";
        assert_eq!([0, 1, 2].map(|replicas| severity(url, replicas, Some(5))), [bad, warning, good]);
        assert_eq!(
            [None, Some(7), Some(8), Some(30)].map(|hang| severity(url, 2, hang)),
            [good, good, warning, warning]
        );
        let waits = |count: u32| format!("{url}&wait_replicas={count}");
        assert_eq!([1, 2, 3].map(|replicas| severity(&waits(2), replicas, Some(30))), [bad, warning, good]);
        assert_eq!(severity(&waits(0), 3, None), warning);
        let connected = "connected_slaves:4 slave0:state=online,lag=0 slave1:state=online,lag=6 slave2:state=wait_bgsave,lag=0 \
                         slave3:state=online,lag=-1";
        assert!(
            judged(url, connected, None).unwrap().what().starts_with("replicas: 1, of which none may fail")
        );
    }

    #[test]
    fn what_lowers_is_what_connecting_lowers() {
        let all = |found: &[Finding]| {
            found.iter().fold(Characteristics::empty(), |all, finding| all | finding.lowered())
        };
        let (durable, causal) = (Characteristics::DURABLE_FENCING, Characteristics::CAUSAL);
        assert_eq!(
            all(&judged("aof_enabled:1 maxmemory_policy:noeviction", Some("always"))),
            Characteristics::empty()
        );
        assert_eq!(all(&judged("aof_enabled:1 maxmemory_policy:allkeys-lru", Some("always"))), durable);
        assert_eq!(all(&judged("connected_slaves:1", None)), durable | causal);
    }

    #[test]
    fn clocks_are_compared_within_what_the_question_took() {
        let ours = UNIX_EPOCH + Duration::from_secs(100);
        let severity = |theirs: u64, within: u64| {
            let theirs = UNIX_EPOCH + Duration::from_secs(theirs);
            compare(theirs, ours, Duration::from_secs(within)).severity()
        };
        assert_eq!((severity(104, 0), severity(96, 0)), (Severity::Good, Severity::Good));
        assert_eq!((severity(106, 0), severity(94, 0)), (Severity::Warning, Severity::Warning));
        assert_eq!(severity(106, 2), Severity::Good);
    }
}
