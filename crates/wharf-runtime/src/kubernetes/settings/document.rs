//! An OpenHands `config.toml`, as far as it concerns sandboxes: text in, sections out.

use serde_json::{Map, Number, Value};
use toml::de::{DeTable, DeValue};

use super::{
    SettingsProblem,
    keys::{Key, OTHER_SECTIONS, Section, nearest, unknown_key},
};

/// What a problem with the text itself names as its field.
const FILE: &str = "config.toml";
const LONGEST: usize = 1024 * 1024;

/// The sections that settings are read from. Entries are in the order in which they were written.
#[derive(Debug, Default)]
pub(super) struct Document {
    sections: Vec<(Section, Map<String, Value>)>,
}

impl Document {
    /// Tells of every key that is unknown: to `problems` what OpenHands refuses, to `warnings` what it passes over.
    ///
    /// A text that is no TOML is a problem, although OpenHands goes on with its defaults: a sandbox must not lose its
    /// settings to a missing quote.
    pub(super) fn read(text: &str, problems: &mut Vec<SettingsProblem>, warnings: &mut Vec<String>) -> Self {
        let mut document = Self::default();
        if text.len() > LONGEST {
            problems.push(SettingsProblem::new(FILE, "", "it is longer than 1 MiB"));
            return document;
        }
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                // Without the line itself, as it may hold a key or a password.
                let (line, column) = position(text, error.span().map_or(0, |span| span.start));
                let reason = format!("line {line}, column {column}: {}", error.message().trim());
                problems.push(SettingsProblem::new(FILE, "", reason));
                return document;
            }
        };
        for (name, value) in in_order(table.get_ref()) {
            match (Section::by_name(name), value) {
                (Some(section), DeValue::Table(entries)) => {
                    let entries = in_order(entries).map(|(name, value)| (name.to_owned(), json(value))).collect();
                    tell_unknown(section, &entries, problems, warnings);
                    document.sections.push((section, entries));
                }
                (Some(_), other) => {
                    problems.push(SettingsProblem::new(name, json(other).to_string(), "a table is expected"));
                }
                (None, _) if OTHER_SECTIONS.contains(&name) => {}
                (None, _) => warnings.push(unknown_section(name)),
            }
        }
        document
    }

    pub(super) fn find(&self, key: Key) -> Option<&Value> {
        let (_, entries) = self.sections.iter().find(|(section, _)| *section == key.section)?;
        entries.get(key.name)
    }
}

fn tell_unknown(
    section: Section,
    entries: &Map<String, Value>,
    problems: &mut Vec<SettingsProblem>,
    warnings: &mut Vec<String>,
) {
    for name in entries.keys().filter(|name| !section.keys().contains(&name.as_str())) {
        let field = format!("{}.{name}", section.name());
        let reason = unknown_key(section, name);
        match section {
            Section::Core => warnings.push(format!("`{field}` is passed over: {reason}")),
            Section::Sandbox | Section::Kubernetes | Section::Wharf => {
                // Its value says nothing here, and may be a secret.
                problems.push(SettingsProblem::new(field, "", reason));
            }
        }
    }
}

fn unknown_section(name: &str) -> String {
    let hint = match nearest(&name.to_lowercase(), &Section::ALL.map(Section::name)) {
        Some(near) => format!("; is `[{near}]` meant?"),
        None => String::new(),
    };
    format!("the section `[{name}]` is unknown and passed over{hint}")
}

/// `toml` sorts keys by name, but variables of an environment are made in the order of the file.
fn in_order<'a>(table: &'a DeTable<'_>) -> impl Iterator<Item = (&'a str, &'a DeValue<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries.into_iter().map(|(name, value)| (name.get_ref().as_ref(), value.get_ref()))
}

/// Dates, and numbers that JSON cannot hold, become text: wherever they stand, no setting takes them.
fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.into(),
            Err(_) => Value::String(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Value::Number(number),
            None => Value::String(number.to_string()),
        },
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(entries) => in_order(entries).map(|(name, value)| (name.to_owned(), json(value))).collect(),
    }
}

/// Line and column, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let document = Document::read(text, &mut problems, &mut warnings);
        let mut lines = String::new();
        for (section, entries) in document.sections {
            lines += &format!("{}: {}\n", section.name(), Value::Object(entries));
        }
        for SettingsProblem { field, value, reason } in problems {
            lines += &format!("problem: {field} = {value:?}: {reason}\n");
        }
        for warning in warnings {
            lines += &format!("warning: {warning}\n");
        }
        expected.assert_eq(&lines);
    }

    #[test]
    fn entries_stay_in_the_order_of_the_file() {
        check(
            "[sandbox]\nruntime_startup_env_vars = { Z = '1', A = '2' }\n[sandbox.runtime_startup_env_vars2]\n[core]\ndebug = true",
            expect![[r#"
                sandbox: {"runtime_startup_env_vars":{"Z":"1","A":"2"},"runtime_startup_env_vars2":{}}
                core: {"debug":true}
                problem: sandbox.runtime_startup_env_vars2 = "": unknown key; did you mean `runtime_startup_env_vars`?
            "#]],
        );
    }

    #[test]
    fn other_sections_of_openhands_are_passed_over() {
        check(
            "[llm]\nmodel = 'x'\n[llm.fast]\napi_key = 'y'\n[agent]\n[security]\n[mcp]\n[condenser]\n[model_routing]\n[extended]",
            expect![[""]],
        );
    }

    #[test]
    fn unknown_sections_and_keys_of_core_are_told_but_not_refused() {
        check(
            "top = 1\n[core]\nmodel = 'x'\nmax_budget_per_task = inf\n[Kubernetes]\nnamespace = 'a'",
            expect![[r#"
                core: {"model":"x","max_budget_per_task":"inf"}
                warning: the section `[top]` is unknown and passed over
                warning: `core.model` is passed over: unknown key
                warning: the section `[Kubernetes]` is unknown and passed over; is `[kubernetes]` meant?
            "#]],
        );
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        check(
            "kubernetes = { namspace = 'a' }\nwharf = 1",
            expect![[r#"
                kubernetes: {"namspace":"a"}
                problem: kubernetes.namspace = "": unknown key; did you mean `namespace`?
                problem: wharf = "1": a table is expected
            "#]],
        );
    }

    #[test]
    fn a_text_that_is_no_toml_is_told_by_place_and_never_shown() {
        check(
            "[llm]\napi_key = 's3cr3t",
            expect![[r#"
                problem: config.toml = "": line 2, column 18: invalid literal string, expected `'`
            "#]],
        );
        check(
            "[core]\ndebug = true\ndebug = false",
            expect![[r#"
                problem: config.toml = "": line 3, column 1: duplicate key
            "#]],
        );
    }

    #[test]
    fn what_json_cannot_hold_becomes_text() {
        check(
            "[core]\njwt_secret = [nan, 1979-05-27, 0x10, 99999999999999999999, 1_0.5]",
            expect![[r#"
                core: {"jwt_secret":["nan","1979-05-27",16,"99999999999999999999",10.5]}
            "#]],
        );
    }
}
