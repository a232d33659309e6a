//! Each limit that the specification promises, exceeded. Those of files and of output logs are tested beside them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{KEY, SECRET, Server};

/// Far more than what is waited for takes; nothing waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn open_sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().flatten();
        let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Asks over a connection of its own, that it leaves open; gives the head of the answer, if there is one.
    fn ask(&self, head: &str) -> (TcpStream, String) {
        let mut stream = self.connect();
        let head = ask_over(&mut stream, head);
        (stream, head)
    }

    /// Opens a WebSocket; gives the connection and the head of the answer.
    pub(super) fn web_socket(&self, path: &str) -> (TcpStream, String) {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: upgrade\r\nupgrade: \
             websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
    }
}

fn ask_over(stream: &mut TcpStream, head: &str) -> String {
    // A server that closes at once resets the connection, early or late.
    let _ = stream.write_all(head.as_bytes());
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    let _ = stream.read_exact(&mut body);
    head
}

/// What a server has beside its connections: where it listens, and what wakes it for signals.
const LISTENERS: usize = 4;
const HEALTH: &str = "GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n";

fn info() -> String {
    format!("GET /v1/info HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n")
}

#[track_caller]
fn is_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "it was never a request");
}

#[test]
fn no_more_sessions_than_allowed_are_there() {
    let server = Server::bound(&[], json!({ "sessions": 2 }));
    for id in ["a", "b"] {
        assert_eq!(server.post(KEY, "/v1/sessions", &json!({ "id": id })).0, 201);
    }
    let (status, problem) = server.post(KEY, "/v1/sessions", &json!({ "id": "c" }));
    assert_eq!((status, &problem["kind"]), (429, &json!("limit_reached")), "{problem}");
    server.delete("/v1/sessions/a");
    assert_eq!(server.post(KEY, "/v1/sessions", &json!({ "id": "c" })).0, 201);
}

#[test]
fn no_more_execs_than_allowed_run() {
    let server = Server::bound(&[], json!({ "execs": 2 }));
    let start = || server.post(KEY, "/v1/execs", &json!({ "argv": ["sleep", "1000"] }));
    let first = start().1["id"].as_str().unwrap().to_owned();
    assert_eq!(start().0, 201);
    let (status, problem) = start();
    assert_eq!((status, &problem["kind"]), (429, &json!("limit_reached")), "{problem}");
    server.delete(&format!("/v1/execs/{first}"));
    assert_eq!(start().0, 201);
}

#[test]
fn connections_without_a_key_lock_nobody_out() {
    let server = Server::bound(&[], json!({ "connections": 64 }));
    // More than there may be, and all stay open: some in the middle of their headers, some after an answer.
    let mut strangers: Vec<TcpStream> = (0..200)
        .map(|at| {
            let mut stream = server.connect();
            let text = if at % 2 == 0 { &HEALTH[..10] } else { HEALTH };
            let _ = stream.write_all(text.as_bytes());
            stream
        })
        .collect();
    let started = Instant::now();
    let mut owners: Vec<TcpStream> = (0..50)
        .map(|_| {
            let (stream, head) = server.ask(&info());
            assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
            stream
        })
        .collect();
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    // All of them together are no more than allowed, long before a stranger has stayed for too long.
    let started = Instant::now();
    while server.open_sockets() > 64 + LISTENERS {
        assert!(started.elapsed() < Duration::from_secs(5), "{} are open", server.open_sockets());
    }
    // The oldest went first.
    is_closed(&mut strangers[0]);
    // And no stranger drives the owner's connections out.
    let _more: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    for owner in &mut owners {
        let head = ask_over(owner, &info());
        assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    }
}

#[test]
fn a_connection_without_a_key_does_not_stay() {
    let server = Server::bound(&[], json!({ "idle_connection_seconds": 600 }));
    let started = Instant::now();
    let (mut silent, mut beginning) = (server.connect(), server.connect());
    beginning.write_all(&HEALTH.as_bytes()[..10]).unwrap();
    let (mut answered, head) = server.ask(HEALTH);
    assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    let (mut refused, head) = server.ask(&info().replace(KEY, "another-key-than-that"));
    assert!(head.starts_with("HTTP/1.1 401"), "{head:?}");
    for stranger in [&mut silent, &mut beginning, &mut answered, &mut refused] {
        is_closed(stranger);
    }
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[test]
fn an_idle_connection_is_closed_though_it_has_shown_a_key() {
    let server = Server::bound(&[], json!({ "idle_connection_seconds": 1 }));
    let (mut owner, head) = server.ask(&info());
    assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    let started = Instant::now();
    is_closed(&mut owner);
    assert!((Duration::from_millis(500)..PATIENCE).contains(&started.elapsed()), "{:?}", started.elapsed());
}

#[test]
fn web_sockets_are_counted_as_long_as_they_are_open() {
    let server = Server::bound(&[], json!({ "connections": 16 }));
    let (_, exec) = server.post(KEY, "/v1/execs", &json!({ "argv": ["sleep", "1000"] }));
    let path = format!("/v1/execs/{}/output", exec["id"].as_str().unwrap());
    let mut open = Vec::new();
    let refused = loop {
        let (stream, head) = server.web_socket(&path);
        if !head.starts_with("HTTP/1.1 101") {
            break head;
        }
        open.push(stream);
        assert!(open.len() <= 16, "more than allowed");
    };
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused:?}");
    assert!(open.len() >= 8, "{}", open.len());
    // The owner's own calls are answered all the same, one after another.
    for _ in 0..40 {
        let (_, head) = server.ask(&info());
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("connection: close"), "{head:?}");
    }
    // One that is closed makes room for another.
    drop(open.pop());
    let started = Instant::now();
    while !server.web_socket(&path).1.starts_with("HTTP/1.1 101") {
        assert!(started.elapsed() < PATIENCE, "no room again");
    }
}

#[test]
fn headers_that_are_too_long_or_too_many_are_refused() {
    let server = Server::bound(&[], json!({}));
    let long = HEALTH.replace("host: x", &format!("host: x\r\nlong: {}", "x".repeat(70 << 10)));
    let many: String = (0..130).map(|at| format!("h{at}: x\r\n")).collect();
    let many = HEALTH.replace("host: x\r\n", &format!("host: x\r\n{many}"));
    for (what, request) in [("long", long), ("many", many)] {
        let (_, head) = server.ask(&request);
        assert!(head.is_empty() || head.starts_with("HTTP/1.1 431"), "{what}: {head:?}");
    }
    let fit: String = (0..120).map(|at| format!("h{at}: {}\r\n", "x".repeat(400))).collect();
    let (_, head) = server.ask(&HEALTH.replace("host: x\r\n", &format!("host: x\r\n{fit}")));
    assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
}

#[test]
fn no_json_request_is_larger_than_allowed() {
    let server = Server::bound(&[], json!({ "request_bytes": 1000 }));
    server.post(KEY, "/v1/sessions", &json!({ "id": "s" }));
    let long = "x".repeat(2000);
    // Below /v1/files the limit is fixed: see there.
    let requests: [(&str, Value); 5] = [
        ("/v1/execs", json!({ "argv": [long] })),
        ("/v1/sessions", json!({ "id": "t", "working_dir": format!("/{long}") })),
        ("/v1/sessions/s/run", json!({ "command": long })),
        ("/v1/sessions/s/input", json!({ "text": long })),
        ("/v1/sessions/s/resize", json!({ "rows": 1, "columns": 1, "long": long })),
    ];
    for (path, request) in requests {
        let (status, problem) = server.post(KEY, path, &request);
        assert_eq!((status, &problem["kind"]), (413, &json!("too_large")), "{path}: {problem}");
    }
    // Nor is it before anybody has bound the sandbox.
    let blank = Server::blank(&[]);
    let request = json!({ "keys": ["x".repeat(65 << 20)], "working_dir": "/" });
    assert_eq!(blank.post(SECRET, "/v1/bind", &request).0, 413);
}

#[test]
fn a_workspace_that_is_too_large_on_disk_ends_the_sandbox() {
    let mut server = Server::bound(&[], json!({ "disk_bytes": 1 << 20 }));
    server.post(KEY, "/v1/execs", &json!({ "argv": ["sh", "-c", "head -c 4M /dev/zero > big; exec sleep 1000"] }));
    let started = Instant::now();
    while server.child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < PATIENCE, "it lives on");
        std::thread::yield_now();
    }
}

#[test]
fn a_body_that_stalls_is_given_up_and_input_that_waits_is_not() {
    let server = Server::bound(&[], json!({ "idle_connection_seconds": 1 }));
    let (_, exec) = server.post(KEY, "/v1/execs", &json!({ "argv": ["cat"], "stdin": true }));
    let exec = format!("/v1/execs/{}", exec["id"].as_str().unwrap());
    let begin = |head: &str| {
        let mut stream = server.connect();
        let head = format!("{head} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 100\r\n");
        write!(stream, "{head}content-type: application/json\r\n\r\n{{").unwrap();
        stream
    };
    let mut input = begin(&format!("POST {exec}/stdin"));
    let at = server.home.path().join("file").display().to_string();
    for head in [
        format!("PUT /v1/files/content?path={at}"),
        format!("PUT /v1/files/archive?path={at}"),
        format!("PUT /v1/files/archive?path={at}&format=zip"),
        "POST /v1/execs".to_owned(),
    ] {
        let mut stream = begin(&head);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server gives it up");
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
    }
    // It has waited for as long as all of them together.
    input.write_all(&[b'x'; 99]).unwrap();
    let head = ask_over(&mut input, "");
    assert!(head.starts_with("HTTP/1.1 204"), "{head}");
}
