//! What an administrator gives a namespace once, ready for `kubectl apply -f -`: who may make sandboxes, and walls around
//! all of them. Pure.

use serde_json::{Value, json};

use super::{
    manifest::labels,
    settings::{Profile, Settings},
};

/// The account that programs which make sandboxes run as.
const ACCOUNT: &str = "wharf";

/// ServiceAccount, Role, RoleBinding and NetworkPolicy, all in the settings' namespace.
pub fn manifests(settings: &Settings) -> Vec<Value> {
    let namespace = &settings.namespace;
    let metadata = |name: &str| {
        json!({
            "name": name,
            "namespace": namespace,
            "labels": { labels::MANAGED_BY: "wharf", "app.kubernetes.io/name": "wharf" },
        })
    };
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
    let all = ["get", "list", "watch", "create", "patch", "delete"];
    // A pod is what it was made as; only one of the original's is made ours afterwards.
    let pods: Vec<_> =
        all.into_iter().filter(|verb| *verb != "patch" || settings.profile == Profile::OpenHands).collect();
    // These are found by their names.
    let named = ["get", "watch", "create", "patch", "delete"];
    let mut role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(ACCOUNT),
        "rules": [
            rule("", &["secrets"], &all),
            rule("", &["pods"], &pods),
            rule("", &["services", "persistentvolumeclaims"], &named),
            // Clusters that check who may make an owner wait for what it owns (OwnerReferencesPermissionEnforcement).
            rule("", &["secrets/finalizers"], &["update"]),
            rule("", &["pods/portforward"], &["get", "create"]),
            rule("", &["pods/log"], &["get"]),
            rule("", &["events"], &["list", "watch"]),
            rule("networking.k8s.io", &["networkpolicies"], &named),
        ],
    });
    if settings.ingress.enabled
        && let Some(rules) = role["rules"].as_array_mut()
    {
        rules.push(rule("networking.k8s.io", &["ingresses"], &named));
    }
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(ACCOUNT) }),
        role,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata(ACCOUNT),
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace }],
        }),
        // A sandbox's own policy opens what it may; before it is there, nothing is open. Sandboxes of the original, and those
        // that are equal to them, have none.
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata("wharf-closed"),
            "spec": {
                "podSelector": { "matchLabels": { labels::WALLED: "yes" } },
                "policyTypes": ["Ingress", "Egress"],
            },
        }),
    ]
}
