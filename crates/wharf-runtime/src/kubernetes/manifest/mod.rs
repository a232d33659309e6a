//! What a sandbox is in Kubernetes: settings in, objects out. Pure.
//!
//! `wharf` and `openhands` make the objects of their profile, `ownership` says whose an object is and whom it belongs to.

mod openhands;
mod ownership;
mod policy;
mod wharf;

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, DerefMut},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wharf_protocol::SandboxId;

pub use self::ownership::{FIELD_MANAGER, Owner, Ownership, labels};
pub(super) use self::{
    ownership::{is_orphan, whose},
    wharf::{evened, locked},
};
use super::{
    names::Names,
    part::Part,
    settings::{Profile, PullPolicy, Settings},
};

/// sandboxd's port, and that of the original's server.
pub const SERVER_PORT: u16 = 8080;
pub const CODE_PORT: u16 = 8081;
/// Where an agent starts web applications, as the original tells it.
pub const APP_PORTS: [u16; 2] = [30082, 30083];
/// sandboxd ends itself at its deadline; a pod that cannot is ended so much later.
pub(super) const DEADLINE_GRACE_SECONDS: u64 = 60;
/// Keys of the anchor's data.
pub(super) const BIND_SECRET: &str = "bind-secret";
pub(super) const KEY: &str = "key";

/// What the container of a sandbox is called; whatever else is in its pod, an admission webhook has put there.
pub(super) fn container_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Wharf => "sandbox",
        Profile::OpenHands => "runtime",
    }
}

/// What makes a sandbox's working directory in a pod of ours.
pub(super) const PREPARE: &str = "prepare";

/// The objects of one sandbox, but its anchor. The variables of the original's pod are in them: `Debug` tells the parts alone.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Objects(BTreeMap<Part, Value>);

impl<const N: usize> From<[(Part, Value); N]> for Objects {
    fn from(objects: [(Part, Value); N]) -> Self {
        Self(objects.into())
    }
}

impl Deref for Objects {
    type Target = BTreeMap<Part, Value>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Objects {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys()).finish()
    }
}

/// Where a sandbox's files are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workspace {
    /// A claim that outlives the pod.
    #[default]
    Claimed,
    /// The pod's own: gone with it.
    Ephemeral,
}

/// How sandboxd gets into the pod, decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carried {
    #[default]
    ByInitContainer,
    ByImageVolume,
}

/// What is asked for of one sandbox beyond the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub workspace: Workspace,
    pub carried: Carried,
    /// `openhands` profile: plugins in the order of the original's list, `vscode` too if it is wanted.
    pub plugins: Vec<String>,
    pub deadline_seconds: Option<u64>,
}

/// All objects of a sandbox as they are without an owner.
pub fn objects(id: &SandboxId, settings: &Settings, request: &Request) -> Objects {
    let names = Names::of(id, settings.profile);
    let mut objects = match settings.profile {
        Profile::Wharf => wharf::objects(&names, settings, request),
        Profile::OpenHands => openhands::objects(&names, settings, request),
    };
    if objects.contains_key(&Part::Policy)
        && let Some(pod) = objects.get_mut(&Part::Pod)
    {
        pod["metadata"]["labels"][labels::WALLED] = json!("yes");
    }
    objects
}

/// What users of both profiles can ask of a pod beyond what the original knows.
fn add_pod_extras(spec: &mut Map<String, Value>, settings: &Settings) {
    let mut set = |name: &str, value: Value| drop(spec.insert(name.to_owned(), value));
    if !settings.image_pull_secrets.is_empty() {
        let secrets: Vec<_> = settings.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        set("imagePullSecrets", secrets.into());
    }
    if !settings.node_selector.is_empty() {
        set("nodeSelector", json!(settings.node_selector));
    }
    if !settings.tolerations.is_empty() {
        set("tolerations", json!(settings.tolerations));
    }
    if let Some(affinity) = &settings.affinity {
        set("affinity", json!(affinity));
    }
    if let Some(class) = &settings.runtime_class {
        set("runtimeClassName", json!(class));
    }
    if let Some(account) = &settings.service_account {
        set("serviceAccountName", json!(account));
    }
}

fn add_container_extras(container: &mut Map<String, Value>, settings: &Settings) {
    if let Some(policy) = settings.image_pull_policy {
        container.insert("imagePullPolicy".to_owned(), json!(pull_policy(policy)));
    }
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn resources(settings: &Settings) -> Value {
    let mut limits = Map::from_iter([("memory".to_owned(), json!(settings.memory_limit))]);
    if let Some(cpu) = &settings.cpu_limit {
        limits.insert("cpu".to_owned(), json!(cpu));
    }
    if let Some(storage) = &settings.ephemeral_storage_limit {
        limits.insert("ephemeral-storage".to_owned(), json!(storage));
    }
    if let Some(gpu) = &settings.gpu {
        limits.insert(gpu.resource.clone(), json!(gpu.count.to_string()));
    }
    // Each limit has its request: Kubernetes would take the limit for one that is left out, and reserve all of it.
    let mut requests = json!({ "cpu": settings.cpu_request, "memory": settings.memory_request });
    if let Some(storage) = &settings.ephemeral_storage_request {
        requests["ephemeral-storage"] = json!(storage);
    }
    json!({ "limits": limits, "requests": requests })
}

/// Mounts and volumes of the settings, behind those of the profile.
fn add_extra_volumes(mounts: &mut Vec<Value>, volumes: &mut Vec<Value>, settings: &Settings) {
    for extra in &settings.extra_volumes {
        let mut mount = json!({ "name": extra.volume.name, "mountPath": extra.mount_path });
        if let Some(path) = &extra.sub_path {
            mount["subPath"] = json!(path);
        }
        if extra.read_only {
            mount["readOnly"] = json!(true);
        }
        mounts.push(mount);
        let volume = json!(extra.volume);
        // One volume may be mounted at several places.
        if !volumes.contains(&volume) {
            volumes.push(volume);
        }
    }
}

fn claim(settings: &Settings, name: &str) -> Value {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": settings.storage_size } },
    });
    if let Some(class) = &settings.storage_class {
        spec["storageClassName"] = json!(class);
    }
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name }, "spec": spec })
}

fn metadata(name: &str, labels: Value, settings: &Settings) -> Value {
    let mut metadata = json!({ "name": name, "labels": labels });
    for (name, value) in &settings.labels {
        metadata["labels"][name] = json!(value);
    }
    if !settings.annotations.is_empty() {
        metadata["annotations"] = json!(settings.annotations);
    }
    metadata
}

/// A host and its paths, each with the Service and the port that it leads to.
type HostRoutes<'a> = (String, Vec<(String, &'a str, u16)>);

/// An Ingress with one rule a host.
fn ingress(name: &str, settings: &Settings, hosts: &[String], routes: Vec<HostRoutes<'_>>) -> Value {
    let ingress = &settings.ingress;
    let rules: Vec<_> = routes
        .into_iter()
        .map(|(host, paths)| {
            let paths: Vec<_> = paths
                .into_iter()
                .map(|(path, service, port)| {
                    let backend = json!({ "service": { "name": service, "port": { "number": port } } });
                    json!({ "path": path, "pathType": "Prefix", "backend": backend })
                })
                .collect();
            json!({ "host": host, "http": { "paths": paths } })
        })
        .collect();
    let tls = match &ingress.tls_secret {
        Some(secret) => json!([{ "hosts": hosts, "secretName": secret }]),
        None => json!([]),
    };
    let mut annotations = Map::new();
    annotations.insert("external-dns.alpha.kubernetes.io/hostname".to_owned(), json!(hosts.join(",")));
    annotations.extend(ingress.annotations.iter().map(|(name, value)| (name.clone(), json!(value))));
    let mut spec = json!({ "rules": rules, "tls": tls });
    if let Some(class) = &ingress.class {
        spec["ingressClassName"] = json!(class);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": { "name": name, "annotations": annotations },
        "spec": spec,
    })
}
