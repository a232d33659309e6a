use std::collections::BTreeSet;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wharf_protocol::Secret;

use super::{openapi::document, *};

const SECRET: &str = "the-bind-secret-of-a-test";
const KEY: &str = "the-key-of-a-test";

struct Api {
    router: Router,
    key: &'static str,
    home: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Status, kind and field of a problem.
    #[track_caller]
    fn problem(&self) -> (u16, String, Option<String>) {
        let problem = self.json();
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        let text = |name: &str| problem.get(name).and_then(Value::as_str).map(str::to_owned);
        (self.status.as_u16(), text("kind").unwrap_or_default(), text("field"))
    }
}

impl Api {
    fn blank() -> Self {
        let core = Arc::new(Core::new(Some(Secret::new(SECRET).digest()), CancellationToken::new()));
        Self { router: router(core), key: KEY, home: tempfile::tempdir().unwrap() }
    }

    async fn bound() -> Self {
        let api = Self::blank();
        let answer = api.bind(json!({})).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
        api
    }

    /// Binds with what every bind needs and `more`.
    async fn bind(&self, more: Value) -> Answer {
        // A shell reads nothing of whoever runs the tests.
        let environment = json!({ "HOME": self.home.path() });
        let mut request = json!({ "keys": [KEY], "working_dir": self.home.path(), "environment": environment });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask_as(SECRET, Method::POST, "/v1/bind", request.to_string().into_bytes(), &[]).await
    }

    async fn ask_as(&self, key: &str, method: Method, path: &str, body: Vec<u8>, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request = request.header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask_as(self.key, Method::GET, path, Vec::new(), &[]).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask_as(self.key, Method::POST, path, body.to_string().into_bytes(), &[]).await
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }
}

#[tokio::test]
async fn a_blank_sandbox_does_nothing_but_tell_its_health_and_be_bound_once() {
    let api = Api::blank();
    assert_eq!(api.get("/v1/health").await.json()["status"], "blank");
    assert_eq!(api.get("/v1/info").await.problem().0, 503);
    let wrong = api.ask_as("a-wrong-bind-secret", Method::POST, "/v1/bind", b"{}".to_vec(), &[]).await;
    assert_eq!(wrong.problem(), (401, "unauthorized".into(), None));
    assert_eq!(api.bind(json!({})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/v1/health").await.json()["status"], "ready");
    assert_eq!(api.bind(json!({})).await.problem().0, 409);
    for key in ["", SECRET, "the-key-of-a-tesu"] {
        let answer = api.ask_as(key, Method::GET, "/v1/info", Vec::new(), &[]).await;
        assert_eq!(answer.problem().0, 401, "{key}");
    }
    assert_eq!(api.get("/v1/info").await.json()["working_dir"], api.path("").trim_end_matches('/'));
}

#[tokio::test]
async fn a_bad_bind_names_the_field_and_leaves_the_sandbox_blank() {
    let api = Api::blank();
    for (more, field) in [
        (json!({ "keys": [] }), "keys"),
        (json!({ "keys": ["short"] }), "keys[0]"),
        (json!({ "working_dir": "relative" }), "working_dir"),
        (json!({ "limits": { "sessions": 0 } }), "limits.sessions"),
        (json!({ "environment": { "A=B": "c" } }), "environment"),
        (json!({ "user": { "name": "no such:name" } }), "user"),
    ] {
        let (status, kind, named) = api.bind(more.clone()).await.problem();
        assert_eq!((status, kind.as_str()), (400, "invalid_request"), "{more}");
        assert!(named.as_deref().is_some_and(|named| named.starts_with(field)), "{more}: {named:?}");
    }
    assert_eq!(api.bind(json!({ "unknown": 1 })).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.get("/v1/health").await.json()["status"], "blank");
}

#[tokio::test]
async fn a_session_keeps_its_directory_and_says_how_a_command_ended() {
    let api = Api::bound().await;
    let created = api.post("/v1/sessions", json!({ "id": "s" })).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.text());
    assert_eq!(api.post("/v1/sessions", json!({ "id": "s" })).await.status, StatusCode::OK);
    api.post("/v1/sessions/s/run", json!({ "command": "mkdir d && cd d" })).await;
    let result = api.post("/v1/sessions/s/run", json!({ "command": "pwd; false" })).await.json();
    assert_eq!((&result["outcome"], &result["exit_code"]), (&json!("finished"), &json!(1)), "{result}");
    assert_eq!(result["output"].as_str().unwrap().trim_end(), api.path("d"));
    assert_eq!(api.post("/v1/sessions/none/run", json!({ "command": "x" })).await.problem().0, 404);
    assert_eq!(api.post("/v1/sessions", json!({ "id": "no/id" })).await.problem().0, 400);
    let gone = api.ask_as(KEY, Method::DELETE, "/v1/sessions/s", Vec::new(), &[]).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(api.get("/v1/sessions/s").await.problem().0, 404);
}

#[tokio::test]
async fn output_is_read_from_any_offset_as_lines_or_events() {
    let api = Api::bound().await;
    let exec = api.post("/v1/execs", json!({ "id": "e", "argv": ["sh", "-c", "printf abc; exit 4"] })).await;
    assert_eq!(exec.status, StatusCode::CREATED, "{}", exec.text());
    assert_eq!(api.get("/v1/execs/e/wait").await.json()["state"], "exited");
    let lines = api.get("/v1/execs/e/output?offset=1&follow=true").await;
    assert_eq!(lines.headers[header::CONTENT_TYPE], "application/x-ndjson");
    let frames: Vec<Value> = lines.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(frames.last().unwrap()["code"], 4, "{frames:?}");
    assert_eq!(frames[0]["offset"], 1, "{frames:?}");
    let events = api
        .ask_as(KEY, Method::GET, "/v1/execs/e/output?follow=true", Vec::new(), &[("accept", "text/event-stream")])
        .await;
    assert!(events.text().starts_with("data: {"), "{}", events.text());
    assert_eq!(api.get("/v1/execs/e/output?offset=-1").await.problem().0, 400);
    api.ask_as(KEY, Method::DELETE, "/v1/execs/e", Vec::new(), &[]).await;
}

/// Bytes of output and of gaps in an answer of lines.
fn amounts(answer: &Answer) -> (u64, u64) {
    let (mut kept, mut gone) = (0, 0);
    for line in answer.text().lines().filter(|line| !line.is_empty()) {
        match serde_json::from_str(line).unwrap() {
            wharf_protocol::Frame::Output { data, .. } => kept += data.len() as u64,
            wharf_protocol::Frame::Gap { from, to } => gone += to.0 - from.0,
            _ => {}
        }
    }
    (kept, gone)
}

#[tokio::test]
async fn whoever_reads_lines_is_waited_for_too() {
    let api = Api::blank();
    assert_eq!(api.bind(json!({ "limits": { "output_bytes": 200_000 } })).await.status, StatusCode::NO_CONTENT);
    let request = json!({ "id": "e", "argv": ["head", "-c", "5000000", "/dev/zero"], "when_full": "wait",
        "on_disconnect": "kill" });
    assert_eq!(api.post("/v1/execs", request.clone()).await.status, StatusCode::CREATED);
    assert_eq!(api.post("/v1/execs", request).await.status, StatusCode::OK, "the same id is the same exec");
    let lines = api.get("/v1/execs/e/output?follow=true").await;
    assert_eq!(amounts(&lines), (5_000_000, 0));
}

#[tokio::test]
async fn a_command_whose_caller_never_comes_is_killed_after_the_grace() {
    let api = Api::bound().await;
    let request = json!({ "id": "e", "argv": ["sleep", "1000"], "on_disconnect": "kill", "disconnect_grace_ms": 50 });
    api.post("/v1/execs", request).await;
    // Somebody who only watches is no caller.
    let lines = api.get("/v1/execs/e/output?follow=true&watch=true").await;
    let last: Value = serde_json::from_str(lines.text().lines().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["code"]), (&json!("exit"), &Value::Null), "{last}");
}

#[tokio::test]
async fn all_that_is_kept_stays_within_the_total_and_the_gaps_are_told() {
    const TOTAL: u64 = 2_000_000;
    let api = Api::blank();
    assert_eq!(api.bind(json!({ "limits": { "output_total_bytes": TOTAL } })).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.bind(json!({ "limits": { "output_total_bytes": 0 } })).await.status, StatusCode::CONFLICT);
    for number in 0..8 {
        let request = json!({ "id": format!("e{number}"), "argv": ["head", "-c", "1000000", "/dev/zero"] });
        api.post("/v1/execs", request).await;
        api.get(&format!("/v1/execs/e{number}/wait")).await;
    }
    let mut all = 0;
    for number in 0..8 {
        let (kept, gone) = amounts(&api.get(&format!("/v1/execs/e{number}/output")).await);
        assert_eq!(kept + gone, 1_000_000, "e{number}");
        all += kept;
        assert_eq!(gone == 0, number == 7, "e{number}: the latest is whole");
    }
    assert!((TOTAL / 2..=TOTAL).contains(&all), "{all}");
}

#[tokio::test]
async fn files_are_written_read_in_ranges_and_refused_by_name() {
    let api = Api::bound().await;
    let path = api.path("a.txt");
    let content = format!("/v1/files/content?path={path}");
    let written = api.ask_as(KEY, Method::PUT, &content, b"0123456789".to_vec(), &[]).await;
    assert!(written.status.is_success(), "{}", written.text());
    for (range, status, body) in
        [("bytes=2-4", 206, "234"), ("bytes=-3", 206, "789"), ("bytes=8-", 206, "89"), ("bytes=x", 200, "0123456789")]
    {
        let part = api.ask_as(KEY, Method::GET, &content, Vec::new(), &[("range", range)]).await;
        assert_eq!((part.status.as_u16(), part.text().as_str()), (status, body), "{range}");
    }
    let outside = api.ask_as(KEY, Method::GET, &content, Vec::new(), &[("range", "bytes=10-")]).await;
    assert_eq!(outside.problem().0, 416);
    assert_eq!(
        api.get("/v1/files/content?path=a.txt").await.problem(),
        (400, "invalid_request".into(), Some("path".into()))
    );
    assert_eq!(api.get(&format!("/v1/files/content?path={path}/x")).await.status.as_u16() / 100, 4);
    assert_eq!(api.get("/v1/files/content?path=/none").await.problem().0, 404);
}

#[tokio::test]
async fn an_upload_beyond_its_limit_leaves_the_old_file() {
    let api = Api::blank();
    api.bind(json!({ "limits": { "upload_bytes": 10 } })).await;
    let content = format!("/v1/files/content?path={}", api.path("file"));
    let put = |body: &str| api.ask_as(KEY, Method::PUT, &content, body.as_bytes().to_vec(), &[]);
    assert!(put("0123456789").await.status.is_success());
    assert_eq!(put("elevenbytes").await.problem().0, 413);
    assert_eq!(std::fs::read_to_string(api.path("file")).unwrap(), "0123456789");
}

#[tokio::test]
async fn every_route_is_described_and_every_description_is_a_route() {
    let api = Api::bound().await;
    let description = serde_json::to_value(document()).unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        let known: Vec<String> = operations.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
        described.insert(path.clone());
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let uri = path.replace("{id}", "none");
            let answer = api.ask_as(KEY, method.parse().unwrap(), &uri, Vec::new(), &[]).await;
            let refused = answer.status == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(refused, !known.iter().any(|name| name == method), "{method} {path}");
        }
    }
    let sources = [
        include_str!("mod.rs"),
        include_str!("bind.rs"),
        include_str!("sessions.rs"),
        include_str!("execs.rs"),
        include_str!("files.rs"),
    ];
    let routes: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| source.split(".route(\"").skip(1))
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .filter(|path| !path.contains('*'))
        .collect();
    assert_eq!(routes, described);
}

#[test]
fn the_committed_description_is_the_current_one() {
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    // Made anew with UPDATE_EXPECT=1.
    expect_test::expect_file!["../../../openapi.json"].assert_eq(&text);
}
