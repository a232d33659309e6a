//! `tests/cluster/component`, which starts and stops the test cluster's programs, with programs of our own in their place.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

/// What `component` takes for a running cluster that we are inside of, with one program, `sleeper`.
fn cluster_of(program: &str) -> TempDir {
    let state = tempfile::tempdir().unwrap();
    for folder in ["components", "logs", "running"] {
        fs::create_dir(state.path().join(folder)).unwrap();
    }
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
    fs::write(state.path().join("namespace"), namespace.to_str().unwrap()).unwrap();
    fs::write(state.path().join("components/sleeper"), program).unwrap();
    state
}

/// Its exit code and what it printed.
fn component(state: &TempDir, arguments: &[&str]) -> (i32, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/component");
    let done = Command::new(script).args(arguments).env("WHARF_CLUSTER_DIR", state.path()).output().unwrap();
    let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    (done.status.code().unwrap(), printed)
}

/// A command line is empty while a process goes from one program to the next, so nothing may be known by it.
#[test]
fn a_program_is_known_by_its_process_whatever_its_command_line_says() {
    let state = cluster_of("exec sleep 600");
    assert_eq!(component(&state, &["start", "sleeper"]), (0, String::new()));
    let (code, running) = component(&state, &["status", "sleeper"]);
    assert!(code == 0 && running.starts_with("running "), "{code} {running}");
    assert_eq!(component(&state, &["start", "sleeper"]), (0, String::new()));
    assert_eq!(component(&state, &["status", "sleeper"]), (0, running), "it was not started twice");
    assert_eq!(component(&state, &["stop", "sleeper"]), (0, String::new()));
    assert_eq!(component(&state, &["status", "sleeper"]), (1, "stopped\n".to_owned()));
}

#[test]
fn a_program_that_ends_while_it_starts_is_told_with_its_code_and_its_last_lines() {
    let state = cluster_of("echo no room; exit 3");
    let (code, told) = component(&state, &["start", "sleeper"]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("no room\nerror: sleeper ended with 3 while it started"), "{told}");
}

#[test]
fn the_number_of_a_process_that_is_another_by_now_is_not_taken_for_the_program() {
    let state = cluster_of("exec sleep 600");
    fs::write(state.path().join("running/sleeper"), format!("{} 1", std::process::id())).unwrap();
    assert_eq!(component(&state, &["status", "sleeper"]), (1, "stopped\n".to_owned()));
}
