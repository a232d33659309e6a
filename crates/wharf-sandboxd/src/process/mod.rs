//! Users and processes of the sandbox.

pub mod users;
