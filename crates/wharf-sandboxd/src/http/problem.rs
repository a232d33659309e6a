//! Errors at the native edge: one text for the caller, one for the log.

use std::fmt;

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use wharf_protocol::{Problem, ProblemKind};

/// An error answer of the native API.
#[derive(Debug)]
pub struct ApiError {
    problem: Box<Problem>,
    /// What the caller is not told.
    cause: Option<String>,
}

impl ApiError {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Problem::new(kind, detail).into()
    }

    /// A refused field: `detail` says what is expected of it.
    pub fn invalid(field: impl Into<String>, value: impl AsRef<str>, detail: impl Into<String>) -> Self {
        Problem::invalid(field, value, detail).into()
    }

    /// A failure of ours: the caller learns only that it happened, the log learns why.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self {
            problem: Box::new(Problem::new(
                ProblemKind::Internal,
                "something failed inside sandboxd; its log says what",
            )),
            cause: Some(cause.to_string()),
        }
    }

    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self { problem: Box::new(problem), cause: None }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Some(cause) = &self.cause {
            tracing::error!(cause, "request failed");
        }
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&*self.problem).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], body).into_response()
    }
}

/// A JSON body; what is wrong with it is answered as a [`Problem`] that names the field.
#[derive(Debug, Clone, Copy)]
pub struct ApiJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(ApiError::invalid(
                "content-type",
                "",
                "the body must be JSON and say so: `Content-Type: application/json`",
            )),
            Err(JsonRejection::BytesRejection(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::new(ProblemKind::TooLarge, "the request body is larger than allowed"))
            }
            Err(rejection) => Err(ApiError::new(ProblemKind::InvalidRequest, rejection.body_text())),
        }
    }
}

/// A query string; what is wrong with it is answered as a [`Problem`].
#[derive(Debug, Clone, Copy)]
pub struct ApiQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::new(ProblemKind::InvalidRequest, rejection.body_text())),
        }
    }
}

/// A path parameter that is an id; anything else is answered as a [`Problem`].
#[derive(Debug, Clone, Copy)]
pub struct ApiPath<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::new(ProblemKind::InvalidRequest, rejection.body_text())),
        }
    }
}
