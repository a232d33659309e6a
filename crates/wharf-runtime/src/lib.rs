//! Where sandboxes live.
//!
//! [`local`] makes a sandbox of confined processes on this machine, [`kubernetes`] of a pod in a cluster; a [`Runtime`] is
//! one of the two. This crate creates, finds, suspends and removes sandboxes; what is done inside a ready one is the
//! client's.
#![deny(unsafe_code)]

pub mod kubernetes;
pub mod local;
mod runtime;

use serde::Serialize;
use wharf_protocol::SandboxId;

pub use self::runtime::{Runtime, RuntimeError, Sandbox};

/// How long a sandbox stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is removed.
    Kept,
    /// Until it is removed or this process has ended: then it is garbage.
    OfThisProcess,
}

/// How a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// Not usable yet.
    Starting {
        waiting: String,
    },
    Ready,
    /// On request; its workspace is kept.
    Suspended,
    /// By itself; its workspace is kept.
    Stopped {
        reason: String,
    },
    Deleting,
}

/// What became of garbage. One removal that fails keeps no other from being tried.
#[derive(Debug)]
pub struct Collected<E> {
    pub removed: Vec<SandboxId>,
    /// Why the others are still there.
    pub failed: Vec<E>,
}

impl<E> Collected<E> {
    pub(crate) fn err_into<F: From<E>>(self) -> Collected<F> {
        Collected { removed: self.removed, failed: self.failed.into_iter().map(F::from).collect() }
    }
}

impl<E> FromIterator<Result<SandboxId, E>> for Collected<E> {
    fn from_iter<I: IntoIterator<Item = Result<SandboxId, E>>>(removals: I) -> Self {
        let mut collected = Self { removed: Vec::new(), failed: Vec::new() };
        for removal in removals {
            match removal {
                Ok(id) => collected.removed.push(id),
                Err(error) => collected.failed.push(error),
            }
        }
        collected
    }
}

pub(crate) fn random_hex(bytes: usize) -> String {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).expect("the kernel gives random bytes on every Linux since 3.17");
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}
