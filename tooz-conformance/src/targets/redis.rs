//! `redis://`: a server of its own for each case, and a proxy before it for each member.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::kit::{Call, Fate, Kit};
use crate::target::{Target, TestBackend, Wish};
use tooz_servers::redis::{self, Redis};
use tooz_servers::redis_replicated::{Cluster, Sentinels};
use tooz_servers::{Lent, Pool, Proxy};

/// Twice the least that is allowed: what waits for an expiry waits little longer than it must, and a machine that is busy with
/// other cases may stand still for a second.
const TTL: &str = "ttl=2s";
/// Where nothing is to expire, nothing waits for it.
const PATIENT: &str = "ttl=15s";

/// Servers that all cases share answer late now and then.
const SHARED_TTL: &str = "ttl=5s";

/// One server.
pub fn target() -> Target {
    let asked = AtomicBool::new(false);
    let fresh = move |wish: Wish| {
        // The first question, which every helper process asks, too, is only what the URL claims.
        if !asked.swap(true, Ordering::SeqCst) {
            return Ok(TestBackend::new(url(SocketAddr::from((Ipv4Addr::LOCALHOST, 6379)), TTL)));
        }
        Ok(place(Arc::new(Stage::set()?), if wish.lasting { TTL } else { PATIENT }))
    };
    Target::new("redis", fresh)
        .missing_because(redis::program().err())
        .ttl()
        .kit(|place| Box::new(Backend { stage: stage_of(place.url()) }))
}

/// A target whose servers nobody hurts, with the ttl of its cases that last as long: its first place is only asked what its
/// URL claims, and every helper process asks that, too.
fn unhurt(
    name: &str,
    example: &'static str,
    ttl: &'static str,
    missing: Option<String>,
    fresh: impl Fn(&str) -> Result<TestBackend, String> + Send + Sync + 'static,
) -> Target {
    let asked = AtomicBool::new(false);
    let fresh = move |wish: Wish| {
        if !asked.swap(true, Ordering::SeqCst) {
            return Ok(TestBackend::new(format!("{example}?{ttl}")));
        }
        fresh(if wish.lasting { ttl } else { PATIENT })
    };
    Target::new(name, fresh).missing_because(missing).ttl()
}

/// No server is called down here that is only slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// A master and a replica under three sentinels; the proofs of tenure wait for the replica. One set of servers for all cases:
/// each has a namespace of its own, nobody hurts them, and eight sets at once would be forty servers.
pub fn with_sentinel() -> Target {
    static SERVERS: LazyLock<Result<Sentinels, String>> = LazyLock::new(|| Sentinels::start(1, PATIENCE));
    let name = "redis+sentinel";
    unhurt(name, "redis+sentinel://127.0.0.1/mymaster", SHARED_TTL, redis::program().err(), |ttl| {
        let servers = SERVERS.as_ref().map_err(Clone::clone)?;
        Ok(TestBackend::new(format!("{}?{ttl}", servers.url())))
    })
}

/// Three masters with a replica each, for all cases; a namespace is on one of them.
pub fn with_cluster() -> Target {
    static SERVERS: LazyLock<Result<Cluster, String>> = LazyLock::new(|| Cluster::start(PATIENCE));
    let name = "redis+cluster";
    unhurt(name, "redis+cluster://127.0.0.1", SHARED_TTL, redis::program().err(), |ttl| {
        let servers = SERVERS.as_ref().map_err(Clone::clone)?;
        Ok(TestBackend::new(format!("{}?{ttl}", servers.url())))
    })
}

/// One server for all cases, encrypted; nothing on the way can read what to hurt, so there is no kit.
#[cfg(feature = "redis-tls")]
pub fn with_tls() -> Target {
    use tooz_servers::redis_tls::RedisTls;
    use tooz_servers::{Certificates, openssl};
    static CERTIFICATES: LazyLock<Result<Certificates, String>> = LazyLock::new(Certificates::make);
    static SERVER: LazyLock<Result<RedisTls, String>> =
        LazyLock::new(|| RedisTls::start(CERTIFICATES.as_ref().map_err(Clone::clone)?, false));
    let missing = redis::program().and(openssl()).err();
    unhurt("redis+tls", "rediss://127.0.0.1", SHARED_TTL, missing, |ttl| {
        let server = SERVER.as_ref().map_err(Clone::clone)?;
        let ca = CERTIFICATES.as_ref().map_err(Clone::clone)?.file("ca.pem");
        Ok(TestBackend::new(format!("rediss://{}?{ttl}&tls_ca={}", server.address(), ca.display()))
            .keep(server))
    })
    .variant()
}

static SERVERS: LazyLock<Pool<Redis>> = LazyLock::new(|| Pool::new(Redis::start, Redis::clean));

/// The stages that stand now, by their URL, for the kit.
static STAGES: Mutex<BTreeMap<String, Weak<Stage>>> = Mutex::new(BTreeMap::new());

/// A server and the ways to it.
struct Stage {
    redis: Lent<Redis>,
    proxies: Mutex<BTreeMap<Vec<u8>, Arc<Proxy>>>,
    slow: Mutex<Duration>,
    /// While the server stands still: whose sessions are to be ended as soon as it goes on.
    standing: Mutex<Option<Vec<(String, String)>>>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("redis", &*self.redis).finish_non_exhaustive()
    }
}

fn url(address: SocketAddr, options: &str) -> String {
    format!("redis://{address}?{options}")
}

fn place(stage: Arc<Stage>, options: &'static str) -> TestBackend {
    let route = Arc::clone(&stage);
    let url_here = url(stage.redis.address(), options);
    let mut stages = STAGES.lock().unwrap_or_else(PoisonError::into_inner);
    stages.insert(url_here.clone(), Arc::downgrade(&stage));
    drop(stages);
    TestBackend::new(url_here)
        .route(move |member| match route.proxy(member) {
            Ok(proxy) => url(proxy.address(), options),
            Err(why) => format!("redis://no-proxy?{why}"),
        })
        .keep(stage)
}

fn stage_of(url: &str) -> Arc<Stage> {
    let stage = STAGES.lock().unwrap_or_else(PoisonError::into_inner).get(url).and_then(Weak::upgrade);
    stage.unwrap_or_else(|| panic!("the place of {url} is gone"))
}

impl Stage {
    fn set() -> Result<Self, String> {
        Ok(Self {
            redis: SERVERS.lend()?,
            proxies: Mutex::default(),
            slow: Mutex::default(),
            standing: Mutex::default(),
        })
    }

    fn proxy(&self, member: &[u8]) -> Result<Arc<Proxy>, String> {
        let mut proxies = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(proxy) = proxies.get(member) {
            return Ok(Arc::clone(proxy));
        }
        let proxy = Arc::new(Proxy::start(self.redis.address())?);
        proxy.delay(*self.slow.lock().unwrap_or_else(PoisonError::into_inner));
        proxies.insert(member.to_vec(), Arc::clone(&proxy));
        Ok(proxy)
    }

    fn each<T>(&self, act: impl FnMut(&Arc<Proxy>) -> T) -> Vec<T> {
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner).values().map(act).collect()
    }
}

#[derive(Debug)]
struct Backend {
    stage: Arc<Stage>,
}

impl Backend {
    fn of(&self, member: &str) -> Arc<Proxy> {
        match self.stage.proxy(member.as_bytes()) {
            Ok(proxy) => proxy,
            Err(why) => panic!("{why}"),
        }
    }

    fn command(&self, words: &[&[u8]]) -> Vec<u8> {
        match self.stage.redis.command(words) {
            Ok(answer) if answer.first() != Some(&b'-') => answer,
            Ok(answer) => panic!("the server refuses: {}", answer.escape_ascii()),
            Err(why) => panic!("{why}"),
        }
    }
}

impl Backend {
    fn standing(&self) -> MutexGuard<'_, Option<Vec<(String, String)>>> {
        self.stage.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the sessions of a member; says how many there were.
    fn end_sessions(&self, namespace: &str, member: &str) -> usize {
        let beat = format!("{namespace}_beats:{member}");
        let pattern = format!("{namespace}_rs:s:*");
        // The member's session is the one that its beat names; one that joined nothing is known by what it wrote itself.
        let claimed = redis::text(&self.command(&[b"GET", beat.as_bytes()]));
        let mut expired = 0;
        for key in redis::list(&self.command(&[b"KEYS", pattern.as_bytes()])) {
            let id = key.rsplit(':').next().unwrap_or_default();
            let named = redis::text(&self.command(&[b"HGET", key.as_bytes(), b"m"])) == member;
            if named || claimed == format!("rs:{id}") {
                self.command(&[b"DEL", key.as_bytes()]);
                expired += 1;
            }
        }
        self.command(&[b"DEL", beat.as_bytes()]);
        expired
    }
}

impl Kit for Backend {
    fn expire(&self, namespace: &str, member: &str) {
        if let Some(later) = &mut *self.standing() {
            return later.push((namespace.to_owned(), member.to_owned()));
        }
        assert!(self.end_sessions(namespace, member) > 0, "{member} has no session to expire");
    }

    fn cut(&self, _: &str, member: &str) {
        self.of(member).hold_both();
    }

    fn heal(&self, _: &str, member: &str) {
        self.of(member).heal();
    }

    fn pause(&self) {
        self.standing().get_or_insert_default();
        self.stage.redis.server().stop();
    }

    fn resume(&self) {
        self.stage.redis.server().resume();
        let later = self.standing().take();
        for (namespace, member) in later.into_iter().flatten() {
            // It may have ended by itself meanwhile.
            self.end_sessions(&namespace, &member);
        }
    }

    fn next(&self, member: &str, call: Call, times: u64, fate: Fate) {
        let script = match call {
            Call::Request => "request",
            Call::Withdraw => "withdraw",
            Call::Release => "release",
            Call::Join => "join",
            Call::Create => "create",
            Call::Renew => "renew",
        };
        let Some(hash) = tooz_redis::script_hash(script) else { panic!("there is no script {script}") };
        let asked = move |bytes: &[u8]| bytes.windows(hash.len()).any(|window| window == hash.as_bytes());
        let proxy = self.of(member);
        match fate {
            Fate::Fails => proxy.answer_requests(times, asked, *b"-LOADING by the test\r\n"),
            Fate::AnswerLost => proxy.lose_replies(times, asked, |_| true),
            Fate::RequestLost => proxy.lose_requests(times, asked),
        }
    }

    fn slow(&self, by: Duration) {
        *self.stage.slow.lock().unwrap_or_else(PoisonError::into_inner) = by / 2;
        self.stage.each(|proxy| proxy.delay(by / 2));
    }

    fn evict(&self, namespace: &str, group: &str, member: &str) {
        let key = format!("{namespace}_group:{group}");
        let gone = self.command(&[b"HDEL", key.as_bytes(), member.as_bytes()]);
        assert_eq!(gone, b":1\r\n", "{member} has no record in {group}");
    }

    fn lose_data(&self) {
        self.command(&[b"FLUSHALL"]);
    }

    fn vanish(&self, namespace: &str, lock: &str) {
        let key = format!("{namespace}_{lock}_lock");
        assert_eq!(self.command(&[b"DEL", key.as_bytes()]), b":1\r\n", "nobody holds {lock}");
    }

    fn round_trips(&self) -> u64 {
        self.stage.each(|proxy| proxy.round_trips()).into_iter().sum()
    }

    fn watches(&self) -> usize {
        let channels = redis::list(&self.command(&[b"PUBSUB", b"CHANNELS", b"*:c"]));
        let count = |channel: &String| {
            let answer = self.command(&[b"PUBSUB", b"NUMSUB", channel.as_bytes()]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            text.rsplit(':').next().and_then(|number| number.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        channels.iter().map(count).sum()
    }
}
