//! The cluster of a test, a namespace of the test's own, and what is in it.

use std::{collections::BTreeMap, env, fmt, fmt::Write as _, panic::AssertUnwindSafe, path::PathBuf, time::Duration};

use futures_util::{FutureExt as _, future};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, ContainerStatus, Event, Namespace as NamespaceObject, PersistentVolumeClaim, Pod, Secret, Service,
        ServiceAccount,
    },
    networking::v1::{Ingress, NetworkPolicy},
};
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

const HOW_TO_GET_ONE: &str = "run tests/cluster/up, then tests/cluster/run cargo test -p wharf-kubernetes-tests";
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(30);
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
const LOG_LINES: i64 = 50;

/// Labels of a namespace that takes no pods but those of the restricted standard.
/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>
pub const RESTRICTED: &[(&str, &str)] = &[("pod-security.kubernetes.io/enforce", "restricted")];

/// The cluster that tests run on.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    pub config: Config,
    /// For programs that are told by `--kubeconfig` or `KUBECONFIG`.
    pub kubeconfig: PathBuf,
}

/// A namespace that one test has for itself. [`with_namespace`] deletes it.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
    /// Its default namespace is this one.
    pub client: Client,
    pub config: Config,
    pub cluster: Cluster,
}

/// An object as a leak check sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub uid: String,
    /// Its deletion was asked for, and is held up by a grace period or a finalizer.
    pub is_being_deleted: bool,
}

impl Cluster {
    /// The cluster of `WHARF_TEST_KUBECONFIG`, or else that of `tests/cluster`, whose `run` sets the variables looked at here.
    /// A kubeconfig that a developer has otherwise is never used.
    ///
    /// # Panics
    ///
    /// With how to get a cluster, if there is none or it does not answer.
    pub async fn find() -> Self {
        let kubeconfig = env::var_os("WHARF_TEST_KUBECONFIG")
            .or_else(|| env::var_os("WHARF_CLUSTER_DIR").and_then(|_| env::var_os("KUBECONFIG")))
            .map(PathBuf::from)
            .unwrap_or_else(|| panic!("no cluster to test on: {HOW_TO_GET_ONE}"));
        let read = Kubeconfig::read_from(&kubeconfig)
            .unwrap_or_else(|error| panic!("could not read `{}`: {error}: {HOW_TO_GET_ONE}", kubeconfig.display()));
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        match timeout(ANSWER_PATIENCE, client.apiserver_version()).await {
            Ok(Ok(_)) => Self { client, config, kubeconfig },
            Ok(Err(error)) => panic!("`{}` cannot be used: {error}: {HOW_TO_GET_ONE}", config.cluster_url),
            Err(_) => panic!("`{}` does not answer: {HOW_TO_GET_ONE}", config.cluster_url),
        }
    }

    /// Makes a namespace `wharf-test-<purpose>-<random>` that takes pods.
    ///
    /// # Panics
    ///
    /// If the cluster does not make one.
    pub async fn namespace(&self, purpose: &str) -> Namespace {
        self.labelled_namespace(purpose, &[]).await
    }

    /// The same with labels, such as [`RESTRICTED`].
    ///
    /// # Panics
    ///
    /// If the cluster does not make one.
    pub async fn labelled_namespace(&self, purpose: &str, labels: &[(&str, &str)]) -> Namespace {
        let labels = labels.iter().copied().chain([("wharf-test", purpose)]);
        let wanted = NamespaceObject {
            metadata: ObjectMeta {
                // The server adds what is random.
                generate_name: Some(format!("wharf-test-{purpose}-")),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..NamespaceObject::default()
        };
        let made = Api::all(self.client.clone()).create(&PostParams::default(), &wanted).await.unwrap();
        let name = made.name_any();
        let mut config = self.config.clone();
        config.default_namespace.clone_from(&name);
        let client = Client::try_from(config.clone()).unwrap();
        let namespace = Namespace { name, client, config, cluster: self.clone() };
        // Until there is one, pods are refused.
        let account = async {
            while namespace.api::<ServiceAccount>().get_opt("default").await.unwrap().is_none() {
                sleep(PAUSE).await;
            }
        };
        timeout(NAMESPACE_PATIENCE, account).await.expect("the controller manager makes a ServiceAccount");
        namespace
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Namespace {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Asks for its deletion and does not wait for it. Pods go at once: their grace period would hold up the machine.
    ///
    /// # Errors
    ///
    /// Whatever the server says.
    pub async fn delete(&self) -> kube::Result<()> {
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let namespaces: Api<NamespaceObject> = Api::all(self.client.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await?;
        self.api::<Pod>().delete_collection(&at_once, &ListParams::default()).await?;
        Ok(())
    }

    /// All that helps to see why a test failed: objects, pods with their containers, events, logs. No secret's content.
    pub async fn describe(&self) -> String {
        let mut text = format!("--- namespace {}\n", self.name);
        if let Err(error) = self.write_description(&mut text).await {
            let _ = writeln!(text, "could not read on: {error}");
        }
        text
    }

    async fn write_description(&self, text: &mut String) -> kube::Result<()> {
        for (object, found) in find_objects(&self.client, &self.name).await? {
            let _ = writeln!(text, "{object}{}", if found.is_being_deleted { " (being deleted)" } else { "" });
        }
        let shown = [
            ApiResource::erase::<PersistentVolumeClaim>(&()),
            ApiResource::erase::<Service>(&()),
            ApiResource::erase::<Ingress>(&()),
            ApiResource::erase::<NetworkPolicy>(&()),
        ];
        for kind in shown {
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.name, &kind);
            for object in api.list(&ListParams::default()).await? {
                let _ = writeln!(text, "--- {}/{}: {}", kind.kind, object.name_any(), object.data);
            }
        }
        let mut events = self.api::<Event>().list(&ListParams::default()).await?.items;
        events.sort_by_key(|event| event.last_timestamp.clone().or(event.metadata.creation_timestamp.clone()));
        let _ = writeln!(text, "--- events");
        for event in events {
            let about = &event.involved_object;
            let (kind, name) = (about.kind.as_deref().unwrap_or_default(), about.name.as_deref().unwrap_or_default());
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            let _ = writeln!(text, "{kind}/{name} {reason}: {}", message.trim_end());
        }
        let pods = self.api::<Pod>();
        for pod in pods.list(&ListParams::default()).await? {
            self.write_pod(text, &pod).await;
        }
        Ok(())
    }

    async fn write_pod(&self, text: &mut String, pod: &Pod) {
        let name = pod.name_any();
        let status = pod.status.clone().unwrap_or_default();
        let _ = writeln!(text, "--- Pod/{name}: {}", status.phase.unwrap_or_default());
        for condition in status.conditions.iter().flatten().filter(|condition| condition.status != "True") {
            let _ = writeln!(text, "not {}: {}", condition.type_, json!([condition.reason, condition.message]));
        }
        let containers = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
        for ContainerStatus { name: container, state, last_state, restart_count, .. } in containers {
            let _ = writeln!(text, "container {container}: {}, {restart_count} restarts", json!(state));
            if restart_count > 0 {
                let _ = writeln!(text, "before: {}", json!(last_state));
                self.write_log(text, &name, &container, true).await;
            }
            self.write_log(text, &name, &container, false).await;
        }
    }

    async fn write_log(&self, text: &mut String, pod: &str, container: &str, previous: bool) {
        let wanted = LogParams {
            container: Some(container.to_owned()),
            previous,
            tail_lines: Some(LOG_LINES),
            ..LogParams::default()
        };
        // Where there is none, the state above says why.
        let log = self.api::<Pod>().logs(pod, &wanted).await.unwrap_or_default();
        for line in log.lines() {
            let _ = writeln!(text, "  | {line}");
        }
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs a test in a namespace of its own, which is deleted afterwards; if the test fails, what is in it is printed before.
///
/// # Panics
///
/// As `test` does.
pub async fn with_namespace(purpose: &str, test: impl AsyncFnOnce(Namespace)) {
    with_labelled_namespace(purpose, &[], test).await;
}

/// The same with labels, such as [`RESTRICTED`].
///
/// # Panics
///
/// As `test` does.
#[expect(clippy::print_stderr, reason = "the harness shows it with the failed test")]
pub async fn with_labelled_namespace(purpose: &str, labels: &[(&str, &str)], test: impl AsyncFnOnce(Namespace)) {
    let namespace = Cluster::find().await.labelled_namespace(purpose, labels).await;
    let outcome = AssertUnwindSafe(test(namespace.clone())).catch_unwind().await;
    if outcome.is_err() {
        eprint!("{}", namespace.describe().await);
    }
    if let Err(error) = namespace.delete().await {
        eprintln!("namespace {} is left behind: {error}", namespace.name);
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// What a sandbox could leave in `namespace`, by `Kind/name`; what Kubernetes puts into every namespace is left out.
///
/// # Panics
///
/// If the server does not say.
pub async fn list_objects(client: &Client, namespace: &str) -> BTreeMap<String, Found> {
    find_objects(client, namespace).await.unwrap()
}

/// Waits until exactly the `expected` objects, each `Kind/name`, are in `namespace`. The server may be away meanwhile.
///
/// # Panics
///
/// With the difference, if they are not after a minute.
pub async fn settle(client: &Client, namespace: &str, expected: impl IntoIterator<Item: AsRef<str>>) {
    let expected: Vec<_> = expected.into_iter().map(|object| object.as_ref().to_owned()).collect();
    let deadline = Instant::now() + SETTLE_PATIENCE;
    loop {
        let found = timeout(ANSWER_PATIENCE, find_objects(client, namespace)).await;
        let difference = match found {
            Ok(Ok(found)) => find_difference(&found, &expected),
            Ok(Err(error)) => vec![format!("could not list: {error}")],
            Err(_) => vec!["could not list: no answer".to_owned()],
        };
        if difference.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "namespace {namespace} does not settle:\n{}", difference.join("\n"));
        sleep(PAUSE).await;
    }
}

fn find_difference(found: &BTreeMap<String, Found>, expected: &[String]) -> Vec<String> {
    let missing =
        expected.iter().filter(|object| !found.contains_key(*object)).map(|object| format!("missing: {object}"));
    let left = found.iter().filter(|(object, _)| !expected.contains(object)).map(|(object, found)| {
        format!("left: {object}{}", if found.is_being_deleted { " (being deleted)" } else { "" })
    });
    missing.chain(left).collect()
}

async fn find_objects(client: &Client, namespace: &str) -> kube::Result<BTreeMap<String, Found>> {
    let kinds = [
        ApiResource::erase::<Pod>(&()),
        ApiResource::erase::<PersistentVolumeClaim>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<Secret>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Ingress>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<Lease>(&()),
    ];
    let lists = kinds.into_iter().map(|kind| async move {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
        let objects = api.list_metadata(&ListParams::default()).await?;
        let objects = objects.items.into_iter().map(move |object| {
            let is_being_deleted = object.metadata.deletion_timestamp.is_some();
            let found = Found { uid: object.uid().unwrap_or_default(), is_being_deleted };
            (format!("{}/{}", kind.kind, object.name_any()), found)
        });
        Ok::<_, kube::Error>(objects)
    });
    let mut found: BTreeMap<_, _> = future::try_join_all(lists).await?.into_iter().flatten().collect();
    for everywhere in ["ConfigMap/kube-root-ca.crt", "ServiceAccount/default"] {
        found.remove(everywhere);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_tells_what_is_missing_and_what_is_left() {
        let found = |is_being_deleted| Found { uid: String::new(), is_being_deleted };
        let there = BTreeMap::from([("Pod/a".to_owned(), found(true)), ("Secret/b".to_owned(), found(false))]);
        let expected = |objects: &[&str]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(find_difference(&there, &expected(&["Pod/a", "Secret/b"])), [""; 0]);
        assert_eq!(
            find_difference(&there, &expected(&["Secret/b", "Secret/c"])),
            ["missing: Secret/c", "left: Pod/a (being deleted)"]
        );
    }
}
