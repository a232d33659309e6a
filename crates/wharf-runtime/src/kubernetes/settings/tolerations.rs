//! Tolerations: as tables, and as the YAML text in which OpenHands has them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use serde_json::Value;

use super::{
    Profile, SettingsProblem,
    check::Fault,
    syntax,
    value::{Place, Setting, Spelled},
};

/// Far more than the tolerations of any pod.
const LONGEST: usize = 64 * 1024;

/// What a text of YAML made of itself.
#[derive(Debug, PartialEq)]
pub(super) enum FromYaml {
    Tolerations(Vec<Toleration>),
    /// Nothing: OpenHands logs this and goes on.
    PassedOver(String),
    /// It was told to the problems.
    Refused,
}

/// Reads `text`, the value of the setting `field`.
///
/// The original ignores what is no list and what is no YAML; we do so only under its profile, as a sandbox that lacks
/// its tolerations waits for a node that never comes. It knows the spelling `toleration_seconds` only; we take that of
/// Kubernetes too, under both profiles.
pub(super) fn from_yaml(text: &str, field: &str, profile: Profile, problems: &mut Vec<SettingsProblem>) -> FromYaml {
    let mut refuse = |reason: String| {
        problems.push(SettingsProblem::new(field, text, reason));
        FromYaml::Refused
    };
    if text.len() > LONGEST {
        return refuse("it is longer than 64 KiB".to_owned());
    }
    let value: Value = match serde_saphyr::from_str_with_options(text, options()) {
        Ok(value) => value,
        Err(error) => {
            let error = error.without_snippet().to_string();
            return match profile {
                Profile::Wharf => refuse(format!("it is no YAML: {error}")),
                Profile::OpenHands => {
                    FromYaml::PassedOver(format!("Error parsing tolerations YAML: {text}. Error: {error}"))
                }
            };
        }
    };
    if !value.is_array() {
        return match profile {
            Profile::Wharf => refuse("a list of tolerations is expected".to_owned()),
            Profile::OpenHands => FromYaml::PassedOver(format!(
                "Invalid tolerations format. Should be type list: {text}. Expected a list."
            )),
        };
    }
    match Vec::read(&Place { path: field.to_owned(), value: &value }, problems) {
        Some(tolerations) => FromYaml::Tolerations(tolerations),
        None => FromYaml::Refused,
    }
}

/// Bounds for a text of a few lines, whatever its aliases make of it.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 20_000,
            max_nodes: 10_000,
            max_aliases: 100,
            max_anchors: 100,
            max_depth: 16,
            max_documents: 1,
            max_merge_keys: 100,
            max_total_scalar_bytes: LONGEST,
            max_recorded_anchor_events: 10_000,
            max_recorded_anchor_bytes: LONGEST,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    }
}

impl Setting for Vec<Toleration> {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let items = place.items(problems)?;
        let tolerations: Vec<_> = items.iter().map(|item| toleration(item, problems)).collect();
        tolerations.into_iter().collect()
    }
}

fn toleration(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Toleration> {
    let told = problems.len();
    let known: [&[&str]; 5] =
        [&["key"], &["operator"], &["value"], &["effect"], &["tolerationSeconds", "toleration_seconds"]];
    let mut entries = place.known_entries(&known, problems)?;
    let seconds = entries.remove("tolerationSeconds").and_then(|place| {
        let seconds = place.value.as_i64();
        if seconds.is_none() {
            place.refuse(problems, "a whole number of seconds is expected");
        }
        seconds
    });
    let mut texts: BTreeMap<_, _> =
        entries.into_iter().filter_map(|(name, place)| Some((name, String::read(&place, problems)?))).collect();
    let toleration = Toleration {
        key: texts.remove("key"),
        operator: texts.remove("operator"),
        value: texts.remove("value"),
        effect: texts.remove("effect"),
        toleration_seconds: seconds,
    };
    (problems.len() == told).then_some(toleration)
}

/// What the API server has against one: the rules of its `ValidateTolerations`.
pub(super) fn faults(toleration: &Toleration) -> Vec<Fault> {
    let Toleration { key, operator, value, effect, toleration_seconds } = toleration;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (key, operator, value, effect) = (text(key), text(operator), text(value), text(effect));
    let mut faults = Vec::new();
    let mut tell = |part, value: &str, reason: String| faults.push(Fault { part, value: value.to_owned(), reason });
    if key.is_empty() {
        if operator != "Exists" {
            tell("operator", &operator, "without a key it must be `Exists`".to_owned());
        }
    } else if let Err(reason) = syntax::label_key(&key) {
        tell("key", &key, reason);
    }
    let verdict = match operator.as_str() {
        "" | "Equal" => syntax::label_value(&value),
        "Exists" if !value.is_empty() => Err("with the operator `Exists` there is no value".to_owned()),
        "Lt" | "Gt" if value.parse::<i64>().is_err() => Err("with this operator it must be a whole number".to_owned()),
        "Exists" | "Lt" | "Gt" => Ok(()),
        _ => {
            tell("operator", &operator, "one of `Equal`, `Exists`, `Lt`, `Gt` is expected".to_owned());
            Ok(())
        }
    };
    if let Err(reason) = verdict {
        tell("value", &value, reason);
    }
    if !["", "NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.as_str()) {
        tell("effect", &effect, "one of `NoSchedule`, `PreferNoSchedule`, `NoExecute` is expected".to_owned());
    } else if toleration_seconds.is_some() && effect != "NoExecute" {
        tell("effect", &effect, "with `tolerationSeconds` it must be `NoExecute`".to_owned());
    }
    faults
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn read(profile: Profile, text: &str) -> String {
        let mut problems = Vec::new();
        let mut lines = match from_yaml(text, "tolerations_yaml", profile, &mut problems) {
            FromYaml::Tolerations(tolerations) => {
                tolerations.iter().map(|one| format!("{}\n", serde_json::to_string(one).unwrap())).collect()
            }
            FromYaml::PassedOver(warning) => format!("passed over: {warning}\n"),
            FromYaml::Refused => String::new(),
        };
        for SettingsProblem { field, reason, .. } in problems {
            lines += &format!("{field}: {reason}\n");
        }
        lines
    }

    /// `expected` under both profiles.
    #[track_caller]
    fn check(text: &str, expected: Expect) {
        let (wharf, openhands) = (read(Profile::Wharf, text), read(Profile::OpenHands, text));
        assert_eq!(wharf, openhands);
        expected.assert_eq(&wharf);
    }

    #[test]
    fn both_spellings_of_seconds_are_understood_under_both_profiles() {
        check(
            "- {key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 60}\n- {key: b, toleration_seconds: 5, value: ~}",
            expect![[r#"
                {"effect":"NoExecute","key":"a","operator":"Exists","tolerationSeconds":60}
                {"key":"b","tolerationSeconds":5}
            "#]],
        );
        check("[]", expect![[""]]);
    }

    #[test]
    fn what_the_original_passes_over_is_an_error_under_our_profile() {
        expect![[r#"
            passed over: Invalid tolerations format. Should be type list: key: a. Expected a list.
        "#]]
        .assert_eq(&read(Profile::OpenHands, "key: a"));
        expect![[r#"
            tolerations_yaml: a list of tolerations is expected
        "#]]
        .assert_eq(&read(Profile::Wharf, "key: a"));
        expect![[r#"
            passed over: Error parsing tolerations YAML: - key: [unclosed. Error: unclosed bracket '[' at line 1, column 8
        "#]]
        .assert_eq(&read(Profile::OpenHands, "- key: [unclosed"));
        expect![[r#"
            tolerations_yaml: it is no YAML: unclosed bracket '[' at line 1, column 8
        "#]]
        .assert_eq(&read(Profile::Wharf, "- key: [unclosed"));
    }

    #[test]
    fn what_is_no_toleration_is_refused_under_both_profiles() {
        check(
            "- {key: a, efect: NoSchedule}\n- 7\n- {value: true, tolerationSeconds: soon}\n- {tolerationSeconds: 1, toleration_seconds: 2}",
            expect![[r#"
                tolerations_yaml[0].efect: unknown key; did you mean `effect`?
                tolerations_yaml[1]: a table is expected
                tolerations_yaml[2].tolerationSeconds: a whole number of seconds is expected
                tolerations_yaml[2].value: text is expected: put it in quotes
                tolerations_yaml[3].toleration_seconds: it is the same as `tolerationSeconds`, which is there too
            "#]],
        );
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut bomb = "- &a0 [x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb += &format!("- &a{level} [{aliases}]\n");
        }
        let mut problems = Vec::new();
        for text in [bomb, "[".repeat(60_000), format!("[{}]", "[],".repeat(20_000)), "x".repeat(LONGEST + 1)] {
            assert_eq!(from_yaml(&text, "field", Profile::Wharf, &mut problems), FromYaml::Refused);
        }
    }

    #[test]
    fn the_rules_are_those_of_the_api_server() {
        let toleration = |key: &str, operator: &str, value: &str, effect: &str, seconds| Toleration {
            key: Some(key.to_owned()),
            operator: Some(operator.to_owned()),
            value: Some(value.to_owned()),
            effect: Some(effect.to_owned()),
            toleration_seconds: seconds,
        };
        let tolerations = [
            toleration("a", "", "b", "", None),
            toleration("", "Exists", "", "NoExecute", Some(-1)),
            toleration("a", "Gt", "5", "NoSchedule", None),
            toleration("", "Equal", "", "", None),
            toleration("a b", "exists", "", "", None),
            toleration("a", "Exists", "b", "NoSchedule", Some(5)),
            toleration("a", "Lt", "b", "Never", None),
            toleration("a", "Equal", "b c", "", None),
            Toleration::default(),
        ];
        let mut lines = String::new();
        for (at, toleration) in tolerations.iter().enumerate() {
            for Fault { part, value, reason } in faults(toleration) {
                lines += &format!("[{at}].{part} = {value:?}: {reason}\n");
            }
        }
        expect![[r#"
            [3].operator = "Equal": without a key it must be `Exists`
            [4].key = "a b": a key is letters, digits, `-`, `_` and `.`, at most 63, perhaps with a domain and `/` before it
            [4].operator = "exists": one of `Equal`, `Exists`, `Lt`, `Gt` is expected
            [5].value = "b": with the operator `Exists` there is no value
            [5].effect = "NoSchedule": with `tolerationSeconds` it must be `NoExecute`
            [6].value = "b": with this operator it must be a whole number
            [6].effect = "Never": one of `NoSchedule`, `PreferNoSchedule`, `NoExecute` is expected
            [7].value = "b c": a label's value is letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends
            [8].operator = "": without a key it must be `Exists`
        "#]].assert_eq(&lines);
    }
}
