//! An API server in memory, for tests that need no cluster: objects by kind and name, watches, patches, deletion with all
//! that an object owns, and failures on demand.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use futures_util::{FutureExt as _, stream};
use http::{Method, Request, Response, StatusCode, header::DATE};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Bytes;
use k8s_openapi::ByteString;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    Cluster, KubernetesRuntime, Settings,
    part::Part,
    settings::{Overrides, Sources},
};

pub(super) const NAMESPACE: &str = "test";

/// What a call or a watch is answered.
type Answer = UnsyncBoxBody<Bytes, Infallible>;
/// Kind (plural) and name.
type Key = (String, String);

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// All changes so far: version, plural, and the event as a watch tells it.
    changes: Vec<(u64, String, Value)>,
    calls: Vec<String>,
    /// What the next calls with this beginning, such as `POST pods`, are answered instead: code, reason, message.
    failures: VecDeque<(String, (u16, &'static str, String))>,
    date: String,
    /// Deletions of pods that are answered at once and take effect when they are released, as those of kubelets.
    held: Option<Vec<Key>>,
    /// Nobody removes what a deleted object owns: one that is deleted in the foreground stays until its finalizer is taken off.
    is_uncollected: bool,
    /// Put into the status of every new pod.
    pod_status: Option<Value>,
}

#[derive(Debug, Clone)]
pub(super) struct MockServer {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

/// A JSON merge patch (RFC 7396).
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

impl MockServer {
    pub(super) fn start() -> Self {
        let (changed, _) = watch::channel(0);
        let state = State { date: "Fri, 27 Nov 2026 12:00:00 GMT".to_owned(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), changed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What it says the time is.
    pub(super) fn set_date(&self, date: &str) {
        self.state().date = date.to_owned();
    }

    pub(super) fn set_pod_status(&self, status: Value) {
        self.state().pod_status = Some(status);
    }

    /// Fails the next call that begins with `call`.
    pub(super) fn fail(&self, call: &str, code: u16, reason: &'static str, message: &str) {
        self.state().failures.push_back((call.to_owned(), (code, reason, message.to_owned())));
    }

    /// There is no garbage collector any more.
    pub(super) fn stop_collecting(&self) {
        self.state().is_uncollected = true;
    }

    /// Pods that are deleted end only once they are released.
    pub(super) fn hold_pods(&self) {
        self.state().held = Some(Vec::new());
    }

    pub(super) fn release_pods(&self) {
        let held = self.state().held.take().unwrap_or_default();
        for key in held {
            self.delete(&key);
        }
    }

    /// All calls so far: method and kind, `WATCH pods`, `GET version`.
    pub(super) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    pub(super) fn object(&self, part: Part, name: &str) -> Option<Value> {
        self.state().objects.get(&(part.resource().plural, name.to_owned())).cloned()
    }

    /// Changes an object as somebody else would.
    pub(super) fn change(&self, part: Part, name: &str, patch: &Value) {
        let key = (part.resource().plural, name.to_owned());
        let mut object = self.state().objects[&key].clone();
        merge(&mut object, patch);
        self.store(&key, object, "MODIFIED");
    }

    /// A runtime in its namespace, with these lines of configuration.
    pub(super) fn runtime(&self, toml: &str) -> KubernetesRuntime {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }.boxed()
        });
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: Some(toml), environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        let settings = Settings::load(&sources).unwrap().settings;
        KubernetesRuntime::new(Cluster::of_service(service, NAMESPACE), settings)
    }

    fn store(&self, key: &Key, mut object: Value, change: &str) -> Value {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if let Some(Value::Object(texts)) = object.as_object_mut().and_then(|object| object.remove("stringData")) {
            for (name, text) in texts {
                object["data"][name] = json!(ByteString(text.as_str().unwrap().as_bytes().to_vec()));
            }
        }
        match change {
            "DELETED" => drop(state.objects.remove(key)),
            _ => drop(state.objects.insert(key.clone(), object.clone())),
        }
        state.changes.push((version, key.0.clone(), json!({ "type": change, "object": object })));
        drop(state);
        self.changed.send_replace(version);
        object
    }

    fn delete(&self, key: &Key) -> Option<Value> {
        let object = self.state().objects.get(key).cloned()?;
        let object = self.store(key, object, "DELETED");
        let owned: Vec<Key> = {
            let state = self.state();
            let is_owned = |other: &Value| {
                !state.is_uncollected && other["metadata"]["ownerReferences"][0]["uid"] == object["metadata"]["uid"]
            };
            state.objects.iter().filter(|(_, other)| is_owned(other)).map(|(key, _)| key.clone()).collect()
        };
        for key in owned {
            self.delete(&key);
        }
        Some(object)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (plural, name) = match path.iter().position(|part| *part == "namespaces") {
            Some(at) => (path[at + 2].to_owned(), path.get(at + 3).map(|name| (*name).to_owned())),
            None => ("version".to_owned(), None),
        };
        let is_watch = query.contains("watch=true");
        let call = if is_watch { format!("WATCH {plural}") } else { format!("{} {plural}", parts.method) };
        let failure = {
            let mut state = self.state();
            state.calls.push(call.clone());
            let at = state.failures.iter().position(|(start, _)| call.starts_with(start));
            at.and_then(|at| state.failures.remove(at))
        };
        if let Some((_, (code, reason, message))) = failure {
            return self.status(code, reason, &message);
        }
        if plural == "version" {
            let version = json!({
                "major": "1", "minor": "37", "gitVersion": "v1.37.0", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            return self.json(200, &version);
        }
        if is_watch {
            return self.follow(&plural, &query);
        }
        let found = |name: &str| self.state().objects.get(&(plural.clone(), name.to_owned())).cloned();
        let not_found = || self.status(404, "NotFound", "it is not there");
        match (parts.method, name) {
            (Method::GET, None) => {
                let state = self.state();
                let items: Vec<_> =
                    state.objects.iter().filter(|((kind, _), _)| *kind == plural).map(|(_, it)| it.clone()).collect();
                let version = state.version.to_string();
                drop(state);
                self.json(200, &json!({ "metadata": { "resourceVersion": version }, "items": items }))
            }
            (Method::GET, Some(name)) => found(&name).map_or_else(not_found, |object| self.json(200, &object)),
            (Method::POST, None) => {
                let name = sent["metadata"]["name"].as_str().unwrap().to_owned();
                if found(&name).is_some() {
                    return self.status(409, "AlreadyExists", "it is there already");
                }
                self.json(201, &self.make((plural, name), sent))
            }
            (Method::PATCH, Some(name)) => match found(&name) {
                None if query.contains("fieldManager=wharf")
                    && parts.headers["content-type"] == "application/apply-patch+yaml" =>
                {
                    self.json(201, &self.make((plural, name), sent))
                }
                None => not_found(),
                Some(object)
                    if !sent["metadata"]["uid"].is_null() && sent["metadata"]["uid"] != object["metadata"]["uid"] =>
                {
                    self.status(409, "Conflict", "Precondition failed: UID in precondition: a, UID in object meta: b")
                }
                Some(mut object) => {
                    merge(&mut object, &sent);
                    let metadata = &object["metadata"];
                    if !metadata["deletionTimestamp"].is_null() && metadata["finalizers"] == json!([]) {
                        return self.json(200, &self.delete(&(plural, name)).unwrap());
                    }
                    self.json(200, &self.store(&(plural, name), object, "MODIFIED"))
                }
            },
            (Method::DELETE, Some(name)) => {
                let there = found(&name);
                let uid = &sent["preconditions"]["uid"];
                match there {
                    Some(object) if !uid.is_null() && *uid != object["metadata"]["uid"] => self.status(
                        409,
                        "Conflict",
                        "the UID in the precondition (a) does not match the UID in record (b)",
                    ),
                    Some(mut object) if plural == "pods" && self.state().held.is_some() => {
                        let key = (plural, name);
                        object["metadata"]["deletionTimestamp"] = json!("2026-11-27T12:00:00Z");
                        object["metadata"]["deletionGracePeriodSeconds"] = json!(15);
                        let object = self.store(&key, object, "MODIFIED");
                        self.state().held.as_mut().unwrap().push(key);
                        self.json(200, &object)
                    }
                    Some(mut object) if self.state().is_uncollected && sent["propagationPolicy"] == "Foreground" => {
                        object["metadata"]["deletionTimestamp"] = json!("2026-11-27T12:00:00Z");
                        object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
                        self.json(200, &self.store(&(plural, name), object, "MODIFIED"))
                    }
                    Some(_) => self.json(200, &self.delete(&(plural, name)).unwrap()),
                    None => not_found(),
                }
            }
            other => panic!("{other:?} is not what an API server of tests knows"),
        }
    }

    fn make(&self, key: Key, mut object: Value) -> Value {
        let count = self.state().version;
        object["metadata"]["uid"] = json!(format!("uid-{count}"));
        object["metadata"]["creationTimestamp"] = json!("2026-11-27T12:00:00Z");
        if key.0 == "pods"
            && let Some(status) = self.state().pod_status.clone()
        {
            object["spec"]["nodeName"] = json!("node");
            object["status"] = status;
        }
        self.store(&key, object, "ADDED")
    }

    /// A watch: what has happened since the version that is asked for, and then what happens.
    fn follow(&self, plural: &str, query: &str) -> Response<Answer> {
        let asked = |field: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == field).map(|(_, value)| value.replace("%3D", "="))
        };
        let since: u64 = asked("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let name = asked("fieldSelector").and_then(|fields| Some(fields.strip_prefix("metadata.name=")?.to_owned()));
        let (server, plural) = (self.clone(), plural.to_owned());
        let told = stream::unfold((since, self.changed.subscribe()), move |(since, mut changed)| {
            let (server, plural, name) = (server.clone(), plural.clone(), name.clone());
            async move {
                loop {
                    let next = server
                        .state()
                        .changes
                        .iter()
                        .find(|(version, kind, event)| {
                            let is_meant =
                                name.as_ref().is_none_or(|name| event["object"]["metadata"]["name"] == name.as_str());
                            *version > since && *kind == plural && is_meant
                        })
                        .cloned();
                    if let Some((version, _, event)) = next {
                        let frame = hyper::body::Frame::data(format!("{event}\n").into());
                        return Some((Ok::<_, Infallible>(frame), (version, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        self.response(200, StreamBody::new(told).boxed_unsync())
    }

    fn status(&self, code: u16, reason: &str, message: &str) -> Response<Answer> {
        let status =
            json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message });
        self.json(code, &status)
    }

    fn json(&self, code: u16, value: &Value) -> Response<Answer> {
        self.response(code, Full::from(value.to_string()).boxed_unsync())
    }

    fn response(&self, code: u16, body: Answer) -> Response<Answer> {
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response.headers_mut().insert(DATE, self.state().date.parse().unwrap());
        response
    }
}
