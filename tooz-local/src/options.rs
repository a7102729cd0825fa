//! The options that every driver for files of one host has.

use tooz_core::driver::{OptionKind, OptionSpec};
use tooz_core::{BackendUrl, Error, ErrorKind, Result};

/// `mode`: see [`mode_of`].
pub const MODE_OPTION: OptionSpec = OptionSpec::new(
    "mode",
    OptionKind::Text,
    "permissions of new files in octal; directories get the x that goes with each r (default: 600)",
);

/// `force_filesystem`: see [`check_local`](crate::filesystem::check_local).
pub const FORCE_FILESYSTEM_OPTION: OptionSpec = OptionSpec::new(
    "force_filesystem",
    OptionKind::Flag,
    "accept a file system that is not known to be local (default: false)",
);

/// `boot_id`: see [`boot_id`](crate::process::boot_id).
pub const BOOT_ID_OPTION: OptionSpec = OptionSpec::new(
    "boot_id",
    OptionKind::Text,
    "pretend that the machine was booted under this id (default: the kernel's)",
)
.for_tests();

/// The permissions of new files if the URL names none.
pub const MODE: u32 = 0o600;

/// The permissions of new files.
///
/// # Errors
/// `InvalidOption`: the option `mode` is no such permissions.
pub fn mode_of(url: &BackendUrl) -> Result<u32> {
    let Some(text) = url.option("mode") else { return Ok(MODE) };
    u32::from_str_radix(text, 8)
        .ok()
        // Without the owner's own rights nothing would work, and nothing here is to be run.
        .filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0)
        .ok_or_else(|| {
            let what = "option \"mode\": it must be an octal number from 600 to 666, such as 660";
            Error::new(ErrorKind::InvalidOption, what)
        })
}

/// The permissions of new directories beside files of this mode: a user who may read one may also search it.
pub fn directory_mode(mode: u32) -> u32 {
    mode | (mode & 0o444) >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let mode = |query| mode_of(&BackendUrl::parse(&format!("file:///x{query}")).unwrap());
        assert_eq!(mode("").unwrap(), 0o600);
        assert_eq!((mode("?mode=660").unwrap(), mode("?mode=0666").unwrap()), (0o660, 0o666));
        assert_eq!((directory_mode(0o660), directory_mode(0o604)), (0o770, 0o705));
        for refused in ["?mode=777", "?mode=440", "?mode=rw", "?mode=-600"] {
            assert_eq!(mode(refused).unwrap_err().kind(), ErrorKind::InvalidOption, "{refused}");
        }
    }
}
