use http::Method;
use wharf_protocol::{
    CommandResult, ExecId, ExecInfo, RunRequest, Screen, SessionId, SessionInfo, SignalName, SignalRequest,
};

use crate::{ClientError, Output, Sandbox, full, output::Kind, silence::Heard, to_json};

/// One exec of a sandbox: a process and what it printed. Dropping it changes nothing in the sandbox.
#[derive(Debug, Clone)]
pub struct Exec {
    sandbox: Sandbox,
    id: ExecId,
}

impl Exec {
    pub(crate) fn new(sandbox: Sandbox, id: ExecId) -> Self {
        Self { sandbox, id }
    }

    pub fn id(&self) -> &ExecId {
        &self.id
    }

    /// What it is doing.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn info(&self) -> Result<ExecInfo, ClientError> {
        self.sandbox.get(&format!("/v1/execs/{}", self.id)).await
    }

    /// Its output from `offset` on, and a way to talk to the process, as its caller: what it was asked to do when its caller
    /// goes it does when this one goes.
    pub fn attach(&self, offset: u64) -> Output {
        self.output(offset, Kind::Exec)
    }

    /// Its output from `offset` on, to look on only.
    pub fn watch(&self, offset: u64) -> Output {
        self.output(offset, Kind::Watched)
    }

    fn output(&self, offset: u64, kind: Kind) -> Output {
        Output::new(self.sandbox.clone(), format!("/v1/execs/{}/output", self.id), offset, kind, false)
    }

    /// Sends a signal to its process group, on a terminal to the one in the foreground.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; one that has ended is a conflict.
    pub async fn signal(&self, signal: SignalName) -> Result<(), ClientError> {
        let path = format!("/v1/execs/{}/signal", self.id);
        self.sandbox.post(&path, &SignalRequest { signal }).await
    }

    /// Forgets it, and ends its process tree if it runs.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn remove(self) -> Result<(), ClientError> {
        self.sandbox.delete(&format!("/v1/execs/{}", self.id)).await
    }
}

/// One session of a sandbox: a persistent shell on a terminal. Dropping it changes nothing in the sandbox.
#[derive(Debug, Clone)]
pub struct Session {
    sandbox: Sandbox,
    id: SessionId,
}

impl Session {
    pub(crate) fn new(sandbox: Sandbox, id: SessionId) -> Self {
        Self { sandbox, id }
    }

    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// What it is doing.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn info(&self) -> Result<SessionInfo, ClientError> {
        self.sandbox.get(&format!("/v1/sessions/{}", self.id)).await
    }

    /// Runs a command and waits for its end, or for one of its time limits.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a session that is busy is a conflict, a sandbox of which nothing is heard for 45 seconds has timed out.
    ///
    /// # Cancel safety
    ///
    /// What becomes of the command of a dropped call, or of one that has timed out, is what the request says: `on_disconnect`.
    pub async fn run(&self, request: &RunRequest) -> Result<CommandResult, ClientError> {
        let body = to_json(request)?;
        let path = format!("/v1/sessions/{}/run", self.id);
        // The request's own limits end the wait.
        self.sandbox
            .send_patiently(Method::POST, &path, "application/json", full(body), Heard::new())
            .await?
            .parse()
            .await
    }

    /// Sends a signal to what runs in its foreground.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; that nothing runs is a conflict.
    pub async fn signal(&self, signal: SignalName) -> Result<(), ClientError> {
        let path = format!("/v1/sessions/{}/signal", self.id);
        self.sandbox.post(&path, &SignalRequest { signal }).await
    }

    /// Ends its shell and all that was started in it, whatever has become of that, and starts another in the directory
    /// that the session began in.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have ended the shell; the next command starts another.
    pub async fn reset(&self) -> Result<SessionInfo, ClientError> {
        let path = format!("/v1/sessions/{}/reset", self.id);
        self.sandbox.json(Method::POST, &path, &serde_json::json!({})).await
    }

    /// What its terminal shows now.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn screen(&self) -> Result<Screen, ClientError> {
        self.sandbox.get(&format!("/v1/sessions/{}/screen", self.id)).await
    }

    /// Its output from `offset` on, or from what its screen shows now, and a way to type.
    pub fn attach(&self, offset: Option<u64>) -> Output {
        let path = format!("/v1/sessions/{}/output", self.id);
        Output::new(self.sandbox.clone(), path, offset.unwrap_or(0), Kind::Session, offset.is_none())
    }

    /// Ends its shell and all that was started in it.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn remove(self) -> Result<(), ClientError> {
        self.sandbox.delete(&format!("/v1/sessions/{}", self.id)).await
    }
}
