//! Sandboxes as tables and as JSON.

use std::{io::Write, path::Path};

use comfy_table::{Table, presets};
use serde::Serialize;
use wharf_protocol::{Frame, SandboxName, SandboxSpec};
use wharf_runtime::local::{LocalRuntime, Record, Status};

use crate::{cli::OutputForm, commands::client};

#[derive(Debug, Serialize)]
pub(crate) struct Described<'a> {
    name: &'a SandboxName,
    #[serde(flatten)]
    status: Status,
    created_at: f64,
    pid: Option<i32>,
    socket: &'a Path,
    workspace: Option<&'a Path>,
    walls: &'a [wharf_runtime::local::Wall],
    bounds: wharf_runtime::local::Bounds,
    spec: &'a SandboxSpec,
}

/// What is printed of a sandbox as JSON.
pub(crate) fn described(record: &Record) -> Described<'_> {
    Described {
        name: &record.name,
        status: record.status(),
        created_at: record.created_at,
        pid: record.pid(),
        socket: &record.socket,
        workspace: record.workspace.as_deref(),
        walls: &record.walls,
        bounds: record.bounds,
        spec: &record.spec,
    }
}

/// Prints one line of result. Unlike `println!` it fails where nobody reads any more, and does not panic.
pub(crate) fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(anstream::stdout(), "{text}")
}

/// Prints a frame of output as one line of JSON.
pub(crate) fn frame(frame: &Frame) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, frame)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints names: one a line, or as a JSON array.
pub(crate) fn names(names: &[SandboxName], form: OutputForm) -> anyhow::Result<()> {
    if form == OutputForm::Json {
        return json(&names);
    }
    names.iter().try_for_each(line)?;
    Ok(())
}

/// Prints one value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// `wharf ls`.
pub(crate) fn list(runtime: &LocalRuntime, form: OutputForm) -> anyhow::Result<()> {
    let records = runtime.list();
    if form == OutputForm::Json {
        return json(&records.iter().map(described).collect::<Vec<_>>());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "STATUS", "AGE", "WORKSPACE"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    for record in &records {
        let status = match record.status() {
            Status::Ready => "ready".to_owned(),
            Status::Stopped { reason } if reason.starts_with("stopped ") => reason,
            Status::Stopped { reason } => format!("stopped: {reason}"),
        };
        let mounted = || record.spec.mounts.first().map(|mount| mount.source.clone()).unwrap_or_default();
        let workspace = record.workspace.as_ref().map_or_else(mounted, |path| path.display().to_string());
        table.add_row([record.name.to_string(), status, age(now - record.created_at), workspace]);
    }
    Ok(line(table.trim_fmt())?)
}

fn age(seconds: f64) -> String {
    match seconds.max(0.0) as u64 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `wharf inspect`.
pub(crate) async fn inspect(runtime: &LocalRuntime, name: &SandboxName) -> anyhow::Result<()> {
    let record = runtime.get(name)?;
    let mut all = serde_json::to_value(described(&record))?;
    if record.status() == Status::Ready {
        let sandbox = client(&record)?;
        all["info"] = serde_json::to_value(sandbox.info().await?)?;
        all["sessions"] = serde_json::to_value(sandbox.sessions().await?)?;
        all["execs"] = serde_json::to_value(sandbox.execs().await?)?;
    }
    json(&all)
}
