//! Our own API, `/v1`: JSON, problems as errors, output as streams of frames.

mod auth;
pub(crate) mod bind;
mod execs;
mod files;
#[cfg(test)]
mod openapi;
mod sessions;
mod stream;

use std::sync::Arc;

use axum::{Json, Router, extract::State, middleware, response::IntoResponse, routing::get};
use http::header;
use wharf_protocol::{Health, Info, ProblemKind};

use super::{idle::bound_body, problem::ApiError};
use crate::core::Core;

/// All routes below `/v1`. Every one but health and bind needs a key.
pub fn router(core: Arc<Core>) -> Router {
    let keyed = Router::new()
        .route("/v1/info", get(info))
        .route("/v1/openapi.json", get(openapi_json))
        .merge(sessions::router())
        .merge(execs::router())
        .merge(files::router())
        .layer(middleware::map_request_with_state(core.clone(), bound_body))
        .merge(execs::input_router())
        .layer(middleware::from_fn_with_state(core.clone(), auth::require_key));
    Router::new()
        .route("/v1/health", get(health))
        .merge(bind::router())
        .merge(keyed)
        .route("/v1/{*rest}", axum::routing::any(unknown))
        .method_not_allowed_fallback(wrong_method)
        .with_state(core)
}

/// Whether the sandbox is blank, ready or stopping. Needs no key.
#[utoipa::path(get, path = "/v1/health", tag = "sandbox", responses((status = 200, body = Health)), security(()))]
async fn health(State(core): State<Arc<Core>>) -> Json<Health> {
    Json(Health {
        status: core.status(),
        boot_id: core.boot_id().clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// What the sandbox is and how much it is used.
#[utoipa::path(get, path = "/v1/info", tag = "sandbox", responses((status = 200, body = Info)))]
async fn info(State(core): State<Arc<Core>>) -> Result<Json<Info>, ApiError> {
    let bound = core.bound()?;
    Ok(Json(Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: core.boot_id().clone(),
        status: core.status(),
        uptime_seconds: core.uptime().as_secs_f64(),
        idle_seconds: core.idle().as_secs_f64(),
        user: bound.identity.user.name.clone(),
        working_dir: bound.identity.working_dir.display().to_string(),
        sessions: bound.sessions.count() as u32,
        execs: bound.execs.list().len() as u32,
        limits: bound.identity.limits,
        resident_bytes: resident_bytes(),
    }))
}

/// The OpenAPI 3.1 description of these routes.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "sandbox", responses((status = 200, description = "OpenAPI 3.1")))]
async fn openapi_json() -> impl IntoResponse {
    // A test compares the file with the handlers; making it anew here would double their code.
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../../openapi.json"))
}

async fn unknown(uri: http::Uri) -> ApiError {
    ApiError::new(ProblemKind::NotFound, format!("there is nothing at `{}`", uri.path()))
}

async fn wrong_method(method: http::Method, uri: http::Uri) -> ApiError {
    ApiError::new(ProblemKind::MethodNotAllowed, format!("`{}` does not take {method}", uri.path()))
}

/// Resident memory of this process; 0 where `/proc` is missing.
pub(crate) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests;
