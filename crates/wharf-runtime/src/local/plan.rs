//! What the launcher is told: everything decided beforehand, sent through a pipe.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use wharf_protocol::{Isolation, NetworkMode, Secret, SystemAccess};

use super::{object::Object, protection::PlannedMount, subordinate::Subordinate, users::SandboxUser};

/// What the launcher is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(super) enum Order {
    Build(Box<Plan>),
    MakeBase(BasePlan),
    /// Remove a directory in which files are its maker's subordinate ids'.
    Remove {
        path: PathBuf,
        subordinate: Subordinate,
    },
}

/// What is laid between a directory of the host and the layers of an ordinary user's sandboxes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BasePlan {
    /// Of the host.
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    /// The name of its layer.
    pub(super) layer: String,
    /// Whether files are copied too.
    pub(super) with_files: bool,
    /// Whether root of its sandboxes is the caller.
    pub(super) for_root: bool,
    pub(super) subordinate: Subordinate,
}

/// How a part of a launch begins that is about what is in the mounts, and not about the machine; the target follows.
pub(super) const MOUNT_AT: &str = "mount at ";

/// The whole of one launch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) name: String,
    /// The static or dynamic sandboxd on the host.
    pub(super) sandboxd: PathBuf,
    /// Holds `root/`, where the new root is built.
    pub(super) directory: PathBuf,
    /// Where the socket will be on the host.
    pub(super) socket: PathBuf,
    pub(super) log: PathBuf,
    pub(super) workspace: Option<PathBuf>,
    /// Where work begins inside a root of its own.
    pub(super) working_dir: PathBuf,
    /// The same directory on the host, where work begins without such a root.
    pub(super) working_dir_outside: PathBuf,
    pub(super) mounts: Vec<PlannedMount>,
    /// What is at their sources.
    pub(super) sources: BTreeMap<String, Object>,
    /// Whom commands run as.
    pub(super) user: SandboxUser,
    /// `None`: writable where that is possible.
    pub(super) system: Option<SystemAccess>,
    pub(super) devices: Vec<PathBuf>,
    pub(super) isolation: Isolation,
    /// The walls that stood when the sandbox was started before: it is not started with fewer, for what is inside may be why.
    pub(super) stood: Vec<String>,
    pub(super) network: NetworkMode,
    pub(super) bounds: Bounds,
    pub(super) cgroup: String,
    /// The first of the ids that are the sandbox's alone; only root gives any.
    pub(super) first_id: Option<u32>,
    /// The ids that an ordinary user may give to others, or why there are none.
    pub(super) subordinate: Result<Subordinate, String>,
    /// Whether it can be no other sandbox than one with them.
    pub(super) needs_others: bool,
    /// What is between the host's directories and the layers of an ordinary user's sandbox, by the names of the layers.
    pub(super) bases: BTreeMap<String, PathBuf>,
    pub(super) bind_secret: Secret,
}

/// What a sandbox may use, with defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub memory_bytes: u64,
    pub processes: u32,
    pub cpu_millis: Option<u32>,
    /// For the private directories in memory together (at most half of the memory), for a private workspace, and for each
    /// single file elsewhere.
    pub disk_bytes: u64,
    /// For `/dev/shm` alone; without it that shares what the private directories have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
}

impl Bounds {
    /// What a single file may take: one that is as large as it can be leaves room for the directories that are counted with it,
    /// so that its writer is refused, and the sandbox goes on.
    pub(super) fn file_bytes(&self) -> u64 {
        self.disk_bytes - (self.disk_bytes / 32).max(512 << 10).min(self.disk_bytes / 4)
    }

    /// What the private directories may take in memory together: with it full, half of the memory is still there.
    pub(super) fn private_bytes(&self) -> u64 {
        self.disk_bytes.min(self.memory_bytes.saturating_sub(self.shm_bytes.unwrap_or(0)) / 2)
    }
}

/// The bounds of a sandbox that hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HeldBounds {
    /// For all that is in it together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_of_each_process: Option<u64>,
    pub processes: u32,
    pub cpu_millis: Option<u32>,
    /// As of [`Bounds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
}

/// What the first process waits for, once the record names it.
pub(super) const GO_ON: &[u8] = b"g";

/// How far a launch is; the launcher's answers, one a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub(super) enum Launched {
    /// The first process of the sandbox is there, and waits for [`GO_ON`].
    Forked {
        pid: i32,
    },
    Started {
        report: Vec<Wall>,
        /// Whether paths inside are those of a root of its own, not the host's.
        private_root: bool,
        /// Directories inside whose files count against the bound on disk.
        counted: Vec<PathBuf>,
        /// Whether it has the users that an ordinary user may give it.
        has_subordinate: bool,
        /// Whether control groups keep its bounds.
        grouped: bool,
    },
    /// What was to be done besides is done.
    Done,
    Failed {
        part: String,
        reason: String,
    },
}

/// One part of the isolation, and whether it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    pub part: String,
    /// Why it is missing; `None` when it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// What it means here, if that is not plain from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
