//! What is said between Wharf's processes.
//!
//! Types that cross a process boundary, the framing of output streams as pure `encode`/`decode`,
//! problems, ids and the sandbox specification. There is deliberately no I/O and no behaviour
//! here: no tokio, no HTTP library, no Kubernetes.
//!
//! Requests of our own API refuse unknown fields, responses tolerate them.
#![forbid(unsafe_code)]

mod bind;
mod exec;
mod files;
mod frame;
mod ids;
mod info;
mod problem;
mod sandbox;
mod session;

pub use bind::{BindRequest, DigestError, Environment, Limits, Secret, SecretDigest, UserSpec};
pub use exec::{ExecInfo, ExecRequest, ExecState, ResizeRequest, SignalName, SignalRequest, TerminalSize, WhenFull};
pub use files::{
    ArchiveFormat, DirectoryListing, FileKind, FileStat, FileTime, FileTimeError, MakeDirectoryRequest, MoveRequest,
    SearchMatch, SearchRequest, SearchResult, Skipped, SkippedFile, UploadResult,
};
pub use frame::{Frame, FrameError, INPUT_WINDOW_BYTES, Stream};
pub use ids::{BootId, ByteOffset, ExecId, IdError, SandboxId, SandboxName, SessionId};
pub use info::{Health, HealthStatus, Info};
pub use problem::{Problem, ProblemKind};
pub use sandbox::{Isolation, MountSpec, NetworkMode, SandboxSpec, SystemAccess};
pub use session::{
    CommandOutcome, CommandResult, InputRequest, OnDisconnect, RunRequest, Screen, SessionInfo, SessionRequest,
    SessionState,
};
