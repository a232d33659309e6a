//! What holds for every file and every edit.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use wharf_sandboxd::editor::diff::unified_diff;
use wharf_sandboxd::editor::document::Document;
use wharf_sandboxd::editor::encoding::Encoding;
use wharf_sandboxd::editor::{Editor, Request, edit, markdown};

/// No control characters and no byte order mark, so that the bytes are a text in each of the encodings below.
fn lines() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-z é世😀]{0,8}", 1..8)
}

fn encode(text: &str, encoding: usize) -> Vec<u8> {
    match encoding {
        0 => text.as_bytes().to_vec(),
        1 => ["\u{feff}".as_bytes(), text.as_bytes()].concat(),
        2 => [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect(),
        _ => [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect(),
    }
}

proptest! {
    #[test]
    fn an_edit_changes_only_its_place_and_undo_gives_the_original_bytes(
        before in lines(),
        after in lines(),
        encoding in 0..4_usize,
        line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        final_newline: bool,
    ) {
        let end = if final_newline { line_end } else { "" };
        let file = |middle: &str| {
            let text = [&before.join(line_end), line_end, middle, line_end, &after.join(line_end), end].concat();
            encode(&text, encoding)
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, file("UNIQUE")).unwrap();
        let editor = Editor::new(Path::new("/").to_owned());
        let run = |request: Request<'_>| editor.run(&Request { path: path.to_str().unwrap(), ..request }).unwrap();
        let (old_str, new_str) = (Some("UNIQUE"), Some("NEW\nTWO"));
        run(Request { command: "str_replace", old_str, new_str, ..Request::default() });
        prop_assert_eq!(fs::read(&path).unwrap(), file(&["NEW", line_end, "TWO"].concat()));
        run(Request { command: "undo_edit", ..Request::default() });
        prop_assert_eq!(fs::read(&path).unwrap(), file("UNIQUE"));
        let insert_line = Some(i64::try_from(before.len()).unwrap());
        run(Request { command: "insert", insert_line, new_str: Some("NEW"), ..Request::default() });
        prop_assert_eq!(fs::read(&path).unwrap(), file(&["NEW", line_end, "UNIQUE"].concat()));
        run(Request { command: "undo_edit", ..Request::default() });
        prop_assert_eq!(fs::read(&path).unwrap(), file("UNIQUE"));
    }

    #[test]
    fn what_is_decoded_encodes_to_the_same_bytes(bytes: Vec<u8>) {
        let encoding = Encoding::detect(&bytes);
        if let Some(text) = encoding.decode(&bytes) {
            prop_assert_eq!(encoding.encode(&text), Ok(bytes));
        }
    }

    #[test]
    fn no_input_makes_the_pure_parts_panic(bytes: Vec<u8>, old: String, new: String, text: String, line: i64) {
        let document = Document::new(text.clone());
        for edited in [edit::insert(&document, "/f", line, &new), edit::str_replace(&document, "/f", &old, &new)] {
            let _ = edited.map(|edited| unified_diff(document.text(), edited.document.text(), "/f"));
        }
        let _ = edit::view(&text, "/f", Some(&serde_json::json!([line, line])));
        for suffix in ["docx", "xlsx", "pptx", "pdf", "mp3", "wav"] {
            let _ = markdown::convert(suffix, &bytes);
            let _ = markdown::convert(suffix, &[b"%PDF-1.4 1 0 obj ", &bytes[..], old.as_bytes()].concat());
        }
    }

    #[test]
    fn a_diff_turns_the_old_text_into_the_new_one(
        old in prop::collection::vec("[ab]{0,2}", 0..30),
        new in prop::collection::vec("[ab]{0,2}", 0..30),
    ) {
        let diff = unified_diff(&old.join("\n"), &new.join("\n"), "f");
        prop_assert_eq!(apply(&old.join("\n"), &diff), new.join("\n"));
    }
}

fn apply(old: &str, diff: &str) -> String {
    let mut rest = old.split('\n').enumerate().peekable();
    let mut new = Vec::new();
    for line in diff.split('\n').skip(2) {
        match line.split_at_checked(1) {
            Some(("@", _)) => {
                let (start, length) = match line[4..].split(' ').next().unwrap().split_once(',') {
                    Some((start, length)) => (start.parse::<usize>().unwrap(), length != "0"),
                    None => (line[4..].split(' ').next().unwrap().parse().unwrap(), true),
                };
                while let Some((_, kept)) = rest.next_if(|(index, _)| *index < start - usize::from(length)) {
                    new.push(kept);
                }
            }
            Some(("-", removed)) => assert_eq!(rest.next().unwrap().1, removed),
            Some(("+", added)) => new.push(added),
            _ => panic!("not a diff line: {line}"),
        }
    }
    new.extend(rest.map(|(_, line)| line));
    new.join("\n")
}
