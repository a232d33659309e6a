//! All that a process has started, found and ended, also what called `setsid`, forked twice or left its environment.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::time::Instant;

use super::reaper;

/// So many processes that do not heed the polite signals at once are ended without waiting any longer.
const CROWD: usize = 256;
/// How long a tree is stopped, again and again, until no new process of it appears.
const STOPPING: Duration = Duration::from_secs(5);

/// Marks every process of one tree.
///
/// The mark is the hard limit of real-time CPU time (`RLIMIT_RTTIME`), an absurdly large one, different for each tree:
/// children inherit it over `fork`, `exec`, `setsid` and a cleared environment, anybody may read it in
/// `/proc/PID/limits`, and nothing is ever limited by it. Only a privileged process that sets this very limit sheds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeId(u64);

impl TreeId {
    const HIGHEST: u64 = 1 << 62;

    /// A limit that no other tree has, and not above our own, which we might not be allowed to raise.
    pub fn new() -> Self {
        let own = rustix::process::getrlimit(Resource::Rttime).maximum.unwrap_or(u64::MAX).min(Self::HIGHEST);
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        let half = (own / 2).max(1);
        Self(half + u64::from_ne_bytes(random) % half)
    }

    /// Marks this process and all that it will start. Makes one system call, as is right between `fork` and `exec`.
    pub(super) fn mark_this_process(self) -> io::Result<()> {
        Ok(rustix::process::setrlimit(Resource::Rttime, Rlimit { current: Some(self.0), maximum: Some(self.0) })?)
    }

    fn marks(self, pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/limits")).is_ok_and(|limits| real_time_limit(&limits) == Some(self.0))
    }
}

impl Default for TreeId {
    fn default() -> Self {
        Self::new()
    }
}

fn real_time_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// One process as `/proc` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    zombie: bool,
    /// When it began, in clock ticks since the start of the machine: a number that comes again is another process.
    began: u64,
}

/// Which processes to end.
#[derive(Debug, Clone, Copy)]
enum Which {
    Tree {
        id: TreeId,
        root: Pid,
    },
    /// All our descendants; as PID 1 that is everything.
    Descendants,
}

/// Ends a tree: politely (SIGHUP, SIGTERM, SIGCONT), and surely (SIGKILL) once `grace` has passed.
///
/// Returns when no process of the tree is left, or after as long again if the kernel cannot end one. Dropping it leaves
/// the rest of the tree running.
pub async fn end(id: TreeId, root: Pid, grace: Duration) {
    end_all(Which::Tree { id, root }, grace).await;
}

/// Ends all our descendants in the same way.
pub async fn end_descendants(grace: Duration) {
    end_all(Which::Descendants, grace).await;
}

async fn end_all(which: Which, grace: Duration) {
    let started = Instant::now();
    let mut scan = Scan::new(which);
    let mut told = HashSet::new();
    let mut pause = Duration::from_millis(1);
    loop {
        let members;
        (scan, members) = scan.in_background(Scan::members).await;
        if members.is_empty() {
            return;
        }
        if started.elapsed() >= grace || members.len() >= CROWD {
            break;
        }
        for process in members.iter().filter(|process| told.insert(process.pid)) {
            for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
                send(process.pid, signal);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let killing = Instant::now();
    loop {
        let left;
        (scan, left) = scan.in_background(Scan::kill).await;
        if left == 0 {
            return;
        }
        if killing.elapsed() >= grace + STOPPING {
            tracing::warn!(left, "processes did not end although they were killed");
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may be gone already.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Looks for the processes of a tree, again and again.
#[derive(Debug)]
struct Scan {
    which: Which,
    our_session: i32,
    /// Which processes carry the mark, by number and beginning: asked once of each.
    marked: HashMap<(i32, u64), bool>,
}

impl Scan {
    fn new(which: Which) -> Self {
        Self { which, our_session: our_session(), marked: HashMap::new() }
    }

    /// `/proc` of a machine with thousands of processes takes a while to read.
    async fn in_background<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> (Self, T) {
        let work = move || {
            let done = work(&mut self);
            (self, done)
        };
        tokio::task::spawn_blocking(work).await.expect("scanning does not panic")
    }

    /// Kills what there is of the tree; says how many were found.
    ///
    /// First everything is stopped, until nothing new appears: what is stopped starts no other, so that a tree cannot
    /// outrun the scan. A process group is signalled as a whole, which the kernel does without a gap.
    fn kill(&mut self) -> usize {
        let started = std::time::Instant::now();
        if matches!(self.which, Which::Descendants) && rustix::process::getpid().is_init() {
            // As PID 1 everything else in our namespace is ours: kill(-1), which is what the group of that number stands for.
            let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
        }
        let mut stopped = HashSet::new();
        let members = loop {
            let members = self.members();
            let fresh: Vec<Process> = members.iter().filter(|process| stopped.insert(process.pid)).copied().collect();
            if fresh.is_empty() || started.elapsed() >= STOPPING {
                break members;
            }
            signal_all(&fresh, Signal::STOP, self.our_session);
        };
        signal_all(&members, Signal::KILL, self.our_session);
        members.len()
    }

    /// The living processes of a tree: those that carry its mark, the root's descendants, and whoever shares a session
    /// with one of them.
    fn members(&mut self) -> Vec<Process> {
        reaper::reap_adopted();
        let processes = processes();
        let ourselves = rustix::process::getpid().as_raw_nonzero().get();
        let our_session = self.our_session;
        let mut found: HashSet<i32> = match self.which {
            Which::Descendants => HashSet::from([ourselves]),
            Which::Tree { id, root } => {
                let before = std::mem::take(&mut self.marked);
                self.marked = processes
                    .iter()
                    .map(|Process { pid, began, .. }| {
                        let key = (*pid, *began);
                        (key, before.get(&key).copied().unwrap_or_else(|| id.marks(*pid)))
                    })
                    .collect();
                let marked = self.marked.iter().filter(|(_, marked)| **marked).map(|((pid, _), _)| *pid);
                marked.chain([root.as_raw_nonzero().get()]).collect()
            }
        };
        let mut sessions: HashSet<i32> = HashSet::new();
        loop {
            let before = (found.len(), sessions.len());
            for process in &processes {
                if process.pid != ourselves && (found.contains(&process.parent) || sessions.contains(&process.session))
                {
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
        let is_member = |process: &Process| {
            !process.zombie && process.pid != ourselves && process.pid != 1 && found.contains(&process.pid)
        };
        processes.into_iter().filter(is_member).collect()
    }
}

/// Signals each process, and before that its group: all of a session belongs to the tree that one of it belongs to, and
/// every child of ours has begun with a session of its own.
fn signal_all(targets: &[Process], signal: Signal, our_session: i32) {
    let apart = targets.iter().filter(|process| process.session != our_session && process.group > 1);
    let groups: HashSet<i32> = apart.map(|process| process.group).collect();
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // It may be gone already.
        let _ = rustix::process::kill_process_group(group, signal);
    }
    for process in targets {
        send(process.pid, signal);
    }
}

/// 0 when it began outside our PID namespace, which `getsid` of rustix takes for impossible.
fn our_session() -> i32 {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    stat.and_then(|stat| parse_stat(0, &stat)).map_or(0, |process| process.session)
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
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    // Field 22 of proc(5); the session was field 6.
    let began = fields.nth(15)?.parse().ok()?;
    Some(Process { pid, parent, group, session, zombie, began })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_to_confuse_is_read() {
        let stat = "7 (a) R 1 (b) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10";
        let expected = Process { pid: 7, parent: 3, group: 4, session: 5, zombie: false, began: 777 };
        assert_eq!(parse_stat(7, stat), Some(expected));
        assert_eq!(parse_stat(7, "7 (x"), None);
    }

    #[test]
    fn the_mark_is_read_where_the_kernel_shows_it() {
        let limits = "Limit Soft Limit Hard Limit Units\nMax realtime timeout      12                   345                  us        \n";
        assert_eq!(real_time_limit(limits), Some(345));
        assert_eq!(real_time_limit("Max realtime timeout      unlimited            unlimited            us"), None);
    }
}
