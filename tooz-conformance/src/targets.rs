//! The targets of this workspace's own drivers.

use crate::target::Target;

/// Every target of the drivers that are linked through this crate's features.
pub fn all() -> Vec<Target> {
    #[allow(unused_mut)] // without any feature there is none
    let mut targets = Vec::new();
    #[cfg(feature = "memory")]
    targets.extend([memory::without_ttl(), memory::with_ttl("")]);
    #[cfg(feature = "sqlite")]
    targets.push(sqlite::target());
    #[cfg(feature = "file")]
    targets.extend([file::target(), file::portable()]);
    #[cfg(feature = "redis")]
    targets.extend([redis::target(), redis::with_sentinel(), redis::with_cluster()]);
    #[cfg(feature = "redis-tls")]
    targets.push(redis::with_tls());
    #[cfg(feature = "etcd")]
    targets.extend(etcd::targets());
    #[cfg(feature = "memcached")]
    targets.push(memcached::target());
    given::replace(&mut targets);
    targets
}

/// `memory://`, without and with a ttl.
#[cfg(feature = "memory")]
pub mod memory {
    use std::time::Duration;

    use tooz_memory::{Cut, Operation, Outcome};

    use crate::kit::{Call, Fate, Kit};
    use crate::target::{Target, TestBackend, Time};
    use crate::tools::random;

    /// Sessions that live as long as their process, on the real clock: many threads, no beats.
    pub fn without_ttl() -> Target {
        Target::new("memory", |_| Ok(TestBackend::new(format!("memory://{:032x}", random()))))
            .kit(|place| Box::new(Backend::of(place)))
            .virtual_clock(false)
    }

    /// The fault of a machine on which the members' clocks stand still while it is suspended. The driver knows
    /// nothing of it.
    pub const CLOCKS_STOP: &str = "clocks-stop";

    /// Sessions with a ttl, on the virtual clock; `fault` is empty, one of the driver's deliberate faults, or
    /// [`CLOCKS_STOP`].
    pub fn with_ttl(fault: &str) -> Target {
        if fault == CLOCKS_STOP {
            return with_ttl("").clocks_stop();
        }
        let fault = if fault.is_empty() { String::new() } else { format!("&fault={fault}") };
        Target::new("memory+ttl", move |wish| {
            // On the real clock somebody waits for it.
            let ttl = if wish.time == Time::Virtual { "15s" } else { "1s" };
            Ok(TestBackend::new(format!("memory://{:032x}?ttl={ttl}{fault}", random())))
        })
        .ttl()
        .kit(|place| Box::new(Backend::of(place)))
        .virtual_clock(true)
    }

    #[derive(Debug)]
    struct Backend {
        url: String,
    }

    impl Backend {
        fn of(place: &TestBackend) -> Self {
            // The kit of a faulty backend is the same as that of a sound one.
            Self { url: place.url().split('?').next().unwrap_or_default().to_owned() }
        }

        fn act(&self, act: impl FnOnce(tooz_memory::Kit)) {
            self.at("tooz", act);
        }

        fn at(&self, namespace: &str, act: impl FnOnce(tooz_memory::Kit)) {
            match tooz_memory::Kit::of(&format!("{}?namespace={namespace}", self.url)) {
                Ok(kit) => act(kit),
                Err(error) => panic!("the memory driver refuses its own URL: {error}"),
            }
        }

        fn count<T>(&self, count: impl FnOnce(tooz_memory::Kit) -> T) -> T {
            match tooz_memory::Kit::of(&self.url) {
                Ok(kit) => count(kit),
                Err(error) => panic!("the memory driver refuses its own URL: {error}"),
            }
        }
    }

    impl Kit for Backend {
        fn expire(&self, _: &str, member: &str) {
            self.act(|kit| assert!(kit.expire(member) > 0, "{member} has no session to expire"));
        }

        fn cut(&self, _: &str, member: &str) {
            self.act(|kit| kit.cut_off(member, Cut::Hang));
        }

        fn heal(&self, _: &str, member: &str) {
            self.act(|kit| kit.heal(member));
        }

        fn pause(&self) {
            self.act(|kit| kit.pause());
        }

        fn resume(&self) {
            self.act(|kit| kit.resume());
        }

        fn next(&self, member: &str, call: Call, times: u64, fate: Fate) {
            let operation = match call {
                Call::Request => Operation::Request,
                Call::Withdraw => Operation::Withdraw,
                Call::Release => Operation::Release,
                Call::Join => Operation::Join,
                Call::Create => Operation::Create,
                Call::Renew => Operation::Renew,
            };
            let outcome = match fate {
                Fate::Fails => Outcome::Fail,
                Fate::AnswerLost => Outcome::Indeterminate,
                Fate::RequestLost => Outcome::Lost,
            };
            self.act(|kit| kit.next_of(member, operation, times, outcome));
        }

        fn slow(&self, by: Duration) {
            self.act(|kit| kit.delay(by));
        }

        fn evict(&self, namespace: &str, group: &str, member: &str) {
            self.at(namespace, |kit| assert!(kit.evict(group, member), "{member} has no record in {group}"));
        }

        fn lose_data(&self) {
            self.act(|kit| kit.lose_data());
        }

        fn vanish(&self, namespace: &str, lock: &str) {
            self.at(namespace, |kit| assert!(kit.forget_lock(lock) > 0, "nobody holds {lock}"));
        }

        fn round_trips(&self) -> u64 {
            self.count(|kit| kit.all_calls() - kit.calls(Operation::Turn))
        }

        fn watches(&self) -> usize {
            self.count(|kit| kit.watchers())
        }
    }
}

/// `sqlite://` in a temporary directory.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    use tooz_sqlite as _;

    use crate::target::{Target, TestBackend};

    /// A database of its own for each case.
    pub fn target() -> Target {
        Target::new("sqlite", |_| {
            let directory =
                tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
            let url = format!("sqlite://{}/tooz.db", directory.path().display());
            Ok(TestBackend::new(url).files(directory.path()).keep(directory))
        })
    }
}

/// `file://` in a temporary directory, with either kind of lock.
#[cfg(feature = "file")]
pub mod file {
    use tooz_file as _;

    use crate::target::{Target, TestBackend};

    fn place(options: &str) -> Result<TestBackend, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let url = format!("file://{}{options}", directory.path().display());
        Ok(TestBackend::new(url).files(directory.path()).keep(directory))
    }

    /// The locks that Python sees, and changes pushed by the kernel.
    pub fn target() -> Target {
        Target::new("file", |_| place(""))
    }

    /// The standard library's locks, and polling.
    pub fn portable() -> Target {
        Target::new("file+portable", |_| place("?backend=portable"))
    }
}

#[cfg(feature = "etcd")]
pub mod etcd;
mod given;
pub use given::VARIABLES as GIVEN;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "redis")]
pub mod redis;
