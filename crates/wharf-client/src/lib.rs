//! Everything that is done to a ready sandbox, over any route.
//!
//! A [`Sandbox`] is a route and a key; a connection carries one call at a time, and only calls that follow at once use it again.
//! This crate prints nothing, reads no environment, and does not know what kind of runtime a sandbox lives in.
#![forbid(unsafe_code)]

mod connection;
mod error;
mod files;
mod handle;
mod output;
mod route;
mod silence;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header, request};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout_at};
use wharf_protocol::{
    BindRequest, ExecId, ExecInfo, ExecRequest, Health, Info, Problem, Secret, SessionId, SessionInfo, SessionRequest,
};

use self::{
    connection::{Answer, Connections},
    route::Carries,
    silence::{Heard, SILENCE},
};
pub use self::{
    error::{ClientError, ErrorKind},
    files::{Files, Like},
    handle::{Exec, Session},
    output::{Input, Output},
    route::{Connection, Dial, Locate, Route, RouteStream},
};

/// How long a call that waits for nothing may take.
const CALL_PATIENCE: Duration = Duration::from_secs(60);
/// How long a call that is safe to repeat, or a stream, is tried again once its connection has broken: as long as sandboxd
/// waits for a caller.
pub(crate) const RESUME_PATIENCE: Duration = Duration::from_secs(45);
/// During a call that may take as long as it likes, the sandbox is asked so often whether it is there.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

const RETRY_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One ready sandbox. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Sandbox {
    connections: Connections,
    key: Secret,
}

impl Sandbox {
    pub fn new(route: Route, key: Secret) -> Self {
        Self { connections: Connections::new(route), key }
    }

    /// The same sandbox, over the same connections, with another key.
    #[must_use]
    pub fn with_key(&self, key: Secret) -> Self {
        Self { connections: self.connections.clone(), key }
    }

    pub fn route(&self) -> &Route {
        self.connections.route()
    }

    /// Whether the sandbox is blank, ready or stopping.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; all calls of this crate are safe to drop, and those that change nothing are safe to repeat.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get("/v1/health").await
    }

    /// Gives a blank sandbox its identity; the key of this value is the bind secret then.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; one that is bound already refuses with a conflict.
    pub async fn bind(&self, request: &BindRequest) -> Result<(), ClientError> {
        let body = full(to_json(request)?);
        let answer = self.send(Method::POST, "/v1/bind", Some("application/json"), body, CALL_PATIENCE).await?;
        answer.collect().await.map(drop)
    }

    /// Whether the OpenHands action execution API answers: for a server that is not ours.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn alive(&self) -> Result<(), ClientError> {
        self.send(Method::GET, "/alive", None, empty(), CALL_PATIENCE).await?.collect().await.map(drop)
    }

    /// What the sandbox is and how much it is used.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn info(&self) -> Result<Info, ClientError> {
        self.get("/v1/info").await
    }

    /// Starts a process. One whose answer is lost is asked for again, under the same id: it starts once.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a program that does not exist is a problem that names `argv`.
    pub async fn exec(&self, request: &ExecRequest) -> Result<Exec, ClientError> {
        let mut request = request.clone();
        request.id.get_or_insert_with(new_exec_id);
        let body = to_json(&request)?;
        let mut lost: Option<Instant> = None;
        loop {
            let body = full(body.clone());
            let answer = self.send(Method::POST, "/v1/execs", Some("application/json"), body, CALL_PATIENCE).await;
            let answer = match answer {
                Ok(answer) => answer.parse::<ExecInfo>().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(info) => return Ok(self.find_exec(info.id)),
                // It may have been started. Where there was no connection at all, it was not.
                Err(error) if error.may_have_been_done() || (lost.is_some() && error.is_retryable()) => {
                    let ended = output::nobody_listens(self.route(), &error);
                    let patience = if ended { output::PATIENCE_WITH_NOBODY } else { RESUME_PATIENCE };
                    if lost.get_or_insert_with(Instant::now).elapsed() >= patience {
                        return Err(error);
                    }
                    sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The exec of this id, without asking whether there is one.
    pub fn find_exec(&self, id: ExecId) -> Exec {
        Exec::new(self.clone(), id)
    }

    /// All execs, oldest first.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn execs(&self) -> Result<Vec<ExecInfo>, ClientError> {
        self.get("/v1/execs").await
    }

    /// Opens a session, or finds the one of the same id.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn session(&self, request: &SessionRequest) -> Result<Session, ClientError> {
        let info: SessionInfo = self.json(Method::POST, "/v1/sessions", request).await?;
        Ok(self.find_session(info.id))
    }

    /// The session of this id, without asking whether there is one.
    pub fn find_session(&self, id: SessionId) -> Session {
        Session::new(self.clone(), id)
    }

    /// All sessions, oldest first.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        self.get("/v1/sessions").await
    }

    /// The sandbox's files.
    pub fn files(&self) -> Files<'_> {
        Files::new(self)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, None, empty(), CALL_PATIENCE).await?.parse().await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, None, empty(), CALL_PATIENCE).await?.collect().await.map(drop)
    }

    /// Posts what is answered with nothing.
    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = full(to_json(body)?);
        let answer = self.send(Method::POST, path, Some("application/json"), body, CALL_PATIENCE).await?;
        answer.collect().await.map(drop)
    }

    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = full(to_json(body)?);
        self.send(method, path, Some("application/json"), body, CALL_PATIENCE).await?.parse().await
    }

    /// Sends a request; an answer that is no success is an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        media_type: Option<&str>,
        body: Body,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let mut request = self.request(method, path);
        if let Some(media_type) = media_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let request = request.body(body).map_err(|error| ClientError::Request { reason: error.to_string() })?;
        self.connections.send(request, Carries::Calls, patience).await
    }

    /// Asks for an answer that ends with trailers.
    pub(crate) async fn send_for_trailers(&self, path: &str, patience: Duration) -> Result<Answer, ClientError> {
        let request = self.request(Method::GET, path).header(header::TE, "trailers").body(empty());
        let request = request.map_err(|error| ClientError::Request { reason: error.to_string() })?;
        self.connections.send(request, Carries::Calls, patience).await
    }

    /// Sends a request whose answer may take as long as it likes, as long as something is `heard` of the sandbox: of a node
    /// without power, nobody tells, and behind an API server not even TCP does.
    pub(crate) async fn send_patiently(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Body,
        heard: Heard,
    ) -> Result<Answer, ClientError> {
        tokio::select! {
            biased;
            answer = self.send(method, path, Some(media_type), body, Duration::MAX) => answer,
            () = self.lost(heard) => Err(ClientError::TimedOut { after: SILENCE }),
        }
    }

    /// Ends once nothing was heard of the sandbox for 45 seconds. A refusal is an answer, and so is a connection that is closed
    /// at once, as by a sandbox that has too many.
    async fn lost(&self, heard: Heard) {
        loop {
            let look = async {
                sleep(LOOK_INTERVAL).await;
                self.send(Method::GET, "/v1/health", None, empty(), LOOK_INTERVAL).await
            };
            match timeout_at(heard.last() + SILENCE, look).await {
                // Of the sandbox, that says nothing, and TCP itself notices when a connection of ours ends.
                Ok(Err(error)) if is_unlocatable(self.route(), &error) => heard.now(),
                Ok(Err(ClientError::Connect { .. } | ClientError::TimedOut { .. } | ClientError::Gateway { .. })) => {}
                Ok(_) => heard.now(),
                Err(_) if heard.last().elapsed() >= SILENCE => return,
                Err(_) => {}
            }
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "sandbox")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.reveal()))
    }
}

/// Whether nobody could say where the sandbox is.
fn is_unlocatable(route: &Route, error: &ClientError) -> bool {
    matches!((route, error), (Route::Located(_), ClientError::Connect { source, .. }) if source.kind() == std::io::ErrorKind::Other)
}

fn new_exec_id() -> ExecId {
    let mut raw = [0; 8];
    getrandom::fill(&mut raw).expect("the kernel gives random bytes on every Linux since 3.17");
    let digits: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("e{digits}").parse().expect("a letter and hexadecimal digits are an id")
}

fn to_json(value: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| ClientError::Request { reason: error.to_string() })
}

pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) if matches!(status.as_u16(), 502..=504) => ClientError::Gateway { status },
        Err(_) => ClientError::Answer { reason: format!("the answer was {status} without a problem") },
    }
}

#[cfg(test)]
mod ended {
    use std::time::Instant;

    use tokio::net::UnixListener;
    use wharf_protocol::{ExecRequest, Secret};

    use super::{Route, Sandbox};

    #[tokio::test]
    async fn a_start_is_not_asked_for_again_where_nobody_listens_any_more() {
        let path = std::env::temp_dir().join(format!("wharf-ended-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let sandbox = Sandbox::new(Route::Unix(path.clone()), Secret::new("k"));
        let ends = async {
            let (stream, _) = listener.accept().await.unwrap();
            stream.readable().await.unwrap();
            drop(listener);
            std::fs::remove_file(&path).unwrap();
        };
        let began = Instant::now();
        let request = ExecRequest { argv: vec!["true".into()], ..ExecRequest::default() };
        let (started, ()) = tokio::join!(sandbox.exec(&request), ends);
        assert!(started.is_err() && began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
