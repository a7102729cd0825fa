//! The connections to the server: found, made, replaced, and what goes over them.

pub(crate) mod address;
pub(crate) mod channels;
pub(crate) mod current;
pub(crate) mod discovery;
pub(crate) mod link;
pub(crate) mod reply;
pub(crate) mod server_info;
pub(crate) mod subscription;
pub(crate) mod supervisor;
pub(crate) mod tls;

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tooz_core::driver::{Context, Task};
use tooz_core::{Characteristics, Error, ErrorKind, Result};

use self::channels::Channels;
use self::link::Shared;
use self::supervisor::Supervisor;
use crate::client::Client;
use crate::config::Config;

/// Connects for the first time, and asks what the server does not guarantee. The task replaces the link whenever it ends,
/// until the task is dropped.
pub(crate) async fn connect(
    config: Config,
    context: Context,
) -> Result<(Arc<Client>, Characteristics, Task<()>)> {
    let spawner = context.spawner.clone();
    let (suspicions, orders) = mpsc::unbounded_channel();
    let (channels, doubts) = (Channels::default(), Notify::new());
    let client = Arc::new(Client::new(Shared { config, context, channels, suspicions, doubts }));
    let mut supervisor = Supervisor::new(&client, orders);
    let connecting = Arc::clone(&client);
    // On the coordinator's runtime: the tasks of the connections must not end with the runtime of the caller.
    let first = spawner.spawn(async move {
        let config = connecting.config();
        let link = Arc::new(supervisor.link_up().await?);
        let unkept = server_info::query(config, &link).await?;
        if config.view {
            // A view calls three scripts, and its user may not be allowed to load them.
            server_info::check_layout(config, &connecting.keys, &link).await?;
        } else {
            server_info::load_scripts(&link).await;
        }
        Ok::<_, Error>((supervisor, link, unkept))
    });
    let (supervisor, link, unkept) =
        first.await.ok_or_else(|| Error::new(ErrorKind::Closed, "the runtime ended"))??;
    client.current.replace(Arc::clone(&link));
    Ok((client, unkept, spawner.spawn(supervisor.run(link))))
}
