//! Connections over a route. One that has answered is kept for a moment: to open another through an API server takes longer
//! than most calls.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::{Body, CALL_PATIENCE, ClientError, Route, refusal, route::Carries};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Calls that follow one another share a connection. A server may close one that nobody uses after a second, and a request
/// that meets this is lost.
const IDLE: Duration = Duration::from_millis(500);
/// A connection that has answered is free at once, but for a server that answers before it has read a request.
const READY_PATIENCE: Duration = Duration::from_millis(100);
const MOST_IDLE: usize = 4;
/// An answer that is held in memory is at most so long.
const LONGEST_ANSWER: usize = 64 << 20;

/// A route with the connections that are free for the next call. Cheap to clone; clones share them.
#[derive(Clone)]
pub(crate) struct Connections {
    route: Route,
    idle: Arc<Mutex<Vec<Idle>>>,
}

struct Idle {
    sender: SendRequest<Body>,
    since: Instant,
}

/// A successful answer, of whose body nothing has been read.
pub(crate) struct Answer {
    response: Response<Incoming>,
    sender: SendRequest<Body>,
    connections: Connections,
}

impl Connections {
    pub(crate) fn new(route: Route) -> Self {
        Self { route, idle: Arc::default() }
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Sends a request once; an answer that is no success, or does not come within `patience`, is an error.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        carries: Carries,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let (response, sender) = if patience == Duration::MAX {
            self.exchange(request, carries).await?
        } else {
            let exchange = timeout(patience, self.exchange(request, carries)).await;
            exchange.map_err(|_| ClientError::TimedOut { after: patience })??
        };
        let status = response.status();
        let answer = Answer { response, sender, connections: self.clone() };
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(refusal(status, &answer.collect().await?))
    }

    async fn exchange(
        &self,
        mut request: Request<Body>,
        carries: Carries,
    ) -> Result<(Response<Incoming>, SendRequest<Body>), ClientError> {
        loop {
            let kept = match carries {
                Carries::Frames if !self.route.may_change() => None,
                Carries::Frames | Carries::Calls => self.take().await,
            };
            let was_kept = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.open(carries).await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message().filter(|_| was_kept) {
                    // It had ended, and nothing of the request was sent.
                    Some(unsent) => request = unsent,
                    None => return Err(ClientError::connection(error.into_error())),
                },
            }
        }
    }

    async fn open(&self, carries: Carries) -> Result<SendRequest<Body>, ClientError> {
        let stream = timeout(CONNECT_PATIENCE, self.route.connect(carries))
            .await
            .map_err(|_| ClientError::TimedOut { after: CONNECT_PATIENCE })?
            .map_err(|source| ClientError::Connect { route: self.route.to_string(), source })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ClientError::connection)?;
        // It ends when nobody has its sender, or an answer of it, any more.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    async fn take(&self) -> Option<SendRequest<Body>> {
        loop {
            let mut idle = lock(&self.idle).pop()?;
            if idle.since.elapsed() < IDLE && matches!(timeout(READY_PATIENCE, idle.sender.ready()).await, Ok(Ok(()))) {
                return Some(idle.sender);
            }
        }
    }

    fn keep(&self, sender: SendRequest<Body>) {
        let mut idle = lock(&self.idle);
        if idle.len() >= MOST_IDLE {
            return;
        }
        idle.push(Idle { sender, since: Instant::now() });
        let all = Arc::downgrade(&self.idle);
        // Closes it, if nobody has taken it until then.
        tokio::spawn(async move {
            sleep(IDLE).await;
            if let Some(all) = all.upgrade() {
                lock(&all).retain(|idle| idle.since.elapsed() < IDLE);
            }
        });
    }
}

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.route, f)
    }
}

impl Answer {
    pub(crate) async fn collect(self) -> Result<Bytes, ClientError> {
        let body = Limited::new(self.response.into_body(), LONGEST_ANSWER).collect();
        let body = timeout(CALL_PATIENCE, body).await;
        let body = body.map_err(|_| ClientError::TimedOut { after: CALL_PATIENCE })?;
        let body = body.map_err(|error| ClientError::Answer { reason: error.to_string() })?;
        self.connections.keep(self.sender);
        Ok(body.to_bytes())
    }

    pub(crate) async fn parse<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let bytes = self.collect().await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer { reason: error.to_string() })
    }

    /// A body that is read bit by bit; its connection is not used again.
    pub(crate) fn into_body(self) -> Incoming {
        self.response.into_body()
    }

    pub(crate) fn header(&self, name: http::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// What the connection has become, if the server has agreed to that.
    pub(crate) async fn upgrade(self) -> Result<Upgraded, ClientError> {
        if self.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Answer { reason: format!("it was {} and no WebSocket", self.response.status()) });
        }
        hyper::upgrade::on(self.response).await.map_err(ClientError::connection)
    }
}
