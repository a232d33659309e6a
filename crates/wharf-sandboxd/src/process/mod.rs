//! Users and processes of the sandbox.

pub mod reaper;
pub mod spawn;
pub mod tree;
pub mod usage;
pub mod users;
