//! The counter of fencing tokens, by the rule of [`tooz_local::fence`]. It has a file of its own, since programs delete the
//! files of locks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tooz_core::{FencingToken, Result};
use tooz_local::fence::{MOST, STEP, ceiling_above, first_token};
use tooz_local::file_id::FileId;
use tooz_local::os_lock::{Flavor, Hold, spin};

use crate::error;
use crate::keys;
use crate::tree::directory::Directory;

const MAGIC: &[u8; 8] = b"toozfnc1";
/// Magic, next, ceiling (big-endian), and the boot id padded with NULs.
pub(crate) const LENGTH: usize = 64;
const BOOT: usize = 24;

/// The counter of one directory, as this process has it open.
#[derive(Debug)]
pub(crate) struct Fence {
    directory: Directory,
    /// On the same file system, for a counter that is made anew.
    tmp: Arc<Directory>,
    flavor: Flavor,
    boot_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<(File, FileId)>,
    /// The largest number that this process has seen: a counter that was deleted goes on above it.
    floor: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    pub(crate) next: u64,
    pub(crate) ceiling: u64,
    boot: Vec<u8>,
}

impl Counter {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.next.to_be_bytes());
        bytes.extend(self.ceiling.to_be_bytes());
        bytes.extend(&self.boot);
        bytes.resize(LENGTH, 0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (next, ceiling) = (number(8)?, number(16)?);
        let boot = bytes[BOOT..].iter().copied().take_while(|byte| *byte != 0).collect();
        (bytes.starts_with(MAGIC) && next > 0 && next <= ceiling && ceiling <= MOST).then_some(Self {
            next,
            ceiling,
            boot,
        })
    }
}

impl Fence {
    pub(crate) fn new(directory: Directory, tmp: Arc<Directory>, flavor: Flavor, boot_id: &str) -> Self {
        // A boot id has 36 characters; what a test gives may be longer.
        let boot_id = boot_id.chars().filter(char::is_ascii).take(LENGTH - BOOT).collect();
        Self { directory, tmp, flavor, boot_id, state: Mutex::default() }
    }

    /// The next token; `None` while another process is taking one.
    pub(crate) fn take(&self, wall: SystemTime) -> Result<Option<FencingToken>> {
        let token = self.while_locked(wall, |file, floor| {
            let token = self.advance_to(file, floor)?.next;
            // Eight bytes in one write, so that no process reads half of them.
            file.write_all_at(&(token + 1).to_be_bytes(), 8)?;
            Ok(token)
        })?;
        Ok(token.and_then(FencingToken::new))
    }

    /// No token below `least` is given out from now on; `None` while another process is taking one.
    pub(crate) fn raise(&self, wall: SystemTime, least: FencingToken) -> Result<Option<()>> {
        let raised = self.while_locked(wall, |file, floor| {
            self.advance_to(file, floor.max(least.get() - 1)).map(|counter| counter.next - 1)
        })?;
        Ok(raised.map(drop))
    }

    /// Does something with the counter while no other thread or process does. `work` returns the largest number that
    /// is not to be given out again.
    fn while_locked(
        &self,
        wall: SystemTime,
        work: impl FnOnce(&File, u64) -> io::Result<u64>,
    ) -> Result<Option<u64>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = self.try_while_locked(&mut state, wall, work).map_err(|cause| {
            let path = self.directory.path.join(keys::FENCE);
            error::io(format!("the fencing counter {}", path.display()), cause)
        })?;
        if let Some(last) = answer {
            state.floor = state.floor.max(last);
        }
        Ok(answer)
    }

    fn try_while_locked(
        &self,
        state: &mut State,
        wall: SystemTime,
        work: impl FnOnce(&File, u64) -> io::Result<u64>,
    ) -> io::Result<Option<u64>> {
        let floor = state.floor;
        if !state.file.as_ref().is_some_and(|(_, id)| self.directory.has(keys::FENCE, *id)) {
            state.file = None;
            state.file = Some(self.open(floor, wall)?);
        }
        let Some((file, id)) = &state.file else { return Ok(None) };
        if !spin(|| self.flavor.try_lock(file, Hold::Alone))? {
            return Ok(None);
        }
        // Replaced between opening and locking: look again.
        let in_place = self.directory.has(keys::FENCE, *id);
        let answer = if in_place { work(file, floor).map(Some) } else { Ok(None) };
        self.flavor.unlock(file)?;
        answer
    }

    fn open(&self, floor: u64, wall: SystemTime) -> io::Result<(File, FileId)> {
        if self.directory.stat(keys::FENCE)?.is_none() {
            let next = first_token(wall, floor);
            let counter =
                Counter { next, ceiling: next.saturating_add(STEP), boot: self.boot_id.clone().into() };
            if self.directory.write_first(&self.tmp, keys::FENCE, &counter.encode())? {
                self.directory.sync()?;
            }
        }
        let file = self.directory.open_write(keys::FENCE)?;
        let id = FileId::of(&file)?;
        Ok((file, id))
    }

    /// The counter, whose next number is above `floor` and below a ceiling that was synced.
    fn advance_to(&self, file: &File, floor: u64) -> io::Result<Counter> {
        let mut bytes = [0; LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(corrupt()),
            answer => answer?,
        }
        let mut counter = Counter::decode(&bytes).ok_or_else(corrupt)?;
        let mut sync = false;
        if counter.boot != self.boot_id.as_bytes() {
            // The numbers below the ceiling may have been given out, whatever `next` says.
            counter.next = counter.ceiling;
            counter.boot = self.boot_id.clone().into();
            sync = true;
        }
        let written = counter.next;
        counter.next = counter.next.max(floor + 1); // an older copy was put back, or the tokens are raised
        if sync || counter.next >= counter.ceiling {
            counter.ceiling = ceiling_above(counter.next).ok_or_else(corrupt)?;
            file.write_all_at(&counter.encode(), 0)?;
            // INVARIANT: synced before any token at or above the old ceiling is given out.
            file.sync_all()?;
            self.directory.sync()?;
        } else if counter.next > written {
            file.write_all_at(&counter.next.to_be_bytes(), 8)?;
        }
        Ok(counter)
    }
}

fn corrupt() -> io::Error {
    let what = "it cannot be read; if no token was ever above the microseconds since 1970, delete it";
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tempfile::TempDir;
    use tooz_core::ErrorKind;

    use super::*;

    fn home() -> (TempDir, Directory) {
        let directory = tempfile::tempdir().unwrap();
        let home = Directory::open_path(directory.path(), 0o600).unwrap();
        (directory, home)
    }

    fn open(home: &Directory, boot_id: &str) -> Fence {
        let again = || Directory::open_path(&home.path, 0o600).unwrap();
        Fence::new(again(), Arc::new(again()), Flavor::OpenFile, boot_id)
    }

    fn take(fence: &Fence) -> u64 {
        fence.take(UNIX_EPOCH + Duration::from_millis(1)).unwrap().unwrap().get()
    }

    #[test]
    fn tokens_grow_across_processes_reboots_and_deletion() {
        let (_directory, home) = home();
        let one = open(&home, "boot-1");
        let other = open(&home, "boot-1");
        assert_eq!((take(&one), take(&other), take(&one)), (1_000, 1_001, 1_002));
        let rebooted = open(&home, "boot-2");
        assert_eq!(take(&rebooted), 1_000 + STEP);
        home.unlink(keys::FENCE).unwrap();
        assert_eq!(take(&rebooted), 1_001 + STEP);
    }

    #[test]
    fn the_ceiling_moves_in_time() {
        let (_directory, home) = home();
        let fence = open(&home, "boot");
        let counter = Counter { next: 9, ceiling: 10, boot: b"boot".to_vec() };
        home.write_new(keys::FENCE, &counter.encode()).unwrap();
        assert_eq!((take(&fence), take(&fence)), (9, 10));
        let bytes = home.read(keys::FENCE).unwrap().try_into().unwrap();
        assert_eq!(Counter::decode(&bytes).unwrap().ceiling, 10 + STEP);
    }

    fn raise(fence: &Fence, least: u64) {
        let least = FencingToken::new(least).unwrap();
        fence.raise(UNIX_EPOCH, least).unwrap().unwrap();
    }

    #[test]
    fn a_raise_is_a_maximum_that_survives_reboots_and_deletion() {
        let (_directory, home) = home();
        let one = open(&home, "boot-1");
        let other = open(&home, "boot-1");
        raise(&one, 5_000); // there is no counter yet
        assert_eq!((take(&other), take(&one)), (5_000, 5_001));
        raise(&other, 5_002);
        raise(&other, 1);
        assert_eq!(take(&one), 5_002);
        raise(&other, 6_000); // below the ceiling
        assert_eq!(take(&one), 6_000);
        raise(&one, 1 << 52);
        let rebooted = open(&home, "boot-2");
        assert_eq!(take(&rebooted), (1 << 52) + STEP);
        raise(&rebooted, (1 << 52) + 3 * STEP);
        home.unlink(keys::FENCE).unwrap();
        assert_eq!(take(&rebooted), (1 << 52) + 3 * STEP);
    }

    #[test]
    fn a_counter_at_the_end_of_all_numbers_is_corrupt() {
        let (_directory, home) = home();
        let fence = open(&home, "boot");
        let counter = Counter { next: MOST - 1, ceiling: MOST, boot: b"boot".to_vec() };
        home.write_new(keys::FENCE, &counter.encode()).unwrap();
        assert_eq!(take(&fence), MOST - 1);
        assert_eq!(fence.take(UNIX_EPOCH).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_counter_that_cannot_be_read_is_corrupt() {
        let (_directory, home) = home();
        for content in [&b""[..], b"toozfnc1", &[0; LENGTH], &[255; LENGTH]] {
            home.remove(keys::FENCE).unwrap();
            home.write_new(keys::FENCE, content).unwrap();
            let fence = open(&home, "boot");
            assert_eq!(fence.take(UNIX_EPOCH).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
