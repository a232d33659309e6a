//! All that a process has started, found and ended, also what called `setsid`, forked twice or left its environment.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::time::Instant;
use wharf_protocol::{Problem, ProblemKind};

use super::{mark::Mark, reaper};

/// So many processes that do not heed the polite signals at once are ended without waiting any longer.
const CROWD: usize = 256;
/// How long a tree is stopped, again and again, until no new process of it appears.
const STOPPING: Duration = Duration::from_secs(5);
/// How many processes that do not end are named.
const NAMED: usize = 10;
/// How often a program on a terminal is told again that the terminal goes: a shell that is about to wait for input
/// notes the signal, and waits all the same.
const HANGING_UP_AGAIN: Duration = Duration::from_millis(100);

/// A process, whatever becomes of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// In clock ticks since the start of the machine; 0 if that cannot be seen.
    began: u64,
}

impl ProcessId {
    /// Of a child that is not reaped yet.
    pub(super) fn of_child(pid: i32) -> Self {
        Self { pid, began: look_at(pid).map_or(0, |process| process.began) }
    }
}

/// All that was started as one: a process, what it has started, and what that has, for as long as there is any.
#[derive(Debug, Clone)]
pub struct Tree(Arc<State>);

#[derive(Debug)]
struct State {
    mark: Mark,
    /// The process of ours that the tree has begun with, the latest of them.
    leader: Mutex<Option<ProcessId>>,
    /// Whether it was ended and something of it was left.
    has_survived: AtomicBool,
}

impl Tree {
    pub fn new() -> Self {
        Self(Arc::new(State { mark: Mark::new(), leader: Mutex::default(), has_survived: AtomicBool::new(false) }))
    }

    pub(super) fn mark(&self) -> Mark {
        self.0.mark
    }

    pub(super) fn has_leader(&self, leader: ProcessId) {
        *self.0.leader.lock().unwrap_or_else(PoisonError::into_inner) = Some(leader);
    }

    fn leader(&self) -> Option<ProcessId> {
        *self.0.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the tree: politely (SIGHUP, SIGTERM, SIGCONT), and surely (SIGKILL) once `grace` has passed.
    ///
    /// Returns `true` when no process of the tree is left, or `false` after as long again if the kernel cannot end one.
    /// Dropping it leaves the rest of the tree running.
    pub async fn end(&self, grace: Duration) -> bool {
        let all_gone = end_all(Which::Tree(self.clone()), grace).await;
        self.0.has_survived.store(!all_gone, Ordering::Relaxed);
        all_gone
    }

    /// The processes that are still there although [`Tree::end`] has killed them. They are killed once more, and not
    /// waited for.
    pub async fn survivors(&self) -> Vec<i32> {
        if !self.0.has_survived.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let scan = Scan::new(Which::Tree(self.clone()));
        let (_, members) = scan
            .in_background(|scan| {
                scan.kill();
                scan.members()
            })
            .await;
        members.iter().map(|process| process.pid).collect()
    }

    /// Makes sure that nothing of a tree that was ended is left.
    ///
    /// # Errors
    ///
    /// A problem that names the processes of `whose` tree that are.
    pub async fn ensure_gone(&self, whose: &str) -> Result<(), Problem> {
        let survivors = self.survivors().await;
        if survivors.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = survivors.iter().take(NAMED).map(i32::to_string).collect();
        let detail = format!("processes of {whose} do not end, not even killed: {}", named.join(", "));
        Err(Problem::new(ProblemKind::OperatingSystem, detail))
    }

    /// Signals the process group that the tree has begun with; `false` if its leader has ended.
    pub fn signal_leaders_group(&self, signal: Signal) -> bool {
        let Some(leader) = self.leader() else { return false };
        reaper::while_held(leader, |pid| rustix::process::kill_process_group(pid, signal).is_ok()).unwrap_or(false)
    }

    /// Signals `group` if it is one of the session that the tree has begun with; `false` if it is not.
    pub fn signal_group(&self, group: Pid, signal: Signal) -> bool {
        let Some(leader) = self.leader() else { return false };
        let number = group.as_raw_nonzero().get();
        if number == leader.pid {
            return self.signal_leaders_group(signal);
        }
        // A group's number is its own as long as there is a process in it.
        let is_ours = processes().iter().any(|process| process.group == number && process.session == leader.pid);
        is_ours && rustix::process::kill_process_group(group, signal).is_ok()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// One process as `/proc` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    /// Whether it has a controlling terminal.
    on_terminal: bool,
    zombie: bool,
    /// When it began, in clock ticks since the start of the machine: a number that comes again is another process.
    began: u64,
}

impl Process {
    fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, began: self.began }
    }
}

/// Which processes to end.
#[derive(Debug, Clone)]
enum Which {
    Tree(Tree),
    /// All our descendants; as PID 1 that is everything.
    Descendants,
}

/// Ends all our descendants as [`Tree::end`] does.
pub async fn end_descendants(grace: Duration) -> bool {
    end_all(Which::Descendants, grace).await
}

async fn end_all(which: Which, grace: Duration) -> bool {
    let started = Instant::now();
    let mut scan = Scan::new(which);
    let mut told: HashSet<ProcessId> = HashSet::new();
    let mut hung_up = started;
    let mut pause = Duration::from_millis(1);
    loop {
        let members;
        (scan, members) = scan.in_background(Scan::members).await;
        if members.is_empty() {
            return true;
        }
        if started.elapsed() >= grace || members.len() >= CROWD {
            break;
        }
        let again = hung_up.elapsed() >= HANGING_UP_AGAIN;
        if again {
            hung_up = Instant::now();
        }
        for process in &members {
            let signals: &[Signal] = if told.insert(process.id()) {
                &[Signal::HUP, Signal::TERM, Signal::CONT]
            } else if again && process.on_terminal {
                &[Signal::HUP, Signal::CONT]
            } else {
                &[]
            };
            for signal in signals {
                send(process.id(), *signal);
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
            return true;
        }
        if killing.elapsed() >= grace + STOPPING {
            tracing::warn!(left, "processes did not end although they were killed");
            return false;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Signals this process and no other that has its number by now. It may be gone already.
fn send(id: ProcessId, signal: Signal) {
    let Some(pid) = Pid::from_raw(id.pid) else { return };
    let held = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    if look_at(id.pid).is_none_or(|process| process.began != id.began) {
        return;
    }
    let _ = match held {
        Ok(descriptor) => rustix::process::pidfd_send_signal(descriptor, signal),
        // Before Linux 5.3.
        Err(_) => rustix::process::kill_process(pid, signal),
    };
}

/// Looks for the processes of a tree, again and again.
#[derive(Debug)]
struct Scan {
    which: Which,
    our_session: i32,
    /// Which processes carry the mark: asked once of each.
    marked: HashMap<ProcessId, bool>,
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
            let fresh: Vec<Process> = members.iter().filter(|process| stopped.insert(process.id())).copied().collect();
            if fresh.is_empty() || started.elapsed() >= STOPPING {
                break members;
            }
            signal_all(&fresh, Signal::STOP, self.our_session);
        };
        signal_all(&members, Signal::KILL, self.our_session);
        members.len()
    }

    /// The living processes of a tree: those that carry its mark, its leader's descendants, and whoever shares a session
    /// with one of them.
    fn members(&mut self) -> Vec<Process> {
        reaper::reap_adopted();
        let processes = processes();
        let ourselves = rustix::process::getpid().as_raw_nonzero().get();
        let our_session = self.our_session;
        let mut found: HashSet<i32> = match &self.which {
            Which::Descendants => HashSet::from([ourselves]),
            Which::Tree(tree) => {
                let before = std::mem::take(&mut self.marked);
                self.marked = processes
                    .iter()
                    .map(|process| {
                        let id = process.id();
                        (id, before.get(&id).copied().unwrap_or_else(|| tree.mark().is_on(id.pid)))
                    })
                    .collect();
                let leader = tree.leader();
                let begins = |(id, marked): (&ProcessId, &bool)| (*marked || Some(*id) == leader).then_some(id.pid);
                self.marked.iter().filter_map(begins).collect()
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
    let mut groups = HashSet::new();
    for process in targets {
        let apart = process.session != our_session && process.group > 1;
        // A group's number is its own as long as the process that we have found is in it.
        let is_there =
            || look_at(process.pid).is_some_and(|now| now.id() == process.id() && now.group == process.group);
        if let Some(group) = Pid::from_raw(process.group).filter(|_| apart)
            && !groups.contains(&process.group)
            && is_there()
        {
            groups.insert(process.group);
            // It may be gone already.
            let _ = rustix::process::kill_process_group(group, signal);
        }
        send(process.id(), signal);
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
            look_at(pid)
        })
        .collect()
}

fn look_at(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name may hold anything, also `)`: the fields begin after the last one.
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let zombie = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session, terminal): (_, _, _, i32) = (number()?, number()?, number()?, number()?);
    // Field 22 of proc(5); the terminal was field 7.
    let began = fields.nth(14)?.parse().ok()?;
    Some(Process { pid, parent, group, session, on_terminal: terminal != 0, zombie, began })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_to_confuse_is_read() {
        let stat = "7 (a) R 1 (b) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10";
        let expected =
            Process { pid: 7, parent: 3, group: 4, session: 5, on_terminal: false, zombie: false, began: 777 };
        assert_eq!(parse_stat(7, stat), Some(expected));
        assert_eq!(parse_stat(7, "7 (x"), None);
    }

    #[test]
    fn a_signal_reaches_the_process_that_is_meant_and_none_that_has_its_number_now() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let meant = ProcessId::of_child(child.id().cast_signed());
        let another = ProcessId { began: meant.began - 1, ..meant };
        send(another, Signal::KILL);
        // Had the first one come, this would be too late.
        send(meant, Signal::TERM);
        let ended = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(Signal::TERM.as_raw()));
    }
}
