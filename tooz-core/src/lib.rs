//! tooz
#![doc(html_root_url = "https://docs.rs/tooz-core")]

pub mod capabilities;
pub mod characteristics;
pub mod clock;
mod contend;
mod coordinator;
pub mod driver;
mod election;
pub mod entropy;
mod error;
mod group;
mod guard;
mod heart;
mod hooks;
mod keeper;
mod lock;
mod lock_set;
mod loss;
mod names;
pub mod options;
mod registry;
pub mod runtime;
mod shared;
mod tenure;
mod token;
mod url;
mod watch;

pub use inventory;

pub use capabilities::Capabilities;
pub use characteristics::Characteristics;
pub use clock::Deadline;
pub use coordinator::{Builder, COMMON_OPTIONS, Coordinator};
pub use driver::{HolderRecord, Holders, LockMode, MemberRecord, Previous, Released};
pub use election::{Election, Leader, Leadership, Observer};
pub use error::{Error, ErrorKind, Result};
pub use group::Group;
pub use guard::{LockGuard, LossSignal};
pub use heart::{Event, Events, Heart, Liveness};
pub use hooks::{BoxError, HookEvent, HookId};
pub use lock::Lock;
pub use lock_set::{LockSet, LockSetGuard};
pub use loss::LossReason;
pub use names::{GroupId, LockName, MAX_NAME_BYTES, MemberId};
pub use registry::{Connecting, Registration, drivers};
pub use runtime::Runtime;
pub use token::{FencingToken, Term};
pub use url::{BackendUrl, Host};
pub use watch::{GroupEvent, GroupWatch};
