//! The checkers of histories: a right history passes, and each planted violation is named by its operation.

use tooz_conformance::history::{
    Answer, Asked, Bounds, End, Fact, History, Hold, Left, Mode, Moment, Name, Operation, OperationId,
    Outcome, Record, Seen, Violation, Watch,
};
use tooz_core::{Departure, ErrorKind};

const LOCK: Name = Name(0);
const GROUP: Name = Name(1);
const A: Name = Name(2);
const B: Name = Name(3);
const SECOND: u64 = 1_000_000_000;
const BOUNDS: Bounds = Bounds { told_within: Some(10 * SECOND), fair: true, every_change: true };

/// Tells a history, one thing after the other.
struct Story {
    history: History,
    now: u64,
    attempts: u128,
}

impl Story {
    fn begin() -> Self {
        let names = ["lock", "group", "a", "b"].map(str::to_owned).to_vec();
        Self { history: History { names, ..History::default() }, now: 0, attempts: 0 }
    }

    fn now(&mut self) -> Moment {
        self.now += 10;
        Moment(self.now)
    }

    fn fact(&mut self, fact: Fact) {
        let moment = self.now();
        self.history.facts.push((moment, fact));
    }

    fn call(&mut self, client: Name, asked: Asked) -> OperationId {
        let call = self.now();
        let operation =
            Operation { client, asked, call, returned: Moment(u64::MAX), outcome: Outcome::Unknown };
        self.history.operations.push(operation);
        OperationId(self.history.operations.len() - 1)
    }

    fn answer(&mut self, id: OperationId, outcome: Outcome) {
        let now = self.now();
        let operation = &mut self.history.operations[id.0];
        (operation.returned, operation.outcome) = (now, outcome);
    }

    fn tell(&mut self, client: Name, asked: Asked, outcome: Outcome) -> OperationId {
        let id = self.call(client, asked);
        self.answer(id, outcome);
        id
    }

    fn ask(mode: Mode) -> Asked {
        Asked::Acquire { lock: LOCK, mode, waits: false }
    }

    fn grant(&mut self, member: Name, mode: Mode, token: u64) -> u128 {
        self.attempts += 1;
        self.fact(Fact::Granted { lock: LOCK, member, attempt: self.attempts, mode, token });
        self.attempts
    }

    fn free(&mut self, member: Name, attempt: u128, token: u64, end: End) {
        self.fact(Fact::Freed { lock: LOCK, member, attempt, token, end });
    }

    /// Acquires, and is sure of it at once.
    fn acquire(&mut self, client: Name, mode: Mode, token: u64) -> OperationId {
        let id = self.call(client, Self::ask(mode));
        self.grant(client, mode, token);
        self.held(id, token);
        id
    }

    fn held(&mut self, id: OperationId, token: u64) {
        self.answer(id, Outcome::Ok(Answer::Granted(token)));
        self.history.holds.push(Hold { operation: id, claimed: None, ended: None });
        self.claim(id);
    }

    fn claim(&mut self, id: OperationId) {
        let now = self.now();
        self.history.holds.iter_mut().find(|hold| hold.operation == id).unwrap().claimed = Some(now);
    }

    fn release(&mut self, client: Name, hold: OperationId, token: u64) -> OperationId {
        let attempt = self.history.facts.iter().rev().find_map(|(_, fact)| match fact {
            Fact::Granted { attempt, token: of, .. } if *of == token => Some(*attempt),
            _ => None,
        });
        let id = self.call(client, Asked::Release { hold });
        self.free(client, attempt.unwrap_or(0), token, End::Released);
        self.answer(id, Outcome::Ok(Answer::Done));
        id
    }

    fn violations(&self) -> Vec<Violation> {
        self.history.violations(&BOUNDS)
    }

    /// Fails unless these clauses are broken, the first of them by this operation.
    #[track_caller]
    fn shows(&self, clause: &str, operation: Option<OperationId>) {
        let found = self.violations();
        assert!(
            found.iter().any(|violation| violation.clause == clause && violation.operation == operation),
            "{clause} by {operation:?} is not among {found:?}"
        );
    }

    #[track_caller]
    fn is_right(&self) {
        assert_eq!(self.violations(), []);
        let mut found = Vec::new();
        assert_eq!(
            self.history.check_locks_linear(&mut found) + self.history.check_members_linear(&mut found),
            0
        );
        assert_eq!(found, []);
    }

    #[track_caller]
    fn has_no_order(&self, operation: Option<OperationId>) {
        let mut found = Vec::new();
        self.history.check_locks_linear(&mut found);
        self.history.check_members_linear(&mut found);
        assert!(found.iter().any(|violation| violation.operation == operation), "{found:?}");
    }
}

#[test]
fn a_lock_that_goes_from_hand_to_hand_is_right() {
    let mut story = Story::begin();
    for round in 0..20 {
        let (client, token) = (if round % 2 == 0 { A } else { B }, round + 1);
        let held = story.acquire(client, Mode::Exclusive, token);
        story.claim(held);
        story.release(client, held, token);
    }
    story.is_right();
}

#[test]
fn two_valid_guards_are_named() {
    let mut story = Story::begin();
    let first = story.acquire(A, Mode::Exclusive, 1);
    let second = story.acquire(B, Mode::Exclusive, 2);
    story.claim(first);
    story.shows("L1", Some(second));
    story.has_no_order(Some(second));
}

#[test]
fn a_reader_beside_a_writer_is_named() {
    let mut story = Story::begin();
    let first = story.acquire(A, Mode::Exclusive, 1);
    let second = story.acquire(B, Mode::Shared, 2);
    story.claim(first);
    story.shows("L9", Some(second));
}

#[test]
fn readers_stand_together_and_permits_up_to_their_limit() {
    let mut story = Story::begin();
    let readers = [story.acquire(A, Mode::Shared, 1), story.acquire(B, Mode::Shared, 2)];
    story.claim(readers[0]);
    story.is_right();
    let mut story = Story::begin();
    let permits: Vec<_> = (1..=3).map(|token| story.acquire(A, Mode::Permit(2), token)).collect();
    for permit in &permits {
        story.claim(*permit);
    }
    story.shows("L15", Some(permits[2]));
}

#[test]
fn a_break_is_the_one_exception_until_the_victim_can_know() {
    for (claims_after, known) in [(5, true), (30, false)] {
        let mut story = Story::begin();
        let victim = story.acquire(A, Mode::Exclusive, 1);
        story.free(A, 1, 1, End::Forced);
        let next = story.acquire(B, Mode::Exclusive, 2);
        story.now += claims_after * SECOND;
        story.claim(victim);
        story.claim(next);
        if known { story.is_right() } else { story.shows("L10", Some(victim)) }
    }
}

#[test]
fn a_victim_that_is_cut_off_cannot_know() {
    let mut story = Story::begin();
    let victim = story.acquire(A, Mode::Exclusive, 1);
    story.fact(Fact::Reachable { member: A, reachable: false });
    story.free(A, 1, 1, End::Forced);
    story.now += 30 * SECOND;
    story.claim(victim);
    story.is_right();
}

#[test]
fn an_expiry_excuses_nobody() {
    let mut story = Story::begin();
    let late = story.acquire(A, Mode::Exclusive, 1);
    story.free(A, 1, 1, End::Expired);
    let next = story.acquire(B, Mode::Exclusive, 2);
    story.claim(late);
    story.shows("L1", Some(next));
    story.shows("S6", Some(late));
}

#[test]
fn tokens_that_repeat_or_go_back_are_named() {
    for token in [1, 4, 5] {
        let mut story = Story::begin();
        let first = story.acquire(A, Mode::Exclusive, 5);
        story.release(A, first, 5);
        let second = story.acquire(B, Mode::Exclusive, token);
        story.shows("L3", Some(second));
        story.has_no_order(Some(second));
    }
}

#[test]
fn readers_are_unordered_among_themselves_only() {
    let mut story = Story::begin();
    for (client, token) in [(A, 3), (B, 2)] {
        let reader = story.acquire(client, Mode::Shared, token);
        story.release(client, reader, token);
    }
    story.is_right();
    let writer = story.acquire(A, Mode::Exclusive, 3);
    story.shows("L3", Some(writer));
}

#[test]
fn an_answer_that_nobody_can_know_is_named() {
    let mut story = Story::begin();
    let invented = story.tell(A, Story::ask(Mode::Exclusive), Outcome::Ok(Answer::Granted(1)));
    story.shows("H", Some(invented));

    let mut story = Story::begin();
    let alone = story.tell(A, Story::ask(Mode::Exclusive), Outcome::Ok(Answer::Held));
    story.shows("L2", Some(alone));

    let mut story = Story::begin();
    let hold = story.acquire(A, Mode::Exclusive, 1);
    let released = story.tell(A, Asked::Release { hold }, Outcome::Ok(Answer::Done));
    story.shows("L4", Some(released));

    let mut story = Story::begin();
    let joined = story.tell(A, Asked::Join(GROUP, 1), Outcome::Ok(Answer::Done));
    story.shows("G2", Some(joined));

    let mut story = Story::begin();
    story.fact(Fact::Created { group: GROUP });
    let missing = story.tell(A, Asked::Delete(GROUP), Outcome::Fail(ErrorKind::GroupNotFound));
    story.shows("G1", Some(missing));
    let unlisted = story.tell(A, Asked::List, Outcome::Ok(Answer::Groups(vec![])));
    story.shows("G1", Some(unlisted));
    let invented = story.tell(A, Asked::List, Outcome::Ok(Answer::Groups(vec![GROUP, LOCK])));
    story.shows("G7", Some(invented));
}

#[test]
fn a_true_none_is_right() {
    let mut story = Story::begin();
    story.acquire(A, Mode::Exclusive, 1);
    story.tell(B, Story::ask(Mode::Exclusive), Outcome::Ok(Answer::Held));
    story.is_right();
}

#[test]
fn whoever_passes_the_queue_is_named() {
    let mut story = Story::begin();
    story.fact(Fact::Queued { lock: LOCK, member: A, attempt: 100 });
    story.acquire(B, Mode::Exclusive, 1);
    story.shows("L8", None);
}

#[test]
fn a_grant_for_nobody_is_named() {
    let mut story = Story::begin();
    story.call(A, Story::ask(Mode::Exclusive));
    let attempt = story.grant(A, Mode::Exclusive, 1);
    story.now += SECOND;
    let mut soon = Story { history: story.history.clone(), ..story };
    soon.free(A, attempt, 1, End::Released);
    soon.is_right();
    story = soon;
    story.history.facts.pop();
    story.now += 60 * SECOND;
    story.free(A, attempt, 1, End::Released);
    story.shows("L6", None);
}

#[test]
fn a_grant_that_was_given_back_and_stands_is_named() {
    let mut story = Story::begin();
    let held = story.acquire(A, Mode::Exclusive, 1);
    let ended = story.now();
    story.history.holds[0].ended = Some(ended);
    story.tell(A, Asked::Release { hold: held }, Outcome::Unknown);
    story.now += 60 * SECOND;
    story.fact(Fact::Created { group: GROUP });
    story.shows("L6", None);
}

#[test]
fn what_is_left_behind_is_named() {
    let mut story = Story::begin();
    story.history.left.push(Left { what: "grants", count: 1 });
    story.shows("S3", None);
}

#[test]
fn an_unknown_outcome_may_be_either() {
    for happened in [true, false] {
        let mut story = Story::begin();
        let held = story.acquire(A, Mode::Exclusive, 1);
        let released = story.call(A, Asked::Release { hold: held });
        if happened {
            story.free(A, 1, 1, End::Released);
        }
        story.answer(released, Outcome::Unknown);
        if happened {
            story.acquire(B, Mode::Exclusive, 2);
        }
        story.is_right();
    }
}

fn record(member: Name, incarnation: u128, value: u64) -> Record {
    Record { member, incarnation, value }
}

/// A group in which a joins, publishes, leaves and joins again while b is there, and what a watch delivered of it.
fn watched(seen: &[Seen]) -> Story {
    let mut story = Story::begin();
    story.fact(Fact::Created { group: GROUP });
    story.fact(Fact::Joined { group: GROUP, record: record(B, 1, 0) });
    story.fact(Fact::Joined { group: GROUP, record: record(A, 2, 0) });
    let updated = story.call(A, Asked::Update(GROUP, 7));
    story.fact(Fact::Updated { group: GROUP, record: record(A, 2, 7) });
    story.answer(updated, Outcome::Ok(Answer::Done));
    story.fact(Fact::Left { group: GROUP, record: record(A, 2, 7), how: Departure::Left });
    story.fact(Fact::Joined { group: GROUP, record: record(A, 3, 0) });
    let mut watch = Watch { client: A, group: GROUP, seen: Vec::new(), at_rest: None };
    for seen in seen {
        watch.seen.push((story.now(), seen.clone()));
    }
    watch.at_rest = Some(story.now());
    story.history.watches.push(watch);
    story
}

#[test]
fn a_watch_that_tells_everything_is_right() {
    let b = record(B, 1, 0);
    for seen in [
        vec![
            Seen::Snapshot(vec![b]),
            Seen::Joined(record(A, 2, 0)),
            Seen::Updated(record(A, 2, 7)),
            Seen::Left(record(A, 2, 7), Departure::Left),
            Seen::Joined(record(A, 3, 0)),
        ],
        vec![Seen::Snapshot(vec![]), Seen::Resync(vec![record(A, 3, 0), b])],
        vec![Seen::Snapshot(vec![b, record(A, 3, 0)])],
    ] {
        watched(&seen).is_right();
    }
}

#[test]
fn a_watch_that_loses_invents_or_disorders_is_named() {
    let b = record(B, 1, 0);
    for seen in [
        // Lost: the update, the second join, everything.
        vec![
            Seen::Snapshot(vec![b]),
            Seen::Joined(record(A, 2, 0)),
            Seen::Left(record(A, 2, 7), Departure::Left),
            Seen::Joined(record(A, 3, 0)),
        ],
        vec![
            Seen::Snapshot(vec![b]),
            Seen::Joined(record(A, 2, 0)),
            Seen::Updated(record(A, 2, 7)),
            Seen::Left(record(A, 2, 7), Departure::Left),
        ],
        vec![Seen::Snapshot(vec![b])],
        // A leave as a death.
        vec![
            Seen::Snapshot(vec![b, record(A, 2, 7)]),
            Seen::Left(record(A, 2, 7), Departure::Died),
            Seen::Joined(record(A, 3, 0)),
        ],
        // Invented, doubled, in another order, without its beginning.
        vec![Seen::Snapshot(vec![b]), Seen::Joined(record(A, 9, 0))],
        vec![Seen::Snapshot(vec![b, record(A, 3, 0)]), Seen::Joined(record(A, 3, 0))],
        vec![Seen::Snapshot(vec![b, record(A, 3, 0)]), Seen::Resync(vec![b])],
        vec![Seen::Joined(record(A, 3, 0))],
    ] {
        watched(&seen).shows("W1", None);
    }
}

#[test]
fn a_stale_read_of_a_member_has_no_order() {
    let mut story = Story::begin();
    story.fact(Fact::Created { group: GROUP });
    let joined = story.call(A, Asked::Join(GROUP, 1));
    story.fact(Fact::Joined { group: GROUP, record: record(A, 1, 1) });
    story.answer(joined, Outcome::Ok(Answer::Done));
    let updated = story.call(A, Asked::Update(GROUP, 2));
    story.fact(Fact::Updated { group: GROUP, record: record(A, 1, 2) });
    // While the update runs, either may be read, and never the old one after the new one.
    let new = story.tell(B, Asked::Read(GROUP, A), Outcome::Ok(Answer::Value(Some(2))));
    story.answer(updated, Outcome::Ok(Answer::Done));
    story.is_right();
    let stale = story.tell(B, Asked::Read(GROUP, A), Outcome::Ok(Answer::Value(Some(1))));
    story.has_no_order(Some(stale));
    assert!(new < stale);
}

/// A member of one group, with an update that is answered as `outcome` after `facts`.
fn updated(facts: &[Fact], outcome: Outcome) -> (Story, OperationId) {
    let mut story = Story::begin();
    story.fact(Fact::Created { group: GROUP });
    story.fact(Fact::Joined { group: GROUP, record: record(A, 1, 1) });
    let id = story.call(A, Asked::Update(GROUP, 2));
    for fact in facts {
        story.fact(*fact);
    }
    story.answer(id, outcome);
    (story, id)
}

#[test]
fn an_update_is_done_once_and_while_it_runs_or_refused() {
    let done = || Outcome::Ok(Answer::Done);
    let published = Fact::Updated { group: GROUP, record: record(A, 1, 2) };
    updated(&[published], done()).0.is_right();
    updated(&[published], Outcome::Unknown).0.is_right();
    updated(&[], Outcome::Unknown).0.is_right();
    updated(&[], Outcome::Fail(ErrorKind::Unavailable)).0.is_right();
    let (story, id) = updated(&[], done());
    story.shows("G5", Some(id));
    let (story, id) = updated(&[published], Outcome::Fail(ErrorKind::Unavailable));
    story.shows("H", Some(id));
    // The same once more is no change; what was replaced must not come back.
    updated(&[published, published], done()).0.is_right();
    let (mut story, id) = updated(&[published], done());
    let newer = story.call(A, Asked::Update(GROUP, 3));
    story.fact(Fact::Updated { group: GROUP, record: record(A, 1, 3) });
    story.answer(newer, done());
    story.is_right();
    story.fact(published);
    story.shows("G5", Some(id));
    let (mut story, _) = updated(&[], Outcome::Unknown);
    story.fact(Fact::Updated { group: GROUP, record: record(A, 1, 9) });
    story.shows("G5", None);
}

/// An update while its coordinator is without a session is noted, and published with the rejoin.
#[test]
fn an_update_between_a_loss_and_the_rejoin_is_published_with_the_rejoin() {
    let left = Fact::Left { group: GROUP, record: record(A, 1, 1), how: Departure::Left };
    // Nor does it matter that another call of the same coordinator joined meanwhile.
    let joined = Fact::Joined { group: GROUP, record: record(A, 2, 3) };
    let left_again = Fact::Left { group: GROUP, record: record(A, 2, 3), how: Departure::Left };
    let (mut story, _) = updated(&[left, joined, left_again], Outcome::Ok(Answer::Done));
    story.fact(Fact::Joined { group: GROUP, record: record(A, 3, 2) });
    story.is_right();
    // Nor whether it is answered before the rejoin or after it.
    let risen = Fact::Joined { group: GROUP, record: record(A, 2, 2) };
    updated(&[left, risen], Outcome::Ok(Answer::Done)).0.is_right();
}

#[test]
fn an_update_makes_no_member_of_somebody_who_left() {
    let mut story = Story::begin();
    story.fact(Fact::Created { group: GROUP });
    story.fact(Fact::Joined { group: GROUP, record: record(A, 1, 1) });
    let leaving = story.call(A, Asked::Leave(GROUP));
    story.fact(Fact::Left { group: GROUP, record: record(A, 1, 1), how: Departure::Left });
    story.answer(leaving, Outcome::Ok(Answer::Done));
    story.is_right();
    let id = story.call(A, Asked::Update(GROUP, 2));
    story.fact(Fact::Joined { group: GROUP, record: record(A, 2, 2) });
    story.answer(id, Outcome::Ok(Answer::Done));
    story.shows("G5", Some(id));
}

#[test]
fn one_permit_too_many_is_named_although_nobody_claims_it() {
    let mut story = Story::begin();
    for (number, clean) in [(1, true), (2, true), (3, false)] {
        story.grant(A, Mode::Permit(2), number);
        let found = story.violations();
        assert_eq!(found.iter().all(|violation| violation.clause != "L15"), clean, "{found:?}");
    }
}

#[test]
fn a_release_that_is_refused_and_done_is_named() {
    let mut story = Story::begin();
    let held = story.call(A, Story::ask(Mode::Exclusive));
    let attempt = story.grant(A, Mode::Exclusive, 1);
    story.answer(held, Outcome::Ok(Answer::Granted(1)));
    let released = story.call(A, Asked::Release { hold: held });
    story.free(A, attempt, 1, End::Released);
    story.answer(released, Outcome::Fail(ErrorKind::Unavailable));
    story.shows("H", Some(released));
}
