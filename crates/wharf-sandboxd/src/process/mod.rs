//! Users and processes of the sandbox.
//!
//! `own` is what sandboxd makes of itself before anything else, `door` what passes to a child, `spawn` starts one, `tree`
//! ends all that it has started, `reaper` knows which numbers are still held.

pub mod door;
mod mark;
pub mod memory;
pub mod own;
pub mod reaper;
pub mod spawn;
pub mod tree;
pub mod usage;
pub mod users;
