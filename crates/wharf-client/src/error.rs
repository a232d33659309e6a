use std::{io, time::Duration};

use http::StatusCode;
use wharf_protocol::{Problem, ProblemKind};

/// What went wrong, for callers who act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nobody answers, or the connection broke.
    Unreachable,
    TimedOut,
    /// The sandbox understood and refused; the kind says why.
    Refused(ProblemKind),
    /// What came back is no answer of a sandbox.
    BadAnswer,
    /// The request itself could not be made.
    BadRequest,
}

/// Why a call to a sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("could not connect to the sandbox at `{route}`")]
    Connect { route: String, source: io::Error },
    #[error("the connection to the sandbox broke")]
    Connection {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the connection to the sandbox broke, and could not be made again for {} s", after.as_secs())]
    Lost {
        after: Duration,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the sandbox did not answer within {} s", after.as_secs())]
    TimedOut { after: Duration },
    #[error("the sandbox has sent nothing for {} s", after.as_secs())]
    Stalled { after: Duration },
    /// Somebody on the way, such as a service mesh.
    #[error("the sandbox cannot be reached: {status}")]
    Gateway { status: StatusCode },
    #[error("{0}")]
    Refused(Box<Problem>),
    #[error("the sandbox gave no proper answer: {reason}")]
    Answer { reason: String },
    #[error("the request could not be made: {reason}")]
    Request { reason: String },
    #[error("could not read or write locally")]
    Local(#[source] io::Error),
}

impl ClientError {
    pub(crate) fn connection(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Connection { source: source.into() }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } | Self::Connection { .. } | Self::Lost { .. } | Self::Gateway { .. } => {
                ErrorKind::Unreachable
            }
            Self::TimedOut { .. } | Self::Stalled { .. } => ErrorKind::TimedOut,
            Self::Refused(problem) => ErrorKind::Refused(problem.kind),
            Self::Answer { .. } => ErrorKind::BadAnswer,
            Self::Request { .. } | Self::Local(_) => ErrorKind::BadRequest,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self.kind() {
            ErrorKind::Unreachable | ErrorKind::TimedOut => true,
            ErrorKind::Refused(kind) => matches!(kind, ProblemKind::LimitReached | ProblemKind::NotBound),
            ErrorKind::BadAnswer | ErrorKind::BadRequest => false,
        }
    }

    /// Whether the sandbox may have done what was asked, though no answer tells so.
    pub(crate) fn may_have_been_done(&self) -> bool {
        matches!(self, Self::Connection { .. } | Self::TimedOut { .. } | Self::Stalled { .. } | Self::Gateway { .. })
    }

    /// The sandbox's own words, if it answered.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }
}
