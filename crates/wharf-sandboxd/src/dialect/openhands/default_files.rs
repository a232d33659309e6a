//! The file actions `read`, `write` and `edit` of the OpenHands action API.
//!
//! `edit`, and `read` with `impl_source` `oh_aci`, are the editor's; the rest is the dialect's own way of reading and
//! writing, whose range quirks and added newline are wire format.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wharf_files::{NewFile, ReplaceError, Wanted};

use crate::editor::binary::{SAMPLE_BYTES, is_binary};
use crate::editor::diff::unified_diff;
use crate::editor::disk;
use crate::editor::document::universal_newlines;
use crate::editor::python::{display_path, parse_int};
use crate::editor::{Editor, Request};
use crate::files::rights::Rights;

/// The original has no limit; this keeps one answer from filling the sandbox's memory.
const MAX_READ_BYTES: u64 = 64 * 1024 * 1024;
const EDITOR: &str = "oh_aci";

/// `args` of a `read` action.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ReadArgs {
    pub path: String,
    /// Lines to skip; null means 0.
    #[serde(default)]
    pub start: Option<i64>,
    /// The line to stop before, −1 and null for the end.
    #[serde(default)]
    pub end: Option<i64>,
    #[serde(default)]
    pub impl_source: Option<String>,
    /// Only looked at with `impl_source` `oh_aci`.
    #[serde(default)]
    pub view_range: Option<Value>,
}

/// `args` of a `write` action.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct WriteArgs {
    pub path: String,
    pub content: String,
    #[serde(default)]
    pub start: Option<i64>,
    #[serde(default)]
    pub end: Option<i64>,
}

/// `args` of an `edit` action.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EditArgs {
    pub path: String,
    #[serde(default)]
    pub command: Option<String>,
    #[serde(default)]
    pub file_text: Option<String>,
    #[serde(default)]
    pub old_str: Option<String>,
    #[serde(default)]
    pub new_str: Option<String>,
    /// An integer, or a string that Python's `int` accepts.
    #[serde(default)]
    pub insert_line: Option<Value>,
    #[serde(default)]
    pub impl_source: Option<String>,
}

/// What the action is answered with; the HTTP edge adds the `message`.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Observation {
        observation: &'static str,
        content: String,
        extras: Map<String, Value>,
    },
    /// An `error` observation, which the agent sees.
    Error {
        content: String,
    },
    /// HTTP 500 with `Internal server error: <detail>`, which ends the agent's turn.
    Failed {
        detail: String,
    },
}

/// Answers a `read`. Blocks on the disk. `cwd` is the working directory of the shell.
pub fn read(args: &ReadArgs, cwd: &Path, editor: &Editor) -> Reply {
    let in_editor = args.impl_source.as_deref() == Some(EDITOR);
    let path = resolve(&args.path, cwd);
    if looks_binary(&path) && (!in_editor || Path::new(&args.path).is_absolute()) {
        return Reply::Error { content: "ERROR_BINARY_FILE".to_owned() };
    }
    if in_editor {
        let request =
            Request { command: "view", path: &args.path, view_range: args.view_range.as_ref(), ..Request::default() };
        let content = match editor.run(&request) {
            Ok(outcome) => outcome.output,
            Err(error) => format!("ERROR:\n{error}"),
        };
        return read_observation(&args.path, content, EDITOR);
    }
    let shown = path.to_string_lossy();
    let bytes = match read_limited(&path) {
        Ok(bytes) => bytes,
        Err(error) => return read_error(&error, &path, cwd),
    };
    if bytes.len() as u64 > MAX_READ_BYTES {
        return Reply::Error { content: format!("File {shown} is too large to be read at once (more than 64MB).") };
    }
    if let Some(media_type) = media_type(&shown) {
        let content = format!("data:{media_type};base64,{}", BASE64.encode(&bytes));
        return read_observation(&shown, content, "default");
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return Reply::Error { content: format!("File could not be decoded as utf-8: {shown}.") };
    };
    let text = universal_newlines(&text);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let content = read_range(&lines, args.start.unwrap_or(0), args.end.unwrap_or(-1)).concat();
    read_observation(&shown, content, "default")
}

/// Answers a `write`. Blocks on the disk. `cwd` is the working directory of the shell; a file that this call creates
/// gets mode 0664 and `new_file_id` as owner and as group. All is done with `rights`, which this thread must not have yet.
pub fn write(args: &WriteArgs, cwd: &Path, new_file_id: u32, rights: &Rights) -> Reply {
    match rights.run(|| prepare(args, cwd)) {
        Err(error) => Reply::Failed { detail: disk::python_error(&error, None) },
        Ok(Prepared::Done(reply)) => reply,
        Ok(Prepared::New { path, content }) => match create(&path, &content, new_file_id, rights) {
            Err(error) => write_error(&error, &path),
            Ok(Err(error)) => {
                let (shown, error) = (path.display(), disk::python_error(&error, Some(&path)));
                let content = format!("File {shown} written, but failed to change ownership and permissions: {error}");
                Reply::Error { content }
            }
            Ok(Ok(())) => written(&path),
        },
    }
}

enum Prepared {
    Done(Reply),
    New { path: PathBuf, content: String },
}

/// Writes a file that exists; says what a new one shall hold.
fn prepare(args: &WriteArgs, cwd: &Path) -> Prepared {
    let path = resolve(&args.path, cwd);
    if let Some(parent) = path.parent()
        && !parent.exists()
        && let Err(error) = fs::create_dir_all(parent)
    {
        return Prepared::Done(Reply::Failed { detail: disk::python_error(&error, Some(parent)) });
    }
    if path.exists() {
        return Prepared::Done(write_into(args, &path));
    }
    let content = args.content.split('\n').flat_map(|piece| [piece, "\n"]).collect();
    Prepared::New { path, content }
}

fn write_into(args: &WriteArgs, path: &Path) -> Reply {
    let shown = path.to_string_lossy();
    let (start, end) = (args.start.unwrap_or(0), args.end.unwrap_or(-1));
    let old = match read_limited(path) {
        Ok(bytes) => bytes,
        Err(error) => return write_error(&error, path),
    };
    if old.len() as u64 > MAX_READ_BYTES {
        return Reply::Error { content: format!("File {shown} is too large to be written in part (more than 64MB).") };
    }
    let Ok(old) = String::from_utf8(old) else {
        return Reply::Error { content: format!("File could not be decoded as utf-8: {shown}") };
    };
    let content = insert_lines(args.content.split('\n'), &old, start, end);
    match disk::replace(path, content.as_bytes()) {
        Ok(()) => written(path),
        Err(error) => write_error(&error, path),
    }
}

fn written(path: &Path) -> Reply {
    Reply::Observation {
        observation: "write",
        content: String::new(),
        extras: extras(json!({"path": path.to_string_lossy()})),
    }
}

/// Answers an `edit`. Blocks on the disk.
pub fn edit(args: &EditArgs, editor: &Editor) -> Reply {
    if args.impl_source.as_deref().is_some_and(|source| source != EDITOR) {
        // The original's assertion has no text.
        return Reply::Failed { detail: String::new() };
    }
    let mut diff = String::new();
    let content = insert_line(args.insert_line.as_ref())
        .and_then(|insert_line| {
            let request = Request {
                command: args.command.as_deref().unwrap_or_default(),
                path: &args.path,
                file_text: args.file_text.as_deref(),
                view_range: None,
                old_str: args.old_str.as_deref(),
                new_str: args.new_str.as_deref(),
                insert_line,
            };
            let outcome = editor.run(&request).map_err(|error| error.to_string())?;
            if let Some(change) = outcome.change {
                diff = unified_diff(&change.old, &change.new, &args.path);
            }
            Ok(outcome.output)
        })
        .unwrap_or_else(|error| format!("ERROR:\n{error}"));
    Reply::Observation {
        observation: "edit",
        content,
        extras: extras(json!({
            "path": args.path,
            "prev_exist": false,
            "old_content": args.old_str,
            "new_content": args.new_str,
            "impl_source": EDITOR,
            "diff": diff,
            "_diff_cache": null,
        })),
    }
}

fn insert_line(value: Option<&Value>) -> Result<Option<i64>, String> {
    let (shown, line) = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => (text.clone(), parse_int(text)),
        Some(other) => (other.to_string(), other.as_i64()),
    };
    line.map(Some).ok_or_else(|| format!("Invalid insert_line value: '{shown}'. Expected an integer."))
}

fn resolve(path: &str, cwd: &Path) -> PathBuf {
    PathBuf::from(display_path(&cwd.join(path).to_string_lossy()))
}

/// What cannot be read is not binary: reading it says why.
fn looks_binary(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".pyc")
        || disk::read(path, SAMPLE_BYTES as u64).is_ok_and(|sample| is_binary(&sample))
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    disk::read(path, MAX_READ_BYTES)
}

/// Python's `mimetypes`, for the suffixes that are not read as text.
fn media_type(path: &str) -> Option<&'static str> {
    let (_, suffix) = path.rsplit_once('.')?;
    Some(match suffix.to_ascii_lowercase().as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "bmp" => "image/bmp",
        "gif" => "image/gif",
        "pdf" => "application/pdf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "ogg" => "audio/ogg",
        _ => return None,
    })
}

/// The lines `start..end` as the original counts: an `end` other than −1 yields at least one line, and with an `end` a
/// `start` beyond the end means the last two lines.
fn read_range<'a, 'b>(lines: &'a [&'b str], start: i64, end: i64) -> &'a [&'b str] {
    let count = lines.len();
    let start = clamp(start, count);
    if end == -1 {
        return &lines[start..];
    }
    let begin = start.min(count.saturating_sub(2));
    let end = clamp(end, count).max(begin + 1).min(count);
    &lines[begin.min(end)..end]
}

fn clamp(index: i64, count: usize) -> usize {
    usize::try_from(index).unwrap_or(0).min(count)
}

/// Replaces the lines `start..end` of `old` by the pieces, each with a newline. Negative indexes count from the end, but
/// an `end` of −1 drops everything from `start` on. Line ends outside stay as they are.
fn insert_lines<'a>(pieces: impl Iterator<Item = &'a str>, old: &str, start: i64, end: i64) -> String {
    let lines = stored_lines(old);
    let index = |index: i64| match usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX) {
        back if index < 0 => lines.len().saturating_sub(back),
        forward => forward.min(lines.len()),
    };
    let mut text = lines[..index(start)].concat();
    text.extend(pieces.flat_map(|piece| [piece, "\n"]));
    if end != -1 {
        text.extend(lines[index(end)..].iter().copied());
    }
    text
}

/// Lines with their ends, which are `\n`, `\r\n` or `\r`.
fn stored_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(position) = rest.find(['\n', '\r']) {
        let end = position + if rest[position..].starts_with("\r\n") { 2 } else { 1 };
        lines.push(&rest[..end]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Makes a file that belongs to `id`, whoever makes it: the owner is changed on the open file, by sandboxd itself.
fn create(path: &Path, content: &str, id: u32, rights: &Rights) -> io::Result<Result<(), io::Error>> {
    let wanted = Wanted { mode: Some(0o664), ..Wanted::default() };
    let made = rights.run(|| {
        let mut file = NewFile::create(path, wanted)?;
        file.write_all(content.as_bytes())?;
        Ok::<_, ReplaceError>(file)
    })?;
    let file = made.map_err(ReplaceError::into_io)?;
    let given = if file.replaces() { Ok(()) } else { std::os::unix::fs::fchown(file.file(), Some(id), Some(id)) };
    rights.run(|| file.commit())?.map_err(ReplaceError::into_io)?;
    Ok(given)
}

fn read_error(error: &io::Error, path: &Path, cwd: &Path) -> Reply {
    let (shown, cwd) = (path.display(), cwd.display());
    match error.kind() {
        io::ErrorKind::NotFound => {
            Reply::Error { content: format!("File not found: {shown}. Your current working directory is {cwd}.") }
        }
        io::ErrorKind::IsADirectory => {
            Reply::Error { content: format!("Path is a directory: {shown}. You can only read files") }
        }
        _ => Reply::Failed { detail: disk::python_error(error, Some(path)) },
    }
}

fn write_error(error: &io::Error, path: &Path) -> Reply {
    let shown = path.display();
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => Reply::Error { content: format!("File not found: {shown}") },
        (io::ErrorKind::IsADirectory, _) => {
            Reply::Error { content: format!("Path is a directory: {shown}. You can only write to files") }
        }
        // Python names the path only when opening fails.
        (_, Some(libc::EIO | libc::ENOSPC | libc::EDQUOT | libc::EFBIG)) => {
            Reply::Failed { detail: disk::python_error(error, None) }
        }
        _ => Reply::Failed { detail: disk::python_error(error, Some(path)) },
    }
}

fn read_observation(path: &str, content: String, impl_source: &str) -> Reply {
    Reply::Observation {
        observation: "read",
        content,
        extras: extras(json!({"path": path, "impl_source": impl_source})),
    }
}

fn extras(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_with_the_quirks_of_the_original() {
        let lines = ["1", "2", "3", "4"];
        for (start, end, expected) in [
            (0, -1, "1234"),
            (2, -1, "34"),
            (9, -1, ""),
            (1, 3, "23"),
            (0, 0, "1"),
            (-5, -3, "1"),
            (9, 20, "34"),
            (3, 4, "34"),
        ] {
            assert_eq!(read_range(&lines, start, end).concat(), expected, "{start}..{end}");
        }
        assert!(read_range(&[], 3, 5).is_empty());
    }

    #[test]
    fn lines_are_replaced_with_the_quirks_of_the_original() {
        for (old, start, end, expected) in [
            ("1\n2\n3\n", 0, -1, "x\ny\n"),
            ("1\n2\n3\n", 1, 2, "1\nx\ny\n3\n"),
            ("1\n2\n3\n", 2, -1, "1\n2\nx\ny\n"),
            ("1\n2\n3\n", 9, 12, "1\n2\n3\nx\ny\n"),
            ("1\n2\n3\n", -1, -2, "1\n2\nx\ny\n2\n3\n"),
            ("1\r\n2\r\n3", 1, 2, "1\r\nx\ny\n3"),
        ] {
            assert_eq!(insert_lines("x\ny".split('\n'), old, start, end), expected, "{old:?} {start}..{end}");
        }
    }

    #[test]
    fn a_relative_binary_file_is_looked_for_in_the_directory_of_the_shell() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), b"a\0b").unwrap();
        let args = ReadArgs { path: "b".to_owned(), ..ReadArgs::default() };
        let reply = read(&args, folder.path(), &Editor::new(folder.path().to_owned()));
        assert_eq!(reply, Reply::Error { content: "ERROR_BINARY_FILE".to_owned() });
    }

    #[test]
    fn an_edit_of_another_source_fails_without_a_text() {
        let args = EditArgs { impl_source: Some("llm_based_edit".to_owned()), ..EditArgs::default() };
        assert_eq!(edit(&args, &Editor::new("/".into())), Reply::Failed { detail: String::new() });
    }

    #[test]
    fn stored_lines_keep_their_ends() {
        assert_eq!(stored_lines("a\r\nb\rc\n\nd"), ["a\r\n", "b\r", "c\n", "\n", "d"]);
    }
}
