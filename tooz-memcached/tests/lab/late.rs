//! Beats, releases and requests that arrive after somebody else has got the lock.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use tooz_core::driver::{BreakRequest, End, Grant, Meant, Previous, Released};
use tooz_core::{Liveness, LossReason, MemberId};
use tooz_servers::lab::Case;
use tooz_servers::memcached::{Item, Memcached};
use tooz_servers::{Proxy, Way, cases};

use crate::stage::{
    Client, PATIENT, SOON, connect, eventually, gate, is_of, mark, named, seconds_left, within,
};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_late_beat_spares_the_next_holder,
    a_late_beat_spares_a_python_holder,
    a_late_beat_of_a_living_session_spares_the_next_holder,
    a_late_release_spares_the_next_holder,
    a_late_request_holds_no_longer_than_one_ttl,
];

/// How long the next holder's item lives, in seconds.
const LONG: u64 = 30;

/// One who holds `x` and whose beats are to be late.
struct Old {
    server: Memcached,
    proxy: Proxy,
    client: Client,
    grant: Grant,
}

impl Old {
    async fn new(ttl: &str) -> Self {
        let server = Memcached::start().unwrap();
        let proxy = Proxy::start(server.address()).unwrap();
        let client = Client::open(proxy.address(), ttl, "old").await;
        let grant = client.take("x").await;
        // From now on it knows the cas number of everything that a beat writes.
        let beaten = client.beat(&[&grant]).await.unwrap();
        assert!(beaten.lost.is_none() && beaten.gone.is_empty(), "{beaten:?}");
        Self { server, proxy, client, grant }
    }

    fn item(&self, key: &[u8]) -> Item {
        self.server.item(key).unwrap().unwrap()
    }

    /// That what the next holder stored stands as it did.
    fn assert_untouched(&self, before: &Item) {
        assert_eq!(self.item(&gate("x")), *before);
        let left = seconds_left(&self.server, &gate("x"));
        assert!(left > LONG - 5, "{left} s are left to the next holder");
    }
}

async fn a_late_beat_spares_the_next_holder() {
    let old = Old::new("2s").await;
    let new = Client::open(old.server.address(), "30s", "new").await;
    old.proxy.hold(Way::Up);
    let (client, grant) = (old.client.clone(), old.grant.clone());
    let beat = tokio::spawn(async move { client.beat(&[&grant]).await });
    let next = within("the lock", SOON, new.take("x")).await;
    assert!(next.token > old.grant.token);
    let before = [old.item(&gate("x")), old.item(&mark("x"))];
    old.proxy.heal();
    let beaten = within("the late beat", SOON, beat).await.unwrap().unwrap();
    assert_eq!(beaten.lost, Some(LossReason::Expired));
    old.assert_untouched(&before[0]);
    assert_eq!(old.item(&mark("x")), before[1]);
    let beaten = new.beat(&[&next]).await.unwrap();
    assert!(beaten.lost.is_none() && beaten.gone.is_empty(), "{beaten:?}");
}

async fn a_late_beat_spares_a_python_holder() {
    let old = Old::new("2s").await;
    old.proxy.hold(Way::Up);
    let (client, grant) = (old.client.clone(), old.grant.clone());
    let beat = tokio::spawn(async move { client.beat(&[&grant]).await });
    eventually("it is free for Python", async || {
        let add = format!("add __TOOZ_LOCK_x 1 {LONG} 6\r\npython\r\n");
        old.server.command(add.as_bytes()).unwrap() == b"STORED\r\n"
    })
    .await;
    let before = old.item(&gate("x"));
    old.proxy.heal();
    let beaten = within("the late beat", SOON, beat).await.unwrap().unwrap();
    assert_eq!(beaten.lost, Some(LossReason::Expired));
    old.assert_untouched(&before);
}

/// The same where the session lives, and the lock alone was taken away.
async fn a_late_beat_of_a_living_session_spares_the_next_holder() {
    let old = Old::new("30s").await;
    let new = Client::open(old.server.address(), "30s", "new").await;
    for python in [false, true] {
        let grant =
            if python { within("the lock", SOON, old.client.take("x")).await } else { old.grant.clone() };
        old.proxy.hold(Way::Up);
        let (client, held) = (old.client.clone(), grant.clone());
        let beat = tokio::spawn(async move { client.beat(&[&held]).await });
        let request = BreakRequest::new(named("x"), MemberId::new("operator").unwrap(), "it hangs");
        let broken = new.driver.locks().break_lock(&request.only(Meant::Token(grant.token))).await.unwrap();
        assert_eq!(broken.len(), 1);
        let next = if python {
            let set = format!("set __TOOZ_LOCK_x 1 {LONG} 6\r\npython\r\n");
            assert_eq!(old.server.command(set.as_bytes()).unwrap(), b"STORED\r\n");
            None
        } else {
            Some(within("the lock", SOON, new.take("x")).await)
        };
        let before = old.item(&gate("x"));
        old.proxy.heal();
        let beaten = within("the late beat", SOON, beat).await.unwrap().unwrap();
        let [(attempt, LossReason::Broken { by, why })] = &beaten.gone[..] else { panic!("{beaten:?}") };
        assert_eq!((*attempt, why.as_str()), (grant.attempt, "it hangs"));
        assert!(beaten.lost.is_none() && by.as_ref().is_some_and(|by| by.as_bytes() == b"operator"));
        old.assert_untouched(&before);
        if let Some(next) = next {
            let released = new.session.locks().release(&next, End::Clean).await.unwrap();
            assert!(matches!(released, Released::Released), "{released:?}");
        }
    }
}

async fn a_late_release_spares_the_next_holder() {
    let old = Old::new("2s").await;
    let new = Client::open(old.server.address(), "30s", "new").await;
    old.proxy.hold(Way::Up);
    let (client, grant) = (old.client.clone(), old.grant.clone());
    let release = tokio::spawn(async move { client.session.locks().release(&grant, End::Clean).await });
    let next = within("the lock", SOON, new.take("x")).await;
    let before = [old.item(&gate("x")), old.item(&mark("x"))];
    old.proxy.heal();
    let released = within("the late release", SOON, release).await.unwrap().unwrap();
    assert!(matches!(released, Released::WasNotHolder), "{released:?}");
    old.assert_untouched(&before[0]);
    assert_eq!(old.item(&mark("x")), before[1]);
    let released = new.session.locks().release(&next, End::Clean).await.unwrap();
    assert!(matches!(released, Released::Released), "{released:?}");
}

/// A request that a lost connection left somewhere arrives when its caller has long given the lock back. Nobody keeps what it
/// takes, although its session lives.
async fn a_late_request_holds_no_longer_than_one_ttl() {
    let server = Memcached::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let (a, b) = (connect(proxy.address(), "3s", "a").await, connect(server.address(), PATIENT, "b").await);
    let late = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&late);
    proxy.lose_requests(1, move |bytes| {
        let is_it = is_of(bytes, "acquire");
        if is_it {
            *kept.lock().unwrap() = bytes.to_vec();
        }
        is_it
    });
    let guard = a.lock("x").unwrap().acquire().await.unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    assert_eq!(server.item(&gate("x")).unwrap(), None);
    let late = std::mem::take(&mut *late.lock().unwrap());
    assert!(late.starts_with(b"add __TOOZ_LOCK_x "), "{}", late.escape_ascii());
    let mut ghost = TcpStream::connect(server.address()).unwrap();
    ghost.write_all(&late).unwrap();
    ghost.read_exact(&mut [0; 8]).unwrap();
    let ghost = server.item(&gate("x")).unwrap().expect("nothing late came to the gate");
    let session = a.session_id();
    assert!(seconds_left(&server, &gate("x")) <= 4);
    let next = within("the lock", 8, b.lock("x").unwrap().acquire()).await.unwrap();
    assert!(next.is_held() && next.token() > token);
    assert_eq!(next.previous(), Previous::Clean, "nobody used what came late");
    assert_ne!(server.item(&gate("x")).unwrap(), Some(ghost));
    assert!(matches!(a.liveness(), Liveness::Alive { .. }) && a.session_id() == session);
    next.release().await.unwrap();
    assert!(a.lock("x").unwrap().try_acquire().await.unwrap().is_some());
}
