use serde::{Deserialize, Serialize};

use crate::{BootId, Limits};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Started and waiting for `bind`.
    Blank,
    Ready,
    /// Told to end; new work is refused.
    Stopping,
}

/// The only answer that needs no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    pub status: HealthStatus,
    pub boot_id: BootId,
    pub version: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Info {
    pub version: String,
    pub boot_id: BootId,
    pub status: HealthStatus,
    pub uptime_seconds: f64,
    /// Seconds since the last request that did something.
    pub idle_seconds: f64,
    pub user: String,
    pub working_dir: String,
    pub sessions: u32,
    pub execs: u32,
    pub limits: Limits,
    /// Resident memory of sandboxd itself, without what runs in the sandbox.
    pub resident_bytes: u64,
}
