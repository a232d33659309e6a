//! `wharf` in a pod of the cluster, with the account of `wharf install` and nothing else: the only way in which the original
//! works.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{path::Path, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
};
use kube::{
    ResourceExt as _,
    api::{AttachParams, DeleteParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use wharf_kubernetes_tests::{
    cluster::{Namespace, settle, with_namespace},
    sandbox::{IMAGE, INSTALLED, config, install, settings},
};
use wharf_protocol::SandboxId;
use wharf_runtime::kubernetes::{Cluster, KubernetesRuntime, Profile, contract::Connect};

const CLIENT: &str = "client";
const ACCOUNT_FILES: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A pod with the built `wharf` on its PATH, which knows nothing but that its sandboxes are pods.
async fn start_client(namespace: &Namespace, more: Value) {
    let programs = wharf_e2e::program("wharf").parent().map(Path::to_path_buf).unwrap();
    let mut spec = json!({
        "serviceAccountName": "wharf",
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": CLIENT,
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": ["sleep", "infinity"],
            "env": [
                { "name": "PATH", "value": "/programs:/usr/local/bin:/usr/bin:/bin" },
                { "name": "WHARF_RUNTIME", "value": "kubernetes" },
                { "name": "WHARF_IMAGE", "value": IMAGE },
                { "name": "WHARF_IMAGE_PULL_POLICY", "value": "Never" },
                { "name": "WHARF_SANDBOXD_IMAGE", "value": "localhost/wharf/sandboxd:test" },
                { "name": "KUBERNETES_RESOURCE_CPU_REQUEST", "value": "20m" },
                { "name": "KUBERNETES_RESOURCE_MEMORY_REQUEST", "value": "64Mi" },
            ],
            "volumeMounts": [{ "name": "programs", "mountPath": "/programs", "readOnly": true }],
        }],
        "volumes": [{ "name": "programs", "hostPath": { "path": programs } }],
    });
    let container = &mut spec["containers"][0];
    for mount in more["volumeMounts"].as_array().into_iter().flatten() {
        container["volumeMounts"].as_array_mut().unwrap().push(mount.clone());
    }
    for volume in more["volumes"].as_array().into_iter().flatten() {
        spec["volumes"].as_array_mut().unwrap().push(volume.clone());
    }
    for (name, value) in more["spec"].as_object().into_iter().flatten() {
        spec[name.as_str()] = value.clone();
    }
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": CLIENT }, "spec": spec });
    let pods = namespace.api::<Pod>();
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let running = async {
        while pods.get(CLIENT).await.unwrap().status.and_then(|status| status.phase).as_deref() != Some("Running") {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, running).await.expect("the client's pod runs");
}

/// What a script prints in the client's pod, errors too, with its exit code at the end.
async fn inside(namespace: &Namespace, script: &str) -> String {
    printed(namespace, &format!("({script}) 2>&1; echo \"[$?]\"")).await
}

/// The same, and its errors apart: a call that takes long says so in lines there.
async fn inside_apart(namespace: &Namespace, script: &str) -> (String, String) {
    let output = printed(namespace, &format!("({script}) 2>/tmp/errors; echo \"[$?]\"")).await;
    (output, printed(namespace, "cat /tmp/errors").await)
}

async fn printed(namespace: &Namespace, script: &str) -> String {
    let parameters = AttachParams::default().stderr(false);
    let mut attached = namespace.api::<Pod>().exec(CLIENT, ["bash", "-c", script], &parameters).await.unwrap();
    let mut printed = String::new();
    attached.stdout().unwrap().read_to_string(&mut printed).await.unwrap();
    printed
}

#[tokio::test]
async fn all_that_is_done_to_a_sandbox_is_done_from_a_pod_of_the_cluster_by_either_route() {
    with_namespace("in-pod", async |namespace| {
        install(&namespace, &settings(&config(&namespace.name, ""))).await;
        start_client(&namespace, json!({})).await;
        for route in ["pod-address", "service"] {
            let script = format!(
                "set -e; export WHARF_ROUTE={route}
                 wharf run -- echo once
                 wharf create box
                 wharf exec box -- sh -c 'echo kept > file'
                 wharf suspend box; wharf resume box
                 wharf cp box:file /tmp/{route}; cat /tmp/{route}
                 wharf cp /etc/hostname box:/tmp/name; wharf exec box -- cat /tmp/name
                 wharf inspect box | grep '\"route\"' | cut -d: -f2-
                 wharf rm box; wharf ls; wharf gc"
            );
            let address = match route {
                "service" => format!("wharf-box.{}.svc:8080", namespace.name),
                _ => "10.244.".to_owned(),
            };
            let (printed, errors) = inside_apart(&namespace, &script).await;
            let start = format!("once\nbox\nbox\nbox\nkept\nclient\n \"{address}");
            assert!(printed.starts_with(&start) && printed.ends_with("[0]\n"), "{route}: {printed}\n{errors}");
        }
        // In the pod's own namespace, which nobody has named.
        let left = ["Pod/client"].into_iter().chain(INSTALLED.iter().copied());
        settle(&namespace.client, &namespace.name, left).await;
    })
    .await;
}

/// It was told as "the sandbox did not answer within 10 s".
#[tokio::test]
async fn a_service_whose_name_does_not_resolve_is_told_as_that() {
    with_namespace("no-dns", async |namespace| {
        install(&namespace, &settings(&config(&namespace.name, ""))).await;
        let spec = json!({ "dnsPolicy": "None", "dnsConfig": { "nameservers": ["127.0.0.1"] } });
        start_client(&namespace, json!({ "spec": spec })).await;
        let printed = inside(&namespace, "wharf --route service create --start-timeout 5s box").await;
        let told = format!("the name `wharf-box.{}.svc` does not resolve: ", namespace.name);
        assert!(printed.contains(&told) && printed.ends_with("[125]\n"), "{printed}");
    })
    .await;
}

#[tokio::test]
async fn the_originals_names_lead_to_its_sandboxes() {
    with_namespace("urls", async |namespace| {
        let mut settings = settings(&config(&namespace.name, "image = \"localhost/wharf/openhands:test\""));
        settings.profile = Profile::OpenHands;
        install(&namespace, &settings).await;
        start_client(&namespace, json!({})).await;
        let cluster = Cluster::of_config(namespace.config.clone(), Some(&namespace.name), true).unwrap();
        let runtime = KubernetesRuntime::new(cluster, settings);
        let id: SandboxId = "0123456789abcdef".parse().unwrap();
        let set_up = async |_: &wharf_client::Sandbox| Ok::<_, std::io::Error>(());
        let options = Connect { headless: true, ..Connect::default() };
        runtime.connect(&id, &options, &|_| {}, &|_| {}, set_up).await.unwrap();
        let url = runtime.api_url(&id);
        let host = url.strip_prefix("http://").and_then(|url| url.strip_suffix(":8080")).unwrap();
        assert!(host.ends_with(&format!(".{}.svc.cluster.local", namespace.name)), "{url}");
        // Its Service opens once the pod's probe has gone well.
        let asked = format!(
            "for i in $(seq 100); do exec 3<>/dev/tcp/{host}/8080 && break; sleep 0.2; done
             printf 'GET /alive HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let printed = inside(&namespace, &asked).await;
        assert!(printed.contains("HTTP/1.1 200 OK") && printed.contains(r#"{"status":"ok"}"#), "{printed}");
        runtime.delete(&id).await.unwrap();
    })
    .await;
}

/// A token of the account that ends with a Secret.
async fn token(namespace: &Namespace, name: &str) -> String {
    let secrets = namespace.api::<Secret>();
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let secret = secrets.create(&PostParams::default(), &Secret { metadata, ..Secret::default() }).await.unwrap();
    let bound_object_ref = Some(BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(name.to_owned()),
        uid: secret.uid(),
    });
    let spec = TokenRequestSpec { bound_object_ref, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let accounts = namespace.api::<ServiceAccount>();
    let made = accounts.create_token_request("wharf", &PostParams::default(), &request).await.unwrap();
    made.status.unwrap().token
}

/// A kubelet writes a new token over the old one, which goes on for a while.
#[tokio::test]
async fn a_sandbox_outlives_the_token_that_it_was_made_with() {
    // kube reads the file again after a minute.
    const STALE_AFTER: Duration = Duration::from_secs(65);
    with_namespace("token", async |namespace| {
        install(&namespace, &settings(&config(&namespace.name, ""))).await;
        let account = json!({
            "spec": { "automountServiceAccountToken": false },
            "volumes": [{ "name": "account", "emptyDir": {} }],
            "volumeMounts": [{ "name": "account", "mountPath": ACCOUNT_FILES }],
        });
        start_client(&namespace, account).await;
        let authority = namespace.api::<ConfigMap>().get("kube-root-ca.crt").await.unwrap().data.unwrap();
        let (first, second) = (token(&namespace, "first").await, token(&namespace, "second").await);
        let written = format!(
            "cd {ACCOUNT_FILES} && echo -n {first} > token && echo -n {} > namespace && echo '{}' > ca.crt",
            namespace.name, authority["ca.crt"]
        );
        assert_eq!(inside(&namespace, &written).await, "[0]\n");
        // Its input stays open as long as the other side of the pipe has a writer. Neither holds the call's own output.
        let begun = "mkfifo /tmp/end
                     sleep 1000 > /tmp/end 2>/dev/null & echo $! > /tmp/writer
                     (wharf run -i -- sh -c 'echo begun; cat' < /tmp/end > /tmp/out 2> /tmp/errors; echo $? > /tmp/code) >/dev/null 2>&1 &
                     until grep -qs begun /tmp/out; do sleep 0.1; done";
        assert_eq!(inside(&namespace, begun).await, "[0]\n");
        let rotated = format!("cd {ACCOUNT_FILES} && echo -n {second} > new && mv new token");
        assert_eq!(inside(&namespace, &rotated).await, "[0]\n");
        tokio::time::sleep(STALE_AFTER).await;
        namespace.api::<Secret>().delete("first", &DeleteParams::default()).await.unwrap();
        let ended = "kill $(cat /tmp/writer); until [ -e /tmp/code ]; do sleep 0.1; done; cat /tmp/out /tmp/code";
        let printed = inside(&namespace, ended).await;
        assert_eq!(printed, "begun\n0\n[0]\n", "{}", inside(&namespace, "cat /tmp/errors").await);
        let left = ["Pod/client", "Secret/second"].into_iter().chain(INSTALLED.iter().copied());
        settle(&namespace.client, &namespace.name, left).await;
    })
    .await;
}
