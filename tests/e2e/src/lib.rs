//! What the end-to-end tests share: where the built programs are.
#![forbid(unsafe_code)]

use std::{net::TcpListener, path::PathBuf};

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

/// A TCP port of the loopback address that nobody listens at, for a program that must be told one.
///
/// # Panics
///
/// When there is none.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}
