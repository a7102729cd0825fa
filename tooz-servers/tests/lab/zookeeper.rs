//! ZooKeeper, and the client and the proxy that the suite hurts it with.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use tooz_servers::zookeeper::{Ensemble, Mode, ZkClient, ZkError, Zookeeper, program, wire};
use tooz_servers::{Outcome, Proxy, cases, lab, poll};

const CASES: &[(&str, lab::Case)] = cases![
    what_is_written_is_found,
    everything_below_goes_at_one_moment,
    a_session_that_ends_takes_its_nodes_along,
    a_server_knows_each_password,
    a_clean_server_is_empty_without_sessions_and_watches,
    it_is_stopped_and_killed_with_its_data,
    a_throttled_request_is_refused_and_not_done,
    an_ensemble_outlives_its_leader,
];

pub(super) fn trials() -> Vec<lab::Trial> {
    lab::trials("zookeeper", &program(), CASES)
}

const SOON: Duration = Duration::from_secs(20);
const OFTEN: Duration = Duration::from_millis(5);

async fn what_is_written_is_found() -> Outcome {
    let server = Zookeeper::start_with(&[("maxSessionTimeout", "9000")])?;
    assert_eq!(server.four_letters("ruok")?, "imok");
    let settings = server.four_letters("conf")?;
    assert!(settings.contains("tickTime=500") && settings.contains("maxSessionTimeout=9000"), "{settings}");
    let mut client = ZkClient::connect(server.address())?;
    assert_eq!(client.create("/a", b"\0\xff", Mode::Persistent)?, "/a");
    assert_eq!(client.create("/a/b-", b"", Mode::PersistentSequential)?, "/a/b-0000000000");
    assert_eq!(client.create("/a/b-", b"", Mode::EphemeralSequential)?, "/a/b-0000000001");
    assert_eq!(client.create("/a", b"", Mode::Ephemeral).unwrap_err().code(), Some(wire::code::NODE_EXISTS));
    assert_eq!(client.delete("/a").unwrap_err().code(), Some(wire::code::NOT_EMPTY));
    let node = client.get("/a")?.unwrap();
    assert_eq!((&node.data[..], node.version, node.owner), (&b"\0\xff"[..], 0, 0));
    client.set("/a", b"new")?;
    assert_eq!(client.get("/a")?.unwrap().version, 1);
    assert_eq!(client.get("/a/b-0000000001")?.unwrap().owner, client.session());
    assert_eq!(client.get("/b")?, None);
    assert_eq!(client.set("/b", b"").unwrap_err().code(), Some(wire::code::NO_NODE));
    let mut names = client.children("/a")?;
    names.sort();
    assert_eq!(names, ["b-0000000000", "b-0000000001"]);
    assert_eq!(client.children("/b")?, Vec::<String>::new());
    client.delete("/a/b-0000000000")?;
    client.close()?;
    assert_eq!(server.tree()?, [("/a".to_owned(), b"new".to_vec())].into());
    Ok(())
}

async fn everything_below_goes_at_one_moment() -> Outcome {
    let server = Zookeeper::start()?;
    let mut client = ZkClient::connect(server.address())?;
    for path in ["/a", "/a/b", "/a/b/c", "/a/b-c", "/ab"] {
        client.create(path, b"", Mode::Persistent)?;
    }
    assert_eq!(client.delete_below("/a")?, 3);
    assert_eq!(server.tree()?.into_keys().collect::<Vec<_>>(), ["/a", "/ab"]);
    assert_eq!(client.delete_below("/a")?, 0);
    // Another writes all the while: what it wrote before the end is gone.
    let address = server.address();
    let writing = std::thread::spawn(move || {
        let mut writer = ZkClient::connect(address)?;
        for n in 0..200 {
            writer.create(&format!("/ab/{n}"), b"", Mode::Persistent)?;
        }
        writer.close()
    });
    let mut deleted = 0;
    while !writing.is_finished() {
        deleted += client.delete_below("/ab")?;
    }
    writing.join().unwrap()?;
    assert_eq!(deleted + client.delete_below("/ab")?, 200);
    Ok(client.close()?)
}

async fn a_session_that_ends_takes_its_nodes_along() -> Outcome {
    let server = Zookeeper::start()?;
    let mut client = ZkClient::connect(server.address())?;
    let mut other = ZkClient::connect(server.address())?;
    client.create("/of-the-client", b"", Mode::Ephemeral)?;
    other.create("/of-the-other", b"", Mode::Ephemeral)?;
    let owner = server.ask(|asker| asker.get("/of-the-client"))?.unwrap().owner;
    assert!(server.sessions()?.contains(&owner));
    assert!(server.end_session(owner)?);
    assert_eq!(server.tree()?.into_keys().collect::<Vec<_>>(), ["/of-the-other"]);
    assert!(!server.sessions()?.contains(&owner));
    let hung_up = client.get("/of-the-other").unwrap_err();
    assert!(matches!(hung_up, ZkError::Silent(_)), "{hung_up}");
    assert!(!server.end_session(owner)?, "it was ended before");
    other.set("/of-the-other", b"lives")?;
    Ok(other.close()?)
}

async fn a_server_knows_each_password() -> Outcome {
    let server = Zookeeper::start()?;
    for _ in 0..3 {
        let client = ZkClient::connect(server.address())?;
        assert_eq!(client.password(), wire::password(client.session()));
        client.close()?;
    }
    Ok(())
}

async fn a_clean_server_is_empty_without_sessions_and_watches() -> Outcome {
    let server = Zookeeper::start()?;
    for n in 0..5 {
        let mut client = ZkClient::connect(server.address())?;
        client.create("/a", b"", Mode::Persistent)?;
        client.create("/a/b", b"", Mode::Ephemeral)?;
        client.watch("/a/b")?;
        assert_eq!(server.watches()?, 1);
        if n % 2 == 0 {
            server.server().stop();
        }
        drop(client);
        assert!(server.clean());
        assert_eq!((server.tree()?.len(), server.sessions()?, server.watches()?), (0, vec![], 0));
    }
    Ok(())
}

async fn it_is_stopped_and_killed_with_its_data() -> Outcome {
    let server = Zookeeper::start()?;
    server.ask(|client| client.create("/kept", b"x", Mode::Persistent))?;
    server.server().stop();
    let mut stream = TcpStream::connect(server.address())?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(b"ruok")?;
    let mut answer = [0; 4];
    assert!(stream.read_exact(&mut answer).is_err(), "a stopped server answers");
    server.server().resume();
    stream.set_read_timeout(Some(SOON))?;
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"imok");
    server.server().start_again()?;
    assert_eq!(server.tree()?, [("/kept".to_owned(), b"x".to_vec())].into());
    Ok(())
}

async fn a_throttled_request_is_refused_and_not_done() -> Outcome {
    let server = Zookeeper::start()?;
    let proxy = Proxy::start(server.address())?;
    let throttled = Arc::new(wire::Throttled::default());
    let answers = Arc::clone(&throttled);
    proxy.edit_replies(move |bytes| answers.answers(bytes));
    proxy.count_only(wire::counts);
    let asked = |request: &wire::Request<'_>| request.operations.iter().any(|one| one.path == b"/a");
    let mut client = ZkClient::connect(proxy.address())?;
    proxy.replace_requests(
        2,
        move |bytes| wire::requests(bytes).any(|request| asked(&request)),
        move |bytes| throttled.requests(bytes, asked),
    );
    client.create("/b", b"", Mode::Persistent)?;
    for _ in 0..2 {
        let error = client.create("/a", b"", Mode::Persistent).unwrap_err();
        assert_eq!(error.code(), Some(wire::code::THROTTLED), "{error}");
    }
    assert_eq!(client.get("/a")?, None);
    client.create("/a", b"", Mode::Persistent)?;
    // The greeting, four that create, and one that reads.
    assert_eq!(proxy.round_trips(), 6);
    Ok(client.close()?)
}

async fn an_ensemble_outlives_its_leader() -> Outcome {
    let ensemble = Ensemble::start()?;
    assert_eq!(ensemble.addresses().split(',').count(), 3);
    let leader = ensemble.leader()?;
    let old = leader.address();
    let follower = ensemble.nodes().iter().find(|node| node.address() != old).unwrap();
    follower.ask(|client| client.create("/kept", b"", Mode::Persistent))?;
    leader.server().kill();
    poll("another leads", OFTEN, SOON, || ensemble.leader().is_ok_and(|leader| leader.address() != old))?;
    let writes = || follower.ask(|client| client.create("/n-", b"", Mode::PersistentSequential)).is_ok();
    poll("those who are left write", OFTEN, SOON, writes)?;
    leader.server().start_again()?;
    // What the others wrote while it was dead comes to it.
    let caught_up = || leader.tree().is_ok_and(|tree| tree.len() >= 2 && tree.contains_key("/kept"));
    poll("it has caught up", OFTEN, SOON, caught_up)?;
    assert!(ensemble.clean());
    poll("it is empty", OFTEN, SOON, || leader.tree().is_ok_and(|tree| tree.is_empty()))?;
    Ok(())
}
