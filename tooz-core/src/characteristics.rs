//! What a driver promises. Each flag is proven by a case of the conformance suite.

use std::fmt;

bitflags::bitflags! {
    /// Promises of a driver, known from the URL before connecting and lowered by what the server says.
    ///
    /// The first ten are those of Python tooz. Exclusive locks, elections, groups, watches, `holders`, `break`
    /// and fencing tokens are no characteristics: every driver has them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Characteristics: u32 {
        /// Coordinators in several threads of one process see each other.
        const DISTRIBUTED_ACROSS_THREADS = 1;
        /// Coordinators in several processes of one host see each other.
        const DISTRIBUTED_ACROSS_PROCESSES = 1 << 1;
        /// Coordinators on several hosts see each other.
        const DISTRIBUTED_ACROSS_HOSTS = 1 << 2;
        /// Liveness does not depend on time: a process that is stopped for an hour keeps what it has, and one
        /// that dies loses it at once.
        const NON_TIMEOUT_BASED = 1 << 3;
        /// Every operation takes effect at one instant between its call and its answer.
        const LINEARIZABLE = 1 << 4;
        /// The operations of each client take effect in the order in which it made them.
        const SEQUENTIAL = 1 << 5;
        /// A client that sees an effect also sees its causes.
        const CAUSAL = 1 << 6;
        /// Operations behave as if they ran one after the other.
        const SERIALIZABLE = 1 << 7;
        /// No client is shown a state that a later read anywhere contradicts; a client that is cut off gets an
        /// error.
        const SAME_VIEW_UNDER_PARTITIONS = 1 << 8;
        /// All clients see the same state at the same time.
        const SAME_VIEW_ACROSS_CLIENTS = 1 << 9;
        /// Locks can be held shared.
        const SHARED_LOCKS = 1 << 10;
        /// Locks are granted in the order of asking.
        const FAIR_LOCKS = 1 << 11;
        /// Changes reach a watcher without polling.
        const PUSH_WATCHES = 1 << 12;
        /// Fencing tokens keep growing across restart, kill, power cut and failover of the backend (not across
        /// a restore from a backup).
        const DURABLE_FENCING = 1 << 13;
        /// At most one valid guard also when the backend is killed, restarted, fails over or has its clock set.
        const STRICT_EXCLUSION = 1 << 14;
    }
}

/// The names, in order, separated by ` | `.
impl fmt::Display for Characteristics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer_strict(self, f)
    }
}
