//! What the original makes of its settings, recorded with the real class, and what we make of the same.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::*;

/// A recording of `tests/golden`, without the objects that are made of the settings but the pod.
struct Recording {
    name: String,
    recorded: Value,
}

fn recordings() -> Vec<Recording> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut recordings: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("k8s_"))
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with("k8s_lifecycle"))
        .map(|entry| Recording {
            name: entry.file_name().into_string().unwrap(),
            recorded: serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap(),
        })
        .collect();
    recordings.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(recordings.len() >= 29, "{} recordings are missing", 29 - recordings.len());
    recordings
}

fn load(Recording { name, recorded }: &Recording, profile: &str) -> Result<Loaded, SettingsError> {
    let input = &recorded["input"];
    let variables = input["process_env"].as_object().unwrap().iter();
    let mut environment: BTreeMap<String, String> =
        variables.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
    environment.insert("WHARF_PROFILE".to_owned(), profile.to_owned());
    let version = if name.ends_with(".0.48.0.json") { "0.48" } else { "0.62" };
    environment.insert("WHARF_OPENHANDS_VERSION".to_owned(), version.to_owned());
    if input["debug_flag_env_DEBUG"] == json!(true) {
        environment.insert("DEBUG".to_owned(), "true".to_owned());
    }
    let toml = input["config_toml"].as_str().unwrap();
    // The recording process ran as root.
    let sources =
        Sources { toml: Some(toml), environment: &environment, overrides: Overrides::default(), process_uid: 0 };
    Settings::load(&sources)
}

/// What of an output depends on settings alone, as we have it.
fn ours(settings: &Settings, sid: &str) -> Value {
    let environment: Vec<_> =
        settings.environment.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({
        "domain": format!("{sid}.{}", settings.ingress.domain),
        "tls": settings.ingress.tls_secret,
        "namespace": settings.namespace,
        "image": settings.image,
        "initial": BTreeMap::from_iter(settings.initial_environment.0.clone()),
        "node_selector": settings.node_selector,
        "tolerations": settings.tolerations,
        "debug": settings.debug,
        "environment": environment,
        "user": settings.server_user_id.to_string(),
        "workspace": settings.workspace_path,
        "privileged": settings.privileged,
        "pull_secrets": settings.image_pull_secrets,
        "cpu": settings.cpu_request,
        "memory": [settings.memory_request, settings.memory_limit],
        "storage": [json!(settings.storage_size), json!(settings.storage_class)],
        "eval": settings.browsergym_eval_env,
        "browser": settings.enable_browser,
    })
}

/// The same of a recording.
fn theirs(name: &str, recorded: &Value) -> Value {
    let output = &recorded["output"];
    let (manifests, pod) = (&output["manifests"], &output["manifests"]["pod"]["spec"]);
    let container = &pod["containers"][0];
    let mut initial = output["initial_env_vars"].clone();
    for caller in recorded["input"]["constructor"]["env_vars"].as_object().into_iter().flatten() {
        initial.as_object_mut().unwrap().remove(caller.0);
    }
    let mut environment = container["env"].as_array().unwrap()[3..].to_vec();
    let debug = environment.first() == Some(&json!({ "name": "DEBUG", "value": "true" }));
    environment.drain(..usize::from(debug));
    let secrets = pod["imagePullSecrets"].as_array().into_iter().flatten().map(|secret| secret["name"].clone());
    let command: Vec<_> = container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let after = |word: &str| command.iter().position(|other| *other == word).map(|at| &command[at + 1..]);
    let eval = after("--browsergym-eval-env")
        .map(|words| words.iter().filter(|word| !word.starts_with("--")).copied().collect::<Vec<_>>().join(" "));
    let or = |value: &Value, none: Value| if value.is_null() { none } else { value.clone() };
    json!({
        "domain": output["ingress_domain"],
        "tls": manifests["ingress"]["spec"]["tls"][0]["secretName"],
        "namespace": manifests["pvc"]["metadata"]["namespace"],
        "image": output["pod_image"],
        "initial": initial,
        "node_selector": or(&output["node_selector"], json!({})),
        "tolerations": or(&output["tolerations"], json!([])),
        "debug": debug,
        "environment": environment,
        "user": after("--user-id").unwrap()[0],
        "workspace": container["volumeMounts"][0]["mountPath"],
        "privileged": container["securityContext"]["privileged"],
        "pull_secrets": secrets.collect::<Vec<_>>(),
        "cpu": container["resources"]["requests"]["cpu"],
        "memory": [container["resources"]["requests"]["memory"], container["resources"]["limits"]["memory"]],
        "storage": [
            manifests["pvc"]["spec"]["resources"]["requests"]["storage"],
            manifests["pvc"]["spec"]["storageClassName"],
        ],
        "eval": eval,
        // 0.48 has the setting, but does not tell its server.
        "browser": !(name.starts_with("k8s_09") || command.contains(&"--no-enable-browser")),
    })
}

#[test]
fn under_its_profile_settings_become_what_the_original_makes_of_them() {
    for recording in recordings() {
        let Recording { name, recorded } = &recording;
        // Two differ, each in a test of its own below.
        if ["k8s_13", "k8s_16"].iter().any(|other| name.starts_with(other)) {
            continue;
        }
        let Loaded { settings, .. } = load(&recording, "openhands").unwrap_or_else(|error| panic!("{name}: {error}"));
        let sid = recorded["input"]["constructor"]["sid"].as_str().unwrap();
        assert_eq!(ours(&settings, sid), theirs(name, recorded), "{name}");
        assert!(settings.ingress.enabled && settings.ephemeral_storage_limit.is_none(), "{name}");
        assert_eq!(settings.check(), Ok(()), "{name}");
    }
}

/// Recording 13, and the only one that differs: the original fails on Kubernetes' own spelling.
#[test]
fn tolerations_in_the_spelling_of_kubernetes_are_taken_where_the_original_fails() {
    for recording in recordings().iter().filter(|recording| recording.name.starts_with("k8s_13")) {
        for profile in ["openhands", "wharf"] {
            let tolerations = load(recording, profile).unwrap().settings.tolerations;
            let [toleration] = tolerations.as_slice() else { panic!("{tolerations:?}") };
            assert_eq!(toleration.toleration_seconds, Some(60));
        }
    }
}

/// Recordings 11 and 12.
#[test]
fn tolerations_that_the_original_ignores_are_ignored_under_its_profile_only() {
    let starts = [("k8s_11", "Invalid tolerations format. "), ("k8s_12", "Error parsing tolerations YAML: ")];
    for (start, text) in starts {
        for recording in recordings().iter().filter(|recording| recording.name.starts_with(start)) {
            let warnings = load(recording, "openhands").unwrap().warnings;
            assert!(matches!(warnings.as_slice(), [only] if only.starts_with(text)), "{warnings:?}");
            let problems = load(recording, "wharf").unwrap_err().problems;
            assert!(
                matches!(problems.as_slice(), [only] if only.field == "kubernetes.tolerations_yaml"),
                "{problems:?}"
            );
        }
    }
}

/// Recording 16.
#[test]
fn an_unknown_key_is_refused_by_its_name() {
    for recording in recordings().iter().filter(|recording| recording.name.starts_with("k8s_16")) {
        for profile in ["openhands", "wharf"] {
            let error = load(recording, profile).unwrap_err();
            assert_eq!(error.to_string(), "`kubernetes.foo` is not valid: unknown key", "{}", recording.name);
        }
    }
}

#[test]
fn our_profile_takes_every_settled_recording_too() {
    for recording in recordings() {
        if ["k8s_11", "k8s_12", "k8s_16"].iter().any(|other| recording.name.starts_with(other)) {
            continue;
        }
        let Loaded { settings, .. } = load(&recording, "wharf").unwrap();
        assert_eq!(settings.ephemeral_storage_limit.as_deref(), Some("10Gi"));
        let has_domain = recording.recorded["input"].to_string().to_lowercase().contains("ingress_domain");
        assert_eq!(settings.ingress.enabled, has_domain, "{}", recording.name);
    }
}
