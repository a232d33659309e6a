//! Files and trees of files, for both sides of a sandbox's wall.
//!
//! Two promises, each kept in one place:
//!
//! - What replaces a file is complete or has changed nothing ([`NewFile`]).
//! - What is unpacked stays below its destination, whatever its members are called and whatever links stand there
//!   ([`Tree`], [`unpack`]).
//!
//! Everything is synchronous and acts with the rights of its thread. This crate knows no HTTP, no sandbox and no users.

#![forbid(unsafe_code)]

mod pack;
mod place;
mod replace;
mod tree;
mod unfinished;
mod unpack;

use std::path::PathBuf;

pub use pack::{Packed, Root, pack};
pub use place::{make_directories, random_name, spool};
pub use replace::{NewFile, ReplaceError, Wanted};
pub use tree::{Bounds, Tree, TreeError, Unpacked, relative};
pub use unfinished::finish_writes;
pub use unpack::{unpack, unpack_under};

/// What was left out, and why: a special file, or one that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Below the tree.
    pub path: PathBuf,
    pub reason: String,
}
