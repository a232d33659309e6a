//! What one sandboxd owns, and its two states: blank and bound.
//!
//! ```text
//!            bind(secret, identity)                 SIGTERM, deadline
//!   blank ───────────────────────────▶ bound ───────────────────────▶ stopping
//! ```

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_protocol::{BootId, Environment, HealthStatus, Limits, ProblemKind, Secret, SecretDigest};

use crate::{
    disk_use,
    exec::Execs,
    http::problem::ApiError,
    output_log::OutputBudget,
    process::{
        tree,
        users::{self, User},
    },
    session::Sessions,
};

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

/// What a sandbox has once it is bound.
#[derive(Debug)]
pub struct Bound {
    pub identity: Identity,
    pub sessions: Sessions,
    pub execs: Execs,
    /// What the logs of both may keep together.
    pub output: OutputBudget,
}

impl Bound {
    /// Whom, with which variables and where a session or an exec runs, from what its request says.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::InvalidRequest`] that names the field.
    pub fn placed(
        &self,
        user: Option<&str>,
        environment: Environment,
        working_dir: Option<&str>,
    ) -> Result<(User, Environment, PathBuf), ApiError> {
        let user = match user {
            None => self.identity.user.clone(),
            Some(name) => {
                let user = users::find_user(name)
                    .ok_or_else(|| ApiError::invalid("user", name, "there is no such user in this sandbox"))?;
                users::usable(user).map_err(|error| ApiError::invalid("user", name, error.to_string()))?
            }
        };
        let mut all = self.identity.environment.clone();
        for (name, value) in environment {
            if !is_variable_name(&name) || value.contains('\0') {
                return Err(ApiError::invalid(
                    "environment",
                    name,
                    "a name is not empty and has no `=`; no text has a NUL",
                ));
            }
            all.insert(name, value);
        }
        let working_dir = match working_dir {
            None => self.identity.working_dir.clone(),
            Some(path) if path.starts_with('/') && !path.contains('\0') => PathBuf::from(path),
            Some(path) => return Err(ApiError::invalid("working_dir", path, "an absolute path is needed")),
        };
        if !working_dir.is_dir() {
            let shown = working_dir.display().to_string();
            return Err(ApiError::invalid("working_dir", shown, "there is no such directory in this sandbox"));
        }
        Ok((user, all, working_dir))
    }
}

/// The state behind all requests.
#[derive(Debug)]
pub struct Core {
    boot_id: BootId,
    started: Instant,
    bound: OnceLock<Bound>,
    bind_secret: Mutex<Option<SecretDigest>>,
    /// Milliseconds after `started` when something was last asked for.
    last_activity: AtomicU64,
    /// Whose files count against the limit on disk, if not those of the working directory.
    counted: Vec<PathBuf>,
    /// Cancelled when sandboxd shall end.
    pub shutdown: CancellationToken,
    /// Cancelled when all that runs was ended: who still waits for its output has a moment to hear of it.
    pub over: CancellationToken,
    /// Every task that outlives a request; `app` waits for them.
    pub tasks: TaskTracker,
}

impl Core {
    /// A blank core; without a bind secret only [`Core::bind`] gives it an identity.
    pub fn new(bind_secret: Option<SecretDigest>, shutdown: CancellationToken) -> Self {
        Self {
            boot_id: new_boot_id(),
            started: Instant::now(),
            bound: OnceLock::new(),
            bind_secret: Mutex::new(bind_secret),
            last_activity: AtomicU64::new(0),
            counted: Vec::new(),
            shutdown,
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Lets the files below these directories count against the limit on disk, instead of those of the working directory.
    #[must_use]
    pub fn counting(mut self, directories: Vec<PathBuf>) -> Self {
        self.counted = directories;
        self
    }

    pub fn boot_id(&self) -> &BootId {
        &self.boot_id
    }

    pub fn status(&self) -> HealthStatus {
        if self.shutdown.is_cancelled() {
            HealthStatus::Stopping
        } else if self.bound.get().is_some() {
            HealthStatus::Ready
        } else {
            HealthStatus::Blank
        }
    }

    /// What a bound sandbox has.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::NotBound`] before `bind`.
    pub fn bound(&self) -> Result<&Bound, ApiError> {
        self.bound.get().ok_or_else(|| {
            ApiError::new(ProblemKind::NotBound, "this sandbox is blank: bind it first with POST /v1/bind")
        })
    }

    /// The identity of a bound sandbox.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::NotBound`] before `bind`.
    pub fn identity(&self) -> Result<&Identity, ApiError> {
        self.bound().map(|bound| &bound.identity)
    }

    /// What may be used; the defaults before `bind`.
    pub fn limits(&self) -> Limits {
        self.bound.get().map_or_else(Limits::default, |bound| bound.identity.limits)
    }

    /// Whether `presented` is the bind secret, in constant time. `false` when there is none (any more).
    pub fn is_bind_secret(&self, presented: &str) -> bool {
        let secret = self.bind_secret.lock().unwrap_or_else(PoisonError::into_inner);
        secret.is_some_and(|digest| digest.as_bytes().ct_eq(Secret::new(presented).digest().as_bytes()).into())
    }

    /// What a sandbox that is to be of this identity holds on disk already, if that is bounded. It may take a while.
    pub fn held_bytes(&self, identity: &Identity) -> u64 {
        identity.limits.disk_bytes.map_or(0, |_| disk_use::used_bytes(&self.counted(&identity.working_dir)))
    }

    fn counted(&self, working_dir: &Path) -> Vec<PathBuf> {
        if self.counted.is_empty() { vec![working_dir.to_owned()] } else { self.counted.clone() }
    }

    /// Makes a blank sandbox bound that holds so many bytes; after `deadline` it ends by itself. Safe to race: one caller wins.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if it is bound already.
    pub fn bind(&self, identity: Identity, deadline: Option<Duration>, held_bytes: u64) -> Result<(), ApiError> {
        let (limits, working_dir) = (identity.limits, identity.working_dir.clone());
        let output = OutputBudget::new(usize::try_from(limits.output_total_bytes).unwrap_or(usize::MAX));
        let bound = Bound {
            sessions: Sessions::new(identity.limits.sessions as usize),
            execs: Execs::new(identity.limits.execs as usize, identity.output_bytes(), output.clone()),
            output,
            identity,
        };
        self.bound.set(bound).map_err(|_| {
            ApiError::new(ProblemKind::Conflict, "this sandbox is bound already; a second bind is refused")
        })?;
        self.bind_secret.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(deadline) = deadline {
            let passed = async move {
                tokio::time::sleep(deadline).await;
                tracing::error!("the sandbox's deadline has passed: {} s", deadline.as_secs());
            };
            self.end_after(passed, false);
        }
        if let Some(limit) = limits.disk_bytes {
            let counted = self.counted(&working_dir);
            let exceeded = async move {
                let shown = |path: &PathBuf| {
                    if *path == working_dir { "the workspace" } else { "what was changed in the system" }
                };
                let shown = counted.iter().map(shown).collect::<Vec<_>>().join(" and ");
                let verb = if counted.len() == 1 { "takes" } else { "take" };
                let used = disk_use::exceeded(counted, limit, held_bytes).await;
                tracing::error!("{shown} {verb} {used} bytes on disk, more than the limit of {limit}");
            };
            // Who fills the disk would fill more of it meanwhile.
            self.end_after(exceeded, true);
        }
        Ok(())
    }

    /// Ends the sandbox once `condition` is done, which says why in the log; what runs is killed `at_once`, or first
    /// asked to end.
    fn end_after(&self, condition: impl Future<Output = ()> + Send + 'static, at_once: bool) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            if shutdown.run_until_cancelled(condition).await.is_some() {
                shutdown.cancel();
                if at_once {
                    tree::end_descendants(Duration::ZERO).await;
                }
            }
        });
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes that somebody uses the sandbox.
    pub fn touch(&self) {
        self.last_activity.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How long nobody has used the sandbox.
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_activity.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

impl Identity {
    /// Bytes of latest output that a session or an exec keeps.
    pub fn output_bytes(&self) -> usize {
        usize::try_from(self.limits.output_bytes).unwrap_or(usize::MAX)
    }

    /// Whether `presented` is one of the keys; every key is compared, each in constant time.
    pub fn is_key(&self, presented: &str) -> bool {
        self.keys.iter().fold(false, |found, key| found | equal_in_constant_time(key.reveal(), presented))
    }
}

/// Whether the operating system takes this as the name of a variable.
pub(crate) fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
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
        let core = Core::new(Some(Secret::new("0123456789abcdef").digest()), CancellationToken::new());
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
        core.bind(identity.clone(), None, 0).unwrap();
        assert_eq!(core.bind(identity, None, 0).unwrap_err().problem().kind, ProblemKind::Conflict);
        assert!(!core.is_bind_secret("0123456789abcdef"));
        assert!(core.identity().unwrap().is_key("k"));
        assert!(!core.identity().unwrap().is_key("kk"));
    }
}
