//! `POST /v1/bind`: a blank sandbox gets its identity, once.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{FromRequest, Request, State},
    http::StatusCode,
    routing::post,
};
use rustix::fs::{Access, Mode, OFlags};
use wharf_protocol::{BindRequest, Environment, Limits, Problem, ProblemKind};

use super::auth::bearer;
use crate::{
    core::{Core, Identity, is_variable_name},
    http::{
        problem::{ApiError, ApiJson},
        server,
    },
    process::users::{self, User},
};

const SHORTEST_KEY: usize = 16;

pub(super) fn router() -> Router<Arc<Core>> {
    Router::new().route("/v1/bind", post(bind))
}

/// Gives a blank sandbox its keys, environment, user, working directory, limits and deadline. Only once.
#[utoipa::path(
    post, path = "/v1/bind", tag = "sandbox", request_body = BindRequest,
    responses((status = 204, description = "bound"), (status = 401, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn bind(State(core): State<Arc<Core>>, request: Request) -> Result<StatusCode, ApiError> {
    if core.identity().is_ok() {
        return Err(ApiError::new(ProblemKind::Conflict, "this sandbox is bound already; a second bind is refused"));
    }
    if !bearer(&request).is_some_and(|secret| core.is_bind_secret(secret)) {
        return Err(ApiError::new(ProblemKind::Unauthorized, "the bind secret is missing or wrong"));
    }
    server::has_shown_a_key(request.extensions());
    let ApiJson(request) = ApiJson::<BindRequest>::from_request(request, &()).await?;
    let deadline = request.deadline_seconds.map(Duration::from_secs);
    let counting = core.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let identity = identity_of(request)?;
        let held_bytes = counting.held_bytes(&identity);
        Ok::<_, ApiError>((identity, held_bytes))
    });
    let (identity, held_bytes) = prepared.await.map_err(ApiError::internal)??;
    core.bind(identity, deadline, held_bytes)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks a bind request and makes the user and the directory that it names.
fn identity_of(request: BindRequest) -> Result<Identity, ApiError> {
    if request.keys.is_empty() {
        return Err(ApiError::invalid("keys", "[]", "at least one key is needed"));
    }
    for (at, key) in request.keys.iter().enumerate() {
        let sound = key.reveal().len() >= SHORTEST_KEY && key.reveal().bytes().all(|byte| byte.is_ascii_graphic());
        if !sound {
            return Err(ApiError::invalid(
                format!("keys[{at}]"),
                "****",
                format!("a key has at least {SHORTEST_KEY} visible ASCII characters"),
            ));
        }
    }
    if let Some(name) = request.environment.keys().find(|name| !is_variable_name(name)) {
        return Err(ApiError::invalid("environment", name, "a variable's name is not empty and has no `=` or NUL"));
    }
    if let Some((name, _)) = request.environment.iter().find(|(_, value)| value.contains('\0')) {
        return Err(ApiError::invalid("environment", name, "the value of this variable has a NUL"));
    }
    check_limits(&request.limits)?;
    let working_dir = PathBuf::from(&request.working_dir);
    if !working_dir.is_absolute() || request.working_dir.contains('\0') {
        return Err(ApiError::invalid("working_dir", &request.working_dir, "an absolute path is needed"));
    }
    let user = match &request.user {
        None => users::current_user(),
        Some(user) => users::ensure_user(&user.name, user.uid)
            .and_then(users::usable)
            .map_err(|error| ApiError::invalid("user", &user.name, error.to_string()))?,
    };
    ensure_directory(&working_dir, &user)
        .map_err(|error| ApiError::invalid("working_dir", &request.working_dir, error.to_string()))?;
    let mut environment = if request.inherit_environment { inherited() } else { Environment::new() };
    let home = environment.get("HOME").map_or(user.home.as_path(), Path::new);
    if user.is_nameless() || (request.inherit_environment && !is_ours(home, &user)) {
        // Nobody has made a home for it, or the image's is root's.
        environment.insert("HOME".to_owned(), request.working_dir.clone());
    }
    environment.extend(request.environment);
    Ok(Identity { keys: request.keys, environment, user, working_dir, limits: request.limits })
}

/// Whether a user that cannot become another can work in a directory.
fn is_ours(home: &Path, user: &User) -> bool {
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    user.uid != rustix::process::geteuid().as_raw() || rustix::fs::access(home, all).is_ok()
}

/// The variables that we were started with. What a container engine makes of a user without a home is none.
fn inherited() -> Environment {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os()
        .filter_map(text)
        .filter(|(name, value)| (name.as_str(), value.as_str()) != ("HOME", "/"))
        .collect()
}

fn check_limits(limits: &Limits) -> Result<(), ApiError> {
    let numbers = [
        ("sessions", u64::from(limits.sessions)),
        ("execs", u64::from(limits.execs)),
        ("connections", u64::from(limits.connections)),
        ("output_bytes", limits.output_bytes),
        ("output_total_bytes", limits.output_total_bytes),
        ("request_bytes", limits.request_bytes),
        ("upload_bytes", limits.upload_bytes),
        ("archive_entries", limits.archive_entries),
        ("disk_bytes", limits.disk_bytes.unwrap_or(1)),
        ("idle_connection_seconds", limits.idle_connection_seconds),
    ];
    match numbers.into_iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(ApiError::invalid(format!("limits.{name}"), "0", "a limit is at least 1")),
        None => Ok(()),
    }
}

/// Makes the directory if it is missing; what is made belongs to `user`.
fn ensure_directory(path: &std::path::Path, user: &User) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let made = wharf_files::make_directories(path)?;
    let itself = rustix::fs::openat(&made, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchmod(&itself, Mode::from_raw_mode(0o755))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(&itself, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}
