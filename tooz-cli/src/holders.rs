//! `tooz holders` and `tooz break`.

use crate::args::{Backend, Break, Holders};
use crate::backend::{bytes, connect, view};
use crate::exit::Failure;
use crate::text;

pub(crate) async fn holders(backend: &Backend, options: &Holders) -> Result<u8, Failure> {
    let viewer = view(backend).await?;
    let all = viewer.holders(bytes(&options.name)).await?;
    for record in &all.holders {
        text::line(&if options.json { text::holder_json(record).to_string() } else { text::holder(record) })?;
    }
    if let (Some(waiters @ 1..), false) = (all.waiters, options.json) {
        text::line(&format!("waiting: {waiters}"))?;
    }
    let _ = viewer.close().await;
    Ok(0)
}

pub(crate) async fn break_lock(backend: &Backend, options: &Break) -> Result<u8, Failure> {
    let coordinator = connect(backend).await?;
    let lock = coordinator.lock(bytes(&options.name))?;
    let broken = lock.break_lock(options.reason.as_str()).await?;
    for record in &broken {
        text::line(&if options.json {
            text::holder_json(record).to_string()
        } else {
            format!("broken: {}", text::holder(record))
        })?;
    }
    if broken.is_empty() {
        eprintln!("tooz: nobody held lock \"{}\"", lock.name());
    }
    let _ = coordinator.close().await;
    Ok(0)
}
