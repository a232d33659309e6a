use serde::{Deserialize, Serialize};

use crate::{ByteOffset, Environment, SessionId, TerminalSize};

/// What happens to a running command when its caller goes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// It runs on; attach again to see the rest.
    #[default]
    KeepRunning,
    /// It is killed as a whole process tree.
    Kill,
}

/// Starts a session: a persistent interactive shell on a terminal.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// Chosen by the caller, so that a repeated request finds the same session; absent: made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<SessionId>,
    /// Absolute path; absent: the sandbox's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Added to the sandbox's environment.
    #[serde(default)]
    pub environment: Environment,
    /// A user of the sandbox, by name or by number; absent: the sandbox's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default)]
    pub terminal: TerminalSize,
}

/// What a session is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SessionState {
    /// The shell waits for a command.
    Idle,
    /// A command runs, or the shell is still starting.
    Busy,
    /// The shell ended; the next command gets a new one.
    Ended { code: Option<i32>, signal: Option<i32> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SessionInfo {
    pub id: SessionId,
    #[serde(flatten)]
    pub state: SessionState,
    /// The shell's process id inside the sandbox.
    pub pid: u32,
    pub working_dir: String,
    pub terminal: TerminalSize,
    /// Seconds since the Unix epoch.
    pub started_at: f64,
    /// The end of its output log so far.
    pub output_end: ByteOffset,
}

/// Runs one command in a session and waits for its end.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The text, as typed at the prompt; may have several lines.
    pub command: String,
    /// Milliseconds after which the call returns `timed_out`; the command runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds without new output after which the call returns `no_output`; the command runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_output_timeout_ms: Option<u64>,
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
}

/// How a call to run a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CommandOutcome {
    /// The shell is back at its prompt.
    Finished { exit_code: i32 },
    /// The command still runs: nothing was printed for the given time.
    NoOutput,
    /// The command still runs: the given time passed.
    TimedOut,
    /// The shell itself ended.
    ShellEnded { code: Option<i32>, signal: Option<i32> },
    /// The shell waits for commands, but no longer says how they end: a DEBUG trap that refuses every command, or read-only
    /// variables, keep it from that. The next command runs in a new shell.
    ShellLost,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CommandResult {
    #[serde(flatten)]
    pub outcome: CommandOutcome,
    /// What the command printed, as a terminal shows it, without the echo of the command.
    pub output: String,
    /// Whether the beginning of the output is no longer kept.
    pub truncated: bool,
    /// Where the command's output starts and ends in the session's log.
    pub output_start: ByteOffset,
    pub output_end: ByteOffset,
    pub working_dir: String,
    /// Whether the session's earlier shell had ended, so that this command ran in a new one: directory, variables,
    /// functions and jobs of the earlier one are gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_shell: bool,
    /// Whether the command was killed, and the kernel has killed something in this sandbox for want of memory meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
}

impl CommandOutcome {
    /// Whether a SIGKILL has ended the command, or its shell.
    pub fn was_killed(&self) -> bool {
        match self {
            Self::Finished { exit_code } => *exit_code == 128 + SIGKILL,
            Self::ShellEnded { code, signal } => *signal == Some(SIGKILL) || *code == Some(128 + SIGKILL),
            Self::NoOutput | Self::TimedOut | Self::ShellLost => false,
        }
    }
}

const SIGKILL: i32 = 9;

/// Bytes typed into a session, whatever it is doing.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputRequest {
    /// Typed as it is; end with `\n` (Enter) or send control characters such as `\u0003` (Ctrl-C).
    pub text: String,
}

/// What the terminal shows now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Screen {
    pub text: String,
    pub cursor_row: u32,
    pub cursor_column: u32,
    pub alternate: bool,
    pub terminal: TerminalSize,
}
