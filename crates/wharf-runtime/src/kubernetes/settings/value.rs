//! A setting's value and its meaning: what is written in, a type out, or the reason for which it is none.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{SettingsProblem, keys::nearest, literal};

/// How the environment spells a value; the file has types of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelled {
    Text,
    Boolean,
    Integer,
    /// A dict or list; text if it does not begin like one.
    Structure,
}

/// What a setting can be.
pub(super) trait Setting: Sized {
    const SPELLED: Spelled;
    /// Whether what is written must not be told.
    const SECRET: bool = false;

    /// `None` after it told `problems` at least once.
    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self>;
}

/// A value and where it stands: `wharf.extra_volumes[1].name`.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) path: String,
    pub(super) value: &'a Value,
}

impl<'a> Place<'a> {
    pub(super) fn refuse(&self, problems: &mut Vec<SettingsProblem>, reason: impl Into<String>) {
        problems.push(SettingsProblem::new(self.path.clone(), shown(self.value), reason));
    }

    pub(super) fn table(&self, problems: &mut Vec<SettingsProblem>) -> Option<&'a Map<String, Value>> {
        let table = self.value.as_object();
        if table.is_none() {
            self.refuse(problems, "a table is expected");
        }
        table
    }

    pub(super) fn items(&self, problems: &mut Vec<SettingsProblem>) -> Option<Vec<Place<'a>>> {
        let Some(items) = self.value.as_array() else {
            self.refuse(problems, "a list is expected");
            return None;
        };
        let place = |(at, value)| Place { path: format!("{}[{at}]", self.path), value };
        Some(items.iter().enumerate().map(place).collect())
    }

    pub(super) fn entry(&self, name: &str, value: &'a Value) -> Self {
        Self { path: format!("{}.{name}", self.path), value }
    }

    /// The entries of a table whose keys are known, each by the first of its spellings.
    pub(super) fn known_entries<'k>(
        &self,
        known: &[&[&'k str]],
        problems: &mut Vec<SettingsProblem>,
    ) -> Option<BTreeMap<&'k str, Place<'a>>> {
        let mut entries = BTreeMap::new();
        for (name, value) in self.table(problems)? {
            let entry = self.entry(name, value);
            match known.iter().find(|spellings| spellings.contains(&name.as_str())) {
                // YAML and Python write `null` and `None` for what is absent.
                Some(_) if value.is_null() => {}
                Some(spellings) if entries.contains_key(spellings[0]) => {
                    entry.refuse(problems, format!("it is the same as `{}`, which is there too", spellings[0]));
                }
                Some(spellings) => drop(entries.insert(spellings[0], entry)),
                None => {
                    let all: Vec<_> = known.iter().flat_map(|spellings| spellings.iter().copied()).collect();
                    let hint = nearest(name, &all).map(|near| format!("; did you mean `{near}`?"));
                    entry.refuse(problems, format!("unknown key{}", hint.unwrap_or_default()));
                }
            }
        }
        Some(entries)
    }

    /// Reads it as one of the words, which are matched to the letter.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], problems: &mut Vec<SettingsProblem>) -> Option<T> {
        let found = self.value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            self.refuse(problems, format!("one of {} is expected", all.join(", ")));
        }
        found.map(|(_, meaning)| *meaning)
    }

    /// Reads it as a part of a manifest, spelled as Kubernetes spells it. A field that Kubernetes does not know is
    /// refused, not lost.
    pub(super) fn manifest<T: DeserializeOwned + Serialize>(&self, problems: &mut Vec<SettingsProblem>) -> Option<T> {
        let typed: T = match serde_json::from_value(self.value.clone()) {
            Ok(typed) => typed,
            Err(error) => {
                self.refuse(problems, format!("Kubernetes takes no such thing: {error}"));
                return None;
            }
        };
        let understood = serde_json::to_value(&typed).unwrap_or_default();
        let told = problems.len();
        self.tell_lost(&understood, problems);
        (problems.len() == told).then_some(typed)
    }

    fn tell_lost(&self, understood: &Value, problems: &mut Vec<SettingsProblem>) {
        match (self.value, understood) {
            (Value::Object(written), Value::Object(understood)) => {
                for (name, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                    let entry = self.entry(name, value);
                    match understood.get(name) {
                        Some(understood) => entry.tell_lost(understood, problems),
                        None => entry.refuse(problems, "Kubernetes has no such field here"),
                    }
                }
            }
            (Value::Array(written), Value::Array(understood)) => {
                for (at, (value, understood)) in written.iter().zip(understood).enumerate() {
                    Place { path: format!("{}[{at}]", self.path), value }.tell_lost(understood, problems);
                }
            }
            _ => {}
        }
    }
}

/// A value as a person would write it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Takes a variable's text for what the file would hold. `ours` are the variables that OpenHands does not know: with
/// them a boolean must be one, and JSON is as good as Python.
pub(super) fn from_variable(text: &str, spelled: Spelled, ours: bool) -> Result<Value, String> {
    match spelled {
        Spelled::Text => Ok(Value::String(text.to_owned())),
        Spelled::Boolean => match text.to_lowercase().as_str() {
            "true" | "1" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ if !ours => Ok(Value::Bool(false)),
            _ => Err("`true` or `false` is expected".to_owned()),
        },
        Spelled::Integer => match literal::whole_number(text.trim()) {
            Some(number) => Ok(number.into()),
            None => Err("a whole number is expected".to_owned()),
        },
        Spelled::Structure if ours && !text.trim_start().starts_with(['{', '[']) => Ok(Value::String(text.to_owned())),
        Spelled::Structure => literal::parse(text).or_else(|error| {
            let json = if ours { serde_json::from_str(text).ok() } else { None };
            json.ok_or_else(|| error.to_string())
        }),
    }
}

impl Setting for String {
    const SPELLED: Spelled = Spelled::Text;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        match place.value {
            Value::String(text) => return Some(text.clone()),
            Value::Number(_) | Value::Bool(_) => place.refuse(problems, "text is expected: put it in quotes"),
            Value::Null | Value::Array(_) | Value::Object(_) => place.refuse(problems, "text is expected"),
        }
        None
    }
}

impl Setting for bool {
    const SPELLED: Spelled = Spelled::Boolean;

    /// Takes the words that pydantic takes, as OpenHands' own files may hold them.
    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let truth = match place.value {
            Value::Bool(truth) => Some(*truth),
            Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
            Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
            Value::String(text) => match text.to_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
                "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
                _ => None,
            },
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if truth.is_none() {
            place.refuse(problems, "`true` or `false` is expected");
        }
        truth
    }
}

impl Setting for u64 {
    const SPELLED: Spelled = Spelled::Integer;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let number = match place.value {
            Value::Number(number) => number.as_u64().or_else(|| {
                // 2^53, up to which every whole number is one.
                let whole = |float: &f64| float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(float);
                number.as_f64().filter(whole).map(|float| float as u64)
            }),
            Value::String(text) => literal::whole_number(text.trim()).and_then(|number| number.try_into().ok()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if number.is_none() {
            place.refuse(problems, "a whole number from zero up is expected");
        }
        number
    }
}

impl Setting for u32 {
    const SPELLED: Spelled = Spelled::Integer;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let number = u64::read(place, problems)?.try_into();
        if number.is_err() {
            place.refuse(problems, "it is too large");
        }
        number.ok()
    }
}

impl Setting for Vec<String> {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let items = place.items(problems)?;
        let texts: Vec<_> = items.iter().map(|item| String::read(item, problems)).collect();
        texts.into_iter().collect()
    }
}

impl Setting for BTreeMap<String, String> {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let table = place.table(problems)?;
        let mut read = |(name, value)| Some((String::clone(name), String::read(&place.entry(name, value), problems)?));
        let texts: Vec<_> = table.iter().map(&mut read).collect();
        texts.into_iter().collect()
    }
}

impl Setting for super::Variables {
    const SPELLED: Spelled = Spelled::Structure;
    const SECRET: bool = true;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let Some(table) = place.value.as_object() else {
            problems.push(SettingsProblem::new(place.path.clone(), "", "a table of texts is expected"));
            return None;
        };
        let told = problems.len();
        let mut variables = Vec::new();
        for (name, value) in table {
            match value {
                Value::String(text) => variables.push((name.clone(), text.clone())),
                _ => {
                    let field = format!("{}.{name}", place.path);
                    problems.push(SettingsProblem::new(field, "", "text is expected: put it in quotes"));
                }
            }
        }
        (problems.len() == told).then_some(Self(variables))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde_json::json;

    use super::*;

    fn read<T: Setting>(value: &Value) -> Result<T, Vec<String>> {
        let mut problems = Vec::new();
        let read = T::read(&Place { path: "it".to_owned(), value }, &mut problems);
        let told = problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.reason)).collect();
        read.ok_or(told)
    }

    #[track_caller]
    fn check<T: Setting + Debug + PartialEq>(value: Value, expected: Result<T, &str>) {
        assert_eq!(read::<T>(&value), expected.map_err(|told| vec![told.to_owned()]), "{value}");
    }

    #[test]
    fn booleans_are_those_that_the_original_takes_from_a_file() {
        for yes in [json!(true), json!(1), json!(1.0), json!("On"), json!("yes"), json!("T")] {
            check(yes, Ok(true));
        }
        for no in [json!(false), json!(0), json!("off"), json!("N")] {
            check(no, Ok(false));
        }
        for neither in [json!(2), json!(""), json!("ja"), json!(null), json!([])] {
            check::<bool>(neither, Err("it: `true` or `false` is expected"));
        }
    }

    #[test]
    fn numbers_are_whole() {
        check(json!(7), Ok(7_u64));
        check(json!(7.0), Ok(7_u64));
        check(json!(" 1_000 "), Ok(1_000_u64));
        for wrong in [json!(-1), json!(1.5), json!(1e300), json!("x"), json!(true), json!("-5")] {
            check::<u64>(wrong, Err("it: a whole number from zero up is expected"));
        }
        check::<u32>(json!(4_294_967_296_u64), Err("it: it is too large"));
    }

    #[test]
    fn text_is_never_made_of_something_else() {
        check(json!(""), Ok(String::new()));
        check::<String>(json!(1), Err("it: text is expected: put it in quotes"));
        check::<String>(json!([]), Err("it: text is expected"));
        check::<Vec<String>>(json!(["a", {}]), Err("it[1]: text is expected"));
        check::<BTreeMap<String, String>>(json!({ "a.b": 1 }), Err("it.a.b: text is expected: put it in quotes"));
        check::<super::super::Variables>(json!("A=b"), Err("it: a table of texts is expected"));
    }

    #[test]
    fn a_variable_means_what_python_makes_of_it() {
        let (theirs, ours) = (false, true);
        let variable = |text, spelled, whose| from_variable(text, spelled, whose).ok();
        assert_eq!(variable("TRUE", Spelled::Boolean, theirs), Some(json!(true)));
        assert_eq!(variable("yes", Spelled::Boolean, theirs), Some(json!(false)));
        assert_eq!(variable("yes", Spelled::Boolean, ours), None);
        assert_eq!(variable(" +1_0 ", Spelled::Integer, theirs), Some(json!(10)));
        assert_eq!(variable("1.0", Spelled::Integer, theirs), None);
        assert_eq!(variable("{'a': True}", Spelled::Structure, theirs), Some(json!({ "a": true })));
        assert_eq!(variable("{\"a\": true}", Spelled::Structure, theirs), None);
        assert_eq!(variable("{\"a\": true}", Spelled::Structure, ours), Some(json!({ "a": true })));
        assert_eq!(variable("open", Spelled::Structure, ours), Some(json!("open")));
        assert_eq!(variable("open", Spelled::Structure, theirs), None);
    }
}
