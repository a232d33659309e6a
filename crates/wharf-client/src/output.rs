use std::{future::pending, time::Duration};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{Method, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};
use wharf_protocol::Frame;

use crate::{CALL_PATIENCE, ClientError, Sandbox, empty, route::Carries, silence::Watched};

type Socket = WebSocketStream<Watched<TokioIo<Upgraded>>>;
/// In halves, so that output comes while a process does not take its input.
type Halves = (SplitSink<Socket, Message>, SplitStream<Socket>);

/// Frames of a caller that wait to be sent; a caller that is faster waits.
const PENDING_INPUT: usize = 16;
const LARGEST_MESSAGE: usize = 4 << 20;
/// How often in a row a lost connection is made again before the loss is told.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// What an exec or a session prints, frame by frame.
///
/// A lost connection is made again by itself and goes on at the same offset: nothing comes twice, and what is no longer
/// kept is told as a gap. Input that was on its way then may be lost. A connection over which neither output nor one of
/// sandboxd's pings has come for 45 seconds is lost.
#[derive(Debug)]
pub struct Output {
    sandbox: Sandbox,
    path: String,
    offset: u64,
    redraw: bool,
    socket: Option<Halves>,
    input: mpsc::Receiver<Frame>,
    sender: mpsc::Sender<Frame>,
    ended: bool,
}

/// The caller's half: input, signals and sizes.
#[derive(Debug, Clone)]
pub struct Input(mpsc::Sender<Frame>);

impl Input {
    /// Sends a frame; waits while earlier ones are on their way. `false` if nobody takes them any more.
    pub async fn send(&self, frame: Frame) -> bool {
        self.0.send(frame).await.is_ok()
    }
}

impl Output {
    pub(crate) fn new(sandbox: Sandbox, path: String, offset: u64, redraw: bool) -> Self {
        let (sender, input) = mpsc::channel(PENDING_INPUT);
        Self { sandbox, path, offset, redraw, socket: None, input, sender, ended: false }
    }

    pub fn input(&self) -> Input {
        Input(self.sender.clone())
    }

    /// The next frame; `None` after the last. Input is sent while this is being waited for.
    ///
    /// # Errors
    ///
    /// When the connection is lost and cannot be made again, or the sandbox refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call goes on.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        let mut tries = 0;
        loop {
            if self.ended {
                return Ok(None);
            }
            let (sink, source) = match &mut self.socket {
                Some(halves) => halves,
                None => match self.open().await {
                    Ok(socket) => self.socket.insert(socket.split()),
                    Err(error) if error.is_retryable() && tries < TRIES && tries > 0 => {
                        tries += 1;
                        tokio::time::sleep(PAUSE * tries).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            // Not `biased`: neither a flood of input nor one of output may hold up the other.
            let event = tokio::select! {
                error = pass_on(&mut self.input, sink) => Some(Err(error)),
                message = source.next() => message,
            };
            match event {
                Some(Ok(Message::Binary(data))) => {
                    let frame =
                        Frame::decode(data).map_err(|error| ClientError::Answer { reason: error.to_string() })?;
                    self.note(&frame);
                    return Ok(Some(frame));
                }
                Some(Ok(Message::Close(Some(close)))) if !close.reason.is_empty() => {
                    self.ended = true;
                    return Err(ClientError::Answer { reason: close.reason.to_string() });
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    self.socket = None;
                    tries += 1;
                    if tries > TRIES {
                        return Err(ClientError::connection("it was lost again and again"));
                    }
                }
            }
        }
    }

    fn note(&mut self, frame: &Frame) {
        match frame {
            Frame::Output { offset, data, .. } => {
                // What painted the screen is not of the log: it stands at the offset where the log goes on.
                let painted = std::mem::take(&mut self.redraw);
                self.offset = if painted { offset.0 } else { offset.0 + data.len() as u64 };
            }
            Frame::Gap { to, .. } => self.offset = to.0,
            Frame::Exit { .. } | Frame::End { .. } => self.ended = true,
            Frame::Input { .. } | Frame::InputEnd | Frame::Resize { .. } | Frame::Signal { .. } => {}
        }
    }

    async fn open(&self) -> Result<Socket, ClientError> {
        let query = if self.redraw { "redraw=true".to_owned() } else { format!("offset={}&follow=true", self.offset) };
        let key = generate_key();
        let request = self
            .sandbox
            .request(Method::GET, &format!("{}?{query}", self.path))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .body(empty())
            .map_err(|error| ClientError::Request { reason: error.to_string() })?;
        let answer = self.sandbox.connections.send(request, Carries::Frames, CALL_PATIENCE).await?;
        if answer.header(header::SEC_WEBSOCKET_ACCEPT) != Some(&derive_accept_key(key.as_bytes())) {
            return Err(ClientError::Answer { reason: "it does not accept a WebSocket".to_owned() });
        }
        let stream = Watched::new(TokioIo::new(answer.upgrade().await?));
        let config = WebSocketConfig::default().max_message_size(Some(LARGEST_MESSAGE));
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
    }
}

/// Sends input until that fails.
///
/// # Cancel safety
///
/// Safe: a frame is taken when there is room for it, and the next call sends what was not sent.
async fn pass_on(input: &mut mpsc::Receiver<Frame>, sink: &mut SplitSink<Socket, Message>) -> tungstenite::Error {
    loop {
        if let Err(error) = sink.flush().await {
            return error;
        }
        let Some(frame) = input.recv().await else { return pending().await };
        if let Err(error) = sink.start_send_unpin(Message::Binary(frame.encode())) {
            return error;
        }
    }
}
