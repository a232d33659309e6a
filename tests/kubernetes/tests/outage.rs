//! The API server away in the middle of each step, and the kubelet during a start and an end: all goes on as soon as they
//! are back.
//!
//! It disturbs everything else on the cluster, so it is a test program of its own; nothing else is to run meanwhile. It runs
//! on the cluster of `tests/cluster` only, whose programs it stops and starts.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{env, fs, panic::AssertUnwindSafe, path::Path, time::Duration};

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::{Mutex, watch},
    time::timeout,
};
use wharf_kubernetes_tests::{
    cli::watched_wharf,
    cluster::{Namespace, settle, with_namespace},
    fault_proxy::{Action, Fault, FaultProxy, Gate, Match, Verb},
    sandbox::{IMAGE, INSTALLED, RUNNING, SUSPENDED, config, id, install, runtime, settings, spec},
};
use wharf_protocol::SandboxId;
use wharf_runtime::{
    Lifetime,
    kubernetes::{KubernetesError, KubernetesRuntime, Waiting},
};

const PATIENCE: Duration = Duration::from_secs(180);

/// Two tests at the same time would take the cluster away from one another.
static TURN: Mutex<()> = Mutex::const_new(());

#[derive(Debug, Clone, Copy)]
enum Operation {
    Create,
    Suspend,
    Resume,
    Remove,
}

impl Operation {
    async fn carry_out(self, runtime: &KubernetesRuntime) -> Result<(), KubernetesError> {
        let id = id();
        match self {
            Self::Create => runtime.create(&id, &spec(), Lifetime::Kept, &|_| {}).await.map(drop),
            Self::Suspend => runtime.suspend(&id, &|_| {}).await,
            Self::Resume => runtime.resume(&id, &|_| {}).await.map(drop),
            Self::Remove => runtime.remove(&id, &|_| {}).await.map(drop),
        }
    }

    fn leaves(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::Resume => RUNNING,
            Self::Suspend => SUSPENDED,
            Self::Remove => &[],
        }
    }
}

/// Stops or starts a program of the cluster.
async fn component(what: &str, name: &str) {
    assert!(
        env::var_os("WHARF_TEST_KUBECONFIG").is_none(),
        "outages are only for the cluster of tests/cluster: unset WHARF_TEST_KUBECONFIG"
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster/component");
    let done = Command::new(script).args([what, name]).output().await.unwrap();
    assert!(done.status.success(), "component {what} {name}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Starts what was stopped. Where there is more than one of each, a scheduler and a controller manager end once they have lost
/// their lease, and begin anew; those of an only one wait ever longer between tries, which takes minutes after the third outage.
async fn bring_back(program: &str) {
    component("start", program).await;
    if program == "kube-apiserver" {
        let anew = async |name| {
            component("stop", name).await;
            component("start", name).await;
        };
        tokio::join!(anew("kube-controller-manager"), anew("kube-scheduler"));
    }
}

/// A runtime with the rights of an installation: an API server that has just started refuses all but administrators for a
/// moment, because it has to read the roles first.
async fn stage(namespace: &Namespace) -> (FaultProxy, KubernetesRuntime) {
    let settings = settings(&config(&namespace.name, "route = \"pod-address\""));
    let proxy = FaultProxy::start(install(namespace, &settings).await).await;
    let runtime = runtime(namespace, proxy.kube_config(&namespace.name), settings);
    (proxy, runtime)
}

/// `operation` with a program of the cluster away while the request of `step` stands at the proxy and a while longer.
async fn outlive(
    proxy: &FaultProxy,
    runtime: &KubernetesRuntime,
    operation: Operation,
    program: &str,
    (matches, carried_out): (Match, bool),
) -> Result<(), String> {
    let gate = Gate::default();
    let action = if carried_out { Action::PauseAfter(gate.clone()) } else { Action::PauseBefore(gate.clone()) };
    proxy.clear();
    proxy.add(Fault::once(matches.clone(), action));
    let before = proxy.calls().len();
    let outage = async {
        gate.reached().await;
        component("stop", program).await;
        gate.open();
        if program == "kube-apiserver" {
            // It has been noticed that it is away once something was tried again.
            let noticed = async {
                while !proxy.calls()[before..].iter().any(|call| call.to_string().ends_with(": cut")) {
                    proxy.wait_for(Match::default(), proxy.calls().len() + 1).await;
                }
            };
            let _ = timeout(Duration::from_secs(2), noticed).await;
        }
        bring_back(program).await;
    };
    let (done, ()) = timeout(PATIENCE, async { tokio::join!(operation.carry_out(runtime), outage) })
        .await
        .map_err(|_| "it does not end".to_owned())?;
    done.map_err(|error| error.to_string())
}

async fn check(program: &'static str, steps: Vec<(Operation, Match, bool)>) {
    with_namespace("outage", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        let all = async {
            for (operation, matches, carried_out) in steps {
                let step = format!("{operation:?} at {matches:?}, carried out: {carried_out}");
                let outlived = outlive(&proxy, &runtime, operation, program, (matches, carried_out)).await;
                outlived.unwrap_or_else(|why| panic!("{step}: {why}"));
                settle(&namespace.client, &namespace.name, operation.leaves().iter().chain(INSTALLED)).await;
            }
        };
        let outcome = AssertUnwindSafe(all).catch_unwind().await;
        // Whatever happened, the others' cluster works again.
        bring_back(program).await;
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_api_server_or_the_kubelet_in_any_step_only_takes_time() {
    use Operation::{Create, Remove, Resume, Suspend};
    let _turn = TURN.lock().await;
    let at = Match::new;
    let steps = vec![
        // The anchor is made; the pod is made; it is waited for; it is bound and about to be kept.
        (Create, at(Verb::Create, "secrets"), true),
        (Suspend, at(Verb::Delete, "pods"), true),
        (Resume, at(Verb::Patch, "secrets"), true),
        (Remove, at(Verb::Delete, "secrets"), true),
        (Create, at(Verb::Create, "pods"), true),
        (Suspend, at(Verb::Watch, "pods"), true),
        (Resume, at(Verb::Watch, "pods"), true),
        (Remove, at(Verb::Watch, "secrets"), true),
        (Create, at(Verb::Watch, "pods"), true),
        (Remove, at(Verb::Get, "secrets"), false),
        (Create, at(Verb::Patch, "secrets"), false),
        (Suspend, at(Verb::Patch, "secrets"), false),
        (Resume, at(Verb::Create, "pods"), false),
        (Remove, at(Verb::Delete, "pods"), false),
    ];
    check("kube-apiserver", steps).await;
    check("kubelet", vec![(Create, at(Verb::Create, "pods"), false), (Remove, at(Verb::Delete, "pods"), true)]).await;
}

/// What is said of a node whose kubelet has been silent for long; nobody but a kubelet takes it back.
async fn declare_silent(nodes: &Api<Node>) {
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let silent = json!({ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown" });
        let status = Patch::Strategic(json!({ "status": { "conditions": [silent] } }));
        nodes.patch_status(&node.name_any(), &PatchParams::default(), &status).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_takes_no_sandbox_and_all_goes_on_once_it_is() {
    let _turn = TURN.lock().await;
    with_namespace("not-ready", async |namespace| {
        let (_proxy, runtime) = stage(&namespace).await;
        let (first, second): (_, SandboxId) = (id(), "second".parse().unwrap());
        let spec = spec();
        let found = runtime.create(&first, &spec, Lifetime::Kept, &|_| {}).await.unwrap();
        component("stop", "kubelet").await;
        let meanwhile = async {
            declare_silent(&Api::all(namespace.client.clone())).await;
            // What runs there goes on.
            found.sandbox().unwrap().info().await.unwrap();
            let (told, mut hears) = watch::channel(String::new());
            let report = |waiting: &Waiting| drop(told.send_replace(waiting.to_string()));
            let done = tokio::try_join!(
                runtime.create(&second, &spec, Lifetime::Kept, &report),
                runtime.suspend(&first, &|_| {}),
                async {
                    hears.wait_for(|told| told.contains("had untolerated taint")).await.unwrap();
                    component("start", "kubelet").await;
                    Ok(())
                }
            );
            done.unwrap();
        };
        let outcome = AssertUnwindSafe(timeout(PATIENCE, meanwhile)).catch_unwind().await;
        component("start", "kubelet").await;
        outcome.unwrap().expect("it ends");
        let second_objects = RUNNING.iter().map(|object| object.replace("-box", "-second"));
        let expected = SUSPENDED.iter().chain(INSTALLED).map(ToString::to_string).chain(second_objects);
        settle(&namespace.client, &namespace.name, expected).await;
        for id in [&first, &second] {
            runtime.remove(id, &|_| {}).await.unwrap();
        }
        settle(&namespace.client, &namespace.name, INSTALLED).await;
    })
    .await;
}

/// A command of the built CLI, over a port-forward, which goes through the API server and the kubelet.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_while_the_api_server_is_away_and_no_line_is_lost_or_said_twice() {
    outlives("kube-apiserver").await;
}

/// It has forgotten its pods for a moment when it is back, and says that they are not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_while_the_kubelet_is_away_and_no_line_is_lost_or_said_twice() {
    outlives("kubelet").await;
}

async fn outlives(program: &str) {
    let _turn = TURN.lock().await;
    with_namespace("command", async |namespace| {
        let files = tempfile::tempdir().unwrap();
        let image = format!("[sandbox]\nruntime_container_image = \"{IMAGE}\"\n");
        fs::write(files.path().join("config.toml"), config(&namespace.name, "route = \"port-forward\"") + &image)
            .unwrap();
        let wharf = |arguments: &[&str]| watched_wharf(files.path(), &namespace.cluster.kubeconfig, arguments);
        let made = wharf(&["create", "box"]).output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // It ends by itself long after the outage only: that it was away in the midst is sure.
        let script =
            "i=0; while [ ! -e /tmp/back ] || [ $i -lt 50 ]; do i=$((i+1)); echo $i; sleep 0.1; done; echo end; exit 7";
        let mut child = wharf(&["exec", "box", "--", "sh", "-c", script]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let all = async {
            for number in 1.. {
                let line = lines.next_line().await.unwrap();
                if line.as_deref() == Some("end") {
                    break;
                }
                assert_eq!(line, Some(number.to_string()), "line or end");
                if number == 5 {
                    component("stop", program).await;
                    bring_back(program).await;
                    loop {
                        let told = wharf(&["exec", "box", "--", "touch", "/tmp/back"]).output().await.unwrap();
                        if told.status.success() {
                            break;
                        }
                        // A command that begins while it does not know the pod is told so at once.
                        assert_eq!(program, "kubelet", "{}", String::from_utf8_lossy(&told.stderr));
                    }
                }
            }
            child.wait_with_output().await.unwrap()
        };
        let outcome = AssertUnwindSafe(timeout(PATIENCE, all)).catch_unwind().await;
        // Whatever happened, the others' cluster works again.
        component("start", program).await;
        let output = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).expect("it ends");
        assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    })
    .await;
}
