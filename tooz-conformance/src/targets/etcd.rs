//! `etcd://`: a server of its own for each case, and a proxy before it for each member. The cluster and the encrypted
//! server are hurt by nobody: there is one of each, and each case has a namespace in it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use etcd_client::{Client, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse};
use tooz_core::{BackendUrl, Characteristics};
use tooz_etcd as _;

use crate::kit::{Call, Fate, Kit};
use crate::target::{Target, TestBackend, Wish};
use tooz_servers::etcd::{self, Cluster, Etcd};
use tooz_servers::{Lent, Pool, Proxy, make_certificates, openssl};

/// The least that an etcd with its usual election timeout grants: what waits for an expiry waits no longer than it must.
const TTL: &str = "ttl=2s";

/// Servers that all cases share answer late now and then, and three nodes that are starved elect a leader, which alone
/// takes two seconds.
const SHARED_TTL: &str = "ttl=5s&connect_timeout=30s&operation_timeout=30s";

/// Where nothing is to expire, nothing waits for these: they only bound how long a machine may stand still that has other
/// things to do.
const PATIENT: &str = "ttl=15s&connect_timeout=30s&operation_timeout=30s";

/// One server, three that are one, and one that is encrypted.
pub fn targets() -> Vec<Target> {
    vec![
        single(),
        cluster(),
        #[cfg(feature = "etcd-tls")]
        encrypted(),
    ]
}

/// What the version at hand keeps. The program is asked, so that no server has to run for the list of cases.
fn kept(url: &str) -> Characteristics {
    let Ok(url) = BackendUrl::parse(url) else { return Characteristics::empty() };
    let best = tooz_etcd::REGISTRATION.characteristics(&url);
    let version = etcd::program().ok().and_then(|program| {
        let said = std::process::Command::new(program).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.lines()
            .find_map(|line| line.strip_prefix("etcd Version: "))
            .map(|version| version.trim().to_owned())
    });
    tooz_etcd::kept(best, version.as_deref().unwrap_or_default()).unwrap_or(best)
}

fn single() -> Target {
    let asked = AtomicBool::new(false);
    // The first question, which every helper process asks, too, is only what the URL claims.
    let nobody = url(SocketAddr::from((Ipv4Addr::LOCALHOST, 2379)), TTL);
    let keeps = kept(&nobody);
    let fresh = move |wish: Wish| {
        if !asked.swap(true, Ordering::SeqCst) {
            return Ok(TestBackend::new(nobody.clone()));
        }
        Ok(place(Arc::new(Stage::set()?), if wish.lasting { TTL } else { PATIENT }))
    };
    Target::new("etcd", fresh)
        .missing_because(etcd::program().err())
        .ttl()
        .keeps(keeps)
        .kit(|place| Box::new(Backend { stage: stage_of(place.url()) }))
}

/// A target whose backend exists once; `url`, which is given options, starts it when the first case wants it.
fn once(
    name: &str,
    nobody: String,
    url: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static,
) -> Target {
    let asked = AtomicBool::new(false);
    let keeps = kept(&nobody);
    let fresh = move |wish: Wish| {
        if asked.swap(true, Ordering::SeqCst) {
            url(if wish.lasting { SHARED_TTL } else { PATIENT }).map(TestBackend::new)
        } else {
            Ok(TestBackend::new(nobody.clone()))
        }
    };
    Target::new(name, fresh).missing_because(etcd::program().err()).ttl().keeps(keeps).variant()
}

fn cluster() -> Target {
    static CLUSTER: LazyLock<Result<Cluster, String>> = LazyLock::new(Cluster::start);
    once("etcd+cluster", format!("etcd://127.0.0.1:2379?{SHARED_TTL}"), |options| {
        let cluster = CLUSTER.as_ref().map_err(Clone::clone)?;
        let hosts: Vec<String> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
        Ok(format!("etcd://{}?{options}", hosts.join(",")))
    })
}

/// One that speaks TLS only, and only to clients with a certificate.
#[cfg(feature = "etcd-tls")]
fn encrypted() -> Target {
    static ENCRYPTED: LazyLock<Result<(tempfile::TempDir, Etcd), String>> = LazyLock::new(|| {
        let files = etcd::data()?;
        make_certificates(files.path())?;
        let etcd = Etcd::start_encrypted(files.path())?;
        Ok((files, etcd))
    });
    once("etcd+tls", format!("etcds://127.0.0.1:2379?{SHARED_TTL}"), |options| {
        let (files, etcd) = ENCRYPTED.as_ref().map_err(Clone::clone)?;
        let files = files.path().display();
        let certificates =
            format!("ca_cert={files}/ca.pem&cert_cert={files}/client.pem&cert_key={files}/client.key");
        Ok(format!("etcds://{}?{options}&{certificates}", etcd.address()))
    })
    .missing_because(etcd::program().and(openssl()).err())
}

static SERVERS: LazyLock<Pool<Etcd>> = LazyLock::new(|| Pool::new(Etcd::start, Etcd::clean));

/// The stages that stand now, by their URL, for the kit.
static STAGES: Mutex<BTreeMap<String, Weak<Stage>>> = Mutex::new(BTreeMap::new());

/// A server and the ways to it.
struct Stage {
    etcd: Lent<Etcd>,
    proxies: Mutex<BTreeMap<Vec<u8>, Arc<Proxy>>>,
    slow: Mutex<Duration>,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("etcd", &*self.etcd).finish_non_exhaustive()
    }
}

fn url(address: SocketAddr, options: &str) -> String {
    format!("etcd://{address}?{options}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(stage: Arc<Stage>, options: &'static str) -> TestBackend {
    let route = Arc::clone(&stage);
    let url_here = url(stage.etcd.address(), options);
    lock(&STAGES).insert(url_here.clone(), Arc::downgrade(&stage));
    TestBackend::new(url_here)
        .route(move |member| match route.proxy(member) {
            Ok(proxy) => url(proxy.address(), options),
            Err(why) => format!("etcd://no-proxy?{why}"),
        })
        .keep(stage)
}

fn stage_of(url: &str) -> Arc<Stage> {
    let stage = lock(&STAGES).get(url).and_then(Weak::upgrade);
    stage.unwrap_or_else(|| panic!("the place of {url} is gone"))
}

impl Stage {
    fn set() -> Result<Self, String> {
        Ok(Self { etcd: SERVERS.lend()?, proxies: Mutex::default(), slow: Mutex::default() })
    }

    fn proxy(&self, member: &[u8]) -> Result<Arc<Proxy>, String> {
        let mut proxies = lock(&self.proxies);
        if let Some(proxy) = proxies.get(member) {
            return Ok(Arc::clone(proxy));
        }
        let proxy = Arc::new(Proxy::start(self.etcd.address())?);
        proxy.count_only(etcd::counts);
        proxy.delay(*lock(&self.slow));
        proxies.insert(member.to_vec(), Arc::clone(&proxy));
        Ok(proxy)
    }

    fn each<T>(&self, act: impl FnMut(&Arc<Proxy>) -> T) -> Vec<T> {
        lock(&self.proxies).values().map(act).collect()
    }
}

/// "Nothing that came on this connection was looked at": GOAWAY after stream 0, with the reason that says so.
const REFUSED: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

fn has(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Which call a request is part of, by the keys that it names: they stand in it as they are.
fn is_of(call: Call, bytes: &[u8]) -> bool {
    let holder = ["tooz1\nexclusive", "tooz1\nshared", "tooz1\npermit"].iter().any(|mode| has(bytes, mode));
    let gate = has(bytes, "tooz1 holder ") || has(bytes, "tooz1 shared");
    match call {
        Call::Request => holder,
        Call::Withdraw => !holder && gate && has(bytes, "/q/x/"),
        Call::Release => !holder && gate && has(bytes, "/m/") && !has(bytes, "/q/x/"),
        Call::Join => has(bytes, "/claim/") && !has(bytes, "/epoch"),
        Call::Create => has(bytes, "/groups/") && !has(bytes, "%tooz/"),
        Call::Renew => has(bytes, "/session/") && !has(bytes, "tooz1") && !has(bytes, "/claim/"),
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

    fn ask<T, F, Fut>(&self, question: F) -> T
    where
        T: Send,
        F: FnOnce(Client) -> Fut + Send,
        Fut: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        self.stage.etcd.ask(question).unwrap_or_else(|why| panic!("{why}"))
    }
}

/// As the driver writes it in its keys: the suite's names need no more.
fn encoded(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

impl Kit for Backend {
    fn expire(&self, namespace: &str, member: &str) {
        let sessions = format!("%tooz/{}/session/", encoded(namespace));
        let expired = self.ask(|mut client| async move {
            let found = client.get(sessions, Some(GetOptions::new().with_prefix())).await?;
            let named = [b"tooz1\n", member.as_bytes()].concat();
            let mut expired = 0;
            for kv in found.kvs().iter().filter(|kv| kv.value() == named) {
                client.lease_revoke(kv.lease()).await?;
                expired += 1;
            }
            Ok(expired)
        });
        assert!(expired > 0, "{member} has no session to expire");
    }

    fn cut(&self, _: &str, member: &str) {
        self.of(member).hold_both();
    }

    fn heal(&self, _: &str, member: &str) {
        self.of(member).heal();
    }

    fn pause(&self) {
        self.stage.etcd.server().stop();
    }

    fn resume(&self) {
        self.stage.etcd.server().resume();
    }

    fn next(&self, member: &str, call: Call, times: u64, fate: Fate) {
        let proxy = self.of(member);
        let request = move |bytes: &[u8]| is_of(call, bytes);
        match fate {
            Fate::Fails => proxy.turn_away_requests(times, request, REFUSED),
            Fate::AnswerLost => {
                proxy.lose_replies(times, request, |bytes| etcd::has_frame(bytes, etcd::HEADERS));
            }
            Fate::RequestLost => proxy.lose_requests(times, request),
        }
    }

    fn slow(&self, by: Duration) {
        *lock(&self.stage.slow) = by / 2;
        self.stage.each(|proxy| proxy.delay(by / 2));
    }

    fn evict(&self, namespace: &str, group: &str, member: &str) {
        let key = format!("{}/groups/{group}/{member}", encoded(namespace));
        let gone = self.ask(|mut client| async move { Ok(client.delete(key, None).await?.deleted()) });
        assert!(gone > 0, "{member} has no record in {group}");
    }

    /// By hand: a server that is started anew also counts its revisions anew, which fencing does not survive anywhere.
    fn lose_data(&self) {
        assert!(self.stage.etcd.clean(), "the data cannot be deleted");
    }

    fn vanish(&self, namespace: &str, lock: &str) {
        let space = encoded(namespace);
        let gate = format!("/{space}/locks{lock}");
        let holders = format!("%tooz/{space}/lock/n{}/h/", encoded(lock));
        // At one moment: a waiter that is granted the lock between the two would lose its own gate to the second.
        let both = Txn::new().and_then([
            TxnOp::delete(holders, Some(DeleteOptions::new().with_prefix())),
            TxnOp::delete(gate, None),
        ]);
        let gone = self.ask(|mut client| async move {
            let response = client.txn(both).await?;
            Ok(response.op_responses().into_iter().next().map_or(0, |first| match first {
                TxnOpResponse::Delete(deleted) => deleted.deleted(),
                _ => 0,
            }))
        });
        assert!(gone > 0, "nobody holds {lock}");
    }

    fn round_trips(&self) -> u64 {
        self.stage.each(|proxy| proxy.round_trips()).into_iter().sum()
    }

    fn watches(&self) -> usize {
        self.stage.etcd.watches().unwrap_or_else(|why| panic!("{why}"))
    }
}
