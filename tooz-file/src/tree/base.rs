//! The directory that the URL names: the checks before anything is written into it.

use std::io;
use std::path::Path;

use tooz_core::{Error, ErrorKind, Result};
use tooz_local::filesystem;

use crate::config::Config;
use crate::error;
use crate::tree::directory::Directory;

/// Opens the directory, and says whether its file system is known to be local. Creates a directory that is missing, as
/// Python does, unless for a view. Its path has no symlinks, so that every process comes to the same names.
pub(crate) fn open_base(config: &Config) -> Result<(Directory, bool)> {
    let shown = config.path.display();
    let failed = |error| error::io(format!("the directory {shown}"), error);
    let there = if config.view { look(&config.path) } else { make(&config.path, config.mode) };
    match there {
        Ok(()) => {}
        Err(error) if config.view && error.kind() == io::ErrorKind::NotFound => {
            return Err(error::nothing_here(&config.path));
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                format!("{shown} is not a directory, or lies below something that is not; name a directory"),
            ));
        }
        Err(error) => return Err(failed(error)),
    }
    let path = config.path.canonicalize().map_err(failed)?;
    let local = filesystem::check_local(&path, config.force_filesystem)?;
    Ok((Directory::open_path(&path, config.mode).map_err(failed)?, local))
}

fn look(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Makes a directory and those above it that are missing. Each belongs to the owner of the one above, if root makes it.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    let missing = path.strip_prefix(there).unwrap_or(path);
    let mut directory = Directory::open_to_make(there, mode)?;
    for name in missing.components() {
        directory = directory.make(name.as_os_str())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tooz_core::BackendUrl;
    use tooz_core::driver::Limits;

    use super::*;

    #[test]
    fn proc_is_refused_unless_forced() {
        let read = |url| {
            let url = BackendUrl::parse(url).unwrap();
            Config::read(&url, Limits::of(&url).unwrap()).unwrap()
        };
        let error = open_base(&read("file:///proc")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(!open_base(&read("file:///proc?force_filesystem=true")).unwrap().1);
        let error = open_base(&read("file:///proc/version")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUrl);
    }
}
