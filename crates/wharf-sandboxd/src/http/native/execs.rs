//! `/v1/execs`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, stream::BoxStream};
use serde::Deserialize;
use wharf_protocol::{
    ByteOffset, ExecId, ExecInfo, ExecRequest, Frame, Problem, ProblemKind, ResizeRequest, SignalName, SignalRequest,
};

use super::stream::{self, Asked, Caller};
use crate::{
    core::Core,
    exec::{Exec, Here, Place},
    http::problem::{ApiError, ApiJson, ApiPath, ApiQuery},
};

pub(super) fn router() -> Router<Arc<Core>> {
    Router::new()
        .route("/v1/execs", post(create).get(list))
        .route("/v1/execs/{id}", get(show).delete(remove))
        .route("/v1/execs/{id}/signal", post(signal))
        .route("/v1/execs/{id}/resize", post(resize))
        .route("/v1/execs/{id}/output", get(output))
        .route("/v1/execs/{id}/wait", get(wait))
}

/// Input comes when whoever types it has some: its body may stall.
pub(super) fn input_router() -> Router<Arc<Core>> {
    Router::new().route("/v1/execs/{id}/stdin", post(stdin))
}

fn find(core: &Core, id: &ExecId) -> Result<Arc<Exec>, ApiError> {
    core.bound()?.execs.find(id).ok_or_else(|| ApiError::new(ProblemKind::NotFound, format!("there is no exec `{id}`")))
}

/// Starts one process. The same request again under the same id finds it.
#[utoipa::path(
    post, path = "/v1/execs", tag = "execs", request_body = ExecRequest,
    responses((status = 201, body = ExecInfo), (status = 200, description = "it exists", body = ExecInfo),
              (status = 400, body = Problem), (status = 409, body = Problem), (status = 429, body = Problem),
              (status = 422, description = "the program is there and cannot be run", body = Problem)),
)]
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    ApiJson(request): ApiJson<ExecRequest>,
) -> Result<(StatusCode, Json<ExecInfo>), ApiError> {
    let bound = core.bound()?;
    let (user, environment, working_dir) =
        bound.placed(request.user.as_deref(), request.environment.clone(), request.working_dir.as_deref())?;
    let place = Place { user, environment, working_dir };
    let (exec, started) = bound.execs.start(request, place, &core.tasks, &core.shutdown)?;
    Ok((if started { StatusCode::CREATED } else { StatusCode::OK }, Json(exec.info())))
}

/// All execs, oldest first. A finished one stays for a day, or until it is removed or makes place for a new one.
#[utoipa::path(get, path = "/v1/execs", tag = "execs", responses((status = 200, body = Vec<ExecInfo>)))]
pub(super) async fn list(State(core): State<Arc<Core>>) -> Result<Json<Vec<ExecInfo>>, ApiError> {
    let mut execs: Vec<ExecInfo> = core.bound()?.execs.list().iter().map(|exec| exec.info()).collect();
    execs.sort_by(|a, b| a.started_at.total_cmp(&b.started_at));
    Ok(Json(execs))
}

#[utoipa::path(
    get, path = "/v1/execs/{id}", tag = "execs", params(("id" = String, Path)),
    responses((status = 200, body = ExecInfo), (status = 404, body = Problem)),
)]
pub(super) async fn show(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
) -> Result<Json<ExecInfo>, ApiError> {
    Ok(Json(find(&core, &id)?.info()))
}

/// Forgets the exec and its output. If it runs its whole process tree is ended first; what a finished one has left behind
/// in the background belongs to the sandbox.
#[utoipa::path(
    delete, path = "/v1/execs/{id}", tag = "execs", params(("id" = String, Path)),
    responses((status = 204, description = "gone"), (status = 404, body = Problem),
              (status = 422, description = "a process does not end, not even killed", body = Problem)),
)]
pub(super) async fn remove(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
) -> Result<StatusCode, ApiError> {
    find(&core, &id)?;
    core.bound()?.execs.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct StdinQuery {
    /// Whether input ends after this body.
    #[serde(default)]
    end: bool,
}

/// Gives the process input: the raw body, streamed.
#[utoipa::path(
    post, path = "/v1/execs/{id}/stdin", tag = "execs", params(("id" = String, Path), StdinQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "written"), (status = 409, description = "takes no input", body = Problem)),
)]
pub(super) async fn stdin(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
    ApiQuery(query): ApiQuery<StdinQuery>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let exec = find(&core, &id)?;
    let mut body = body.into_data_stream();
    while let Some(data) = body.next().await {
        let data = data.map_err(|_| ApiError::new(ProblemKind::InvalidRequest, "the body ended before its end"))?;
        exec.write(&data).await?;
    }
    if query.end {
        exec.end_input();
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a signal to the process group, on a terminal to the one in the foreground.
#[utoipa::path(
    post, path = "/v1/execs/{id}/signal", tag = "execs", params(("id" = String, Path)), request_body = SignalRequest,
    responses((status = 204, description = "sent"), (status = 409, description = "ended", body = Problem)),
)]
pub(super) async fn signal(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
    ApiJson(request): ApiJson<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    find(&core, &id)?.signal(stream::signal_of(&request.signal)?)?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    post, path = "/v1/execs/{id}/resize", tag = "execs", params(("id" = String, Path)), request_body = ResizeRequest,
    responses((status = 204, description = "resized"), (status = 409, description = "no terminal", body = Problem)),
)]
pub(super) async fn resize(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
    ApiJson(request): ApiJson<ResizeRequest>,
) -> Result<StatusCode, ApiError> {
    find(&core, &id)?.resize(request.rows, request.columns)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputQuery {
    /// Where to start; absent: at the beginning.
    offset: Option<ByteOffset>,
    /// Whether to go on until the process has ended.
    #[serde(default)]
    follow: bool,
    /// Whether to look on only: the process waits for somebody else's reading, and may be killed with somebody else's
    /// going.
    #[serde(default)]
    watch: bool,
}

/// The output as frames: a WebSocket (both ways), server-sent events or newline-delimited JSON.
#[utoipa::path(
    get, path = "/v1/execs/{id}/output", tag = "execs", params(("id" = String, Path), OutputQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = Frame),
              (status = 101, description = "a WebSocket of binary frames")),
)]
pub(super) async fn output(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
    ApiQuery(query): ApiQuery<OutputQuery>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let exec = find(&core, &id)?;
    let from = query.offset.unwrap_or_default();
    let is_caller = !query.watch && (query.follow || upgrade.is_ok());
    let mut caller = ExecCaller { here: is_caller.then(|| exec.arrive()), exec };
    // It asks for nothing before that again.
    caller.read(from);
    let asked = Asked { from, follow: query.follow, first: None, ending: None };
    Ok(stream::answer(caller.exec.log().clone(), asked, &headers, upgrade.ok(), caller, &core))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// Milliseconds after which the answer comes even if the process runs on; absent: 30000.
    timeout_ms: Option<u64>,
}

/// Waits until the process has ended and its output is complete, or the time has passed.
#[utoipa::path(
    get, path = "/v1/execs/{id}/wait", tag = "execs", params(("id" = String, Path), WaitQuery),
    responses((status = 200, body = ExecInfo)),
)]
pub(super) async fn wait(
    State(core): State<Arc<Core>>,
    ApiPath(id): ApiPath<ExecId>,
    ApiQuery(query): ApiQuery<WaitQuery>,
) -> Result<Json<ExecInfo>, ApiError> {
    let exec = find(&core, &id)?;
    let _here = exec.arrive();
    let patience = Duration::from_millis(query.timeout_ms.unwrap_or(30_000));
    Ok(Json(tokio::time::timeout(patience, exec.wait()).await.unwrap_or_else(|_| exec.info())))
}

/// What a WebSocket's client may do to an exec.
struct ExecCaller {
    exec: Arc<Exec>,
    /// While it is its caller and no mere watcher.
    here: Option<Here>,
}

impl Caller for ExecCaller {
    async fn frame(&mut self, frame: Frame) -> Result<(), ApiError> {
        match frame {
            Frame::Input { data } => self.exec.queue(None, data).await?,
            Frame::InputAt { offset, data } => self.exec.queue(Some(offset), data).await?,
            Frame::InputEnd => self.exec.end_input_once(),
            Frame::Acknowledge { offset } => self.read(offset),
            Frame::Resize { rows, columns } => self.exec.resize(rows, columns)?,
            Frame::Signal { signal } => self.exec.signal(stream::signal_of(&SignalName::Number(signal))?)?,
            Frame::Output { .. }
            | Frame::Gap { .. }
            | Frame::Exit { .. }
            | Frame::End { .. }
            | Frame::InputTaken { .. } => {
                return Err(ApiError::invalid("frame", "output", "a client does not send output"));
            }
        }
        Ok(())
    }

    fn told(&self) -> BoxStream<'static, Frame> {
        self.exec.input_taken()
    }

    fn read(&mut self, offset: ByteOffset) {
        if self.here.is_some() {
            self.exec.log().acknowledge(offset);
        }
    }

    fn left(mut self) {
        if let Some(here) = self.here.take() {
            here.leave();
        }
    }
}
