//! An output log as a stream of frames: a WebSocket (both ways), server-sent events, or newline-delimited JSON.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use rustix::process::Signal;
use wharf_protocol::{ByteOffset, Frame, ProblemKind, SignalName};

use crate::{core::Core, http::problem::ApiError, output_log::OutputLog};

/// How much of the log one read takes; a reader that is slower than the writer is told of the gap.
const READ_BYTES: usize = 256 << 10;
/// The largest message of a client: a pasted file, for instance.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long a quiet stream stays silent, so that nobody between takes it for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long a client is still sent what there is once all that runs was ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the client at the other end of a WebSocket may do.
pub(super) trait Caller: Send + 'static {
    /// Carries out one frame.
    fn frame(&mut self, frame: Frame) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// What the client is told beside the output.
    fn told(&self) -> stream::BoxStream<'static, Frame> {
        Box::pin(stream::pending())
    }

    /// A client who only reads has taken what lies before `offset`.
    fn read(&mut self, _offset: ByteOffset) {}

    /// The client has closed the conversation before the end of the output. One whose connection breaks is dropped.
    fn left(self);
}

/// Follows a log.
pub(super) struct Reader {
    log: OutputLog,
    at: ByteOffset,
    follow: bool,
    first: Option<Frame>,
    /// What ends the stream although the log goes on: a session's log outlives its shell.
    ending: Option<Ending>,
    last: Option<Frame>,
    ended: bool,
}

/// Resolves to the last frame of a stream.
pub(super) type Ending = futures_util::future::BoxFuture<'static, Frame>;

impl Reader {
    /// The next frames, waiting for them if the reader follows; `None` after the last.
    ///
    /// # Cancel safety
    ///
    /// Safe: frames are only taken when they are returned.
    async fn next(&mut self) -> Option<Vec<Frame>> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(vec![first]);
        }
        loop {
            let mut read = self.log.read(self.at, READ_BYTES);
            self.at = read.next;
            if read.finished {
                self.ended = true;
                read.frames.push(self.log.exit().unwrap_or(Frame::End { offset: self.at }));
            } else if read.frames.is_empty() && !self.follow {
                self.ended = true;
                read.frames.push(Frame::End { offset: self.at });
            } else if read.frames.is_empty()
                && let Some(last) = self.last.take()
            {
                self.ended = true;
                read.frames.push(last);
            }
            if !read.frames.is_empty() {
                return Some(read.frames);
            }
            match &mut self.ending {
                None => self.log.wait_beyond(self.at).await,
                Some(ending) => tokio::select! {
                    biased;
                    () = self.log.wait_beyond(self.at) => {}
                    last = ending => {
                        self.last = Some(last);
                        self.ending = None;
                    }
                },
            }
        }
    }
}

/// What a request for output asks for.
pub(super) struct Asked {
    pub(super) from: ByteOffset,
    pub(super) follow: bool,
    /// A frame before those of the log.
    pub(super) first: Option<Frame>,
    pub(super) ending: Option<Ending>,
}

/// Answers a request for the output of `log` in the form that its headers ask for.
pub(super) fn answer<C: Caller>(
    log: OutputLog,
    asked: Asked,
    headers: &HeaderMap,
    upgrade: Option<WebSocketUpgrade>,
    caller: C,
    core: &Arc<Core>,
) -> Response {
    let follow = asked.follow || upgrade.is_some();
    let reader =
        Reader { log, at: asked.from, follow, first: asked.first, ending: asked.ending, last: None, ended: false };
    if let Some(upgrade) = upgrade {
        let over = core.over.clone();
        // The task is not ours to start; from here on it is waited for all the same.
        let waited_for = core.tasks.token();
        return upgrade.max_message_size(MESSAGE_BYTES).on_upgrade(move |socket| async move {
            let _waited_for = waited_for;
            tokio::select! {
                biased;
                () = converse(socket, reader, caller) => {}
                () = async { over.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => {}
            }
        });
    }
    let events = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let frames = stream::unfold((reader, caller), move |(mut reader, mut caller)| async move {
        // What came before is on its way when more is asked for.
        caller.read(reader.at);
        let text = match tokio::time::timeout(HEARTBEAT, reader.next()).await {
            Ok(frames) => frames?.iter().map(|frame| line(frame, events)).collect(),
            Err(_) => if events { ":\n\n" } else { "\n" }.to_owned(),
        };
        Some((Ok::<_, Infallible>(Bytes::from(text)), (reader, caller)))
    });
    let media_type = if events { "text/event-stream" } else { "application/x-ndjson" };
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")], Body::from_stream(frames))
        .into_response()
}

fn line(frame: &Frame, event: bool) -> String {
    let json = serde_json::to_string(frame).unwrap_or_default();
    if event { format!("data: {json}\n\n") } else { format!("{json}\n") }
}

/// How a conversation ended.
enum Ended {
    /// The output has ended, or the client was refused.
    ByUs,
    /// The client has closed it.
    Closed,
    /// The connection broke.
    Broken,
}

/// Sends frames and carries out the client's, until the output ends or the client goes.
async fn converse<C: Caller>(socket: WebSocket, mut reader: Reader, mut caller: C) {
    let (mut sink, mut source) = socket.split();
    let mut told = caller.told();
    // The client's frames are carried out beside the sending: input that blocks must not hold up output.
    let (refused, mut refusals) = tokio::sync::mpsc::channel::<ApiError>(1);
    let listen = async {
        while let Some(Ok(message)) = source.next().await {
            let frame = match message {
                Message::Binary(data) => Frame::decode(data).map_err(|error| error.to_string()),
                Message::Text(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
                Message::Close(_) => return Ended::Closed,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let done = match frame {
                Ok(frame) => caller.frame(frame).await,
                Err(wrong) => Err(ApiError::new(ProblemKind::InvalidRequest, wrong)),
            };
            match done {
                // What the process does not take any more is no fault of the caller.
                Err(error) if error.problem().kind != ProblemKind::Conflict => {
                    let _ = refused.try_send(error);
                    // The speaker tells the client why, and ends the conversation.
                    return std::future::pending().await;
                }
                _ => {}
            }
        }
        Ended::Broken
    };
    let speak = async {
        loop {
            let frames = tokio::select! {
                biased;
                Some(error) = refusals.recv() => {
                    let reason: String = error.problem().to_string().chars().take(100).collect();
                    let frame = CloseFrame { code: close_code::POLICY, reason: reason.into() };
                    let _ = sink.send(Message::Close(Some(frame))).await;
                    return Ended::ByUs;
                }
                Some(frame) = told.next() => Ok(Some(vec![frame])),
                frames = tokio::time::timeout(HEARTBEAT, reader.next()) => frames,
            };
            let sent = match frames {
                Err(_) => sink.send(Message::Ping(Bytes::new())).await,
                Ok(None) => {
                    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                    let _ = sink.send(Message::Close(Some(frame))).await;
                    return Ended::ByUs;
                }
                Ok(Some(frames)) => {
                    let mut sent = Ok(());
                    for frame in frames {
                        sent = sink.feed(Message::Binary(frame.encode())).await;
                    }
                    sent.and(sink.flush().await)
                }
            };
            if sent.is_err() {
                return Ended::Broken;
            }
        }
    };
    let ended = tokio::select! {
        ended = speak => ended,
        ended = listen => ended,
    };
    match ended {
        Ended::Closed => caller.left(),
        Ended::ByUs | Ended::Broken => drop(caller),
    }
}

/// A signal that a request names.
pub(super) fn signal_of(name: &SignalName) -> Result<Signal, ApiError> {
    let shown = || match name {
        SignalName::Name(name) => name.clone(),
        SignalName::Number(number) => number.to_string(),
    };
    name.number()
        .and_then(Signal::from_named_raw)
        .ok_or_else(|| ApiError::invalid("signal", shown(), "expected a name such as TERM or a number from 1 to 31"))
}
