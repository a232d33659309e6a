//! All that a process has started, found and ended, also what called `setsid` or forked twice.

use std::{collections::HashSet, fmt, fs, time::Duration};

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use super::reaper;
use crate::core::random_hex;

/// Marks every process of one tree in its environment, which children inherit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeId(String);

impl TreeId {
    pub const VARIABLE: &'static str = "WHARF_TREE";

    pub fn new() -> Self {
        Self(random_hex(8))
    }
}

impl Default for TreeId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One process as `/proc` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    session: i32,
    zombie: bool,
}

/// Which processes to end.
#[derive(Debug)]
enum Which<'a> {
    Tree {
        id: &'a TreeId,
        root: Pid,
    },
    /// All our descendants; as PID 1 that is everything.
    Descendants,
}

/// Ends a tree: politely (SIGHUP, SIGTERM, SIGCONT), and surely (SIGKILL) once `grace` has passed.
///
/// Returns when no process of the tree is left, or after as long again if the kernel cannot end one.
pub async fn end(id: &TreeId, root: Pid, grace: Duration) {
    end_all(&Which::Tree { id, root }, grace).await;
}

/// Ends all our descendants in the same way.
pub async fn end_descendants(grace: Duration) {
    end_all(&Which::Descendants, grace).await;
}

async fn end_all(which: &Which<'_>, grace: Duration) {
    let started = Instant::now();
    let mut told = HashSet::new();
    let mut pause = Duration::from_millis(1);
    loop {
        reaper::reap_adopted();
        let members = members(which);
        if members.is_empty() {
            return;
        }
        let sure = started.elapsed() >= grace;
        for pid in &members {
            if sure {
                send(*pid, Signal::KILL);
            } else if told.insert(*pid) {
                for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
                    send(*pid, signal);
                }
            }
        }
        if started.elapsed() >= grace * 2 + Duration::from_secs(1) {
            tracing::warn!(left = members.len(), "processes did not end although they were killed");
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may be gone already.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The living processes of a tree: those that carry its mark, the root's descendants, and whoever shares a session with
/// one of them.
fn members(which: &Which<'_>) -> HashSet<i32> {
    let processes = processes();
    let ourselves = rustix::process::getpid().as_raw_nonzero().get();
    let our_session = rustix::process::getsid(None).map_or(0, |session| session.as_raw_nonzero().get());
    let mut found: HashSet<i32> = match which {
        Which::Descendants => HashSet::from([ourselves]),
        Which::Tree { id, root } => {
            let mark = format!("{}={id}", TreeId::VARIABLE);
            let marked =
                processes.iter().filter(|process| carries(process.pid, mark.as_bytes())).map(|process| process.pid);
            marked.chain([root.as_raw_nonzero().get()]).collect()
        }
    };
    let mut sessions: HashSet<i32> = HashSet::new();
    loop {
        let before = (found.len(), sessions.len());
        for process in &processes {
            if process.pid != ourselves && (found.contains(&process.parent) || sessions.contains(&process.session)) {
                found.insert(process.pid);
            }
            if found.contains(&process.pid) && process.session != our_session && process.session != 0 {
                sessions.insert(process.session);
            }
        }
        if before == (found.len(), sessions.len()) {
            break;
        }
    }
    let living: HashSet<i32> = processes.iter().filter(|process| !process.zombie).map(|process| process.pid).collect();
    found.retain(|pid| *pid != ourselves && *pid != 1 && living.contains(pid));
    found
}

fn carries(pid: i32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == mark))
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        })
        .collect()
}

/// The name may hold anything, also `)`: the fields begin after the last one.
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Process { pid, parent, session, zombie })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_to_confuse_is_read() {
        let stat = "7 (a) R 1 (b) S 3 4 5 0 -1 4194560 1 2";
        assert_eq!(parse_stat(7, stat), Some(Process { pid: 7, parent: 3, session: 5, zombie: false }));
        assert_eq!(parse_stat(7, "7 (x"), None);
    }
}
