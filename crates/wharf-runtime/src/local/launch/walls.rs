//! The walls so far: which stand, which are missing, and what a failure belongs to.

use std::{io, path::PathBuf};

use rustix::thread::UnshareFlags;
use wharf_protocol::Isolation;

use crate::local::{
    plan::{MOUNT_AT, Wall},
    sys,
};

/// A step of the launch that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) part: String,
    pub(super) source: io::Error,
}

pub(super) trait Part<T> {
    /// Names the part of the isolation that a failure belongs to.
    fn part(self, part: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Part<T> for Result<T, E> {
    fn part(self, part: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure { part: part.into(), source: error.into() })
    }
}

/// The walls so far, and whether one may be missing.
#[derive(Debug, Clone)]
pub(super) struct Walls {
    pub(super) isolation: Isolation,
    /// Those of the sandbox's last start, none of which may be missing.
    pub(super) stood: Vec<String>,
    pub(super) report: Vec<Wall>,
}

impl Walls {
    pub(super) fn stands(&mut self, part: &str, note: Option<String>) {
        self.report.push(Wall { part: part.to_owned(), missing: None, note });
    }

    /// Notes a part that is not there; full isolation goes no further, nor does a sandbox that had it.
    pub(super) fn missing(&mut self, part: &str, source: io::Error) -> Result<(), Failure> {
        if self.isolation == Isolation::Full || self.stood.iter().any(|stood| stood == part) {
            return Err(Failure { part: part.to_owned(), source });
        }
        self.report.push(Wall { part: part.to_owned(), missing: Some(source.to_string()), note: None });
        Ok(())
    }

    /// Notes that a part that stood cannot stay.
    pub(super) fn falls(&mut self, part: &str, source: io::Error) -> Result<(), Failure> {
        self.report.retain(|wall| wall.part != part);
        self.missing(part, source)
    }

    pub(super) fn tells_of(&self, part: &str) -> bool {
        self.report.iter().any(|wall| wall.part == part)
    }

    /// Enters a new namespace; tells whether there is one.
    pub(super) fn namespace(&mut self, part: &str, flag: UnshareFlags) -> Result<bool, Failure> {
        let entered = sys::unshare(flag);
        let is_there = entered.is_ok();
        self.raise(part, entered.map(|()| None))?;
        Ok(is_there)
    }

    pub(super) fn raise(&mut self, part: &str, raised: io::Result<Option<String>>) -> Result<(), Failure> {
        match raised {
            Ok(note) => {
                self.stands(part, note);
                Ok(())
            }
            Err(source) => self.missing(part, source),
        }
    }
}

/// What the sandbox has for itself that later steps depend on.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) cgroup: bool,
    /// Where the kernel counts what it kills there for want of memory.
    pub(super) memory_events: Option<PathBuf>,
    /// Whether namespaces are worth a try.
    pub(super) namespaces: bool,
    pub(super) mounts: bool,
    pub(super) processes: bool,
}

/// What is not tried any more, since building it has failed; each step leaves out more than the one before.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Why, of each of the [`STEPS`](Self::STEPS) so far.
    reasons: Vec<String>,
}

impl LeftOut {
    /// With the last, all namespaces.
    const STEPS: [&str; 3] = ["PID namespace", "private root", "mount namespace"];

    pub(super) fn processes(&self) -> Option<String> {
        self.reasons.first().cloned()
    }

    pub(super) fn root(&self) -> Option<String> {
        self.reasons.get(1).cloned()
    }

    pub(super) fn namespaces(&self) -> Option<String> {
        self.reasons.get(2).cloned()
    }

    /// Whether something is left to leave out that did not stand before, for a reason that is the machine's: what is in a
    /// mount somebody inside may have put there.
    pub(super) fn leave_out_more(&mut self, part: &str, reason: &str, stood: &[String]) -> bool {
        let next = Self::STEPS.get(self.reasons.len());
        self.reasons.push(format!("{part}: {reason}"));
        !part.starts_with(MOUNT_AT) && next.is_some_and(|next| !stood.iter().any(|stood| stood == next))
    }
}
