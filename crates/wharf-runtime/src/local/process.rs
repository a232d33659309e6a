//! Processes of this machine, named so that a number that comes again is never taken for the same process.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

/// How long a process has to end after each signal.
const PATIENCE: Duration = Duration::from_secs(12);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One process of this machine, running or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) pid: i32,
    /// Clock ticks after boot.
    started: u64,
    /// Which boot that was.
    #[serde(default)]
    boot: Option<String>,
}

/// A process that is held by descriptor: no other one can take its place.
#[derive(Debug)]
pub(super) struct Held(OwnedFd);

/// A process that a SIGKILL does not end, such as one that waits for a disk for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unkillable(pub(super) i32);

impl Running {
    /// The process that has this number now; `None` if there is none, or only a zombie.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: started_at(pid)?, boot: boot_id() })
    }

    pub(super) fn ourselves() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it belongs to an earlier boot of this machine.
    pub(super) fn is_of_another_boot(&self) -> bool {
        self.boot.is_some() && self.boot != boot_id()
    }

    /// The process, if it runs.
    pub(super) fn find(&self) -> Option<Held> {
        if self.is_of_another_boot() {
            return None;
        }
        let handle = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Asked after it is held: whoever has the number now had it when it was opened, or has ended.
        (started_at(self.pid) == Some(self.started)).then_some(Held(handle))
    }

    pub(super) fn is_running(&self) -> bool {
        self.find().is_some()
    }

    /// Ends it and waits for that: SIGTERM where it may end by itself, then SIGKILL.
    ///
    /// # Errors
    ///
    /// [`Unkillable`] when it is there after all that.
    pub(super) fn end(&self, politely: bool) -> Result<(), Unkillable> {
        let Some(held) = self.find() else { return Ok(()) };
        let ended = (politely && held.end_by(Signal::TERM, PATIENCE)) || held.end_by(Signal::KILL, PATIENCE);
        if ended { Ok(()) } else { Err(Unkillable(self.pid)) }
    }
}

impl Held {
    /// The process that has this number, if `is_meant` says so once it is held.
    pub(super) fn of(pid: i32, is_meant: impl FnOnce() -> bool) -> Option<Self> {
        let handle = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        is_meant().then_some(Self(handle))
    }

    /// Sends a signal and waits; `true` once the process has ended.
    fn end_by(&self, signal: Signal, patience: Duration) -> bool {
        // It may be gone already, or not be ours: the wait tells.
        let _ = rustix::process::pidfd_send_signal(&self.0, signal);
        self.has_ended_within(patience)
    }

    pub(super) fn kill(&self) {
        // It may be gone already.
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
    }

    pub(super) fn has_ended_within(&self, patience: Duration) -> bool {
        let mut wait = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = Timespec {
            tv_sec: patience.as_secs().cast_signed(),
            tv_nsec: patience.subsec_nanos().cast_signed().into(),
        };
        rustix::event::poll(&mut wait, Some(&patience)).is_ok_and(|ready| ready > 0)
    }
}

/// When a process was started, in clock ticks after boot; `None` if it is gone or a zombie.
fn started_at(pid: i32) -> Option<u64> {
    start_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same, in the text of `/proc/PID/stat`.
fn start_in(stat: &str) -> Option<u64> {
    // A program chooses its own name, which stands in parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot_id() -> Option<String> {
    let read: io::Result<String> = fs::read_to_string(BOOT_ID);
    read.ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, Running) {
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let running = Running::of(child.id().cast_signed()).unwrap();
        (child, running)
    }

    #[test]
    fn a_process_of_another_boot_or_with_another_start_is_not_the_same() {
        let (mut child, running) = sleeper();
        assert!(running.is_running());
        let rebooted = Running { boot: Some("another".to_owned()), ..running.clone() };
        assert!(rebooted.is_of_another_boot() && !rebooted.is_running());
        let reused = Running { started: running.started + 1, ..running.clone() };
        assert!(!reused.is_running());
        // Who is asked to end another process ends none.
        assert_eq!((rebooted.end(true), reused.end(false)), (Ok(()), Ok(())));
        assert!(running.is_running());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!running.is_running());
    }

    #[test]
    fn what_ignores_sigterm_is_killed() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap '' TERM; echo; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let running = Running::of(child.id().cast_signed()).unwrap();
        let held = running.find().unwrap();
        assert!(!held.end_by(Signal::TERM, Duration::from_millis(50)));
        assert_eq!(running.end(false), Ok(()));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }

    #[test]
    fn a_name_with_parentheses_does_not_forge_a_start() {
        let after = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_in(&format!("7 (a) S 1 2) S {after} 22 23")), Some(22));
        assert_eq!(start_in(&format!("7 (a) Z {after} 22 23")), None);
        assert_eq!(start_in(""), None);
    }
}
