//! What goes wrong: cuts, pauses, lost answers, breaks, evictions, killed sessions, suspended machines, crashes.

use std::sync::Arc;
use std::time::Duration;

use tooz_memory::{Cut, Operation, Outcome};

use super::participants::Participants;
use super::rng::Rng;
use super::world::World;

/// Calls whose answers get lost.
const CALLS: [Operation; 15] = [
    Operation::Open,
    Operation::Renew,
    Operation::Request,
    Operation::Request,
    Operation::Turn,
    Operation::Withdraw,
    Operation::Release,
    Operation::Release,
    Operation::Join,
    Operation::Leave,
    Operation::Update,
    Operation::Create,
    Operation::Watch,
    Operation::Break,
    Operation::Close,
];

pub(super) struct Nemesis<'a> {
    pub(super) world: &'a Arc<World>,
    pub(super) rng: &'a Rng,
    pub(super) ttl: Option<Duration>,
}

impl Nemesis<'_> {
    /// Does harm for so long.
    pub(super) async fn rage(&self, participants: &mut Participants, rounds: u64) {
        for _ in 0..rounds {
            tokio::time::sleep(self.rng.millis(50, 1_500)).await;
            self.world.ask_everybody();
            self.strike(participants).await;
        }
    }

    /// Shorter than a ttl, or longer.
    fn a_while(&self) -> Duration {
        let ttl = self.ttl.unwrap_or(Duration::from_secs(3));
        let most = u64::try_from(ttl.as_millis()).unwrap_or(3_000) * 2;
        if self.rng.one_in(2) { self.rng.millis(50, 1_000) } else { self.rng.millis(1_000, most) }
    }

    async fn strike(&self, participants: &mut Participants) {
        let (world, rng) = (self.world, self.rng);
        let index = usize::try_from(rng.below(world.members.len() as u64)).unwrap_or(0);
        let Some(member) = world.members.get(index) else { return };
        match rng.below(18) {
            0..=3 => {
                let how = if rng.one_in(3) { Cut::Fail } else { Cut::Hang };
                world.cut_off(member, how);
                self.meanwhile(self.a_while()).await;
                world.heal(member);
            }
            4 => {
                world.pause(true);
                self.meanwhile(self.a_while()).await;
                world.pause(false);
            }
            5 => {
                let delay = rng.millis(0, 60);
                // An answer that comes late proves the session from when its beat was sent, and no later.
                let answers = if rng.one_in(2) { rng.millis(100, 900) } else { Duration::ZERO };
                world.note("", format_args!("calls take {delay:?} more, and their answers {answers:?}"));
                world.kit.delay(delay);
                world.kit.delay_answers(answers);
                self.meanwhile(rng.millis(100, 5_000)).await;
                world.kit.delay(Duration::ZERO);
                if rng.one_in(2) {
                    // The last answers are still under way when the member is cut off.
                    world.cut_off(member, Cut::Hang);
                }
                world.kit.delay_answers(Duration::ZERO);
                self.meanwhile(self.a_while()).await;
                world.heal(member);
            }
            6..=9 => self.lose_answers(member),
            10 => {
                world.note("", format_args!("kill the sessions of {}", member.0));
                world.by_force(|kit| kit.expire(&member.0));
            }
            11 => self.by_hand(member),
            12 | 13 => {
                let time = self.a_while();
                world.note("", format_args!("the machine is suspended for {time:?}"));
                world.asleep(|| {
                    world.recorder.suspend(time);
                    participants.suspend(time);
                });
                // The backend looks at its clock: what is over ends now, before any task has run.
                world.note("", format_args!("{} sessions survive", world.kit.sessions()));
                world.ask_everybody();
            }
            14 | 15 => participants.crash(world, rng, index).await,
            16 => participants.close(world, rng, index).await,
            _ => {
                // Two at once: the holder is cut off, and the waiter loses its answer.
                world.cut_off(member, Cut::Hang);
                self.lose_answers(member);
                self.meanwhile(self.a_while()).await;
                world.heal(member);
            }
        }
    }

    /// Waits, and asks all holders from time to time whether they still believe that they hold.
    async fn meanwhile(&self, time: Duration) {
        for _ in 0..4 {
            tokio::time::sleep(time / 4).await;
            self.world.ask_everybody();
        }
    }

    fn lose_answers(&self, member: &(String, crate::history::Name)) {
        let rng = self.rng;
        let call = rng.one_of(&CALLS).unwrap_or(Operation::Request);
        let outcome =
            rng.one_of(&[Outcome::Fail, Outcome::Indeterminate, Outcome::Indeterminate, Outcome::Lost]);
        let outcome = outcome.unwrap_or(Outcome::Lost);
        // More than one beat in a row that fails would be a session that ends, and other faults do that.
        let count = if call == Operation::Renew { 1 } else { rng.below(3) + 1 };
        self.world.note("", format_args!("the next {count} {call:?} of {}: {outcome:?}", member.0));
        self.world.kit.next_of(&member.0, call, count, outcome);
    }

    fn by_hand(&self, member: &(String, crate::history::Name)) {
        let (world, rng) = (self.world, self.rng);
        let lock = rng.one_of(&["x", "y", "p"]).unwrap_or("x");
        let group = rng.one_of(&super::grouping::GROUPS).unwrap_or("g");
        match rng.below(8) {
            0 => {
                world.note("", format_args!("break {lock} by hand"));
                world.by_force(|kit| kit.break_lock(lock, "by hand"));
            }
            1 => {
                world.note("", format_args!("depose the leader"));
                world.by_force(|kit| kit.depose("g", "by hand"));
            }
            2 | 3 => {
                world.note("", format_args!("delete {lock} by hand"));
                world.by_force(|kit| kit.forget_lock(lock));
            }
            4 | 5 => {
                world.note("", format_args!("evict {} from {group}", member.0));
                world.kit.evict(group, &member.0);
            }
            _ => {
                world.note("", format_args!("all data is lost"));
                world.by_force(tooz_memory::Kit::lose_data);
            }
        }
    }
}
