//! Many who want one lock, again and again, where nobody queues.
//!
//! Each writes its token into a journal when it has the lock, and before it gives it back reads the journal's last token; under
//! one lock of that file it asks its guard each time. A guard that says *held* beside a later token lies.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread::scope;
use std::time::{Duration, Instant};

use tooz_servers::lab::size;
use tooz_servers::{Helper, block_on, say};

use super::backend::{Backend, LIMIT, connect};

/// Whoever is killed blocks the others for no longer than this.
const TTL: Duration = Duration::from_secs(2);
const PROCESSES: usize = 4;
/// Contenders of one process, each with a session of its own.
const EACH: usize = 2;
/// A line of the journal: a token.
const LINE: i64 = 21;

fn locked<T>(journal: &Path, work: impl FnOnce(&mut File) -> T) -> T {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(journal).unwrap();
    file.lock().unwrap();
    work(&mut file)
}

/// Every token, in the order of having it.
fn tokens(journal: &Path) -> Vec<u64> {
    let mut text = String::new();
    locked(journal, |file| file.read_to_string(&mut text).unwrap());
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn newest(file: &mut File) -> u64 {
    let mut text = String::new();
    file.seek(SeekFrom::End(-LINE)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text.trim_end().parse().unwrap()
}

/// The helper's part: so many turns for each of its contenders.
pub(crate) fn contend(url: &str, journal: &str, turns: &str) {
    let (journal, turns): (&Path, usize) = (Path::new(journal), turns.parse().unwrap());
    let lies: usize = scope(|s| {
        let contending: Vec<_> =
            (0..EACH).map(|n| s.spawn(move || take_turns(url, journal, turns, n))).collect();
        contending.into_iter().map(|one| one.join().unwrap()).sum()
    });
    say(&lies.to_string());
}

/// How often a guard lied.
fn take_turns(url: &str, journal: &Path, turns: usize, n: usize) -> usize {
    block_on(async {
        let c = connect(url, &format!("{}-{n}", std::process::id())).await;
        let lock = c.lock("x").unwrap();
        let (mut had, mut lies) = (0, 0);
        while had < turns {
            // On a machine that stands still for a ttl the session may be over.
            let Ok(guard) = lock.acquire().await else { continue };
            let token = guard.token().get();
            let line = format!("{token:020}\n");
            let written = locked(journal, |file| guard.is_held() && file.write_all(line.as_bytes()).is_ok());
            if written {
                had += 1;
                tokio::task::yield_now().await;
                lies += usize::from(locked(journal, |file| guard.is_held() && newest(file) != token));
            }
            // Its own end is another story.
            let _ = guard.release().await;
        }
        c.close().await.unwrap();
        lies
    })
}

/// L1, L3, S2: one process is killed in the middle, and the others have all their turns, one after the other.
pub(crate) fn killed(backend: &Backend) {
    let turns = size("TOOZ_TURNS", 60);
    let (url, place) = (backend.url(TTL), tempfile::tempdir().unwrap());
    let journal = place.path().join("journal");
    let count = backend.count();
    let begin = Instant::now();
    let part = ["overlaps", &url, journal.to_str().unwrap(), &turns.to_string()];
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| Helper::part(&part).unwrap()).collect();
    let third = turns * EACH * PROCESSES / 3;
    let a_third = || tokens(&journal).len() >= third;
    tooz_servers::poll("a third of the turns", Duration::from_millis(5), LIMIT, a_third).unwrap();
    processes.remove(0).kill().unwrap();
    let lies: Vec<String> = processes.into_iter().map(|process| process.hear().unwrap()).collect();
    let tokens = tokens(&journal);
    println!(
        "{}: {} turns in {:.2?}: {}",
        backend.name(),
        tokens.len(),
        begin.elapsed(),
        count(tokens.len())
    );
    assert_eq!(lies, vec!["0"; PROCESSES - 1], "a guard said that it was held beside a newer grant");
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "a token went back");
    assert!(tokens.len() >= (PROCESSES - 1) * EACH * turns, "somebody was left out");
}
