//! How sandboxes in a cluster are made: everything that can be set, read from an OpenHands `config.toml` and the
//! environment, and checked. Pure: texts in, values out.

mod check;
mod document;
#[cfg(test)]
mod examples;
mod keys;
mod literal;
mod load;
mod quantity;
mod reader;
#[cfg(test)]
mod recordings;
mod syntax;
mod tolerations;
mod value;
mod volumes;
mod words;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Affinity, Toleration, Volume};

pub use self::load::{Loaded, Overrides, Sources};
pub(super) use self::quantity::sum;

/// Whose objects a sandbox is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// Ours: any image, sandboxd carried in, restricted Pod Security, keys in a Secret, a NetworkPolicy.
    #[default]
    Wharf,
    /// Equal to those of OpenHands' V0 `KubernetesRuntime`, for its own images.
    OpenHands,
}

/// Which release of OpenHands the `openhands` profile is equal to; they differ in the server's command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenHandsVersion {
    V0_48,
    #[default]
    V0_62,
}

/// How sandboxd gets into a pod of any image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Carrier {
    /// An image volume where the API server is 1.36 or later, else an init container.
    #[default]
    Auto,
    InitContainer,
    ImageVolume,
}

/// How our bytes reach sandboxd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RouteChoice {
    /// The pod's address inside the cluster, port-forward outside.
    #[default]
    Auto,
    PodAddress,
    Service,
    PortForward,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// Whether each sandbox has a host name or a path of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IngressMode {
    /// `<id>.<domain>`
    #[default]
    Subdomain,
    /// `<domain>/<id>/`
    Path,
}

#[derive(Debug, Clone, PartialEq)]
pub struct IngressSettings {
    /// `openhands`: always made. `wharf`: made only if a domain was set.
    pub enabled: bool,
    pub domain: String,
    pub tls_secret: Option<String>,
    pub class: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub mode: IngressMode,
}

/// A volume beside the workspace, and where it is mounted.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtraVolume {
    pub volume: Volume,
    /// Absolute path in the sandbox.
    pub mount_path: String,
    pub sub_path: Option<String>,
    pub read_only: bool,
}

/// Where a sandbox's processes may connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Anywhere but the metadata addresses of clouds: also other pods, nodes and the API server.
    Open,
    /// Nowhere, DNS neither.
    None,
    /// The cluster's resolver and what is named.
    To {
        /// All public addresses but the closed networks of the settings.
        internet: bool,
        /// CIDR, without the metadata addresses in them unless one is named itself.
        networks: Vec<String>,
    },
}

impl Default for Egress {
    fn default() -> Self {
        Self::To { internet: true, networks: Vec::new() }
    }
}

/// Who answers a sandbox's questions for names, on port 53 unless it is said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolver {
    /// Pods of one namespace with all these labels.
    Pods { namespace: String, labels: BTreeMap<String, String>, port: u16 },
    /// These networks (CIDR), such as a node's cache.
    At(Vec<String>),
}

impl Default for Resolver {
    /// As Kubernetes and its distributions name it, CoreDNS too.
    fn default() -> Self {
        Self::Pods {
            namespace: "kube-system".to_owned(),
            labels: BTreeMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
            port: Self::PORT,
        }
    }
}

impl Resolver {
    /// Where DNS is spoken.
    pub const PORT: u16 = 53;
}

/// Who may connect to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Clients {
    /// Pods of the sandbox's own namespace.
    #[default]
    SameNamespace,
    /// Pods of namespaces with all these labels.
    Namespaces(BTreeMap<String, String>),
    /// Pods of any namespace of the cluster.
    Cluster,
}

/// Variables in the order in which they were written. Their values may be secrets: `Debug` tells the names alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(pub Vec<(String, String)>);

impl std::ops::Deref for Variables {
    type Target = [(String, String)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, _)| (name, "****"))).finish()
    }
}

/// Whom a sandbox's processes run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    Id(u32),
    /// The user of the image, which has to be a number that is not root's: a kubelet refuses all others.
    Image,
}

/// Accelerators of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// The extended resource, such as `nvidia.com/gpu`.
    pub resource: String,
    pub count: u32,
}

/// All settings, checked: what comes from [`Settings::load`] makes objects that the API server takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub profile: Profile,
    pub version: OpenHandsVersion,
    pub namespace: String,
    /// Which of several programs that share a namespace a sandbox belongs to; a label value.
    pub installation: String,
    /// The sandbox's image; `None` if no source names one.
    pub image: Option<String>,
    pub image_pull_policy: Option<PullPolicy>,
    pub image_pull_secrets: Vec<String>,
    /// The image that holds `/wharf-sandboxd`.
    pub sandboxd_image: String,
    pub carrier: Carrier,
    pub route: RouteChoice,
    /// How long a sandbox may take until it is ready.
    pub start_timeout: Duration,

    /// Where the workspace is mounted and commands start.
    pub workspace_path: String,
    /// Quantities are texts that Kubernetes takes, such as `2Gi` or `500m`.
    pub storage_size: String,
    pub storage_class: Option<String>,
    pub cpu_request: String,
    pub cpu_limit: Option<String>,
    pub memory_request: String,
    pub memory_limit: String,
    /// What is reserved on the node's disk; `Some` wherever there is a limit.
    pub ephemeral_storage_request: Option<String>,
    pub ephemeral_storage_limit: Option<String>,
    pub gpu: Option<Gpu>,

    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub affinity: Option<Affinity>,
    pub runtime_class: Option<String>,
    pub service_account: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub extra_volumes: Vec<ExtraVolume>,

    /// The user and group of the sandbox's processes (`wharf` profile).
    pub run_as_user: RunAs,
    pub run_as_group: u32,
    pub privileged: bool,
    /// `openhands` profile: adds what its image tolerates of the `wharf` profile's walls.
    pub hardened: bool,
    pub clients: Clients,
    pub egress: Egress,
    /// Networks (CIDR) that are no internet for a sandbox although their addresses are public, such as nodes'.
    pub closed_networks: Vec<String>,
    pub resolver: Resolver,
    pub ingress: IngressSettings,

    /// Variables of the pod, in the order in which they were written.
    pub environment: Variables,
    /// What the original exports in the agent's shell after start: `SANDBOX_ENV_*`, `ENABLE_AUTO_LINT`.
    pub initial_environment: Variables,
    pub debug: bool,
    pub enable_browser: bool,
    pub browsergym_eval_env: Option<String>,
    /// `--user-id` of the original's server.
    pub server_user_id: u32,
    /// Whether closing a session leaves its pod.
    pub keep_runtime_alive: bool,
    /// Seconds that an action may take unless it says otherwise.
    pub action_timeout_seconds: u64,
    /// `core.init_git_in_empty_workspace`, `git_user_name`, `git_user_email`.
    pub init_git_in_empty_workspace: bool,
    pub git_user_name: String,
    pub git_user_email: String,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsProblem {
    /// `kubernetes.pvc_storage_size`, the environment variable that set it, or the override's name.
    pub field: String,
    /// Cut to 200 characters; empty if there is none to show, or if it may be a secret.
    pub value: String,
    pub reason: String,
}

/// Everything that is wrong with the settings, told at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct SettingsError {
    pub problems: Vec<SettingsProblem>,
}

impl SettingsProblem {
    pub(super) fn new(field: impl Into<String>, value: impl AsRef<str>, reason: impl Into<String>) -> Self {
        Self { field: cut(&field.into()), value: cut(value.as_ref()), reason: reason.into() }
    }

    fn because(&self) -> String {
        match self.value.as_str() {
            "" => self.reason.clone(),
            value => format!("{} (it was `{value}`)", self.reason),
        }
    }
}

impl SettingsError {
    fn text(&self) -> String {
        let one = |problem: &SettingsProblem| format!("`{}` is not valid: {}", problem.field, problem.because());
        match self.problems.as_slice() {
            [problem] => one(problem),
            problems => {
                let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {}", one(problem))).collect();
                format!("{} settings are not valid:{}", problems.len(), lines.concat())
            }
        }
    }
}

/// What fits on a line, and leaves a terminal as it is.
fn cut(text: &str) -> String {
    const MOST: usize = 200;
    let visible = text.chars().flat_map(|character| {
        let hidden = character.is_control();
        hidden.then(|| character.escape_default()).into_iter().flatten().chain((!hidden).then_some(character))
    });
    visible.take(MOST).collect()
}

/// The smaller of two quantities; the first if they cannot be compared.
pub(super) fn at_most(quantity: &str, limit: &str) -> String {
    match quantity::compare(quantity, limit) {
        Some(std::cmp::Ordering::Greater) => limit.to_owned(),
        Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal) | None => quantity.to_owned(),
    }
}
