//! Limits by control groups, of either version, where this machine lets us make them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    plan::Bounds,
    process::{Held, Unkillable},
};

const ROOT: &str = "/sys/fs/cgroup";
/// All our groups are below one of this name.
const PARENT: &str = "wharf";
/// How long killed processes have to end.
const KILL_PATIENCE: Duration = Duration::from_secs(12);

/// Makes the groups of a sandbox, sets its limits and moves this process in.
///
/// # Errors
///
/// When this machine does not let us; then nothing is left behind.
pub(super) fn enter(name: &str, bounds: &Bounds) -> io::Result<()> {
    let entered = if is_unified() { enter_v2(name, bounds) } else { enter_v1(name, bounds) };
    if entered.is_err() {
        remove(name);
    }
    entered
}

/// Version 2 with controllers at its root; a hybrid machine keeps them in version 1.
fn is_unified() -> bool {
    fs::read_to_string(format!("{ROOT}/cgroup.controllers")).is_ok_and(|controllers| controllers.contains("memory"))
}

fn write(path: &Path, value: impl ToString) -> io::Result<()> {
    fs::write(path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn enter_v2(name: &str, bounds: &Bounds) -> io::Result<()> {
    let parent = Path::new(ROOT).join(PARENT);
    fs::create_dir_all(&parent)?;
    for directory in [Path::new(ROOT), &parent] {
        write(&directory.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
    }
    let group = parent.join(name);
    fs::create_dir_all(&group)?;
    write(&group.join("memory.max"), bounds.memory_bytes)?;
    // A machine without swap has no such file.
    let _ = write(&group.join("memory.swap.max"), 0);
    write(&group.join("pids.max"), bounds.processes)?;
    if let Some(millis) = bounds.cpu_millis {
        write(&group.join("cpu.max"), format!("{} 100000", u64::from(millis) * 100))?;
    }
    write(&group.join("cgroup.procs"), 0)
}

fn enter_v1(name: &str, bounds: &Bounds) -> io::Result<()> {
    let memory = make_v1("memory", name)?;
    write(&memory.join("memory.limit_in_bytes"), bounds.memory_bytes)?;
    let _ = write(&memory.join("memory.memsw.limit_in_bytes"), bounds.memory_bytes);
    let pids = make_v1("pids", name)?;
    write(&pids.join("pids.max"), bounds.processes)?;
    let mut groups = vec![memory, pids];
    if let Some(millis) = bounds.cpu_millis {
        let cpu = make_v1("cpu", name)?;
        write(&cpu.join("cpu.cfs_period_us"), 100_000)?;
        write(&cpu.join("cpu.cfs_quota_us"), u64::from(millis) * 100)?;
        groups.push(cpu);
    }
    groups.iter().try_for_each(|group| write(&group.join("cgroup.procs"), 0))
}

fn make_v1(controller: &str, name: &str) -> io::Result<PathBuf> {
    let group = Path::new(ROOT).join(controller).join(PARENT).join(name);
    fs::create_dir_all(&group)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", group.display())))?;
    Ok(group)
}

fn groups(name: &str) -> impl Iterator<Item = PathBuf> + use<'_> {
    ["", "memory", "pids", "cpu"]
        .into_iter()
        .map(move |controller| Path::new(ROOT).join(controller).join(PARENT).join(name))
}

/// The file in which the kernel counts what it killed in a sandbox's group for want of memory: a line `oom_kill N`.
pub(super) fn memory_events(name: &str) -> Option<PathBuf> {
    let group = |controller: &str| Path::new(ROOT).join(controller).join(PARENT).join(name);
    let counts = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| oom_kills_in(&text).is_some());
    [group("").join("memory.events"), group("memory").join("memory.oom_control")].into_iter().find(counts)
}

/// How many processes of a sandbox the kernel has killed for want of memory, as long as its group is there.
pub(super) fn oom_kills(name: &str) -> u64 {
    let text = memory_events(name).and_then(|path| fs::read_to_string(path).ok());
    text.and_then(|text| oom_kills_in(&text)).unwrap_or(0)
}

fn oom_kills_in(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

/// Kills all that is in a sandbox's groups.
///
/// # Errors
///
/// [`Unkillable`] when something is there after all that.
pub(super) fn kill(name: &str) -> Result<(), Unkillable> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let left = processes(name);
        let Some(first) = left.first() else { return Ok(()) };
        // All are told before any is waited for. What has left the groups until it is held is another process.
        let held: Vec<Held> = left.iter().filter_map(|pid| Held::of(*pid, || processes(name).contains(pid))).collect();
        held.iter().for_each(|process| process.kill());
        if !held.iter().all(|process| process.has_ended_within(deadline.saturating_duration_since(Instant::now()))) {
            return Err(Unkillable(*first));
        }
        if Instant::now() >= deadline {
            return Err(Unkillable(*first));
        }
    }
}

/// The processes that are still in a sandbox's groups.
fn processes(name: &str) -> Vec<i32> {
    let mut found: Vec<i32> = groups(name)
        .filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Removes a sandbox's groups. They must be empty; the kernel may take a moment to see that.
pub(super) fn remove(name: &str) {
    for group in groups(name) {
        let started = Instant::now();
        while group.exists() && fs::remove_dir(&group).is_err() && started.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_for_memory_are_counted_in_either_version() {
        assert_eq!(oom_kills_in("low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\n"), None);
    }
}
