//! What a sandbox in a real cluster promises: its walls, its secrets, its files, and a pod again after every end of one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use k8s_openapi::api::{
    core::v1::{Pod, Secret},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, LogParams, ObjectMeta, PostParams, PropagationPolicy},
};
use serde_json::{Value, json};
use wharf_client::Sandbox;
use wharf_kubernetes_tests::{
    cluster::{Namespace, RESTRICTED, settle, with_labelled_namespace, with_namespace},
    sandbox::{self, IMAGE, IMAGE_OF_4242, RUNNING, id},
};
use wharf_protocol::{ExecRequest, Frame, SandboxId, SandboxSpec};
use wharf_runtime::{
    Lifetime, Status,
    kubernetes::{
        Access, Cluster, FailureKind, Found, KubernetesError, KubernetesRuntime, Refusal, Settings, contract::Connect,
    },
};

const POD: &str = "wharf-box";
/// Until the cluster has done what it was asked to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(namespace: &str, more: &str) -> Settings {
    sandbox::settings(&sandbox::config(namespace, &format!("image = \"{IMAGE}\"\n{more}")))
}

/// A runtime in the namespace, with these settings in `[wharf]`.
fn runtime(namespace: &Namespace, more: &str) -> KubernetesRuntime {
    sandbox::runtime(namespace, namespace.config.clone(), settings(&namespace.name, more))
}

async fn create(runtime: &KubernetesRuntime) -> Found {
    runtime.create(&id(), &SandboxSpec::default(), Lifetime::Kept, &|_| {}).await.unwrap()
}

async fn resume(runtime: &KubernetesRuntime) -> Found {
    runtime.resume(&id(), &|_| {}).await.unwrap()
}

fn script(text: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", text].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

/// What a script in the sandbox prints.
async fn inside(found: &Found, text: &str) -> String {
    let exec = found.sandbox().unwrap().exec(&script(text)).await.unwrap();
    let mut output = exec.attach(0);
    let mut printed = Vec::new();
    while let Some(frame) = output.next().await.unwrap() {
        match frame {
            Frame::Output { data, .. } => printed.extend_from_slice(&data),
            Frame::Exit { .. } | Frame::End { .. } => break,
            _ => {}
        }
    }
    String::from_utf8_lossy(&printed).into_owned()
}

async fn pod(namespace: &Namespace) -> Pod {
    namespace.api::<Pod>().get(POD).await.unwrap()
}

/// Waits until the runtime sees the sandbox as stopped, and gives the reason.
async fn stopped(runtime: &KubernetesRuntime) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = runtime.get(&id()).await.unwrap().status;
        if let Status::Stopped { reason } = status {
            return reason;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn answer(address: &str, method: &str, path: &str, key: Option<&str>, body: &str) -> StatusCode {
    let mut request = Request::builder()
        .method(method.to_ascii_uppercase().parse::<Method>().unwrap())
        .uri(format!("http://{address}:8080{path}"))
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let client = HttpClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = request.body(Full::from(body.to_owned())).unwrap();
    client.request(request).await.unwrap().status()
}

#[tokio::test]
async fn files_survive_suspension_and_the_key_stays() {
    with_namespace("files", async |namespace| {
        let runtime = runtime(&namespace, "");
        let made = create(&runtime).await;
        inside(&made, "echo kept > file; echo gone > /tmp/file").await;
        runtime.suspend(&id(), &|_| {}).await.unwrap();
        assert_eq!(runtime.get(&id()).await.unwrap().status, Status::Suspended);
        let resumed = resume(&runtime).await;
        assert_eq!(inside(&resumed, "cat file; cat /tmp/file 2>&1 >/dev/null | wc -l").await, "kept\n1\n");
        assert_eq!(resumed.anchor.key.reveal(), made.anchor.key.reveal());
        assert_eq!(resumed.anchor.uid, made.anchor.uid);
        // Whoever comes later, knowing nothing but the cluster.
        let other = self::runtime(&namespace, "").get_ready(&id(), &|_| {}).await.unwrap();
        assert_eq!(inside(&other, "cat file").await, "kept\n");
        assert!(runtime.remove(&id(), &|_| {}).await.unwrap());
        settle(&namespace.client, &namespace.name, [""; 0]).await;
    })
    .await;
}

/// git works only in a directory of its user's own; whoami, ssh and a prompt need a name.
#[tokio::test]
async fn the_working_directory_belongs_to_the_sandboxs_user_who_has_a_name_and_a_home() {
    const LOOK: &str = "git init -q . && git status -s && stat -c '%U %u' . && whoami && cd && pwd && touch here";
    let expected = "sandbox 1000\nsandbox\n/workspace\n";
    with_labelled_namespace("ownership", RESTRICTED, async |namespace| {
        for image in [IMAGE, IMAGE_OF_4242] {
            let runtime = runtime(&namespace, "");
            let spec = SandboxSpec { image: Some(image.to_owned()), ..SandboxSpec::default() };
            for lifetime in [Lifetime::Kept, Lifetime::OfThisProcess] {
                let made = runtime.create(&id(), &spec, lifetime, &|_| {}).await.unwrap();
                assert_eq!(inside(&made, &format!("({LOOK}) 2>&1")).await, expected, "{image} {lifetime:?}");
                if lifetime == Lifetime::Kept {
                    runtime.suspend(&id(), &|_| {}).await.unwrap();
                    let resumed = resume(&runtime).await;
                    assert_eq!(inside(&resumed, "git status -s; stat -c %U .; ls").await, "?? here\nsandbox\nhere\n");
                }
                runtime.remove(&id(), &|_| {}).await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_images_own_user_is_used_where_it_is_a_number_and_a_root_image_says_why_not() {
    with_labelled_namespace("image-user", RESTRICTED, async |namespace| {
        let runtime = runtime(&namespace, "run_as_user = \"image\"");
        let spec = SandboxSpec { image: Some(IMAGE_OF_4242.to_owned()), ..SandboxSpec::default() };
        let made = runtime.create(&id(), &spec, Lifetime::Kept, &|_| {}).await.unwrap();
        let look = "(git init -q . && git status -s && stat -c '%u' . && id -u && whoami) 2>&1";
        assert_eq!(inside(&made, look).await, "4242\n4242\nsandbox\n");
        runtime.remove(&id(), &|_| {}).await.unwrap();
        let error = runtime.create(&id(), &SandboxSpec::default(), Lifetime::Kept, &|_| {}).await.unwrap_err();
        let KubernetesError::Failed { failure, .. } = &error else { panic!("{error}") };
        assert_eq!(failure.kind, FailureKind::ImageUser);
        assert!(failure.message.contains("image will run as root"), "{error}");
        settle(&namespace.client, &namespace.name, [""; 0]).await;
    })
    .await;
}

#[tokio::test]
async fn nobody_is_answered_without_the_key() {
    with_namespace("key", async |namespace| {
        let found = create(&runtime(&namespace, "")).await;
        let address = pod(&namespace).await.status.unwrap().pod_ip.unwrap();
        let api: Value = serde_json::from_str(include_str!("../../../crates/wharf-sandboxd/openapi.json")).unwrap();
        let mut asked = 0;
        for (path, methods) in api["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                for key in [None, Some("wrong")] {
                    let status = answer(&address, method, &path.replace("{id}", "x"), key, "{}").await;
                    if path == "/v1/bind" {
                        // Whoever is bound says so before anything else.
                        continue;
                    }
                    let open = path == "/v1/health";
                    assert_eq!(status, if open { 200 } else { 401 }, "{method} {path} {key:?}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 40, "{asked}");
        let bind = json!(found.anchor.bind_request()).to_string();
        let secret = found.anchor.bind_secret.reveal();
        assert_eq!(answer(&address, "post", "/v1/bind", Some("wrong"), &bind).await, 409);
        assert_eq!(answer(&address, "post", "/v1/bind", Some(secret), &bind).await, 409);
        assert_eq!(answer(&address, "get", "/v1/info", Some(secret), "").await, 401);
        assert_eq!(answer(&address, "get", "/v1/info", Some(found.anchor.key.reveal()), "").await, 200);
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_has_no_privilege_no_token_and_no_secret_in_sight() {
    with_labelled_namespace("walls", RESTRICTED, async |namespace| {
        let found = create(&runtime(&namespace, "")).await;
        let status = inside(&found, "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status").await;
        for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{line}:\t0000000000000000")), "{status}");
        }
        assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
        assert_eq!(inside(&found, "ls /var/run/secrets/kubernetes.io 2>&1 | grep -c 'No such'").await, "1\n");
        let seen = inside(&found, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; env").await;
        assert!(seen.contains("wharf-sandboxd"), "{seen}");
        let object = json!(pod(&namespace).await).to_string();
        let log = namespace
            .api::<Pod>()
            .logs(POD, &LogParams { container: Some("sandbox".to_owned()), ..LogParams::default() })
            .await
            .unwrap();
        for secret in [found.anchor.key.reveal(), found.anchor.bind_secret.reveal()] {
            let look = format!("grep -rsF {secret} /wharf /run /etc /tmp /workspace; true");
            assert_eq!(inside(&found, &look).await, "", "a secret is in a file");
            for (place, text) in [("processes", &seen), ("pod", &object), ("log", &log)] {
                assert!(!text.contains(secret), "a secret is in the {place}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_network_policy_says_who_may_come_in_and_where_it_may_go() {
    with_namespace("policy", async |namespace| {
        let no_sandbox = json!([{
            "podSelector": { "matchExpressions": [{ "key": "wharf.dev/sandbox", "operator": "DoesNotExist" }] }
        }]);
        let cases = [
            ("", no_sandbox.clone(), "0.0.0.0/0"),
            ("clients = \"cluster\"\negress = \"none\"", json!([{ "namespaceSelector": {} }]), ""),
            ("egress = [\"169.254.0.0/16\", \"10.9.0.0/16\"]", no_sandbox.clone(), "10.9.0.0/16"),
            ("egress = \"open\"", no_sandbox, "0.0.0.0/0"),
        ];
        for (settings, from, egress) in cases {
            let runtime = runtime(&namespace, settings);
            create(&runtime).await;
            let policy = namespace.api::<NetworkPolicy>().get(POD).await.unwrap();
            let spec = json!(policy.spec.unwrap());
            assert_eq!(spec["podSelector"]["matchLabels"], json!({ "wharf.dev/sandbox": POD }), "{settings}");
            assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]), "{settings}");
            assert_eq!(spec["ingress"][0]["from"], from, "{settings}");
            let rules = spec["egress"].to_string();
            if egress.is_empty() {
                // The API server leaves an empty list out; nothing is open either way.
                assert!(["null", "[]"].contains(&rules.as_str()), "{rules}");
            } else {
                // Whatever holds the metadata addresses has them taken out, alone or with their whole network.
                assert!(rules.contains(egress) && rules.contains("169.254."), "{rules}");
                for rule in spec["egress"].as_array().unwrap().iter().flat_map(|rule| rule["to"].as_array().unwrap()) {
                    assert_ne!(rule["ipBlock"]["cidr"], "169.254.169.254/32", "{rules}");
                }
            }
            let labels = json!(pod(&namespace).await.labels());
            assert_eq!((&labels["wharf.dev/sandbox"], &labels["wharf.dev/walled"]), (&json!(POD), &json!("yes")));
            runtime.remove(&id(), &|_| {}).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn two_installations_in_a_namespace_leave_each_other_alone() {
    with_namespace("two", async |namespace| {
        let (one, other) =
            (runtime(&namespace, "installation = \"one\""), runtime(&namespace, "installation = \"other\""));
        let made = create(&one).await;
        assert!(other.list().await.unwrap().is_empty());
        assert_eq!(one.list().await.unwrap().len(), 1);
        let foreign = |error: KubernetesError| match error {
            KubernetesError::Refused(Refusal::Foreign { owner, .. }) => assert_eq!(owner, "installation `one`"),
            error => panic!("{error}"),
        };
        foreign(other.create(&id(), &SandboxSpec::default(), Lifetime::Kept, &|_| {}).await.unwrap_err());
        foreign(other.get(&id()).await.unwrap_err());
        foreign(other.suspend(&id(), &|_| {}).await.unwrap_err());
        foreign(other.resume(&id(), &|_| {}).await.unwrap_err());
        foreign(other.remove(&id(), &|_| {}).await.unwrap_err());
        let collected = other.collect_garbage(&|_| {}).await.unwrap();
        assert!(collected.removed.is_empty() && collected.failed.is_empty(), "{collected:?}");
        assert_eq!(inside(&made, "echo untouched").await, "untouched\n");
        assert_eq!(one.get(&id()).await.unwrap().status, Status::Ready);
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_was_evicted_deleted_or_has_finished_is_replaced_with_its_files() {
    with_namespace("ends", async |namespace| {
        let runtime = runtime(&namespace, "");
        let mut found = create(&runtime).await;
        inside(&found, "echo kept > file").await;
        let pods = namespace.api::<Pod>();
        for end in ["evicted", "deleted", "finished"] {
            let before = pod(&namespace).await.uid();
            match end {
                "evicted" => drop(pods.evict(POD, &EvictParams::default()).await.unwrap()),
                "deleted" => drop(pods.delete(POD, &DeleteParams::default()).await.unwrap()),
                // sandboxd is the first process, of the same user, and cuts our connection when it ends.
                _ => drop(found.sandbox().unwrap().exec(&script("kill -TERM 1")).await),
            }
            let reason = stopped(&runtime).await;
            assert!(!reason.is_empty());
            let refused = runtime.get_ready(&id(), &|_| {}).await.unwrap_err();
            assert!(matches!(refused, KubernetesError::NotRunning { .. }), "{refused}");
            found = resume(&runtime).await;
            assert_ne!(pod(&namespace).await.uid(), before, "{end}");
            assert_eq!(inside(&found, "cat file").await, "kept\n", "{end}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_is_ending_is_waited_out() {
    with_namespace("ending", async |namespace| {
        let runtime = runtime(&namespace, "");
        let found = create(&runtime).await;
        inside(&found, "echo kept > file; trap '' TERM HUP; (while :; do sleep 1; done) > /dev/null 2>&1 &").await;
        let before = pod(&namespace).await.uid();
        namespace.api::<Pod>().delete(POD, &DeleteParams::default()).await.unwrap();
        let resumed = resume(&runtime).await;
        assert_ne!(pod(&namespace).await.uid(), before);
        assert_eq!(inside(&resumed, "cat file").await, "kept\n");
    })
    .await;
}

#[tokio::test]
async fn processes_may_take_their_time_to_end_when_a_sandbox_is_suspended() {
    with_namespace("grace", async |namespace| {
        let runtime = runtime(&namespace, "");
        let found = create(&runtime).await;
        let patient = "trap 'sleep 7; echo flushed > file; exit' TERM HUP; touch ready; while :; do sleep 0.1; done";
        inside(&found, &format!("sh -c \"{patient}\" > /dev/null 2>&1 & until [ -e ready ]; do sleep 0.1; done")).await;
        runtime.suspend(&id(), &|_| {}).await.unwrap();
        assert_eq!(inside(&resume(&runtime).await, "cat file").await, "flushed\n");
    })
    .await;
}

/// As `kubectl delete --cascade=orphan` does, and as a backup brings it back.
#[tokio::test]
async fn files_that_were_cut_loose_from_their_sandbox_are_those_of_the_next() {
    with_namespace("loose", async |namespace| {
        let runtime = runtime(&namespace, "");
        inside(&create(&runtime).await, "echo kept > file").await;
        let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        namespace.api::<Secret>().delete(POD, &orphan).await.unwrap();
        namespace.api::<Pod>().delete(POD, &DeleteParams::default()).await.unwrap();
        let left = ["NetworkPolicy/wharf-box", "PersistentVolumeClaim/wharf-box", "Service/wharf-box"];
        settle(&namespace.client, &namespace.name, left).await;
        let found = create(&runtime).await;
        assert_eq!(inside(&found, "cat file").await, "kept\n");
        assert_eq!(found.anchor.leased_until, None, "what holds a user's files is never garbage");
        settle(&namespace.client, &namespace.name, RUNNING).await;
        runtime.remove(&id(), &|_| {}).await.unwrap();
        settle(&namespace.client, &namespace.name, [""; 0]).await;
    })
    .await;
}

#[tokio::test]
async fn garbage_of_another_profile_is_its_own_and_takes_no_sandbox_of_the_same_name_along() {
    with_namespace("profiles", async |namespace| {
        let runtime = runtime(&namespace, "");
        create(&runtime).await;
        let secrets = namespace.api::<Secret>();
        let mut anchor = secrets.get(POD).await.unwrap();
        anchor.metadata = ObjectMeta {
            name: Some("openhands-runtime-box-wharf".to_owned()),
            labels: anchor.metadata.labels,
            annotations: anchor.metadata.annotations,
            ..ObjectMeta::default()
        };
        let annotations = anchor.metadata.annotations.as_mut().unwrap();
        annotations.insert("wharf.dev/profile".to_owned(), "openhands".to_owned());
        annotations.insert("wharf.dev/leased-until".to_owned(), "2020-01-01T00:00:00Z".to_owned());
        secrets.create(&PostParams::default(), &anchor).await.unwrap();
        let collected = runtime.collect_garbage(&|_| {}).await.unwrap();
        assert!(collected.removed.is_empty() && collected.failed.is_empty(), "{collected:?}");
        assert_eq!(runtime.list().await.unwrap().len(), 1);
        assert_eq!(runtime.get(&id()).await.unwrap().status, Status::Ready);
    })
    .await;
}

#[tokio::test]
async fn a_session_without_an_image_is_refused_before_anything_is_made() {
    with_namespace("no-image", async |namespace| {
        let set_up = async |_: &Sandbox| Ok::<_, Infallible>(());
        let settings = sandbox::settings(&sandbox::config(&namespace.name, ""));
        let runtime = sandbox::runtime(&namespace, namespace.config.clone(), settings);
        let connected = runtime.connect(&id(), &Connect::default(), &|_| {}, &|_| {}, set_up).await;
        let error = connected.err().unwrap().to_string();
        assert!(error.contains("image") && error.contains("a sandbox in a cluster needs a container image"), "{error}");
        settle(&namespace.client, &namespace.name, [""; 0]).await;
    })
    .await;
}

#[tokio::test]
async fn two_contexts_are_used_at_once() {
    with_namespace("contexts", async |namespace| {
        let access =
            Access { kubeconfig: Some(namespace.cluster.kubeconfig.clone()), context: Some("wharf-second".to_owned()) };
        let second = Cluster::find(&access, None).await.unwrap();
        assert_eq!(second.namespace(), "second");
        let name: SandboxId = namespace.name.parse().unwrap();
        let second = KubernetesRuntime::new(second, settings("second", ""));
        let first = runtime(&namespace, "");
        let spec = SandboxSpec::default();
        let (here, there) = tokio::join!(
            first.create(&name, &spec, Lifetime::Kept, &|_| {}),
            second.create(&name, &spec, Lifetime::OfThisProcess, &|_| {})
        );
        let (here, there) = (here.unwrap(), there.unwrap());
        assert_eq!(tokio::join!(inside(&here, "echo 1"), inside(&there, "echo 2")), ("1\n".into(), "2\n".into()));
        assert_ne!(here.anchor.uid, there.anchor.uid);
        assert!(second.remove(&name, &|_| {}).await.unwrap());
        assert_eq!(first.get(&name).await.unwrap().status, Status::Ready);
        let left: Api<Pod> = Api::namespaced(namespace.client.clone(), "second");
        assert!(left.get_opt(&there.names.pod).await.unwrap().is_none());
    })
    .await;
}
