//! Settings put together: what each is called, what it is if nobody sets it, and what follows from what.

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_openapi::api::core::v1::Toleration;

use super::{
    Clients, Egress, IngressMode, IngressSettings, OpenHandsVersion, Profile, RouteChoice, RunAs, Settings,
    SettingsError, SettingsProblem, Variables, at_most,
    check::{SELECTOR_PAIR, check},
    keys::Key,
    reader::Reader,
    syntax,
    tolerations::{FromYaml, from_yaml},
};

const SANDBOXD_IMAGE: &str = concat!("ghcr.io/wharf/wharf-sandboxd:", env!("CARGO_PKG_VERSION"));
/// OpenHands' default. It does not hold OpenHands' server.
const BASE_IMAGE: &str = "nikolaik/python-nodejs:python3.12-nodejs22";
const WORKSPACE: &str = "/workspace";
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// What a sandbox reserves of its node if nobody says how much: an agent waits for its model most of the time.
const REQUESTS: Requests = Requests { cpu: "100m", memory: "256Mi" };
const OPENHANDS_REQUESTS: Requests = Requests { cpu: "1", memory: "1Gi" };
const EPHEMERAL_STORAGE_REQUEST: &str = "256Mi";
const EPHEMERAL_STORAGE_LIMIT: &str = "10Gi";
/// The first user that is not of the system, in OpenHands' image and in ours.
const FIRST_USER: u32 = 1000;

/// The texts that settings are read from, the weakest first.
#[derive(Clone)]
pub struct Sources<'a> {
    /// An OpenHands `config.toml`, as it is. Our own keys are in its section `[wharf]`.
    pub toml: Option<&'a str>,
    /// The process's environment variables.
    pub environment: &'a BTreeMap<String, String>,
    pub overrides: Overrides,
    /// The user that this process runs as: OpenHands 0.48 passes it to its server.
    pub process_uid: u32,
}

/// What is reserved for a sandbox by default.
struct Requests {
    cpu: &'static str,
    memory: &'static str,
}

/// What a caller sets, whatever the file and the environment say. A problem calls it by its name here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub profile: Option<Profile>,
    pub namespace: Option<String>,
    pub installation: Option<String>,
    pub image: Option<String>,
    pub route: Option<RouteChoice>,
    pub start_timeout: Option<Duration>,
    pub workspace_path: Option<String>,
    pub storage_size: Option<String>,
    pub storage_class: Option<String>,
    pub cpu_request: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory_request: Option<String>,
    pub memory_limit: Option<String>,
    pub ephemeral_storage_limit: Option<String>,
    pub runtime_class: Option<String>,
    pub service_account: Option<String>,
}

/// Settings, and what their sources say in vain.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub settings: Settings,
    /// Whether a source names the namespace; a kubeconfig's context may name another.
    pub namespace_is_set: bool,
    /// Each is a sentence about one thing that was passed over, or that a person should know.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the sources: the caller's overrides are stronger than the environment, this is stronger than the file,
    /// and the file is stronger than OpenHands' defaults. Names and meanings are OpenHands'; [`Profile`] says which
    /// defaults of ours are added.
    ///
    /// # Errors
    ///
    /// Every value that is wrong, and every unknown key in a section that OpenHands reads strictly, at once.
    pub fn load(sources: &Sources<'_>) -> Result<Loaded, SettingsError> {
        let mut read = Reader::open(sources.toml, sources.environment);
        let settings = read_all(&mut read, sources);
        read.problems.extend(check(&settings, &read.origins));
        if !read.problems.is_empty() {
            return Err(SettingsError { problems: read.problems });
        }
        warn_of_dangers(&settings, &mut read.warnings);
        let namespace_is_set = read.origins.is_set("kubernetes.namespace");
        Ok(Loaded { settings, namespace_is_set, warnings: read.warnings })
    }
}

impl fmt::Debug for Sources<'_> {
    /// Tells no text: any of them may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("toml_bytes", &self.toml.map(str::len))
            .field("variables", &self.environment.len())
            .field("overrides", &self.overrides)
            .field("process_uid", &self.process_uid)
            .finish()
    }
}

fn read_all(read: &mut Reader<'_>, sources: &Sources<'_>) -> Settings {
    let given = &sources.overrides;
    let profile = read.find_unless("profile", &given.profile, Key::wharf("profile")).unwrap_or_default();
    let version = read.find(Key::wharf("openhands_version")).unwrap_or_default();
    let cpu_limit = unless_empty(read.find_unless("cpu_limit", &given.cpu_limit, Key::wharf("cpu_limit")));
    let memory_limit = read
        .find_unless("memory_limit", &given.memory_limit, Key::kubernetes("resource_memory_limit"))
        .unwrap_or_else(|| "2Gi".to_owned());
    let cpu_request = read.find_unless("cpu_request", &given.cpu_request, Key::kubernetes("resource_cpu_request"));
    let memory_request =
        read.find_unless("memory_request", &given.memory_request, Key::kubernetes("resource_memory_request"));
    let ephemeral_key = Key::wharf("ephemeral_storage_limit");
    let ephemeral_storage_limit =
        read.find_unless("ephemeral_storage_limit", &given.ephemeral_storage_limit, ephemeral_key);
    let ephemeral_storage_limit = match (ephemeral_storage_limit, profile) {
        (Some(limit), _) => unless_empty(Some(limit)),
        (None, Profile::Wharf) => Some(EPHEMERAL_STORAGE_LIMIT.to_owned()),
        (None, Profile::OpenHands) => None,
    };
    let ephemeral_storage_request: Option<String> = unless_empty(read.find(Key::wharf("ephemeral_storage_request")));
    let requests = match profile {
        Profile::Wharf => REQUESTS,
        Profile::OpenHands => OPENHANDS_REQUESTS,
    };
    Settings {
        profile,
        version,
        namespace: read
            .find_unless("namespace", &given.namespace, Key::kubernetes("namespace"))
            .unwrap_or_else(|| "default".to_owned()),
        installation: read
            .find_unless("installation", &given.installation, Key::wharf("installation"))
            .unwrap_or_else(|| "default".to_owned()),
        image: image(read, given, profile),
        image_pull_policy: read.find(Key::wharf("image_pull_policy")),
        image_pull_secrets: image_pull_secrets(read),
        sandboxd_image: read.find(Key::wharf("sandboxd_image")).unwrap_or_else(|| SANDBOXD_IMAGE.to_owned()),
        carrier: read.find(Key::wharf("sandboxd_carrier")).unwrap_or_default(),
        route: read.find_unless("route", &given.route, Key::wharf("route")).unwrap_or_default(),
        start_timeout: start_timeout(read, given),

        workspace_path: workspace_path(read, given),
        storage_size: read
            .find_unless("storage_size", &given.storage_size, Key::kubernetes("pvc_storage_size"))
            .unwrap_or_else(|| "2Gi".to_owned()),
        // An empty class is one of its own: a volume that somebody made beforehand.
        storage_class: read.find_unless("storage_class", &given.storage_class, Key::kubernetes("pvc_storage_class")),
        cpu_request: request(cpu_request, requests.cpu, cpu_limit.as_deref()),
        cpu_limit,
        memory_request: request(memory_request, requests.memory, Some(&memory_limit)),
        memory_limit,
        // Kubernetes takes a limit for the request where that is left out.
        ephemeral_storage_request: ephemeral_storage_request
            .or_else(|| ephemeral_storage_limit.as_deref().map(|limit| at_most(EPHEMERAL_STORAGE_REQUEST, limit))),
        ephemeral_storage_limit,
        gpu: read.find(Key::wharf("gpu")),

        node_selector: node_selector(read),
        tolerations: tolerations(read, profile),
        affinity: read.find(Key::wharf("affinity")),
        runtime_class: unless_empty(read.find_unless(
            "runtime_class",
            &given.runtime_class,
            Key::wharf("runtime_class"),
        )),
        service_account: unless_empty(read.find_unless(
            "service_account",
            &given.service_account,
            Key::wharf("service_account"),
        )),
        labels: read.find(Key::wharf("labels")).unwrap_or_default(),
        annotations: read.find(Key::wharf("annotations")).unwrap_or_default(),
        extra_volumes: read.find(Key::wharf("extra_volumes")).unwrap_or_default(),

        run_as_user: read.find(Key::wharf("run_as_user")).unwrap_or(RunAs::Id(FIRST_USER)),
        run_as_group: read.find(Key::wharf("run_as_group")).unwrap_or(FIRST_USER),
        privileged: read.find(Key::kubernetes("privileged")).unwrap_or_default(),
        hardened: read.find(Key::wharf("hardened")).unwrap_or_default(),
        clients: read.find(Key::wharf("clients")).unwrap_or_default(),
        egress: read.find(Key::wharf("egress")).unwrap_or_default(),
        closed_networks: read
            .find::<Vec<String>>(Key::wharf("closed_networks"))
            .unwrap_or_default()
            .into_iter()
            .map(syntax::as_network)
            .collect(),
        resolver: read.find(Key::wharf("resolver")).unwrap_or_default(),
        ingress: ingress(read, profile),

        environment: read.find::<Variables>(Key::sandbox("runtime_startup_env_vars")).unwrap_or_default(),
        initial_environment: Variables(initial_environment(read)),
        debug: debug(read),
        enable_browser: read.find(Key::core("enable_browser")).unwrap_or(true),
        browsergym_eval_env: read.find(Key::sandbox("browsergym_eval_env")),
        server_user_id: server_user_id(read, profile, version, sources.process_uid),
        keep_runtime_alive: read.find(Key::sandbox("keep_runtime_alive")).unwrap_or_default(),
        action_timeout_seconds: read.find(Key::sandbox("timeout")).unwrap_or(120),
        init_git_in_empty_workspace: read.find(Key::core("init_git_in_empty_workspace")).unwrap_or_default(),
        git_user_name: read.find(Key::core("git_user_name")).unwrap_or_else(|| "openhands".to_owned()),
        git_user_email: read.find(Key::core("git_user_email")).unwrap_or_else(|| "openhands@all-hands.dev".to_owned()),
    }
}

/// An empty text counts as unset, where OpenHands has it so and in all that is ours.
fn unless_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// What is asked for if nobody says how much is the default, but never more than what is allowed.
fn request(said: Option<String>, default: &str, limit: Option<&str>) -> String {
    said.unwrap_or_else(|| limit.map_or_else(|| default.to_owned(), |limit| at_most(default, limit)))
}

fn start_timeout(read: &mut Reader<'_>, given: &Overrides) -> Duration {
    let key = Key::wharf("start_timeout_seconds");
    match given.start_timeout {
        Some(timeout) => {
            read.origins.set(key.path(), "start_timeout");
            timeout
        }
        None => read.find(key).map_or(START_TIMEOUT, Duration::from_secs),
    }
}

fn image(read: &mut Reader<'_>, given: &Overrides, profile: Profile) -> Option<String> {
    let runtime = Key::sandbox("runtime_container_image");
    let base = Key::sandbox("base_container_image");
    let ours = unless_empty(read.find_unless("image", &given.image, Key::wharf("image")));
    let (runtime_image, base_image) = (unless_empty(read.find(runtime)), unless_empty(read.find(base)));
    if ours.is_none() {
        let source = if runtime_image.is_some() { runtime } else { base };
        read.origins.set(Key::wharf("image").path(), read.origins.name(&source.path()));
    }
    let image = ours.or(runtime_image).or(base_image);
    match profile {
        Profile::Wharf => image,
        Profile::OpenHands => image.or_else(|| {
            let told = "no image is set, and `nikolaik/python-nodejs` does not hold OpenHands' server";
            read.warnings.push(format!("{told}: set `sandbox.runtime_container_image`"));
            Some(BASE_IMAGE.to_owned())
        }),
    }
}

fn image_pull_secrets(read: &mut Reader<'_>) -> Vec<String> {
    let (theirs, ours) = (Key::kubernetes("image_pull_secret"), Key::wharf("image_pull_secrets"));
    let first = unless_empty(read.find(theirs)).map(|secret| (secret, theirs.path()));
    let others: Vec<String> = read.find(ours).unwrap_or_default();
    let others = others.into_iter().enumerate().map(|(at, secret)| (secret, format!("{}[{at}]", ours.path())));
    let mut secrets: Vec<(String, String)> = Vec::new();
    for (secret, path) in first.into_iter().chain(others) {
        if !secrets.iter().any(|(known, _)| *known == secret) {
            secrets.push((secret, read.origins.name(&path)));
        }
    }
    for (at, (_, name)) in secrets.iter().enumerate() {
        read.origins.set(format!("{}[{at}]", ours.path()), name);
    }
    secrets.into_iter().map(|(secret, _)| secret).collect()
}

/// A volume that OpenHands would mount at `/workspace` moves the workspace there; no volume of its own is mounted.
fn workspace_path(read: &mut Reader<'_>, given: &Overrides) -> String {
    let key = Key::core("workspace_mount_path_in_sandbox");
    let path = read.find_unless("workspace_path", &given.workspace_path, key);
    let volumes = unless_empty(read.find(Key::sandbox("volumes")));
    let Some(volumes) = volumes else {
        return path.unwrap_or_else(|| WORKSPACE.to_owned());
    };
    let told = "mounts nothing in a cluster, `wharf.extra_volumes` does";
    read.warnings.push(format!("`{}` {told}", read.origins.name("sandbox.volumes")));
    let moves = volumes.split(',').any(|volume| volume.split(':').nth(1) == Some(WORKSPACE));
    match path {
        Some(path) if !moves || given.workspace_path.is_some() => path,
        _ => WORKSPACE.to_owned(),
    }
}

fn node_selector(read: &mut Reader<'_>) -> BTreeMap<String, String> {
    let (key, value) = (Key::kubernetes("node_selector_key"), Key::kubernetes("node_selector_val"));
    let mut selector = BTreeMap::new();
    match (unless_empty(read.find(key)), unless_empty(read.find(value))) {
        (Some(label), Some(text)) => {
            let (key, value) = (read.origins.name(&key.path()), read.origins.name(&value.path()));
            read.origins.set(format!("wharf.node_selector.{label}"), key);
            read.origins.set(format!("{SELECTOR_PAIR}.{label}"), value);
            selector.insert(label, text);
        }
        (Some(_), None) | (None, Some(_)) => {
            let (key, value) = (key.path(), value.path());
            read.warnings.push(format!("a node selector needs both `{key}` and `{value}`: the one is passed over"));
        }
        (None, None) => {}
    }
    let ours: BTreeMap<String, String> = read.find(Key::wharf("node_selector")).unwrap_or_default();
    for (label, text) in ours {
        let whole = read.origins.name("wharf.node_selector");
        read.origins.set(format!("wharf.node_selector.{label}"), format!("{whole}.{label}"));
        read.origins.set(format!("{SELECTOR_PAIR}.{label}"), format!("{whole}.{label}"));
        selector.insert(label, text);
    }
    selector
}

fn tolerations(read: &mut Reader<'_>, profile: Profile) -> Vec<Toleration> {
    let (theirs, ours) = (Key::kubernetes("tolerations_yaml"), Key::wharf("tolerations"));
    let mut tolerations = Vec::new();
    if let Some(text) = unless_empty(read.find(theirs)) {
        let field = read.origins.name(&theirs.path());
        match from_yaml(&text, &field, profile, &mut read.problems) {
            FromYaml::Tolerations(list) => tolerations = list,
            FromYaml::PassedOver(told) => read.warnings.push(told),
            FromYaml::Refused => {}
        }
    }
    let others: Vec<Toleration> = read.find(ours).unwrap_or_default();
    let path = |at: usize| format!("{}[{at}]", ours.path());
    let names: Vec<_> = (0..tolerations.len())
        .map(|at| format!("{}[{at}]", read.origins.name(&theirs.path())))
        .chain((0..others.len()).map(|at| read.origins.name(&path(at))))
        .collect();
    for (at, name) in names.into_iter().enumerate() {
        read.origins.set(path(at), name);
    }
    tolerations.extend(others);
    tolerations
}

fn ingress(read: &mut Reader<'_>, profile: Profile) -> IngressSettings {
    let domain: Option<String> = read.find(Key::kubernetes("ingress_domain"));
    IngressSettings {
        enabled: match profile {
            Profile::OpenHands => true,
            Profile::Wharf => domain.is_some(),
        },
        domain: domain.unwrap_or_else(|| "localhost".to_owned()),
        tls_secret: unless_empty(read.find(Key::kubernetes("ingress_tls_secret"))),
        class: unless_empty(read.find(Key::wharf("ingress_class"))),
        annotations: read.find(Key::wharf("ingress_annotations")).unwrap_or_default(),
        mode: read.find(Key::wharf("ingress_mode")).unwrap_or_default(),
    }
}

/// `SANDBOX_ENV_TOKEN` is `TOKEN` in the agent's shell.
fn initial_environment(read: &mut Reader<'_>) -> Vec<(String, String)> {
    const PREFIX: &str = "SANDBOX_ENV_";
    const LINT: &str = "ENABLE_AUTO_LINT";
    let variables = read.variables_after(PREFIX).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut variables: Vec<(String, String)> = variables.collect();
    for (name, _) in &variables {
        read.origins.set(format!("sandbox.initial_environment.{name}"), format!("{PREFIX}{name}"));
    }
    if read.find(Key::sandbox("enable_auto_lint")).unwrap_or(false) {
        match variables.iter_mut().find(|(name, _)| name == LINT) {
            Some((_, value)) => *value = "true".to_owned(),
            None => variables.push((LINT.to_owned(), "true".to_owned())),
        }
    }
    variables
}

/// OpenHands asks twice: its settings, for which `yes` is no word, and the variable itself, which cannot say no.
fn debug(read: &mut Reader<'_>) -> bool {
    let settings = read.find(Key::core("debug")).unwrap_or(false);
    let variable = read.variable("DEBUG").map(str::to_lowercase);
    settings || variable.is_some_and(|word| ["true", "1", "yes"].contains(&word.as_str()))
}

/// `--user-id` of the original's server. Its user's name is always `root`, `RUNTIME_USERNAME` never counts.
fn server_user_id(read: &mut Reader<'_>, profile: Profile, version: OpenHandsVersion, process_uid: u32) -> u32 {
    const VARIABLE: &str = "RUNTIME_UID";
    let as_openhands = read.find(Key::core("run_as_openhands")).unwrap_or(true);
    let configured = read.find(Key::sandbox("user_id")).unwrap_or(process_uid);
    match version {
        OpenHandsVersion::V0_48 => return if as_openhands { configured } else { 0 },
        OpenHandsVersion::V0_62 => {}
    }
    let fallback = if as_openhands { FIRST_USER } else { 0 };
    let Some(text) = read.variable(VARIABLE) else {
        return fallback;
    };
    read.origins.set(Key::sandbox("user_id").path(), VARIABLE);
    match (text.trim().parse(), profile) {
        (Ok(uid), _) => uid,
        (Err(_), Profile::OpenHands) => {
            // The original passes it on, and its server ends at once.
            read.problems.push(SettingsProblem::new(VARIABLE, text, "the number of a user is expected"));
            fallback
        }
        (Err(_), Profile::Wharf) => fallback,
    }
}

fn warn_of_dangers(settings: &Settings, warnings: &mut Vec<String>) {
    let walled = settings.profile == Profile::Wharf || settings.hardened;
    if !walled && (settings.clients != Clients::default() || settings.egress != Egress::default()) {
        warnings
            .push("`wharf.clients` and `wharf.egress` count only with `wharf.hardened` under this profile".to_owned());
    }
    if settings.profile == Profile::Wharf
        && settings.ingress.enabled
        && settings.ingress.mode == IngressMode::Path
        && settings.ingress.annotations.is_empty()
    {
        let told = "`wharf.ingress_mode` is `path`: the ingress controller has to take the path's beginning off, which \
                    `wharf.ingress_annotations` may tell it";
        warnings.push(told.to_owned());
    }
    if walled && settings.ingress.enabled && settings.clients == Clients::SameNamespace {
        warnings.push(
            "`wharf.clients` is `same-namespace`: an ingress controller of another namespace does not get through to sandboxes"
                .to_owned(),
        );
    }
    match settings.profile {
        Profile::Wharf if settings.privileged => {
            warnings.push("`kubernetes.privileged` is true: nothing keeps a sandbox from its node".to_owned());
        }
        Profile::Wharf if settings.run_as_user == RunAs::Id(0) => {
            warnings.push("`wharf.run_as_user` is 0: a namespace with restricted Pod Security refuses root".to_owned());
        }
        Profile::Wharf | Profile::OpenHands => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn load(toml: &str, variables: &[(&str, &str)], overrides: Overrides) -> Result<Loaded, SettingsError> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::load(&Sources { toml: Some(toml), environment: &environment, overrides, process_uid: 501 })
    }

    #[track_caller]
    fn settings(toml: &str, variables: &[(&str, &str)]) -> Settings {
        load(toml, variables, Overrides::default()).unwrap().settings
    }

    #[test]
    fn a_problem_names_whoever_set_the_value() {
        let toml = "
            [kubernetes]
            namespace = 'A'
            pvc_storage_size = 'much'
            node_selector_key = 'disk'
            tolerations_yaml = '[{ operator: Exists }, { key: a, operator: No }]'
            [sandbox]
            runtime_container_image = 'A'
            [wharf]
            tolerations = [{ key = 'b', effect = 'No' }]
            node_selector = { zone = '!' }
        ";
        let variables = [
            ("KUBERNETES_PVC_STORAGE_SIZE", "more"),
            ("KUBERNETES_NODE_SELECTOR_VAL", "!"),
            ("WHARF_LABELS", "{'a': '!'}"),
        ];
        let overrides = Overrides { namespace: Some("B".to_owned()), ..Overrides::default() };
        let problems = load(toml, &variables, overrides).unwrap_err().problems;
        let told: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), problem.value.as_str())).collect();
        assert_eq!(
            told,
            [
                ("namespace", "B"),
                ("sandbox.runtime_container_image", "A"),
                ("KUBERNETES_PVC_STORAGE_SIZE", "more"),
                ("KUBERNETES_NODE_SELECTOR_VAL", "!"),
                ("wharf.node_selector.zone", "!"),
                ("kubernetes.tolerations_yaml[1].operator", "No"),
                ("wharf.tolerations[0].effect", "No"),
                ("WHARF_LABELS.a", "!"),
            ]
        );
    }

    #[test]
    fn an_image_is_the_callers_else_ours_else_the_runtimes_else_the_base() {
        let base = "sandbox.base_container_image = 'base'\n";
        let runtime = "sandbox.runtime_container_image = 'runtime'\n";
        let image = |toml: &str, variables: &[_]| settings(toml, variables).image;
        assert_eq!(image("", &[]), None);
        assert_eq!(image("sandbox.runtime_container_image = ''", &[]), None);
        assert_eq!(image(base, &[]).as_deref(), Some("base"));
        assert_eq!(image(&[base, runtime].concat(), &[]).as_deref(), Some("runtime"));
        assert_eq!(image(&[base, runtime, "wharf.image = 'ours'"].concat(), &[]).as_deref(), Some("ours"));
        let overrides = Overrides { image: Some("caller".to_owned()), ..Overrides::default() };
        assert_eq!(load("wharf.image = 'ours'", &[], overrides).unwrap().settings.image.as_deref(), Some("caller"));
        assert_eq!(image("wharf.profile = 'openhands'", &[]).as_deref(), Some(BASE_IMAGE));
    }

    #[test]
    fn a_request_that_nobody_set_is_within_the_limit() {
        let small =
            "kubernetes.resource_memory_limit = '64Mi'\nwharf.cpu_limit = '50m'\nwharf.ephemeral_storage_limit = '9Mi'";
        let small = settings(small, &[]);
        assert_eq!((small.memory_request.as_str(), small.cpu_request.as_str()), ("64Mi", "50m"));
        assert_eq!(small.ephemeral_storage_request.as_deref(), Some("9Mi"));
        let large = settings("kubernetes.resource_memory_limit = '8Gi'\nwharf.cpu_limit = '4'", &[]);
        assert_eq!((large.memory_request.as_str(), large.cpu_request.as_str()), ("256Mi", "100m"));
        assert_eq!(large.ephemeral_storage_request.as_deref(), Some("256Mi"));
        // The original's own, whatever ours are.
        let theirs = settings("wharf.profile = 'openhands'\nwharf.image = 'a'", &[]);
        assert_eq!((theirs.memory_request.as_str(), theirs.cpu_request.as_str()), ("1Gi", "1"));
        assert_eq!((theirs.ephemeral_storage_request, theirs.ephemeral_storage_limit), (None, None));
        let set = "kubernetes = { resource_memory_limit = '512Mi', resource_memory_request = '1Gi' }";
        let problems = load(set, &[], Overrides::default()).unwrap_err().problems;
        assert_eq!(problems[0].field, "kubernetes.resource_memory_request");
    }

    #[test]
    fn what_openhands_has_once_we_have_many_times() {
        let toml = "
            [kubernetes]
            image_pull_secret = 'a'
            node_selector_key = 'disk'
            node_selector_val = 'ssd'
            tolerations_yaml = '[{ key: a }]'
            [wharf]
            image_pull_secrets = ['b', 'a']
            node_selector = { zone = '1' }
            tolerations = [{ key = 'b', operator = 'Exists', effect = 'NoExecute', toleration_seconds = 5 }]
        ";
        let settings = settings(toml, &[]);
        assert_eq!(settings.image_pull_secrets, ["a", "b"]);
        let selector: Vec<_> = settings.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(selector, ["disk=ssd", "zone=1"]);
        let keys: Vec<_> = settings.tolerations.iter().map(|toleration| toleration.key.as_deref()).collect();
        assert_eq!(keys, [Some("a"), Some("b")]);
    }

    #[test]
    fn a_volume_at_workspace_moves_the_workspace_but_not_the_callers() {
        let toml = "core.workspace_mount_path_in_sandbox = '/data'\n";
        let path = |variable| settings(toml, &[("SANDBOX_VOLUMES", variable)]).workspace_path;
        assert_eq!(path("/home/me:/workspace:rw"), "/workspace");
        assert_eq!(path("/home/me:/other,/b:/workspace"), "/workspace");
        assert_eq!(path("/home/me:/other"), "/data");
        assert_eq!(path(""), "/data");
        let overrides = Overrides { workspace_path: Some("/mine".to_owned()), ..Overrides::default() };
        let Loaded { settings, warnings, .. } = load(toml, &[("SANDBOX_VOLUMES", "/a:/workspace")], overrides).unwrap();
        assert_eq!(settings.workspace_path, "/mine");
        assert_eq!(warnings, ["`SANDBOX_VOLUMES` mounts nothing in a cluster, `wharf.extra_volumes` does"]);
    }

    #[test]
    fn the_user_of_the_originals_server_depends_on_its_version() {
        let user = |version, toml: &str, variables: &[_]| {
            let variables = [variables, &[("WHARF_OPENHANDS_VERSION", version)]].concat();
            settings(toml, &variables).server_user_id
        };
        let as_root = "core.run_as_openhands = false";
        assert_eq!((user("0.48", "", &[]), user("0.62", "", &[])), (501, 1000));
        assert_eq!((user("0.48", as_root, &[]), user("0.62", as_root, &[])), (0, 0));
        let uid = [("RUNTIME_UID", "42")];
        assert_eq!((user("0.48", "", &uid), user("0.62", as_root, &uid)), (501, 42));
        assert_eq!(user("0.48", "sandbox.user_id = 7", &[]), 7);
        assert_eq!(user("0.48", "", &[("SANDBOX_USER_ID", "8")]), 8);
        assert_eq!(user("0.62", "", &[("RUNTIME_UID", "me")]), 1000);
        let openhands = [("RUNTIME_UID", "me"), ("WHARF_PROFILE", "openhands")];
        assert_eq!(load("", &openhands, Overrides::default()).unwrap_err().problems[0].field, "RUNTIME_UID");
    }

    #[test]
    fn debugging_is_on_if_the_settings_or_the_variable_say_so() {
        let debug = |toml: &str, word| settings(toml, &[("DEBUG", word)]).debug;
        assert!(!settings("", &[]).debug && settings("core.debug = true", &[]).debug);
        assert!(["true", "1", "YES"].into_iter().all(|word| debug("", word)));
        assert!(["false", "no", "on"].into_iter().all(|word| !debug("core.debug = true", word)));
        assert!(debug("core.debug = true", ""));
    }

    #[test]
    fn the_agents_shell_has_what_the_process_sets_for_it() {
        let variables = [("SANDBOX_ENV_B", "2"), ("SANDBOX_ENV_ENABLE_AUTO_LINT", "no"), ("SANDBOX_ENV_A", "")];
        let pairs = |variables: Variables| {
            variables.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let lint = settings("sandbox.enable_auto_lint = true", &variables).initial_environment;
        assert_eq!(pairs(lint), ["A=", "B=2", "ENABLE_AUTO_LINT=true"]);
        let problems = load("", &[("SANDBOX_ENV_a.b", "s3cr3t")], Overrides::default()).unwrap_err().problems;
        assert_eq!((problems[0].field.as_str(), problems[0].value.as_str()), ("SANDBOX_ENV_a.b", ""));
    }

    #[test]
    fn what_a_person_should_know_is_told() {
        let warnings = |toml| load(toml, &[], Overrides::default()).unwrap().warnings;
        assert_eq!(warnings("kubernetes.namespace = 'a'"), [""; 0]);
        let told = ["`kubernetes.privileged` is true: nothing keeps a sandbox from its node"];
        assert_eq!(warnings("kubernetes.privileged = true"), told);
        assert_eq!(warnings("kubernetes.privileged = true\nwharf.profile = 'openhands'\nwharf.image = 'a'"), [""; 0]);
        assert!(warnings("kubernetes.node_selector_key = 'a'")[0].contains("needs both"));
        assert!(warnings("wharf.profile = 'openhands'")[0].starts_with("no image is set"));
    }

    #[test]
    fn sources_do_not_print_what_they_hold() {
        let environment = BTreeMap::from([("SANDBOX_ENV_TOKEN".to_owned(), "s3cr3t".to_owned())]);
        let sources = Sources {
            toml: Some("s3cr3t"),
            environment: &environment,
            overrides: Overrides::default(),
            process_uid: 0,
        };
        assert!(!format!("{sources:?}").contains("s3cr3t"));
    }
}
