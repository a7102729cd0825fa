//! What an etcd does for a queue of waiters, by its metrics.

use tooz_servers::etcd::Etcd;

struct Count {
    transactions: f64,
    events: f64,
}

impl Count {
    fn now(etcd: &Etcd) -> Self {
        let watch = |way: &str| {
            let labels =
                "{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}";
            etcd.metric::<f64>(&format!("grpc_server_msg_{way}_total{labels}")).unwrap()
        };
        let labels = "{grpc_method=\"Txn\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
        Self {
            transactions: etcd.metric(&format!("grpc_server_started_total{labels}")).unwrap(),
            // Each order to begin or to end a watch has one answer; the rest is news.
            events: watch("sent") - watch("received"),
        }
    }
}

/// Counts from now on; what it returns asserts that so many turns cost about one message each.
#[expect(clippy::cast_precision_loss)] // counts of thousands
pub(super) fn begin(etcd: &Etcd) -> impl FnOnce(usize) -> String + use<'_> {
    let before = Count::now(etcd);
    move |turns| {
        let now = Count::now(etcd);
        let (events, transactions) = (now.events - before.events, now.transactions - before.transactions);
        // The first hears of the release and takes the lock; by that the second moves up to watch it.
        assert!(events <= 2.5 * turns as f64, "{events} messages of watches for {turns} turns");
        format!("{events} messages of watches, {transactions} transactions")
    }
}
