use serde::{Deserialize, Serialize};

use crate::{Environment, Limits};

/// How strong the walls of a local sandbox have to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Every part, or the sandbox is not made.
    #[default]
    Full,
    /// Every part that the machine allows; what is missing is said.
    BestEffort,
    /// No walls: a plain process tree of the caller's user. This is no security boundary.
    None,
}

impl Isolation {
    /// As it is asked for on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::BestEffort => "best-effort",
            Self::None => "none",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The machine's own network.
    #[default]
    Host,
    /// A loopback of its own and nothing else.
    None,
}

/// A directory of the host that the sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path in the sandbox.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

/// What a sandbox may do to the system that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SystemAccess {
    ReadOnly,
    /// Changes stay in the sandbox.
    Writable,
}

impl SystemAccess {
    /// As it is asked for on a command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Writable => "writable",
        }
    }
}

/// What a sandbox shall be; the same for every runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSpec {
    /// The container image; absent: what the runtime's settings name. A local sandbox has this machine's files.
    pub image: Option<String>,
    /// Absolute path in the sandbox where sessions and execs start.
    pub working_dir: String,
    pub environment: Environment,
    pub mounts: Vec<MountSpec>,
    /// What of the mounts may be written although the host runs it: paths in the sandbox or relative to a mount, or `all`.
    pub unprotect: Vec<String>,
    /// Whom commands run as: a name, or `UID` or `UID:GID`. Absent: the caller's own user; in a cluster, its settings'.
    pub user: Option<String>,
    /// Whether the system (`/usr`, `/etc` …) can be changed. Absent: where that is possible. Only a local sandbox has a choice.
    pub system: Option<SystemAccess>,
    /// Devices of the machine, below `/dev`, each by its path.
    pub devices: Vec<String>,
    pub isolation: Isolation,
    pub network: NetworkMode,
    pub limits: Limits,
    /// Bytes of memory for everything in the sandbox.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at the same time.
    pub processes: Option<u32>,
    /// CPUs, in thousandths.
    pub cpu_millis: Option<u32>,
    /// Bytes that the sandbox may keep on disk, and in its private directories in memory.
    pub disk_bytes: Option<u64>,
    /// Bytes of `/dev/shm`, if it shall have a bound of its own.
    pub shm_bytes: Option<u64>,
    /// Seconds after which the sandbox ends by itself.
    pub deadline_seconds: Option<u64>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            image: None,
            working_dir: "/workspace".to_owned(),
            environment: Environment::new(),
            mounts: Vec::new(),
            unprotect: Vec::new(),
            user: None,
            system: None,
            devices: Vec::new(),
            isolation: Isolation::default(),
            network: NetworkMode::default(),
            limits: Limits::default(),
            memory_bytes: None,
            processes: None,
            cpu_millis: None,
            disk_bytes: None,
            shm_bytes: None,
            deadline_seconds: None,
        }
    }
}
