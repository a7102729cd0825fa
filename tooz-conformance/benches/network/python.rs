//! The same operations with Python tooz 9.1 on the same server.

use std::path::Path;
use std::process::Command;

const SCRIPT: &str = r#"
import statistics, sys, threading, time
from tooz import coordination
scheme, address, group = sys.argv[1:]
def connect(name):
    c = coordination.get_coordinator(scheme + "://" + address, name.encode())
    c.start(start_heart=False)
    return c
a, b = connect("python-a"), connect("python-b")
def timed(work):
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e6
def say(what, microseconds):
    print("Python: %-38s %10.1f µs" % (what, microseconds))
lock = a.get_lock(b"python")
def pair():
    lock.acquire(); lock.release()
say("acquire + release", statistics.median(timed(pair) for _ in range(200)))
other = b.get_lock(b"python")
waits = []
for _ in range(10):
    lock.acquire()
    had = []
    def wait():
        other.acquire(); had.append(time.perf_counter()); other.release()
    waiting = threading.Thread(target=wait)
    waiting.start(); time.sleep(0.2)
    begin = time.perf_counter(); lock.release(); waiting.join()
    waits.append((had[0] - begin) * 1e6)
say("hand-over to a waiter", statistics.median(waits))
say("members of a group", statistics.median(timed(lambda: a.get_members(group.encode()).get()) for _ in range(5)))
held = [a.get_lock(b"held-%d" % n) for n in range(1000)]
for one in held: one.acquire()
say("heartbeat with 1000 locks held", statistics.median(timed(a.heartbeat) for _ in range(3)))
"#;

/// What it printed, or why it did not.
pub(crate) fn measure(driver: &str, address: &str) -> Vec<String> {
    let scheme = if driver == "etcd" { "etcd3+http" } else { driver };
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-tooz-9.1.0/bin/python");
    if !python.exists() {
        return vec!["Python tooz is not installed: cargo test -p tooz-conformance --test lab python".into()];
    }
    match Command::new(python).args(["-c", SCRIPT, scheme, address, "many"]).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        Ok(output) => {
            vec![format!(
                "Python failed: {}",
                String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ")
            )]
        }
        Err(error) => vec![format!("Python cannot be run: {error}")],
    }
}
