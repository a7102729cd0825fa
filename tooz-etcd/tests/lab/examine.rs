//! What a look at an etcd finds that is not as it should be: alarms, silent members, wrong passwords.
#![allow(clippy::disallowed_methods)] // in real time, and a failure is one

use std::net::TcpListener;
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmType, Permission, PermissionType};
use tooz_core::{Characteristics, Coordinator, ErrorKind, Finding, Result, Severity};
use tooz_servers::cases;
use tooz_servers::etcd::{Cluster, Etcd};
use tooz_servers::lab::Case;

pub(crate) const CASES: &[(&str, Case)] = cases![
    what_is_lowered_is_explained,
    an_alarm_is_told_with_what_to_do_also_where_connecting_fails,
    looking_raises_no_alarm,
    silent_members_are_named_and_a_lost_majority_is_bad,
    a_majority_that_hangs_is_bad_in_time,
    endpoints_that_do_not_answer_are_named_in_time,
    nobody_there_and_a_wrong_password_are_errors_of_their_own,
];

async fn look(url: &str) -> Result<Vec<Finding>> {
    Coordinator::builder(url, "operator").examine().await
}

fn of<'a>(found: &'a [Finding], topic: &str) -> &'a Finding {
    found.iter().find(|finding| finding.topic() == topic).unwrap_or_else(|| panic!("no {topic}: {found:?}"))
}

fn hosts(cluster: &Cluster) -> String {
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
    format!("etcd://{}", hosts.join(","))
}

async fn what_is_lowered_is_explained() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "67108864"]).unwrap();
    let url = format!("etcd://{}", etcd.address());
    let found = look(&url).await.unwrap();
    assert!(of(&found, "version").what().starts_with("etcd 3."), "{found:?}");
    for topic in ["space", "clock"] {
        assert_eq!(of(&found, topic).severity(), Severity::Good, "{found:?}");
    }
    let alone = of(&found, "redundancy");
    assert_eq!(alone.severity(), Severity::Warning, "{alone:?}");
    assert!(alone.what().starts_with("members: 1, of which none may fail"), "{alone:?}");
    // Its quota is 64 MiB, which etcd before 3.6 does not tell.
    let quota = of(&found, "space").what();
    assert!(quota.contains("the quota is 64 MiB") || quota.contains("the quota is not known"), "{quota}");
    let coordinator = Coordinator::builder(&url, "m").connect().await.unwrap();
    let best = Characteristics::all() - Characteristics::NON_TIMEOUT_BASED;
    let explained = found.iter().fold(Characteristics::empty(), |all, finding| all | finding.lowered());
    assert_eq!(coordinator.characteristics(), best - explained);
    coordinator.close().await.unwrap();
}

async fn an_alarm_is_told_with_what_to_do_also_where_connecting_fails() {
    let etcd = Etcd::start().unwrap();
    let raise = |mut client: etcd_client::Client| async move {
        client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.map(|_| ())
    };
    etcd.ask(raise).unwrap();
    let url = format!("etcd://{}", etcd.address());
    let refused = Coordinator::builder(&url, "m").connect().await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let found = look(&url).await.unwrap();
    assert!(
        found.iter().all(|finding| finding.topic() != Finding::UNUSED),
        "no session could begin: {found:?}"
    );
    let alarm = of(&found, "alarm");
    assert_eq!(alarm.severity(), Severity::Bad);
    assert!(
        alarm.what().contains("NOSPACE") && alarm.advice().unwrap().contains("alarm disarm"),
        "{alarm:?}"
    );
}

/// A write that etcd has no room for raises an alarm, after which the whole cluster refuses every write.
async fn looking_raises_no_alarm() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "20000"]).unwrap();
    look(&format!("etcd://{}", etcd.address())).await.unwrap();
    let asked = etcd
        .ask(|mut client| async move { client.alarm(AlarmAction::Get, AlarmType::None, None).await })
        .unwrap();
    assert!(asked.alarms().is_empty(), "{asked:?}");
}

async fn silent_members_are_named_and_a_lost_majority_is_bad() {
    let cluster = Cluster::start().unwrap();
    let url = hosts(&cluster);
    assert_eq!(of(&look(&url).await.unwrap(), "members").severity(), Severity::Good);
    cluster.nodes()[2].server().kill();
    let found = look(&url).await.unwrap();
    let members = of(&found, "members");
    assert_eq!(members.severity(), Severity::Warning, "{members:?}");
    assert!(members.what().contains("n2") && members.what().contains("one more failure"), "{members:?}");
    // Whoever names one member only is told the same.
    let one = look(&format!("etcd://{}", cluster.nodes()[0].address())).await.unwrap();
    assert_eq!(of(&one, "members"), members);
    let gone = cluster.nodes()[2].address().to_string();
    assert!(of(&found, "endpoint").what().starts_with(&gone), "{found:?}");
    assert!(one.iter().all(|finding| finding.topic() != "endpoint"), "the URL names another one: {one:?}");
    cluster.nodes()[1].server().kill();
    let found = look(&url).await.unwrap();
    assert_eq!(of(&found, "members").severity(), Severity::Bad, "{found:?}");
}

async fn a_majority_that_hangs_is_bad_in_time() {
    let cluster = Cluster::start().unwrap();
    let hanging = &cluster.nodes()[1..];
    for node in hanging {
        node.server().stop();
    }
    let begun = Instant::now();
    let found = look(&hosts(&cluster)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(of(&found, "members").severity(), Severity::Bad, "{found:?}");
    let silent: Vec<_> = found.iter().filter(|finding| finding.topic() == "endpoint").collect();
    assert_eq!(silent.len(), 2, "{found:?}");
    for (finding, node) in silent.iter().zip(hanging) {
        assert!(finding.what().starts_with(&node.address().to_string()), "{finding:?}");
    }
}

async fn endpoints_that_do_not_answer_are_named_in_time() {
    let etcd = Etcd::start().unwrap();
    let dead = format!("127.0.0.1:{}", tooz_servers::free_port().unwrap());
    // They take connections and never answer.
    let listeners = [(); 6].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let hanging = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let url = format!("etcd://{},{dead},{}", hanging.join(","), etcd.address());
    let begun = Instant::now();
    let found = look(&url).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let silent: Vec<_> = found.iter().filter(|finding| finding.topic() == "endpoint").collect();
    assert_eq!(silent.len(), 7, "{found:?}");
    for (finding, endpoint) in silent.iter().zip(hanging.iter().chain([&dead])) {
        assert_eq!(finding.severity(), Severity::Warning, "{finding:?}");
        assert!(finding.what().starts_with(endpoint), "{finding:?}");
    }
    assert_eq!(of(&found, "redundancy").severity(), Severity::Warning, "only members count: {found:?}");
}

async fn nobody_there_and_a_wrong_password_are_errors_of_their_own() {
    let nobody = tooz_servers::free_port().unwrap();
    let error = look(&format!("etcd://127.0.0.1:{nobody}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let etcd = Etcd::start().unwrap();
    let protect = |mut client: etcd_client::Client| async move {
        client.role_add("root").await?;
        client.user_add("root", "s3cret", None).await?;
        client.user_grant_role("root", "root").await?;
        client.role_add("looking").await?;
        let all = Permission::new(PermissionType::Read, "").with_all_keys();
        client.role_grant_permission("looking", all).await?;
        client.user_add("eye", "s3cret", None).await?;
        client.user_grant_role("eye", "looking").await?;
        client.user_add("blind", "s3cret", None).await?;
        client.auth_enable().await.map(|_| ())
    };
    etcd.ask(protect).unwrap();
    let found = look(&format!("etcd://root:s3cret@{}", etcd.address())).await.unwrap();
    assert_eq!(of(&found, "space").severity(), Severity::Good, "{found:?}");
    let error = look(&format!("etcd://root:wr0ng@{}", etcd.address())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
    // Nothing is there yet, and a session could be opened there; not by a user who may only read.
    assert_eq!(of(&found, Finding::UNUSED).severity(), Severity::Good);
    let blind = look(&format!("etcd://blind:s3cret@{}", etcd.address())).await.unwrap();
    assert_eq!(of(&blind, Finding::UNUSED).severity(), Severity::Warning, "not known: {blind:?}");
    let url = format!("etcd://eye:s3cret@{}", etcd.address());
    let found = look(&url).await.unwrap();
    assert!(found.iter().all(|finding| finding.topic() != Finding::UNUSED), "{found:?}");
    let refused = Coordinator::builder(&url, "m").connect().await.map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
}
