//! A proxy in front of an API server that fails as a test tells it to.
//!
//! ```text
//! client ── plain HTTP, 127.0.0.1 ── FaultProxy ── TLS and credentials of a kubeconfig ── API server
//!                                        │
//!                                  faults, calls
//! ```
//!
//! Answers pass as they come, so that watches and logs work, and a connection that is upgraded (exec, port-forward) becomes a
//! tunnel. Only a request's body is read whole first: [`kube::client::Body`] is made of bytes, and an API server reads an object
//! whole too. The proxy tries nothing again. An API server that cannot be reached looks like a connection that is cut.
//!
//! Deliberately absent: faults within a tunnel; only [`FaultProxy::cut_connections`] ends one.

mod fault;
mod target;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use kube::{Client, Config, client::Body};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    task::{JoinHandle, JoinSet},
};

pub use self::{
    fault::{Action, Fault, Gate, Match, Times},
    target::{Target, Verb},
};

type BoxError = Box<dyn Error + Send + Sync>;
type Streamed = UnsyncBoxBody<Bytes, BoxError>;
/// An error instead of an answer makes hyper close the connection as it is.
type Answer = Result<Response<Streamed>, BoxError>;

/// The proxy. Dropping it cuts every connection and ends its tasks.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

/// Names a fault among those of its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultId(usize);

/// A request that came.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    pub target: Target,
    /// Which fault was applied to it.
    pub fault: Option<FaultId>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet, or the client gave up before.
    Unanswered,
    /// Its headers at least: a body may still come, or be cut.
    Answered(u16),
    /// By a fault, or because the server could not be reached.
    Cut(String),
}

impl FaultProxy {
    /// Listens on a port of its own; nothing is asked of the server before the first request.
    ///
    /// # Panics
    ///
    /// If no client can be made of `upstream`.
    pub async fn start(mut upstream: Config) -> Self {
        // What passes through stays as it is, takes as long as it takes, and is never tried again.
        upstream.default_retry = false;
        upstream.disable_compression = true;
        upstream.read_timeout = None;
        let upstream = Client::try_from(upstream).expect("a client of the upstream configuration");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared { upstream, state: watch::Sender::default(), cut: Notify::new() });
        let serving = tokio::spawn(serve(listener, shared.clone()));
        Self { address, shared, serving }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The text of a kubeconfig whose only cluster is this proxy.
    pub fn kubeconfig(&self, namespace: &str) -> String {
        let address = self.address;
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters: [{{name: proxy, cluster: {{server: \"http://{address}\"}}}}]\n\
             users: [{{name: proxy, user: {{}}}}]\n\
             contexts: [{{name: proxy, context: {{cluster: proxy, user: proxy, namespace: \"{namespace}\"}}}}]\n\
             current-context: proxy\n"
        )
    }

    /// The same for a client in this process, with kube's defaults.
    pub fn kube_config(&self, namespace: &str) -> Config {
        let mut config = Config::new(format!("http://{}", self.address).parse().expect("an address makes a URL"));
        namespace.clone_into(&mut config.default_namespace);
        config
    }

    /// Faults are tried in the order in which they were added: the first that matches and has not run out is applied. Those
    /// behind it do not count the request.
    pub fn add(&self, fault: Fault) -> FaultId {
        let mut id = FaultId(0);
        self.shared.state.send_modify(|state| {
            id = FaultId(state.added);
            state.added += 1;
            state.faults.push(Placed { id, fault, seen: 0 });
        });
        id
    }

    /// Forgets all faults. What a request has met already stays with it.
    pub fn clear(&self) {
        self.shared.state.send_modify(|state| state.faults.clear());
    }

    /// Every request so far, in the order in which they came.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state.borrow().calls.clone()
    }

    /// Waits until `count` matching requests have come, counted from the start of the proxy.
    pub async fn wait_for(&self, matches: Match, count: usize) {
        let enough = |state: &State| state.calls.iter().filter(|call| matches.is_met_by(&call.target)).count() >= count;
        self.shared.state.subscribe().wait_for(enough).await.expect("the proxy owns the sender");
    }

    /// Cuts every connection there is, with its watches and tunnels; new ones are accepted.
    pub fn cut_connections(&self) {
        self.shared.cut.notify_one();
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The task owns the connections.
        self.serving.abort();
    }
}

impl Call {
    pub fn status(&self) -> Option<u16> {
        match self.outcome {
            Outcome::Answered(status) => Some(status),
            Outcome::Unanswered | Outcome::Cut(_) => None,
        }
    }
}

/// In one line, as `create pods: 201`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.target.resource.is_some() {
            write!(f, "{}", self.target)?;
        } else {
            write!(f, "{} {}", self.target.verb, self.path)?;
        }
        match &self.outcome {
            Outcome::Unanswered => f.write_str(": unanswered"),
            Outcome::Answered(status) => write!(f, ": {status}"),
            Outcome::Cut(_) => f.write_str(": cut"),
        }
    }
}

struct Shared {
    upstream: Client,
    /// Watched by those who wait for a call.
    state: watch::Sender<State>,
    cut: Notify,
}

#[derive(Default)]
struct State {
    faults: Vec<Placed>,
    added: usize,
    calls: Vec<Call>,
}

struct Placed {
    id: FaultId,
    fault: Fault,
    /// Matching requests that no earlier fault took.
    seen: usize,
}

impl State {
    fn take_fault(&mut self, target: &Target) -> Option<(FaultId, Action)> {
        for placed in self.faults.iter_mut().filter(|placed| placed.fault.matches.is_met_by(target)) {
            let nth = placed.seen;
            placed.seen += 1;
            if placed.fault.is_due(nth) {
                return Some((placed.id, placed.fault.action.clone()));
            }
        }
        None
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.cut.notified() => connections.abort_all(),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (socket, _) = accepted.expect("loopback accepts");
                connections.spawn(serve_connection(socket, shared.clone()));
            }
        }
    }
}

/// The two ends of a connection that is being upgraded.
struct Tunnel {
    client: OnUpgrade,
    server: OnUpgrade,
    /// Before what the server says.
    held: Option<Gate>,
}

async fn serve_connection(socket: TcpStream, shared: Arc<Shared>) {
    // Head and body of an answer are two writes: else the second one waits 40 ms for a delayed acknowledgement.
    let _ = socket.set_nodelay(true);
    // An upgrade is the last request of its connection.
    let (upgrades, mut upgraded) = mpsc::channel(1);
    let service = service_fn(|request| shared.clone().answer(request, upgrades.clone()));
    // Fails when a fault cuts it and when the client goes away: in both cases it is over.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
    if let Ok(Tunnel { client, server, held }) = upgraded.try_recv()
        && let (Ok(client), Ok(server)) = tokio::join!(client, server)
    {
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let Some(gate) = held else {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        };
        let ((mut asks, mut hears), (mut says, mut takes)) = (tokio::io::split(client), tokio::io::split(server));
        let come = async {
            gate.pass().await;
            tokio::io::copy(&mut says, &mut hears).await
        };
        let _ = tokio::select! {
            gone = tokio::io::copy(&mut asks, &mut takes) => gone,
            ended = come => ended,
        };
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, upgrades: mpsc::Sender<Tunnel>) -> Answer {
        let target = Target::of(request.method(), request.uri(), request.headers());
        let (mut place, mut action) = (0, None);
        self.state.send_modify(|state| {
            let taken = state.take_fault(&target);
            place = state.calls.len();
            state.calls.push(Call {
                method: request.method().to_string(),
                path: request.uri().path().to_owned(),
                query: request.uri().query().map(str::to_owned),
                target,
                fault: taken.as_ref().map(|(id, _)| *id),
                outcome: Outcome::Unanswered,
            });
            action = taken.map(|(_, action)| action);
        });
        let answer = match action {
            None => self.forward(request, upgrades).await,
            Some(action) => self.apply(action, request, upgrades).await,
        };
        let outcome = match &answer {
            Ok(answer) => Outcome::Answered(answer.status().as_u16()),
            Err(error) => Outcome::Cut(error.to_string()),
        };
        self.state.send_modify(|state| state.calls[place].outcome = outcome);
        answer
    }

    async fn apply(&self, action: Action, mut request: Request<Incoming>, upgrades: mpsc::Sender<Tunnel>) -> Answer {
        match action {
            Action::Status { code, reason, message, retry_after } => Ok(refuse(code, reason, &message, retry_after)),
            Action::CutBefore => Err("cut before the server".into()),
            Action::CutAfter => {
                self.forward(request, upgrades).await?;
                Err("cut after the server".into())
            }
            Action::Silence => pending().await,
            Action::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.forward(request, upgrades).await
            }
            Action::PauseBefore(gate) => {
                gate.pass().await;
                self.forward(request, upgrades).await
            }
            Action::PauseAfter(gate) => {
                let answer = self.forward(request, upgrades).await;
                gate.pass().await;
                answer
            }
            Action::HoldWhatComes(gate) => {
                let (upgrade, mut upgraded) = mpsc::channel(1);
                let answer = self.forward(request, upgrade).await?;
                if let Ok(tunnel) = upgraded.try_recv() {
                    let held = Tunnel { held: Some(gate), ..tunnel };
                    upgrades.try_send(held).map_err(|_| "a connection is upgraded once")?;
                }
                Ok(answer)
            }
            Action::CutStreamAfterEvents(events) => {
                keep_lines_countable(&mut request);
                let answer = self.forward(request, upgrades).await?;
                Ok(answer.map(|body| end_after(body, events, Some("cut by a fault"))))
            }
            Action::EndStreamAfterEvents(events) => {
                keep_lines_countable(&mut request);
                let answer = self.forward(request, upgrades).await?;
                Ok(answer.map(|body| end_after(body, events, None)))
            }
            Action::Gone => {
                let status = failure(410, "Expired", "too old resource version: 1 (2)", None);
                Ok(json_answer(StatusCode::OK, format!("{}\n", json!({ "type": "ERROR", "object": status }))))
            }
        }
    }

    async fn forward(&self, mut request: Request<Incoming>, upgrades: mpsc::Sender<Tunnel>) -> Answer {
        let client = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        // These are about our own connection; the other one gets its own.
        parts.headers.remove(header::HOST);
        parts.headers.remove(header::TRANSFER_ENCODING);
        if client.is_none() {
            parts.headers.remove(header::CONNECTION);
        }
        let body = Body::from(body.collect().await?.to_bytes());
        let mut answer = self.upstream.send(Request::from_parts(parts, body)).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = client.ok_or("the server upgraded a connection that nobody asked it to")?;
            let server = hyper::upgrade::on(&mut answer);
            upgrades.try_send(Tunnel { client, server, held: None }).map_err(|_| "a connection is upgraded once")?;
        } else {
            answer.headers_mut().remove(header::CONNECTION);
            answer.headers_mut().remove(header::TRANSFER_ENCODING);
        }
        Ok(answer.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

/// Since Kubernetes 1.37 watches are compressed too, for clients that say they take it.
fn keep_lines_countable(request: &mut Request<Incoming>) {
    request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// Lets so many lines of `body` pass and then ends it: with an error, or else as if it were complete.
fn end_after(body: Streamed, lines: usize, error: Option<&'static str>) -> Streamed {
    let frames = stream::unfold(Some((body, lines)), move |state| async move {
        let (mut body, mut lines) = state?;
        if lines == 0 {
            // An error discards what hyper has not sent yet, which it does when there is nothing to do.
            tokio::task::yield_now().await;
            return error.map(|error| (Err(error.into()), None));
        }
        let mut data = match body.frame().await?.map(Frame::into_data) {
            Ok(Ok(data)) => data,
            Ok(Err(trailers)) => return Some((Ok(trailers), Some((body, lines)))),
            Err(error) => return Some((Err(error), None)),
        };
        let newlines = data.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let ends: Vec<_> = newlines.map(|(place, _)| place + 1).take(lines).collect();
        lines -= ends.len();
        if let (0, Some(end)) = (lines, ends.last()) {
            data.truncate(*end);
        }
        Some((Ok(Frame::data(data)), Some((body, lines))))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn refuse(code: u16, reason: &str, message: &str, retry_after: Option<Duration>) -> Response<Streamed> {
    let seconds = retry_after.map(|pause| pause.as_secs());
    let status = StatusCode::from_u16(code).expect("a fault's code is a status code");
    let mut answer = json_answer(status, failure(code, reason, message, seconds).to_string());
    if let Some(seconds) = seconds {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>
fn failure(code: u16, reason: &str, message: &str, retry_after_seconds: Option<u64>) -> serde_json::Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "reason": reason, "code": code,
    });
    if let Some(seconds) = retry_after_seconds {
        status["details"] = json!({ "retryAfterSeconds": seconds });
    }
    status
}

fn json_answer(status: StatusCode, text: String) -> Response<Streamed> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
