//! Bodies that somebody has begun to send and does not go on with.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use crate::core::Core;

/// A body that breaks once nothing of it has come for so long. As long as nobody reads it no time passes.
struct Bounded {
    body: Body,
    idle: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Bounds how long a request's body may stall, as a connection may idle.
pub(crate) async fn bound_body(State(core): State<Arc<Core>>, request: Request) -> Request {
    let idle = Duration::from_secs(core.limits().idle_connection_seconds);
    request.map(|body| if body.is_end_stream() { body } else { bounded(body, idle) })
}

fn bounded(body: Body, idle: Duration) -> Body {
    Body::new(Bounded { body, idle, waiting: None })
}

impl hyper::body::Body for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = None;
            return Poll::Ready(frame);
        }
        let idle = self.idle;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle))).as_mut().poll(cx));
        let stalled = format!("nothing of the body has come for {} s", idle.as_secs());
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::new(std::io::ErrorKind::TimedOut, stalled)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
