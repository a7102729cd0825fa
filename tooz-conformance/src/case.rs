//! What a case is, and where it applies.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tooz_core::Characteristics;

use crate::harness::Harness;
use crate::target::Target;
use crate::tools::Outcome;

/// A case that is running; it stays on the thread that started it.
pub type Running = Pin<Box<dyn Future<Output = Outcome>>>;

/// Long enough for a loaded machine; a case that hangs is ended then.
const BUDGET: Duration = Duration::from_secs(20);

/// Which clock a case runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// The one that the target prefers.
    Any,
    /// The virtual one: it asserts times to the millisecond.
    Virtual,
    /// The real one: it uses threads or processes, which no virtual clock waits for.
    Real,
}

/// Whether a case is about sessions that end by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sessions {
    Any,
    Ttl,
    NoTtl,
}

/// Facilities of a target beside the backend itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    None,
    /// A [`Kit`](crate::Kit).
    Kit,
    /// Files that can be looked at.
    Files,
    /// A way to make a session die without a word: a [`Kit`](crate::Kit), or processes to be killed.
    Deaths,
}

/// One promise of the contract, put to the test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    clauses: &'static [&'static str],
    needs: Characteristics,
    lacks: Characteristics,
    sessions: Sessions,
    extra: Extra,
    clock: Clock,
    lasting: bool,
    budget: Duration,
    run: fn(Harness) -> Running,
}

impl Case {
    /// A case that every driver has to pass.
    pub(crate) const fn new(
        name: &'static str,
        clauses: &'static [&'static str],
        run: fn(Harness) -> Running,
    ) -> Self {
        Self {
            name,
            clauses,
            needs: Characteristics::empty(),
            lacks: Characteristics::empty(),
            sessions: Sessions::Any,
            extra: Extra::None,
            clock: Clock::Any,
            lasting: false,
            budget: BUDGET,
            run,
        }
    }

    /// Only where these are claimed.
    pub(crate) const fn needs(mut self, needs: Characteristics) -> Self {
        self.needs = self.needs.union(needs);
        self
    }

    /// The twin: only where these are not claimed.
    pub(crate) const fn lacks(mut self, lacks: Characteristics) -> Self {
        self.lacks = self.lacks.union(lacks);
        self
    }

    /// Only where sessions end by time.
    pub(crate) const fn ttl(mut self) -> Self {
        self.sessions = Sessions::Ttl;
        self
    }

    /// Only where sessions do not end by time.
    pub(crate) const fn no_ttl(mut self) -> Self {
        self.sessions = Sessions::NoTtl;
        self
    }

    /// Needs to hurt the backend.
    pub(crate) const fn kit(mut self) -> Self {
        self.extra = Extra::Kit;
        self
    }

    /// Needs to look at the backend's files.
    pub(crate) const fn files(mut self) -> Self {
        self.extra = Extra::Files;
        self
    }

    /// Lets a session die without a word, see [`Victim`](crate::Victim).
    pub(crate) const fn deaths(mut self) -> Self {
        self.extra = Extra::Deaths;
        self
    }

    /// Starts other processes.
    pub(crate) const fn processes(self) -> Self {
        self.real().needs(Characteristics::DISTRIBUTED_ACROSS_PROCESSES)
    }

    /// Asserts times to the millisecond.
    pub(crate) const fn exact(mut self) -> Self {
        self.clock = Clock::Virtual;
        self
    }

    /// Uses threads, which no virtual clock waits for.
    pub(crate) const fn real(mut self) -> Self {
        self.clock = Clock::Real;
        self
    }

    /// Lets as much time pass as sessions live, although it is about any.
    pub(crate) const fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// How long it may take at most.
    pub(crate) const fn budget(mut self, seconds: u64) -> Self {
        self.budget = Duration::from_secs(seconds);
        self
    }

    /// The name of its function, which is its id.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The clauses of the contract that it tests.
    pub fn clauses(&self) -> &'static [&'static str] {
        self.clauses
    }

    /// The characteristics without which it does not run.
    pub fn needed(&self) -> Characteristics {
        self.needs
    }

    /// The characteristics with which it does not run.
    pub fn lacking(&self) -> Characteristics {
        self.lacks
    }

    /// How long it may take on the real clock.
    pub fn time_limit(&self) -> Duration {
        self.budget
    }

    /// Starts it.
    pub fn run(&self, harness: Harness) -> Running {
        (self.run)(harness)
    }

    /// Whether it runs on the virtual clock there.
    pub fn is_virtual(&self, target: &Target) -> bool {
        match self.clock {
            Clock::Any => target.prefers_virtual_clock(),
            Clock::Virtual => true,
            Clock::Real => false,
        }
    }

    /// Whether it lasts as long as sessions live, as all do that let one expire.
    pub fn is_lasting(&self) -> bool {
        self.lasting
            || self.sessions == Sessions::Ttl
            || self.extra != Extra::None
            || self.needs.contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES)
    }

    /// Why it does not apply to `target`; `None`: it does.
    pub fn why_not(&self, target: &Target) -> Option<String> {
        let claimed = target.characteristics();
        let missing = self.needs - claimed;
        if !missing.is_empty() {
            return Some(format!("needs {missing}"));
        }
        let present = self.lacks & claimed;
        if !present.is_empty() {
            return Some(format!("twin without {present}"));
        }
        if target.is_variant() && (self.name.starts_with("incident_") || self.budget > BUDGET) {
            return Some("runs on the plain target".into());
        }
        match self.sessions {
            Sessions::Ttl if !target.has_ttl() => return Some("needs sessions with a ttl".into()),
            Sessions::NoTtl if target.has_ttl() => return Some("needs sessions without a ttl".into()),
            _ => {}
        }
        match self.extra {
            Extra::Kit if !target.has_kit() => return Some("needs a fault kit".into()),
            Extra::Files if !target.has_files() => return Some("needs a backend in files".into()),
            Extra::Deaths if !target.has_deaths() => return Some("needs a fault kit or processes".into()),
            _ => {}
        }
        (self.clock == Clock::Virtual && !target.can_virtual_clock())
            .then(|| "needs the virtual clock".into())
    }
}

/// A row of a table of cases: the function, and the clauses that it tests.
macro_rules! case {
    ($function:ident, $($clause:literal),+) => {
        $crate::case::Case::new(stringify!($function), &[$($clause),+], |harness| Box::pin($function(harness)))
    };
}
pub(crate) use case;
