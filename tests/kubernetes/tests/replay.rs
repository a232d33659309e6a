//! The 27 life cycles that were recorded of OpenHands' V0 `KubernetesRuntime`, lived through again by ours on a real cluster.
//!
//! ```text
//! golden/k8s_lifecycle.0.62.0.json ── name ──▶ scenario(): what the original has left, what goes wrong, what is asked for
//!        │                                          │ made for real in a namespace of its own, faults by a proxy
//!        │ exception, statuses, set_up, objects     ▼
//!        └──────────── equal, but for ────────── outcome of KubernetesRuntime::{connect, close, delete}
//!                 golden/differences.json
//! ```
//!
//! Each deliberate difference has its reason there. One that is not listed fails, and so does a listed one that is none.
//! Our anchor, a Secret, is an addition wherever something of ours is left.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams, WatchEvent, WatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use wharf_client::Sandbox;
use wharf_kubernetes_tests::{
    cluster::{Namespace, list_objects, settle, with_namespace},
    fault_proxy::{Action, Fault, FaultProxy, Gate, Match, Times, Verb},
};
use wharf_protocol::{SandboxId, SandboxSpec};
use wharf_runtime::{
    Lifetime,
    kubernetes::{
        Cluster, KubernetesError, KubernetesRuntime, Profile, Settings,
        contract::{Connect, SessionError, SessionStatus},
        settings::{Overrides, PullPolicy, RouteChoice, Sources},
    },
};

/// The recordings' conversation.
const ID: &str = "s1";
const POD: &str = "openhands-runtime-s1";
const ANCHOR: &str = "Secret/openhands-runtime-s1-wharf";
const IMAGE: &str = "localhost/wharf/openhands:test";
const AT_ONCE: usize = 4;
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// In place of the original's 300 s where nothing will come.
const SHORT: Duration = Duration::from_secs(4);
const SEED_PATIENCE: Duration = Duration::from_secs(90);

/// How a recorded scenario comes about.
#[derive(Clone)]
struct Scenario {
    left: Vec<Left>,
    fault: Option<Fault>,
    set: fn(&mut Settings),
    act: Act,
    /// What an error's text is to tell beyond the recording's.
    says: &'static str,
}

/// What the original has left in the namespace, without marks of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Claim,
    Pod(State),
    Service,
    CodeService,
    Ingress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Its server does not answer.
    Deaf,
    Finished,
    /// No node has what it asks for.
    Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Connect,
    Attach,
    Close,
    CloseTwice,
    CloseAttached,
    Delete,
}

#[derive(Debug, Clone)]
struct Outcome {
    /// Its type and message; of a recorded one the message's beginning.
    exception: Option<String>,
    /// Texts of errors as far as they are recorded.
    statuses: Vec<String>,
    set_up: bool,
    objects: Vec<String>,
}

fn scenario(name: &str) -> Scenario {
    use Left::{Claim, CodeService, Ingress, Pod, Service};
    let from = |act, left: &[Left]| Scenario { left: left.to_vec(), fault: None, set: |_| {}, act, says: "" };
    let connect = |left: &[Left]| from(Act::Connect, left);
    let refused = |verb, resource, code, says| Scenario {
        fault: Some(Fault::always(Match::new(verb, resource), forced(code))),
        says,
        ..connect(&[])
    };
    let running = [Claim, Pod(State::Running)];
    let all = [Claim, Pod(State::Running), Service, CodeService, Ingress];
    // Without a claim no pod ever runs; this one need not.
    let unclaimed = [Pod(State::Pending), Service, CodeService, Ingress];
    match name {
        "create_fresh" => connect(&[]),
        "create_pvc_exists" => connect(&[Claim]),
        "pod_exists_not_attach" => connect(&running),
        "attach_ok" => from(Act::Attach, &running),
        "attach_missing" => from(Act::Attach, &[]),
        "pod_get_forbidden" => refused(Verb::Get, "pods", 403, "look for Pod `openhands-runtime-s1`: forced 403"),
        "pvc_get_forbidden" => refused(
            Verb::Get,
            "persistentvolumeclaims",
            403,
            "look for PersistentVolumeClaim `openhands-runtime-s1-pvc`: forced 403",
        ),
        "pvc_get_500_exists" => Scenario {
            fault: Some(Fault {
                times: Times::N(2),
                ..Fault::once(Match::new(Verb::Get, "persistentvolumeclaims"), forced(500))
            }),
            ..connect(&[Claim])
        },
        "create_persistentvolumeclaims_forbidden" => refused(
            Verb::Create,
            "persistentvolumeclaims",
            403,
            "make PersistentVolumeClaim `openhands-runtime-s1-pvc`",
        ),
        "create_pods_forbidden" => refused(Verb::Create, "pods", 403, "make Pod `openhands-runtime-s1`: forced 403"),
        "create_services_forbidden" => refused(Verb::Apply, "services", 403, "make Service `openhands-runtime-s1-svc`"),
        "create_ingress_invalid" => {
            refused(Verb::Apply, "ingresses", 422, "make Ingress `openhands-runtime-s1-ingress-code`: forced 422")
        }
        "service_already_exists" => connect(&[Service]),
        // Ours reads the pod once and then follows it.
        "second_wait_fails" => Scenario {
            fault: Some(Fault { times: Times::N(2), ..Fault::once(Match::new(Verb::Watch, "pods"), forced(500)) }),
            ..connect(&[])
        },
        "never_ready" => Scenario {
            set: |settings| {
                settings.node_selector = BTreeMap::from([("wharf.dev/nowhere".to_owned(), "yes".to_owned())]);
                settings.start_timeout = SHORT;
            },
            says: "still scheduling: 0/1 nodes are available",
            ..connect(&[])
        },
        // An image without the original's server.
        "pod_failed" => Scenario {
            set: |settings| settings.image = Some("localhost/wharf/busybox:test".to_owned()),
            says: "/openhands/micromamba/bin/micromamba",
            ..connect(&[])
        },
        "existing_pod_finished" => connect(&[Claim, Pod(State::Finished)]),
        "attach_not_ready" => Scenario {
            set: |settings| settings.start_timeout = SHORT,
            says: "still scheduling: 0/1 nodes are available",
            ..from(Act::Attach, &[Claim, Pod(State::Pending)])
        },
        "close_all" => from(Act::Close, &all),
        "close_twice" => from(Act::CloseTwice, &all),
        "close_keep_alive" => Scenario { set: |settings| settings.keep_runtime_alive = true, ..from(Act::Close, &all) },
        "close_attached" => from(Act::CloseAttached, &all),
        "close_pod_gone" => from(Act::Close, &[Claim, Service, CodeService, Ingress]),
        "close_vscode_service_gone" => from(Act::Close, &[Pod(State::Pending), Service, Ingress]),
        "delete_all" => from(Act::Delete, &all),
        "delete_no_pvc" => from(Act::Delete, &unclaimed),
        "delete_pod_forbidden" => Scenario {
            fault: Some(Fault::always(Match::new(Verb::Delete, "pods"), forced(403))),
            says: "delete Pod `openhands-runtime-s1`: forced 403",
            ..from(Act::Delete, &all)
        },
        _ => panic!("nobody knows how `{name}` comes about"),
    }
}

fn forced(code: u16) -> Action {
    let reason = match code {
        403 => "Forbidden",
        422 => "Invalid",
        _ => "InternalError",
    };
    Action::Status { code, reason, message: format!("forced {code}"), retry_after: None }
}

fn read_golden(name: &str) -> Value {
    let path = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn recorded_scenarios(version: &str) -> Vec<Value> {
    let recording = read_golden(&format!("k8s_lifecycle.{version}.json"));
    recording["scenarios"].as_array().unwrap().clone()
}

/// A message up to what differs from cluster to cluster.
fn beginning(message: &str) -> &str {
    message.split_inclusive(": ").next().unwrap_or_default()
}

/// The same of a message that has its type before it.
fn until_it_varies(exception: &str) -> String {
    let (kind, message) = exception.split_once(": ").unwrap();
    format!("{kind}: {}", beginning(message))
}

impl Outcome {
    fn recorded(scenario: &Value) -> Self {
        let exception = &scenario["exception"];
        let exception = exception["type"].as_str().map(|kind| {
            let message = exception["message"].as_str().unwrap();
            until_it_varies(&format!("{kind}: {message}"))
        });
        let statuses = scenario["status_callbacks"].as_array().unwrap().iter().map(|status| {
            let text = status[2].as_str().unwrap();
            format!("{} {}", status[1].as_str().unwrap(), beginning(text)).trim_end().to_owned()
        });
        let objects = scenario["objects_left"].as_array().unwrap();
        let objects = objects.iter().map(|object| object.as_str().unwrap().split_once('/').unwrap().1.to_owned());
        let mut objects: Vec<_> = objects.collect();
        objects.sort();
        Self {
            exception,
            statuses: statuses.collect(),
            set_up: scenario["hooks_called"] == json!(["setup_initial_env"]),
            objects,
        }
    }

    fn fields(&self) -> BTreeMap<&'static str, Value> {
        BTreeMap::from([
            ("exception", json!(self.exception)),
            ("statuses", json!(self.statuses)),
            ("set_up", json!(self.set_up)),
            ("objects", json!(self.objects)),
        ])
    }
}

/// As the recording writes it: `pods/openhands-runtime-s1`.
fn as_recorded(object: &str) -> String {
    let (kind, name) = object.split_once('/').unwrap();
    let resource = match kind {
        "PersistentVolumeClaim" => "persistentvolumeclaims",
        "Pod" => "pods",
        "Service" => "services",
        "Ingress" => "ingresses",
        other => other,
    };
    format!("{resource}/{name}")
}

/// One scenario's namespace, with our runtime behind a proxy.
struct Stage {
    namespace: Namespace,
    proxy: FaultProxy,
    settings: Settings,
    id: SandboxId,
}

impl Stage {
    async fn new(namespace: Namespace, set: fn(&mut Settings)) -> Self {
        let proxy = FaultProxy::start(namespace.config.clone()).await;
        let overrides = Overrides {
            profile: Some(Profile::OpenHands),
            namespace: Some(namespace.name.clone()),
            image: Some(IMAGE.to_owned()),
            route: Some(RouteChoice::PodAddress),
            start_timeout: Some(START_TIMEOUT),
            storage_size: Some("64Mi".to_owned()),
            cpu_request: Some("20m".to_owned()),
            memory_request: Some("64Mi".to_owned()),
            memory_limit: Some("512Mi".to_owned()),
            ..Overrides::default()
        };
        let sources = Sources { toml: None, environment: &BTreeMap::new(), overrides, process_uid: 0 };
        let mut settings = Settings::load(&sources).unwrap().settings;
        settings.image_pull_policy = Some(PullPolicy::Never);
        set(&mut settings);
        Self { namespace, proxy, settings, id: ID.parse().unwrap() }
    }

    fn runtime(&self) -> KubernetesRuntime {
        let config = self.proxy.kube_config(&self.namespace.name);
        KubernetesRuntime::new(Cluster::of_config(config, None, false).unwrap(), self.settings.clone())
    }

    /// Makes what the original has left, as it was recorded but for image and resources; pods are waited for.
    async fn seed(&self, left: &[Left]) {
        let create_fresh = recorded_scenarios("0.62.0").swap_remove(0);
        let calls = create_fresh["api_calls"].as_array().unwrap();
        let manifest = |resource: &str, name: &str| {
            let made = calls.iter().find(|call| {
                let path = call["path"].as_str().unwrap();
                path.ends_with(&format!("/{resource}")) && call["body"]["metadata"]["name"] == name
            });
            let mut body = made.unwrap_or_else(|| panic!("{name} was recorded"))["body"].clone();
            body["metadata"]["namespace"] = json!(self.namespace.name);
            body
        };
        for left in left {
            match left {
                Left::Claim => {
                    let mut claim = manifest("persistentvolumeclaims", &format!("{POD}-pvc"));
                    claim["spec"]["resources"]["requests"]["storage"] = json!("64Mi");
                    self.make("", "PersistentVolumeClaim", claim).await;
                }
                Left::Pod(state) => {
                    let mut pod = manifest("pods", POD);
                    let container = &mut pod["spec"]["containers"][0];
                    container["image"] = json!(IMAGE);
                    container["imagePullPolicy"] = json!("Never");
                    container["resources"] = json!({ "requests": { "cpu": "20m", "memory": "64Mi" } });
                    match state {
                        State::Running => {}
                        State::Deaf => container["command"] = json!(["sleep", "1000"]),
                        State::Finished => container["command"] = json!(["true"]),
                        State::Pending => pod["spec"]["nodeSelector"] = json!({ "wharf.dev/nowhere": "yes" }),
                    }
                    self.make("", "Pod", pod).await;
                }
                Left::Service => self.make("", "Service", manifest("services", &format!("{POD}-svc"))).await,
                Left::CodeService => self.make("", "Service", manifest("services", &format!("{POD}-svc-code"))).await,
                Left::Ingress => {
                    let ingress = manifest("ingresses", &format!("{POD}-ingress-code"));
                    self.make("networking.k8s.io", "Ingress", ingress).await;
                }
            }
        }
        for left in left {
            match left {
                Left::Pod(State::Running | State::Deaf) => self.wait_for_phase("Running").await,
                Left::Pod(State::Finished) => self.wait_for_phase("Succeeded").await,
                Left::Pod(State::Pending) | Left::Claim | Left::Service | Left::CodeService | Left::Ingress => {}
            }
        }
    }

    async fn make(&self, group: &str, kind: &str, object: Value) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.namespace.client.clone(), &self.namespace.name, &resource);
        let mut object = object;
        object["apiVersion"] = json!(resource.api_version);
        object["kind"] = json!(kind);
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    async fn wait_for_phase(&self, wanted: &str) {
        let pods = self.namespace.api::<Pod>();
        let parameters = WatchParams::default().fields(&format!("metadata.name={POD}"));
        let reached = async {
            // From 0 on means: as it is now, and all that comes.
            let mut changes = pods.watch(&parameters, "0").await.unwrap().boxed();
            while let Some(change) = changes.next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = change.unwrap()
                    && let Some(status) = pod.status
                    && status.phase.as_deref() == Some(wanted)
                    && (wanted != "Running" || status.pod_ip.is_some())
                {
                    return;
                }
            }
            panic!("the watch has ended");
        };
        timeout(SEED_PATIENCE, reached).await.unwrap_or_else(|_| panic!("the original's pod is not {wanted}"));
    }

    /// Does what is asked for.
    async fn act(&self, act: Act) -> Outcome {
        let runtime = self.runtime();
        let (statuses, set_up) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        let on_status = |status| statuses.lock().unwrap().push(status);
        let exception = match act {
            Act::Connect | Act::Attach => {
                let options = Connect { attach_to_existing: act == Act::Attach, ..Connect::default() };
                let set_up = async |sandbox: &Sandbox| {
                    set_up.store(true, Ordering::Relaxed);
                    sandbox.alive().await
                };
                match runtime.connect(&self.id, &options, &on_status, &|_| {}, set_up).await {
                    // Connected is what answers.
                    Ok(sandbox) => sandbox.alive().await.map(|()| None).unwrap(),
                    Err(error) => Some(format!("{}: {error}", kind_of(&error))),
                }
            }
            Act::Close | Act::CloseTwice | Act::CloseAttached => {
                let mut closed = runtime.close(&self.id, act == Act::CloseAttached).await;
                if act == Act::CloseTwice && closed.is_ok() {
                    closed = runtime.close(&self.id, false).await;
                }
                closed.err().map(|error| format!("an error: {error}"))
            }
            Act::Delete => runtime.delete(&self.id).await.err().map(|error| format!("an error: {error}")),
        };
        let statuses = statuses.into_inner().unwrap().into_iter().map(|status| match status {
            SessionStatus::Starting => "STATUS$STARTING_RUNTIME".to_owned(),
            SessionStatus::Ready => "STATUS$READY".to_owned(),
            SessionStatus::Disconnected(text) => {
                format!("STATUS$ERROR_RUNTIME_DISCONNECTED {}", beginning(&text)).trim_end().to_owned()
            }
        });
        // As they are the moment that the call returns.
        let mut objects = list_objects(&self.namespace.client, &self.namespace.name).await;
        let anchored = objects.remove(ANCHOR).is_some();
        match act {
            Act::Connect | Act::Attach => assert_eq!(anchored, !objects.is_empty(), "an anchor holds {objects:?}"),
            Act::Close | Act::CloseTwice | Act::CloseAttached | Act::Delete => {
                assert!(!anchored || !objects.is_empty(), "an anchor holds nothing");
            }
        }
        let objects = objects.into_iter().map(|(object, found)| {
            format!("{}{}", as_recorded(&object), if found.is_being_deleted { " (being deleted)" } else { "" })
        });
        let mut objects: Vec<_> = objects.collect();
        objects.sort();
        Outcome { exception, statuses: statuses.collect(), set_up: set_up.load(Ordering::Relaxed), objects }
    }
}

fn kind_of(error: &SessionError) -> &'static str {
    match error {
        SessionError::Disconnected { .. } => "AgentRuntimeDisconnectedError",
        SessionError::NotFound { .. } => "AgentRuntimeNotFoundError",
        SessionError::SetUp(_) => "what setting up has raised",
    }
}

/// Ours against what is expected: the recording's, but for the listed differences.
fn find_surprises(name: &str, ours: &Outcome, recorded: &Outcome, differences: &Value) -> Vec<String> {
    let mut surprises = Vec::new();
    let listed = &differences[name];
    let mut ours = ours.clone();
    ours.exception = ours.exception.map(|exception| match &recorded.exception {
        Some(recorded) if exception.starts_with(recorded) => recorded.clone(),
        _ => until_it_varies(&exception),
    });
    let recorded = recorded.fields();
    for (field, ours) in ours.fields() {
        let recorded = &recorded[field];
        match listed.get(field) {
            None if ours == *recorded => {}
            None => surprises.push(format!("{name}.{field}: ours is {ours}, recorded was {recorded}")),
            Some(listed) if listed["reason"].as_str().is_none_or(str::is_empty) => {
                surprises.push(format!("{name}.{field} is listed without a reason"));
            }
            Some(_) if ours == *recorded => {
                surprises.push(format!("{name}.{field} is listed as a difference, and there is none"));
            }
            Some(listed) if ours == listed["ours"] => {}
            Some(listed) => {
                surprises.push(format!("{name}.{field}: ours is {ours}, listed is {}", listed["ours"]));
            }
        }
    }
    surprises
}

async fn replay(recording: &Value, differences: &Value) {
    let name = recording["name"].as_str().unwrap();
    let scenario = scenario(name);
    with_namespace(&name.replace('_', "-"), async |namespace| {
        let stage = Stage::new(namespace, scenario.set).await;
        stage.seed(&scenario.left).await;
        if let Some(fault) = &scenario.fault {
            stage.proxy.add(fault.clone());
        }
        let ours = stage.act(scenario.act).await;
        let mut surprises = find_surprises(name, &ours, &Outcome::recorded(recording), differences);
        let text = ours.exception.unwrap_or_default();
        if !text.contains(scenario.says) {
            surprises.push(format!("{name}: the error does not say `{}`", scenario.says));
        }
        if scenario.fault.is_some() && stage.proxy.calls().iter().all(|call| call.fault.is_none()) {
            surprises.push(format!("{name}: no call met the fault"));
        }
        assert!(surprises.is_empty(), "{}\n({name} ended with `{text}`)", surprises.join("\n"));
    })
    .await;
}

/// Runs some at a time; one that fails keeps none of the others from running. They are boxed, as they are large and a test's
/// stack is not.
async fn all<'a>(runs: impl IntoIterator<Item = (&'a str, LocalBoxFuture<'a, ()>)>) {
    let runs = runs.into_iter().map(|(name, run)| async move {
        let failed = AssertUnwindSafe(run).catch_unwind().await.is_err();
        failed.then_some(name)
    });
    let failed: Vec<_> = stream::iter(runs).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    assert!(failed.is_empty(), "failed, see above: {}", failed.join(", "));
}

#[tokio::test]
async fn each_recorded_life_cycle_goes_as_recorded_but_for_the_listed_differences() {
    let (recordings, differences) = (recorded_scenarios("0.62.0"), read_golden("differences.json"));
    assert_eq!(recordings.len(), 27);
    for (name, fields) in differences.as_object().unwrap() {
        assert!(recordings.iter().any(|recording| recording["name"] == *name), "no scenario is called `{name}`");
        for field in fields.as_object().unwrap().keys() {
            assert!(["exception", "statuses", "set_up", "objects"].contains(&field.as_str()), "{name}.{field}");
        }
    }
    // To look at some of them.
    let only = std::env::var("WHARF_REPLAY_ONLY").unwrap_or_default();
    let named = recordings.iter().map(|recording| (recording["name"].as_str().unwrap(), recording));
    let chosen = named.filter(|(name, _)| name.contains(&only));
    all(chosen.map(|(name, recording)| (name, replay(recording, &differences).boxed_local()))).await;
}

/// The outcome of closing and deleting does not hang on who has made the sandbox.
#[tokio::test]
async fn what_we_have_made_ourselves_is_closed_and_deleted_with_the_same_outcome() {
    let recordings = recorded_scenarios("0.62.0");
    let runs = ["close_all", "close_twice", "close_keep_alive", "close_attached", "close_pod_gone", "delete_all"];
    let differences = &read_golden("differences.json");
    let runs = runs.map(|name| {
        let recording = recordings.iter().find(|recording| recording["name"] == name).unwrap();
        let run = async move {
            let scenario = scenario(name);
            with_namespace(&format!("own-{}", name.replace('_', "-")), async |namespace| {
                let stage = Stage::new(namespace, scenario.set).await;
                assert_eq!(stage.act(Act::Connect).await.exception, None);
                if name == "close_pod_gone" {
                    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                    stage.namespace.api::<Pod>().delete(POD, &at_once).await.unwrap();
                    let others = ["-svc", "-svc-code"].map(|suffix| format!("Service/{POD}{suffix}"));
                    let others = others.into_iter().chain([
                        ANCHOR.to_owned(),
                        format!("PersistentVolumeClaim/{POD}-pvc"),
                        format!("Ingress/{POD}-ingress-code"),
                    ]);
                    settle(&stage.namespace.client, &stage.namespace.name, others).await;
                }
                let ours = stage.act(scenario.act).await;
                let surprises = find_surprises(name, &ours, &Outcome::recorded(recording), differences);
                assert!(surprises.is_empty(), "{}", surprises.join("\n"));
            })
            .await;
        };
        (name, run.boxed_local())
    });
    all(runs).await;
}

#[tokio::test]
async fn files_that_the_original_has_left_outlive_a_start_that_fails() {
    with_namespace("kept-files", async |namespace| {
        let stage = Stage::new(namespace, |_| {}).await;
        stage.seed(&[Left::Claim]).await;
        stage.proxy.add(Fault::always(Match::new(Verb::Create, "pods"), forced(403)));
        let ours = stage.act(Act::Connect).await;
        let text = "AgentRuntimeNotFoundError: Failed to initialize kubernetes resources: could not make Pod";
        assert!(ours.exception.as_ref().is_some_and(|exception| exception.starts_with(text)), "{ours:?}");
        assert_eq!(ours.objects, [format!("persistentvolumeclaims/{POD}-pvc")]);
        let found = stage.runtime().get(&stage.id).await.unwrap();
        assert_eq!(found.anchor.leased_until, None, "what holds a user's files is never garbage");
        stage.proxy.clear();
        let ours = stage.act(Act::Connect).await;
        assert_eq!((&ours.exception, ours.objects.len()), (&None, 5), "{ours:?}");
    })
    .await;
}

#[tokio::test]
async fn files_that_the_original_has_left_outlive_a_start_that_is_interrupted() {
    with_namespace("interrupted", async |namespace| {
        let stage = Stage::new(namespace, |_| {}).await;
        stage.seed(&[Left::Claim]).await;
        let gate = Gate::default();
        let made = Match::new(Verb::Create, "pods");
        stage.proxy.add(Fault::once(made, Action::PauseAfter(gate.clone())));
        let (runtime, spec) = (stage.runtime(), SandboxSpec::default());
        let created = runtime.create_unless(&stage.id, &spec, Lifetime::Kept, &|_| {}, gate.reached()).await;
        assert!(matches!(created, Err(KubernetesError::Interrupted(_))), "{:?}", created.err());
        let claim = stage.namespace.api::<PersistentVolumeClaim>().get(&format!("{POD}-pvc")).await.unwrap();
        assert_eq!(claim.metadata.deletion_timestamp, None);
        gate.open();
        settle(
            &stage.namespace.client,
            &stage.namespace.name,
            [format!("PersistentVolumeClaim/{POD}-pvc"), format!("Secret/{POD}-wharf")],
        )
        .await;
    })
    .await;
}

/// The only path on which the original reports an error's status: the pod is there, and its server is not.
#[tokio::test]
async fn a_server_that_never_answers_is_told_as_a_disconnection() {
    with_namespace("deaf", async |namespace| {
        let stage = Stage::new(namespace, |settings| settings.start_timeout = SHORT).await;
        stage.seed(&[Left::Claim, Left::Pod(State::Deaf)]).await;
        let ours = stage.act(Act::Connect).await;
        let recordings = recorded_scenarios("0.62.0");
        let recording = recordings.iter().find(|recording| recording["name"] == "second_wait_fails").unwrap();
        let mut recorded = Outcome::recorded(recording);
        // The pod was there already: one status less.
        recorded.statuses.remove(0);
        assert_eq!(ours.statuses, recorded.statuses);
        assert!(ours.exception.unwrap().starts_with(&recorded.exception.unwrap()));
        assert!(ours.objects.contains(&format!("pods/{POD}")), "what this call has not made stays: {:?}", ours.objects);
    })
    .await;
}

/// Section 6.2 of the specification has the texts, section 12 says why the user's id differs.
#[test]
fn the_older_recordings_differ_in_texts_of_statuses_and_in_the_user_id_only() {
    let differs = |value: &Value| {
        let mut value = value.clone();
        for field in ["log_lines", "seconds"] {
            value.as_object_mut().unwrap().remove(field);
        }
        for status in value["status_callbacks"].as_array_mut().unwrap() {
            match status[1].as_str().unwrap() {
                "ERROR$RUNTIME_CONNECTION" => {
                    status[0] = json!("info");
                    status[1] = json!("STATUS$ERROR_RUNTIME_DISCONNECTED");
                    status[2] = json!(beginning(status[2].as_str().unwrap()));
                }
                "STATUS$ERROR_RUNTIME_DISCONNECTED" => status[2] = json!(beginning(status[2].as_str().unwrap())),
                _ => status[2] = json!(""),
            }
        }
        // What follows is in the words of the recording's stand-in, with the time of the day.
        if let Some(message) = value["exception"]["message"].as_str() {
            value["exception"]["message"] = json!(beginning(message));
        }
        for call in value["api_calls"].as_array_mut().unwrap() {
            if let Some(command) = call.pointer_mut("/body/spec/containers/0/command").and_then(Value::as_array_mut) {
                let place = command.iter().position(|word| word == "--user-id").unwrap();
                command.truncate(place + 1);
            }
        }
        value
    };
    let [old, new] = ["0.48.0", "0.62.0"].map(recorded_scenarios);
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(differs(old), differs(new));
    }
    assert_eq!(old.len(), new.len());
}
