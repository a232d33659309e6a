//! Renders byte streams from standard input, one JSON object a line, and answers each with one line:
//! `{"rows": 24, "columns": 80, "bytes": "base64…"}`. Made for `scripts/compare-screen`.

use std::io::{self, BufRead as _, Write as _};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use wharf_sandboxd::screen::{Screen, ScreenSize};

fn main() -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        let call: Value = serde_json::from_str(&line?).context("not JSON")?;
        let number = |name: &str| call[name].as_u64().and_then(|number| u16::try_from(number).ok()).context("no size");
        let size = ScreenSize { rows: number("rows")?, columns: number("columns")? };
        let mut screen = Screen::new(size, 10_000);
        screen.feed(&BASE64_STANDARD.decode(call["bytes"].as_str().context("no bytes")?)?);
        let (row, column) = screen.cursor();
        let answer = json!({
            "text": screen.text(),
            "visible": screen.visible_text(),
            "cursor": [row, column],
            "alternate": screen.is_alternate(),
        });
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}
