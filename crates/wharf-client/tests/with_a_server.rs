//! The client and the real server over unix sockets, also over one that is cut again and again.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Notify,
};
use wharf_client::{ErrorKind, Exec, Like, Route, Sandbox};
use wharf_protocol::{
    CommandOutcome, ExecRequest, ExecState, Frame, OnDisconnect, ProblemKind, RunRequest, Secret, SessionRequest,
    WhenFull,
};
use wharf_sandboxd::{
    core::Core,
    http::{
        native,
        server::{self, Connections, Listener},
    },
    options::Listen,
};

use common::KEY;

struct Server {
    home: tempfile::TempDir,
    socket: PathBuf,
    core: Arc<Core>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.core.shutdown.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("api.sock");
        let core = common::core(home.path());
        let listener = Listener::open(&Listen::Unix(socket.clone())).await.unwrap();
        tokio::spawn(server::serve(listener, native::router(core.clone()), Connections::new(core.clone())));
        Self { home, socket, core }
    }

    fn sandbox(&self) -> Sandbox {
        Sandbox::new(Route::Unix(self.socket.clone()), Secret::new(KEY))
    }

    /// A socket that passes every connection on and cuts it after `bytes` of answer.
    fn relay(&self, bytes: u64) -> Relay {
        let relay = Relay { socket: self.home.path().join("relay.sock"), count: Arc::default(), cut: Arc::default() };
        let listener = UnixListener::bind(&relay.socket).unwrap();
        let (target, count, cut) = (self.socket.clone(), relay.count.clone(), relay.cut.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (far, cut) = (UnixStream::connect(&target).await.unwrap(), cut.clone());
                tokio::spawn(async move {
                    let ((mut near_read, mut near_write), (far_read, mut far_write)) =
                        (near.into_split(), far.into_split());
                    let upwards = tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
                    let mut answer = far_read.take(bytes);
                    tokio::select! {
                        _ = tokio::io::copy(&mut answer, &mut near_write) => {}
                        () = cut.notified() => {}
                    }
                    upwards.abort();
                    let _ = near_write.shutdown().await;
                });
            }
        });
        relay
    }
}

struct Relay {
    socket: PathBuf,
    count: Arc<AtomicUsize>,
    cut: Arc<Notify>,
}

impl Relay {
    fn sandbox(&self) -> Sandbox {
        Sandbox::new(Route::Unix(self.socket.clone()), Secret::new(KEY))
    }

    /// How many connections there were.
    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["sh".into(), "-c".into(), script.into()], ..ExecRequest::default() }
}

async fn collect(exec: &Exec) -> (Vec<u8>, Option<i32>) {
    let mut output = exec.attach(0);
    let mut bytes = Vec::new();
    while let Some(frame) = output.next().await.unwrap() {
        match frame {
            Frame::Output { offset, data, .. } => {
                assert_eq!(offset.0, bytes.len() as u64, "nothing twice and nothing left out");
                bytes.extend_from_slice(&data);
            }
            Frame::Exit { code, .. } => return (bytes, code),
            other => panic!("{other:?}"),
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn output_is_whole_although_its_connection_is_cut_again_and_again() {
    let server = Server::start().await;
    let bad = server.relay(100_000).sandbox();
    let exec = server.sandbox().exec(&sh("seq 1 50000; exit 7")).await.unwrap();
    let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    let (bytes, code) = collect(&bad.find_exec(exec.id().clone())).await;
    assert_eq!(code, Some(7));
    assert!(bytes == expected.as_bytes(), "{} bytes instead of {}", bytes.len(), expected.len());
}

/// A command as the CLI runs it: killed with its caller, and waiting for it.
fn foreground(script: &str) -> ExecRequest {
    ExecRequest { on_disconnect: OnDisconnect::Kill, when_full: WhenFull::Wait, ..sh(script) }
}

#[tokio::test]
async fn a_foreground_command_outlives_its_connection_cut_again_and_again() {
    let server = Server::start().await;
    let bad = server.relay(1_000_000).sandbox();
    let exec = server.sandbox().exec(&foreground("seq 1 1000000; exit 7")).await.unwrap();
    let expected: String = (1..=1_000_000).map(|number| format!("{number}\n")).collect();
    let (bytes, code) = collect(&bad.find_exec(exec.id().clone())).await;
    assert_eq!(code, Some(7));
    assert!(bytes == expected.as_bytes(), "{} bytes instead of {}", bytes.len(), expected.len());
}

#[tokio::test]
async fn input_is_whole_although_its_connection_is_cut_again_and_again() {
    let server = Server::start().await;
    let bad = server.relay(500_000).sandbox();
    let exec = bad.exec(&ExecRequest { stdin: true, ..foreground("cat") }).await.unwrap();
    let mut output = exec.attach(0);
    let input = output.input();
    let sent: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
    let typing = async {
        for piece in sent.chunks(100_000) {
            input.send(Frame::Input { data: piece.to_vec().into() }).await;
        }
        input.send(Frame::InputEnd).await;
    };
    let reading = async {
        let mut bytes = Vec::new();
        loop {
            match output.next().await.unwrap() {
                Some(Frame::Output { data, .. }) => bytes.extend_from_slice(&data),
                Some(Frame::Exit { code, .. }) => return (bytes, code),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((bytes, code), ()) = tokio::join!(reading, typing);
    assert_eq!(code, Some(0));
    assert!(bytes == sent, "{} bytes instead of {}", bytes.len(), sent.len());
}

#[tokio::test]
async fn a_watcher_who_leaves_ends_nothing_and_a_caller_who_closes_does() {
    let server = Server::start().await;
    let exec = server.sandbox().exec(&foreground("echo on; sleep 1000")).await.unwrap();
    let (mut caller, mut watcher) = (exec.attach(0), exec.watch(0));
    for output in [&mut caller, &mut watcher] {
        assert!(matches!(output.next().await.unwrap(), Some(Frame::Output { .. })));
    }
    watcher.close().await;
    let again = exec.watch(0).next().await.unwrap();
    assert!(matches!(again, Some(Frame::Output { .. })));
    assert_eq!(exec.info().await.unwrap().state, ExecState::Running);
    let mut other = exec.watch(3);
    caller.close().await;
    assert!(matches!(other.next().await.unwrap(), Some(Frame::Exit { code: None, .. })));
}

#[tokio::test]
async fn calls_one_after_another_share_a_connection_and_calls_at_once_do_not() {
    let server = Server::start().await;
    let relay = server.relay(u64::MAX);
    let sandbox = relay.sandbox();
    sandbox.with_key(Secret::new("another-key-of-a-test")).info().await.unwrap_err();
    let exec = sandbox.exec(&sh("read line; echo $line")).await.unwrap();
    sandbox.info().await.unwrap();
    assert_eq!(relay.count(), 1);
    let mut output = exec.attach(0);
    let input = output.input();
    let (frame, ()) = tokio::join!(output.next(), async {
        // The attached connection is in use.
        sandbox.info().await.unwrap();
        sandbox.info().await.unwrap();
        input.send(Frame::InputEnd).await;
    });
    assert!(matches!(frame.unwrap(), Some(Frame::Output { .. })));
    assert_eq!(relay.count(), 2);
}

#[tokio::test]
async fn a_connection_that_has_ended_since_is_not_used_again() {
    let server = Server::start().await;
    let relay = server.relay(u64::MAX);
    let sandbox = relay.sandbox();
    for calls in 1..=3 {
        sandbox.info().await.unwrap();
        assert_eq!(relay.count(), calls);
        relay.cut.notify_waiters();
        // Until its end has come through.
        server.sandbox().info().await.unwrap();
    }
}

#[tokio::test]
async fn errors_say_what_they_are_and_whether_trying_again_may_help() {
    let server = Server::start().await;
    let nobody = Sandbox::new(Route::Unix(server.home.path().join("none.sock")), Secret::new(KEY));
    let error = nobody.info().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unreachable && error.is_retryable(), "{error:?}");
    let stranger = Sandbox::new(Route::Unix(server.socket.clone()), Secret::new("another-key-of-a-test"));
    let error = stranger.info().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Refused(ProblemKind::Unauthorized) && !error.is_retryable(), "{error:?}");
    let error = server.sandbox().exec(&ExecRequest::default()).await.unwrap_err();
    assert_eq!(error.problem().and_then(|problem| problem.field.as_deref()), Some("argv"));
}

#[tokio::test]
async fn input_reaches_a_process_and_its_end_ends_it() {
    let server = Server::start().await;
    let exec = server.sandbox().exec(&ExecRequest { stdin: true, ..sh("cat; echo done") }).await.unwrap();
    let mut output = exec.attach(0);
    let input = output.input();
    input.send(Frame::Input { data: b"hello\n".to_vec().into() }).await;
    input.send(Frame::InputEnd).await;
    let mut bytes = Vec::new();
    while let Some(frame) = output.next().await.unwrap() {
        if let Frame::Output { data, .. } = frame {
            bytes.extend_from_slice(&data);
        }
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), "hello\ndone\n");
}

#[tokio::test]
async fn files_go_there_and_back_and_a_session_sees_them() {
    let server = Server::start().await;
    let (sandbox, path) = (server.sandbox(), server.home.path().join("d/file").display().to_string());
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    sandbox
        .files()
        .write(&path, Like { mode: Some(0o640), modified: None }, std::io::Cursor::new(content.clone()))
        .await
        .unwrap();
    assert_eq!(sandbox.files().stat(&path).await.unwrap().size, content.len() as u64);
    let mut back = Vec::new();
    sandbox.files().read(&path, &mut back).await.unwrap();
    assert!(back == content);
    let session = sandbox.session(&SessionRequest::default()).await.unwrap();
    let request: RunRequest = serde_json::from_str(r#"{ "command": "stat -c '%s %a' d/file" }"#).unwrap();
    let result = session.run(&request).await.unwrap();
    assert_eq!((result.outcome, result.output.trim()), (CommandOutcome::Finished { exit_code: 0 }, "3000000 640"));
    assert!(session.screen().await.unwrap().text.contains("3000000 640"));
    session.remove().await.unwrap();
    assert!(sandbox.sessions().await.unwrap().is_empty());
}
