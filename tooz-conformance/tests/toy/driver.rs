//! The smallest driver: `toy://` hands everything to the in-process one.

use tooz_core::driver::Connect;
use tooz_core::{BackendUrl, Characteristics, Connecting, Registration};

/// What it keeps: less than what it stands on, so that the twins of the suite have something to do.
fn characteristics(_: &BackendUrl) -> Characteristics {
    Characteristics::DISTRIBUTED_ACROSS_THREADS
        | Characteristics::SHARED_LOCKS
        | Characteristics::LINEARIZABLE
}

fn connect(mut request: Connect) -> Connecting {
    Box::pin(async move {
        let name = request.url.hosts().first().map(|host| host.name.clone()).unwrap_or_default();
        let options = request.url.options().to_vec();
        request.url = BackendUrl::parse(&format!("memory://toy-{name}"))?;
        for (option, value) in options {
            request.url.set_option(&option, value);
        }
        let inner = tooz_memory::connect(request).await?;
        Ok(std::sync::Arc::new(Toy(inner)) as std::sync::Arc<dyn tooz_core::driver::Driver>)
    })
}

const REGISTRATION: Registration = Registration::new("toy", &["toy"], characteristics, connect);

tooz_core::inventory::submit! { REGISTRATION }

#[derive(Debug)]
struct Toy(std::sync::Arc<dyn tooz_core::driver::Driver>);

#[async_trait::async_trait]
impl tooz_core::driver::Driver for Toy {
    fn characteristics(&self) -> Characteristics {
        Characteristics::DISTRIBUTED_ACROSS_THREADS
            | Characteristics::SHARED_LOCKS
            | Characteristics::LINEARIZABLE
    }

    async fn open_session(
        &self,
        request: &tooz_core::driver::OpenSession,
    ) -> tooz_core::Result<std::sync::Arc<dyn tooz_core::driver::Session>> {
        self.0.open_session(request).await
    }

    fn groups(&self) -> &dyn tooz_core::driver::Groups {
        self.0.groups()
    }

    fn locks(&self) -> &dyn tooz_core::driver::Locks {
        self.0.locks()
    }

    async fn close(&self) -> tooz_core::Result<()> {
        self.0.close().await
    }
}
