//! The recordings of the real original, replayed against the built sandboxd. Deliberate differences: golden/differences.json.

use std::process::Command;

#[track_caller]
fn replay(recordings: &str) {
    let output = Command::new("python3")
        .arg(wharf_e2e::file("replay.py"))
        .arg(wharf_e2e::program("wharf-sandboxd"))
        .arg(recordings)
        .current_dir("/")
        .output()
        .expect("python3 and unshare are needed: apt-get install python3 util-linux, and run as root");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn dispatch_errors_are_those_of_the_original() {
    replay("action_server_dispatch_errors");
}

#[test]
fn the_key_is_checked_as_by_the_original() {
    replay("action_server_auth");
}

#[test]
fn files_editor_and_transfer_answer_as_the_original() {
    replay(
        "action_server_read_and_view,file_viewer,action_server_write,action_server_edit,action_server_http_endpoints",
    );
}

#[test]
fn commands_answer_as_the_original() {
    replay("action_server_bash_1");
}

#[test]
fn interactive_commands_answer_as_the_original() {
    replay("action_server_bash_interactive");
}

#[test]
fn what_the_real_client_sends_is_answered_as_by_the_original() {
    replay("client_wire");
}
