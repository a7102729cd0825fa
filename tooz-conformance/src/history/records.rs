//! What a history is made of.

use std::collections::BTreeMap;
use std::fmt;

use tooz_core::{Departure, ErrorKind};

/// A point on the clock of the run, in nanoseconds from its start. No two are the same: what happens while a
/// virtual clock stands still is a nanosecond apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

/// Seconds with microseconds.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// The name of a lock, a group or a member, as a number; [`History::names`] has the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub u32);

/// An operation's place in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub usize);

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Alone.
    Exclusive,
    /// With other readers.
    Shared,
    /// With at most so many others.
    Permit(u32),
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A lock or a leadership.
    Acquire {
        /// Which.
        lock: Name,
        /// How.
        mode: Mode,
        /// Whether it waits without limit.
        waits: bool,
    },
    /// To give a hold back.
    Release {
        /// The acquire that was granted.
        hold: OperationId,
    },
    /// To free a lock from outside.
    Break(Name),
    /// To create a group.
    Create(Name),
    /// To delete a group.
    Delete(Name),
    /// To join a group, and what to publish.
    Join(Name, u64),
    /// To leave a group.
    Leave(Name),
    /// To publish something else.
    Update(Name, u64),
    /// What another member publishes.
    Read(Name, Name),
    /// All groups.
    List,
    /// Anything that only ends well or not.
    Other(&'static str),
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is held, with this token.
    Granted(u64),
    /// Another client holds it or is before us.
    Held,
    /// It was not granted; which lock was held, or whether it was asked for at all, is unknown.
    NotGranted,
    /// The hold had ended before.
    WasNotHolder,
    /// What the member publishes; `None`: it is no member.
    Value(Option<u64>),
    /// The groups.
    Groups(Vec<Name>),
}

/// How an operation ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Ok(Answer),
    /// It was refused, and had no effect.
    Fail(ErrorKind),
    /// It may have had an effect, and may still have one.
    Unknown,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Whose coordinator.
    pub client: Name,
    /// What it asked for.
    pub asked: Asked,
    /// When it was called.
    pub call: Moment,
    /// When it returned, or was given up.
    pub returned: Moment,
    /// How.
    pub outcome: Outcome,
}

/// A granted acquire, and how long its client believed in it.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// The acquire.
    pub operation: OperationId,
    /// When it was last said to be held; `None`: never, it was lost before anybody asked.
    pub claimed: Option<Moment>,
    /// When its client began to give it back, by whatever way.
    pub ended: Option<Moment>,
}

/// How a grant ended on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Given back or withdrawn.
    Released,
    /// Its session's time was over.
    Expired,
    /// By force: broken, deleted by hand, its session killed, the backend's data lost. The one case in which two
    /// guards may be valid for a while.
    Forced,
}

/// What really happened, as the backend says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what their names say
pub enum Fact {
    Queued {
        lock: Name,
        member: Name,
        attempt: u128,
    },
    Unqueued {
        lock: Name,
        member: Name,
        attempt: u128,
    },
    Granted {
        lock: Name,
        member: Name,
        attempt: u128,
        mode: Mode,
        token: u64,
    },
    Freed {
        lock: Name,
        member: Name,
        attempt: u128,
        token: u64,
        end: End,
    },
    Created {
        group: Name,
    },
    Deleted {
        group: Name,
    },
    /// The group went with the backend's data.
    Lost {
        group: Name,
    },
    Joined {
        group: Name,
        record: Record,
    },
    Updated {
        group: Name,
        record: Record,
    },
    Left {
        group: Name,
        record: Record,
        how: Departure,
    },
    /// From now on this member's calls and news go through again, or it hears nothing any more.
    Reachable {
        member: Name,
        reachable: bool,
    },
}

/// A member's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// Who.
    pub member: Name,
    /// Which time of being a member.
    pub incarnation: u128,
    /// What it publishes.
    pub value: u64,
}

/// What a watch delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as in the library
pub enum Seen {
    Snapshot(Vec<Record>),
    Resync(Vec<Record>),
    Joined(Record),
    Left(Record, Departure),
    Updated(Record),
    Deleted,
}

/// One watch of a group and everything that it delivered.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose.
    pub client: Name,
    /// The group.
    pub group: Name,
    /// What came, in order.
    pub seen: Vec<(Moment, Seen)>,
    /// When it had been followed until nothing came any more: then its view must be the group's.
    pub at_rest: Option<Moment>,
}

/// Something that was found after everybody had ended.
#[derive(Clone, Debug)]
pub struct Left {
    /// What: grants, places, sessions, watches, members.
    pub what: &'static str,
    /// How many.
    pub count: usize,
}

/// Everything that was recorded in one run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The words of the names.
    pub names: Vec<String>,
    /// In the order of their calls.
    pub operations: Vec<Operation>,
    /// The acquires that were granted, in the order of their returns.
    pub holds: Vec<Hold>,
    /// What really happened, in order.
    pub facts: Vec<(Moment, Fact)>,
    /// The watches of groups.
    pub watches: Vec<Watch>,
    /// What was left behind at the end.
    pub left: Vec<Left>,
}

/// Something that the contract forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The clause.
    pub clause: &'static str,
    /// The operation that shows it, if it is one.
    pub operation: Option<OperationId>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation {
            Some(OperationId(number)) => write!(f, "{} #{number}: {}", self.clause, self.what),
            None => write!(f, "{}: {}", self.clause, self.what),
        }
    }
}

impl History {
    /// The word of a name.
    pub fn name(&self, name: Name) -> &str {
        self.names.get(name.0 as usize).map_or("?", String::as_str)
    }

    /// The operation at this place.
    pub fn operation(&self, id: OperationId) -> Option<&Operation> {
        self.operations.get(id.0)
    }

    /// An operation in one line.
    pub fn describe(&self, id: OperationId) -> String {
        let Some(operation) = self.operation(id) else { return format!("#{}", id.0) };
        let client = self.name(operation.client);
        let asked = match operation.asked {
            Asked::Acquire { lock, mode, waits } => {
                let verb = if waits { "acquire" } else { "try" };
                format!("{verb} {} {mode:?}", self.name(lock))
            }
            Asked::Release { hold } => format!("release #{}", hold.0),
            Asked::Break(lock) => format!("break {}", self.name(lock)),
            Asked::Create(group) => format!("create {}", self.name(group)),
            Asked::Delete(group) => format!("delete {}", self.name(group)),
            Asked::Join(group, value) => format!("join {} {value}", self.name(group)),
            Asked::Leave(group) => format!("leave {}", self.name(group)),
            Asked::Update(group, value) => format!("update {} {value}", self.name(group)),
            Asked::Read(group, member) => format!("read {} of {}", self.name(member), self.name(group)),
            Asked::List => "list".to_owned(),
            Asked::Other(what) => what.to_owned(),
        };
        format!("{client} {asked} -> {:?}", operation.outcome)
    }

    /// The granted acquires: its id, lock, mode, token, the operation, and the last claim.
    pub(super) fn granted(&self) -> impl Iterator<Item = Granted> + '_ {
        self.holds.iter().filter_map(|hold| {
            let operation = self.operation(hold.operation)?;
            match (operation.asked, &operation.outcome) {
                (Asked::Acquire { lock, mode, .. }, Outcome::Ok(Answer::Granted(token))) => Some(Granted {
                    id: hold.operation,
                    client: operation.client,
                    lock,
                    mode,
                    token: *token,
                    call: operation.call,
                    from: operation.returned,
                    until: hold.claimed,
                    ended: hold.ended,
                }),
                _ => None,
            }
        })
    }
}

/// A hold with what its acquire said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) id: OperationId,
    pub(super) client: Name,
    pub(super) lock: Name,
    pub(super) mode: Mode,
    pub(super) token: u64,
    pub(super) call: Moment,
    pub(super) from: Moment,
    /// The last claim.
    pub(super) until: Option<Moment>,
    pub(super) ended: Option<Moment>,
}

/// Things of one lock or group together, each list in the order in which it came.
pub(super) fn by<K: Ord, T>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<T>> {
    let mut sorted: BTreeMap<K, Vec<T>> = BTreeMap::new();
    for item in items {
        sorted.entry(key(&item)).or_default().push(item);
    }
    sorted
}
