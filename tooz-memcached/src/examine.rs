//! What a look at the server finds, for operators: its version, memory, evictions, connections, clock and age.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tooz_core::driver::{Connect, Examining, SessionId};
use tooz_core::{Finding, Result, Severity};

use crate::client::Client;
use crate::config::Config;
use crate::connection::command::{Batch, Look, Store};
use crate::connection::greeting::{Greeting, time};
use crate::lock::epoch::Origin;

/// Times are the server's, and tokens begin with them when data is lost: a clock so far off misleads.
const CLOCK_OFF: Duration = Duration::from_secs(5);
/// A limit is nearly reached from this part of it on, in per cent.
const NEARLY: u64 = 90;
/// A server that was started so shortly before lost all locks then.
const YOUNG: Duration = Duration::from_hours(1);

/// Looks at the server that the URL names.
pub(crate) fn examine(request: Connect) -> Examining {
    Box::pin(async move {
        let Connect { url, limits, context, .. } = request;
        let config = Config::read(&url, limits)?;
        let client = Client::connect(config, context).await?;
        let found = look(&client).await;
        client.close();
        found
    })
}

async fn look(client: &Client) -> Result<Vec<Finding>> {
    let link = client.link(0, client.config.limits.operation_timeout).await?;
    let greeting = &link.greeting;
    let mut found = vec![version(greeting, &client.config.shown()), age(greeting)];
    found.push(memory(greeting));
    found.push(evictions(greeting));
    found.push(connections(greeting));
    found.push(clock(greeting.stat("time"), client.context.clock.wall()));
    let refused = writing(client).await?;
    // No session can begin where writes are refused, and connecting says so.
    let counts = |unused: &Finding| refused.is_none() || unused.severity() > Severity::Good;
    found.extend(unused(client).await?.filter(counts));
    found.extend(refused);
    Ok(found)
}

fn version(greeting: &Greeting, shown: &str) -> Finding {
    Finding::good("version", format!("memcached {} at {shown}", greeting.version))
}

fn age(greeting: &Greeting) -> Finding {
    let uptime = Duration::from_secs(greeting.stat("uptime"));
    let what =
        format!("the server was started {uptime:?} ago; a start ends every session and loses every group");
    if uptime >= YOUNG {
        return Finding::good("age", what);
    }
    Finding::warning(
        "age",
        what,
        "if nobody started it again on purpose, look at its log and at the memory of its machine",
    )
}

fn memory(greeting: &Greeting) -> Finding {
    let (used, most) = (greeting.stat("bytes"), greeting.stat("limit_maxbytes"));
    let what = format!("{used} of {most} bytes are used");
    if most == 0 || used < most / 100 * NEARLY {
        return Finding::good("memory", what);
    }
    let advice = "give it more memory (option -m), or move other data to a server of its own: what is evicted is lost, also \
                  locks that are held";
    Finding::warning("memory", what, advice)
}

fn evictions(greeting: &Greeting) -> Finding {
    let evicted = greeting.stat("evictions");
    if evicted == 0 {
        return Finding::good("evictions", "nothing was evicted since the server was started");
    }
    let what = format!(
        "{evicted} items were evicted since the server was started; a lock or a session may be among the next"
    );
    let advice = "give tooz a memcached of its own, with enough memory (option -m); with -M it refuses to store instead of \
                  evicting";
    Finding::warning("evictions", what, advice)
}

fn connections(greeting: &Greeting) -> Finding {
    let (used, most) = (greeting.stat("curr_connections"), greeting.stat("max_connections"));
    let refused = greeting.stat("rejected_connections") + greeting.stat("listen_disabled_num");
    let what = format!("{used} of {most} connections are used, and {refused} were refused or had to wait");
    if most == 0 || (used < most / 100 * NEARLY && refused == 0) {
        return Finding::good("connections", what);
    }
    Finding::warning("connections", what, "allow more (option -c); each coordinator takes one")
}

fn clock(server: u64, ours: SystemTime) -> Finding {
    let server = time(server).unwrap_or(UNIX_EPOCH);
    let apart = server.duration_since(ours).unwrap_or_else(|error| error.duration());
    let what = format!("the server's clock and ours are {} s apart", apart.as_secs());
    if apart < CLOCK_OFF {
        return Finding::good("clock", what);
    }
    Finding::warning("clock", what, "set both by NTP; times of joining and locking are the server's")
}

/// Why the server refuses to store. The command is a compare-and-swap of an item that does not exist.
async fn writing(client: &Client) -> Result<Option<Finding>> {
    let key = client.keys.session(SessionId(client.context.entropy.id()));
    let mut batch = Batch::new();
    batch.cas(Store::bytes(&key, 1, b"x"), 1);
    let refused = client.ask(&batch).await?.answers.stored().err();
    Ok(refused.map(|error| {
        let advice = "give it more memory (option -m), remove other data, or let it evict (no -M)";
        Finding::bad("writing", error.context(), advice)
    }))
}

/// Whether no lock was ever granted in this namespace.
async fn unused(client: &Client) -> Result<Option<Finding>> {
    let mut batch = Batch::new();
    batch.get(&client.keys.epoch(), Look::Whole);
    if let Some(item) = client.ask(&batch).await?.answers.item()? {
        Origin::read(client, &item)?;
        return Ok(None);
    }
    let shown = client.keys.shown();
    let what = format!("no lock was ever granted in {shown}; the first session writes the stamp of its data");
    Ok(Some(Finding::good(Finding::UNUSED, what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_named() {
        let ours = UNIX_EPOCH + Duration::from_secs(1_000);
        assert_eq!(clock(1_002, ours).severity(), Severity::Good);
        for server in [900, 1_100] {
            let found = clock(server, ours);
            assert_eq!(found.severity(), Severity::Warning);
            assert!(found.what().contains("100 s"), "{found:?}");
        }
    }
}
