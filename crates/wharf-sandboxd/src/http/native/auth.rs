//! Who may call.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::header;
use wharf_protocol::ProblemKind;

use crate::{
    core::Core,
    http::{problem::ApiError, server},
};

/// Lets a request pass that carries one of the sandbox's keys as its bearer token.
pub(super) async fn require_key(
    State(core): State<Arc<Core>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let identity = core.identity()?;
    let presented = bearer(&request).ok_or_else(|| {
        ApiError::new(ProblemKind::Unauthorized, "a key is needed: send the header `Authorization: Bearer KEY`")
    })?;
    if !identity.is_key(presented) {
        return Err(ApiError::new(ProblemKind::Unauthorized, "the key is not one of this sandbox"));
    }
    core.touch();
    server::has_shown_a_key(request.extensions());
    Ok(next.run(request).await)
}

/// The bearer token of a request.
pub(super) fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
