//! The smallest driver: `toy://` hands everything to the in-process one.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_conformance::{Target, TestBackend, random};
use tooz_core::driver::{Connect, Connecting, Driver, Groups, Locks, OpenSession, Registration, Session};
use tooz_core::{BackendUrl, Characteristics, Result};

/// What it keeps: less than what it stands on, so that the twins of the suite have something to do.
const CHARACTERISTICS: Characteristics = Characteristics::DISTRIBUTED_ACROSS_THREADS
    .union(Characteristics::NON_TIMEOUT_BASED)
    .union(Characteristics::LINEARIZABLE)
    .union(Characteristics::SHARED_LOCKS);

const REGISTRATION: Registration = Registration::new("toy", &["toy"], |_| CHARACTERISTICS, connect);

tooz_core::inventory::submit! { REGISTRATION }

fn connect(mut request: Connect) -> Connecting {
    Box::pin(async move {
        let name = request.url.hosts().first().map(|host| host.name.clone()).unwrap_or_default();
        let options = request.url.options().to_vec();
        request.url = BackendUrl::parse(&format!("memory://toy-{name}"))?;
        for (option, value) in options {
            request.url.set_option(&option, value);
        }
        Ok(Arc::new(Toy(tooz_memory::connect(request).await?)) as Arc<dyn Driver>)
    })
}

#[derive(Debug)]
struct Toy(Arc<dyn Driver>);

#[async_trait]
impl Driver for Toy {
    fn characteristics(&self) -> Characteristics {
        CHARACTERISTICS
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        self.0.open_session(request).await
    }

    fn groups(&self) -> &dyn Groups {
        self.0.groups()
    }

    fn locks(&self) -> &dyn Locks {
        self.0.locks()
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

/// All that its test file would hold.
pub(crate) fn target() -> Target {
    Target::new("toy", |_| Ok(TestBackend::new(format!("toy://{:x}", random()))))
}
