//! What a Redis does for a queue of waiters: it reports each command that it executes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use tooz_servers::redis::Redis;

/// The last command of ours ends the report.
const LAST: &str = "the count is over";

#[derive(Default)]
struct Count {
    requests: usize,
    releases: usize,
    hand_overs: usize,
}

impl Count {
    fn read(stream: TcpStream) -> Self {
        let (request, release) =
            (tooz_redis::script_hash("request").unwrap(), tooz_redis::script_hash("release").unwrap());
        let mut count = Self::default();
        for line in BufReader::new(stream).split(b'\n') {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            if line.contains(LAST) {
                break;
            }
            let by_script = line.contains(" lua] ");
            count.requests += usize::from(!by_script && line.contains(request));
            count.releases += usize::from(!by_script && line.contains(release));
            count.hand_overs +=
                usize::from(by_script && line.contains("\"PUBLISH\"") && line.contains(" \"G "));
        }
        count
    }
}

/// Counts from now on; what it returns asserts that so many turns cost one message each.
pub(super) fn begin(redis: &Redis) -> impl FnOnce(usize) -> String + use<'_> {
    let mut stream = TcpStream::connect(redis.address()).unwrap();
    stream.write_all(b"MONITOR\r\n").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    let reader = std::thread::spawn(move || Count::read(stream));
    move |turns| {
        redis.command(&[b"ECHO", LAST.as_bytes()]).unwrap();
        let Count { requests, releases, hand_overs } = reader.join().unwrap();
        assert_eq!(hand_overs, turns, "one message each");
        format!("{hand_overs} messages, {releases} releases, {requests} other requests")
    }
}
