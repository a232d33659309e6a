use serde::{Deserialize, Serialize};

use crate::{ByteOffset, Environment, ExecId, OnDisconnect};

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

/// Starts one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Chosen by the caller so that a repeated request finds the same exec; absent: made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ExecId>,
    /// The program and its arguments. No shell is involved.
    pub argv: Vec<String>,
    /// Absolute path; absent: the sandbox's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Added to the sandbox's environment.
    #[serde(default)]
    pub environment: Environment,
    /// A user of the sandbox, by name or by number; absent: the sandbox's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A terminal of this size instead of three pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Whether standard input stays open for the caller; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Milliseconds after which the process tree is told to end (SIGTERM), and five seconds later killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What happens when the caller goes away. The caller is whoever follows the output, or waits for the end, without
    /// only watching.
    #[serde(default)]
    pub on_disconnect: OnDisconnect,
    /// Milliseconds that a caller whose connection broke, or who has never come, may take to come (back) before
    /// `on_disconnect` is done; absent: 45000. A caller who closes the WebSocket has gone at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect_grace_ms: Option<u64>,
    /// What a process waits for that prints more than the log takes.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What a log that is full does with more output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The oldest output goes, and the process never waits.
    #[default]
    DropOldest,
    /// The process waits for its caller to read, as at a pipe; once the caller has gone for good, the oldest goes.
    Wait,
}

/// How far an exec has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ExecState {
    Running,
    /// Ended by itself.
    Exited {
        code: i32,
    },
    /// Ended by a signal.
    Signalled {
        signal: i32,
    },
    /// Killed because its time limit passed.
    TimedOut,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecInfo {
    pub id: ExecId,
    pub argv: Vec<String>,
    pub pid: u32,
    #[serde(flatten)]
    pub state: ExecState,
    pub terminal: bool,
    /// Seconds since the Unix epoch.
    pub started_at: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<f64>,
    /// Whether it ended by SIGKILL, or with 137 as a shell whose program did, which nobody had asked for, and the kernel
    /// killed a process of the sandbox for want of memory meanwhile. `false` where sandboxd cannot see that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Whether it was ended because its caller had gone, as `on_disconnect` asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub caller_gone: bool,
    /// The end of its output log so far.
    pub output_end: ByteOffset,
}

/// A signal by its name without `SIG`, as `kill -l` prints it, or by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum SignalName {
    Number(i32),
    Name(String),
}

impl SignalName {
    /// The signal's number on Linux, or `None` if there is no such signal.
    pub fn number(&self) -> Option<i32> {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
            "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
            "WINCH", "IO", "PWR", "SYS",
        ];
        match self {
            Self::Number(number) => (1..=31).contains(number).then_some(*number),
            Self::Name(name) => {
                let upper = name.to_ascii_uppercase();
                if let Ok(number) = upper.parse::<i32>() {
                    return Self::Number(number).number();
                }
                let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
                NAMES.iter().position(|known| *known == bare).map(|at| at as i32 + 1)
            }
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    pub signal: SignalName,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    pub rows: u16,
    pub columns: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_name_number_and_prefix() {
        for (text, number) in [("TERM", Some(15)), ("sigint", Some(2)), ("9", Some(9)), ("0", None), ("NOPE", None)] {
            assert_eq!(SignalName::Name(text.to_owned()).number(), number, "{text}");
        }
        assert_eq!(SignalName::Number(64).number(), None);
    }
}
