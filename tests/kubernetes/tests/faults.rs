//! Whatever goes wrong once is got over, and whatever goes wrong for ever is told and leaves nothing: each call of a
//! sandbox's life to the API server, the pod itself, and callers that race.
//!
//! ```text
//! record(): a life without faults ──▶ calls of create, get_ready, suspend, resume, remove
//!                                        │ × what can go wrong
//!                                        ▼
//! live(): a life in which each operation meets one fault ──▶ did it succeed, and which objects are there?
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    panic::AssertUnwindSafe,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::join_all};
use tokio::time::timeout;
use wharf_kubernetes_tests::{
    cluster::{Namespace, list_objects, settle, with_namespace},
    fault_proxy::{Action, Call, Fault, FaultProxy, Match, Target, Times, Verb},
};
use wharf_protocol::{SandboxId, SandboxSpec};
use wharf_runtime::{
    Lifetime,
    kubernetes::{Cluster, Found, KubernetesError, KubernetesRuntime, Settings, settings::Sources},
};

const IMAGE: &str = "localhost/wharf/debian:test";
/// The sandbox of every case; each has a namespace of its own while it lasts.
const ID: &str = "box";
const SUSPENDED: [&str; 3] = ["NetworkPolicy/wharf-box", "PersistentVolumeClaim/wharf-box", "Secret/wharf-box"];
const RUNNING: [&str; 5] =
    ["NetworkPolicy/wharf-box", "PersistentVolumeClaim/wharf-box", "Pod/wharf-box", "Secret/wharf-box", "Service/wharf-box"];
/// Cases at the same time: the machine has two processors.
const AT_ONCE: usize = 5;
/// What goes wrong once holds nobody up for longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Create,
    GetReady,
    Suspend,
    Resume,
    Remove,
}

impl Operation {
    const LIFE: [Self; 5] = [Self::Create, Self::GetReady, Self::Suspend, Self::Resume, Self::Remove];

    async fn carry_out(self, runtime: &KubernetesRuntime) -> Result<(), KubernetesError> {
        match self {
            Self::Create => create(runtime).await.map(drop),
            Self::GetReady => runtime.get_ready(&id(), &|_| {}).await.map(drop),
            Self::Suspend => runtime.suspend(&id(), &|_| {}).await,
            Self::Resume => runtime.resume(&id(), &|_| {}).await.map(drop),
            Self::Remove => runtime.remove(&id(), &|_| {}).await.map(drop),
        }
    }

    /// What is there after it.
    fn leaves(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::GetReady | Self::Resume => &RUNNING,
            Self::Suspend => &SUSPENDED,
            Self::Remove => &[],
        }
    }
}

fn id() -> SandboxId {
    ID.parse().unwrap()
}

fn spec() -> SandboxSpec {
    SandboxSpec { image: Some(IMAGE.to_owned()), ..SandboxSpec::default() }
}

async fn create(runtime: &KubernetesRuntime) -> Result<Found, KubernetesError> {
    runtime.create(&id(), &spec(), Lifetime::Kept, &|_| {}).await
}

fn settings(namespace: &str) -> Settings {
    let toml = format!(
        "[kubernetes]\nnamespace = \"{namespace}\"\nresource_cpu_request = \"20m\"\nresource_memory_request = \"64Mi\"\n\
         [wharf]\nsandboxd_image = \"localhost/wharf/sandboxd:test\"\nimage_pull_policy = \"Never\"\n\
         route = \"pod-address\"\n"
    );
    let environment = BTreeMap::new();
    let sources =
        Sources { toml: Some(&toml), environment: &environment, overrides: Default::default(), process_uid: 0 };
    Settings::load(&sources).unwrap().settings
}

/// Makes a runtime that reaches the API server through a proxy of its own.
async fn stage(namespace: &Namespace) -> (FaultProxy, KubernetesRuntime) {
    let proxy = FaultProxy::start(namespace.config.clone()).await;
    let cluster = Cluster::of_config(proxy.kube_config(&namespace.name), Some(&namespace.name), true).unwrap();
    (proxy, KubernetesRuntime::new(cluster, settings(&namespace.name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn probe() {
    with_namespace("faults", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        for operation in Operation::LIFE {
            let before = proxy.calls().len();
            let t = Instant::now();
            operation.carry_out(&runtime).await.unwrap();
            eprintln!("{operation:?} {:?}", t.elapsed());
            settle(&namespace.client, &namespace.name, operation.leaves()).await;
            eprintln!("  settled {:?}", t.elapsed());
            for call in &proxy.calls()[before..] { eprintln!("   {call}"); }
        }
    }).await;
}
