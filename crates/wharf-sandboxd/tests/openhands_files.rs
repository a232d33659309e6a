//! The recordings of the real file actions, replayed in their order on one disk.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::{Value, json};
use wharf_sandboxd::dialect::openhands::default_files::{self, Reply};
use wharf_sandboxd::editor::Editor;
use wharf_sandboxd::files::rights::Rights;

/// The answers that differ from the recordings on purpose: what they contain instead, and why. What the recorded shell
/// commands showed of the disk is asserted at the end of the test: CRLF and mode survive an edit, which they did not.
const REPAIRED: [(&str, &str, &str); 4] = [
    ("view_latin1", "déjà vu naïve", "Latin-1 was taken for a Baltic code page: déją vu naļve"),
    ("edit_latin1_replace", "déjà vu naïve", "the same"),
    ("insert_nonl", "     2\ty\n     3\ttail\n", "the insertion was glued to a last line without newline"),
    ("edit_real_binary", "File appears to be binary", "a Python type error was shown"),
];

/// The uid that the recorded server gave to new files.
const NEW_FILE_ID: u32 = 1000;

struct Disk {
    root: tempfile::TempDir,
    cwd: PathBuf,
    editor: Editor,
}

#[test]
fn recorded_file_actions_are_answered_as_the_original_answered() {
    let root = tempfile::tempdir().unwrap();
    let cwd = root.path().to_owned();
    let mut disk = Disk { editor: Editor::new(cwd.clone()), root, cwd };
    let fixtures = &golden("fixtures.json")["recordings"];
    let mut differences = Vec::new();
    for recording in ["action_server_read_and_view", "action_server_write", "action_server_edit"] {
        let files = &fixtures[recording];
        each(&files["files"]).for_each(|file| disk.put(file));
        for exchange in each(&golden(&format!("{recording}.json"))["exchanges"]) {
            let name = exchange["name"].as_str().unwrap();
            each(&files["between"]).filter(|file| file["before"] == name).for_each(|file| disk.put(file));
            let action = &exchange["request"]["json"]["action"];
            let recorded = &exchange["response"]["json"];
            let Some(answer) = disk.answer(action) else { continue };
            let expected = comparable(recorded);
            if answer != expected {
                differences.push((name.to_owned(), answer, expected));
            }
        }
    }
    for (name, answer, expected) in &differences {
        let repaired = REPAIRED.iter().any(|(of, part, _)| of == name && answer.to_string().contains(&quoted(part)));
        assert!(repaired, "{name}\n    answer: {answer}\n  expected: {expected}");
    }
    assert_eq!(differences.len(), REPAIRED.len(), "a listed difference is none any more");
    assert_eq!(fs::read(disk.path("/workspace/rec/crlf.txt")).unwrap(), b"one\r\nTWO\r\nthree\r\n");
    assert_eq!(fs::read(disk.path("/workspace/rec/nonl.txt")).unwrap(), b"x\ny\ntail");
    assert!(fs::read(disk.path("/workspace/rec/latin1c.txt")).unwrap().ends_with(b"e\nFIN \xe9\n"));
    assert!(fs::read(disk.path("/workspace/rec/gbk.txt")).unwrap().windows(5).any(|w| w == b"\xd0\xc2\xd0\xd0\n"));
    for (file, mode, new) in [
        ("new1.txt", 0o664, true),
        ("n1/n2/f.txt", 0o664, true),
        ("rel.txt", 0o664, true),
        ("ten.txt", 0o644, false),
        ("c.py", 0o644, false),
        ("nonl.txt", 0o644, false),
    ] {
        let metadata = fs::metadata(disk.path(&format!("/workspace/rec/{file}"))).unwrap();
        let id = if new { disk.new_file_id() } else { rustix::process::getuid().as_raw() };
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (mode, id, id), "{file}");
    }
}

impl Disk {
    /// Without root nobody may give files away.
    fn new_file_id(&self) -> u32 {
        let id = rustix::process::getuid();
        if id.is_root() { NEW_FILE_ID } else { id.as_raw() }
    }

    fn here(&self, text: &str) -> String {
        text.replace("/workspace", self.root.path().to_str().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(self.here(path))
    }

    fn put(&mut self, file: &Value) {
        let path = self.path(file["path"].as_str().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let base64 = base64::engine::general_purpose::STANDARD;
        let content = if file["directory"] == true {
            return fs::create_dir_all(path).unwrap();
        } else if let Some(text) = file["text"].as_str() {
            text.as_bytes().to_vec()
        } else if let Some(text) = file["base64"].as_str() {
            base64.decode(text).unwrap()
        } else {
            file["repeat"][0].as_str().unwrap().repeat(file["repeat"][1].as_u64().unwrap() as usize).into_bytes()
        };
        fs::write(path, content).unwrap();
    }

    /// `None` for shell commands; of these only `cd` matters here.
    fn answer(&mut self, action: &Value) -> Option<Value> {
        let args: Value = serde_json::from_str(&self.here(&action["args"].to_string())).unwrap();
        let reply = match action["action"].as_str().unwrap() {
            "read" => default_files::read(&serde_json::from_value(args).unwrap(), &self.cwd, &self.editor),
            "write" => default_files::write(
                &serde_json::from_value(args).unwrap(),
                &self.cwd,
                self.new_file_id(),
                &Rights::own(),
            ),
            "edit" => default_files::edit(&serde_json::from_value(args).unwrap(), &self.editor),
            _ => {
                if let Some(directory) = args["command"].as_str().and_then(|command| command.strip_prefix("cd ")) {
                    self.cwd = Path::new(directory).to_owned();
                }
                return None;
            }
        };
        let answer = match reply {
            Reply::Observation { observation, content, extras } => {
                json!({"observation": observation, "content": content, "extras": extras})
            }
            Reply::Error { content } => {
                json!({"observation": "error", "content": content, "extras": {"error_id": ""}})
            }
            Reply::Failed { detail } => json!({"detail": format!("Internal server error: {detail}")}),
        };
        Some(
            serde_json::from_str(&answer.to_string().replace(self.root.path().to_str().unwrap(), "/workspace"))
                .unwrap(),
        )
    }
}

fn comparable(recorded: &Value) -> Value {
    let mut recorded = recorded.clone();
    // The HTTP edge adds it.
    recorded.as_object_mut().unwrap().remove("message");
    recorded
}

fn quoted(text: &str) -> String {
    json!(text).to_string().trim_matches('"').to_owned()
}

fn golden(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
