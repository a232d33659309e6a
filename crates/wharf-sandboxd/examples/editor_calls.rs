//! Runs file actions from standard input, one JSON object a line, and answers each with one line:
//! `{"action": "read" | "write" | "edit", "args": {…}}`. Made for `scripts/compare-editor`.

use std::io::{self, BufRead as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use wharf_sandboxd::dialect::openhands::default_files::{self, Reply};
use wharf_sandboxd::editor::Editor;
use wharf_sandboxd::files::rights::Rights;

fn main() -> anyhow::Result<()> {
    let cwd = std::env::current_dir().context("no working directory")?;
    let editor = Editor::new(cwd.clone());
    for line in io::stdin().lock().lines() {
        let action = serde_json::from_str(&line?).context("not JSON")?;
        writeln!(io::stdout(), "{}", answer(&action, &cwd, &editor)?)?;
    }
    Ok(())
}

fn answer(action: &Value, cwd: &Path, editor: &Editor) -> anyhow::Result<Value> {
    let args = action["args"].clone();
    let reply = match action["action"].as_str() {
        Some("read") => default_files::read(&serde_json::from_value(args)?, cwd, editor),
        Some("write") => default_files::write(&serde_json::from_value(args)?, cwd, 0, &Rights::own()),
        Some("edit") => default_files::edit(&serde_json::from_value(args)?, editor),
        other => bail!("no action `{other:?}`"),
    };
    Ok(match reply {
        Reply::Observation { content, extras, .. } => json!({"content": content, "diff": extras.get("diff")}),
        Reply::Error { content } => json!({"content": content, "diff": null}),
        Reply::Failed { detail } => json!({"failed": detail}),
    })
}
