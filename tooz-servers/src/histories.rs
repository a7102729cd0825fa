//! Random histories of one lock, for the comparison of a driver with a model.
//!
//! The same histories on every run. `TOOZ_SEEDS=n` makes n instead of the default; `TOOZ_FIRST=n` begins at seed n.

use std::fmt::{Debug, Write};

/// How an attempt wants the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// With other readers.
    Shared,
    /// As one of so many.
    Permit(u32),
}

/// One step. Sessions and attempts are numbers without a bound: the test takes them modulo those that there are, so a history
/// stays one when a step is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A session asks for the lock with a new attempt.
    Request {
        /// Which session.
        session: usize,
        /// How.
        mode: Mode,
        /// Whether it queues.
        wait: bool,
    },
    /// An attempt that holds or waits is sent again.
    Again(usize),
    /// A holder gives the lock back.
    Release {
        /// Which holder.
        holder: usize,
        /// Whether its work was done.
        clean: bool,
    },
    /// An attempt is taken back, whether it waits or was granted unseen.
    Withdraw(usize),
    /// An operator breaks one grant, or all.
    Break(Option<usize>),
    /// A session is closed.
    Close {
        /// Which session.
        session: usize,
        /// Whether what it held was given back cleanly.
        clean: bool,
    },
    /// A session dies.
    Die(usize),
    /// The holders are listed.
    List,
    /// A foreign holder takes the lock, whoever holds it.
    ForeignComes,
    /// The foreign holder is gone.
    ForeignGoes,
}

/// Sebastiano Vigna's `SplitMix64`: the next random number below `bound`.
fn below(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) >> 33).unwrap_or(0) % bound
}

/// The history of a seed: 30 to 45 steps.
pub fn history(seed: u64, foreign: bool) -> Vec<Step> {
    let mut state = seed;
    let steps = 30 + below(&mut state, 16);
    // Some histories have one kind of mode most of the time, or readers and permits would hardly meet their like.
    let favorite = below(&mut state, 5);
    let mut step = || {
        let mut random = |bound| below(&mut state, bound);
        let any = random(1 << 16);
        match random(if foreign { 23 } else { 20 }) {
            0..9 => {
                let kind = if random(3) == 0 { random(4) } else { favorite };
                let mode = match kind {
                    0 => Mode::Exclusive,
                    1 => Mode::Shared,
                    2 => Mode::Permit(2),
                    3 => Mode::Permit(3),
                    _ => [Mode::Exclusive, Mode::Shared][random(2)],
                };
                Step::Request { session: any, mode, wait: random(6) > 0 }
            }
            9 => Step::Again(any),
            10..14 => Step::Release { holder: any, clean: random(3) > 0 },
            14 | 15 => Step::Withdraw(any),
            16 => Step::Break((random(2) == 0).then_some(any)),
            17 => Step::Close { session: any, clean: random(2) == 0 },
            18 => Step::Die(any),
            19 => Step::List,
            20 => Step::ForeignComes,
            _ => Step::ForeignGoes,
        }
    };
    (0..steps).map(|_| step()).collect()
}

/// Runs the histories of as many seeds.
///
/// # Panics
/// A run failed: says the seed, and the shortest history that fails.
pub async fn compare(default: u64, foreign: bool, mut run: impl AsyncFnMut(&[Step]) -> Result<(), String>) {
    let set = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let first = set("TOOZ_FIRST").unwrap_or(0);
    for seed in first..first + set("TOOZ_SEEDS").unwrap_or(default) {
        let steps = history(seed, foreign);
        if let Err(why) = run(&steps).await {
            let (steps, why) = shrink(steps, why, &mut run).await;
            panic!("seed {seed}: {why}, after{}", shown(&steps));
        }
    }
}

fn shown(steps: &[impl Debug]) -> String {
    steps.iter().fold(String::new(), |mut text, step| {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    {step:?}");
        text
    })
}

/// Leaves steps out as long as what is left fails, from the end, until none can be left out.
async fn shrink(
    mut steps: Vec<Step>,
    mut why: String,
    run: &mut impl AsyncFnMut(&[Step]) -> Result<(), String>,
) -> (Vec<Step>, String) {
    loop {
        let before = steps.len();
        for left_out in (0..before).rev() {
            let mut fewer = steps.clone();
            fewer.remove(left_out);
            if let Err(now) = run(&fewer).await {
                (steps, why) = (fewer, now);
            }
        }
        if steps.len() == before {
            return (steps, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_history() {
        assert_eq!(history(7, true), history(7, true));
        assert_ne!(history(7, true), history(8, true));
        let all: Vec<_> = (0..100).flat_map(|seed| history(seed, false)).collect();
        assert!(all.len() >= 3000 && !all.contains(&Step::ForeignComes));
    }

    #[tokio::test]
    async fn the_shortest_history_that_fails_is_shown() {
        let mut run = async |steps: &[Step]| {
            let deaths = steps.iter().filter(|step| matches!(step, Step::Die(_))).count();
            if deaths > 1 { Err(format!("{deaths} deaths")) } else { Ok(()) }
        };
        let steps = [Step::List, Step::Die(1), Step::List, Step::Die(2), Step::Die(3)].to_vec();
        let (steps, why) = shrink(steps, "3 deaths".into(), &mut run).await;
        assert_eq!((steps, why.as_str()), (vec![Step::Die(1), Step::Die(2)], "2 deaths"));
    }
}
