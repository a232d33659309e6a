//! The Role that `wharf install` prints is enough for everything that is done to a sandbox, and every right in it is used.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaim, Service},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use wharf_kubernetes_tests::{
    cluster::{Namespace, settle, with_namespace},
    fault_proxy::{FaultProxy, Match, Verb},
    sandbox::{INSTALLED, config, id, install, runtime, settings, spec},
};
use wharf_protocol::{ExecRequest, Frame};
use wharf_runtime::{
    Lifetime,
    kubernetes::{KubernetesError, KubernetesRuntime, Settings, install::manifests, labels},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Enough until events are looked at, and not more.
const A_LOOK: Duration = Duration::from_secs(3);

/// What is wanted with its rights: `verb resource`.
type Rights = BTreeSet<String>;

fn granted(settings: &Settings) -> Rights {
    let role = manifests(settings).into_iter().find(|manifest| manifest["kind"] == "Role").unwrap();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let rules = role["rules"].as_array().unwrap().iter();
    let each = rules.flat_map(|rule| {
        let verbs = texts(&rule["verbs"]);
        texts(&rule["resources"])
            .into_iter()
            .flat_map(move |resource| verbs.clone().into_iter().map(move |verb| format!("{verb} {resource}")))
    });
    each.collect()
}

/// The rights that the proxy's calls so far took.
fn used(proxy: &FaultProxy) -> Rights {
    let mut used = Rights::new();
    for call in proxy.calls() {
        let Some(resource) = call.target.resource else { continue };
        let verbs: &[&str] = match call.target.verb {
            // The first made it a tunnel; newer API servers ask for the second too.
            Verb::Connect => &["get", "create"],
            // An apply makes what is not there.
            Verb::Apply => &["patch", "create"],
            Verb::Get => &["get"],
            Verb::List => &["list"],
            Verb::Watch => &["watch"],
            Verb::Create => &["create"],
            Verb::Update => &["update"],
            Verb::Patch => &["patch"],
            Verb::Delete => &["delete"],
            Verb::DeleteCollection => &["deletecollection"],
        };
        used.extend(verbs.iter().map(|verb| format!("{verb} {resource}")));
    }
    used
}

/// What everything of the sandbox is called.
const POD: &str = "wharf-box";
const HELD: &str = "wharf.test/held";

async fn create(runtime: &KubernetesRuntime) -> Result<(), KubernetesError> {
    runtime.create(&id(), &spec(), Lifetime::Kept, &|_| {}).await.map(drop)
}

/// From its creation to its end, with all that a person looks at.
async fn live(runtime: &KubernetesRuntime) {
    create(runtime).await.unwrap();
    let found = runtime.get_ready(&id(), &|_| {}).await.unwrap();
    let request = ExecRequest { argv: vec!["pwd".to_owned()], ..ExecRequest::default() };
    let mut output = found.sandbox().unwrap().exec(&request).await.unwrap().attach(0);
    assert!(matches!(output.next().await.unwrap(), Some(Frame::Output { .. })));
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    runtime.log(&id()).await.unwrap();
    runtime.suspend(&id(), &|_| {}).await.unwrap();
    runtime.resume(&id(), &|_| {}).await.unwrap();
    runtime.collect_garbage(&|_| {}).await.unwrap();
    runtime.remove(&id(), &|_| {}).await.unwrap();
}

fn kinds() -> [(ApiResource, Value); 3] {
    let claim = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } });
    [
        (ApiResource::erase::<NetworkPolicy>(&()), json!({ "podSelector": {} })),
        (ApiResource::erase::<PersistentVolumeClaim>(&()), claim),
        (ApiResource::erase::<Service>(&()), json!({ "ports": [{ "port": 1 }] })),
    ]
}

fn api(namespace: &Namespace, kind: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(namespace.client.clone(), &namespace.name, kind)
}

/// What an earlier sandbox of the name has left.
async fn leave_remains(namespace: &Namespace, runtime: &KubernetesRuntime, more: Value) {
    for (kind, spec) in kinds() {
        let mut object = json!({
            "apiVersion": kind.api_version, "kind": kind.kind, "spec": spec,
            "metadata": {
                "name": POD,
                "labels": {
                    labels::MANAGED_BY: "wharf",
                    labels::INSTALLATION: runtime.settings().installation,
                    labels::SANDBOX: POD,
                },
            },
        });
        object["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api(namespace, &kind).patch(POD, &PatchParams::apply("wharf-test"), &Patch::Apply(object)).await.unwrap();
    }
}

/// A sandbox is made although an earlier one of its name has left things, each held up as long as a finalizer stands on it.
async fn make_over_remains(namespace: &Namespace, proxy: &FaultProxy, runtime: &KubernetesRuntime) {
    let gone = json!([{ "apiVersion": "v1", "kind": "Secret", "name": POD, "uid": "an-earlier-life" }]);
    leave_remains(namespace, runtime, json!({ "finalizers": [HELD], "ownerReferences": gone })).await;
    let released_in_turn = async {
        for (kind, _) in kinds() {
            let resource = Some(&*kind.plural.clone().leak());
            proxy.wait_for(Match { verb: Some(Verb::Watch), resource, name: None }, 1).await;
            // Only a finalizer holds it: the test's, and for a claim the cluster's own until no pod has it.
            let held = api(namespace, &kind).get(POD).await.unwrap().metadata.finalizers.unwrap_or_default();
            let others: Vec<_> = held.into_iter().filter(|finalizer| finalizer != HELD).collect();
            let released = Patch::Merge(json!({ "metadata": { "finalizers": others } }));
            api(namespace, &kind).patch(POD, &PatchParams::default(), &released).await.unwrap();
        }
        Ok(())
    };
    tokio::try_join!(create(runtime), released_in_turn).unwrap();
    runtime.remove(&id(), &|_| {}).await.unwrap();
    // What nobody owns goes on, or goes.
    for again in [true, false] {
        leave_remains(namespace, runtime, json!({})).await;
        if again {
            create(runtime).await.unwrap();
        }
        assert!(runtime.remove(&id(), &|_| {}).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_is_enough_and_each_of_its_rights_is_used() {
    with_namespace("rights", async |namespace| {
        // From outside, which takes one right more.
        let mut settings = settings(&config(&namespace.name, "route = \"port-forward\""));
        let proxy = FaultProxy::start(install(&namespace, &settings).await).await;
        let reached = |settings: &Settings| runtime(&namespace, proxy.kube_config(&namespace.name), settings.clone());
        let all = async {
            live(&reached(&settings)).await;
            make_over_remains(&namespace, &proxy, &reached(&settings)).await;
            settings.node_selector = [("wharf.dev/nowhere".to_owned(), "yes".to_owned())].into();
            settings.start_timeout = A_LOOK;
            create(&reached(&settings)).await.unwrap_err();
        };
        timeout(3 * PATIENCE, all).await.unwrap();
        settle(&namespace.client, &namespace.name, INSTALLED).await;
        let (granted, used) = (granted(&settings), used(&proxy));
        // Only API servers with OwnerReferencesPermissionEnforcement ask for it, and no call names it.
        let unseen = BTreeSet::from(["update secrets/finalizers".to_owned()]);
        let idle: Vec<_> = granted.difference(&used).filter(|right| !unseen.contains(*right)).collect();
        assert!(idle.is_empty(), "granted and not used: {idle:?}");
        let missing: Vec<_> = used.difference(&granted).collect();
        assert_eq!(missing, ["get ingresses"], "used and not granted");
    })
    .await;
}
