//! What one sandboxd owns, and its two states: blank and bound.
//!
//! ```text
//!            bind(secret, identity)                 SIGTERM, deadline
//!   blank ───────────────────────────▶ bound ───────────────────────▶ stopping
//! ```

use std::{
    path::PathBuf,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use subtle::ConstantTimeEq;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_protocol::{BootId, Environment, HealthStatus, Limits, ProblemKind, Secret};

use crate::{http::problem::ApiError, process::users::User};

/// Who this sandbox is; given once, by `bind` or by the command line.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Any of these opens the sandbox. Empty only in the OpenHands start mode without `SESSION_API_KEY`.
    pub keys: Vec<Secret>,
    /// For every session and exec.
    pub environment: Environment,
    pub user: User,
    /// Absolute, and existed when the identity was given.
    pub working_dir: PathBuf,
    pub limits: Limits,
}

/// The state behind all requests.
#[derive(Debug)]
pub struct Core {
    boot_id: BootId,
    started: Instant,
    identity: OnceLock<Identity>,
    bind_secret: Mutex<Option<Secret>>,
    /// Milliseconds after `started` when something was last asked for.
    last_activity: AtomicU64,
    /// Cancelled when sandboxd shall end.
    pub shutdown: CancellationToken,
    /// Every task that outlives a request.
    pub tasks: TaskTracker,
}

impl Core {
    /// A blank core; without a bind secret nobody can bind it but [`Core::set_identity`].
    pub fn new(bind_secret: Option<Secret>, shutdown: CancellationToken) -> Self {
        Self {
            boot_id: new_boot_id(),
            started: Instant::now(),
            identity: OnceLock::new(),
            bind_secret: Mutex::new(bind_secret),
            last_activity: AtomicU64::new(0),
            shutdown,
            tasks: TaskTracker::new(),
        }
    }

    pub fn boot_id(&self) -> &BootId {
        &self.boot_id
    }

    pub fn status(&self) -> HealthStatus {
        if self.shutdown.is_cancelled() {
            HealthStatus::Stopping
        } else if self.identity.get().is_some() {
            HealthStatus::Ready
        } else {
            HealthStatus::Blank
        }
    }

    /// The identity of a bound sandbox.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::NotBound`] before `bind`.
    pub fn identity(&self) -> Result<&Identity, ApiError> {
        self.identity.get().ok_or_else(|| {
            ApiError::new(ProblemKind::NotBound, "this sandbox is blank: bind it first with POST /v1/bind")
        })
    }

    /// Whether `presented` is the bind secret, in constant time. `false` when there is none (any more).
    pub fn is_bind_secret(&self, presented: &str) -> bool {
        let secret = self.bind_secret.lock().unwrap_or_else(PoisonError::into_inner);
        secret.as_ref().is_some_and(|secret| equal_in_constant_time(secret.reveal(), presented))
    }

    /// Makes a blank sandbox bound. Safe to race: one caller wins.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if it is bound already.
    pub fn set_identity(&self, identity: Identity) -> Result<(), ApiError> {
        self.identity.set(identity).map_err(|_| {
            ApiError::new(ProblemKind::Conflict, "this sandbox is bound already; a second bind is refused")
        })?;
        self.bind_secret.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    pub fn uptime(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// Notes that somebody uses the sandbox.
    pub fn touch(&self) {
        self.last_activity.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long nobody has used the sandbox.
    pub fn idle(&self) -> std::time::Duration {
        let last = std::time::Duration::from_millis(self.last_activity.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

impl Identity {
    /// Whether `presented` is one of the keys; every key is compared, each in constant time.
    pub fn is_key(&self, presented: &str) -> bool {
        self.keys.iter().fold(false, |found, key| found | equal_in_constant_time(key.reveal(), presented))
    }
}

fn equal_in_constant_time(expected: &str, presented: &str) -> bool {
    expected.as_bytes().ct_eq(presented.as_bytes()).into()
}

/// Sixteen random hexadecimal digits per 8 bytes, from the kernel.
pub fn random_hex(bytes: usize) -> String {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).expect("the kernel gives random bytes on every Linux since 3.17");
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn new_boot_id() -> BootId {
    random_hex(8).parse().expect("hexadecimal digits are an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_secret_opens_once() {
        let core = Core::new(Some(Secret::new("0123456789abcdef")), CancellationToken::new());
        assert!(!core.is_bind_secret("0123456789abcdeF"));
        assert!(core.is_bind_secret("0123456789abcdef"));
        assert_eq!(core.status(), HealthStatus::Blank);
        let identity = Identity {
            keys: vec![Secret::new("k")],
            environment: Environment::new(),
            user: User {
                name: "root".into(),
                uid: 0,
                gid: 0,
                groups: vec![],
                home: "/root".into(),
                shell: "/bin/sh".into(),
            },
            working_dir: "/".into(),
            limits: Limits::default(),
        };
        core.set_identity(identity.clone()).unwrap();
        assert_eq!(core.set_identity(identity).unwrap_err().problem().kind, ProblemKind::Conflict);
        assert!(!core.is_bind_secret("0123456789abcdef"));
        assert!(core.identity().unwrap().is_key("k"));
        assert!(!core.identity().unwrap().is_key("kk"));
    }
}
