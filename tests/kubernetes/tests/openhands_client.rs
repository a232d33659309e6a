//! The real, unmodified client of OpenHands 0.62 drives a sandbox in a pod of plain Debian.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Stdio;

use k8s_openapi::api::core::v1::Pod;
use tokio::process::Command;
use wharf_kubernetes_tests::{
    cluster::{Namespace, RESTRICTED, with_labelled_namespace},
    sandbox,
};
use wharf_runtime::{Lifetime, kubernetes::Found};

/// There is no user of number 1000 in the image, which gets this one.
const USERNAME: &str = "sandbox";
const CLAIMS: usize = 8;

/// Under the profile `wharf` with its defaults, in a namespace that takes nothing else.
async fn make_sandbox(namespace: &Namespace) -> Found {
    let settings = sandbox::settings(&sandbox::config(&namespace.name, ""));
    let runtime = sandbox::runtime(namespace, namespace.config.clone(), settings);
    runtime.create(&sandbox::id(), &sandbox::spec(), Lifetime::Kept, &|_| {}).await.unwrap()
}

#[tokio::test]
async fn the_real_client_connects_acts_and_copies_in_a_pod_that_answers_nobody_without_the_key() {
    let venv = Command::new(wharf_e2e::file("../../scripts/openhands-venv")).output().await.expect("bash is needed");
    let python = String::from_utf8(venv.stdout).expect("a path");
    assert!(venv.status.success(), "scripts/openhands-venv: {}", String::from_utf8_lossy(&venv.stderr));
    with_labelled_namespace("openhands-client", RESTRICTED, async |namespace| {
        let found = make_sandbox(&namespace).await;
        let pod = namespace.api::<Pod>().get(&found.names.pod).await.unwrap();
        let address = pod.status.unwrap().pod_ip.unwrap();
        let output = Command::new(python.trim())
            .arg(wharf_e2e::file("../kubernetes/openhands_client.py"))
            .args([format!("http://{address}:8080").as_str(), USERNAME])
            .env("WHARF_SANDBOX_KEY", found.anchor.key.reveal())
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{errors}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), CLAIMS, "{said}");
    })
    .await;
}
