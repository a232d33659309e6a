//! The walls so far: which stand, which are missing, and what a failure belongs to.

use std::{io, path::PathBuf};

use rustix::thread::UnshareFlags;
use wharf_protocol::Isolation;

use crate::local::{plan::Wall, sys};

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
#[derive(Debug)]
pub(super) struct Walls {
    pub(super) isolation: Isolation,
    pub(super) report: Vec<Wall>,
}

impl Walls {
    pub(super) fn stands(&mut self, part: &str, note: Option<String>) {
        self.report.push(Wall { part: part.to_owned(), missing: None, note });
    }

    /// Notes a part that is not there; full isolation goes no further.
    pub(super) fn missing(&mut self, part: &str, source: io::Error) -> Result<(), Failure> {
        if self.isolation == Isolation::Full {
            return Err(Failure { part: part.to_owned(), source });
        }
        self.report.push(Wall { part: part.to_owned(), missing: Some(source.to_string()), note: None });
        Ok(())
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
    pub(super) mounts: bool,
    pub(super) processes: bool,
}
