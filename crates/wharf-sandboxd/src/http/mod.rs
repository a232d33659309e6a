//! The HTTP edge.

pub mod native;
