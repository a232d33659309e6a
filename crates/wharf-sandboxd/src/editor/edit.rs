//! What each command makes of a text. Pure: a document and the arguments go in, a new document and the answer come out.

use serde_json::Value;

use super::document::Document;
use super::listing::numbered;
use super::python::{is_space, repr, split_lines};

/// Lines shown around a change.
const CONTEXT_LINES: usize = 4;
/// More line numbers than this help nobody.
const MAX_LINE_NUMBERS: usize = 100_000;

/// A changed text and what the agent is told about it.
#[derive(Debug)]
pub struct Edit {
    pub document: Document,
    pub message: String,
}

/// Replaces the one occurrence of `old`. If there is none, both strings are tried without surrounding white space.
///
/// # Errors
///
/// The text for the agent, when `old` occurs never or several times.
pub fn str_replace(document: &Document, path: &str, old: &str, new: &str) -> Result<Edit, String> {
    let text = document.text();
    let (old, new) =
        if text.contains(old) { (old, new) } else { (old.trim_matches(is_space), new.trim_matches(is_space)) };
    let mut matches = text.match_indices(old);
    let start = match (matches.next(), matches.next()) {
        (None, _) => {
            return Err(format!("No replacement was performed, old_str `{old}` did not appear verbatim in {path}."));
        }
        (Some(_), Some(_)) => {
            return Err(format!(
                "No replacement was performed. Multiple occurrences of old_str `{old}` in lines {}. Please ensure it \
                 is unique.",
                lines_of_matches(text, old)
            ));
        }
        (Some((start, _)), None) => start,
    };
    let line = newlines(&text[..start]) + 1;
    let document = document.splice(start..start + old.len(), new);
    let first = line.saturating_sub(CONTEXT_LINES);
    let listing = snippet(document.text(), first, line + CONTEXT_LINES + newlines(new));
    let message = format!(
        "The file {path} has been edited. {}Review the changes and make sure they are as expected. Edit the file again \
         if necessary.",
        numbered(listing, &format!("a snippet of {path}"), first + 1)
    );
    Ok(Edit { document, message })
}

/// The distinct line numbers on which a match starts, as Python shows a list.
fn lines_of_matches(text: &str, pattern: &str) -> String {
    let (mut line, mut counted) = (1, 0);
    let mut lines = Vec::new();
    for (start, _) in text.match_indices(pattern) {
        line += newlines(&text[counted..start]);
        counted = start;
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    let more = if lines.len() > MAX_LINE_NUMBERS { ", ..." } else { "" };
    let shown: Vec<String> = lines.iter().take(MAX_LINE_NUMBERS).map(usize::to_string).collect();
    format!("[{}{more}]", shown.join(", "))
}

/// Inserts the lines of `new` after line `after`.
///
/// A last line without a newline gets one, and the text then ends without one as before.
///
/// # Errors
///
/// The text for the agent, when there is no line `after`.
pub fn insert(document: &Document, path: &str, after: i64, new: &str) -> Result<Edit, String> {
    let text = document.text();
    let lines = count_lines(text);
    let Some(after) = usize::try_from(after).ok().filter(|&after| after <= lines) else {
        return Err(format!(
            "Invalid `insert_line` parameter: {after}. It should be within the range of allowed values: [0, {lines}]"
        ));
    };
    let offset = start_of_line(text, after);
    let unfinished = offset > 0 && !text[..offset].ends_with('\n');
    let inserted = if unfinished { format!("\n{new}") } else { format!("{new}\n") };
    let document = document.splice(offset..offset, &inserted);
    let pieces = newlines(new) + 1;
    let listing = snippet(
        document.text(),
        after.saturating_sub(CONTEXT_LINES),
        (lines + pieces).min(after + CONTEXT_LINES + pieces),
    );
    let first = (after + 1).saturating_sub(CONTEXT_LINES).max(1);
    let message = format!(
        "The file {path} has been edited. {}Review the changes and make sure they are as expected (correct \
         indentation, no duplicate lines, etc). Edit the file again if necessary.",
        numbered(listing, "a snippet of the edited file", first)
    );
    Ok(Edit { document, message })
}

/// The whole text, or the lines of `view_range` (two integers, the second may be −1), numbered.
///
/// # Errors
///
/// The text for the agent, when the range is not one of this text.
pub fn view(text: &str, path: &str, view_range: Option<&Value>) -> Result<String, String> {
    let Some(view_range) = view_range else {
        return Ok(numbered(text, path, 1));
    };
    let invalid = |hint: String| format!("Invalid `view_range` parameter: {}. {hint}", repr(view_range));
    let (first, last) = match view_range.as_array().map(Vec::as_slice) {
        Some([first, last]) => (first.as_i64(), last.as_i64()),
        _ => (None, None),
    };
    let (Some(first), Some(last)) = (first, last) else {
        return Err(invalid("It should be a list of two integers.".to_owned()));
    };
    let lines = count_lines(text);
    let Some(start) = usize::try_from(first).ok().filter(|&first| 1 <= first && first <= lines) else {
        return Err(invalid(format!(
            "Its first element `{first}` should be within the range of lines of the file: [1, {lines}]."
        )));
    };
    let end = if last == -1 { Some(lines) } else { usize::try_from(last).ok() };
    let Some(end) = end.filter(|&end| end >= start) else {
        return Err(invalid(format!(
            "Its second element `{last}` should be greater than or equal to the first element `{first}`."
        )));
    };
    let listing = numbered(&split_lines(snippet(text, start - 1, end)).join("\n"), path, start);
    if end > lines {
        return Ok(format!(
            "NOTE: We only show up to {lines} since there're only {lines} lines in this file.\n{listing}"
        ));
    }
    Ok(listing)
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|&byte| byte == b'\n').count()
}

/// A last line without a newline counts.
fn count_lines(text: &str) -> usize {
    text.split_inclusive('\n').count()
}

/// Where the line after `lines` lines begins; the end of the text if there is none.
fn start_of_line(text: &str, lines: usize) -> usize {
    text.split_inclusive('\n').take(lines).map(str::len).sum()
}

/// The lines `from..to`, counted from 0, with their newlines.
fn snippet(text: &str, from: usize, to: usize) -> &str {
    &text[start_of_line(text, from)..start_of_line(text, to.max(from))]
}
