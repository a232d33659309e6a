//! Sandboxes as tables and as JSON.

use comfy_table::{Table, presets};
use serde::Serialize;
use wharf_protocol::{Frame, SandboxId};
use wharf_runtime::{Runtime, Sandbox, Status};

use crate::{cli::OutputForm, out};

/// A row of a table; what is in it may come from a sandbox.
pub(crate) fn row<const N: usize>(cells: [String; N]) -> [String; N] {
    cells.map(|cell| out::printable(&cell))
}

/// A frame of output as one line of JSON.
pub(crate) fn frame(frame: &Frame) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(frame)?;
    line.push(b'\n');
    Ok(line)
}

/// Prints names: one a line, or as a JSON array.
pub(crate) fn names(names: &[SandboxId], form: OutputForm) -> anyhow::Result<()> {
    if form == OutputForm::Json {
        return json(&names);
    }
    names.iter().try_for_each(out::line)?;
    Ok(())
}

/// Prints one value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(out::line(without_controls(serde_json::to_string_pretty(value)?))?)
}

/// JSON in which what a terminal would obey is written by its number: of that JSON itself escapes only what ASCII begins with.
fn without_controls(json: String) -> String {
    let is_obeyed = |character: char| character.is_control() && character != '\n';
    if !json.contains(is_obeyed) {
        return json;
    }
    let escaped = |character: char| match is_obeyed(character) {
        true => format!("\\u{:04x}", u32::from(character)),
        false => character.to_string(),
    };
    json.chars().map(escaped).collect()
}

/// Prints Kubernetes objects: YAML documents, or a JSON array.
pub(crate) fn manifests(objects: &[serde_json::Value], form: OutputForm) -> anyhow::Result<()> {
    if form == OutputForm::Json {
        return json(&objects);
    }
    for object in objects {
        out::line(format!("---\n{}", serde_saphyr::to_string(object)?.trim_end()))?;
    }
    Ok(())
}

/// A text without what a terminal would act on.
pub(crate) fn plain(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|character| matches!(character, '\n' | '\t') || !character.is_control()).collect()
}

/// `wharf ls`.
pub(crate) async fn list(runtime: &Runtime, form: OutputForm) -> anyhow::Result<()> {
    let sandboxes = runtime.list().await?;
    if form == OutputForm::Json {
        return json(&sandboxes.iter().map(Sandbox::described).collect::<Vec<_>>());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "STATUS", "AGE", "WORKSPACE"]);
    let now = runtime.now();
    for sandbox in &sandboxes {
        let status = match &sandbox.status {
            Status::Ready => "ready".to_owned(),
            Status::Suspended => "suspended".to_owned(),
            Status::Deleting => "deleting".to_owned(),
            Status::Starting { waiting } => format!("starting, {waiting}"),
            Status::Stopped { reason } => format!("stopped: {reason}"),
        };
        let (status, age) = (short(&status, LONGEST_STATUS), age(now - sandbox.created_at));
        table.add_row(row([sandbox.id.to_string(), status, age, sandbox.workspace()]));
    }
    Ok(out::line(table.trim_fmt())?)
}

/// What a table has room for; `inspect` tells all.
const LONGEST_STATUS: usize = 72;

/// A text of at most `most` characters.
fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

pub(crate) fn age(seconds: f64) -> String {
    match seconds.max(0.0) as u64 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `wharf inspect`.
pub(crate) async fn inspect(runtime: &Runtime, id: &SandboxId) -> anyhow::Result<()> {
    let found = runtime.get(id).await?;
    let mut all = found.described();
    if found.status == Status::Ready {
        let sandbox = found.client()?;
        match tokio::try_join!(sandbox.info(), sandbox.sessions(), sandbox.execs()) {
            Ok((info, sessions, execs)) => {
                all["info"] = serde_json::to_value(info)?;
                all["sessions"] = serde_json::to_value(sessions)?;
                all["execs"] = serde_json::to_value(execs)?;
            }
            // The rest is worth knowing then too.
            Err(error) => crate::out::note!("warning: its server does not tell what runs in it: {error}"),
        }
    }
    json(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_status_does_not_make_the_table_wide() {
        assert_eq!(short("stöpped", 7), "stöpped");
        assert_eq!(short("stöpped: why", 7), "stöppe…");
    }

    #[test]
    fn json_has_no_power_over_a_terminal_and_says_the_same() {
        let odd = "a\u{1b}\u{7f}\u{9b}2J\n";
        let json = without_controls(serde_json::to_string_pretty(&[odd]).unwrap());
        assert_eq!(json, "[\n  \"a\\u001b\\u007f\\u009b2J\\n\"\n]");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [odd]);
    }

    #[test]
    fn a_log_has_no_power_over_a_terminal() {
        assert_eq!(plain(b"a\x1b]0;title\x07\tb\r\nc\xc2\x9b2J\xff"), "a]0;title\tb\nc2J\u{fffd}");
    }
}
