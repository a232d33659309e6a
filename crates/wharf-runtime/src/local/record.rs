//! What is written down of a sandbox, and what follows from that: how it is, and what is to be done about it.
//!
//! ```text
//!            create                                      rm
//!   (none) ─────────▶ making ──bound──▶ ready ─────────▶ removing ──▶ (none)
//!                                        ▲  │                ▲
//!                                   bound│  │suspend         │ from every phase
//!                                        │  ▼                │
//!   failed ◀──error── starting ◀──resume── suspended ────────┘
//! ```
//!
//! The record is written before each step and after it. Every step is made under the sandbox's lock: whoever holds the lock
//! and finds a phase of somebody's work (`making`, `starting`, `removing`) knows that its program was killed in there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wharf_protocol::{Environment, Isolation, SandboxName, SandboxSpec, Secret};

use super::{
    LocalError, cgroup, group_name,
    object::Object,
    plan::{Bounds, HeldBounds, Wall},
    process::Running,
    state,
    subordinate::Subordinate,
};
use crate::Status;

/// The file beside a record with the sandbox's variables, which may be secrets.
pub(super) const ENVIRONMENT: &str = "environment.json";
/// How much of sandboxd's log is searched for what went wrong.
const LOG_END: u64 = 16 << 10;
/// What is told of an error, in characters.
const LONGEST_REASON: usize = 300;

/// One sandbox as its files describe it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub name: SandboxName,
    /// Without the environment: that stands in a file of its own.
    pub spec: SandboxSpec,
    /// The names of the environment's variables.
    pub variables: Vec<String>,
    /// Seconds since the Unix epoch.
    pub created_at: f64,
    pub(super) phase: Phase,
    /// Who is or was at work on it, in a phase of work.
    pub(super) worker: Option<Running>,
    /// Who builds its walls, from before it does anything until they stand.
    pub(super) launcher: Option<Running>,
    /// The first process of the sandbox.
    pub(super) init: Option<Running>,
    /// For whom it was made: it is garbage once that process has ended.
    pub(super) owner: Option<Running>,
    pub socket: PathBuf,
    pub workspace: Option<PathBuf>,
    /// Where programs are looked for, unless its environment says something else.
    #[serde(default = "super::usual_path")]
    pub(super) path: String,
    /// The parts of the isolation.
    pub walls: Vec<Wall>,
    /// What it was to be bounded by; see [`Record::held_bounds`].
    pub bounds: Bounds,
    /// Whether control groups keep its bounds.
    #[serde(default)]
    pub(super) grouped: bool,
    /// Whether it has a root of its own.
    #[serde(default)]
    pub(super) private_root: bool,
    /// What of its writable mounts cannot be written, because the host would run it.
    #[serde(default)]
    pub protected: Vec<String>,
    /// What of the mounts does not work as their owner may think.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What else is worth knowing of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What its mounts have shown since it was made, by their sources: they show nothing else later, whatever somebody
    /// inside has put there. `None` before its first start, and in records of versions that did not note it.
    #[serde(default)]
    pub(super) sources: Option<BTreeMap<String, Object>>,
    /// The first of the ids of this machine that are the sandbox's alone, where it has such.
    pub(super) first_id: Option<u32>,
    /// The subordinate ids of its maker that its files may belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subordinate: Option<Subordinate>,
    /// The bases that its layers lie on, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) bases: Vec<String>,
    #[serde(skip)]
    pub(super) directory: PathBuf,
}

/// Where in its life a sandbox is, as the last program that worked on it has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// For the first time: nobody was ever told that it is there.
    Making,
    /// Again, with its workspace.
    Starting,
    /// It was bound. Its processes may have ended since.
    Ready,
    /// On request. Its processes may not have ended yet, if it names any.
    Suspended,
    /// The last start did not succeed.
    Failed(String),
    Removing,
}

/// What there is of a sandbox.
#[derive(Debug)]
pub(super) enum Found {
    Record(Box<Record>),
    /// Perhaps another version's.
    Unreadable(String),
    Nothing,
}

/// What has been seen of the processes that a record names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) worker: bool,
    pub(super) init: bool,
    /// The owner, if it has one, has ended.
    pub(super) owner_gone: bool,
    /// It was started before this machine was.
    pub(super) rebooted: bool,
}

/// What is to be done about a sandbox that nobody is at work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// It is whole, but a program was killed in the middle of work on it: end what runs, and note the phase that is true.
    Settle,
    Remove,
}

impl Phase {
    /// How a sandbox in this phase is. Pure; `reason` is asked for why its processes have ended.
    pub(super) fn status(&self, seen: Seen, reason: impl FnOnce() -> String) -> Status {
        let killed = |what| Status::Stopped { reason: format!("the `wharf` that was {what} it was killed") };
        match self {
            Self::Making | Self::Starting if seen.worker => {
                Status::Starting { waiting: "its walls are built".to_owned() }
            }
            Self::Making => killed("making"),
            Self::Starting => killed("starting"),
            Self::Ready if seen.init => Status::Ready,
            Self::Ready if seen.rebooted => Status::Stopped { reason: "this machine was restarted".to_owned() },
            Self::Ready => Status::Stopped { reason: reason() },
            Self::Suspended => Status::Suspended,
            Self::Failed(reason) => Status::Stopped { reason: reason.clone() },
            Self::Removing if seen.worker => Status::Deleting,
            Self::Removing => killed("removing"),
        }
    }

    /// What is to be done by whoever holds the lock. Pure.
    pub(super) fn judge(&self, seen: Seen) -> Verdict {
        match self {
            Self::Making | Self::Removing => Verdict::Remove,
            Self::Starting | Self::Ready | Self::Suspended | Self::Failed(_) if seen.owner_gone => Verdict::Remove,
            Self::Starting => Verdict::Settle,
            Self::Suspended if seen.init => Verdict::Settle,
            Self::Ready | Self::Suspended | Self::Failed(_) => Verdict::Keep,
        }
    }

    /// The phase that is true once what ran has been ended by somebody else than its worker.
    pub(super) fn settled(&self) -> Self {
        match self {
            Self::Starting => Self::Failed("the `wharf` that was starting it was killed".to_owned()),
            Self::Making | Self::Ready | Self::Suspended | Self::Failed(_) | Self::Removing => self.clone(),
        }
    }
}

impl Found {
    /// What is to be done about it by whoever holds the lock.
    pub(super) fn judge(&self) -> Verdict {
        match self {
            Self::Record(record) => record.phase.judge(record.seen()),
            Self::Unreadable(_) => Verdict::Keep,
            Self::Nothing => Verdict::Remove,
        }
    }

    /// Whether somebody may still be told that it is there.
    pub(super) fn is_taken(&self) -> bool {
        match self {
            Self::Record(record) => !matches!(record.phase, Phase::Making | Phase::Removing),
            Self::Unreadable(_) => true,
            Self::Nothing => false,
        }
    }
}

impl Record {
    /// What the files in `directory` tell.
    pub(super) fn find(directory: &Path) -> Found {
        let text = match fs::read(directory.join(super::RECORD)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Unreadable(error.to_string()),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(record) => Found::Record(Box::new(Self { directory: directory.to_owned(), ..record })),
            Err(error) => Found::Unreadable(error.to_string()),
        }
    }

    pub(super) fn seen(&self) -> Seen {
        let is_running = |process: &Option<Running>| process.as_ref().is_some_and(Running::is_running);
        Seen {
            worker: is_running(&self.worker),
            init: is_running(&self.init),
            owner_gone: self.owner.as_ref().is_some_and(|owner| !owner.is_running()),
            rebooted: self.init.as_ref().is_some_and(Running::is_of_another_boot),
        }
    }

    pub fn status(&self) -> Status {
        self.phase.status(self.seen(), || self.last_error().unwrap_or_else(|| self.ended_silently()))
    }

    /// What is known of an end of which sandboxd could say nothing.
    fn ended_silently(&self) -> String {
        let state_dir = self.directory.ancestors().nth(2).unwrap_or(&self.directory);
        match cgroup::oom_kills(&group_name(state_dir, &self.name)) {
            0 => "its processes have ended".to_owned(),
            kills => format!(
                "its processes have ended; the kernel killed {kills} of them, as more than {} bytes of memory were needed",
                self.bounds.memory_bytes
            ),
        }
    }

    /// The bounds that hold: without control groups the kernel bounds the memory of each process alone, and no CPUs; without
    /// isolation nothing on disk but a workspace of its own.
    pub fn held_bounds(&self) -> HeldBounds {
        let Bounds { memory_bytes, processes, cpu_millis, disk_bytes, shm_bytes } = self.bounds;
        let is_confined = self.spec.isolation != Isolation::None;
        HeldBounds {
            memory_bytes: self.grouped.then_some(memory_bytes),
            memory_bytes_of_each_process: (!self.grouped).then_some(memory_bytes),
            processes,
            cpu_millis: cpu_millis.filter(|_| self.grouped),
            disk_bytes: (is_confined || self.workspace.is_some()).then_some(disk_bytes),
            shm_bytes: shm_bytes.filter(|_| self.private_root),
        }
    }

    /// The process id of the sandbox's first process on the host, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.init.as_ref().filter(|init| init.is_running()).map(|init| init.pid)
    }

    /// The key that opens the sandbox's API.
    ///
    /// # Errors
    ///
    /// When the key file cannot be read, for instance by another user.
    pub fn key(&self) -> Result<Secret, LocalError> {
        let path = self.directory.join("key");
        let text = fs::read_to_string(&path).map_err(|source| state("read", &path, source))?;
        Ok(Secret::new(text.trim()))
    }

    /// The variables of the sandbox, with their values.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn environment(&self) -> Result<Environment, LocalError> {
        let path = self.directory.join(ENVIRONMENT);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        read.map_err(|source| state("read", &path, source))
    }

    /// What is at the source of a mount.
    ///
    /// # Errors
    ///
    /// When it is gone, or is not what the mount has shown before.
    pub(super) fn source(&self, source: &str) -> Result<Object, LocalError> {
        let failed = |reason| LocalError::Source { path: source.to_owned(), reason };
        let found = Object::at(Path::new(source)).map_err(|error| failed(error.to_string()))?;
        match self.sources.as_ref().and_then(|known| known.get(source)) {
            Some(known) if !known.is(found) => Err(failed(
                "it is not what was there when the sandbox was made; something was put in its place".to_owned(),
            )),
            Some(_) | None => Ok(found),
        }
    }

    /// Where sandboxd logs.
    pub fn log(&self) -> PathBuf {
        self.directory.join("sandboxd.log")
    }

    /// The last error that sandboxd has logged since it was started.
    pub(super) fn last_error(&self) -> Option<String> {
        error_in(&read_end(&self.log(), LOG_END).unwrap_or_default())
    }

    pub(super) fn explained(&self, what: &str) -> String {
        self.last_error().map_or_else(|| what.to_owned(), |error| format!("{what}: {error}"))
    }
}

/// The last `most` bytes of a file, as text.
pub(crate) fn read_end(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last error of a log, since sandboxd was last started: `2026-01-01T00:00:00Z ERROR what happened`.
fn error_in(log: &str) -> Option<String> {
    let since = log.lines().rev().take_while(|line| !line.contains(" listening on "));
    let (_, error) = since.filter_map(|line| line.split_once(" ERROR ")).next()?;
    // What runs in a sandbox may have a say in it, and it goes to a terminal.
    let plain = error.trim().chars().filter(|character| !character.is_control());
    Some(plain.take(LONGEST_REASON).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Seen = Seen { worker: false, init: false, owner_gone: false, rebooted: false };

    fn failed() -> Phase {
        Phase::Failed("no wall".to_owned())
    }

    #[track_caller]
    fn check_status(phase: &Phase, seen: Seen, expected: &str) {
        let told = match phase.status(seen, || "its disk is full".to_owned()) {
            Status::Starting { waiting } => format!("starting, {waiting}"),
            Status::Ready => "ready".to_owned(),
            Status::Suspended => "suspended".to_owned(),
            Status::Stopped { reason } => format!("stopped: {reason}"),
            Status::Deleting => "deleting".to_owned(),
        };
        assert_eq!(told, expected, "{phase:?} {seen:?}");
    }

    #[test]
    fn ready_is_said_of_nothing_but_what_was_bound_and_runs() {
        let runs = Seen { init: true, ..NOBODY };
        let worked = Seen { worker: true, ..runs };
        check_status(&Phase::Ready, runs, "ready");
        check_status(&Phase::Making, worked, "starting, its walls are built");
        check_status(&Phase::Making, runs, "stopped: the `wharf` that was making it was killed");
        check_status(&Phase::Starting, worked, "starting, its walls are built");
        check_status(&Phase::Starting, runs, "stopped: the `wharf` that was starting it was killed");
        check_status(&Phase::Suspended, runs, "suspended");
        check_status(&failed(), runs, "stopped: no wall");
        check_status(&Phase::Removing, worked, "deleting");
        check_status(&Phase::Removing, runs, "stopped: the `wharf` that was removing it was killed");
    }

    #[test]
    fn what_has_ended_says_why() {
        check_status(&Phase::Ready, NOBODY, "stopped: its disk is full");
        check_status(&Phase::Ready, Seen { rebooted: true, ..NOBODY }, "stopped: this machine was restarted");
    }

    #[test]
    fn what_is_half_made_goes_and_what_was_whole_stays() {
        let orphaned = Seen { owner_gone: true, ..NOBODY };
        let runs = Seen { init: true, ..NOBODY };
        for (phase, seen, expected) in [
            (Phase::Making, NOBODY, Verdict::Remove),
            (Phase::Making, runs, Verdict::Remove),
            (Phase::Removing, NOBODY, Verdict::Remove),
            (Phase::Starting, NOBODY, Verdict::Settle),
            (Phase::Starting, runs, Verdict::Settle),
            (Phase::Starting, orphaned, Verdict::Remove),
            (Phase::Ready, runs, Verdict::Keep),
            (Phase::Ready, NOBODY, Verdict::Keep),
            (Phase::Ready, Seen { owner_gone: true, ..runs }, Verdict::Remove),
            (Phase::Suspended, NOBODY, Verdict::Keep),
            (Phase::Suspended, runs, Verdict::Settle),
            (failed(), NOBODY, Verdict::Keep),
            (failed(), orphaned, Verdict::Remove),
        ] {
            assert_eq!(phase.judge(seen), expected, "{phase:?} {seen:?}");
            // What is settled has nothing left to be done about it.
            if expected == Verdict::Settle {
                assert_eq!(phase.settled().judge(NOBODY), Verdict::Keep, "{phase:?}");
            }
        }
        assert_eq!(Found::Nothing.judge(), Verdict::Remove);
        assert_eq!(Found::Unreadable(String::new()).judge(), Verdict::Keep);
    }

    #[test]
    fn the_last_error_of_a_log_is_that_of_the_last_start() {
        let log =
            "t ERROR old\nt INFO listening on unix:\nt ERROR first\nt ERROR then \u{1b}[2J\u{7}\nt INFO stopping\n";
        assert_eq!(error_in(log).as_deref(), Some("then [2J"));
        assert_eq!(error_in("t ERROR old\nt INFO listening on unix:\n"), None);
        assert_eq!(error_in(&format!("t ERROR {}", "x".repeat(1000))).unwrap().len(), LONGEST_REASON);
    }
}
