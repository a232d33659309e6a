//! Errors as a person reads them, and the exit codes.

use std::process::ExitCode;

use wharf_client::{ClientError, ErrorKind};
use wharf_protocol::ProblemKind;
use wharf_runtime::local::LocalError;

/// wharf itself failed.
pub(crate) const FAILED: u8 = 125;
/// The command's time limit has passed, as with timeout(1).
pub(crate) const TIMED_OUT: u8 = 124;
/// The command is not there.
pub(crate) const NOT_FOUND: u8 = 127;
/// The command was understood but is wrong.
pub(crate) const USAGE: u8 = 2;

/// Nobody reads our output any more: as a shell reports a program that SIGPIPE ended.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Prints an error and its hint; gives the exit code that belongs to it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Only our own output: a broken pipe behind a connection is another matter.
    let local = match error.downcast_ref() {
        Some(ClientError::Local(source)) => Some(source),
        _ => error.downcast_ref::<std::io::Error>(),
    };
    if local.is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::from(BROKEN_PIPE);
    }
    anstream::eprintln!("error: {error:#}");
    if let Some(hint) = hint(error) {
        anstream::eprintln!("hint: {hint}");
    }
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(client) = error.downcast_ref::<ClientError>() {
        let about_the_program = client.problem().is_some_and(|problem| problem.field.as_deref() == Some("argv"));
        return if about_the_program { NOT_FOUND } else { FAILED };
    }
    match error.downcast_ref::<LocalError>() {
        Some(LocalError::Spec { .. }) => USAGE,
        _ => FAILED,
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(local) = error.downcast_ref::<LocalError>() {
        return match local {
            LocalError::Exists(name) => Some(format!("use another name, or remove it with `wharf rm {name}`")),
            LocalError::NotFound(_) => Some("`wharf ls` lists the sandboxes that there are".to_owned()),
            LocalError::NotRunning { name, .. } => Some(format!("`wharf start {name}` starts it again")),
            LocalError::Wall { .. } => {
                Some("`--isolation best-effort` goes on without this wall and says what is missing".to_owned())
            }
            LocalError::State { .. } => Some("`--state-dir` or WHARF_STATE_DIR puts the state elsewhere".to_owned()),
            LocalError::Busy(_) | LocalError::Spec { .. } | LocalError::Launcher { .. } | LocalError::Bind { .. } => {
                None
            }
        };
    }
    match error.downcast_ref::<ClientError>()?.kind() {
        ErrorKind::Unreachable => Some("`wharf ls` tells whether the sandbox still runs".to_owned()),
        ErrorKind::Refused(ProblemKind::Conflict) => Some("somebody else may be using it".to_owned()),
        _ => None,
    }
}
