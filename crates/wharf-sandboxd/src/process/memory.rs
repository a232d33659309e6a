//! Who is killed when memory runs out, and whether somebody was.

use std::{fs, path::PathBuf, sync::OnceLock};

const SCORE: &str = "/proc/self/oom_score_adj";
/// How much earlier than we the kernel kills what an agent runs.
const ABOVE_US: i32 = 300;
/// The highest score there is.
const HIGHEST: i32 = 1000;

fn our_score() -> i32 {
    fs::read_to_string(SCORE).ok().and_then(|score| score.trim().parse().ok()).unwrap_or(0)
}

/// Lowers our score where there is no room for our children above it, as in a pod without requests. Only a privileged
/// process may; without that the kernel chooses by size, and we are small.
pub(super) fn leave_room_above_us() {
    let most = HIGHEST - ABOVE_US;
    if our_score() > most {
        let _ = fs::write(SCORE, most.to_string());
    }
}

pub(super) fn score_of_children() -> i32 {
    (our_score() + ABOVE_US).min(HIGHEST)
}

/// Where the kernel counts, if whoever started us has said so.
static COUNTER: OnceLock<PathBuf> = OnceLock::new();

/// Says where the kernel counts whom it kills in this sandbox.
pub fn count_in(file: PathBuf) {
    // Said twice, the first counts.
    let _ = COUNTER.set(file);
}

/// How many processes of this sandbox the kernel has killed for memory; `None` where that cannot be seen.
pub fn kills() -> Option<u64> {
    if let Some(file) = COUNTER.get() {
        return count(&fs::read_to_string(file).ok()?);
    }
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    counters(&groups).into_iter().find_map(|file| count(&fs::read_to_string(file).ok()?))
}

/// Where the kernel counts, for either version of control groups: below the group's path as we see it, or at the root of
/// what is mounted if that is our own group, as in a container.
fn counters(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            for path in [path, ""] {
                files.push(PathBuf::from("/sys/fs/cgroup/memory").join(path).join("memory.oom_control"));
            }
        } else if controllers.is_empty() {
            for path in [path, ""] {
                files.push(PathBuf::from("/sys/fs/cgroup").join(path).join("memory.events"));
            }
        }
    }
    files
}

fn count(counters: &str) -> Option<u64> {
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_count_is_found_for_either_version() {
        let found = |groups: &str| counters(groups).iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            found("8:pids:/x\n4:memory:/a/b\n"),
            ["/sys/fs/cgroup/memory/a/b/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"]
        );
        assert_eq!(found("0::/\n")[0], "/sys/fs/cgroup/memory.events");
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(count("low 0\nhigh 0\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(count("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn what_we_start_goes_before_us() {
        assert!(score_of_children() > our_score() || our_score() == HIGHEST);
    }
}
