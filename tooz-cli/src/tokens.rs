//! `tooz tokens raise`.

use crate::args::{Backend, Raise};
use crate::backend::connect;
use crate::exit::Failure;
use crate::text;

pub(crate) async fn raise(backend: &Backend, options: &Raise) -> Result<u8, Failure> {
    let coordinator = connect(backend).await?;
    let raised = coordinator.raise_tokens(options.least).await;
    let _ = coordinator.close().await;
    raised?;
    text::line(&format!("every later token is at least {}", options.least))?;
    Ok(0)
}
