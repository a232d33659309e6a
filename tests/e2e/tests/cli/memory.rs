//! Who is killed for want of memory is told so.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use serde_json::{Value, json};

use super::Wharf;

const TAKE_TOO_MUCH: &str = "head -c 400M /dev/zero | tail";

#[test]
fn a_command_that_is_killed_for_memory_is_told_why() {
    let wharf = Wharf::new();
    // The program itself, and a shell whose program it is.
    for command in [&["sh", "-c", TAKE_TOO_MUCH][..], &["perl", "-e", "$x = 'x' x (400 << 20)"]] {
        let output = wharf.run(&[&["run", "--memory", "100M", "--"], command].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(137), "{command:?}: {told}");
        assert!(told.contains("the command was killed: the sandbox has no more memory"), "{command:?}: {told}");
    }
}

#[test]
fn a_command_that_is_killed_otherwise_is_not_said_to_have_lacked_memory() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "100M"], 0, "box\n");
    assert_eq!(wharf.run(&["exec", "box", "--", "sh", "-c", TAKE_TOO_MUCH]).status.code(), Some(137));
    let output = wharf.run(&["exec", "box", "--", "sh", "-c", "kill -9 $$"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{told}");
    assert!(!told.contains("memory"), "{told}");
}

/// One call of the sandbox's own API.
pub(crate) fn call(wharf: &Wharf, path: &str, body: &Value) -> Value {
    let directory = wharf.state.path().join("sandboxes/box");
    let key = std::fs::read_to_string(directory.join("key")).unwrap();
    let record: Value = serde_json::from_slice(&std::fs::read(directory.join("record.json")).unwrap()).unwrap();
    let mut stream = UnixStream::connect(record["socket"].as_str().unwrap()).unwrap();
    let (body, key) = (body.to_string(), key.trim());
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n");
    let length = body.len();
    write!(stream, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn a_command_of_a_session_that_is_killed_for_memory_is_told_why() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "100M"], 0, "box\n");
    call(&wharf, "/v1/sessions", &json!({ "id": "s" }));
    let run = |command: &str| call(&wharf, "/v1/sessions/s/run", &json!({ "command": command }));
    let result = run(TAKE_TOO_MUCH);
    assert!(result["exit_code"] == 137 && result["out_of_memory"] == true, "{result}");
    let result = run("sh -c 'kill -9 $$'");
    assert!(result["exit_code"] == 137 && result["out_of_memory"].is_null(), "{result}");
}
