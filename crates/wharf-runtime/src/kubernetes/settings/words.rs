//! Settings that are one of a few words, and the small tables beside them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Carrier, Clients, Egress, Gpu, IngressMode, OpenHandsVersion, Profile, PullPolicy, Resolver, RouteChoice, RunAs,
    SettingsProblem, syntax,
    value::{Place, Setting, Spelled, shown},
};

/// In `egress`: all that is public.
const INTERNET: &str = "internet";

impl Setting for Profile {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        place.word(&[("wharf", Self::Wharf), ("openhands", Self::OpenHands)], problems)
    }
}

impl Setting for OpenHandsVersion {
    const SPELLED: Spelled = Spelled::Text;

    /// Takes a number too: a version without its quotes looks like one.
    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let text = Value::String(shown(place.value));
        let place = Place { path: place.path.clone(), value: &text };
        place.word(&[("0.48", Self::V0_48), ("0.62", Self::V0_62)], problems)
    }
}

impl Setting for Carrier {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let words =
            [("auto", Self::Auto), ("init-container", Self::InitContainer), ("image-volume", Self::ImageVolume)];
        place.word(&words, problems)
    }
}

impl Setting for RouteChoice {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let words = [
            ("auto", Self::Auto),
            ("pod-address", Self::PodAddress),
            ("service", Self::Service),
            ("port-forward", Self::PortForward),
        ];
        place.word(&words, problems)
    }
}

impl Setting for PullPolicy {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let words = [("Always", Self::Always), ("IfNotPresent", Self::IfNotPresent), ("Never", Self::Never)];
        place.word(&words, problems)
    }
}

impl Setting for RunAs {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        match place.value {
            Value::String(text) if text == "image" => Some(Self::Image),
            Value::String(text) if text.parse::<u32>().is_err() => {
                place.refuse(problems, "the number of a user, or `image`, is expected");
                None
            }
            _ => u32::read(place, problems).map(Self::Id),
        }
    }
}

impl Setting for IngressMode {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        place.word(&[("subdomain", Self::Subdomain), ("path", Self::Path)], problems)
    }
}

impl Setting for Gpu {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let entries = place.known_entries(&[&["resource"], &["count"]], problems)?;
        let Some(resource) = entries.get("resource") else {
            place.refuse(problems, "`resource` is missing, such as `nvidia.com/gpu`");
            return None;
        };
        let resource = String::read(resource, problems);
        let count = entries.get("count").map_or(Some(1), |count| u32::read(count, problems));
        Some(Self { resource: resource?, count: count? })
    }
}

impl Setting for Clients {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let labels = match place.value {
            Value::String(text) if text == "same-namespace" => return Some(Self::SameNamespace),
            Value::String(text) if text == "cluster" => return Some(Self::Cluster),
            Value::Object(_) => place.known_entries(&[&["namespaces"]], problems)?.remove("namespaces"),
            _ => None,
        };
        let Some(labels) = labels else {
            let words = "`same-namespace`, `cluster` or `{ namespaces = { label = \"value\" } }` is expected";
            place.refuse(problems, words);
            return None;
        };
        BTreeMap::read(&labels, problems).map(Self::Namespaces)
    }
}

impl Setting for Egress {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        match place.value {
            Value::Array(_) => {
                let mut networks: Vec<String> = Vec::read(place, problems)?;
                let all = networks.len();
                networks.retain(|network| network != INTERNET);
                let internet = networks.len() < all;
                let networks = networks.into_iter().map(syntax::as_network).collect::<Vec<_>>();
                Some(Self::To { internet, networks })
            }
            Value::String(text) if text == INTERNET => Some(Self::default()),
            Value::String(text) if text == "open" => Some(Self::Open),
            Value::String(text) if text == "none" => Some(Self::None),
            _ => {
                let words = "`internet`, `open`, `none` or a list such as `[\"internet\", \"10.0.0.0/8\"]` is expected";
                place.refuse(problems, words);
                None
            }
        }
    }
}

impl Setting for Resolver {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        if let Value::Array(_) = place.value {
            let networks: Vec<String> = Vec::read(place, problems)?;
            return Some(Self::At(networks.into_iter().map(syntax::as_network).collect()));
        }
        if !place.value.is_object() {
            let words = "a list of networks, or `{ namespace = \"kube-system\", labels = { … } }` is expected";
            place.refuse(problems, words);
            return None;
        }
        let entries = place.known_entries(&[&["namespace"], &["labels"], &["port"]], problems)?;
        let (Some(namespace), Some(labels)) = (entries.get("namespace"), entries.get("labels")) else {
            place.refuse(problems, "`namespace` and `labels` of the resolver's pods are both needed");
            return None;
        };
        let port = entries.get("port").map_or(Some(u32::from(Self::PORT)), |port| u32::read(port, problems));
        let (namespace, labels) = (String::read(namespace, problems), BTreeMap::read(labels, problems));
        let Ok(port) = u16::try_from(port?) else {
            place.refuse(problems, "`port` is at most 65535");
            return None;
        };
        Some(Self::Pods { namespace: namespace?, labels: labels?, port })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check<T: Setting + Debug>(values: &[Value], expected: Expect) {
        let mut lines = String::new();
        for value in values {
            let mut problems = Vec::new();
            let read = T::read(&Place { path: "it".to_owned(), value }, &mut problems);
            let reasons: Vec<_> =
                problems.iter().map(|problem| format!("{}: {}", problem.field, problem.reason)).collect();
            assert_eq!(read.is_none(), !problems.is_empty(), "{value}");
            lines += &read.map_or_else(|| reasons.join(", "), |read| format!("{read:?}"));
            lines.push('\n');
        }
        expected.assert_eq(&lines);
    }

    #[test]
    fn a_word_is_matched_to_the_letter() {
        check::<Profile>(
            &[json!("wharf"), json!("openhands"), json!("Wharf"), json!(1)],
            expect![[r#"
            Wharf
            OpenHands
            it: one of `wharf`, `openhands` is expected
            it: one of `wharf`, `openhands` is expected
        "#]],
        );
        check::<PullPolicy>(
            &[json!("IfNotPresent"), json!("always")],
            expect![[r#"
            IfNotPresent
            it: one of `Always`, `IfNotPresent`, `Never` is expected
        "#]],
        );
        check::<RouteChoice>(
            &[json!("pod-address"), json!("")],
            expect![[r#"
            PodAddress
            it: one of `auto`, `pod-address`, `service`, `port-forward` is expected
        "#]],
        );
        check::<Carrier>(
            &[json!("image-volume"), json!("x")],
            expect![[r#"
            ImageVolume
            it: one of `auto`, `init-container`, `image-volume` is expected
        "#]],
        );
        check::<IngressMode>(
            &[json!("path"), json!(null)],
            expect![[r#"
            Path
            it: one of `subdomain`, `path` is expected
        "#]],
        );
    }

    #[test]
    fn a_version_may_lack_its_quotes() {
        check::<OpenHandsVersion>(
            &[json!("0.48"), json!(0.62), json!("0.62.0")],
            expect![[r#"
            V0_48
            V0_62
            it: one of `0.48`, `0.62` is expected
        "#]],
        );
    }

    #[test]
    fn accelerators_are_counted() {
        let values = [
            json!({ "resource": "nvidia.com/gpu", "count": 2 }),
            json!({ "resource": "amd.com/gpu" }),
            json!({ "count": -1 }),
            json!({ "resource": "a/b", "count": 4_294_967_296_u64 }),
            json!(1),
        ];
        check::<Gpu>(
            &values,
            expect![[r#"
            Gpu { resource: "nvidia.com/gpu", count: 2 }
            Gpu { resource: "amd.com/gpu", count: 1 }
            it: `resource` is missing, such as `nvidia.com/gpu`
            it.count: it is too large
            it: a table is expected
        "#]],
        );
    }

    #[test]
    fn clients_and_egress_are_words_or_more() {
        let values = [
            json!("same-namespace"),
            json!("cluster"),
            json!({ "namespaces": { "team": "a" } }),
            json!({ "namespace": { "team": "a" } }),
            json!({}),
            json!("all"),
        ];
        check::<Clients>(
            &values,
            expect![[r#"
            SameNamespace
            Cluster
            Namespaces({"team": "a"})
            it.namespace: unknown key; did you mean `namespaces`?, it: `same-namespace`, `cluster` or `{ namespaces = { label = "value" } }` is expected
            it: `same-namespace`, `cluster` or `{ namespaces = { label = "value" } }` is expected
            it: `same-namespace`, `cluster` or `{ namespaces = { label = "value" } }` is expected
        "#]],
        );
        check::<Egress>(
            &[
                json!("internet"),
                json!("open"),
                json!("none"),
                json!(["10.0.0.0/8"]),
                json!(["10.0.0.0/8", "internet"]),
                json!("10.0.0.0/8"),
                json!([1]),
            ],
            expect![[r#"
                To { internet: true, networks: [] }
                Open
                None
                To { internet: false, networks: ["10.0.0.0/8"] }
                To { internet: true, networks: ["10.0.0.0/8"] }
                it: `internet`, `open`, `none` or a list such as `["internet", "10.0.0.0/8"]` is expected
                it[0]: text is expected: put it in quotes
            "#]],
        );
    }
}
