//! A driver that looks at a database without a session.

mod reader;

pub(crate) use reader::connect;
