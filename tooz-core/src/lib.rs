//! tooz
#![doc(html_root_url = "https://docs.rs/tooz-core")]

pub mod capabilities;
pub mod characteristics;
pub mod clock;
pub mod driver;
pub mod entropy;
mod error;
mod loss;
mod names;
pub mod options;
mod registry;
pub mod runtime;
mod token;
mod url;

pub use inventory;

pub use capabilities::Capabilities;
pub use characteristics::Characteristics;
pub use error::{Error, ErrorKind, Result};
pub use loss::LossReason;
pub use names::{GroupId, LockName, MAX_NAME_BYTES, MemberId};
pub use registry::{Connecting, Registration, drivers};
pub use runtime::Runtime;
pub use token::{FencingToken, Term};
pub use url::{BackendUrl, Host};
