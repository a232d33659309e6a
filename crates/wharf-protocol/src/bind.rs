use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A key or another secret: its `Debug` is `****`, and it is compared in constant time by whoever checks it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself. Not for logs, argv or error texts.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// The user that sessions and execs run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    pub name: String,
    /// The uid to create the user with if it does not exist. An existing user keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// What one sandbox may use of sandboxd. Every value has a default; zero is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at the same time.
    pub sessions: u32,
    /// Execs at the same time, running or finished and not yet removed.
    pub execs: u32,
    /// Connections at the same time, over all listeners.
    pub connections: u32,
    /// Bytes of latest output that a session or an exec keeps.
    pub output_bytes: u64,
    /// Bytes of a JSON request body.
    pub request_bytes: u64,
    /// Bytes of one uploaded file or archive, and of all that an archive unpacks to.
    pub upload_bytes: u64,
    /// Entries of one uploaded archive.
    pub archive_entries: u64,
    /// Bytes that all files below the working directory take on disk, each at least 4096. More ends the sandbox within
    /// about a second. Absent: not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Seconds that a connection may stay open without a request.
    pub idle_connection_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 64,
            execs: 256,
            connections: 512,
            output_bytes: 16 << 20,
            request_bytes: 64 << 20,
            upload_bytes: 16 << 30,
            archive_entries: 1_000_000,
            disk_bytes: None,
            idle_connection_seconds: 600,
        }
    }
}

/// Gives a blank sandboxd its identity. Accepted once, with the bind secret as the bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindRequest {
    /// The keys that open this sandbox. At least one; each at least 16 characters.
    pub keys: Vec<Secret>,
    /// Variables for every session and exec.
    #[serde(default)]
    pub environment: Environment,
    /// Whether the variables that sandboxd was started with, such as an image's, come before those of `environment`.
    #[serde(default)]
    pub inherit_environment: bool,
    /// Whom sessions and execs run as; created if unknown. Absent: sandboxd's own user.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Absolute path where sessions and execs start; created if missing.
    pub working_dir: String,
    #[serde(default)]
    pub limits: Limits,
    /// Seconds from now after which sandboxd ends everything and exits. Absent: never.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
}
