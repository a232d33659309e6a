//! The HTTP edge.

pub(crate) mod idle;
pub mod native;
pub mod problem;
pub mod server;
