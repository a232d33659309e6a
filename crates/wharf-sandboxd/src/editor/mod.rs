//! The file editor of coding agents: `view`, `create`, `str_replace`, `insert`, `undo_edit`.
//!
//! The texts are those of `openhands-aci` 0.3.2, byte for byte. What differs on purpose: line ends, a missing final
//! newline, mode and owner survive an edit; a file is replaced in one step; a character that the file's encoding lacks
//! is refused before anything is written; an undo gives back the original bytes.
//!
//! ```text
//! bytes ─ Encoding ─► text ─ Document ─► text with \n ─ edit ─► Document ─ Encoding ─► bytes
//! ```
//!
//! Everything is pure but [`Editor`], `directory` and `disk`.

pub mod binary;
pub mod diff;
mod directory;
pub(crate) mod disk;
pub mod document;
pub mod edit;
pub mod encoding;
mod history;
pub mod listing;
pub mod markdown;
pub mod python;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use binary::is_binary;
use document::{Document, universal_newlines};
use encoding::Encoding;
use history::History;
use python::{display_path, repr};

const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;
const MAX_HISTORY_BYTES: usize = 64 * 1024 * 1024;
/// Shown as Markdown and never edited.
const CONVERTED_SUFFIXES: [&str; 8] = ["docx", "xlsx", "pptx", "pdf", "mp3", "wav", "m4a", "flac"];

/// One call of the editor; which of the optional fields a command needs is checked when it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    pub command: &'a str,
    /// Must be absolute.
    pub path: &'a str,
    pub file_text: Option<&'a str>,
    /// `[first, last]`, counted from 1, last −1 for the end; absent, null and empty mean everything.
    pub view_range: Option<&'a Value>,
    pub old_str: Option<&'a str>,
    pub new_str: Option<&'a str>,
    /// The line after which to insert; 0 for the beginning.
    pub insert_line: Option<i64>,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// The text for the agent.
    pub output: String,
    /// Absent when nothing was written.
    pub change: Option<Change>,
}

/// The content before and after, with `\n` as line end.
#[derive(Debug)]
pub struct Change {
    pub old: String,
    pub new: String,
}

/// Why a command was refused or failed, in words for the agent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EditorError(String);

impl From<String> for EditorError {
    fn from(message: String) -> Self {
        Self(message)
    }
}

/// The editor of one sandbox with what its files looked like before.
#[derive(Debug)]
pub struct Editor {
    working_dir: PathBuf,
    /// Held through every command that writes, so that two of them cannot lose each other's edit.
    history: Mutex<History>,
}

struct Loaded {
    bytes: Vec<u8>,
    encoding: Encoding,
    document: Document,
}

/// A path as it was given, and as messages show it.
struct Target {
    path: PathBuf,
    shown: String,
}

impl Editor {
    /// `working_dir` only serves to suggest an absolute path to who gave a relative one.
    pub fn new(working_dir: PathBuf) -> Self {
        Self { working_dir, history: Mutex::new(History::new(MAX_HISTORY_BYTES)) }
    }

    /// Runs one command. Blocks on the disk and on big texts: call it where blocking is fine.
    ///
    /// # Errors
    ///
    /// Every failure, also of the disk, is a text for the agent; the file is then as it was.
    pub fn run(&self, request: &Request<'_>) -> Result<Outcome, EditorError> {
        let shown = display_path(request.path);
        let target = Target { path: PathBuf::from(&shown), shown };
        self.check_path(request.command, &target)?;
        let required = |value, parameter| missing_unless(value, request.command, parameter);
        match request.command {
            "view" => view(&target, request.view_range),
            "create" => self.create(&target, required(request.file_text, "file_text")?),
            "str_replace" => {
                let old = required(request.old_str, "old_str")?;
                if request.new_str == Some(old) {
                    return Err(invalid(
                        "new_str",
                        old,
                        "No replacement was performed. `new_str` and `old_str` must be different.",
                    ));
                }
                let new = request.new_str.unwrap_or_default();
                self.edit(&target, |document| edit::str_replace(document, &target.shown, old, new))
            }
            "insert" => {
                let line = missing_unless(request.insert_line, request.command, "insert_line")?;
                let new = required(request.new_str, "new_str")?;
                self.edit(&target, |document| edit::insert(document, &target.shown, line, new))
            }
            "undo_edit" => self.undo(&target),
            unknown => Err(EditorError(format!(
                "Unrecognized command {unknown}. The allowed commands for the oh_editor tool are: view, create, \
                 str_replace, insert, undo_edit"
            ))),
        }
    }

    fn check_path(&self, command: &str, target: &Target) -> Result<(), EditorError> {
        let Target { path, shown } = target;
        let invalid_path = |hint: &str| Err(invalid("path", shown, hint));
        if !path.is_absolute() {
            let hint = "The path should be an absolute path, starting with `/`.";
            let suggestion = self.working_dir.join(path);
            return match suggestion.exists() {
                true => invalid_path(&format!("{hint} Maybe you meant {}?", suggestion.display())),
                false => invalid_path(hint),
            };
        }
        let metadata = find_metadata(target)?;
        if command == "view" && metadata.is_some() {
            return Ok(());
        }
        match (command, &metadata) {
            ("create", Some(_)) => invalid_path(&format!(
                "File already exists at: {shown}. Cannot overwrite files using command `create`."
            )),
            ("create", None) => Ok(()),
            (_, None) => invalid_path(&format!("The path {shown} does not exist. Please provide a valid path.")),
            (_, Some(metadata)) if metadata.is_dir() => invalid_path(&format!(
                "The path {shown} is a directory and only the `view` command can be used on directories."
            )),
            (_, Some(_)) => Ok(()),
        }?;
        match suffix(path) {
            Some(suffix) if converted_suffix(path).is_some() => invalid_path(&format!(
                "The path {shown} points to a binary file (.{suffix}) and only the `view` command can be used on \
                 supported binary files."
            )),
            _ => Ok(()),
        }
    }

    fn create(&self, target: &Target, text: &str) -> Result<Outcome, EditorError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        target.write(text.as_bytes())?;
        history.push(&target.shown, text.as_bytes().to_vec());
        Ok(Outcome {
            output: format!("File created successfully at: {}", target.shown),
            change: Some(Change { old: String::new(), new: text.to_owned() }),
        })
    }

    fn edit(
        &self,
        target: &Target,
        edit: impl FnOnce(&Document) -> Result<edit::Edit, String>,
    ) -> Result<Outcome, EditorError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { bytes, encoding, document } = target.load()?;
        let edited = edit(&document)?;
        let content = encoding.encode(edited.document.stored()).map_err(|character| {
            target.failed("write to", &format!("'{}' codec can't encode character '{character}'", encoding.name()))
        })?;
        target.write(&content)?;
        history.push(&target.shown, bytes);
        let change = Change { old: document.text().to_owned(), new: edited.document.text().to_owned() };
        Ok(Outcome { output: edited.message, change: Some(change) })
    }

    fn undo(&self, target: &Target) -> Result<Outcome, EditorError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let current = target.load()?.document;
        let Some(bytes) = history.pop(&target.shown) else {
            return Err(EditorError(format!("No edit history found for {}.", target.shown)));
        };
        let encoding = Encoding::detect(&bytes);
        let old = universal_newlines(&encoding.decode(&bytes).unwrap_or_default());
        if let Err(error) = target.write(&bytes) {
            history.push(&target.shown, bytes);
            return Err(error);
        }
        let shown = &target.shown;
        Ok(Outcome {
            output: format!("Last edit to {shown} undone successfully. {}", listing::numbered(&old, shown, 1)),
            change: Some(Change { old: current.text().to_owned(), new: old }),
        })
    }
}

fn view(target: &Target, view_range: Option<&Value>) -> Result<Outcome, EditorError> {
    let view_range = view_range.filter(|range| !range.is_null() && !range.as_array().is_some_and(Vec::is_empty));
    let output = if target.path.is_dir() {
        if let Some(range) = view_range {
            let hint = "The `view_range` parameter is not allowed when `path` points to a directory.";
            return Err(invalid("view_range", &repr(range), hint));
        }
        directory::view(&target.path, &target.shown)?
    } else if let Some(suffix) = converted_suffix(&target.path) {
        let markdown = markdown::convert(suffix, &target.read_checked()?).map_err(|error| {
            let shown = &target.shown;
            format!("Error in converting file to Markdown: {error}. Please use Python code to read {shown}")
        })?;
        listing::converted(&markdown, &target.shown)
    } else {
        edit::view(target.load()?.document.text(), &target.shown, view_range)?
    };
    Ok(Outcome { output, change: None })
}

impl Target {
    fn load(&self) -> Result<Loaded, EditorError> {
        let bytes = self.read_checked()?;
        let encoding = Encoding::detect(&bytes);
        let Some(stored) = encoding.decode(&bytes) else {
            return Err(self.failed("read", &format!("'{}' codec can't decode the file", encoding.name())));
        };
        Ok(Loaded { bytes, encoding, document: Document::new(stored) })
    }

    /// The content of a file that is neither too large nor binary.
    fn read_checked(&self) -> Result<Vec<u8>, EditorError> {
        let bytes = disk::read(&self.path, MAX_FILE_BYTES).map_err(|error| self.io_failed("read", &error))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let size = fs::metadata(&self.path).map_or(0, |metadata| metadata.len()).max(bytes.len() as u64);
            return Err(self.unfit(&format!(
                "File is too large ({:.1}MB). Maximum allowed size is 10MB.",
                size as f64 / (1024.0 * 1024.0)
            )));
        }
        let compiled_python = self.shown.ends_with(".pyc");
        if converted_suffix(&self.path).is_none() && (compiled_python || is_binary(&bytes)) {
            let reason = "File appears to be binary and this file type cannot be read or edited by this tool.";
            return Err(self.unfit(reason));
        }
        Ok(bytes)
    }

    fn write(&self, content: &[u8]) -> Result<(), EditorError> {
        disk::replace(&self.path, content).map_err(|error| self.io_failed("write to", &error))
    }

    fn unfit(&self, reason: &str) -> EditorError {
        EditorError(format!("File validation failed for {}: {reason}", self.shown))
    }

    fn failed(&self, doing: &str, reason: &str) -> EditorError {
        EditorError(format!("Ran into {reason} while trying to {doing} {}", self.shown))
    }

    fn io_failed(&self, doing: &str, error: &io::Error) -> EditorError {
        self.failed(doing, &disk::python_error(error, Some(&self.path)))
    }
}

/// `None` where Python's `Path.exists` says no.
fn find_metadata(target: &Target) -> Result<Option<fs::Metadata>, EditorError> {
    match fs::metadata(&target.path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(target.io_failed("read", &error)),
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(libc::ELOOP)
}

fn missing_unless<T>(value: Option<T>, command: &str, parameter: &str) -> Result<T, EditorError> {
    value.ok_or_else(|| EditorError(format!("Parameter `{parameter}` is required for command: {command}.")))
}

fn invalid(parameter: &str, value: &str, hint: &str) -> EditorError {
    EditorError(format!("Invalid `{parameter}` parameter: {value}. {hint}"))
}

fn suffix(path: &Path) -> Option<&str> {
    path.extension().and_then(OsStr::to_str)
}

fn converted_suffix(path: &Path) -> Option<&'static str> {
    let suffix = suffix(path)?.to_ascii_lowercase();
    CONVERTED_SUFFIXES.into_iter().find(|converted| *converted == suffix)
}
