//! The suite itself: that it covers the contract, notices what is wrong, and simulates the same again.
#![allow(clippy::unwrap_used)] // a test says by panicking that something is wrong

macro_rules! with {
    ($($feature:literal)* => $module:ident) => {
        #[cfg(all($(feature = $feature),*))]
        mod $module;
        #[cfg(not(all($(feature = $feature),*)))]
        #[test]
        #[ignore = concat!("left out without the features", $(" ", $feature),*)]
        fn $module() {
            panic!("it is left out");
        }
    };
}

mod history;

// It compares what is written of every kind of server.
with!("redis-tls" "etcd" "memcached" => backends);
// It compares the golden table of the targets.
with!("memory" "sqlite" => contract);
with!("memory" => faults);
// Each case has to run on one of them.
with!("memory" "sqlite" "file" => incidents);
with!("memory" => simulation);
with!("memory" "sqlite" "file" => sweep);
