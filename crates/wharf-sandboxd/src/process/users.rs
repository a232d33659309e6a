//! The users of the sandbox's image.

use std::path::PathBuf;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All supplementary groups, without a fixed order.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
}
