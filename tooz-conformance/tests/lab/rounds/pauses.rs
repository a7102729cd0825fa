//! A holder that is stopped around its ttl while somebody else waits.
//!
//! Holder and waiter write each token into the lock's journal as soon as they have it. The holder asks its guard and reads the
//! journal's last token under one lock of that file: a guard that says *held* beside a larger token of somebody else lies.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tooz_servers::lab::size;
use tooz_servers::{Helper, block_on, say, told};

use super::backend::{Backend, LIMIT, connect};

const TTL: Duration = Duration::from_secs(2);
/// Locks of one process, each with a session of its own.
const LOCKS: usize = 4;
const LOOK: Duration = Duration::from_millis(2);
/// The holder's own: so much longer than a look takes that it is seldom stopped in the middle of one, with the journal's lock.
/// When it goes on after a pause it looks at once.
const HOLDERS_LOOK: Duration = Duration::from_millis(20);

/// Who had which token, in the order of having it.
struct Journal(PathBuf);

impl Journal {
    fn of(place: &Path, lock: &str) -> Self {
        Self(place.join(lock))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut File) -> T) -> T {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.0).unwrap();
        file.lock().unwrap();
        work(&mut file)
    }

    fn write(&self, who: char, token: u64) {
        self.locked(|file| file.write_all(format!("{who} {token:020}\n").as_bytes()).unwrap());
    }

    /// The last one.
    fn newest(file: &mut File) -> Option<(char, u64)> {
        let mut text = String::new();
        file.seek(SeekFrom::End(-23)).ok()?;
        file.read_to_string(&mut text).unwrap();
        Some((text.chars().next()?, text[2..22].parse().unwrap()))
    }

    fn is_held_by(&self, who: char) -> bool {
        self.locked(Self::newest).is_some_and(|(last, _)| last == who)
    }
}

/// The helper's part: holds locks again and again, and looks whether its guards lie.
pub(crate) fn hold(url: &str, place: &str, first: &str, count: &str) {
    let (first, count): (usize, usize) = (first.parse().unwrap(), count.parse().unwrap());
    let over = AtomicBool::new(false);
    let (looks, told_so, lies) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    scope(|s| {
        for n in first..first + count {
            let (over, looks, told_so, lies) = (&over, &looks, &told_so, &lies);
            s.spawn(move || {
                let name = format!("lock-{n}");
                let journal = Journal::of(Path::new(place), &name);
                let c = block_on(connect(url, &format!("holder-{n}")));
                let lock = c.lock(&name).unwrap();
                while !over.load(Ordering::Acquire) {
                    let Ok(Some(guard)) = block_on(lock.acquire_within(Duration::from_secs(1))) else {
                        continue;
                    };
                    let token = guard.token().get();
                    journal.write('H', token);
                    loop {
                        let (held, newest) = journal.locked(|file| (guard.is_held(), Journal::newest(file)));
                        looks.fetch_add(1, Ordering::Relaxed);
                        let newer = newest.is_some_and(|(_, newest)| newest > token);
                        if held && newer {
                            lies.fetch_add(1, Ordering::Relaxed);
                        }
                        if !held {
                            told_so.fetch_add(usize::from(newer), Ordering::Relaxed);
                            break;
                        }
                        if over.load(Ordering::Acquire) {
                            break;
                        }
                        sleep(HOLDERS_LOOK);
                    }
                }
            });
        }
        say("ready");
        told();
        over.store(true, Ordering::Release);
    });
    say(&format!("{} {} {}", looks.into_inner(), told_so.into_inner(), lies.into_inner()));
}

/// The other side: waits whenever the holder has it, and gives it back at once.
fn wait_behind(url: &str, journal: &Journal, name: &str, mut over: watch::Receiver<bool>) {
    block_on(async {
        let c = connect(url, &format!("waiter-{name}")).await;
        let lock = c.lock(name).unwrap();
        while !*over.borrow() {
            if !journal.is_held_by('H') {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let guard = tokio::select! {
                biased; // the end is final
                _ = over.changed() => return,
                guard = lock.acquire() => guard,
            };
            let Ok(guard) = guard else { continue };
            journal.write('W', guard.token().get());
            // Its own end is somebody else's story.
            let _ = guard.release().await;
        }
    });
}

/// L1, S6: no guard says that it is held when a newer grant has been given.
pub(crate) fn paused(backend: &Backend) {
    let rounds = size("TOOZ_ROUNDS", 24);
    let processes = (rounds / 8).clamp(1, 8);
    let each = rounds.div_ceil(processes);
    let (url, place) = (backend.url(TTL), tempfile::tempdir().unwrap());
    let (end, over) = watch::channel(false);
    let counted: Vec<[usize; 5]> = scope(|s| {
        for n in 0..processes * LOCKS {
            let (url, over) = (&url, over.clone());
            let name = format!("lock-{n}");
            let journal = Journal::of(place.path(), &name);
            s.spawn(move || wait_behind(url, &journal, &name, over));
        }
        let pausing: Vec<_> = (0..processes)
            .map(|process| {
                let (url, place) = (&url, place.path());
                s.spawn(move || pause(url, place, process * LOCKS, each))
            })
            .collect();
        let counted: Vec<_> = pausing.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        end.send_replace(true);
        counted.into_iter().map(Result::unwrap).collect()
    });
    let sum = |at: usize| counted.iter().map(|counts| counts[at]).sum::<usize>();
    let (paused, given, looks, told_so, lies) = (sum(0), sum(1), sum(2), sum(3), sum(4));
    println!(
        "{}: {paused} pauses of 0.5 to 2 times a ttl of {TTL:?}; in {given} a newer token was given before the holder went on; \
         {looks} looks, {told_so} found a guard lost beside a newer token, {lies} found one that said held",
        backend.name()
    );
    assert_eq!(lies, 0, "a guard said that it was held beside a newer grant");
    assert!(given >= paused / 8 && told_so > 0, "so few prove nothing");
}

/// One process, stopped again and again. Pauses, those in which the waiter got it, looks, true answers, lies.
fn pause(url: &str, place: &Path, first: usize, wanted: usize) -> [usize; 5] {
    let part = ["pauses", url, place.to_str().unwrap(), &first.to_string(), &LOCKS.to_string()];
    let mut holder = Helper::part(&part).unwrap();
    assert_eq!(holder.hear().as_deref(), Some("ready"));
    let journals: Vec<_> = (first..first + LOCKS).map(|n| Journal::of(place, &format!("lock-{n}"))).collect();
    let random = |most: Duration| {
        Duration::from_micros(u64::try_from(tooz_conformance::random() % most.as_micros()).unwrap())
    };
    let (mut pauses, mut given, mut cycles) = (0, 0, 0);
    while pauses < wanted {
        cycles += 1;
        assert!(cycles < wanted + 20, "the machine stands still for longer than a ttl, again and again");
        let begin = Instant::now();
        while !journals.iter().all(|journal| journal.is_held_by('H')) {
            assert!(begin.elapsed() < LIMIT, "the holder does not get its locks again");
            sleep(LOOK);
        }
        sleep(random(TTL / 2));
        holder.stop().unwrap();
        // One that it was stopped in the middle of looking at is left out: its journal is locked until it goes on.
        let held: Vec<_> =
            journals.iter().filter(|journal| is_free(journal) && journal.is_held_by('H')).collect();
        sleep(TTL / 2 + random(TTL * 3 / 2));
        given += held.iter().filter(|journal| journal.is_held_by('W')).count();
        pauses += held.len();
        holder.resume().unwrap();
    }
    let said = holder.end().unwrap();
    let said: Vec<usize> = said.split(' ').map(|number| number.parse().unwrap()).collect();
    [pauses, given, said[0], said[1], said[2]]
}

/// Whether nobody has the journal's lock: the holder may have been stopped with it.
fn is_free(journal: &Journal) -> bool {
    File::open(&journal.0).unwrap().try_lock().is_ok()
}
