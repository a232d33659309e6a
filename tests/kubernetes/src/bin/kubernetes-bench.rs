//! How long a sandbox in a cluster takes, beside a bare pod in the same run.
//!
//! `tests/cluster/run cargo run --release -p wharf-kubernetes-tests --bin kubernetes-bench`; all load stays in a namespace
//! of its own, which goes at the end.
#![allow(clippy::print_stdout, reason = "it prints a table")]
#![allow(clippy::unwrap_used, reason = "a failed measurement ends it")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, future::join_all, stream::BoxStream};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{
    Api,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;
use wharf_kubernetes_tests::{
    cluster::{Cluster, Namespace, with_namespace},
    fault_proxy::FaultProxy,
    sandbox::{self, IMAGE},
};
use wharf_protocol::{ExecRequest, Frame, SandboxId};
use wharf_runtime::{
    Lifetime,
    kubernetes::{KubernetesRuntime, Settings},
};

const ROUNDS: usize = 15;
const CROWD: usize = 20;
const CROWDS: usize = 5;
const BARE: &str = "a bare pod until it runs";
const WITHOUT_VOLUMES: &str = "a bare pod without even a token until it runs";
const RESTRICTED: &str = "a bare pod at the level `restricted` until it runs";
const BARE_WITH_CLAIM: &str = "a bare pod with a claim until it runs";

/// What is measured: until the phase is `Running`, or until the first byte of the first command.
#[derive(Clone, Copy)]
enum Turn<'a> {
    Bare(Bare),
    Ours(&'a KubernetesRuntime, Lifetime),
}

/// What a pod has that does nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bare {
    Nothing,
    /// A kubelet looks every 300 ms whether volumes are mounted, and the token is one.
    NoToken,
    /// What Pod Security asks for, as sandboxes have it.
    Walls,
    Claim,
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        // A cluster that is missing is told before anything is made.
        Cluster::find().await;
        // `kubernetes-bench calls` only counts.
        let only_calls = std::env::args().nth(1).is_some_and(|argument| argument == "calls");
        with_namespace("bench", async |namespace| match only_calls {
            true => calls(&namespace).await,
            false => measure(&namespace).await,
        })
        .await;
    });
}

async fn measure(namespace: &Namespace) {
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let inside = runtime(namespace, "pod-address");
    let outside = runtime(namespace, "port-forward");
    // Images are there and caches warm before the first figure.
    bare_pod(namespace, 0, Bare::Nothing).await;
    first_byte(&inside, 0, Lifetime::OfThisProcess).await;
    // Turn by turn, so that what else the machine does meets all of them.
    for round in 1..=ROUNDS {
        let mut turns = [
            (BARE, Turn::Bare(Bare::Nothing)),
            (WITHOUT_VOLUMES, Turn::Bare(Bare::NoToken)),
            (RESTRICTED, Turn::Bare(Bare::Walls)),
            (BARE_WITH_CLAIM, Turn::Bare(Bare::Claim)),
            ("run, pod address", Turn::Ours(&inside, Lifetime::OfThisProcess)),
            ("run, port-forward", Turn::Ours(&outside, Lifetime::OfThisProcess)),
            ("create, pod address", Turn::Ours(&inside, Lifetime::Kept)),
        ];
        let count = turns.len();
        turns.rotate_left(round % count);
        for (what, turn) in turns {
            times.entry(what).or_default().push(match turn {
                Turn::Bare(bare) => bare_pod(namespace, round, bare).await,
                Turn::Ours(runtime, lifetime) => first_byte(runtime, round, lifetime).await,
            });
        }
    }
    for (what, beside) in [
        (BARE, BARE),
        (WITHOUT_VOLUMES, BARE),
        (RESTRICTED, BARE),
        (BARE_WITH_CLAIM, BARE),
        ("run, pod address", BARE),
        ("run, pod address", RESTRICTED),
        ("run, port-forward", BARE),
        ("create, pod address", BARE),
        ("create, pod address", BARE_WITH_CLAIM),
    ] {
        let time = median(&times[what]);
        let ratio = time.as_secs_f64() / median(&times[beside]).as_secs_f64();
        println!("{what}: {} ms, {ratio:.2} of {beside} (medians of {ROUNDS})", time.as_millis());
    }
    many(namespace, &inside).await;
    calls(namespace).await;
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn settings(namespace: &str, route: &str) -> Settings {
    sandbox::settings(&sandbox::config(namespace, &format!("route = \"{route}\"")))
}

fn runtime(namespace: &Namespace, route: &str) -> KubernetesRuntime {
    sandbox::runtime(namespace, namespace.config.clone(), settings(&namespace.name, route))
}

/// The pod that anybody makes who says nothing else.
struct BarePod {
    name: String,
    pods: Api<Pod>,
    claims: Option<Api<PersistentVolumeClaim>>,
    changes: BoxStream<'static, kube::Result<WatchEvent<Pod>>>,
}

impl BarePod {
    /// From the request to the phase `Running`, as a watch tells it.
    async fn start(namespace: &Namespace, name: String, bare: Bare) -> Self {
        let pods: Api<Pod> = namespace.api();
        let claims = (bare == Bare::Claim).then(|| namespace.api());
        let mut pod = json!({
            "metadata": { "name": name },
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "c", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "1000"],
                    "resources": { "requests": { "cpu": "20m", "memory": "64Mi" } },
                }],
            },
        });
        if bare == Bare::NoToken {
            pod["spec"]["automountServiceAccountToken"] = json!(false);
        }
        if bare == Bare::Walls {
            pod["spec"]["securityContext"] = json!({
                "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" },
            });
            pod["spec"]["containers"][0]["securityContext"] =
                json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        }
        if claims.is_some() {
            pod["spec"]["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
        }
        let pod = serde_json::from_value(pod).unwrap();
        let claim = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
        }))
        .unwrap();
        let making = PostParams::default();
        let claimed = async {
            if let Some(claims) = &claims {
                claims.create(&making, &claim).await.unwrap();
            }
        };
        let (made, ()) = tokio::join!(pods.create(&making, &pod), claimed);
        let made = made.unwrap();
        let watch = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut changes = pods.watch(&watch, &made.metadata.resource_version.unwrap()).await.unwrap().boxed();
        while let Some(change) = changes.try_next().await.unwrap() {
            if let WatchEvent::Modified(pod) = change
                && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
            {
                break;
            }
        }
        Self { name, pods, claims, changes }
    }

    /// `sleep` is not ended by a signal that it may ignore.
    async fn remove(mut self) {
        let soon = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
        self.pods.delete(&self.name, &soon).await.unwrap();
        if let Some(claims) = &self.claims {
            claims.delete(&self.name, &DeleteParams::default()).await.unwrap();
        }
        while let Some(change) = self.changes.try_next().await.unwrap() {
            if matches!(change, WatchEvent::Deleted(_)) {
                break;
            }
        }
    }
}

async fn bare_pod(namespace: &Namespace, round: usize, bare: Bare) -> Duration {
    let started = Instant::now();
    let pod = BarePod::start(namespace, format!("bare-{round}"), bare).await;
    let took = started.elapsed();
    // Its end is not to be work beside the next figure.
    pod.remove().await;
    took
}

/// From nothing to the first byte that the first command in a sandbox prints.
async fn first_byte(runtime: &KubernetesRuntime, round: usize, lifetime: Lifetime) -> Duration {
    let id: SandboxId = format!("first-{round}").parse().unwrap();
    let started = Instant::now();
    ask(runtime, &id, lifetime).await;
    let took = started.elapsed();
    runtime.remove(&id, &|_| {}).await.unwrap();
    took
}

async fn ask(runtime: &KubernetesRuntime, id: &SandboxId, lifetime: Lifetime) {
    let found = runtime.create(id, &sandbox::spec(), lifetime, &|_| {}).await.unwrap();
    let sandbox = found.sandbox().unwrap();
    let request = ExecRequest { argv: ["echo", "hello"].map(str::to_owned).to_vec(), ..ExecRequest::default() };
    let mut output = sandbox.exec(&request).await.unwrap().attach(0);
    let Some(Frame::Output { data, .. }) = output.next().await.unwrap() else { panic!("no output of `{id}`") };
    assert_eq!(data, "hello\n".as_bytes());
}

/// Fifty one after another, and twenty at once after as many bare pods.
async fn many(namespace: &Namespace, runtime: &KubernetesRuntime) {
    let started = Instant::now();
    for number in 0..50 {
        let id: SandboxId = format!("row-{number}").parse().unwrap();
        ask(runtime, &id, Lifetime::OfThisProcess).await;
        runtime.remove(&id, &|_| {}).await.unwrap();
    }
    let each = started.elapsed() / 50;
    println!("50 one after another, made, used and removed: {} ms each", each.as_millis());

    let mut bare = Vec::new();
    let mut ours = Vec::new();
    let mut ends = Vec::new();
    for round in 0..CROWDS {
        let started = Instant::now();
        let pods = join_all(
            (0..CROWD).map(|number| BarePod::start(namespace, format!("crowd-{round}-{number}"), Bare::Walls)),
        )
        .await;
        bare.push(started.elapsed());
        join_all(pods.into_iter().map(BarePod::remove)).await;
        let ids: Vec<SandboxId> = (0..CROWD).map(|number| format!("crowd-{round}-{number}").parse().unwrap()).collect();
        let started = Instant::now();
        join_all(ids.iter().map(|id| ask(runtime, id, Lifetime::OfThisProcess))).await;
        ours.push(started.elapsed());
        let started = Instant::now();
        for removed in join_all(ids.iter().map(|id| runtime.remove(id, &|_| {}))).await {
            removed.unwrap();
        }
        ends.push(started.elapsed());
    }
    let (bare, ours) = (median(&bare), median(&ours));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!(
        "{CROWD} bare pods at the level `restricted` at once, until all run: {} ms (median of {CROWDS})",
        bare.as_millis()
    );
    println!("{CROWD} sandboxes at once, until the last has printed: {} ms, {ratio:.2} of that", ours.as_millis());
    println!("{CROWD} at once removed: {} ms", median(&ends).as_millis());
}

/// What the API server is asked in a sandbox's life, inside a cluster.
async fn calls(namespace: &Namespace) {
    let proxy = FaultProxy::start(namespace.config.clone()).await;
    let settings = settings(&namespace.name, "pod-address");
    let runtime = sandbox::runtime(namespace, proxy.kube_config(&namespace.name), settings);
    let id: SandboxId = "counted".parse().unwrap();
    let mut before = 0;
    let mut told = |what: &str| {
        let calls = proxy.calls();
        let each: Vec<_> = calls[before..].iter().map(|call| format!("{} {}", call.method, call.path)).collect();
        let short = |call: &String| call.replace(&format!("/namespaces/{}", namespace.name), "");
        println!("calls to the API server, {what}: {}", each.len());
        for call in &each {
            println!("    {}", short(call));
        }
        before = calls.len();
    };
    ask(&runtime, &id, Lifetime::Kept).await;
    told("create and the first command");
    runtime.get_ready(&id, &|_| {}).await.unwrap();
    told("every later command");
    runtime.suspend(&id, &|_| {}).await.unwrap();
    told("suspend");
    runtime.resume(&id, &|_| {}).await.unwrap();
    told("resume");
    runtime.remove(&id, &|_| {}).await.unwrap();
    told("remove");
}
