//! What a memcached does for those who ask again and again, by its statistics.

use tooz_servers::memcached::Memcached;

struct Count {
    looks: u64,
    stores: u64,
}

impl Count {
    fn now(memcached: &Memcached) -> Self {
        let number = |name: &str| memcached.statistic(name).unwrap();
        Self { looks: number("cmd_get"), stores: number("cmd_set") }
    }
}

/// Counts from now on; what it returns says what so many turns cost.
pub(super) fn begin(memcached: &Memcached) -> impl FnOnce(usize) -> String + use<'_> {
    let before = Count::now(memcached);
    move |turns| {
        let now = Count::now(memcached);
        let (looks, stores) = (now.looks - before.looks, now.stores - before.stores);
        format!("{looks} looks, {stores} stores for {turns} turns")
    }
}
