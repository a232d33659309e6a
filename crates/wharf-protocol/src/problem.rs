use serde::{Deserialize, Serialize};

/// What went wrong, for programs. Each kind has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// A field, header or body is not acceptable; `field` and `value` say which.
    InvalidRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    /// The id is taken, or the thing is in a state that does not allow the call.
    Conflict,
    /// sandboxd has not been bound yet.
    NotBound,
    /// A request, an upload or an archive is larger than allowed.
    TooLarge,
    /// As many sessions, execs or connections as allowed exist already.
    LimitReached,
    /// The requested range lies outside the file.
    RangeNotSatisfiable,
    /// The operating system refused: permissions, no space, a read-only file system.
    OperatingSystem,
    Internal,
}

impl ProblemKind {
    /// The HTTP status that carries this kind.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RangeNotSatisfiable => 416,
            Self::OperatingSystem => 422,
            Self::LimitReached => 429,
            Self::Internal => 500,
            Self::NotBound => 503,
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid request",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not found",
            Self::MethodNotAllowed => "method not allowed",
            Self::Conflict => "conflict",
            Self::NotBound => "not bound",
            Self::TooLarge => "too large",
            Self::LimitReached => "limit reached",
            Self::RangeNotSatisfiable => "range not satisfiable",
            Self::OperatingSystem => "refused by the operating system",
            Self::Internal => "internal error",
        }
    }
}

/// An error answer: `application/problem+json` of RFC 9457 with a `kind` for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    pub kind: ProblemKind,
    pub title: String,
    pub status: u16,
    /// One sentence for the caller; never a secret, never an internal path of the host.
    pub detail: String,
    /// The field of the request that is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The refused value, cut to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Problem {
    pub const MEDIA_TYPE: &'static str = "application/problem+json";

    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            field: None,
            value: None,
        }
    }

    /// A refused field of a request: `detail` says what is expected.
    pub fn invalid(field: impl Into<String>, value: impl AsRef<str>, detail: impl Into<String>) -> Self {
        Self::about(ProblemKind::InvalidRequest, field, value, detail)
    }

    /// What went wrong with the value of a field.
    pub fn about(
        kind: ProblemKind,
        field: impl Into<String>,
        value: impl AsRef<str>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            field: Some(field.into()),
            value: Some(value.as_ref().chars().take(200).collect()),
            ..Self::new(kind, detail)
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        match (&self.field, &self.value) {
            (Some(field), Some(value)) => write!(f, " (`{field}` was `{value}`)"),
            (Some(field), None) => write!(f, " (`{field}`)"),
            (None, _) => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
