//! The driver for looking without a session: it reads a database and never writes it. Its user may only have read
//! permission, and the disk may be full.

mod driver;
mod groups;
mod holders;
mod reader;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tooz_core::driver::{Context, Driver};
use tooz_core::{BackendUrl, Characteristics, Result};

use self::driver::ReadOnly;
use self::reader::Reader;
use crate::config::{self, Config};
use crate::engine::paths::Paths;
use crate::engine::tx::Site;

/// Connects for looking.
pub(crate) async fn connect(url: &BackendUrl, config: Config, context: Context) -> Result<Arc<dyn Driver>> {
    let paths = Paths::find(&config.path, config.force_filesystem)?;
    let site = Site::new(&paths, config.boot_id.as_ref(), config.layout, &context.clock, &context.entropy)?;
    let best = config::characteristics_on(url, paths.known_file_system);
    let reader = Arc::new(Reader { paths, site, config, context, closed: AtomicBool::new(false) });
    // If there is a database, this fails with what is wrong with it.
    reader.look("connect", |_| Ok(())).await?;
    Ok(Arc::new(ReadOnly { reader, characteristics: best - Characteristics::PUSH_WATCHES }))
}
