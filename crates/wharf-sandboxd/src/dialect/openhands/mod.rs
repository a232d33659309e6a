//! The OpenHands V0 action execution API.

pub mod default_files;
pub mod multi_command;
