//! Sandboxes in a Kubernetes cluster: one pod each, with its claim, Service, policy and Ingress, all owned by one anchor.
//!
//! `manifest`, `names`, `observe`, `plan`, `reason`, `anchor` and `settings` are pure; only `apply` writes. Nothing is kept
//! here: whoever comes next finds everything in the cluster.

mod anchor;
mod apply;
mod clock;
mod cluster;
pub mod contract;
pub mod install;
mod manifest;
#[cfg(test)]
mod mock_server;
mod names;
mod observe;
mod operation;
#[cfg(test)]
mod operation_tests;
mod part;
mod plan;
#[cfg(test)]
mod plan_tests;
mod port_forward;
mod reason;
mod route;
pub mod settings;
mod shape;

use std::{collections::BTreeMap, sync::OnceLock, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use wharf_client::Sandbox;
use wharf_protocol::{BindRequest, Environment, SandboxId, SandboxSpec, Secret};

use self::{
    anchor::NewAnchor,
    manifest::{container_name, locked, whose},
    operation::{Aim, Operation},
    reason::passed_deadline,
    settings::SettingsError,
    shape::shaped,
};
pub use self::{
    anchor::{Anchor, AnchorError, Wanted},
    cluster::{Access, ApiError, ApiErrorKind, Cluster, ClusterError},
    manifest::{
        APP_PORTS, CODE_PORT, Carried, FIELD_MANAGER, Objects, Owner, Ownership, Request, SERVER_PORT, Workspace,
        labels, objects,
    },
    names::Names,
    observe::{Observed, Seen},
    operation::Report,
    part::Part,
    plan::{Desired, Goal, New, Next, Plan, Refusal, Step, plan},
    reason::{Failure, FailureKind, Stage, Verdict, Waiting, judge},
    settings::{Profile, Settings},
};
use crate::{Collected, Lifetime, Status, random_hex};

/// How long a sandbox may take to end, whose processes have 15 seconds.
const END_PATIENCE: Duration = Duration::from_secs(120);
/// How long the error of a start may be held up by taking back what was made.
const UNDO_PATIENCE: Duration = Duration::from_secs(20);
/// How long a call that only looks may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(20);
/// A throw-away sandbox is garbage so long after its maker has last said to be there, by the API server's clock.
const LEASE: SignedDuration = SignedDuration::from_secs(120);
const LEASE_RENEWAL: Duration = Duration::from_secs(30);
/// API servers of one cluster have clocks of their own.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(60);

/// Objects in one answer of a list: a sandbox's two have about 20 KB.
const PAGE: u32 = 250;
/// Garbage that is removed at the same time: each has watches, which are connections of their own.
const REMOVED_AT_ONCE: usize = 16;

/// Why something could not be done with a sandbox in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("sandbox `{0}` exists already")]
    Exists(SandboxId),
    #[error("there is no sandbox `{0}`")]
    NotFound(SandboxId),
    #[error("the making of sandbox `{0}` was interrupted")]
    Interrupted(SandboxId),
    #[error("sandbox `{id}` is not running: {reason}")]
    NotRunning { id: SandboxId, reason: String },
    #[error("sandbox `{0}` is being deleted")]
    Deleting(SandboxId),
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The last lines of the log of what has ended, if it wrote any.
    #[error("sandbox `{id}` did not start: {}{}", failure.message, log_text(log))]
    Failed { id: SandboxId, failure: Failure, log: Vec<String> },
    #[error("sandbox `{id}` was not done within {} s, still {waiting}", after.as_secs())]
    TimedOut { id: SandboxId, after: Duration, waiting: Waiting },
    #[error("sandboxd of `{id}` did not take its identity: {reason}")]
    Bind { id: SandboxId, reason: String },
    #[error("the pod of sandbox `{id}` has the address `{address}`, which is none")]
    Address { id: SandboxId, address: String },
    /// What the sandbox is to be, or the settings that were changed after they were loaded.
    #[error(transparent)]
    Spec(#[from] SettingsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

fn log_text(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; its last lines: {}", log.join(" / ")) }
}

/// One sandbox of a cluster, as its anchor and its pod describe it.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: SandboxId,
    pub names: Names,
    pub status: Status,
    pub created_at: Timestamp,
    pub anchor: Anchor,
    pub node: Option<String>,
    sandbox: Option<Sandbox>,
}

impl Found {
    /// What a person is shown of it. Keys are not.
    pub fn described(&self) -> Value {
        #[derive(Serialize)]
        struct Described<'a> {
            pod: &'a str,
            service: &'a str,
            claim: Option<&'a str>,
            image: &'a Value,
            node: Option<&'a str>,
            route: Option<String>,
            working_dir: &'a str,
            leased_until: Option<Timestamp>,
        }
        let pod = self.anchor.objects.get(&Part::Pod).unwrap_or(&Value::Null);
        json!(Described {
            pod: &self.names.pod,
            service: &self.names.service,
            claim: self.anchor.objects.contains_key(&Part::Workspace).then_some(self.names.pvc.as_str()),
            // All containers but the one that carries sandboxd have it.
            image: &pod["spec"]["containers"][0]["image"],
            node: self.node.as_deref(),
            route: self.sandbox.as_ref().map(|sandbox| sandbox.route().to_string()),
            working_dir: &self.anchor.bind.working_dir,
            leased_until: self.anchor.leased_until,
        })
    }

    /// The way into it, while it has a pod.
    pub fn sandbox(&self) -> Option<Sandbox> {
        self.sandbox.clone()
    }
}

/// Sandboxes in one namespace of one cluster.
#[derive(Debug, Clone)]
pub struct KubernetesRuntime {
    cluster: Cluster,
    settings: Settings,
}

impl KubernetesRuntime {
    pub fn new(cluster: Cluster, settings: Settings) -> Self {
        Self { cluster, settings }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes a sandbox, or finishes what an earlier call has begun, and waits until sandboxd has answered.
    ///
    /// Safe to race: of several callers with the same id each gets the same sandbox.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::Exists`] if it has been made before. Of one that does not start, what this call has made is
    /// removed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may leave a sandbox half made: the same call finishes it, [`KubernetesRuntime::remove`] or, some
    /// minutes later, [`KubernetesRuntime::collect_garbage`] removes it.
    pub async fn create(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        lifetime: Lifetime,
        report: Report<'_>,
    ) -> Result<Found, KubernetesError> {
        self.create_unless(id, spec, lifetime, report, std::future::pending()).await
    }

    /// The same until `interrupted` ends: then what this call has made is taken back, and nothing that was there before or
    /// that another call has finished.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::Interrupted`], and those of [`KubernetesRuntime::create`].
    pub async fn create_unless(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        lifetime: Lifetime,
        report: Report<'_>,
        interrupted: impl Future<Output = ()> + Send,
    ) -> Result<Found, KubernetesError> {
        let begun = OnceLock::new();
        let made = tokio::select! {
            biased;
            made = self.make(id, spec, lifetime, report, &begun) => made,
            () = interrupted => Err(KubernetesError::Interrupted(id.clone())),
        };
        if made.is_err()
            && let Some((anchor, before)) = begun.get()
        {
            self.undo(id, anchor, *before, report).await;
        }
        made
    }

    /// Tells `begun` what would be undone, before it makes anything.
    async fn make(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        lifetime: Lifetime,
        report: Report<'_>,
        begun: &OnceLock<(NewAnchor, Before)>,
    ) -> Result<Found, KubernetesError> {
        let settings = shaped(&self.settings, spec)?;
        let mut operation = Operation::new(&self.cluster, &settings, id, settings.start_timeout, report);
        let deadline = Instant::now() + LOOK_PATIENCE;
        let request = Request {
            workspace: match lifetime {
                Lifetime::Kept => Workspace::Claimed,
                Lifetime::OfThisProcess => Workspace::Ephemeral,
            },
            carried: self.cluster.carried(&settings, deadline).await?,
            plugins: Vec::new(),
            deadline_seconds: spec.deadline_seconds,
        };
        let objects = objects(id, &settings, &request);
        let mut before = Before::Nothing;
        if settings.profile == Profile::OpenHands {
            // What the original has left goes on: it has to be known first.
            operation.observe(operation.all_parts()).await?;
            before = Before::of(operation.observed());
        }
        let now = self.cluster.ensure_time(deadline).await?;
        let anchor = new_anchor(id, &settings, spec.environment.clone(), &request, before, now);
        let (anchor, _) = begun.get_or_init(|| (anchor, before));
        let aim = Aim::Running { new: Some((&objects, anchor)) };
        if settings.profile == Profile::Wharf {
            // Whoever makes the anchor has the name, and whoever finds one looks at all the rest.
            operation.make_anchor(&aim).await?;
            if operation.anchor().is_ok_and(|there| there.creation != anchor.creation) {
                operation.observe(operation.all_parts().filter(|part| *part != Part::Anchor)).await?;
            }
        }
        let names = Names::of(id, settings.profile);
        let ours = |metadata: &Value| {
            !matches!(whose(metadata, &settings.installation, names.label(), None), Ownership::Foreign(_))
        };
        if operation
            .observed()
            .get(Part::Anchor)
            .is_some_and(|seen| !seen.terminating && ours(&seen.object["metadata"]))
            && operation
                .anchor()
                .is_ok_and(|there| there.id == *id && there.creation != anchor.creation && !there.is_half_made())
        {
            return Err(KubernetesError::Exists(id.clone()));
        }
        let sandbox = match lifetime {
            Lifetime::Kept => operation.settle(&aim).await?,
            // It is nobody else's to suspend.
            Lifetime::OfThisProcess => operation.reach_usable(&aim).await?,
        };
        self.found_usable(operation.observed(), sandbox)
    }

    /// Takes back what a call has made of a sandbox that does not start. The error of the start is the one to tell.
    ///
    /// The anchor is looked at for that: the answer that it was made may be lost, or another call may have found the sandbox
    /// and kept it.
    async fn undo(&self, id: &SandboxId, anchor: &NewAnchor, before: Before, report: Report<'_>) {
        let undone = async {
            let mut operation = Operation::new(&self.cluster, &self.settings, id, UNDO_PATIENCE, report);
            operation.observe([Part::Anchor]).await?;
            let there = operation.anchor()?;
            if there.creation != anchor.creation || there.leased_until.is_some() != anchor.leased_until.is_some() {
                return Ok(());
            }
            match before {
                // Its end may take as long as a node tries to pull an image: who waits for an error need not wait for that.
                Before::Nothing if self.settings.profile == Profile::Wharf => self.discard(id).await,
                Before::Nothing => self.remove(id, report).await.map(drop),
                Before::Workspace => self.suspend(id, report).await,
                Before::Pod => Ok(()),
            }
        };
        // What is left where the API server does not answer is garbage once its lease is over.
        let _ = tokio::time::timeout(UNDO_PATIENCE, undone).await;
    }

    /// One that has answered over this way to it, which the next call can use at once.
    fn found_usable(&self, observed: &Observed, sandbox: Sandbox) -> Result<Found, KubernetesError> {
        Ok(Found { sandbox: Some(sandbox), ..self.found(observed)? })
    }

    /// The sandbox of this id, if there is one.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::Api`], or [`KubernetesError::Refused`] if its anchor is not ours.
    pub async fn find(&self, id: &SandboxId) -> Result<Option<Found>, KubernetesError> {
        let mut operation = Operation::new(&self.cluster, &self.settings, id, LOOK_PATIENCE, &|_| {});
        operation.observe([Part::Anchor, Part::Pod]).await?;
        let Some(seen) = operation.observed().get(Part::Anchor) else { return Ok(None) };
        let names = Names::of(id, self.settings.profile);
        match whose(&seen.object["metadata"], &self.settings.installation, names.label(), None) {
            Ownership::Ours | Ownership::Stale => {}
            Ownership::Unowned => return Ok(None),
            Ownership::Foreign(owner) => {
                return Err(Refusal::Foreign { kind: "Secret", name: names.anchor, owner }.into());
            }
        }
        self.found(operation.observed()).map(Some)
    }

    /// The sandbox of this id.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::NotFound`], and those of [`KubernetesRuntime::find`].
    pub async fn get(&self, id: &SandboxId) -> Result<Found, KubernetesError> {
        self.find(id).await?.ok_or_else(|| KubernetesError::NotFound(id.clone()))
    }

    /// The sandbox of this id, usable. One that an interrupted call has left half made is finished.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::NotRunning`], [`KubernetesError::Deleting`], and those of [`KubernetesRuntime::get`].
    pub async fn get_ready(&self, id: &SandboxId, report: Report<'_>) -> Result<Found, KubernetesError> {
        let found = self.get(id).await?;
        let reason = match &found.status {
            Status::Ready => return Ok(found),
            Status::Starting { .. } if found.anchor.is_half_made() => return self.resume(id, report).await,
            Status::Starting { .. } => return self.attach(id, report).await,
            Status::Suspended => "it is suspended".to_owned(),
            Status::Deleting => return Err(KubernetesError::Deleting(id.clone())),
            Status::Stopped { reason } => reason.clone(),
        };
        Err(KubernetesError::NotRunning { id: id.clone(), reason })
    }

    /// Waits for a sandbox that somebody else is starting.
    async fn attach(&self, id: &SandboxId, report: Report<'_>) -> Result<Found, KubernetesError> {
        let mut operation = Operation::new(&self.cluster, &self.settings, id, self.settings.start_timeout, report);
        operation.observe([Part::Anchor, Part::Pod]).await?;
        match operation.attach().await {
            Ok(sandbox) => self.found_usable(operation.observed(), sandbox),
            Err(error @ KubernetesError::NotFound(_)) => Err(match operation.observed().get(Part::Anchor) {
                None => error,
                Some(anchor) if anchor.terminating => KubernetesError::Deleting(id.clone()),
                Some(_) => KubernetesError::NotRunning {
                    id: id.clone(),
                    reason: "it was suspended or lost its pod meanwhile".to_owned(),
                },
            }),
            Err(error) => Err(error),
        }
    }

    /// What an anchor and a pod say together.
    fn found(&self, observed: &Observed) -> Result<Found, KubernetesError> {
        let seen = observed.get(Part::Anchor);
        let anchor = Anchor::read(seen.map_or(&Value::Null, |seen| &seen.object)).map_err(Refusal::from)?;
        let names = Names::of(&anchor.id, anchor.profile);
        let pod = observed.get(Part::Pod).filter(|pod| {
            let owner = whose(&pod.object["metadata"], &self.settings.installation, names.label(), Some(&anchor.uid));
            matches!(owner, Ownership::Ours)
        });
        let verdict = pod.filter(|pod| !pod.terminating).map(|pod| judge(&pod.pod(), &[]));
        let status = match (&verdict, anchor.wanted) {
            _ if seen.is_some_and(|seen| seen.terminating) => Status::Deleting,
            (_, Wanted::Suspended) => Status::Suspended,
            (None, Wanted::Running) => Status::Stopped { reason: "its pod is gone".to_owned() },
            (Some(Verdict::Reachable { .. }), Wanted::Running) if anchor.is_half_made() => {
                Status::Starting { waiting: "binding: whoever makes it has not finished yet".to_owned() }
            }
            (Some(Verdict::Reachable { .. }), Wanted::Running) => Status::Ready,
            (Some(Verdict::Waiting(waiting)), Wanted::Running) => Status::Starting { waiting: waiting.to_string() },
            (Some(Verdict::Failed(failure)), Wanted::Running) => {
                let passed = pod.and_then(|pod| passed_deadline(&pod.pod(), anchor.bind.deadline_seconds));
                Status::Stopped { reason: passed.unwrap_or_else(|| failure.message.clone()) }
            }
        };
        let sandbox = match verdict {
            Some(Verdict::Reachable { address }) => {
                let uid = pod.map_or("", |pod| &pod.uid);
                let route = route::route(&self.cluster, self.settings.route, &names, uid, &address);
                route.map(|route| Sandbox::new(route, anchor.key.clone()))
            }
            Some(Verdict::Waiting(_) | Verdict::Failed(_)) | None => None,
        };
        let node = pod.and_then(|pod| pod.object["spec"]["nodeName"].as_str()).map(str::to_owned);
        Ok(Found { id: anchor.id.clone(), names, status, created_at: anchor.created_at, anchor, node, sandbox })
    }

    /// All sandboxes of this installation and profile, oldest first.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::Api`].
    pub async fn list(&self) -> Result<Vec<Found>, KubernetesError> {
        let (anchors, pods) = tokio::try_join!(self.list_parts(Part::Anchor), self.list_parts(Part::Pod))?;
        if anchors.is_empty() && pods.is_empty() {
            self.check_namespace().await?;
        }
        let named = |pod: Value| Some((pod["metadata"]["name"].as_str()?.to_owned(), pod));
        let mut pods: BTreeMap<String, Value> = pods.into_iter().filter_map(named).collect();
        let mut all: Vec<Found> = Vec::new();
        for anchor in anchors {
            // One that a hand has broken is nobody's to use; `remove` takes it by its id.
            let Ok(read) = Anchor::read(&anchor) else { continue };
            if read.profile != self.settings.profile {
                continue;
            }
            let mut observed = Observed::default();
            observed.note(Part::Pod, pods.remove(&Names::of(&read.id, read.profile).pod));
            observed.note(Part::Anchor, Some(anchor));
            all.extend(self.found(&observed));
        }
        all.sort_by_key(|found| found.created_at);
        Ok(all)
    }

    /// An API server lists nothing in a namespace that is not there, and refuses to make anything in it.
    async fn check_namespace(&self) -> Result<(), KubernetesError> {
        let api = self.cluster.typed::<k8s_openapi::api::core::v1::Secret>();
        let mut nothing = k8s_openapi::api::core::v1::Secret::default();
        nothing.metadata.generate_name = Some("wharf-".to_owned());
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        let deadline = Instant::now() + LOOK_PATIENCE;
        let what = format!("list sandboxes of the namespace `{}`", self.cluster.namespace());
        match self.cluster.ask(&what, deadline, || api.create(&parameters, &nothing)).await {
            Err(error) if error.kind == ApiErrorKind::NotFound => Err(error.into()),
            // Whoever may not make anything there, or meets a policy of it, has seen all there is.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// In pages: each has to come within the time that one call may take. When the server no longer knows the list that
    /// it began, all comes at once, as kubectl asks then.
    async fn list_parts(&self, part: Part) -> Result<Vec<Value>, KubernetesError> {
        let selector = format!("{}=wharf,{}={}", labels::MANAGED_BY, labels::INSTALLATION, self.settings.installation);
        let whole = ListParams::default().labels(&selector);
        let mut parameters = whole.clone().limit(PAGE);
        let (api, what) = (self.cluster.api(part), format!("list {}s", part.kind()));
        let mut all = Vec::new();
        loop {
            let deadline = Instant::now() + LOOK_PATIENCE;
            let page = match self.cluster.call(&what, deadline, &|_| {}, || api.list(&parameters)).await {
                Err(error) if error.kind == ApiErrorKind::Expired && parameters.continue_token.is_some() => {
                    parameters = whole.clone();
                    all.clear();
                    continue;
                }
                page => page?,
            };
            all.extend(page.items.into_iter().map(|object| json!(object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    /// Ends the pod of a sandbox and keeps its workspace. Suspended already is fine.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::NotFound`], [`KubernetesError::Api`], [`KubernetesError::TimedOut`].
    pub async fn suspend(&self, id: &SandboxId, report: Report<'_>) -> Result<(), KubernetesError> {
        let mut operation = Operation::new(&self.cluster, &self.settings, id, END_PATIENCE, report);
        let parts: Vec<Part> = operation.all_parts().filter(|part| *part != Part::Workspace).collect();
        loop {
            operation.observe(parts.clone()).await?;
            operation.reach(&Aim::Suspended).await?;
            operation.observe([Part::Anchor]).await?;
            // Whoever resumed it meanwhile may have seen the pod that is gone now.
            if !operation.is_to_run() {
                return Ok(());
            }
        }
    }

    /// Gives a sandbox a pod again, with its workspace and its key. One that runs is left alone; one whose pod has ended
    /// gets a new pod.
    ///
    /// # Errors
    ///
    /// As [`KubernetesRuntime::create`].
    pub async fn resume(&self, id: &SandboxId, report: Report<'_>) -> Result<Found, KubernetesError> {
        let limit = self.settings.start_timeout;
        let mut operation = Operation::new(&self.cluster, &self.settings, id, limit, report);
        let aim = Aim::Running { new: None };
        operation.observe(operation.all_parts()).await?;
        let sandbox = operation.settle(&aim).await?;
        self.found_usable(operation.observed(), sandbox)
    }

    /// Removes a sandbox and all that belongs to it; `false` if there was nothing.
    ///
    /// # Errors
    ///
    /// What could not be removed; all else is.
    pub async fn remove(&self, id: &SandboxId, report: Report<'_>) -> Result<bool, KubernetesError> {
        let is_anchored =
            |operation: &Operation<'_>| operation.observed().get(Part::Anchor).is_some_and(|seen| !seen.terminating);
        loop {
            let mut operation = Operation::new(&self.cluster, &self.settings, id, END_PATIENCE, report);
            operation.observe([Part::Anchor, Part::Pod]).await?;
            let anchored = is_anchored(&operation);
            if !anchored || self.settings.profile == Profile::OpenHands {
                // Nothing else takes along what an earlier life or the original has left. What somebody makes meanwhile is
                // none of that: it hangs on an anchor that was made before it.
                operation.observe(operation.all_parts().filter(|part| *part != Part::Anchor)).await?;
                operation.observe([Part::Anchor]).await?;
                if !anchored && is_anchored(&operation) {
                    continue;
                }
            }
            let there = operation.observed().parts().next().is_some();
            operation.reach(&Aim::Gone).await?;
            return Ok(there);
        }
    }

    /// Tells the cluster to remove a sandbox and all that belongs to it, and does not wait until it is gone.
    ///
    /// # Errors
    ///
    /// When the cluster does not take it.
    pub async fn discard(&self, id: &SandboxId) -> Result<(), KubernetesError> {
        let mut operation = Operation::new(&self.cluster, &self.settings, id, UNDO_PATIENCE, &|_| {});
        operation.observe([Part::Anchor, Part::Pod]).await?;
        operation.begin(&Aim::Gone).await
    }

    /// Removes what killed programs have left, of this installation and profile: sandboxes that were never done, and
    /// throw-away ones nobody needs any more.
    ///
    /// # Errors
    ///
    /// When the cluster does not list what there is.
    pub async fn collect_garbage(&self, report: Report<'_>) -> Result<Collected<KubernetesError>, KubernetesError> {
        let all = self.list().await?;
        let now = self.cluster.now();
        let garbage = all.into_iter().filter(|found| is_garbage(&found.anchor, now));
        let removals = garbage.map(|found| async move {
            let removed = self.remove_garbage(&found, report).await;
            removed.map(|removed| removed.then_some(found.id))
        });
        let removed: Vec<Result<Option<SandboxId>, _>> =
            stream::iter(removals).buffered(REMOVED_AT_ONCE).collect().await;
        Ok(removed.into_iter().filter_map(Result::transpose).collect())
    }

    /// Removes it unless somebody has finished, kept or replaced it since it was found.
    async fn remove_garbage(&self, found: &Found, report: Report<'_>) -> Result<bool, KubernetesError> {
        let mut operation = Operation::new(&self.cluster, &self.settings, &found.id, END_PATIENCE, report);
        operation.observe([Part::Anchor, Part::Pod]).await?;
        match operation.anchor() {
            Ok(anchor) if anchor.uid == found.anchor.uid && is_garbage(&anchor, self.cluster.now()) => {}
            Ok(_) | Err(KubernetesError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.settings.profile == Profile::OpenHands {
            operation.observe(operation.all_parts()).await?;
        }
        operation.reach(&Aim::Gone).await?;
        Ok(true)
    }

    /// Says again and again that a throw-away sandbox is needed; ends only when it is dropped or the sandbox is gone.
    pub async fn renew_lease(&self, id: &SandboxId) {
        loop {
            tokio::time::sleep(LEASE_RENEWAL).await;
            let mut operation = Operation::new(&self.cluster, &self.settings, id, LEASE_RENEWAL, &|_| {});
            let renewed = async {
                operation.observe([Part::Anchor]).await?;
                operation.lease(Some(self.cluster.now() + LEASE)).await
            };
            if let Err(KubernetesError::NotFound(_)) = renewed.await {
                return;
            }
        }
    }

    /// The end of what the sandbox's main container has logged: sandboxd's own log.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::NotFound`], [`KubernetesError::Api`].
    pub async fn log(&self, id: &SandboxId) -> Result<String, KubernetesError> {
        let found = self.get(id).await?;
        let api = self.cluster.typed::<Pod>();
        let parameters = kube::api::LogParams {
            container: Some(container_name(found.anchor.profile).to_owned()),
            // The bytes are counted from the first of these lines on.
            tail_lines: Some(SHOWN_LOG_LINES),
            limit_bytes: Some(16 << 20),
            ..kube::api::LogParams::default()
        };
        let deadline = Instant::now() + LOOK_PATIENCE;
        let name = &found.names.pod;
        Ok(self.cluster.call("read the log", deadline, &|_| {}, || api.logs(name, &parameters)).await?)
    }
}

/// How much of a log is given: its end.
const SHOWN_LOG_LINES: i64 = 5000;

/// Whether whoever needed it has not said so for too long.
fn is_garbage(anchor: &Anchor, now: Timestamp) -> bool {
    anchor.leased_until.is_some_and(|until| until + CLOCKS_DIFFER < now)
}

/// The objects that [`KubernetesRuntime::create`] makes, as they are sent, but for keys and the owner's uid. Pure.
///
/// # Errors
///
/// [`KubernetesError::Spec`].
pub fn render(
    settings: &Settings,
    id: &SandboxId,
    spec: &SandboxSpec,
    carried: Carried,
) -> Result<Vec<Value>, KubernetesError> {
    let settings = shaped(settings, spec)?;
    let request = Request { carried, deadline_seconds: spec.deadline_seconds, ..Request::default() };
    Ok(rendered(id, &settings, &request, &spec.environment))
}

/// All objects of a sandbox in the order in which they are made, with what is only known later left open.
fn rendered(id: &SandboxId, settings: &Settings, request: &Request, environment: &Environment) -> Vec<Value> {
    const LATER: &str = "…";
    let names = Names::of(id, settings.profile);
    let mut objects = objects(id, settings, request);
    let mut anchor = NewAnchor {
        creation: LATER.to_owned(),
        key: Secret::new(LATER),
        bind_secret: Secret::new(LATER),
        ..new_anchor(id, settings, environment.clone(), request, Before::Nothing, Timestamp::UNIX_EPOCH)
    }
    .manifest(&settings.installation, &names, &objects);
    anchor["stringData"] = json!({ "bind": LATER, "bind-secret": LATER, "key": LATER, "objects": LATER });
    anchor["metadata"]["annotations"][labels::LEASED_UNTIL] = json!(LATER);
    let owner = Owner::new(&settings.installation, &names, LATER);
    if let Some(pod) = objects.get_mut(&Part::Pod).filter(|_| settings.profile == Profile::Wharf) {
        *pod = locked(pod, LATER);
    }
    let mut all = vec![anchor];
    all.extend(objects.values().map(|object| owner.adopt(object)));
    for object in &mut all {
        object["metadata"]["namespace"] = json!(settings.namespace);
    }
    all
}

/// What there was of a sandbox that has no anchor yet: the original marks nothing. A user's files may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Workspace,
    /// One that has not ended.
    Pod,
}

impl Before {
    fn of(observed: &Observed) -> Self {
        let unmarked = |part: Part| {
            let seen = observed.get(part).filter(|seen| !seen.terminating);
            seen.filter(|seen| seen.object["metadata"]["labels"][labels::INSTALLATION].is_null())
        };
        match (unmarked(Part::Pod), unmarked(Part::Workspace)) {
            (Some(pod), _) if !pod.has_ended() => Self::Pod,
            (_, Some(_)) => Self::Workspace,
            (_, None) => Self::Nothing,
        }
    }
}

fn new_anchor(
    id: &SandboxId,
    settings: &Settings,
    environment: Environment,
    request: &Request,
    before: Before,
    now: Timestamp,
) -> NewAnchor {
    let patience = SignedDuration::try_from(settings.start_timeout).unwrap_or(LEASE);
    let mut all = Environment::new();
    if settings.profile == Profile::Wharf {
        all.extend(settings.initial_environment.iter().cloned());
        all.extend(settings.environment.iter().cloned());
    }
    all.extend(environment);
    NewAnchor {
        id: id.clone(),
        profile: settings.profile,
        creation: random_hex(8),
        // Long enough to be made; what is made is kept, or its maker says again that it is needed. What was there before
        // is never garbage.
        leased_until: (before == Before::Nothing).then(|| now + patience + LEASE),
        key: Secret::new(random_hex(32)),
        bind_secret: Secret::new(random_hex(32)),
        bind: BindRequest {
            keys: Vec::new(),
            environment: all,
            inherit_environment: true,
            user: None,
            working_dir: settings.workspace_path.clone(),
            limits: Default::default(),
            deadline_seconds: request.deadline_seconds,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only while every call can be spawned.
    #[test]
    fn calls_can_go_on_in_tasks_of_their_own() {
        fn is_send<T: Send>(_: impl FnOnce(&'static KubernetesRuntime, &'static SandboxId, &'static SandboxSpec) -> T) {
        }
        is_send(|runtime, id, spec| runtime.create(id, spec, Lifetime::Kept, &|_| {}));
        is_send(|runtime, id, _| runtime.get_ready(id, &|_| {}));
        is_send(|runtime, id, _| runtime.suspend(id, &|_| {}));
        is_send(|runtime, id, _| runtime.resume(id, &|_| {}));
        is_send(|runtime, id, _| runtime.remove(id, &|_| {}));
        is_send(|runtime, id, _| runtime.renew_lease(id));
        is_send(|runtime, _, _| runtime.collect_garbage(&|_| {}));
        is_send(|runtime, id, _| runtime.delete(id));
    }
}
