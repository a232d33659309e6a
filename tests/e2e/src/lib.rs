//! What the end-to-end tests share: where the built programs are.
#![forbid(unsafe_code)]

use std::path::PathBuf;

/// A program of this workspace, built beside the test that asks for it.
///
/// # Panics
///
/// With the command that builds it, if it is not there.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    let directory = test.parent().and_then(|deps| deps.parent()).expect("tests are built below target/*/deps");
    let program = directory.join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --workspace` first", program.display());
    program
}

/// A file of this crate's folder.
pub fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}
