//! Zombies that nobody waits for.
//!
//! sandboxd is PID 1 of its sandbox, or at least the reaper of its descendants, so processes whose parent ended become
//! its children. Waiting for any child would steal the end of those that we wait for by name (tokio's), so every child
//! that we start is known by number, under a lock that also covers the start, and only the others are reaped here.

use std::{
    collections::HashSet,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

static KNOWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

fn known() -> MutexGuard<'static, Option<HashSet<i32>>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a child in such a way that it is never reaped here.
pub(super) fn spawn_known(
    start: impl FnOnce() -> io::Result<tokio::process::Child>,
) -> io::Result<tokio::process::Child> {
    let mut known = known();
    let child = start()?;
    if let Some(pid) = child.id() {
        known.get_or_insert_default().insert(pid.cast_signed());
    }
    Ok(child)
}

/// Says that a child's end has been seen, so that its number may come again.
pub(super) fn forget(pid: Pid) {
    known().get_or_insert_default().remove(&pid.as_raw_nonzero().get());
}

/// Makes this process the parent of every descendant whose own parent ends. PID 1 is that without asking.
///
/// # Errors
///
/// On a kernel before 3.4.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Reaps adopted zombies whenever a child ends, until `shutdown`.
///
/// # Errors
///
/// When no handler for SIGCHLD can be installed.
pub async fn reap(shutdown: CancellationToken) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            _ = ended.recv() => reap_adopted(),
        }
    }
}

/// Reaps the zombies among our children that we did not start.
pub(super) fn reap_adopted() {
    let known = known();
    for pid in children() {
        let ours = known.as_ref().is_some_and(|known| known.contains(&pid));
        if let Some(pid) = Pid::from_raw(pid).filter(|_| !ours) {
            // It still runs, or somebody else was faster: both are fine.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// The numbers of our children, from all our threads.
fn children() -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}
