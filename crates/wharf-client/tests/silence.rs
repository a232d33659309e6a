//! What the client does when nothing comes any more, as from a node without power: no end, no reset, no answer.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{fmt, io, pin::Pin, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message,
        handshake::server::{Request, Response},
    },
};
use wharf_client::{Dial, ErrorKind, Like, Output, Route, RouteStream, Sandbox};
use wharf_protocol::{ByteOffset, ExecRequest, Frame, RunRequest, Secret, SessionRequest, Stream};
use wharf_sandboxd::http::native;

use common::KEY;

/// Longer than anything here waits.
const LONG: Duration = Duration::from_secs(3600);

/// Gives the far end of every connection to the test.
#[derive(Debug)]
struct Lines(mpsc::UnboundedSender<DuplexStream>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a test")
    }
}

impl Dial for Lines {
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<RouteStream>> + Send + '_>> {
        let (near, far) = duplex(4 << 10);
        self.0.send(far).unwrap();
        Box::pin(async { Ok(Box::new(near) as RouteStream) })
    }
}

fn sandbox() -> (Sandbox, mpsc::UnboundedReceiver<DuplexStream>) {
    let (sender, lines) = mpsc::unbounded_channel();
    (Sandbox::new(Route::Through(Arc::new(Lines(sender))), Secret::new(KEY)), lines)
}

fn attached() -> (Output, mpsc::UnboundedReceiver<DuplexStream>) {
    let (sandbox, lines) = sandbox();
    (sandbox.find_exec("e".parse().unwrap()).attach(0), lines)
}

/// Takes a connection for output; says which output was asked for.
async fn accept(line: DuplexStream) -> (WebSocketStream<DuplexStream>, String) {
    let mut asked = String::new();
    #[allow(clippy::result_large_err, reason = "tungstenite's own")]
    let note = |request: &Request, response: Response| {
        asked = request.uri().query().unwrap_or_default().to_owned();
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(line, note).await.unwrap();
    (socket, asked)
}

fn output(offset: u64, text: &str) -> Frame {
    Frame::Output { offset: ByteOffset(offset), stream: Stream::Stdout, data: text.to_owned().into() }
}

/// What a caller's connection begins with, and what allows more input.
fn taken(offset: u64) -> Message {
    Message::Binary(Frame::InputTaken { offset: ByteOffset(offset) }.encode())
}

/// The next frame of a client that is no acknowledgement.
async fn next_input(
    source: &mut (impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin),
) -> Frame {
    loop {
        let message = source.next().await.unwrap().unwrap();
        match Frame::decode(message.into_data()).unwrap() {
            Frame::Acknowledge { .. } => {}
            frame => return frame,
        }
    }
}

/// They were added and subtracted without a look.
#[tokio::test(start_paused = true)]
async fn an_offset_that_no_log_has_is_no_proper_answer() {
    let gap = |from, to| Frame::Gap { from: ByteOffset(from), to: ByteOffset(to) };
    for absurd in [gap(9, 3), gap(0, u64::MAX), output(u64::MAX - 3, "text"), output(1 << 60, "text")] {
        let (mut stream, mut lines) = attached();
        let server = async {
            let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
            socket.send(Message::Binary(absurd.encode())).await.unwrap();
            socket
        };
        let (answer, _socket) = tokio::join!(stream.next(), server);
        let error = answer.unwrap_err();
        assert!(matches!(error, wharf_client::ClientError::Answer { .. }), "{absurd:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn input_that_was_not_taken_is_sent_again_and_waits_for_the_process() {
    let (mut stream, mut lines) = attached();
    let input = stream.input();
    let piece = |number: u8| Frame::Input { data: vec![number; 256 << 10].into() };
    let typing = async {
        for number in 0..6 {
            input.send(piece(number)).await;
        }
        input.send(Frame::Signal { signal: 2 }).await;
        input.send(Frame::InputEnd).await;
    };
    let at = |number: u8| Frame::InputAt {
        offset: ByteOffset(u64::from(number) * (256 << 10)),
        data: vec![number; 256 << 10].into(),
    };
    let server = async {
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        socket.send(taken(0)).await.unwrap();
        let mut came = Vec::new();
        for _ in 0..5 {
            came.push(next_input(&mut socket).await);
        }
        // The signal overtakes; no more than 1 MiB comes unasked.
        assert!(came.contains(&Frame::Signal { signal: 2 }));
        came.retain(|frame| !matches!(frame, Frame::Signal { .. }));
        assert_eq!(came, [at(0), at(1), at(2), at(3)]);
        timeout(Duration::from_secs(5), next_input(&mut socket)).await.expect_err("the window is full");
        socket.send(taken(512 << 10)).await.unwrap();
        assert_eq!(next_input(&mut socket).await, at(4));
        drop(socket);
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        // The process had taken more than was told.
        socket.send(taken(768 << 10)).await.unwrap();
        for number in 3..6 {
            assert_eq!(next_input(&mut socket).await, at(number));
        }
        assert_eq!(next_input(&mut socket).await, Frame::InputEnd);
        socket.send(Message::Binary(Frame::Exit { code: Some(0), signal: None }.encode())).await.unwrap();
        socket
    };
    let reading = async { while stream.next().await.unwrap().is_some() {} };
    timeout(LONG, async { tokio::join!(typing, server, reading) }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_acknowledged_and_what_was_not_is_not() {
    let (mut stream, mut lines) = attached();
    let server = async {
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        socket.send(Message::Binary(output(0, "one").encode())).await.unwrap();
        socket
    };
    let (frame, mut socket) = tokio::join!(stream.next(), server);
    assert_eq!(frame.unwrap(), Some(output(0, "one")));
    let acknowledged = async { Frame::decode(socket.next().await.unwrap().unwrap().into_data()).unwrap() };
    tokio::pin!(acknowledged);
    timeout(Duration::from_secs(9), &mut acknowledged).await.expect_err("nobody has asked for more");
    tokio::select! {
        frame = acknowledged => assert_eq!(frame, Frame::Acknowledge { offset: ByteOffset(3) }),
        ended = stream.next() => panic!("{ended:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_again_for_45_seconds_and_then_told() {
    let (mut stream, mut lines) = attached();
    let server = async {
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        socket.send(Message::Binary(output(0, "one").encode())).await.unwrap();
        drop(socket);
        // An API server that starts again takes connections, and leads nowhere.
        while let Some(line) = lines.recv().await {
            drop(line);
        }
    };
    let reading = async {
        assert_eq!(stream.next().await.unwrap(), Some(output(0, "one")));
        let lost = Instant::now();
        let error = stream.next().await.unwrap_err();
        assert_eq!((lost.elapsed().as_secs(), error.kind()), (45, ErrorKind::Unreachable), "{error}");
    };
    tokio::select! {
        () = reading => {}
        () = server => unreachable!("the client goes on"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_answer_is_lost_is_asked_for_again_under_the_same_id() {
    let (sandbox, mut lines) = sandbox();
    let server = async {
        let mut ids = Vec::new();
        for answered in [false, false, true] {
            let mut line = lines.recv().await.unwrap();
            let mut request = vec![0; 4096];
            let length = line.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            ids.push(body["id"].as_str().expect("the client has chosen an id").to_owned());
            if answered {
                let info = json!({ "id": ids[0], "argv": ["x"], "pid": 1, "state": "running", "terminal": false,
                    "started_at": 0.0, "output_end": 0 })
                .to_string();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{info}", info.len());
                line.write_all(answer.as_bytes()).await.unwrap();
                return (ids, line);
            }
        }
        unreachable!("the third is answered")
    };
    let request = ExecRequest { argv: vec!["x".to_owned()], ..ExecRequest::default() };
    let (exec, (ids, _line)) = timeout(LONG, async { tokio::join!(sandbox.exec(&request), server) }).await.unwrap();
    assert!(ids.iter().all(|id| id == exec.as_ref().unwrap().id().as_str()), "{ids:?}");
}

/// What the server sends in two parts is read whole, each part once.
async fn check_one_and_two<T>(mut stream: Output, server: impl Future<Output = T>) {
    let reading = async { [stream.next().await.unwrap(), stream.next().await.unwrap()] };
    let (frames, _) = timeout(LONG, async { tokio::join!(reading, server) }).await.unwrap();
    assert_eq!(frames, [Some(output(0, "one")), Some(output(3, "two"))]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_silent_for_45_seconds_is_opened_again_at_its_offset() {
    let (stream, mut lines) = attached();
    let server = async {
        let (mut first, _) = accept(lines.recv().await.unwrap()).await;
        first.send(Message::Binary(output(0, "one").encode())).await.unwrap();
        let silent_since = Instant::now();
        let (mut second, asked) = accept(lines.recv().await.unwrap()).await;
        assert_eq!((silent_since.elapsed().as_secs(), asked.as_str()), (45, "offset=3&follow=true"));
        second.send(Message::Binary(output(3, "two").encode())).await.unwrap();
        (first, second)
    };
    check_one_and_two(stream, server).await;
}

#[tokio::test(start_paused = true)]
async fn a_ping_or_a_part_of_a_frame_every_40_seconds_keeps_a_stream() {
    let (mut stream, mut lines) = attached();
    let server = async {
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        for _ in 0..5 {
            sleep(Duration::from_secs(40)).await;
            socket.send(Message::Ping(Bytes::new())).await.unwrap();
        }
        let data = output(0, "slow").encode();
        // The head of a short binary message: RFC 6455, section 5.2.
        let message = [&[0x82, u8::try_from(data.len()).unwrap()], &*data].concat();
        for byte in message {
            sleep(Duration::from_secs(40)).await;
            socket.get_mut().write_all(&[byte]).await.unwrap();
        }
        socket
    };
    let (frame, _) = timeout(LONG, async { tokio::join!(stream.next(), server) }).await.unwrap();
    assert_eq!(frame.unwrap(), Some(output(0, "slow")));
    assert!(lines.try_recv().is_err(), "there was one connection");
}

#[tokio::test(start_paused = true)]
async fn who_reads_late_finds_the_stream_as_it_was() {
    let (mut stream, mut lines) = attached();
    let server = async {
        let (mut socket, _) = accept(lines.recv().await.unwrap()).await;
        socket.send(Message::Binary(output(0, "one").encode())).await.unwrap();
        socket
    };
    let (_, mut socket) = tokio::join!(stream.next(), server);
    sleep(LONG).await;
    let later = async {
        sleep(Duration::from_secs(1)).await;
        socket.send(Message::Binary(output(3, "two").encode())).await.unwrap();
    };
    let (frame, ()) = tokio::join!(stream.next(), later);
    assert_eq!(frame.unwrap(), Some(output(3, "two")));
    assert!(lines.try_recv().is_err(), "there was one connection");
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_noticed_and_a_talking_one_is_read_while_its_input_is_stuck() {
    let (stream, mut lines) = attached();
    let input = stream.input();
    // More than fits into the connection, of which the server reads nothing.
    input.send(Frame::Input { data: vec![0; 64 << 10].into() }).await;
    let server = async {
        let (mut first, _) = accept(lines.recv().await.unwrap()).await;
        sleep(Duration::from_secs(1)).await;
        first.send(Message::Binary(output(0, "one").encode())).await.unwrap();
        let (mut second, _) = accept(lines.recv().await.unwrap()).await;
        second.send(Message::Binary(output(3, "two").encode())).await.unwrap();
        (first, second)
    };
    check_one_and_two(stream, server).await;
}

#[tokio::test(start_paused = true)]
async fn input_arrives_whole_and_in_order_while_output_interrupts_its_sending() {
    let (mut stream, mut lines) = attached();
    let input = stream.input();
    let typing = async {
        for number in 0..100_u8 {
            input.send(Frame::Input { data: vec![number; 1 << 10].into() }).await;
        }
    };
    let server = async {
        let (socket, _) = accept(lines.recv().await.unwrap()).await;
        let (mut sink, mut source) = socket.split();
        sink.send(taken(0)).await.unwrap();
        for number in 0..100_u8 {
            sink.send(Message::Binary(output(u64::from(number), "x").encode())).await.unwrap();
            let offset = ByteOffset(u64::from(number) << 10);
            assert_eq!(next_input(&mut source).await, Frame::InputAt { offset, data: vec![number; 1 << 10].into() });
        }
        sink.send(Message::Binary(Frame::Exit { code: Some(0), signal: None }.encode())).await.unwrap();
    };
    let reading = async { while stream.next().await.unwrap().is_some() {} };
    timeout(LONG, async { tokio::join!(typing, server, reading) }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_download_of_which_nothing_comes_for_a_minute_times_out() {
    let (sandbox, mut lines) = sandbox();
    let server = async {
        let mut line = lines.recv().await.unwrap();
        let _ = line.read(&mut [0; 1024]).await.unwrap();
        line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.unwrap();
        for _ in 0..3 {
            sleep(Duration::from_secs(50)).await;
            line.write_all(b"part").await.unwrap();
        }
        line
    };
    let mut got = Vec::new();
    let files = sandbox.files();
    let started = Instant::now();
    let (read, _line) =
        timeout(LONG, async { tokio::join!(files.read("/file", &mut got), server) }).await.expect("it ends");
    let error = read.unwrap_err();
    assert_eq!((error.kind(), started.elapsed().as_secs()), (ErrorKind::TimedOut, 3 * 50 + 60));
    assert_eq!(error.to_string(), "the sandbox has sent nothing for 60 s");
    assert_eq!(got, b"partpartpart");
}

/// Runs a command and uploads a file; both are answered after half an hour, while other calls get `answer` or, if there is
/// none, a connection that is closed at once.
async fn check_long_calls(answer: Option<&'static [u8]>, expected: Result<(), ErrorKind>) {
    let (sandbox, mut lines) = sandbox();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Some(mut line) = lines.recv().await {
            let mut request = vec![0; 1024];
            let length = line.read(&mut request).await.unwrap();
            if request[..length].starts_with(b"GET") {
                if let Some(answer) = answer {
                    line.write_all(answer).await.unwrap();
                    open.push(line);
                }
                continue;
            }
            tokio::spawn(async move {
                sleep(Duration::from_secs(1800)).await;
                // Of a command, and of an upload.
                let body = json!({
                    "outcome": "finished", "exit_code": 0, "output": "", "truncated": false, "output_start": 0,
                    "output_end": 0, "working_dir": "/", "path": "/f", "files": 1, "bytes": 1,
                })
                .to_string();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                // Nobody may be there any more.
                let _ = line.write_all(answer.as_bytes()).await;
            });
        }
    });
    let started = Instant::now();
    let request: RunRequest = serde_json::from_value(json!({ "command": "make" })).unwrap();
    let session = sandbox.find_session("s".parse().unwrap());
    let ran = async { session.run(&request).await.map(drop) };
    let files = sandbox.files();
    let written = async { files.write("/f", Like::default(), &b"x"[..]).await.map(drop) };
    let (ran, written) = timeout(LONG, async { tokio::join!(ran, written) }).await.expect("they end");
    for ended in [ran, written] {
        assert_eq!(ended.as_ref().map(drop).map_err(|error| error.kind()), expected, "{ended:?}");
    }
    assert_eq!(started.elapsed().as_secs(), if expected.is_ok() { 1800 } else { 45 });
}

#[tokio::test(start_paused = true)]
async fn a_long_call_goes_on_while_the_sandbox_answers_anything_at_all() {
    check_long_calls(Some(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Ok(())).await;
    check_long_calls(Some(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), Ok(())).await;
    check_long_calls(None, Ok(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_call_ends_once_nothing_was_heard_of_the_sandbox_for_45_seconds() {
    check_long_calls(Some(b""), Err(ErrorKind::TimedOut)).await;
    let by_a_mesh = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    check_long_calls(Some(by_a_mesh), Err(ErrorKind::TimedOut)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_while_the_sandbox_takes_some_of_it() {
    let (sandbox, mut lines) = sandbox();
    let server = async {
        let mut upload = lines.recv().await.unwrap();
        let (mut taken, mut part) = (0, vec![0; 8 << 10]);
        while taken < 4 << 20 {
            taken += upload.read(&mut part).await.unwrap();
            // 40 KB a second.
            sleep(Duration::from_millis(100)).await;
        }
        upload.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        (upload, lines)
    };
    let files = sandbox.files();
    let written = files.write("/f", Like::default(), tokio::io::repeat(0).take(4 << 20));
    let (written, _) = timeout(LONG, async { tokio::join!(written, server) }).await.expect("it ends");
    assert_eq!(written.unwrap_err().kind(), ErrorKind::BadAnswer, "what the server says in the end");
}

#[tokio::test]
async fn over_tcp_frames_get_a_connection_of_their_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sandbox = Sandbox::new(Route::Tcp(listener.local_addr().unwrap()), Secret::new(KEY));
    let server = async {
        let (mut line, _) = listener.accept().await.unwrap();
        let _ = line.read(&mut [0; 1024]).await.unwrap();
        line.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        line
    };
    let (alive, mut kept) = tokio::join!(sandbox.alive(), server);
    alive.unwrap();
    let mut stream = sandbox.find_exec("e".parse().unwrap()).attach(0);
    tokio::select! {
        accepted = listener.accept() => drop(accepted.unwrap()),
        read = kept.read_u8() => panic!("the kept connection was used: {read:?}"),
        ended = stream.next() => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn sandboxd_keeps_the_stream_of_a_long_silent_command_and_of_an_idle_session() {
    let home = tempfile::tempdir().unwrap();
    let core = common::core(home.path());
    let (sandbox, mut lines) = sandbox();
    let (router, opened) = (native::router(core.clone()), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let count = opened.clone();
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let service = TowerToHyperService::new(router.clone());
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(line), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    let argv = ["sleep", "3600"].map(str::to_owned).to_vec();
    let exec = sandbox.exec(&ExecRequest { argv, ..ExecRequest::default() }).await.unwrap();
    let session = sandbox.session(&SessionRequest::default()).await.unwrap();
    tokio::time::pause();
    for mut stream in [exec.attach(0), session.attach(Some(0)), session.attach(None)] {
        let before = opened.load(std::sync::atomic::Ordering::Relaxed);
        let reading = timeout(LONG, async {
            // A session prints its prompt.
            while matches!(stream.next().await.unwrap(), Some(Frame::Output { .. })) {}
        });
        reading.await.unwrap_err();
        assert!(opened.load(std::sync::atomic::Ordering::Relaxed) <= before + 1, "there was one connection");
    }
    tokio::time::resume();
    exec.remove().await.unwrap();
    session.remove().await.unwrap();
}
