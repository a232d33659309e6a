//! `wharf ps` and `wharf kill`: what runs in a sandbox.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use comfy_table::{Table, presets};
use wharf_client::{ClientError, ErrorKind};
use wharf_protocol::{ExecInfo, ExecState, ProblemKind, SandboxId, SessionState, SignalName};
use wharf_runtime::Runtime;

use crate::{
    cli::{Kill, OutputForm},
    commands::ready,
    error::WrongUsage,
    out, show,
};

/// A command line is shown so far.
const SHOWN_COMMAND: usize = 60;

/// Lists execs and sessions.
pub(crate) async fn list(runtime: &Runtime, name: &SandboxId, form: OutputForm) -> anyhow::Result<()> {
    let sandbox = ready(runtime, name).await?.client()?;
    let (execs, sessions) = tokio::try_join!(sandbox.execs(), sandbox.sessions())?;
    if form == OutputForm::Json {
        return show::json(&serde_json::json!({ "execs": execs, "sessions": sessions }));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["ID", "KIND", "STATE", "AGE", "COMMAND"]);
    for exec in &execs {
        let age = show::age(now - exec.started_at);
        table.add_row(show::row([exec.id.to_string(), "exec".to_owned(), state(exec), age, command(exec)]));
    }
    for session in &sessions {
        let state = match session.state {
            SessionState::Idle => "idle".to_owned(),
            SessionState::Busy => "busy".to_owned(),
            SessionState::Ended { code, signal } => ended(code, signal),
        };
        let age = show::age(now - session.started_at);
        table.add_row(show::row([
            session.id.to_string(),
            "session".to_owned(),
            state,
            age,
            session.working_dir.clone(),
        ]));
    }
    Ok(out::line(table.trim_fmt())?)
}

fn state(exec: &ExecInfo) -> String {
    match exec.state {
        _ if exec.caller_gone => "ended with its caller".to_owned(),
        ExecState::Running => "running".to_owned(),
        ExecState::Exited { code } => ended(Some(code), None),
        ExecState::Signalled { signal } => ended(None, Some(signal)),
        ExecState::TimedOut => "timed out".to_owned(),
    }
}

fn ended(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("exited {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// One line, however it is written.
fn command(exec: &ExecInfo) -> String {
    let shown = out::printable(&exec.argv.join(" "));
    match shown.char_indices().nth(SHOWN_COMMAND) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// Ends execs and sessions and forgets them, or signals them.
pub(crate) async fn kill(runtime: &Runtime, arguments: Kill, form: OutputForm) -> anyhow::Result<()> {
    let signal = match &arguments.signal {
        None => None,
        Some(name) => {
            let signal = SignalName::Name(name.clone());
            let wrong = || WrongUsage(format!("--signal `{name}` is neither a signal's name nor its number"));
            signal.number().ok_or_else(wrong)?;
            Some(signal)
        }
    };
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let (execs, sessions) = tokio::try_join!(sandbox.execs(), sandbox.sessions())?;
    let ids = if arguments.finished {
        let finished = execs.iter().filter(|exec| exec.state != ExecState::Running);
        finished.map(|exec| exec.id.to_string()).collect()
    } else {
        arguments.ids
    };
    for id in &ids {
        let exec = execs.iter().find(|exec| exec.id.as_str() == id).map(|exec| sandbox.find_exec(exec.id.clone()));
        let session = sessions.iter().find(|session| session.id.as_str() == id);
        let session = session.map(|session| sandbox.find_session(session.id.clone()));
        let done = match (exec, session, signal.clone()) {
            (Some(exec), _, Some(signal)) => exec.signal(signal).await,
            (None, Some(session), Some(signal)) => session.signal(signal).await,
            (Some(exec), _, None) => exec.remove().await,
            (None, Some(session), None) => session.remove().await,
            (None, None, _) => bail!("neither an exec nor a session has the id `{id}`; `wharf ps` lists them"),
        };
        done.or_else(already_gone)?;
    }
    match form {
        OutputForm::Table => ids.iter().try_for_each(out::line)?,
        OutputForm::Json => show::json(&ids)?,
    }
    Ok(())
}

/// What has gone since it was listed is as good as ended.
fn already_gone(error: ClientError) -> Result<(), ClientError> {
    match error.kind() {
        ErrorKind::Refused(ProblemKind::NotFound) => Ok(()),
        _ => Err(error),
    }
}
