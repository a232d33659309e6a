//! The only place that writes to the cluster: one step, one call, safe to repeat.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    anchor::AnchorChange,
    cluster::{ApiError, ApiErrorKind, Cluster},
    manifest::{FIELD_MANAGER, Owner},
    part::Part,
    plan::FOREGROUND,
};

/// How long the processes of a pod have to end whose files go too; others have what the pod itself says.
const HASTY_GRACE_SECONDS: u32 = 5;

/// Carries out steps for one operation, until its deadline.
pub(super) struct Apply<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) deadline: Instant,
    /// Hears why a call has to be tried again.
    pub(super) report: &'a (dyn Fn(&str) + Sync),
}

impl Apply<'_> {
    /// Makes an object where nothing is known of its name; gives the one that is there if somebody else was faster.
    pub(super) async fn create(&self, part: Part, name: &str, manifest: &Value) -> Result<Value, ApiError> {
        let api = self.cluster.api(part);
        let object = dynamic(manifest)?;
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        loop {
            let made = self.call(&doing("make", part, name), || api.create(&parameters, &object)).await;
            match made {
                // Also an earlier try of ours, whose answer was lost.
                Err(error) if error.kind == ApiErrorKind::AlreadyExists => match self.get(part, name).await? {
                    Some(object) => return Ok(object),
                    None => continue,
                },
                made => return made.map(plain),
            }
        }
    }

    /// Changes the anchor, if it is still the same one.
    pub(super) async fn change_anchor(&self, name: &str, uid: &str, change: &AnchorChange) -> Result<Value, ApiError> {
        let api = self.cluster.api(Part::Anchor);
        let patch = Patch::Merge(change.patch(uid));
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.call(&doing("change", Part::Anchor, name), || api.patch(name, &parameters, &patch)).await.map(plain)
    }

    /// Makes an object of the sandbox, or makes it what it is to be.
    pub(super) async fn apply(
        &self,
        part: Part,
        name: &str,
        manifest: &Value,
        owner: &Owner,
    ) -> Result<Value, ApiError> {
        let patch = Patch::Apply(owner.adopt(manifest));
        self.server_side(&doing("make", part, name), part, name, &patch).await
    }

    /// Marks an object as the sandbox's and changes nothing else of it.
    pub(super) async fn adopt(&self, part: Part, name: &str, owner: &Owner) -> Result<Value, ApiError> {
        let bare = json!({ "apiVersion": part.api_version(), "kind": part.kind(), "metadata": { "name": name } });
        let patch = Patch::Apply(owner.adopt(&bare));
        self.server_side(&doing("adopt", part, name), part, name, &patch).await
    }

    async fn server_side(&self, what: &str, part: Part, name: &str, patch: &Patch<Value>) -> Result<Value, ApiError> {
        let api = self.cluster.api(part);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.call(what, || api.patch(name, &parameters, patch)).await.map(plain)
    }

    /// Deletes this very object; gone already is fine. Gives it as it is while it ends. `for_good`: nothing
    /// of the sandbox is needed, and what has its name by now is another's.
    pub(super) async fn delete(
        &self,
        part: Part,
        name: &str,
        uid: &str,
        for_good: bool,
    ) -> Result<Option<Value>, ApiError> {
        let api = self.cluster.api(part);
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            grace_period_seconds: (part == Part::Pod && for_good).then_some(HASTY_GRACE_SECONDS),
            // Whoever finds no anchor finds nothing.
            propagation_policy: (part == Part::Anchor).then_some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        let deleted = self.call(&doing("delete", part, name), || api.delete(name, &parameters)).await;
        match deleted {
            Ok(either) => match either.left().map(plain) {
                Some(object) if has_gone(&object["metadata"]) => Ok(None),
                object => Ok(object),
            },
            Err(error) if error.kind == ApiErrorKind::NotFound => Ok(None),
            Err(error) if error.kind == ApiErrorKind::Replaced && for_good => Ok(None),
            // Another object has its name by now: see what that is.
            Err(error) if error.kind == ApiErrorKind::Replaced => self.get(part, name).await,
            Err(error) => Err(error),
        }
    }

    /// Takes off a deleted anchor what holds it until the garbage collector comes. Gives it as it is if something else does.
    pub(super) async fn release(&self, name: &str, uid: &str, seen: &Value) -> Result<Option<Value>, ApiError> {
        let api = self.cluster.api(Part::Anchor);
        let all = seen["metadata"]["finalizers"].as_array().into_iter().flatten();
        let others: Vec<_> = all.filter(|finalizer| *finalizer != FOREGROUND).collect();
        let patch = Patch::Merge(json!({ "metadata": { "uid": uid, "finalizers": others } }));
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let released =
            self.call(&doing("release", Part::Anchor, name), || api.patch(name, &parameters, &patch)).await.map(plain);
        match released {
            Ok(object) if others.is_empty() || has_gone(&object["metadata"]) => Ok(None),
            Ok(object) => Ok(Some(object)),
            Err(error) if matches!(error.kind, ApiErrorKind::NotFound | ApiErrorKind::Replaced) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn get(&self, part: Part, name: &str) -> Result<Option<Value>, ApiError> {
        let api = self.cluster.api(part);
        let got = self.call(&doing("look for", part, name), || api.get_opt(name)).await?;
        Ok(got.map(plain))
    }

    /// The same for what may be none of the caller's business: a refusal is an answer.
    pub(super) async fn look(&self, part: Part, name: &str) -> Result<Option<Value>, ApiError> {
        let api = self.cluster.api(part);
        let got = self.cluster.ask(&doing("look for", part, name), self.deadline, || api.get_opt(name)).await;
        match got {
            Err(error) if error.kind == ApiErrorKind::Forbidden => Ok(None),
            got => Ok(got?.map(plain)),
        }
    }

    /// The last lines that a container of the pod has logged.
    pub(super) async fn log_end(&self, pod: &str, container: &str, lines: i64) -> Option<String> {
        let api = self.cluster.typed::<Pod>();
        let parameters = kube::api::LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(lines),
            limit_bytes: Some(16 << 10),
            ..kube::api::LogParams::default()
        };
        let log = self.cluster.ask("read the log", self.deadline, || api.logs(pod, &parameters)).await;
        log.ok().filter(|log| !log.trim().is_empty())
    }

    async fn call<T, F>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.cluster.call(what, self.deadline, self.report, attempt).await
    }
}

/// Whether what a deletion answers was removed at once, as a pod without a node is: no watch would tell of its end any more.
fn has_gone(metadata: &Value) -> bool {
    let held = metadata["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    metadata["deletionTimestamp"].is_null() || (metadata["deletionGracePeriodSeconds"] == 0 && !held)
}

fn doing(verb: &str, part: Part, name: &str) -> String {
    format!("{verb} {} `{name}`", part.kind())
}

fn plain(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn dynamic(manifest: &Value) -> Result<DynamicObject, ApiError> {
    serde_json::from_value(manifest.clone()).map_err(|error| ApiError::malformed(&error))
}
