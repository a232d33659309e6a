//! The life cycle of OpenHands' V0 `KubernetesRuntime` as its app sees it: connect, close, delete, with its statuses in
//! its order and its kinds of errors (section 6 of its specification), and without its faults (section 9).
//!
//! What differs on purpose stands in `tests/kubernetes/golden/differences.json`.

use wharf_client::Sandbox;
use wharf_protocol::{Environment, SandboxId, SandboxSpec};

use super::{
    Before, KubernetesError, KubernetesRuntime, LOOK_PATIENCE, Profile, Request, Workspace, new_anchor, objects,
    operation::{Aim, Operation, Report},
    part::Part,
    shape::shaped,
};

/// What the original's plugin list holds if the editor in the browser is wanted.
const CODE_PLUGIN: &str = "vscode";

/// A status as the app's callback gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionStatus {
    /// `STATUS$STARTING_RUNTIME`
    Starting,
    /// `STATUS$READY`
    Ready,
    /// `STATUS$ERROR_RUNTIME_DISCONNECTED`, with its text.
    Disconnected(String),
}

/// The two exceptions of the original.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// `AgentRuntimeDisconnectedError`: there is no pod to attach to, or one that never was ready.
    #[error("{message}")]
    Disconnected { message: String, source: Option<Box<KubernetesError>> },
    /// `AgentRuntimeNotFoundError`: it could not be made.
    #[error("{message}")]
    NotFound { message: String, source: Box<KubernetesError> },
    /// What runs after the start has failed; the sandbox is there.
    #[error("could not set up the session")]
    SetUp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How a session is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connect {
    /// Only a sandbox that is there already.
    pub attach_to_existing: bool,
    pub plugins: Vec<String>,
    /// Whether nobody wants the editor in the browser.
    pub headless: bool,
    /// Further variables of the sandbox; under the `openhands` profile the client sets them itself, after the start.
    pub environment: Environment,
}

impl KubernetesRuntime {
    /// Connects a session to its sandbox, which is made if it is missing; `set_up` runs in a sandbox that is ready, but
    /// not if it was attached to.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; of a sandbox that does not start, what this call has made is removed.
    ///
    /// # Cancel safety
    ///
    /// As [`KubernetesRuntime::create`].
    pub async fn connect<E>(
        &self,
        id: &SandboxId,
        options: &Connect,
        on_status: &(dyn Fn(SessionStatus) + Sync),
        report: Report<'_>,
        set_up: impl AsyncFnOnce(&Sandbox) -> Result<(), E>,
    ) -> Result<Sandbox, SessionError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        on_status(SessionStatus::Starting);
        let mut operation = Operation::new(self.cluster(), self.settings(), id, self.settings.start_timeout, report);
        let observed = operation.observe(operation.all_parts()).await;
        let pod = operation.observed().get(Part::Pod);
        let there = observed.is_ok() && pod.is_some_and(|pod| !pod.terminating && !pod.has_ended());
        if options.attach_to_existing && !there {
            let source = observed.err().map(Box::new);
            return Err(SessionError::Disconnected { message: String::new(), source });
        }
        if !there {
            on_status(SessionStatus::Starting);
        }
        let pod_name = super::Names::of(id, self.settings.profile).pod;
        let not_made = |source: KubernetesError| {
            if there {
                let message = format!("Pod {pod_name} exists but failed to become ready. {source}");
                SessionError::Disconnected { message, source: Some(Box::new(source)) }
            } else {
                let message = format!("Failed to initialize kubernetes resources: {source}");
                SessionError::NotFound { message, source: Box::new(source) }
            }
        };
        observed.map_err(&not_made)?;
        let lost = |source: KubernetesError| {
            let message = format!("Failed to connect to runtime: {source}");
            on_status(SessionStatus::Disconnected(message.clone()));
            SessionError::Disconnected { message, source: Some(Box::new(source)) }
        };
        // A pod that the original has left has no anchor yet, and is made ours.
        if options.attach_to_existing && operation.observed().get(Part::Anchor).is_some() {
            let closed = |source: KubernetesError, otherwise: &dyn Fn(KubernetesError) -> SessionError| match source {
                KubernetesError::NotFound(_) => {
                    SessionError::Disconnected { message: String::new(), source: Some(Box::new(source)) }
                }
                source => otherwise(source),
            };
            operation.reach(&Aim::There).await.map_err(|source| closed(source, &not_made))?;
            return operation.attach().await.map_err(|source| closed(source, &lost));
        }
        let deadline = tokio::time::Instant::now() + LOOK_PATIENCE;
        let carried = self.cluster.carried(&self.settings, deadline).await;
        let request = Request {
            workspace: Workspace::Claimed,
            carried: carried.map_err(|error| not_made(error.into()))?,
            plugins: self.plugins(options),
            deadline_seconds: None,
        };
        shaped(&self.settings, &SandboxSpec::default()).map_err(|error| not_made(error.into()))?;
        let objects = objects(id, &self.settings, &request);
        let before = Before::of(operation.observed());
        let now = self.cluster.ensure_time(deadline).await.map_err(|error| not_made(error.into()))?;
        let anchor = new_anchor(id, &self.settings, options.environment.clone(), &request, before, now);
        let aim = Aim::Running { new: Some((&objects, &anchor)) };
        if let Err(error) = operation.reach(&aim).await {
            self.undo(id, &anchor, before, report).await;
            return Err(not_made(error));
        }
        if !options.attach_to_existing {
            on_status(SessionStatus::Starting);
        }
        let sandbox = match operation.settle(&aim).await {
            Ok(sandbox) => sandbox,
            Err(source) => {
                self.undo(id, &anchor, before, report).await;
                return Err(lost(source));
            }
        };
        if !options.attach_to_existing {
            set_up(&sandbox).await.map_err(|error| SessionError::SetUp(error.into()))?;
            on_status(SessionStatus::Ready);
        }
        Ok(sandbox)
    }

    fn plugins(&self, options: &Connect) -> Vec<String> {
        let mut plugins = match self.settings.profile {
            Profile::OpenHands => options.plugins.clone(),
            // sandboxd has what it has.
            Profile::Wharf => return Vec::new(),
        };
        if !options.headless && !plugins.iter().any(|plugin| plugin == CODE_PLUGIN) {
            plugins.push(CODE_PLUGIN.to_owned());
        }
        plugins
    }

    /// Closes a session: its pod, Services and Ingress go, its workspace stays. Does nothing if it was attached to or is to
    /// be kept alive; closing again is fine.
    ///
    /// # Errors
    ///
    /// What could not be removed; all else is.
    pub async fn close(&self, id: &SandboxId, attached: bool) -> Result<(), KubernetesError> {
        if attached || self.settings.keep_runtime_alive {
            return Ok(());
        }
        match self.suspend(id, &|_| {}).await {
            Err(KubernetesError::NotFound(_)) => Ok(()),
            closed => closed,
        }
    }

    /// Deletes a session with its workspace, whoever has made it and whenever.
    ///
    /// # Errors
    ///
    /// What could not be removed; all else is.
    pub async fn delete(&self, id: &SandboxId) -> Result<(), KubernetesError> {
        self.remove(id, &|_| {}).await.map(drop)
    }

    /// Where the session's server is for clients inside the cluster, as the original writes it.
    pub fn api_url(&self, id: &SandboxId) -> String {
        self.url(id, super::SERVER_PORT)
    }

    /// Where an agent's web applications are, and their ports.
    pub fn web_hosts(&self, id: &SandboxId) -> Vec<(String, u16)> {
        super::APP_PORTS.map(|port| (self.url(id, port), port)).to_vec()
    }

    /// Where the editor in the browser is; the token and the folder are escaped.
    pub fn vscode_url(&self, id: &SandboxId, token: &str) -> String {
        let names = super::Names::of(id, self.settings.profile);
        let ingress = &self.settings.ingress;
        let scheme = if ingress.tls_secret.is_some() { "https" } else { "http" };
        let place = match ingress.mode {
            super::settings::IngressMode::Subdomain => format!("{}.{}/", names.token, ingress.domain),
            super::settings::IngressMode::Path => format!("{}/{}/", ingress.domain, names.token),
        };
        let folder = escaped(&self.settings.workspace_path);
        format!("{scheme}://{place}?tkn={}&folder={folder}", escaped(token))
    }

    fn url(&self, id: &SandboxId, port: u16) -> String {
        let names = super::Names::of(id, self.settings.profile);
        format!("http://{}.{}.svc.cluster.local:{port}", names.service, self.settings.namespace)
    }
}

/// As a query takes it; `/` may stand as it is (RFC 3986).
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
