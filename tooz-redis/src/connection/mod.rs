//! The connections to the server.

pub(crate) mod address;
pub(crate) mod channels;
pub(crate) mod discovery;
pub(crate) mod link;
pub(crate) mod reply;
pub(crate) mod server_info;
pub(crate) mod supervisor;
pub(crate) mod tls;
