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
    let beside = test.parent().expect("a file stands in a directory");
    // Tests are built in target/*/deps, programs beside that.
    let directory = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let program = directory.join(name);
    assert!(program.exists(), "{} is missing: run `cargo build --workspace` first", program.display());
    program
}

/// A file of this crate's folder.
pub fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}
