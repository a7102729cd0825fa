//! What it costs to judge a history of a million operations; the goal is less than a second.
//!
//! `cargo bench -p tooz-conformance --no-default-features --bench history`. Nothing here passes or fails by time.
#![allow(clippy::disallowed_methods, clippy::print_stdout)] // a benchmark reads clocks and prints

use std::time::Instant;

use tooz_conformance::history::{
    Answer, Asked, Bounds, End, Fact, History, Hold, Mode, Moment, Name, Operation, OperationId, Outcome,
};

const OPERATIONS: usize = 1_000_000;
const ROUNDS: usize = 5;
const LOCK: Name = Name(0);
const MEMBERS: [Name; 2] = [Name(1), Name(2)];

/// One lock that goes from hand to hand.
fn history() -> History {
    let names = ["lock", "a", "b"].map(str::to_owned).to_vec();
    let mut history = History { names, ..History::default() };
    let mut now = 0;
    let mut moment = || {
        now += 10;
        Moment(now)
    };
    for token in 1u64.. {
        if history.operations.len() >= OPERATIONS {
            break;
        }
        let client = if token % 2 == 0 { MEMBERS[0] } else { MEMBERS[1] };
        let (mode, attempt, hold) =
            (Mode::Exclusive, u128::from(token), OperationId(history.operations.len()));
        let called = moment();
        let granted = Fact::Granted { lock: LOCK, member: client, attempt, mode, token };
        history.facts.push((moment(), granted));
        history.operations.push(Operation {
            client,
            asked: Asked::Acquire { lock: LOCK, mode, waits: false },
            call: called,
            returned: moment(),
            outcome: Outcome::Ok(Answer::Granted(token)),
        });
        history.holds.push(Hold { operation: hold, claimed: Some(moment()), ended: None });
        let called = moment();
        let freed = Fact::Freed { lock: LOCK, member: client, attempt, token, end: End::Released };
        history.facts.push((moment(), freed));
        history.operations.push(Operation {
            client,
            asked: Asked::Release { hold },
            call: called,
            returned: moment(),
            outcome: Outcome::Ok(Answer::Done),
        });
    }
    history
}

fn main() {
    let history = history();
    let bounds = Bounds { told_within: Some(10_000_000_000), fair: true, every_change: true };
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut found = history.violations(&bounds);
        let judged = start.elapsed();
        let unsearched = history.check_locks_linear(&mut found);
        let all = start.elapsed();
        assert!(found.is_empty() && unsearched == 0, "a right history is found wrong: {found:?}");
        println!("{OPERATIONS} operations: judged in {judged:?}, an order found in {:?}", all - judged);
    }
}
