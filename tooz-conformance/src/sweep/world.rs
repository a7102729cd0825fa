//! What the points of a scene share: a backend, two coordinators, and what is known about the backend.

use std::path::Path;
use std::time::Duration;

use tooz_core::Coordinator;
use tooz_memory::Kit;

use super::call::{Called, LATENCY};
use crate::harness::Harness;
use crate::tools::{Outcome, ensure, eventually};

pub(super) struct World {
    pub(super) h: Harness,
    pub(super) a: Coordinator,
    pub(super) b: Coordinator,
    abandons: bool,
    looks: bool,
    kit: Option<Kit>,
}

impl World {
    /// `abandons`: what callers leave unfinished is dropped. `looks`: the stacks of what is dropped are looked at.
    pub(super) async fn new(h: Harness, abandons: bool, looks: bool) -> Outcome<Self> {
        let (a, b) = h.pair().await?;
        if abandons {
            a.simulate_abandon();
        }
        let kit = match h.url().split(['?', ':']).next() {
            Some("memory") => {
                let backend = h.url().split('?').next().unwrap_or_default();
                let kit = Kit::of(&format!("{backend}?namespace={}", h.namespace()))?;
                kit.delay(LATENCY);
                kit.delay_answers(LATENCY);
                Some(kit)
            }
            _ => None,
        };
        Ok(Self {
            // On the virtual clock a swept future has its thread for itself.
            looks: looks && h.is_virtual() && h.ttl().is_some(),
            h,
            a,
            b,
            abandons,
            kit,
        })
    }

    pub(super) fn kit(&self) -> Option<&Kit> {
        self.kit.as_ref()
    }

    pub(super) fn looks(&self) -> bool {
        self.looks
    }

    pub(super) fn prepared(&self, coordinator: Coordinator) -> Coordinator {
        if self.abandons {
            coordinator.simulate_abandon();
        }
        coordinator
    }

    /// How often the backend was called, where it counts.
    pub(super) fn calls(&self, call: Called) -> Option<u64> {
        self.kit().map(|kit| kit.calls(call.operation()))
    }

    pub(super) fn forget_fates(&self) {
        if let Some(kit) = self.kit() {
            kit.forget_next();
        }
    }

    /// Checks that nothing is held, waited for or watched and that no call hangs, so far as the backend can be asked.
    pub(super) fn nothing_stands(&self) -> Outcome {
        if let Some(kit) = self.kit() {
            let stands = [
                ("grants", kit.held()),
                ("places in a queue", kit.queued()),
                ("watches", kit.watchers()),
                ("calls", kit.hanging()),
            ];
            let left: Vec<_> = stands.iter().filter(|(_, count)| *count > 0).collect();
            ensure(left.is_empty(), format!("left behind on the backend: {left:?}"))?;
        }
        Ok(())
    }

    /// How many sessions stand: told by the backend, or by the files that this process has open there.
    pub(super) fn sessions(&self) -> Outcome<usize> {
        if let Some(kit) = self.kit() {
            return Ok(kit.sessions());
        }
        // A session is a file that is kept open and locked, in a directory of such files.
        let directory = self.h.directory()?.canonicalize()?;
        let is_session = |path: &Path| {
            let place = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            path.starts_with(&directory) && place.contains("sessions")
        };
        let open = std::fs::read_dir("/proc/self/fd")?.filter_map(Result::ok);
        Ok(open.filter(|file| file.path().read_link().is_ok_and(|path| is_session(&path))).count())
    }

    /// Waits until as many sessions stand as before.
    pub(super) async fn sessions_are_again(&self, before: usize) -> Outcome {
        let limit = if self.h.is_virtual() {
            Duration::from_millis(1)
        } else {
            self.h.limit(Duration::from_millis(500))
        };
        eventually("no session is left behind", limit, async || {
            Ok::<_, crate::Failure>(self.sessions()? <= before)
        })
        .await
    }
}
