//! Either of the two places, for those who do not care which.

use std::path::PathBuf;

use serde::Serialize;
use wharf_protocol::{IdError, SandboxId, SandboxName, SandboxSpec};

use crate::{
    Collected, Lifetime, Status,
    kubernetes::{Found, KubernetesError, KubernetesRuntime, Report},
    local::{HeldBounds, LocalError, LocalRuntime, Record, Spare, Wall, read_end},
};

/// How much of sandboxd's log is given: its end.
const SHOWN_LOG_BYTES: u64 = 1 << 20;

/// Where sandboxes live.
#[derive(Debug, Clone)]
pub enum Runtime {
    Local(LocalRuntime),
    Kubernetes(Box<KubernetesRuntime>),
}

/// Why something could not be done with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Kubernetes(#[from] Box<KubernetesError>),
    /// On this machine a sandbox's name is a file's.
    #[error(transparent)]
    Name(#[from] IdError),
    #[error(
        "`--image` is not valid: a local sandbox has this machine's files; images are for `--runtime kubernetes` (it was `{0}`)"
    )]
    Image(String),
    #[error("sandbox `{0}` is suspended or has just ended")]
    NoRoute(SandboxId),
}

impl From<KubernetesError> for RuntimeError {
    fn from(error: KubernetesError) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

impl RuntimeError {
    /// The sandbox has ended, is suspended or is not ready, and why.
    pub fn not_running(&self) -> Option<&str> {
        match self {
            Self::Local(LocalError::NotRunning { reason, .. }) => Some(reason),
            Self::Kubernetes(error) => match error.as_ref() {
                KubernetesError::NotRunning { reason, .. } => Some(reason),
                KubernetesError::Deleting(_) => Some("it is being deleted"),
                _ => None,
            },
            Self::Local(_) | Self::Name(_) | Self::Image(_) | Self::NoRoute(_) => None,
        }
    }
}

/// One sandbox as it was found.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: SandboxId,
    pub status: Status,
    /// Seconds since the Unix epoch.
    pub created_at: f64,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Local(Box<Record>),
    Kubernetes(Box<Found>),
}

impl From<Record> for Sandbox {
    fn from(record: Record) -> Self {
        let (id, status, created_at) = (record.name.clone().into(), record.status(), record.created_at);
        Self { id, status, created_at, place: Place::Local(Box::new(record)) }
    }
}

impl From<Found> for Sandbox {
    fn from(found: Found) -> Self {
        let created_at = found.created_at.as_millisecond() as f64 / 1000.0;
        Self {
            id: found.id.clone(),
            status: found.status.clone(),
            created_at,
            place: Place::Kubernetes(Box::new(found)),
        }
    }
}

impl Sandbox {
    /// The way into it.
    ///
    /// # Errors
    ///
    /// When it does not run, or its key cannot be read, for instance by another user.
    pub fn client(&self) -> Result<wharf_client::Sandbox, RuntimeError> {
        match &self.place {
            Place::Local(record) => Ok(wharf_client::Sandbox::new(record.route(), record.key()?)),
            Place::Kubernetes(found) => found.sandbox().ok_or_else(|| RuntimeError::NoRoute(self.id.clone())),
        }
    }

    /// Walls that are missing, and what they mean; only a local sandbox tells.
    pub fn walls(&self) -> &[Wall] {
        match &self.place {
            Place::Local(record) => &record.walls,
            Place::Kubernetes(_) => &[],
        }
    }

    /// What of its mounts does not work as its maker may think; only a local sandbox tells.
    pub fn warnings(&self) -> &[String] {
        match &self.place {
            Place::Local(record) => &record.warnings,
            Place::Kubernetes(_) => &[],
        }
    }

    /// Where its files are, in few words.
    pub fn workspace(&self) -> String {
        match &self.place {
            Place::Local(record) => {
                let mounted = || record.spec.mounts.first().map(|mount| mount.source.clone()).unwrap_or_default();
                record.workspace.as_ref().map_or_else(mounted, |path| path.display().to_string())
            }
            Place::Kubernetes(found) => match found.anchor.objects.contains_key(&crate::kubernetes::Part::Workspace) {
                true => format!("pvc/{}", found.names.pvc),
                false => "none that stays".to_owned(),
            },
        }
    }

    /// All that a person or a program may know of it.
    pub fn described(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Local<'a> {
            pid: Option<i32>,
            socket: &'a PathBuf,
            workspace: Option<&'a PathBuf>,
            walls: &'a [Wall],
            bounds: HeldBounds,
            protected: &'a [String],
            warnings: &'a [String],
            notes: &'a [String],
            spec: serde_json::Value,
        }
        let mut all = serde_json::json!({ "name": self.id });
        let mut add = |more: serde_json::Value| {
            if let (Some(all), serde_json::Value::Object(more)) = (all.as_object_mut(), more) {
                all.extend(more);
            }
        };
        add(serde_json::json!(self.status));
        add(serde_json::json!({ "created_at": self.created_at }));
        match &self.place {
            Place::Local(record) => add(serde_json::json!(Local {
                pid: record.pid(),
                socket: &record.socket,
                workspace: record.workspace.as_ref(),
                walls: &record.walls,
                bounds: record.held_bounds(),
                protected: &record.protected,
                warnings: &record.warnings,
                notes: &record.notes,
                spec: shown_spec(record),
            })),
            Place::Kubernetes(found) => add(found.described()),
        }
        all
    }
}

impl Runtime {
    /// Makes a sandbox and waits until sandboxd answers in it. `report` hears how far it is, where that takes a while. When
    /// `interrupted` ends first, what this call has made is taken back: `None`.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`]; nothing is left behind then.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may leave a sandbox: [`Runtime::remove`] or [`Runtime::collect_garbage`] removes it.
    pub async fn create(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        lifetime: Lifetime,
        report: Report<'_>,
        interrupted: impl Future<Output = ()> + Send,
    ) -> Result<Option<Sandbox>, RuntimeError> {
        match self {
            Self::Local(local) => {
                if let Some(image) = &spec.image {
                    return Err(RuntimeError::Image(image.clone()));
                }
                let name = local_name(id)?;
                tokio::select! {
                    // Who has the name is known before anything else happens.
                    biased;
                    made = local.create(name.clone(), spec, lifetime) => return Ok(Some(made?.into())),
                    () = interrupted => {}
                }
                blocking(local, move |local| local.remove(&name)).await?;
                Ok(None)
            }
            Self::Kubernetes(kubernetes) => {
                match kubernetes.create_unless(id, spec, lifetime, report, interrupted).await {
                    Err(KubernetesError::Interrupted(_)) => Ok(None),
                    made => Ok(Some(made?.into())),
                }
            }
        }
    }

    /// The sandbox of this id.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn get(&self, id: &SandboxId) -> Result<Sandbox, RuntimeError> {
        match self {
            Self::Local(local) => Ok(local.get(&local_name(id)?)?.into()),
            Self::Kubernetes(kubernetes) => Ok(kubernetes.get(id).await?.into()),
        }
    }

    /// The sandbox of this id, if it is usable.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not run: [`RuntimeError::not_running`].
    pub async fn get_ready(&self, id: &SandboxId, report: Report<'_>) -> Result<Sandbox, RuntimeError> {
        match self {
            Self::Local(local) => Ok(local.get_ready(&local_name(id)?)?.into()),
            Self::Kubernetes(kubernetes) => Ok(kubernetes.get_ready(id, report).await?.into()),
        }
    }

    /// Now, by the clock that its sandboxes' ages and leases go by, in seconds since the Unix epoch.
    pub fn now(&self) -> f64 {
        let now = match self {
            Self::Local(_) => jiff::Timestamp::now(),
            Self::Kubernetes(kubernetes) => kubernetes.cluster().now(),
        };
        now.as_millisecond() as f64 / 1000.0
    }

    /// All sandboxes, oldest first.
    ///
    /// # Errors
    ///
    /// When the cluster does not tell.
    pub async fn list(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        match self {
            Self::Local(local) => Ok(local.list().into_iter().map(Sandbox::from).collect()),
            Self::Kubernetes(kubernetes) => Ok(kubernetes.list().await?.into_iter().map(Sandbox::from).collect()),
        }
    }

    /// Ends what runs in a sandbox and keeps its workspace.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not end.
    pub async fn suspend(&self, id: &SandboxId, report: Report<'_>) -> Result<(), RuntimeError> {
        match self {
            Self::Local(local) => {
                let name = local_name(id)?;
                blocking(local, move |local| local.suspend(&name)).await
            }
            Self::Kubernetes(kubernetes) => Ok(kubernetes.suspend(id, report).await?),
        }
    }

    /// Starts a suspended or ended sandbox again, with its workspace and its key.
    ///
    /// # Errors
    ///
    /// As [`Runtime::create`].
    pub async fn resume(&self, id: &SandboxId, report: Report<'_>) -> Result<Sandbox, RuntimeError> {
        match self {
            Self::Local(local) => Ok(local.resume(&local_name(id)?).await?.into()),
            Self::Kubernetes(kubernetes) => Ok(kubernetes.resume(id, report).await?.into()),
        }
    }

    /// Ends a sandbox and removes all that belongs to it; `false` if there was nothing.
    ///
    /// # Errors
    ///
    /// What could not be removed.
    pub async fn remove(&self, id: &SandboxId, report: Report<'_>) -> Result<bool, RuntimeError> {
        match self {
            Self::Local(local) => {
                let name = local_name(id)?;
                blocking(local, move |local| local.remove(&name)).await
            }
            Self::Kubernetes(kubernetes) => Ok(kubernetes.remove(id, report).await?),
        }
    }

    /// Ends a throw-away sandbox; what is left of it then goes by itself.
    ///
    /// # Errors
    ///
    /// What could not be removed.
    pub async fn discard(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        match self {
            Self::Local(_) => self.remove(id, &|_| {}).await.map(drop),
            Self::Kubernetes(kubernetes) => Ok(kubernetes.discard(id).await?),
        }
    }

    /// Removes what programs that were killed left half made.
    ///
    /// # Errors
    ///
    /// When nobody can tell what there is.
    pub async fn collect_garbage(&self, report: Report<'_>) -> Result<Collected<RuntimeError>, RuntimeError> {
        self.collect(Spare::Nothing, report).await
    }

    /// The same, but for what the next sandbox would have to make again.
    ///
    /// # Errors
    ///
    /// As [`Runtime::collect_garbage`].
    pub async fn collect_garbage_before_another(
        &self,
        report: Report<'_>,
    ) -> Result<Collected<RuntimeError>, RuntimeError> {
        self.collect(Spare::Recent, report).await
    }

    async fn collect(&self, spare: Spare, report: Report<'_>) -> Result<Collected<RuntimeError>, RuntimeError> {
        Ok(match self {
            Self::Local(local) => blocking(local, move |local| Ok(local.collect_garbage(spare))).await?.err_into(),
            Self::Kubernetes(kubernetes) => kubernetes.collect_garbage(report).await?.err_into(),
        })
    }

    /// Says that a throw-away sandbox is needed, for as long as this is polled.
    pub async fn hold(&self, id: &SandboxId) {
        match self {
            // Its record names this process.
            Self::Local(_) => std::future::pending().await,
            Self::Kubernetes(kubernetes) => kubernetes.renew_lease(id).await,
        }
    }

    /// The end of sandboxd's own log.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn log(&self, id: &SandboxId) -> Result<Vec<u8>, RuntimeError> {
        match self {
            Self::Local(local) => {
                let path = local.get(&local_name(id)?)?.log();
                let read = read_end(&path, SHOWN_LOG_BYTES).map(String::into_bytes);
                Ok(read.map_err(|source| LocalError::State { action: "read", path, source })?)
            }
            Self::Kubernetes(kubernetes) => Ok(kubernetes.log(id).await?.into_bytes()),
        }
    }
}

fn local_name(id: &SandboxId) -> Result<SandboxName, IdError> {
    id.as_str().parse()
}

/// What a sandbox was asked to be, with its variables by name: a value may be a secret.
fn shown_spec(record: &Record) -> serde_json::Value {
    let mut spec = serde_json::json!(record.spec);
    spec["environment"] = serde_json::json!(record.variables);
    spec
}

/// Ending processes and removing files block.
async fn blocking<T: Send + 'static>(
    local: &LocalRuntime,
    work: impl FnOnce(&LocalRuntime) -> Result<T, LocalError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let local = local.clone();
    let done = tokio::task::spawn_blocking(move || work(&local)).await;
    Ok(done.map_err(|error| LocalError::State {
        action: "end what is in",
        path: PathBuf::from("sandboxes"),
        source: std::io::Error::other(error),
    })??)
}
