//! What only etcd can do to us: several ways to one server, quotas, users; late requests, deleted keys and clusters below.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

#[cfg(feature = "tls")]
mod certificates;
mod cluster;
mod deleted;
mod late;

use std::time::Duration;

use tooz_core::{Capabilities, Coordinator, Departure, ErrorKind, GroupEvent, Viewer};
use tooz_servers::etcd::{Etcd, counts};
use tooz_servers::lab::Case;
use tooz_servers::{Outcome, Proxy, cases, eventually, make_certificates, within};

pub(crate) const CASES: &[(&str, Case)] = cases![
    a_slow_break_spares_the_next_holder,
    a_closed_endpoint_costs_nothing,
    out_of_space_is_said,
    a_restart_keeps_what_is_held,
    a_short_standstill_costs_nothing,
    cut_off_while_it_waits,
    a_crashed_reader_leaves_the_others_their_lock,
    readers_of_unlike_ttls,
    users_and_passwords,
    a_user_who_may_only_read_looks,
    a_full_server_can_be_looked_at,
    users_that_change_cost_nothing,
    a_close_says_that_it_leaves_more_groups_than_one_transaction_holds,
    round_trips,
    a_beat_is_written,
    cluster::the_leader_is_killed,
    deleted::compaction_is_followed_by_a_view,
    deleted::a_revoked_lease_is_heard_of_at_once,
    deleted::a_deleted_key_is_heard_of_at_once,
    deleted::a_release_does_not_give_back_what_python_took,
    deleted::a_key_deleted_in_a_gap_is_missed_after_it,
    deleted::a_key_made_anew_is_not_the_one_that_was_granted,
    deleted::a_renewed_lease_that_ends_is_heard_of_at_once,
    deleted::a_group_made_again_in_a_gap_is_another_one,
    deleted::a_deleted_place_is_taken_anew,
    deleted::a_deleted_stamp_is_not_replaced_beside_the_living,
    deleted::without_raises_nothing_is_granted,
    late::a_late_request_fails,
    late::a_request_that_hangs_is_made_elsewhere,
    late::a_late_join_fails,
    late::a_late_request_between_members_fails,
];
#[cfg(feature = "tls")]
pub(crate) const TLS: &[(&str, Case)] =
    cases![certificates::certificates_on_both_sides, certificates::a_fault_names_what_to_correct];
pub(crate) const SIGNED: &[(&str, Case)] = cases![users_that_change_under_signed_tokens_cost_nothing];
pub(crate) const STALLED: &[(&str, Case)] = cases![cluster::a_leader_whose_disk_stands_still];

const LIMIT: Duration = Duration::from_secs(30);

/// What is lost is told before any beat: where that is tested, the next one is 20 s away.
const AT_ONCE: Duration = Duration::from_secs(10);

/// For a session that is not to end: a machine may stand still for seconds.
async fn connect(hosts: &str, member: &str) -> tooz_core::Result<Coordinator> {
    connect_for("15s", hosts, member).await
}

async fn connect_for(ttl: &str, hosts: &str, member: &str) -> tooz_core::Result<Coordinator> {
    Coordinator::builder(format!("etcd://{hosts}?ttl={ttl}"), member).connect().await
}

/// A server, and two ways to it.
struct Fork {
    etcd: Etcd,
    one: Proxy,
    other: Proxy,
}

impl Fork {
    fn new() -> Result<Self, String> {
        let etcd = Etcd::start()?;
        Ok(Self { one: Proxy::start(etcd.address())?, other: Proxy::start(etcd.address())?, etcd })
    }

    fn hosts(&self) -> String {
        format!("{},{}", self.one.address(), self.other.address())
    }
}

async fn nobody_holds(c: &Coordinator, lock: &str) -> Outcome {
    let holders = c.lock(lock)?.holders().await?;
    assert!(holders.holders.is_empty() && holders.waiters == Some(0), "{holders:?}");
    Ok(())
}

/// L10: a break breaks who held the lock when it was asked for, not whoever gets it by that.
async fn a_slow_break_spares_the_next_holder() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let address = etcd.address().to_string();
    let (a, b) = (connect(&address, "a").await?, connect(&address, "b").await?);
    let operator = connect(&proxy.address().to_string(), "operator").await?;
    let held = a.lock("x")?.acquire().await?;
    let lock = b.lock("x")?;
    let waiting = tokio::spawn(async move { lock.acquire().await });
    eventually("it waits", LIMIT, async || {
        Ok::<_, tooz_core::Error>(a.lock("x")?.holders().await?.waiters == Some(1))
    })
    .await?;
    // Long enough for the next one to take it between two requests of the operator's.
    proxy.delay(Duration::from_millis(100));
    let broken = operator.lock("x")?.break_lock("it hangs").await?;
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert!(waiting.await??.is_held());
    drop(held);
    operator.close().await?;
    a.close().await?;
    Ok(b.close().await?)
}

/// S5, S6: when one way closes, the session lives on over the other, and so does what it holds.
async fn a_closed_endpoint_costs_nothing() -> Outcome {
    let fork = Fork::new()?;
    let a = connect_for("6s", &fork.hosts(), "a").await?;
    let guard = a.lock("x")?.acquire().await?;
    for _ in 0..2 {
        fork.one.refuse();
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(guard.is_held(), "lost although another endpoint answers");
        fork.one.heal();
        fork.other.refuse();
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(guard.is_held(), "lost although another endpoint answers");
        fork.other.heal();
    }
    guard.release().await?;
    Ok(a.close().await?)
}

/// X1: without space nothing is written, what is held stays held, and the error says what to do.
async fn out_of_space_is_said() -> Outcome {
    use etcd_client::{AlarmAction, AlarmType};
    let etcd = Etcd::start()?;
    let a = connect_for("6s", &etcd.address().to_string(), "a").await?;
    let guard = a.lock("x")?.acquire().await?;
    let joined = a.group("joined")?;
    joined.join_or_create(Capabilities::none()).await?;
    etcd.ask(|mut client| async move {
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.map(|_| ())
    })?;
    let error = a.group("g")?.create().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("defragment") && !error.is_indeterminate(), "{error}");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held(), "lost although beats need no space");
    guard.release().await?;
    joined.leave().await?;
    assert_eq!(joined.members().await?, []);
    etcd.ask(|mut client| async move {
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.map(|_| ())
    })?;
    a.group("g")?.create().await?;
    Ok(a.close().await?)
}

/// L7, S7: data that is gone ends sessions; tokens that begin anew are refused by whoever knows larger ones.
async fn a_restart_keeps_what_is_held() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let (a, b) = (connect(&address, "a").await?, connect(&address, "b").await?);
    let guard = a.lock("x")?.acquire().await?;
    let waiting = tokio::spawn({
        let lock = b.lock("x")?;
        async move { lock.acquire().await }
    });
    eventually("somebody waits", LIMIT, async || {
        Ok::<_, tooz_core::Error>(a.lock("x")?.holders().await?.waiters == Some(1))
    })
    .await?;
    etcd.server().kill();
    etcd.server().start_again()?;
    assert!(guard.is_held(), "a restart shorter than the ttl cost the lock");
    let token = guard.token();
    eventually("it is released", LIMIT, async || Ok::<_, tooz_core::Error>(guard_is_free(&a).await)).await?;
    guard.release().await?;
    let next = tokio::time::timeout(LIMIT, waiting).await???;
    assert!(next.is_held() && next.token() > token);
    a.close().await?;
    Ok(b.close().await?)
}

/// S2, L8: a server that stands still for less than a ttl takes nothing from anybody, neither the lock nor a place behind it.
async fn a_short_standstill_costs_nothing() -> Outcome {
    let etcd = Etcd::start()?;
    let url = format!("etcd://{}?ttl=9s", etcd.address());
    let (a, b) =
        (Coordinator::builder(&url, "a").connect().await?, Coordinator::builder(&url, "b").connect().await?);
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    let guard = a.lock("x")?.acquire().await?;
    let waiting = queued(&a, &b, "x").await?;
    let session = a.session_id();
    etcd.server().stop();
    tokio::time::sleep(Duration::from_secs(3)).await;
    etcd.server().resume();
    eventually("it answers", LIMIT, async || Ok::<_, tooz_core::Error>(guard_is_free(&a).await)).await?;
    assert!(guard.is_held() && !waiting.is_finished() && a.session_id() == session);
    assert_eq!(a.group("g")?.members().await?.len(), 1);
    guard.release().await?;
    assert!(tokio::time::timeout(LIMIT, waiting).await???.is_held());
    a.close().await?;
    Ok(b.close().await?)
}

/// L8: whoever waits keeps its place when its connection is cut, and has the lock when its turn comes.
async fn cut_off_while_it_waits() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    let (a, b) = (
        connect(&etcd.address().to_string(), "a").await?,
        connect_for("6s", &proxy.address().to_string(), "b").await?,
    );
    let watches = async |wanted| {
        eventually("as many watches", LIMIT, async || Ok::<_, String>(etcd.watches()? == wanted)).await
    };
    for away in [0, 300, 10_000] {
        watches(2).await?; // each session's own
        let guard = a.lock("x")?.acquire().await?;
        let token = guard.token();
        let waiting = queued(&a, &b, "x").await?;
        // The holder and the waiter watch two keys each: so the waiter has heard that it has a place.
        watches(6).await?;
        proxy.refuse();
        tokio::time::sleep(Duration::from_millis(away)).await;
        guard.release().await?;
        if away > 6000 {
            // Its session is over, and with it its place.
            let other = tokio::time::timeout(LIMIT, a.lock("x")?.acquire()).await??;
            assert!(!waiting.is_finished(), "granted to one that is cut off");
            other.release().await?;
        }
        proxy.heal();
        let next = tokio::time::timeout(LIMIT, waiting).await???;
        assert!(next.is_held() && next.token() > token);
        next.release().await?;
    }
    a.close().await?;
    Ok(b.close().await?)
}

/// L9: the reader that came first crashes; whoever reads with it goes on keeping writers and Python out.
async fn a_crashed_reader_leaves_the_others_their_lock() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let (b, c) = (connect(&address, "b").await?, connect(&address, "c").await?);
    let dead = Coordinator::builder(format!("etcd://{address}?ttl=6s"), "dead").manual_heart().rejoin(false);
    let dead = dead.connect().await?;
    let first = dead.lock("x")?.shared().acquire().await?;
    let second = b.lock("x")?.shared().acquire().await?;
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert!(!first.is_held() && second.is_held());
    assert_eq!(c.lock("x")?.holders().await?.holders.len(), 1, "the dead one is still there");
    assert!(c.lock("x")?.try_acquire().await?.is_none(), "a writer beside a reader");
    // Python takes a lock by creating this key.
    let pythons = etcd.ask(|mut client| async move { client.get("/tooz/locksx", None).await })?;
    assert_eq!(pythons.kvs().len(), 1, "Python would be let in");
    second.release().await?;
    assert!(tokio::time::timeout(LIMIT, c.lock("x")?.acquire()).await??.is_held());
    b.close().await?;
    Ok(c.close().await?)
}

/// L9, S6: whose sessions live longer than those of others read beside them, as long as the key for Python does not go
/// between two of their beats; who might lose its share by that is told what to do.
async fn readers_of_unlike_ttls() -> Outcome {
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let short =
        Coordinator::builder(format!("etcd://{address}?ttl=2s"), "short").manual_heart().rejoin(false);
    let (short, long) = (short.connect().await?, connect_for("28s", &address, "long").await?);
    let longer = connect_for("60s", &address, "longer").await?;
    let first = short.lock("x")?.shared().acquire().await?;
    let second = long.lock("x")?.shared().acquire().await?;
    let error = longer.lock("x")?.shared().acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("at most 30s") && error.to_string().contains("60s"), "{error}");
    eventually("who was refused waits no more", LIMIT, async || {
        Ok::<_, tooz_core::Error>(long.lock("x")?.holders().await?.waiters == Some(0))
    })
    .await?;
    // The first one's session is over long before the other's next beat.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!first.is_held() && second.is_held());
    let pythons = etcd.ask(|mut client| async move { client.get("/tooz/locksx", None).await })?;
    assert_eq!(pythons.kvs().len(), 1, "Python would be let in");
    second.release().await?;
    // The other way round nobody is in anybody's way.
    let first = longer.lock("x")?.shared().acquire().await?;
    let second = long.lock("x")?.shared().acquire().await?;
    first.release().await?;
    second.release().await?;
    longer.close().await?;
    Ok(long.close().await?)
}

/// Waits for a lock in a task of its own, and until it stands in the queue alone.
async fn queued(
    eye: &Coordinator,
    c: &Coordinator,
    name: &str,
) -> Result<tokio::task::JoinHandle<tooz_core::Result<tooz_core::LockGuard>>, Box<dyn std::error::Error>> {
    let lock = c.lock(name)?;
    let waiting = tokio::spawn(async move { lock.acquire().await });
    eventually("somebody waits", LIMIT, async || {
        Ok::<_, tooz_core::Error>(eye.lock(name)?.holders().await?.waiters == Some(1))
    })
    .await?;
    Ok(waiting)
}

/// Whether the server answers again.
async fn guard_is_free(c: &Coordinator) -> bool {
    c.groups().await.is_ok()
}

/// S1: users and passwords; what is wrong with them is said without showing them.
async fn users_and_passwords() -> Outcome {
    let etcd = Etcd::start()?;
    etcd.ask(|mut client| async move {
        client.role_add("root").await?;
        client.user_add("root", "s3cret", None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await.map(|_| ())
    })?;
    let url = |user: &str| format!("etcd://{user}{}?ttl=6s", etcd.address());
    for wrong in ["", "root:wr0ng@", "nobody:s3cret@"] {
        let error = Coordinator::builder(url(wrong), "a").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error} {error:?}").contains("wr0ng"), "{error:?}");
    }
    let a = Coordinator::builder(url("root:s3cret@"), "a").connect().await?;
    let guard = a.lock("x")?.acquire().await?;
    a.group("g")?.join_or_create(Capabilities::none()).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(guard.is_held(), "beats are not authenticated");
    guard.release().await?;
    Ok(a.close().await?)
}

/// S13: a user with no more than the role that the README names for a view sees everything, and what writes is `Denied`.
async fn a_user_who_may_only_read_looks() -> Outcome {
    use etcd_client::{Permission, PermissionType};
    let etcd = Etcd::start()?;
    etcd.ask(|mut client| async move {
        client.role_add("root").await?;
        client.user_add("root", "s3cret", None).await?;
        client.user_grant_role("root", "root").await?;
        client.role_add("looking").await?;
        for prefix in ["%tooz/tooz/", "tooz/groups/", "/tooz/locks"] {
            let permission = Permission::new(PermissionType::Read, prefix).with_prefix();
            client.role_grant_permission("looking", permission).await?;
        }
        client.user_add("eye", "s3cret", None).await?;
        client.user_grant_role("eye", "looking").await?;
        client.auth_enable().await.map(|_| ())
    })?;
    let url = |user: &str| format!("etcd://{user}:s3cret@{}", etcd.address());
    let a = Coordinator::builder(url("root"), "a").connect().await?;
    let reader = || Coordinator::builder(url("eye"), "eye");
    sees_everything(&a, &reader().view().await?).await?;
    let error = reader().connect().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && !error.is_indeterminate(), "{error:?}");
    Ok(a.close().await?)
}

/// S13: where nothing can be written any more, what stands can be looked at.
async fn a_full_server_can_be_looked_at() -> Outcome {
    use etcd_client::{AlarmAction, AlarmType};
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let a = connect(&address, "a").await?;
    a.group("g")?.create().await?;
    let guard = a.lock("y")?.acquire().await?;
    etcd.ask(|mut client| async move {
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.map(|_| ())
    })?;
    assert_eq!(connect(&address, "eye").await.unwrap_err().kind(), ErrorKind::Unavailable);
    let viewer = Coordinator::builder(format!("etcd://{address}"), "eye").view().await?;
    assert_eq!(viewer.groups().await?.len(), 1);
    assert!(viewer.members("g").await?.is_empty());
    assert_eq!(viewer.holders("y").await?.holders[0].token, Some(guard.token()));
    let mut watch = viewer.watch("g").await?;
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(_)))));
    etcd.ask(|mut client| async move {
        client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.map(|_| ())
    })?;
    viewer.close().await?;
    guard.release().await?;
    Ok(a.close().await?)
}

/// What `a` does is seen by a view.
async fn sees_everything(a: &Coordinator, viewer: &Viewer) -> Outcome {
    let group = a.group("g")?;
    group.join_or_create(Capabilities::none()).await?;
    let guard = a.lock("x")?.acquire().await?;
    assert_eq!(viewer.groups().await?, [group.id().clone()]);
    assert_eq!(viewer.members("g").await?.len(), 1);
    assert_eq!(viewer.holders("x").await?.holders[0].token, Some(guard.token()));
    let (mut watch, mut observer) = (viewer.watch("g").await?, viewer.observe("g").await?);
    assert!(matches!(watch.next().await, Some(Ok(GroupEvent::Snapshot(all))) if all.len() == 1));
    assert!(matches!(observer.next().await, Some(Ok(None))));
    group.leave().await?;
    let left = tokio::time::timeout(LIMIT, watch.next()).await?;
    assert!(matches!(left, Some(Ok(GroupEvent::Left(..)))), "{left:?}");
    let led = a.election("g")?.campaign().await?;
    let leader = tokio::time::timeout(LIMIT, observer.next()).await?.ok_or("it ended")??;
    assert_eq!(leader.and_then(|leader| leader.term), Some(led.term()));
    led.resign().await?;
    guard.release().await?;
    Ok(viewer.close().await?)
}

/// X3, S5: no session loses anything because a user was added.
async fn users_that_change_cost_nothing() -> Outcome {
    users_change(Etcd::start()?).await
}

/// X3, S5: the same where tokens are signed and name the revision of the users, so that each change makes all tokens old
/// (etcd-io/etcd#13300).
async fn users_that_change_under_signed_tokens_cost_nothing() -> Outcome {
    let files = tempfile::tempdir()?;
    make_certificates(files.path())?;
    let (key, certificate) = (files.path().join("server.key"), files.path().join("server.pem"));
    let tokens =
        format!("jwt,pub-key={},priv-key={},sign-method=ES256,ttl=10m", certificate.display(), key.display());
    users_change(Etcd::start_with(&["--auth-token", &tokens])?).await
}

async fn users_change(etcd: Etcd) -> Outcome {
    etcd.ask(|mut client| async move {
        client.role_add("root").await?;
        client.user_add("root", "s3cret", None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await.map(|_| ())
    })?;
    let add_user = async |name: String| {
        let options = etcd_client::ConnectOptions::new().with_user("root", "s3cret");
        let address = format!("http://{}", etcd.address());
        let mut admin = etcd_client::Client::connect([address], Some(options)).await?;
        admin.user_add(name, "x", None).await.map(|_| ())
    };
    let url = format!("etcd://root:s3cret@{}?ttl=6s", etcd.address());
    let (a, b) =
        (Coordinator::builder(&url, "a").connect().await?, Coordinator::builder(&url, "b").connect().await?);
    let group = a.group("g")?;
    group.join_or_create(Capabilities::none()).await?;
    let mut watch = b.group("g")?.watch().await?;
    watch.next().await.ok_or("no snapshot")??;
    let (session, others) = (a.session_id(), b.session_id());
    let mut guard = a.lock("x")?.acquire().await?;
    for round in 0..3 {
        let lock = b.lock("x")?;
        let waiting = tokio::spawn(async move { lock.acquire().await });
        eventually("it waits", LIMIT, async || {
            Ok::<_, tooz_core::Error>(a.lock("x")?.holders().await?.waiters == Some(1))
        })
        .await?;
        add_user(format!("user{round}")).await?;
        // What is read, written, prolonged and told from now on has another token.
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(guard.is_held(), "lost because a user was added");
        group.update_capabilities(Capabilities::new(&round)?).await?;
        let told = tokio::time::timeout(LIMIT, watch.next()).await?.ok_or("the watch ended")??;
        assert!(matches!(told, GroupEvent::Updated(_) | GroupEvent::Resync(_)), "{told:?}");
        guard.release().await?;
        let next = tokio::time::timeout(LIMIT, waiting).await???;
        next.release().await?;
        guard = a.lock("x")?.acquire().await?;
    }
    assert_eq!((a.session_id(), b.session_id()), (session, others), "a session was lost");
    guard.release().await?;
    a.close().await?;
    Ok(b.close().await?)
}

/// W7: all of them in transactions of a hundred, each with a transaction for a group inside.
async fn a_close_says_that_it_leaves_more_groups_than_one_transaction_holds() -> Outcome {
    const GROUPS: usize = 150;
    let etcd = Etcd::start()?;
    let address = etcd.address().to_string();
    let eye = connect(&address, "eye").await?;
    // On a machine that stands still a close has no time for it; then it is tried again.
    for _ in 0..5 {
        let a = connect(&address, "a").await?;
        for n in 0..GROUPS {
            a.group(format!("g{n}"))?.join_or_create(Capabilities::none()).await?;
        }
        let mut watches = Vec::new();
        for n in 0..GROUPS {
            let mut watch = eye.group(format!("g{n}"))?.watch().await?;
            watch.next().await;
            watches.push(watch);
        }
        a.close().await?;
        let mut left = 0;
        for watch in &mut watches {
            let event = within("the leave", LIMIT, watch.next()).await?.ok_or("the watch ended")??;
            left += usize::from(matches!(event, GroupEvent::Left(_, Departure::Left)));
        }
        if left == GROUPS {
            return Ok(eye.close().await?);
        }
    }
    Err("no close told every group that it leaves".into())
}

/// The README's figures: what each operation costs on the caller's path.
async fn round_trips() -> Outcome {
    let etcd = Etcd::start()?;
    let proxy = Proxy::start(etcd.address())?;
    proxy.count_only(counts);
    // Beats by hand, so that none comes between.
    let a = Coordinator::builder(format!("etcd://{}?ttl=60s", proxy.address()), "a").manual_heart();
    let a = a.connect().await?;
    a.lock("warm")?.acquire().await?.release().await?;
    macro_rules! costs {
        ($trips:literal, $what:expr) => {{
            let before = proxy.round_trips();
            let done = $what;
            assert_eq!(proxy.round_trips() - before, $trips, stringify!($what));
            done
        }};
    }
    let guard = costs!(1, a.lock("x")?.acquire().await?);
    costs!(1, a.lock("x")?.holders().await?);
    costs!(1, guard.release().await?);
    let group = a.group("g")?;
    costs!(1, group.create().await?);
    costs!(1, group.join(Capabilities::none()).await?);
    costs!(1, group.members().await?);
    costs!(1, group.update_capabilities(Capabilities::new("x")?).await?);
    let _guards = (a.lock("y")?.acquire().await?, a.lock("z")?.acquire().await?);
    costs!(1, a.heartbeat().await?);
    costs!(1, group.leave().await?);
    costs!(1, a.groups().await?);
    Ok(a.close().await?)
}

/// L1, S6: a beat goes the way of a write. A transaction that only reads may be answered from the past, and then proves
/// nothing (etcd before 3.4.42 and 3.5.28).
async fn a_beat_is_written() -> Outcome {
    const WRITES: &str = "etcd_server_proposals_applied_total";
    let etcd = Etcd::start()?;
    let a = Coordinator::builder(format!("etcd://{}?ttl=60s", etcd.address()), "a").manual_heart();
    let a = a.connect().await?;
    let guard = a.lock("x")?.acquire().await?;
    let before: f64 = etcd.metric(WRITES)?;
    for _ in 0..20 {
        a.heartbeat().await?;
    }
    let after: f64 = etcd.metric(WRITES)?;
    // The session itself writes little else meanwhile: the task that watches a new grant proves it once.
    assert!(after >= before + 20.0, "{before} writes before twenty beats, {after} after");
    guard.release().await?;
    Ok(a.close().await?)
}
