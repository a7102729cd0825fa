//! The session that wrote a record, in enough detail to judge whether it still lives.

use std::fmt;

use tooz_core::driver::SessionId;
use tooz_local::process::Process;

use crate::keys;

/// A session, its file and its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) session: SessionId,
    /// The inode of the session's file: a copy that a backup put there proves nothing.
    pub(crate) inode: u64,
    pub(crate) process: Process,
    /// The boot of the machine in which it runs.
    pub(crate) boot: u32,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { pid, started, pid_namespace } = &self.process;
        let (started, namespace) = (started.unwrap_or_default(), pid_namespace.unwrap_or_default());
        write!(f, "{}.{:x}.{pid:x}.{started:x}.{namespace:x}.{:x}", self.session, self.inode, self.boot)
    }
}

impl Owner {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let session = SessionId::parse(parts.next()?)?;
        let mut number = || keys::number(parts.next()?);
        let (inode, pid, started, namespace, boot) = (number()?, number()?, number()?, number()?, number()?);
        if parts.next().is_some() {
            return None;
        }
        let pid = u32::try_from(pid).ok()?;
        let process = Process { pid, started: known(started), pid_namespace: known(namespace) };
        Some(Self { session, inode, process, boot: u32::try_from(boot).ok()? })
    }
}

/// A number of a record, where 0 stands for one that was not known.
pub(crate) fn known(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

/// A boot id in short: only ever compared with that of another boot of the same machine.
pub(crate) fn short_boot(id: &str) -> u32 {
    // FNV-1a (Fowler, Noll and Vo): stable over versions, which the standard library's hashes are not.
    id.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
