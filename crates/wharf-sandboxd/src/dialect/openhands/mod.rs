//! The OpenHands V0 action execution API: a translation onto the core.
//!
//! `action` reads what the client sends, `bash` runs commands on a session whose view is the `console`,
//! `default_files` reads, writes and edits, `transfer` moves files, `viewer` is the second, local server.

pub mod action;
pub mod bash;
pub mod console;
pub mod default_files;
pub mod multi_command;
pub mod python;
pub mod transfer;
pub mod viewer;
mod workspace;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use self::{
    action::{Action, ActionKind, flag, text},
    bash::{BashShell, Metadata, Run, RunReply},
    console::Console,
    default_files::Reply,
};
use wharf_protocol::Secret;

use crate::{
    core::{Bound, Core, Identity, random_hex},
    editor::Editor,
    files::rights::Rights,
    http::{
        idle::bound_body,
        server::{self, Connections, Listener},
    },
    options::OpenHandsOptions,
    process::users,
    session::{Session, SessionError, SessionSettings},
};

/// The size of the original's terminal: section 6.1.
const TERMINAL: wharf_protocol::TerminalSize = wharf_protocol::TerminalSize { rows: 1000, columns: 1000 };
/// What the original runs first in its shell: section 1.3, step 10.
const STARTUP: &str = "alias git=\"git --no-pager\"\n";

/// What the dialect needs beyond the identity.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seconds without output before a command that does not block is reported as still running.
    pub no_change_timeout: Duration,
    /// The owner of files that the `write` action creates.
    pub file_owner: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { no_change_timeout: Duration::from_secs(10), file_owner: rustix::process::geteuid().as_raw() }
    }
}

/// The state behind the dialect's routes.
#[derive(Debug)]
pub struct OpenHands {
    core: Arc<Core>,
    settings: Settings,
    /// Held while an action runs: actions run strictly one after another.
    shell: tokio::sync::Mutex<Option<BashShell>>,
    editor: OnceCell<Arc<Editor>>,
    /// When the latest action started.
    last_action: Mutex<Instant>,
}

impl OpenHands {
    pub fn new(core: Arc<Core>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            core,
            settings,
            shell: tokio::sync::Mutex::new(None),
            editor: OnceCell::new(),
            last_action: Mutex::new(Instant::now()),
        })
    }

    /// Starts the agent's shell before the first action asks for it.
    pub async fn warm_up(self: Arc<Self>) {
        let mut shell = self.shell.lock().await;
        if let Err(error) = self.shell(&mut shell).await {
            tracing::warn!(%error, "could not start the agent's shell yet");
        }
    }

    fn bound(&self) -> Result<&Bound, Failure> {
        self.core.bound().map_err(|_| Failure::internal("not initialized"))
    }

    async fn shell<'a>(&self, shell: &'a mut Option<BashShell>) -> Result<&'a mut BashShell, Failure> {
        if shell.as_ref().is_some_and(|shell| shell.session().closed().is_cancelled()) {
            *shell = None;
        }
        match shell {
            Some(shell) => Ok(shell),
            None => Ok(shell.insert(self.open_shell(None).await?)),
        }
    }

    async fn open_shell(&self, working_dir: Option<&Path>) -> Result<BashShell, Failure> {
        let bound = self.bound()?;
        let nonce = random_hex(8);
        let console = Arc::new(Mutex::new(Console::new(&nonce)));
        let working_dir = working_dir.unwrap_or(&bound.identity.working_dir).to_owned();
        let directory = working_dir.display().to_string();
        let settings = SessionSettings {
            id: bound.sessions.new_id(),
            user: bound.identity.user.clone(),
            environment: bound.identity.environment.clone(),
            working_dir,
            terminal: TERMINAL,
            term: "tmux-256color",
            plain_prompt: true,
            startup: STARTUP,
            output_bytes: bound.identity.output_bytes(),
        };
        let session = bound.sessions.open(settings, console.clone(), &self.core).await;
        let session = session.map_err(|error| Failure::internal(error.problem().detail.clone()))?;
        Ok(BashShell::new(session, console, directory, self.settings.no_change_timeout))
    }

    async fn editor(&self) -> Result<Arc<Editor>, Failure> {
        let bound = self.bound()?;
        let editor = self.editor.get_or_init(|| async { Arc::new(Editor::new(bound.identity.working_dir.clone())) });
        Ok(editor.await.clone())
    }
}

/// The dialect's routes, behind its key check.
pub fn router(state: Arc<OpenHands>, core: &Arc<Core>) -> Router {
    Router::new()
        .route("/alive", get(alive))
        .route("/server_info", get(server_info))
        .route("/execute_action", post(execute_action))
        .route("/vscode/connection_token", get(connection_token))
        .route("/update_mcp_server", post(update_mcp_server))
        .with_state(state.clone())
        .merge(transfer::router(core.clone()))
        .fallback(not_found)
        .method_not_allowed_fallback(|| async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
        .layer(middleware::map_request_with_state(core.clone(), bound_body))
        .layer(middleware::from_fn_with_state(state, check_key))
}

/// An answer that is no observation.
#[derive(Debug)]
pub enum Failure {
    /// 500 with `Internal server error: ` and this text.
    Internal(String),
}

impl Failure {
    fn internal(text: impl Into<String>) -> Self {
        Self::Internal(text.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Internal(text) = self;
        f.write_str(text)
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        detail(StatusCode::INTERNAL_SERVER_ERROR, &format!("Internal server error: {self}"))
    }
}

/// `{"detail": text}` with a status: section 2.2.
pub(crate) fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

/// What any other exception gives: section 2.2.
fn unexpected() -> Response {
    detail(StatusCode::INTERNAL_SERVER_ERROR, "An unexpected error occurred. Please try again later.")
}

/// Section 2.3: the header, checked before routing; exactly two paths are exempt.
async fn check_key(State(state): State<Arc<OpenHands>>, request: Request, next: Next) -> Response {
    let exempt = matches!(request.uri().path(), "/alive" | "/server_info");
    if !exempt {
        let Ok(identity) = state.core.identity() else {
            return detail(StatusCode::SERVICE_UNAVAILABLE, "not initialized");
        };
        let presented =
            request.headers().get("x-session-api-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        if !identity.keys.is_empty() && !identity.is_key(presented) {
            return detail(StatusCode::FORBIDDEN, "Invalid API Key");
        }
        state.core.touch();
        server::has_shown_a_key(request.extensions());
    }
    next.run(request).await
}

/// Section 2.1: a trailing slash too many redirects to the canonical path; section 2.2: the rest is unknown.
async fn not_found(request: Request) -> Response {
    const PATHS: [&str; 8] = [
        "/alive",
        "/server_info",
        "/execute_action",
        "/vscode/connection_token",
        "/update_mcp_server",
        "/upload_file",
        "/download_files",
        "/list_files",
    ];
    if let Some(path) = request.uri().path().strip_suffix('/').filter(|path| PATHS.contains(path)) {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        if let Ok(location) = HeaderValue::try_from(format!("http://{host}{path}{query}")) {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
    }
    detail(StatusCode::NOT_FOUND, "Not Found")
}

async fn alive(State(state): State<Arc<OpenHands>>) -> Json<Value> {
    let ready = state.core.identity().is_ok();
    Json(json!({ "status": if ready { "ok" } else { "not initialized" } }))
}

async fn server_info(State(state): State<Arc<OpenHands>>) -> Json<Value> {
    let idle = state.last_action.lock().map(|at| at.elapsed()).unwrap_or_default();
    Json(json!({
        "uptime": state.core.uptime().as_secs_f64(),
        "idle_time": idle.as_secs_f64(),
        "resources": crate::process::usage::of_this_process(),
    }))
}

async fn connection_token() -> Json<Value> {
    Json(json!({ "token": null }))
}

/// Section 3.8, for a server without an MCP proxy: an empty list is fine, a valid server is refused in words.
async fn update_mcp_server(body: Bytes) -> Response {
    let Ok(servers) = serde_json::from_slice::<Value>(&body) else { return unexpected() };
    let Some(servers) = servers.as_array() else {
        return detail(StatusCode::BAD_REQUEST, "Request must be a list of MCP tools to sync");
    };
    let sound = |server: &Value| {
        let name = server.get("name").and_then(Value::as_str).map(str::trim).unwrap_or_default();
        let command = server.get("command").and_then(Value::as_str).map(str::trim).unwrap_or_default();
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            && !command.is_empty()
            && !command.contains(' ')
    };
    if !servers.iter().all(sound) {
        return unexpected();
    }
    let error = if servers.is_empty() { "" } else { "This server has no MCP proxy: no stdio server was started." };
    Json(json!({ "detail": "MCP server updated successfully", "router_error_log": error })).into_response()
}

async fn execute_action(State(state): State<Arc<OpenHands>>, body: Bytes) -> Response {
    let event = match action_of(&body) {
        Ok(event) => event,
        Err(refusal) => return *refusal,
    };
    let action = match action::parse(&event) {
        Ok(action) => action,
        Err(text) => return Failure::Internal(text).into_response(),
    };
    if let Ok(mut last) = state.last_action.lock() {
        *last = Instant::now();
    }
    let mut shell = state.shell.lock().await;
    match execute(&state, &mut shell, action).await {
        Ok(observation) => Json(observation).into_response(),
        Err(failure) => failure.into_response(),
    }
}

/// The `action` object of a request body, or the 422 that says what is wrong with it.
fn action_of(body: &[u8]) -> Result<Map<String, Value>, Box<Response>> {
    if body.is_empty() {
        return Err(Box::new(python::validation_error(&python::missing(&["body"], &Value::Null))));
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| Box::new(python::invalid_json(body, &error)))?;
    let Value::Object(mut fields) = body else {
        return Err(Box::new(python::validation_error(&python::wrong_type("model_attributes_type", &["body"], &body))));
    };
    match fields.shift_remove("action") {
        None => Err(Box::new(python::validation_error(&python::missing(&["body", "action"], &Value::Object(fields))))),
        Some(Value::Object(event)) => Ok(event),
        Some(other) => {
            Err(Box::new(python::validation_error(&python::wrong_type("dict_type", &["body", "action"], &other))))
        }
    }
}

async fn execute(state: &Arc<OpenHands>, shell: &mut Option<BashShell>, action: Action) -> Result<Value, Failure> {
    match action.kind {
        ActionKind::Run => run(state, shell, &action).await,
        ActionKind::RunIpython => Err(Failure::internal("JupyterRequirement not found. Unable to run IPython action.")),
        ActionKind::Browse | ActionKind::BrowseInteractive => {
            Ok(error_observation("Browser functionality is not supported or disabled."))
        }
        ActionKind::Read | ActionKind::Write | ActionKind::Edit => {
            let working_dir = PathBuf::from(state.shell(shell).await?.working_dir());
            let editor = state.editor().await?;
            let owner = state.settings.file_owner;
            let rights = Rights::of(&state.bound()?.identity.user);
            let kind = action.kind;
            let arguments = Value::Object(action.arguments);
            let done = tokio::task::spawn_blocking(move || match kind {
                ActionKind::Write => Ok(default_files::write(&arguments_of(arguments)?, &working_dir, owner, &rights)),
                ActionKind::Read => {
                    let arguments = arguments_of(arguments)?;
                    rights.run(|| default_files::read(&arguments, &working_dir, &editor)).map_err(said)
                }
                _ => {
                    let arguments = arguments_of(arguments)?;
                    rights.run(|| default_files::edit(&arguments, &editor)).map_err(said)
                }
            });
            let reply = done.await.map_err(|error| Failure::internal(error.to_string()))?.map_err(Failure::Internal)?;
            match reply {
                Reply::Observation { observation, content, extras } => Ok(observation_of(observation, content, extras)),
                Reply::Error { content } => Ok(error_observation(&content)),
                Reply::Failed { detail } => Err(Failure::Internal(detail)),
            }
        }
    }
}

fn said(error: std::io::Error) -> String {
    error.to_string()
}

/// Typed arguments; an argument of the wrong type is named.
fn arguments_of<T: serde::de::DeserializeOwned>(arguments: Value) -> Result<T, String> {
    serde_json::from_value(arguments).map_err(|error| error.to_string())
}

async fn run(state: &Arc<OpenHands>, shell: &mut Option<BashShell>, action: &Action) -> Result<Value, Failure> {
    let arguments = &action.arguments;
    let hidden = flag(arguments, "hidden");
    let command = match text(arguments, "command") {
        Ok(command) => command.unwrap_or_default().to_owned(),
        Err(wrong) => return Ok(error_observation(&wrong)),
    };
    if command.contains('\0') {
        return Ok(error_observation("`command` must not contain a NUL character"));
    }
    let request = Run {
        command,
        is_input: flag(arguments, "is_input"),
        blocking: flag(arguments, "blocking"),
        hidden,
        reset: flag(arguments, "reset"),
        timeout: action.timeout,
    };
    if request.reset && request.is_input {
        return Ok(error_observation("Cannot use reset=True with is_input=True"));
    }
    let reply = if flag(arguments, "is_static") {
        let cwd = match text(arguments, "cwd") {
            Ok(cwd) => cwd.filter(|cwd| !cwd.is_empty()).map(PathBuf::from),
            Err(wrong) => return Ok(error_observation(&wrong)),
        };
        let mut shell = match state.open_shell(cwd.as_deref()).await {
            Ok(shell) => shell,
            Err(failure) => {
                let text = match cwd.filter(|cwd| !cwd.is_dir()) {
                    Some(cwd) => format!("`cwd` is not a directory: {}", cwd.display()),
                    None => failure.to_string(),
                };
                return Ok(if hidden {
                    run_observation(&text, &request.command, &Metadata::default(), true)
                } else {
                    error_observation(&text)
                });
            }
        };
        let only_session =
            OnlySession { session: shell.session().clone(), core: state.core.clone(), is_removed: false };
        let reply = shell.execute(&request).await;
        only_session.remove().await;
        reply
    } else {
        state.shell(shell).await?.execute(&request).await
    };
    Ok(match reply {
        Ok(RunReply::Ran { content, command, metadata, hidden }) => {
            run_observation(&content, &command, &metadata, hidden)
        }
        Ok(RunReply::Refused(content)) => error_observation(&content),
        Err(error) if hidden => run_observation(&error.to_string(), &request.command, &Metadata::default(), true),
        Err(error) => error_observation(&error.to_string()),
    })
}

/// The session of one static command: it ends with that, also when the client leaves before.
struct OnlySession {
    session: Arc<Session>,
    core: Arc<Core>,
    is_removed: bool,
}

impl OnlySession {
    async fn remove(mut self) {
        self.removing().await;
        self.is_removed = true;
    }

    fn removing(&self) -> impl Future<Output = ()> + Send + 'static {
        let (session, core) = (self.session.clone(), self.core.clone());
        async move {
            session.close().await;
            if let Ok(bound) = core.bound() {
                bound.sessions.forget(&session);
            }
        }
    }
}

impl Drop for OnlySession {
    fn drop(&mut self) {
        if !self.is_removed {
            self.core.tasks.spawn(self.removing());
        }
    }
}

fn run_observation(content: &str, command: &str, metadata: &Metadata, hidden: bool) -> Value {
    json!({
        "message": format!("Command `{command}` executed with exit code {}.", metadata.exit_code),
        "observation": "run",
        "content": content,
        "extras": {
            "command": command,
            "metadata": {
                "exit_code": metadata.exit_code,
                "pid": metadata.pid,
                "username": metadata.username,
                "hostname": metadata.hostname,
                "working_dir": metadata.working_dir,
                "py_interpreter_path": metadata.python,
                "prefix": metadata.prefix,
                "suffix": metadata.suffix,
            },
            "hidden": hidden,
        },
        "success": metadata.exit_code == 0,
    })
}

fn observation_of(observation: &str, content: String, extras: Map<String, Value>) -> Value {
    let path = extras.get("path").and_then(Value::as_str).unwrap_or_default();
    let verb = match observation {
        "read" => "read",
        "write" => "wrote to",
        _ => "edited",
    };
    json!({
        "message": format!("I {verb} the file {path}."),
        "observation": observation,
        "content": content,
        "extras": extras,
    })
}

fn error_observation(content: &str) -> Value {
    json!({ "message": content, "observation": "error", "content": content, "extras": { "error_id": "" } })
}

/// Binds a server that was started with OpenHands' command line, from that, the environment and the key that was in it:
/// sections 1.1 to 1.4. Without a key everybody may use it.
///
/// # Errors
///
/// When a variable is not what it must be, the user cannot be made, or the directory cannot be used.
pub fn bind_from_start(core: &Core, options: &OpenHandsOptions, key: Option<String>) -> anyhow::Result<Settings> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let no_change_timeout = match variable("NO_CHANGE_TIMEOUT_SECONDS") {
        None => 10,
        Some(text) => text
            .trim()
            .parse()
            .with_context(|| format!("NO_CHANGE_TIMEOUT_SECONDS must be a whole number of seconds, not `{text}`"))?,
    };
    let switches_user = variable("SU_TO_USER")
        .is_none_or(|text| matches!(text.to_lowercase().as_str(), "1" | "true" | "t" | "yes" | "y" | "on"));
    let known = [Some("root".to_owned()), Some("openhands".to_owned()), variable("RUNTIME_USERNAME")];
    let working_dir = options.working_dir.clone().context("--working-dir is missing")?;
    let server = users::current_user();
    let mut file_owner = options.user_id;
    let named = if options.username == server.name || (options.username == "root" && server.uid == 0) {
        server.clone()
    } else {
        let user = users::ensure_user(&options.username, Some(options.user_id))?;
        if user.uid != options.user_id {
            tracing::warn!(user = user.name, uid = user.uid, "the user exists with another uid, which is kept");
            file_owner = user.uid;
        }
        user
    };
    let user = if switches_user && known.contains(&Some(options.username.clone())) { named.clone() } else { server };
    let shown = working_dir.display();
    workspace::prepare(&working_dir, &named, variable("SANDBOX_GROUP_ID").as_deref())
        .with_context(|| format!("could not use --working-dir {shown}"))?;
    // The shell gets the server's environment, as in the original; the key is in it no more.
    let ours = |name: &str| matches!(name, "HOME" | "USER" | "LOGNAME" | "SHELL") || name.starts_with("WHARF_");
    let environment = std::env::vars().filter(|(name, _)| !ours(name)).collect();
    let identity = Identity {
        keys: key.filter(|key| !key.is_empty()).map(Secret::new).into_iter().collect(),
        environment,
        user,
        working_dir,
        limits: wharf_protocol::Limits::default(),
    };
    core.bind(identity, None, 0).map_err(|error| anyhow::anyhow!(error.problem().to_string()))?;
    Ok(Settings { no_change_timeout: Duration::from_secs(no_change_timeout), file_owner })
}

/// Starts the file viewer beside a server at `port`; without a free port there is none, as in the original.
pub async fn serve_viewer(core: &Arc<Core>, port: u16) {
    let Some(listener) = viewer::listen(port).await else {
        tracing::warn!("no free port for the file viewer");
        return;
    };
    core.tasks.spawn(server::serve(
        Listener::Tcp(listener),
        viewer::router(core.clone()),
        Connections::new(core.clone()),
    ));
}
