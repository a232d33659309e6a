//! The HTTP edge.

pub mod native;
pub mod problem;
pub mod server;
