//! Which numbers of processes are held, and zombies that nobody waits for.
//!
//! A number belongs to its process until that is reaped; then the kernel gives it to the next. So every child that we
//! start is known from before it can end until it is reaped, both under one lock, and whoever signals it or its group by
//! number does so under that lock.
//!
//! sandboxd is PID 1 of its sandbox, or at least the reaper of its descendants, so processes whose parent ended become
//! its children. Those are reaped here; waiting for any child would steal the end of those that we wait for by name.

use std::{
    collections::HashMap,
    io,
    process::ExitStatus,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, WaitOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::tree::ProcessId;

/// Our own children that are not reaped yet, by number.
static KNOWN: LazyLock<Mutex<HashMap<i32, ProcessId>>> = LazyLock::new(Mutex::default);

fn known() -> MutexGuard<'static, HashMap<i32, ProcessId>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a child in such a way that it is never reaped by [`reap`].
pub(super) fn spawn_known(
    start: impl FnOnce() -> io::Result<std::process::Child>,
) -> io::Result<(std::process::Child, ProcessId)> {
    let mut known = known();
    let child = start()?;
    let id = ProcessId::of_child(child.id().cast_signed());
    known.insert(id.pid, id);
    Ok((child, id))
}

/// Reaps a child of ours if it has ended.
pub(super) fn try_reap(child: &mut std::process::Child, id: ProcessId) -> io::Result<Option<ExitStatus>> {
    let mut known = known();
    let status = child.try_wait();
    if !matches!(status, Ok(None)) {
        known.remove(&id.pid);
    }
    status
}

/// Leaves a child that nobody waits for any more to [`reap`].
pub(super) fn abandon(id: ProcessId) {
    let mut known = known();
    if known.get(&id.pid) == Some(&id) {
        known.remove(&id.pid);
    }
}

/// Does `work` if this child's number is still its own; it stays so until `work` is done.
pub(super) fn while_held<T>(id: ProcessId, work: impl FnOnce(Pid) -> T) -> Option<T> {
    let known = known();
    let held = known.get(&id.pid) == Some(&id);
    Pid::from_raw(id.pid).filter(|_| held).map(work)
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
        if let Some(number) = Pid::from_raw(pid).filter(|_| !known.contains_key(&pid)) {
            // It still runs, or somebody else was faster: both are fine.
            let _ = rustix::process::waitpid(Some(number), WaitOptions::NOHANG);
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
