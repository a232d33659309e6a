use std::{collections::VecDeque, future::pending, io, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{Method, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};
use wharf_protocol::{ByteOffset, Frame, INPUT_WINDOW_BYTES};

use crate::{CALL_PATIENCE, ClientError, RESUME_PATIENCE, Route, Sandbox, empty, route::Carries, silence::Watched};

type Socket = WebSocketStream<Watched<TokioIo<Upgraded>>>;
/// In halves, so that output comes while a process does not take its input.
type Halves = (SplitSink<Socket, Message>, SplitStream<Socket>);

/// Frames of a caller that wait to be sent; a caller that is faster waits.
const PENDING_INPUT: usize = 16;
const LARGEST_MESSAGE: usize = 4 << 20;
/// Output that was read is acknowledged after so many bytes, and whenever no more is there.
const ACKNOWLEDGED_AT_ONCE: u64 = 1 << 20;
/// So much no process has ever printed, and sums of offsets below it are numbers.
const BEYOND_ANY_LOG: u64 = 1 << 60;
/// A sandboxd that has ended does not come back at its socket.
pub(crate) const PATIENCE_WITH_NOBODY: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What an exec or a session prints, frame by frame.
///
/// A lost connection is made again by itself, for up to 45 seconds, and goes on at the same offset: nothing comes twice,
/// and what is no longer kept is told as a gap. Input to an exec is sent again where the process has not taken it; what
/// was on its way to a session may be lost. A connection over which neither output nor one of sandboxd's pings has come
/// for 45 seconds is lost.
///
/// Dropping it is a broken connection to the sandbox; [`Output::close`] tells that nobody will come back.
#[derive(Debug)]
pub struct Output {
    sandbox: Sandbox,
    path: String,
    offset: u64,
    kind: Kind,
    redraw: bool,
    socket: Option<Halves>,
    /// Nothing can be sent over this connection any more; what was sent to us before may still be read from it.
    is_mute: bool,
    outgoing: Outgoing,
    senders: Input,
    lost: Option<Loss>,
    ended: bool,
}

/// Whose output it is, and in which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An exec's, as its caller.
    Exec,
    /// An exec's, of somebody who only looks on.
    Watched,
    Session,
}

/// A connection that is being made again.
#[derive(Debug)]
struct Loss {
    since: Instant,
    pause: Duration,
}

/// The caller's half: input, signals and sizes.
#[derive(Debug, Clone)]
pub struct Input {
    input: mpsc::Sender<Frame>,
    /// Signals and sizes overtake input, which a process may leave unread.
    control: mpsc::UnboundedSender<Frame>,
}

impl Input {
    /// Sends a frame; input waits while earlier input is on its way. `false` if nobody takes them any more.
    pub async fn send(&self, frame: Frame) -> bool {
        match frame {
            Frame::Input { .. } | Frame::InputEnd => self.input.send(frame).await.is_ok(),
            other => self.control.send(other).is_ok(),
        }
    }
}

/// What goes to the sandbox.
#[derive(Debug)]
struct Outgoing {
    input: mpsc::Receiver<Frame>,
    control: mpsc::UnboundedReceiver<Frame>,
    /// Whether input is counted, and sent again over a new connection.
    counted: bool,
    /// Input that the process has not taken as far as is known, with its offsets.
    kept: VecDeque<(u64, Bytes)>,
    /// How many of `kept` were sent over this connection.
    sent: usize,
    /// The offset after all input so far.
    end: u64,
    /// Up to where the process has taken it; not known at the beginning of a connection.
    taken: Option<u64>,
    input_ended: bool,
    end_sent: bool,
    acknowledged: u64,
    /// Acknowledged as soon as it is this one's turn.
    acknowledging: Option<u64>,
}

impl Outgoing {
    fn new(input: mpsc::Receiver<Frame>, control: mpsc::UnboundedReceiver<Frame>, counted: bool, offset: u64) -> Self {
        Self {
            input,
            control,
            counted,
            kept: VecDeque::new(),
            sent: 0,
            end: 0,
            taken: None,
            input_ended: false,
            end_sent: false,
            acknowledged: offset,
            acknowledging: None,
        }
    }

    /// A new connection: what was sent over the last one may not have come.
    fn begin_again(&mut self, offset: u64) {
        (self.sent, self.taken, self.end_sent) = (0, None, false);
        // The request for output from there says so.
        (self.acknowledged, self.acknowledging) = (offset, None);
    }

    fn taken_up_to(&mut self, offset: u64) {
        self.taken = Some(offset);
        while let Some((start, data)) = self.kept.front()
            && start + data.len() as u64 <= offset
        {
            self.kept.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// The next frame for the sandbox, once there is one.
    ///
    /// # Cancel safety
    ///
    /// Safe: a frame that is returned has to be sent, and nothing is lost before that.
    async fn next(&mut self) -> Frame {
        loop {
            if let Ok(frame) = self.control.try_recv() {
                return frame;
            }
            if let Some(offset) = self.acknowledging.take() {
                self.acknowledged = offset;
                return Frame::Acknowledge { offset: ByteOffset(offset) };
            }
            if self.counted && self.taken.is_some() {
                if let Some((offset, data)) = self.kept.get(self.sent) {
                    self.sent += 1;
                    return Frame::InputAt { offset: ByteOffset(*offset), data: data.clone() };
                }
                if self.input_ended && !self.end_sent {
                    self.end_sent = true;
                    return Frame::InputEnd;
                }
            }
            let has_room = match self.taken {
                _ if !self.counted => true,
                Some(taken) => self.end.saturating_sub(taken) < INPUT_WINDOW_BYTES,
                None => false,
            };
            let input = tokio::select! {
                biased;
                Some(frame) = self.control.recv() => return frame,
                frame = self.input.recv(), if has_room => frame,
            };
            match input {
                Some(Frame::Input { data }) if self.counted => {
                    let offset = self.end;
                    self.end += data.len() as u64;
                    self.kept.push_back((offset, data));
                }
                Some(Frame::InputEnd) if self.counted => self.input_ended = true,
                Some(frame) => return frame,
                // The sender lives as long as the output.
                None => return pending().await,
            }
        }
    }
}

impl Output {
    pub(crate) fn new(sandbox: Sandbox, path: String, offset: u64, kind: Kind, redraw: bool) -> Self {
        let (input, inputs) = mpsc::channel(PENDING_INPUT);
        let (control, controls) = mpsc::unbounded_channel();
        Self {
            sandbox,
            path,
            offset,
            kind,
            redraw,
            socket: None,
            is_mute: false,
            outgoing: Outgoing::new(inputs, controls, kind == Kind::Exec, offset),
            senders: Input { input, control },
            lost: None,
            ended: false,
        }
    }

    pub fn input(&self) -> Input {
        self.senders.clone()
    }

    /// The next frame; `None` after the last. Input is sent while this is being waited for. That it is asked for says that
    /// the frames before it were used: a process that waits for its reader may print as much again.
    ///
    /// # Errors
    ///
    /// When the connection is lost and cannot be made again, or the sandbox refuses.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call goes on.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            if self.socket.is_none() {
                match self.open().await {
                    Ok(socket) => {
                        self.outgoing.begin_again(self.offset);
                        self.socket = Some(socket.split());
                        self.is_mute = false;
                    }
                    Err(error) if error.is_retryable() => {
                        self.pause(error).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some((sink, source)) = &mut self.socket else { continue };
            let outgoing = &mut self.outgoing;
            let unacknowledged = self.offset - outgoing.acknowledged.min(self.offset);
            if self.kind == Kind::Exec && unacknowledged >= ACKNOWLEDGED_AT_ONCE {
                outgoing.acknowledging = Some(self.offset);
            }
            // Each has its turn: neither a flood of input nor one of output may hold up the other.
            let event = if self.is_mute {
                source.next().await
            } else if pass_on(outgoing, sink).now_or_never().is_some() {
                self.is_mute = true;
                continue;
            } else if let Some(message) = source.next().now_or_never() {
                message
            } else {
                if self.kind == Kind::Exec && unacknowledged > 0 {
                    outgoing.acknowledging = Some(self.offset);
                }
                tokio::select! {
                    _ = pass_on(outgoing, sink) => {
                        // Sandboxd may have closed it behind the last frames, which are then still to be read: over a new
                        // connection the same would happen again.
                        self.is_mute = true;
                        continue;
                    }
                    message = source.next() => message,
                }
            };
            match event {
                Some(Ok(Message::Binary(data))) => {
                    self.lost = None;
                    let frame =
                        Frame::decode(data).map_err(|error| ClientError::Answer { reason: error.to_string() })?;
                    if let Frame::InputTaken { offset } = frame {
                        self.outgoing.taken_up_to(offset.0);
                        continue;
                    }
                    self.note(&frame)?;
                    return Ok(Some(frame));
                }
                Some(Ok(Message::Close(Some(close)))) if !close.reason.is_empty() => {
                    self.ended = true;
                    return Err(ClientError::Answer { reason: close.reason.to_string() });
                }
                Some(Ok(_)) => self.lost = None,
                Some(Err(error)) => {
                    self.socket = None;
                    self.pause(ClientError::connection(error)).await?;
                }
                None => {
                    self.socket = None;
                    self.pause(ClientError::connection(io::Error::from(io::ErrorKind::UnexpectedEof))).await?;
                }
            }
        }
    }

    /// Sends input and signals while no output is wanted. Returns when the connection broke; the next call of
    /// [`Output::next`] makes it again.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call goes on.
    pub async fn pass_input_on(&mut self) {
        match &mut self.socket {
            Some((sink, _)) if !self.is_mute => drop(pass_on(&mut self.outgoing, sink).await),
            _ => return pending().await,
        }
        self.is_mute = true;
    }

    /// Tells the sandbox that its caller leaves and does not come back, so that what it wished for then is done at once.
    pub async fn close(mut self) {
        if let Some((mut sink, _)) = self.socket.take() {
            // A connection that has broken is as good as one that could not be told.
            let _ = tokio::time::timeout(PATIENCE_WITH_NOBODY, sink.send(Message::Close(None))).await;
        }
    }

    /// Waits before the connection is made again; gives the error back once that took too long.
    async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        let loss = self.lost.get_or_insert_with(|| Loss { since: Instant::now(), pause: FIRST_PAUSE });
        let patience =
            if nobody_listens(self.sandbox.route(), &error) { PATIENCE_WITH_NOBODY } else { RESUME_PATIENCE };
        let passed = loss.since.elapsed();
        if passed >= patience {
            return Err(match error {
                ClientError::Connection { source } => ClientError::Lost { after: passed, source },
                other => other,
            });
        }
        let pause = loss.pause.min(patience - passed);
        loss.pause = (loss.pause * 2).min(LONGEST_PAUSE);
        sleep(pause).await;
        Ok(())
    }

    /// Takes note of where the output is after `frame`; an offset that no log has is no proper answer.
    fn note(&mut self, frame: &Frame) -> Result<(), ClientError> {
        let absurd = || ClientError::Answer { reason: "an offset of its output is absurd".to_owned() };
        match frame {
            Frame::Output { offset, data, .. } => {
                // What painted the screen is not of the log: it stands at the offset where the log goes on.
                let painted = std::mem::take(&mut self.redraw);
                let end =
                    offset.0.checked_add(data.len() as u64).filter(|end| *end < BEYOND_ANY_LOG).ok_or_else(absurd)?;
                self.offset = if painted { offset.0 } else { end };
            }
            Frame::Gap { from, to } if from > to || to.0 >= BEYOND_ANY_LOG => return Err(absurd()),
            Frame::Gap { to, .. } => self.offset = to.0,
            Frame::Exit { .. } | Frame::End { .. } => self.ended = true,
            Frame::InputTaken { .. }
            | Frame::Input { .. }
            | Frame::InputAt { .. }
            | Frame::InputEnd
            | Frame::Acknowledge { .. }
            | Frame::Resize { .. }
            | Frame::Signal { .. } => {}
        }
        Ok(())
    }

    async fn open(&self) -> Result<Socket, ClientError> {
        let query = match self.kind {
            Kind::Session if self.redraw => "redraw=true".to_owned(),
            Kind::Session | Kind::Exec => format!("offset={}&follow=true", self.offset),
            Kind::Watched => format!("offset={}&follow=true&watch=true", self.offset),
        };
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

/// Sends what goes to the sandbox until that fails.
///
/// # Cancel safety
///
/// Safe: a frame is taken when there is room for it, and the next call sends what was not sent.
async fn pass_on(outgoing: &mut Outgoing, sink: &mut SplitSink<Socket, Message>) -> tungstenite::Error {
    loop {
        if let Err(error) = sink.flush().await {
            return error;
        }
        let frame = outgoing.next().await;
        if let Err(error) = sink.start_send_unpin(Message::Binary(frame.encode())) {
            return error;
        }
    }
}

/// Whether sandboxd itself has ended: then nobody listens where it did.
pub(crate) fn nobody_listens(route: &Route, error: &ClientError) -> bool {
    match (route, error) {
        (Route::Unix(_) | Route::Tcp(_) | Route::Located(_), ClientError::Connect { source, .. }) => {
            matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        }
        // Whoever leads there knows that nothing is at its end any more.
        (Route::Through(_), ClientError::Connect { source, .. }) => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
