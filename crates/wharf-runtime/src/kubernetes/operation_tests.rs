//! Operations against an API server in memory: what they send, and what becomes of what it answers.

use std::{sync::Mutex, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use wharf_protocol::{SandboxId, SandboxSpec};

use super::{
    ApiErrorKind, KubernetesError, KubernetesRuntime, Lifetime, Observed, Part, Waiting,
    anchor::{Anchor, AnchorChange, Wanted},
    apply::Apply,
    contract::{Connect, SessionError, SessionStatus},
    mock_server::MockServer,
};

const NAME: &str = "wharf-box";
const CONFIG: &str = "kubernetes.namespace = 'test'\nwharf.image = 'i'";
/// A sandbox that nobody brings to run is given up in this time.
const PATIENCE: Duration = Duration::from_secs(600);

fn id() -> SandboxId {
    "box".parse().unwrap()
}

fn unschedulable() -> Value {
    json!({ "phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."
    }] })
}

async fn create(runtime: &KubernetesRuntime) -> Result<(), KubernetesError> {
    runtime.create(&id(), &SandboxSpec::default(), Lifetime::Kept, &|_| {}).await.map(drop)
}

/// Makes a sandbox and stops half-way, as a program that is killed.
async fn leave_half_made(runtime: &KubernetesRuntime) {
    tokio::time::timeout(Duration::from_secs(2), create(runtime)).await.unwrap_err();
}

fn left(server: &MockServer) -> Vec<Part> {
    Part::ALL.into_iter().filter(|part| server.object(*part, NAME).is_some()).collect()
}

/// A client whose clock was 15 minutes behind wrote leases that were over at once.
#[tokio::test(start_paused = true)]
async fn a_lease_goes_by_the_api_servers_clock_and_not_by_the_clients() {
    for carrier in ["auto", "init-container"] {
        let server = MockServer::start();
        server.set_date("Sat, 01 Jan 2050 00:00:00 GMT");
        let runtime = server.runtime(&format!("{CONFIG}\nwharf.sandboxd_carrier = '{carrier}'"));
        leave_half_made(&runtime).await;
        let anchor = server.object(Part::Anchor, NAME).unwrap();
        let until = anchor["metadata"]["annotations"]["wharf.dev/leased-until"].as_str().unwrap();
        let until: Timestamp = until.parse().unwrap();
        let start: Timestamp = "2050-01-01T00:07:00Z".parse().unwrap();
        assert!(until.duration_since(start).abs().as_secs() < 5, "{until}");
        assert!(runtime.cluster().skew().unwrap().as_hours() < -24);
        // Another client's gc, whatever its own clock says.
        assert!(runtime.collect_garbage(&|_| {}).await.unwrap().removed.is_empty());
        server.set_date("Sat, 01 Jan 2050 00:08:30 GMT");
        assert_eq!(runtime.collect_garbage(&|_| {}).await.unwrap().removed, [id()]);
        assert_eq!(left(&server), []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_made_of_a_sandbox_that_fails_is_taken_back() {
    let server = MockServer::start();
    server.set_pod_status(json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" }));
    let error = create(&server.runtime(CONFIG)).await.unwrap_err();
    assert_eq!(error.to_string(), "sandbox `box` did not start: its pod was evicted: low on memory");
    assert_eq!(left(&server), []);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_go_well_later_is_tried_again_and_one_that_is_refused_is_not() {
    let server = MockServer::start();
    for _ in 0..3 {
        server.fail("POST pods", 503, "ServiceUnavailable", "etcd is away");
    }
    leave_half_made(&server.runtime(CONFIG)).await;
    assert!(server.object(Part::Pod, NAME).is_some());
    assert_eq!(server.calls().iter().filter(|call| *call == "POST pods").count(), 4);

    let server = MockServer::start();
    server.fail("POST pods", 403, "Forbidden", "pods \"wharf-box\" is forbidden: exceeded quota: q");
    let error = create(&server.runtime(CONFIG)).await.unwrap_err();
    assert!(matches!(&error, KubernetesError::Api(error) if error.kind == ApiErrorKind::Quota), "{error}");
    assert_eq!(server.calls().iter().filter(|call| *call == "POST pods").count(), 1);
    assert_eq!(left(&server), []);
}

/// A LimitRange with a minimum above what `prepare` asks for made sandboxes impossible.
#[tokio::test(start_paused = true)]
async fn what_a_limit_range_refuses_for_its_small_containers_is_asked_for_with_larger_ones() {
    let refusal = "pods \"wharf-box\" is forbidden: minimum memory usage per Container is 48Mi, but request is 8Mi";
    for carrier in ["auto", "init-container"] {
        let server = MockServer::start();
        server.set_pod_status(unschedulable());
        let runtime = server.runtime(&format!("{CONFIG}\nwharf.sandboxd_carrier = '{carrier}'"));
        server.fail("POST pods", 403, "Forbidden", refusal);
        leave_half_made(&runtime).await;
        let pod = server.object(Part::Pod, NAME).unwrap();
        let asked = json!({ "cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi" });
        let containers = ["containers", "initContainers"].map(|kind| pod["spec"][kind].as_array().cloned());
        for container in containers.into_iter().flatten().flatten() {
            let resources = &container["resources"];
            assert_eq!(resources["requests"], asked, "{}", container["name"]);
            assert_eq!(resources["limits"] == asked, container["name"] != "sandbox", "{}", container["name"]);
        }
    }
    let server = MockServer::start();
    let runtime = server.runtime(CONFIG);
    server.fail("POST pods", 403, "Forbidden", refusal);
    server.fail("POST pods", 403, "Forbidden", "minimum memory usage per Container is 512Mi, but request is 256Mi");
    let error = create(&runtime).await.unwrap_err();
    assert!(matches!(&error, KubernetesError::Api(error) if error.kind == ApiErrorKind::LimitRange), "{error}");
    assert!(error.to_string().contains("512Mi"), "{error}");
    assert_eq!(left(&server), []);
}

/// It was tried for all of the time that a start may take.
#[tokio::test(start_paused = true)]
async fn a_service_account_that_is_not_there_is_told_after_seconds() {
    let server = MockServer::start();
    for _ in 0..100 {
        let message = "error looking up service account test/agnets: serviceaccount \"agnets\" not found";
        server.fail("POST pods", 403, "Forbidden", message);
    }
    let started = tokio::time::Instant::now();
    let error = create(&server.runtime(&format!("{CONFIG}\nwharf.service_account = 'agnets'"))).await.unwrap_err();
    assert!(matches!(&error, KubernetesError::Api(error) if error.kind == ApiErrorKind::NoServiceAccount), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(left(&server), []);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_room_says_so_from_the_start_to_the_time_out() {
    let server = MockServer::start();
    server.set_pod_status(unschedulable());
    let told = Mutex::new(Vec::new());
    let report = |waiting: &Waiting| told.lock().unwrap().push(waiting.to_string());
    let runtime = server.runtime(&format!("{CONFIG}\nwharf.start_timeout_seconds = 60"));
    let error = runtime.create(&id(), &SandboxSpec::default(), Lifetime::Kept, &report).await.unwrap_err();
    let expected = "scheduling: no node has room for it: 0/1 nodes are available: 1 Insufficient cpu.";
    assert!(told.into_inner().unwrap().contains(&expected.to_owned()));
    assert_eq!(error.to_string(), format!("sandbox `box` was not done within 60 s, still {expected}"));
    assert!(matches!(&error, KubernetesError::TimedOut { waiting, .. } if waiting.is_for_capacity()), "{error}");
}

/// Events say why a start takes long; the end of a pod has no use for them.
#[tokio::test(start_paused = true)]
async fn events_are_read_of_a_pod_that_starts_and_not_of_one_that_ends() {
    let server = MockServer::start();
    server.set_pod_status(unschedulable());
    let runtime = server.runtime(CONFIG);
    leave_half_made(&runtime).await;
    assert!(server.calls().contains(&"GET events".to_owned()));
    let before = server.calls().len();
    server.hold_pods();
    let held = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        server.release_pods();
    };
    let id = id();
    let (suspended, ()) = tokio::join!(runtime.suspend(&id, &|_| {}), held);
    suspended.unwrap();
    let calls = server.calls()[before..].to_vec();
    assert!(calls.contains(&"WATCH pods".to_owned()) && !calls.iter().any(|call| call.contains("events")), "{calls:?}");
}

/// After an outage of the API server of 5 s, the garbage collector of a cluster came after 22 s, and once after 84 s.
#[tokio::test(start_paused = true)]
async fn a_sandbox_is_removed_though_nobody_collects_garbage() {
    let server = MockServer::start();
    server.set_pod_status(unschedulable());
    let runtime = server.runtime(&format!("{CONFIG}\nkubernetes.ingress_domain = 'example.org'"));
    leave_half_made(&runtime).await;
    assert!(left(&server).len() > 4, "{:?}", left(&server));
    server.change(Part::Ingress, NAME, &json!({ "metadata": { "labels": { "wharf.dev/installation": "other" } } }));
    server.stop_collecting();
    let started = tokio::time::Instant::now();
    assert!(runtime.remove(&id(), &|_| {}).await.unwrap());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // What is another's is nobody else's to remove.
    assert_eq!(left(&server), [Part::Ingress]);
}

/// What somebody else holds stays, and nothing is told to be gone that is there.
#[tokio::test(start_paused = true)]
async fn an_anchor_that_something_else_holds_is_waited_for() {
    let server = MockServer::start();
    let runtime = server.runtime(CONFIG);
    leave_half_made(&runtime).await;
    server.stop_collecting();
    let held = async {
        while server.object(Part::Anchor, NAME).unwrap()["metadata"]["finalizers"].is_null() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let finalizers = json!({ "metadata": { "finalizers": ["foregroundDeletion", "example.org/backup"] } });
        server.change(Part::Anchor, NAME, &finalizers);
    };
    let id = id();
    let (removed, ()) = tokio::join!(runtime.remove(&id, &|_| {}), held);
    assert!(matches!(removed, Err(KubernetesError::TimedOut { .. })), "{removed:?}");
    let anchor = server.object(Part::Anchor, NAME).unwrap();
    assert_eq!(anchor["metadata"]["finalizers"], json!(["example.org/backup"]));
    assert_eq!(left(&server), [Part::Anchor]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_the_server_has_forgotten_or_cuts_is_opened_again() {
    let server = MockServer::start();
    server.set_pod_status(unschedulable());
    server.fail("WATCH pods", 410, "Expired", "too old resource version");
    server.fail("WATCH pods", 500, "InternalError", "try again");
    let runtime = server.runtime(CONFIG);
    let evicted = async {
        while server.calls().iter().filter(|call| *call == "WATCH pods").count() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.change(Part::Pod, NAME, &json!({ "status": { "phase": "Failed", "reason": "Evicted" } }));
    };
    let (made, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(create(&runtime), evicted) }).await.unwrap();
    assert!(matches!(made, Err(KubernetesError::Failed { .. })), "{made:?}");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_not_there_has_no_empty_list() {
    let server = MockServer::start();
    let runtime = server.runtime(CONFIG);
    server.fail("POST secrets", 404, "NotFound", "namespaces \"test\" not found");
    let error = runtime.list().await.unwrap_err();
    assert_eq!(error.to_string(), "could not list sandboxes of the namespace `test`: namespaces \"test\" not found");
    // Who may only look, and who finds one.
    server.fail("POST secrets", 403, "Forbidden", "User \"u\" cannot create resource \"secrets\"");
    assert!(runtime.list().await.unwrap().is_empty());
    leave_half_made(&runtime).await;
    assert_eq!(runtime.list().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_or_changed_is_the_very_object_that_was_seen() {
    let server = MockServer::start();
    let runtime = server.runtime(CONFIG);
    leave_half_made(&runtime).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let apply = Apply { cluster: runtime.cluster(), deadline, report: &|_| {} };
    // Another has its name by now: it is seen, or nobody's business.
    let there = apply.delete(Part::Pod, NAME, "an-earlier-life", false).await.unwrap();
    assert_eq!(there, server.object(Part::Pod, NAME));
    assert_eq!(apply.delete(Part::Pod, NAME, "an-earlier-life", true).await.unwrap(), None);
    assert!(server.object(Part::Pod, NAME).is_some());
    let change = AnchorChange { wanted: Some(Wanted::Suspended), ..AnchorChange::default() };
    let refused = apply.change_anchor(NAME, "an-earlier-life", &change).await.unwrap_err();
    assert_eq!(refused.kind, ApiErrorKind::Replaced);
    // What is there is not taken over.
    let before = server.object(Part::Service, NAME).or_else(|| server.object(Part::Policy, NAME)).unwrap();
    let other = json!({ "apiVersion": before["apiVersion"], "kind": before["kind"], "metadata": { "name": NAME } });
    let part = if before["kind"] == "Service" { Part::Service } else { Part::Policy };
    assert_eq!(apply.create(part, NAME, &other).await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn an_anchor_says_what_it_was_made_with_and_what_is_changed_of_it() {
    let server = MockServer::start();
    let runtime = server.runtime(CONFIG);
    leave_half_made(&runtime).await;
    let object = server.object(Part::Anchor, NAME).unwrap();
    let anchor = Anchor::read(&object).unwrap();
    assert_eq!((anchor.id.clone(), anchor.wanted, anchor.is_half_made()), (id(), Wanted::Running, true));
    assert!(anchor.bind.keys.is_empty() && anchor.bind_request().keys == [anchor.key.clone()]);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let apply = Apply { cluster: runtime.cluster(), deadline, report: &|_| {} };
    let change = AnchorChange { wanted: Some(Wanted::Suspended), leased_until: Some(None), ..AnchorChange::default() };
    let changed = Anchor::read(&apply.change_anchor(NAME, &anchor.uid, &change).await.unwrap()).unwrap();
    assert_eq!((changed.wanted, changed.leased_until, changed.is_half_made()), (Wanted::Suspended, None, false));
    assert!(changed.key == anchor.key && changed.objects == anchor.objects);
    for (path, value, told) in [
        ("/metadata/annotations/wharf.dev~1desired", json!("gone"), "`wharf.dev/desired` was `gone`"),
        ("/metadata/annotations/wharf.dev~1profile", json!("x"), "`wharf.dev/profile` was `x`"),
        ("/metadata/annotations/wharf.dev~1leased-until", json!("soon"), "`wharf.dev/leased-until` was `soon`"),
        ("/data/bind", json!("bm8="), "`bind` expected"),
        ("/data/key", json!("/w=="), "`key` invalid utf-8"),
    ] {
        let mut broken = object.clone();
        *broken.pointer_mut(path).unwrap() = value;
        let error = Anchor::read(&broken).unwrap_err().to_string();
        assert!(
            error.starts_with("Secret `wharf-box` is not what Wharf has made: ") && error.contains(told),
            "{error}"
        );
    }
    let mut keyless = object;
    keyless["data"].as_object_mut().unwrap().remove("key");
    assert!(Anchor::read(&keyless).unwrap_err().to_string().ends_with("`key` is missing"));
}

#[tokio::test(start_paused = true)]
async fn no_key_and_no_value_of_a_variable_is_in_what_is_logged_of_a_sandbox() {
    let variables = "sandbox.runtime_startup_env_vars = { TOKEN = 's3cr3t' }";
    for (profile, name, pod) in
        [("wharf", NAME, NAME), ("openhands", "openhands-runtime-box-wharf", "openhands-runtime-box")]
    {
        let server = MockServer::start();
        let runtime = server.runtime(&format!("{CONFIG}\nwharf.profile = '{profile}'\n{variables}"));
        leave_half_made(&runtime).await;
        let found = runtime.find(&id()).await.unwrap().unwrap();
        let (anchor, pod) = (server.object(Part::Anchor, name).unwrap(), server.object(Part::Pod, pod).unwrap());
        let is_in_it = anchor.to_string().contains(&anchor["data"]["key"].to_string());
        assert!(is_in_it && (profile == "wharf" || pod.to_string().contains("s3cr3t")), "what this is about");
        let mut observed = Observed::default();
        observed.note(Part::Anchor, Some(anchor.clone()));
        observed.note(Part::Pod, Some(pod));
        let change = AnchorChange { objects: Some(found.anchor.objects.clone()), ..AnchorChange::default() };
        let logged = format!("{found:?} {observed:?} {change:?} {runtime:?}");
        for secret in [found.anchor.key.reveal(), anchor["data"]["key"].as_str().unwrap(), "s3cr3t"] {
            assert!(!logged.contains(secret), "{profile}: {logged}");
        }
    }
}

async fn connect(runtime: &KubernetesRuntime, options: Connect) -> (Vec<SessionStatus>, SessionError) {
    let statuses = Mutex::new(Vec::new());
    let on_status = |status| statuses.lock().unwrap().push(status);
    let set_up = async |_: &wharf_client::Sandbox| Ok::<_, std::io::Error>(());
    let connected = runtime.connect(&id(), &options, &on_status, &|_| {}, set_up).await;
    let error = connected.expect_err("nothing of it runs");
    (statuses.into_inner().unwrap(), error)
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_in_the_originals_errors() {
    let openhands = format!("{CONFIG}\nwharf.profile = 'openhands'");
    let server = MockServer::start();
    let runtime = server.runtime(&openhands);
    let attach = Connect { attach_to_existing: true, ..Connect::default() };
    let (statuses, error) = connect(&runtime, attach).await;
    assert_eq!(statuses, [SessionStatus::Starting]);
    assert!(matches!(&error, SessionError::Disconnected { message, source: None } if message.is_empty()), "{error:?}");

    server.fail("POST pods", 403, "Forbidden", "exceeded quota: q");
    let (statuses, error) = connect(&runtime, Connect::default()).await;
    assert_eq!(statuses, [SessionStatus::Starting, SessionStatus::Starting]);
    let text = "Failed to initialize kubernetes resources: could not make Pod";
    assert!(matches!(&error, SessionError::NotFound { message, .. } if message.starts_with(text)), "{error:?}");
    // Closing what is not there, or is to stay, is fine.
    runtime.close(&id(), false).await.unwrap();
    let calls = server.calls().len();
    runtime.close(&id(), true).await.unwrap();
    server.runtime(&format!("{openhands}\nsandbox.keep_runtime_alive = true")).close(&id(), false).await.unwrap();
    assert_eq!(server.calls().len(), calls);
    runtime.delete(&id()).await.unwrap();
}
