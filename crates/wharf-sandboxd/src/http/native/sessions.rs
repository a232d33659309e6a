//! `/v1/sessions`.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use rustix::process::Signal;
use serde::Deserialize;
use wharf_protocol::{
    ByteOffset, CommandResult, Frame, InputRequest, OnDisconnect, Problem, ProblemKind, ResizeRequest, RunRequest,
    Screen as ScreenText, SessionId, SessionInfo, SessionRequest, SignalRequest, Stream, TerminalSize,
};

use super::stream::{self, Asked, Caller};
use crate::{
    core::Core,
    http::problem::{ApiError, ApiJson, ApiPath, ApiQuery},
    screen::{Screen, ScreenSize},
    session::{AttachedTerminal, Session, SessionSettings},
};

/// A screen holds as much as its programs write, twice if they use the alternate one.
const MOST_ROWS: u16 = 4096;
const MOST_CELLS: u32 = 1 << 20;
/// Lines of history that a native session's screen keeps for a redraw.
const HISTORY_LINES: usize = 1000;

pub(super) fn router() -> Router<Arc<Core>> {
    Router::new()
        .route("/v1/sessions", post(create).get(list))
        .route("/v1/sessions/{id}", get(show).delete(remove))
        .route("/v1/sessions/{id}/run", post(run))
        .route("/v1/sessions/{id}/input", post(input))
        .route("/v1/sessions/{id}/resize", post(resize))
        .route("/v1/sessions/{id}/signal", post(signal))
        .route("/v1/sessions/{id}/reset", post(reset))
        .route("/v1/sessions/{id}/screen", get(screen))
        .route("/v1/sessions/{id}/output", get(output))
}

fn find(core: &Core, id: &SessionId) -> Result<Arc<Session>, ApiError> {
    core.bound()?
        .sessions
        .find(id)
        .ok_or_else(|| ApiError::new(ProblemKind::NotFound, format!("there is no session `{id}`")))
}

fn checked(size: TerminalSize) -> Result<TerminalSize, ApiError> {
    if size.rows == 0 || size.columns == 0 {
        let value = format!("{}x{}", size.rows, size.columns);
        return Err(ApiError::invalid("terminal", value, "a terminal has at least one row and one column"));
    }
    let cells = u32::from(size.rows) * u32::from(size.columns);
    if size.rows > MOST_ROWS || size.columns > MOST_ROWS || cells > MOST_CELLS {
        let value = format!("{}x{}", size.rows, size.columns);
        let why = format!("a terminal has at most {MOST_ROWS} rows, {MOST_ROWS} columns and {MOST_CELLS} cells");
        return Err(ApiError::invalid("terminal", value, why));
    }
    Ok(size)
}

/// Starts a shell. The same id again finds the session that is there.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "sessions", request_body = SessionRequest,
    responses((status = 201, body = SessionInfo), (status = 200, description = "it exists", body = SessionInfo),
              (status = 409, description = "it is being removed", body = Problem), (status = 429, body = Problem)),
)]
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    ApiJson(request): ApiJson<SessionRequest>,
) -> Result<(StatusCode, Json<SessionInfo>), ApiError> {
    let bound = core.bound()?;
    let id = match request.id {
        Some(id) => id,
        None => bound.sessions.new_id(),
    };
    if let Some(session) = bound.sessions.find_settled(&id).await {
        return given(&session);
    }
    let terminal = checked(request.terminal)?;
    let (user, environment, working_dir) =
        bound.placed(request.user.as_deref(), request.environment, request.working_dir.as_deref())?;
    let settings = SessionSettings {
        id: id.clone(),
        user,
        environment,
        working_dir,
        terminal,
        term: "xterm-256color",
        plain_prompt: false,
        startup: "",
        output_bytes: bound.identity.output_bytes(),
    };
    let size = ScreenSize { rows: terminal.rows, columns: terminal.columns };
    let view = Arc::new(Mutex::new(Screen::new(size, HISTORY_LINES)));
    match bound.sessions.open(settings, view, &core).await {
        Ok(session) => Ok((StatusCode::CREATED, Json(session.info()))),
        Err(error) if error.problem().kind == ProblemKind::Conflict => {
            // Somebody else who asked for it was quicker.
            let session = bound.sessions.find_settled(&id).await.ok_or(error)?;
            given(&session)
        }
        Err(error) => Err(error),
    }
}

/// A session that was there already, with a shell.
fn given(session: &Arc<Session>) -> Result<(StatusCode, Json<SessionInfo>), ApiError> {
    if session.closed().is_cancelled() {
        return Err(ApiError::new(ProblemKind::Conflict, format!("session `{}` is being removed", session.id())));
    }
    // Whoever asks for a session wants to use it. Whether its shell shows a prompt is for whoever runs a command: what else
    // a start-up file starts can be looked at.
    session.ensure_shell()?;
    Ok((StatusCode::OK, Json(session.info())))
}

/// All sessions, oldest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", responses((status = 200, body = Vec<SessionInfo>)))]
pub(super) async fn list(State(core): State<Arc<Core>>) -> Result<Json<Vec<SessionInfo>>, ApiError> {
    let mut sessions = Vec::new();
    for session in core.bound()?.sessions.list() {
        sessions.push(session.info());
    }
    sessions.sort_by(|a, b| a.started_at.total_cmp(&b.started_at));
    Ok(Json(sessions))
}

#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = SessionInfo), (status = 404, body = Problem)),
)]
pub(super) async fn show(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
) -> Result<Json<SessionInfo>, ApiError> {
    Ok(Json(find(&core, &id)?.info()))
}

/// Ends the shell and everything it started.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 204, description = "gone"), (status = 404, body = Problem),
              (status = 422, description = "a process does not end, not even killed", body = Problem)),
)]
pub(super) async fn remove(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
) -> Result<StatusCode, ApiError> {
    let session = find(&core, &id)?;
    session.close().await;
    session.ensure_gone().await?;
    core.bound()?.sessions.forget(&session);
    Ok(StatusCode::NO_CONTENT)
}

/// Runs one command at the prompt and waits for its end or for a time limit, after which it runs on.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/run", tag = "sessions", params(("id" = String, Path)), request_body = RunRequest,
    responses((status = 200, body = CommandResult), (status = 409, description = "busy", body = Problem)),
)]
pub(super) async fn run(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
    ApiJson(request): ApiJson<RunRequest>,
) -> Result<Json<CommandResult>, ApiError> {
    let session = find(&core, &id)?;
    if request.command.contains('\0') {
        return Err(ApiError::invalid("command", &request.command, "a command has no NUL"));
    }
    let guard = (request.on_disconnect == OnDisconnect::Kill).then(|| InterruptOnDrop(Some(session.clone())));
    let result = session.run(&request).await?;
    if let Some(mut guard) = guard {
        guard.0 = None;
    }
    Ok(Json(result))
}

/// Kills what runs in the foreground when a caller who wished so goes away.
struct InterruptOnDrop(Option<Arc<Session>>);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            let tasks = session.tasks().clone();
            tasks.spawn(async move {
                // Nothing running is what was wanted.
                let _ = session.signal(Signal::KILL).await;
            });
        }
    }
}

/// Types text, whatever the session is doing.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/input", tag = "sessions", params(("id" = String, Path)),
    request_body = InputRequest, responses((status = 204, description = "typed"), (status = 409, body = Problem)),
)]
pub(super) async fn input(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
    ApiJson(request): ApiJson<InputRequest>,
) -> Result<StatusCode, ApiError> {
    find(&core, &id)?.type_bytes(request.text.as_bytes()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post, path = "/v1/sessions/{id}/resize", tag = "sessions", params(("id" = String, Path)),
    request_body = ResizeRequest, responses((status = 204, description = "resized")),
)]
pub(super) async fn resize(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
    ApiJson(request): ApiJson<ResizeRequest>,
) -> Result<StatusCode, ApiError> {
    let size = checked(TerminalSize { rows: request.rows, columns: request.columns })?;
    find(&core, &id)?.resize(size).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a signal to the foreground process group.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/signal", tag = "sessions", params(("id" = String, Path)),
    request_body = SignalRequest,
    responses((status = 204, description = "sent"), (status = 409, description = "nothing runs", body = Problem)),
)]
pub(super) async fn signal(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
    ApiJson(request): ApiJson<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    find(&core, &id)?.signal(stream::signal_of(&request.signal)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the shell and everything it started, whatever has become of it, and starts another in the directory that the
/// session began in. Variables, functions and jobs are gone; the output log goes on.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/reset", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, description = "a new shell runs", body = SessionInfo), (status = 404, body = Problem)),
)]
pub(super) async fn reset(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
) -> Result<Json<SessionInfo>, ApiError> {
    let session = find(&core, &id)?;
    session.reset().await?;
    Ok(Json(session.info()))
}

/// What the terminal shows now.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/screen", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = ScreenText)),
)]
pub(super) async fn screen(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
) -> Result<Json<ScreenText>, ApiError> {
    let session = find(&core, &id)?;
    let terminal = session.terminal();
    let shown = session.in_view(move |view| {
        let screen = view.screen();
        let (row, column) = screen.cursor();
        ScreenText {
            text: screen.visible_text(),
            cursor_row: u32::from(row),
            cursor_column: u32::from(column),
            alternate: screen.is_alternate(),
            terminal,
        }
    });
    Ok(Json(shown.await))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputQuery {
    /// Where to start; absent: at the beginning of what is kept.
    offset: Option<ByteOffset>,
    /// Whether to go on with what is printed later.
    #[serde(default)]
    follow: bool,
    /// Whether to begin with what paints the present screen, and go on with what is printed later.
    #[serde(default)]
    redraw: bool,
}

/// The session's output as frames, until its shell ends: a WebSocket (both ways), server-sent events or newline-delimited JSON.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/output", tag = "sessions", params(("id" = String, Path), OutputQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = Frame),
              (status = 101, description = "a WebSocket of binary frames")),
)]
pub(super) async fn output(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<SessionId>,
    ApiQuery(query): ApiQuery<OutputQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let session = find(&core, &id)?;
    let mut first = None;
    let mut from = query.offset.unwrap_or_default();
    if query.redraw {
        // The view and the log change together under this lock, so nothing is painted twice or lost.
        let log = session.log().clone();
        let data;
        (data, from) = session.in_view(move |view| (view.screen().redraw(), log.end())).await;
        first = Some(Frame::Output { offset: from, stream: Stream::Terminal, data: data.into() });
    }
    let mut progress = session.progress();
    let ends = progress.borrow_and_update().ends;
    let ending = async move {
        let ended = progress.wait_for(|now| now.ends > ends).await;
        let end = ended.ok().and_then(|now| now.last_end);
        Frame::Exit { code: end.and_then(|end| end.code), signal: end.and_then(|end| end.signal) }
    };
    let asked = Asked { from, follow: query.follow || query.redraw, first, ending: Some(Box::pin(ending)) };
    let log = session.log().clone();
    let caller = SessionCaller { session, terminal: None };
    Ok(stream::answer(log, asked, &headers, upgrade.ok(), caller, &core))
}

/// What a WebSocket's client may do to a session.
struct SessionCaller {
    session: Arc<Session>,
    /// Once it has told a size: who has none is no terminal.
    terminal: Option<AttachedTerminal>,
}

impl Caller for SessionCaller {
    async fn frame(&mut self, frame: Frame) -> Result<(), ApiError> {
        match frame {
            Frame::Input { data } | Frame::InputAt { data, .. } => Ok(self.session.type_bytes(&data).await?),
            Frame::Resize { rows, columns } => {
                let size = checked(TerminalSize { rows, columns })?;
                self.terminal.get_or_insert_with(|| self.session.attach_terminal());
                Ok(self.session.resize(size).await?)
            }
            Frame::Signal { signal } => {
                Ok(self.session.signal(stream::signal_of(&wharf_protocol::SignalName::Number(signal))?).await?)
            }
            // A terminal has no end of input but the one that is typed.
            Frame::InputEnd => Ok(()),
            // A session waits for no reader.
            Frame::Acknowledge { .. } => Ok(()),
            Frame::Output { .. }
            | Frame::Gap { .. }
            | Frame::Exit { .. }
            | Frame::End { .. }
            | Frame::InputTaken { .. } => Err(ApiError::invalid("frame", "output", "a client does not send output")),
        }
    }

    fn left(self) {}
}
