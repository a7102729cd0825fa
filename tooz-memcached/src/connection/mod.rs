//! The connection to the server: commands and answers, and the link that carries them.

pub(crate) mod command;
pub(crate) mod greeting;
pub(crate) mod link;
