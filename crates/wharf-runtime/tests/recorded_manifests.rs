//! Every recorded configuration of the original gives the objects that the original made of it, in both versions.
//!
//! What is sent beside the objects is left out on both sides: `apiVersion` and `kind`, which the original leaves to the
//! path in places, and the namespace.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use wharf_protocol::SandboxId;
use wharf_runtime::kubernetes::{
    Cluster, KubernetesRuntime, Names, Owner, Part, Profile, Request, Settings, objects,
    settings::{Loaded, OpenHandsVersion, Overrides, Sources},
};

/// Where ours is another on purpose, and why.
const DIFFERENCES: [(&str, &str); 3] = [
    ("k8s_13_bad_tolerations_camel_case", "Kubernetes' own spelling `tolerationSeconds` is accepted beside the other"),
    ("k8s_14_sid_long_and_upper", "an id that cannot be a name gets valid names; the original's are refused"),
    ("k8s_16_unknown_key", "refused too, with the key's name in our own words"),
];

fn recordings() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut all: Vec<(String, Value)> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(all.len(), 29, "recordings are missing");
    all
}

fn load(name: &str, recording: &Value) -> Result<Loaded, String> {
    let input = &recording["input"];
    let mut environment: BTreeMap<String, String> = serde_json::from_value(input["process_env"].clone()).unwrap();
    if input["debug_flag_env_DEBUG"] == json!(true) {
        environment.insert("DEBUG".to_owned(), "true".to_owned());
    }
    let version = if name.contains("0.48") { "0.48" } else { "0.62" };
    environment.insert("WHARF_OPENHANDS_VERSION".to_owned(), version.to_owned());
    let sources = Sources {
        toml: input["config_toml"].as_str(),
        environment: &environment,
        overrides: Overrides { profile: Some(Profile::OpenHands), ..Overrides::default() },
        // The recording process was root.
        process_uid: 0,
    };
    Settings::load(&sources).map_err(|error| error.to_string())
}

fn request(recording: &Value) -> Request {
    let constructor = &recording["input"]["constructor"];
    let mut plugins: Vec<String> = serde_json::from_value(constructor["plugins"].clone()).unwrap();
    if constructor["headless_mode"] == json!(false) {
        plugins.push("vscode".to_owned());
    }
    Request { plugins, ..Request::default() }
}

fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    let fields = object.as_object_mut().unwrap();
    fields.shift_remove("apiVersion");
    fields.shift_remove("kind");
    object["metadata"].as_object_mut().unwrap().shift_remove("namespace");
    object
}

#[test]
fn every_recorded_configuration_gives_the_recorded_objects() {
    let mut compared = 0;
    for (name, recording) in recordings() {
        let loaded = load(&name, &recording);
        if name.starts_with("k8s_16") {
            let refusal = loaded.map(|_| ()).unwrap_err();
            assert!(refusal.contains("kubernetes.foo"), "{refusal}");
            assert!(recording["error"].is_string() || recording["output"]["error"].is_string(), "{recording}");
            continue;
        }
        let settings = loaded.unwrap().settings;
        let output = &recording["output"];
        let sid = recording["input"]["constructor"]["sid"].as_str().unwrap();
        let id: SandboxId = sid.parse().unwrap();
        let made = objects(&id, &settings, &request(&recording));
        if name.starts_with("k8s_13") {
            assert_eq!(made[&Part::Pod]["spec"]["tolerations"][0]["tolerationSeconds"], 60);
            continue;
        }
        if name.starts_with("k8s_14") {
            assert_ne!(Names::of(&id, Profile::OpenHands).pod, output["names"]["pod"].as_str().unwrap());
            continue;
        }
        let parts = [
            ("pvc", Part::Workspace),
            ("pod", Part::Pod),
            ("service", Part::Service),
            ("vscode_service", Part::CodeService),
            ("ingress", Part::Ingress),
        ];
        assert_eq!(made.len(), parts.len(), "{name}");
        for (recorded, part) in parts {
            assert_eq!(bare(&made[&part]), bare(&output["manifests"][recorded]), "{name}: {recorded}");
            compared += 1;
        }
        assert_eq!(output["manifests"]["pvc"]["metadata"]["namespace"], json!(settings.namespace), "{name}");
    }
    assert_eq!(compared, 115);
    assert_eq!(DIFFERENCES.len(), 3);
}

#[test]
fn urls_are_those_of_the_original() {
    for (name, recording) in recordings() {
        if DIFFERENCES.iter().any(|(different, _)| name.starts_with(different)) {
            continue;
        }
        let settings = load(&name, &recording).unwrap().settings;
        let output = &recording["output"];
        let id: SandboxId = recording["input"]["constructor"]["sid"].as_str().unwrap().parse().unwrap();
        let runtime = runtime(settings);
        assert_eq!(json!(runtime.api_url(&id)), output["api_url"], "{name}");
        let hosts: BTreeMap<String, u16> = runtime.web_hosts(&id).into_iter().collect();
        assert_eq!(json!(hosts), output["web_hosts"], "{name}");
        if let Some(url) = output["vscode_url_with_token_TOKEN"].as_str() {
            // The original does not escape: a path with a space gave a URL that breaks at it.
            assert_eq!(runtime.vscode_url(&id, "TOKEN"), url.replace(' ', "%20"), "{name}");
        }
    }
}

fn runtime(settings: Settings) -> KubernetesRuntime {
    // Nothing is sent anywhere.
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = tokio.enter();
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    KubernetesRuntime::new(Cluster::of_config(config, None, false).unwrap(), settings)
}

#[test]
fn ownership_adds_labels_and_an_owner_and_changes_nothing_else() {
    let (name, recording) = recordings().remove(0);
    let settings = load(&name, &recording).unwrap().settings;
    assert_eq!(settings.version, OpenHandsVersion::V0_48);
    let id: SandboxId = "default".parse().unwrap();
    let owner = Owner {
        installation: "here".to_owned(),
        sandbox: "openhands-runtime-default".to_owned(),
        anchor: "openhands-runtime-default-wharf".to_owned(),
        anchor_uid: "u-1".to_owned(),
    };
    for object in objects(&id, &settings, &request(&recording)).values() {
        let mut adopted = owner.adopt(object);
        let metadata = adopted["metadata"].as_object_mut().unwrap();
        let owners = metadata.shift_remove("ownerReferences").unwrap();
        assert_eq!(owners[0]["uid"], "u-1");
        let labels = metadata["labels"].as_object_mut().unwrap();
        for label in ["app.kubernetes.io/managed-by", "wharf.dev/installation", "wharf.dev/sandbox"] {
            labels.shift_remove(label).unwrap();
        }
        if labels.is_empty() {
            metadata.shift_remove("labels");
        }
        assert_eq!(adopted, *object);
    }
}
