//! `tooz holders`, `tooz break` and `tooz tokens raise`.

use crate::args::{Backend, Break, Holders, Raise};
use crate::backend::{bytes, connect, view};
use crate::exit::Failure;
use crate::text;

pub(crate) async fn holders(backend: &Backend, options: &Holders) -> Result<u8, Failure> {
    let viewer = view(backend).await?;
    let all = viewer.holders(bytes(&options.name)).await?;
    for record in &all.holders {
        text::show(options.json, || text::holder_json(record), || text::holder(record))?;
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
        let line = || format!("broken: {}", text::holder(record));
        text::show(options.json, || text::holder_json(record), line)?;
    }
    if broken.is_empty() {
        eprintln!("tooz: lock \"{}\" had no holder", lock.name());
    }
    let _ = coordinator.close().await;
    Ok(0)
}

pub(crate) async fn raise_tokens(backend: &Backend, options: &Raise) -> Result<u8, Failure> {
    let coordinator = connect(backend).await?;
    let raised = coordinator.raise_tokens(options.least).await;
    let _ = coordinator.close().await;
    raised?;
    text::line(&format!("every later token is at least {}", options.least))?;
    Ok(0)
}
