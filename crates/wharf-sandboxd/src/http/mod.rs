//! The HTTP edge.

pub mod native;
pub mod problem;
