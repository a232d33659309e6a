//! One process with sandboxes of the same name in two clusters at once.
//!
//! The second is another API server of `tests/cluster` with a store of its own. It has no scheduler and no node: what is
//! made in it stays as it was made.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, ServiceAccount};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};
use wharf_kubernetes_tests::{
    cluster::{Namespace, list_objects, settle, with_namespace},
    sandbox::{self, RUNNING},
};
use wharf_runtime::{Lifetime, Status, kubernetes::Waiting};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Another cluster's API server, with a namespace of the same name in it. It ends when this is dropped.
struct Second {
    _server: Child,
    config: Config,
    client: Client,
}

impl Second {
    async fn start(namespace: &Namespace) -> Self {
        let state = env::var_os("WHARF_CLUSTER_DIR").map(PathBuf::from);
        let state = state.expect("a second API server is only for the cluster of tests/cluster: use tests/cluster/run");
        let first = fs::read_to_string(state.join("components/kube-apiserver")).unwrap();
        assert!(first.contains("--secure-port=6443"), "{first}");
        let command = first.replace("--secure-port=6443", "--secure-port=6444 --etcd-prefix=/second");
        let log = fs::File::create(state.join("logs/kube-apiserver-second.log")).unwrap();
        let server = Command::new("bash")
            .args(["-c", &command])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut config = namespace.config.clone();
        config.cluster_url = config.cluster_url.to_string().replace(":6443", ":6444").parse().unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let second = Self { _server: server, config, client };
        timeout(PATIENCE, second.make_namespace(&namespace.name)).await.expect("it answers");
        second
    }

    /// Until the server is ready, nothing can be made.
    async fn make_namespace(&self, name: &str) {
        let namespace = NamespaceObject {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..NamespaceObject::default()
        };
        let namespaces: Api<NamespaceObject> = Api::all(self.client.clone());
        while namespaces.create(&PostParams::default(), &namespace).await.is_err() {
            sleep(PAUSE).await;
        }
        // A controller manager would make it.
        let metadata = ObjectMeta { name: Some("default".to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        Api::<ServiceAccount>::namespaced(self.client.clone(), name)
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_of_one_name_in_two_clusters_know_nothing_of_each_other() {
    with_namespace("clusters", async |namespace| {
        let second = Second::start(&namespace).await;
        let runtime = |config: &Config| {
            let text = sandbox::config(&namespace.name, "route = \"pod-address\"");
            sandbox::runtime(&namespace, config.clone(), sandbox::settings(&text))
        };
        let (here, there) = (runtime(&namespace.config), runtime(&second.config));
        let (id, spec) = (sandbox::id(), sandbox::spec());
        let (told, mut hears) = watch::channel(String::new());
        let report = |waiting: &Waiting| drop(told.send_replace(waiting.to_string()));
        let both = async {
            tokio::select! {
                made = there.create(&id, &spec, Lifetime::Kept, &report) => panic!("nobody runs it: {made:?}"),
                (made, told) = async {
                    tokio::join!(
                        here.create(&id, &spec, Lifetime::Kept, &|_| {}),
                        hears.wait_for(|told| told.starts_with("scheduling")),
                    )
                } => {
                    told.unwrap();
                    made.unwrap()
                }
            }
        };
        let made = timeout(PATIENCE, both).await.unwrap();
        let (found_here, found_there) = (here.get(&id).await.unwrap(), there.get(&id).await.unwrap());
        assert!(found_here.status == Status::Ready && matches!(found_there.status, Status::Starting { .. }));
        assert!(found_here.anchor.key == made.anchor.key && found_there.anchor.key != made.anchor.key);
        let uids = async |client: &Client| -> BTreeSet<String> {
            list_objects(client, &namespace.name).await.into_values().map(|found| found.uid).collect()
        };
        assert!(uids(&namespace.client).await.is_disjoint(&uids(&second.client).await));
        here.remove(&id, &|_| {}).await.unwrap();
        settle(&namespace.client, &namespace.name, [""; 0]).await;
        settle(&second.client, &namespace.name, RUNNING).await;
    })
    .await;
}
