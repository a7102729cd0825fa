//! What the links of one driver have in common with the supervisor and the calls.

use tokio::sync::{Notify, mpsc};
use tooz_core::driver::Context;

use super::channels::Channels;
use crate::config::Config;

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) context: Context,
    pub(crate) channels: Channels,
    suspicions: mpsc::UnboundedSender<Suspicion>,
    /// Replicas did not confirm: one of them may have been promoted, or be gone.
    pub(crate) doubts: Notify,
}

/// A link that may not work any more.
pub(crate) struct Suspicion {
    pub(crate) generation: u64,
    /// An answer to a command does not clear it: messages do not come through.
    pub(crate) deaf: bool,
}

impl Shared {
    /// `suspicions` leads to the supervisor.
    pub(crate) fn new(
        config: Config,
        context: Context,
        suspicions: mpsc::UnboundedSender<Suspicion>,
    ) -> Self {
        Self { config, context, channels: Channels::default(), suspicions, doubts: Notify::new() }
    }

    /// Reports a link: a beat over it was not answered in time, or its messages do not come through.
    pub(crate) fn suspect(&self, generation: u64, deaf: bool) {
        // The supervisor is gone only when the driver is.
        let _ = self.suspicions.send(Suspicion { generation, deaf });
    }
}
