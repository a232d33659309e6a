//! Whole files, as people write them and as nobody would.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{keys::Section, *};

fn load(toml: &str, variables: &[(String, String)]) -> Result<Loaded, SettingsError> {
    let environment = variables.iter().cloned().collect();
    Settings::load(&Sources {
        toml: Some(toml),
        environment: &environment,
        overrides: Overrides::default(),
        process_uid: 0,
    })
}

#[track_caller]
fn check(toml: &str, expected: Expect) {
    let Loaded { settings, warnings, .. } = load(toml, &[]).unwrap();
    assert_eq!(warnings, [""; 0]);
    let printed = format!("{settings:#?}\n");
    // Most of what a manifest may hold is not there.
    expected.assert_eq(&printed.lines().filter(|line| !line.ends_with(": None,")).collect::<Vec<_>>().join("\n"));
}

#[test]
fn without_a_word_a_sandbox_is_ours_small_and_walled() {
    let version = concat!("wharf-sandboxd:", env!("CARGO_PKG_VERSION"));
    assert!(load("", &[]).unwrap().settings.sandboxd_image.ends_with(version));
    check(
        "wharf.sandboxd_image = 'x'",
        expect![[r#"
            Settings {
                profile: Wharf,
                version: V0_62,
                namespace: "default",
                installation: "default",
                image_pull_secrets: [],
                sandboxd_image: "x",
                carrier: Auto,
                route: Auto,
                start_timeout: 300s,
                workspace_path: "/workspace",
                storage_size: "2Gi",
                cpu_request: "100m",
                memory_request: "256Mi",
                memory_limit: "2Gi",
                ephemeral_storage_request: Some(
                    "256Mi",
                ),
                ephemeral_storage_limit: Some(
                    "10Gi",
                ),
                node_selector: {},
                tolerations: [],
                labels: {},
                annotations: {},
                extra_volumes: [],
                run_as_user: Id(
                    1000,
                ),
                run_as_group: 1000,
                privileged: false,
                hardened: false,
                clients: SameNamespace,
                egress: To {
                    internet: true,
                    networks: [],
                },
                closed_networks: [],
                resolver: Pods {
                    namespace: "kube-system",
                    labels: {
                        "k8s-app": "kube-dns",
                    },
                    port: 53,
                },
                ingress: IngressSettings {
                    enabled: false,
                    domain: "localhost",
                    annotations: {},
                    mode: Subdomain,
                },
                environment: {},
                initial_environment: {},
                debug: false,
                enable_browser: true,
                server_user_id: 1000,
                keep_runtime_alive: false,
                action_timeout_seconds: 120,
                init_git_in_empty_workspace: false,
                git_user_name: "openhands",
                git_user_email: "openhands@all-hands.dev",
            }"#]],
    );
}

const EVERYTHING_OF_OURS: &str = r#"
[llm]
model = "some"

[core]
runtime = "kubernetes"
max_iterations = 100

[sandbox]
runtime_container_image = "python:3.12"
use_host_network = false

[kubernetes]
namespace = "agents"
ingress_domain = "sandboxes.example.com"

[wharf]
profile = "openhands"
openhands_version = "0.48"
installation = "team-a"
sandboxd_image = "registry.example.com/wharf-sandboxd:1"
sandboxd_carrier = "image-volume"
route = "port-forward"
start_timeout_seconds = 60
image = "registry.example.com/agent:2"
image_pull_policy = "IfNotPresent"
image_pull_secrets = ["registry"]
cpu_limit = "2"
ephemeral_storage_limit = "1Gi"
ephemeral_storage_request = "64Mi"
gpu = { resource = "nvidia.com/gpu", count = 1 }
node_selector = { disk = "ssd" }
tolerations = [{ key = "gpu", operator = "Exists", tolerationSeconds = 60, effect = "NoExecute" }]
runtime_class = "gvisor"
service_account = "agent"
labels = { team = "a" }
annotations = { "example.com/owner" = "Ada" }
run_as_user = 1234
run_as_group = 5678
hardened = true
clients = { namespaces = { team = "a" } }
egress = ["internet", "10.0.0.0/8", "fd00::/8"]
closed_networks = ["203.0.113.0/24", "203.0.114.1"]
resolver = { namespace = "openshift-dns", labels = { dns = "default" }, port = 5353 }
ingress_class = "nginx"
ingress_annotations = { "nginx.ingress.kubernetes.io/proxy-read-timeout" = "3600" }
ingress_mode = "path"

[wharf.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution]
nodeSelectorTerms = [{ matchExpressions = [{ key = "disk", operator = "Exists" }] }]

[[wharf.extra_volumes]]
name = "cache"
mount_path = "/root/.cache"
persistent_volume_claim = { claimName = "cache" }

[[wharf.extra_volumes]]
name = "settings"
mountPath = "/etc/agent/settings"
subPath = "settings"
readOnly = true
configMap = { name = "agent" }
"#;

#[test]
fn every_key_of_ours_has_its_meaning() {
    let section = &EVERYTHING_OF_OURS[EVERYTHING_OF_OURS.find("[wharf]").unwrap()..];
    for key in Section::Wharf.keys() {
        assert!(section.contains(key), "{key} is not in the example");
    }
    check(
        EVERYTHING_OF_OURS,
        expect![[r#"
            Settings {
                profile: OpenHands,
                version: V0_48,
                namespace: "agents",
                installation: "team-a",
                image: Some(
                    "registry.example.com/agent:2",
                ),
                image_pull_policy: Some(
                    IfNotPresent,
                ),
                image_pull_secrets: [
                    "registry",
                ],
                sandboxd_image: "registry.example.com/wharf-sandboxd:1",
                carrier: ImageVolume,
                route: PortForward,
                start_timeout: 60s,
                workspace_path: "/workspace",
                storage_size: "2Gi",
                cpu_request: "1",
                cpu_limit: Some(
                    "2",
                ),
                memory_request: "1Gi",
                memory_limit: "2Gi",
                ephemeral_storage_request: Some(
                    "64Mi",
                ),
                ephemeral_storage_limit: Some(
                    "1Gi",
                ),
                gpu: Some(
                    Gpu {
                        resource: "nvidia.com/gpu",
                        count: 1,
                    },
                ),
                node_selector: {
                    "disk": "ssd",
                },
                tolerations: [
                    Toleration {
                        effect: Some(
                            "NoExecute",
                        ),
                        key: Some(
                            "gpu",
                        ),
                        operator: Some(
                            "Exists",
                        ),
                        toleration_seconds: Some(
                            60,
                        ),
                    },
                ],
                affinity: Some(
                    Affinity {
                        node_affinity: Some(
                            NodeAffinity {
                                required_during_scheduling_ignored_during_execution: Some(
                                    NodeSelector {
                                        node_selector_terms: [
                                            NodeSelectorTerm {
                                                match_expressions: Some(
                                                    [
                                                        NodeSelectorRequirement {
                                                            key: "disk",
                                                            operator: "Exists",
                                                        },
                                                    ],
                                                ),
                                            },
                                        ],
                                    },
                                ),
                            },
                        ),
                    },
                ),
                runtime_class: Some(
                    "gvisor",
                ),
                service_account: Some(
                    "agent",
                ),
                labels: {
                    "team": "a",
                },
                annotations: {
                    "example.com/owner": "Ada",
                },
                extra_volumes: [
                    ExtraVolume {
                        volume: Volume {
                            name: "cache",
                            persistent_volume_claim: Some(
                                PersistentVolumeClaimVolumeSource {
                                    claim_name: "cache",
                                },
                            ),
                        },
                        mount_path: "/root/.cache",
                        read_only: false,
                    },
                    ExtraVolume {
                        volume: Volume {
                            config_map: Some(
                                ConfigMapVolumeSource {
                                    name: "agent",
                                },
                            ),
                            name: "settings",
                        },
                        mount_path: "/etc/agent/settings",
                        sub_path: Some(
                            "settings",
                        ),
                        read_only: true,
                    },
                ],
                run_as_user: Id(
                    1234,
                ),
                run_as_group: 5678,
                privileged: false,
                hardened: true,
                clients: Namespaces(
                    {
                        "team": "a",
                    },
                ),
                egress: To {
                    internet: true,
                    networks: [
                        "10.0.0.0/8",
                        "fd00::/8",
                    ],
                },
                closed_networks: [
                    "203.0.113.0/24",
                    "203.0.114.1/32",
                ],
                resolver: Pods {
                    namespace: "openshift-dns",
                    labels: {
                        "dns": "default",
                    },
                    port: 5353,
                },
                ingress: IngressSettings {
                    enabled: true,
                    domain: "sandboxes.example.com",
                    class: Some(
                        "nginx",
                    ),
                    annotations: {
                        "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
                    },
                    mode: Path,
                },
                environment: {},
                initial_environment: {},
                debug: false,
                enable_browser: true,
                server_user_id: 0,
                keep_runtime_alive: false,
                action_timeout_seconds: 120,
                init_git_in_empty_workspace: false,
                git_user_name: "openhands",
                git_user_email: "openhands@all-hands.dev",
            }"#]],
    );
}

#[test]
fn every_key_of_ours_can_be_set_by_a_variable() {
    let of_the_file = load(EVERYTHING_OF_OURS, &[]).unwrap();
    let document: serde_json::Value = toml::from_str(EVERYTHING_OF_OURS).unwrap();
    let variables: Vec<_> = document["wharf"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (format!("WHARF_{}", name.to_uppercase()), value::shown(value)))
        .collect();
    assert_eq!(variables.len(), Section::Wharf.keys().len());
    let file = &EVERYTHING_OF_OURS[..EVERYTHING_OF_OURS.find("[wharf]").unwrap()];
    assert_eq!(load(file, &variables).unwrap(), of_the_file);
}

#[test]
fn variables_of_other_parts_of_wharf_are_no_settings() {
    let names = [
        "WHARF_STATE_DIR",
        "WHARF_RUNTIME",
        "WHARF_CONTEXT",
        "WHARF_NAMESPACE",
        "WHARF_CACHE",
        "WHARF_TEST_KUBECONFIG",
        "WHARF_CLUSTER_DIR",
        "WHARF_OUTPUT",
        "WHARF_CONFIG",
        "WHARF_WHATEVER",
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_PORT",
        "RUNTIME_USERNAME",
    ];
    let variables: Vec<_> = names.map(|name| (name.to_owned(), "?!".to_owned())).into();
    assert_eq!(load("", &variables).unwrap(), load("", &[]).unwrap());
}

/// A value of any shape, as TOML.
fn toml_value() -> impl Strategy<Value = String> {
    let words = [
        "true",
        "0",
        "-1",
        "1.5",
        "inf",
        "1979-05-27",
        "99999999999999999999",
        "'2Gi'",
        "'a'",
        "''",
        "'/a'",
        "'wharf'",
        "'openhands'",
        "'0.48'",
        "'path'",
        "'Always'",
        "'cluster'",
        "'- {key: a}'",
        "'é\\0'",
        "'10.0.0.0/8'",
    ];
    let leaf = prop_oneof![4 => select(words.to_vec()).prop_map(str::to_owned), 1 => "'[ -~é]{0,12}'"];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let names = select(vec![
            "a",
            "name",
            "key",
            "mount_path",
            "secret",
            "resource",
            "count",
            "namespaces",
            "operator",
            "nodeAffinity",
        ]);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::btree_map(names, inner, 0..4).prop_map(|entries| {
                let entries: Vec<_> = entries.iter().map(|(name, value)| format!("{name} = {value}")).collect();
                format!("{{ {} }}", entries.join(", "))
            }),
        ]
    })
}

fn any_key() -> impl Strategy<Value = (&'static str, String)> {
    let keys =
        Section::ALL.into_iter().flat_map(|section| section.keys().iter().map(move |key| (section.name(), *key)));
    let known = select(keys.collect::<Vec<_>>()).prop_map(|(section, key)| (section, key.to_owned()));
    prop_oneof![20 => known, 1 => ("[a-z_]{1,8}").prop_map(|key| ("wharf", key))]
}

fn file() -> impl Strategy<Value = String> {
    let entries = vec((any_key(), toml_value()), 0..6);
    entries.prop_map(|entries| {
        let entries: BTreeMap<_, _> = entries.into_iter().collect();
        entries.iter().map(|((section, key), value)| format!("{section}.{key} = {value}\n")).collect()
    })
}

fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = any_key().prop_map(|(section, key)| match section {
        "core" => key.to_uppercase(),
        _ => format!("{section}_{key}").to_uppercase(),
    });
    let name =
        prop_oneof![8 => name, 1 => select(vec!["RUNTIME_UID", "SANDBOX_ENV_A", "DEBUG"]).prop_map(str::to_owned)];
    let text = prop_oneof![
        "[ -~é]{0,12}",
        select(vec![
            "true",
            "1",
            "{'a': 'b'}",
            "['a']",
            "[{'key': 'a'}]",
            "2Gi",
            "a",
            "/a",
            "open",
            "internet",
            "wharf",
            "openhands"
        ])
        .prop_map(str::to_owned),
    ];
    vec((name, text), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Either they are settings that stand every check, or it is told why not.
    #[test]
    fn whatever_is_written_becomes_settings_or_reasons(toml in file(), variables in variables()) {
        match load(&toml, &variables) {
            Ok(Loaded { settings, .. }) => prop_assert_eq!(settings.check(), Ok(())),
            Err(SettingsError { problems }) => {
                prop_assert!(!problems.is_empty());
                for SettingsProblem { field, value, reason } in problems {
                    prop_assert!(!field.is_empty() && !reason.is_empty());
                    prop_assert!(value.chars().count() <= 200 && !value.contains('\n'), "{}", value);
                }
            }
        }
    }

    #[test]
    fn no_text_makes_loading_panic(toml in "[\\[\\]{}=,'\"# a-z0-9._\n\u{0}é]{0,200}", variables in variables()) {
        let _ = load(&toml, &variables);
    }

    #[test]
    fn a_damaged_file_is_told_or_understood(at in 0..EVERYTHING_OF_OURS.len(), with in any::<char>()) {
        let mut toml = EVERYTHING_OF_OURS.to_owned();
        toml.replace_range(at..=at, with.encode_utf8(&mut [0; 4]));
        let _ = load(&toml, &[]);
    }
}
