//! The launcher's door: what a sandbox has from the program that asked for it.
//!
//! What passes, and nothing else:
//!
//! - the plan, on standard input, and the answer, on standard output;
//! - the user and, where the kernel lets nobody give them up, the groups of an ordinary user;
//! - the CPUs and memory nodes that the caller may use, and the control group where there is none for the sandbox;
//! - hard limits and niceness of an ordinary user that are lower than ours: no kernel lets it raise them;
//! - the namespaces that a sandbox gets no new ones of.
//!
//! All else is dropped or set here, before anything is opened: descriptors, the actions and the mask of signals, soft limits,
//! scheduling, umask, terminal, working directory, personality, keyring. The environment is dropped where the launcher
//! and sandboxd are started.

use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
};

use rustix::{
    io::FdFlags,
    process::{Resource, Rlimit},
};

use super::walls::{Failure, Part};
use crate::local::sys;

/// What a sandbox gets of each resource that has no bound of its own: soft and hard, `None` is no limit.
const LIMITS: &[(Resource, Option<u64>, Option<u64>)] = &[
    (Resource::Cpu, None, None),
    (Resource::Fsize, None, None),
    (Resource::Data, None, None),
    (Resource::Stack, Some(8 << 20), None),
    (Resource::Rss, None, None),
    (Resource::Nproc, None, None),
    // A higher soft limit slows old programs that close every possible descriptor, or breaks their `select`.
    (Resource::Nofile, Some(1024), Some(1 << 20)),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::As, None, None),
    (Resource::Locks, None, None),
    (Resource::Sigpending, None, None),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nice, Some(0), Some(0)),
    (Resource::Rtprio, Some(0), Some(0)),
    (Resource::Rttime, None, None),
];

/// Leaves behind what the caller had. Comes first.
pub(super) fn enter() -> Result<(), Failure> {
    sys::close_from(FIRST).part("open files of the caller")?;
    sys::reset_signals().part("signals of the caller")?;
    rustix::process::setsid().part("terminal of the caller")?;
    rustix::process::chdir("/").part("working directory of the caller")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for (resource, soft, hard) in LIMITS {
        set_limit(*resource, *soft, *hard).part("limits of the caller")?;
    }
    sys::reset_scheduling().part("scheduling of the caller")?;
    // A container's filter may refuse these two; then there is no keyring either, and personalities are the engine's.
    let _ = sys::leave_keyring();
    let _ = sys::reset_personality();
    Ok(())
}

/// Sets a limit, as high as we may.
fn set_limit(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let set = |soft, hard| rustix::process::setrlimit(resource, Rlimit { current: soft, maximum: hard });
    if set(soft, hard).is_ok() {
        return Ok(());
    }
    let most = rustix::process::getrlimit(resource).maximum;
    let lower = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    Ok(set(lower(soft, most), lower(hard, most))?)
}

/// Lets the program that this process becomes have these descriptors, and no others above standard error.
pub(super) fn keep_only(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    sys::close_on_exec_from(FIRST)?;
    kept.iter().try_for_each(|file| Ok(rustix::io::fcntl_setfd(file, FdFlags::empty())?))
}

const FIRST: RawFd = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_the_kernel_is_decided_here_or_by_the_sandboxs_bounds() {
        let kinds = std::fs::read_to_string("/proc/self/limits").unwrap().lines().count() - 1;
        // The size of core files is the sixteenth.
        assert_eq!(LIMITS.len() + 1, kinds);
        for (at, (resource, ..)) in LIMITS.iter().enumerate() {
            assert!(!LIMITS[..at].iter().any(|(earlier, ..)| earlier == resource), "{resource:?} twice");
        }
    }
}
