//! What can go wrong, and for which requests.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::target::{Target, Verb};

/// What is to go wrong, for which requests.
#[derive(Debug, Clone)]
pub struct Fault {
    pub matches: Match,
    /// How many matching requests pass first.
    pub after: usize,
    pub times: Times,
    pub action: Action,
}

/// Which requests; what is `None` is not looked at.
#[derive(Debug, Clone, Default)]
pub struct Match {
    pub verb: Option<Verb>,
    /// As in a role: `pods` is the pods themselves, `pods/portforward` only that part of them.
    pub resource: Option<&'static str>,
    /// See [`Target::name`] for what has one.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    Once,
    N(usize),
    Always,
}

#[derive(Debug, Clone)]
pub enum Action {
    /// Answers a failure in place of the server. A client of kube 5 tries 429, 503 and 504 again by itself, up to 15 times,
    /// unless its `Config::default_retry` is off.
    Status { code: u16, reason: &'static str, message: String, retry_after: Option<Duration> },
    /// The connection is cut before the request reaches the server.
    CutBefore,
    /// The request is carried out, but the connection is cut before the answer arrives.
    CutAfter,
    /// No answer, and nothing reaches the server, until the client gives up.
    Silence,
    /// The request reaches the server later.
    Delay(Duration),
    /// The request reaches the server once the gate is open.
    PauseBefore(Gate),
    /// The request is carried out, and answered once the gate is open. With a gate that stays shut: silence.
    PauseAfter(Gate),
    /// An upgraded connection carries what the client says, and what the server says once the gate is open.
    HoldWhatComes(Gate),
    /// A stream of JSON lines is cut after so many of them; after 0, once it has begun.
    CutStreamAfterEvents(usize),
    /// The same, but the stream ends as if the server had ended it, as servers do now and then.
    EndStreamAfterEvents(usize),
    /// A watch begins, and its only event says that its resource version is too old.
    Gone,
}

/// Where requests wait until a test lets them go on. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    arrived: Arc<Semaphore>,
    /// Closed, the gate is open: a closed semaphore holds nobody up.
    shut: Arc<Semaphore>,
}

impl Fault {
    /// For the first request that matches.
    pub fn once(matches: Match, action: Action) -> Self {
        Self { matches, after: 0, times: Times::Once, action }
    }

    pub fn always(matches: Match, action: Action) -> Self {
        Self { matches, after: 0, times: Times::Always, action }
    }

    /// Whether it is for the request before which it saw `seen` others that match.
    pub(super) fn is_due(&self, seen: usize) -> bool {
        seen >= self.after
            && match self.times {
                Times::Once => seen == self.after,
                Times::N(times) => seen < self.after + times,
                Times::Always => true,
            }
    }
}

impl Match {
    pub fn new(verb: Verb, resource: &'static str) -> Self {
        Self { verb: Some(verb), resource: Some(resource), name: None }
    }

    pub fn is_met_by(&self, target: &Target) -> bool {
        self.verb.is_none_or(|verb| verb == target.verb)
            && self.resource.is_none_or(|resource| target.resource.as_deref() == Some(resource))
            && self.name.as_ref().is_none_or(|name| target.name.as_ref() == Some(name))
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { arrived: Arc::new(Semaphore::new(0)), shut: Arc::new(Semaphore::new(0)) }
    }
}

impl Gate {
    /// Waits until a request stands at the gate; called again, until another one does.
    pub async fn reached(&self) {
        self.arrived.acquire().await.expect("nobody closes it").forget();
    }

    /// For those who wait and all who come.
    pub fn open(&self) {
        self.shut.close();
    }

    pub(super) async fn pass(&self) {
        self.arrived.add_permits(1);
        // An error is what an open gate gives.
        let _ = self.shut.acquire().await;
    }
}
