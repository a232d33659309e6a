//! Everything pure in the editor, on bytes of a stranger's file and arguments of a stranger's call.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::editor::binary::is_binary;
use wharf_sandboxd::editor::diff::unified_diff;
use wharf_sandboxd::editor::document::Document;
use wharf_sandboxd::editor::encoding::Encoding;
use wharf_sandboxd::editor::{edit, markdown};

fuzz_target!(|input: (&[u8], &str, &str, i64, i64)| {
    let (bytes, old, new, first, last) = input;
    let _ = is_binary(bytes);
    for suffix in ["docx", "xlsx", "pptx", "pdf"] {
        let _ = markdown::convert(suffix, bytes);
    }
    let encoding = Encoding::detect(bytes);
    let Some(stored) = encoding.decode(bytes) else { return };
    assert_eq!(encoding.encode(&stored).as_deref(), Ok(bytes), "what was read must come back");
    let document = Document::new(stored);
    let _ = edit::view(document.text(), "/f", Some(&serde_json::json!([first, last])));
    let edits = [edit::insert(&document, "/f", first, new), edit::str_replace(&document, "/f", old, new)];
    for edited in edits.into_iter().flatten() {
        let _ = unified_diff(document.text(), edited.document.text(), "/f");
    }
});
