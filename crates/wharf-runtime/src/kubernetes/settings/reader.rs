//! Which source has the last word on a setting: the caller, the environment, the file, the default.

use std::collections::BTreeMap;

use super::{
    SettingsProblem,
    document::Document,
    keys::{Key, Section},
    value::{Place, Setting, from_variable},
};

/// What set a value, so that a problem can name it.
///
/// A value is known by its path in the file, `wharf.labels.team`; what is not known here was set there, or by nobody.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, String>);

impl Origins {
    pub(super) fn set(&mut self, path: impl Into<String>, name: impl Into<String>) {
        self.0.insert(path.into(), name.into());
    }

    /// Whether a source set it.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// How the user calls the value at `path`: `WHARF_LABELS.team` if that variable set all labels.
    pub(super) fn name(&self, path: &str) -> String {
        let ends = std::iter::once(path.len()).chain(path.rmatch_indices(['.', '[']).map(|(at, _)| at));
        let known = ends.map(|end| path.split_at(end)).find_map(|(whole, part)| Some((self.0.get(whole)?, part)));
        match known {
            Some((name, part)) => format!("{name}{part}"),
            None => path.to_owned(),
        }
    }
}

/// The file and the environment, and what was found wrong with them so far.
pub(super) struct Reader<'a> {
    document: Document,
    environment: &'a BTreeMap<String, String>,
    pub(super) origins: Origins,
    pub(super) problems: Vec<SettingsProblem>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn open(toml: Option<&str>, environment: &'a BTreeMap<String, String>) -> Self {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let document = toml.map(|text| Document::read(text, &mut problems, &mut warnings)).unwrap_or_default();
        Self { document, environment, origins: Origins::default(), problems, warnings }
    }

    /// A variable of the environment; an empty one is as good as none.
    pub(super) fn variable(&self, name: &str) -> Option<&'a str> {
        self.environment.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// All variables whose names begin with `prefix`, without it, in the order of their names.
    pub(super) fn variables_after(&self, prefix: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.environment.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// What the environment or the file say of `key`.
    ///
    /// A variable of OpenHands whose value is of the wrong type is passed over, as OpenHands does. One of ours is a
    /// problem, as is whatever the file says wrongly.
    pub(super) fn find<T: Setting>(&mut self, key: Key) -> Option<T> {
        debug_assert!(key.section.keys().contains(&key.name), "{key:?} would be refused as unknown");
        self.find_in_environment(key).or_else(|| self.find_in_file(key))
    }

    /// What the caller says, called `given_as` in problems, before all others.
    pub(super) fn find_unless<T: Setting + Clone>(&mut self, given_as: &str, given: &Option<T>, key: Key) -> Option<T> {
        match given {
            Some(given) => {
                self.origins.set(key.path(), given_as);
                Some(given.clone())
            }
            None => self.find(key),
        }
    }

    fn find_in_environment<T: Setting>(&mut self, key: Key) -> Option<T> {
        let variable = key.variable();
        let text = self.variable(&variable)?;
        let is_ours = key.section == Section::Wharf;
        let mut told = Vec::new();
        let read = match from_variable(text, T::SPELLED, is_ours) {
            Ok(value) => T::read(&Place { path: variable.clone(), value: &value }, &mut told),
            Err(reason) => {
                told.push(SettingsProblem::new(variable.clone(), if T::SECRET { "" } else { text }, reason));
                None
            }
        };
        if told.is_empty() {
            self.origins.set(key.path(), variable);
            return read;
        }
        if is_ours {
            self.problems.append(&mut told);
        } else {
            let reasons: Vec<_> = told.iter().map(SettingsProblem::because).collect();
            self.warnings.push(format!("`{variable}` is passed over: {}", reasons.join(", ")));
        }
        None
    }

    fn find_in_file<T: Setting>(&mut self, key: Key) -> Option<T> {
        let value = self.document.find(key)?;
        let (path, told) = (key.path(), self.problems.len());
        let read = T::read(&Place { path: path.clone(), value }, &mut self.problems);
        if self.problems.len() > told {
            return None;
        }
        self.origins.set(path.clone(), path);
        read
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Profile, Variables};
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_environment_is_stronger_than_the_file_and_the_caller_than_both() {
        let environment = environment(&[("KUBERNETES_NAMESPACE", "b"), ("KUBERNETES_PVC_STORAGE_SIZE", "")]);
        let mut read = Reader::open(Some("kubernetes = { namespace = 'a', pvc_storage_size = '1' }"), &environment);
        assert_eq!(read.find::<String>(Key::kubernetes("namespace")).as_deref(), Some("b"));
        assert_eq!(read.origins.name("kubernetes.namespace"), "KUBERNETES_NAMESPACE");
        assert_eq!(read.find::<String>(Key::kubernetes("pvc_storage_size")).as_deref(), Some("1"));
        assert_eq!(read.origins.name("kubernetes.pvc_storage_size"), "kubernetes.pvc_storage_size");
        let given = Some("c".to_owned());
        assert_eq!(read.find_unless("namespace", &given, Key::kubernetes("namespace")), given);
        assert_eq!(read.origins.name("kubernetes.namespace"), "namespace");
        assert!(!read.origins.is_set("kubernetes.privileged"));
    }

    #[test]
    fn a_variable_of_openhands_with_a_wrong_type_is_passed_over_for_the_file() {
        let environment = environment(&[("SANDBOX_TIMEOUT", "soon"), ("KUBERNETES_PRIVILEGED", "yes")]);
        let mut read = Reader::open(Some("sandbox = { timeout = 7 }"), &environment);
        assert_eq!(read.find::<u64>(Key::sandbox("timeout")), Some(7));
        let told = "`SANDBOX_TIMEOUT` is passed over: a whole number is expected (it was `soon`)";
        assert_eq!(read.warnings, [told]);
        // OpenHands takes any other word for false.
        assert_eq!(read.find::<bool>(Key::kubernetes("privileged")), Some(false));
        assert_eq!(read.problems, []);
    }

    #[test]
    fn a_variable_of_ours_with_a_wrong_value_is_a_problem() {
        let environment = environment(&[("WHARF_PROFILE", "docker"), ("WHARF_HARDENED", "maybe")]);
        let mut read = Reader::open(None, &environment);
        assert_eq!(read.find::<Profile>(Key::wharf("profile")), None);
        assert_eq!(read.find::<bool>(Key::wharf("hardened")), None);
        let fields: Vec<_> = read.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["WHARF_PROFILE", "WHARF_HARDENED"]);
    }

    #[test]
    fn what_is_in_variables_for_the_sandbox_is_never_told() {
        let key = Key::sandbox("runtime_startup_env_vars");
        let wrong = environment(&[("SANDBOX_RUNTIME_STARTUP_ENV_VARS", "{'TOKEN': s3cr3t}")]);
        let mut read = Reader::open(Some("[sandbox.runtime_startup_env_vars]\nTOKEN = 1234567"), &wrong);
        assert_eq!(read.find::<Variables>(key), None);
        let all = format!("{:?} {:?}", read.problems, read.warnings);
        assert!(!all.contains("s3cr3t") && !all.contains("1234567"), "{all}");
        assert_eq!((read.problems.len(), read.warnings.len()), (1, 1));
    }

    #[test]
    fn a_part_of_a_value_is_called_after_the_variable_that_set_the_whole() {
        let mut origins = Origins::default();
        origins.set("wharf.labels", "WHARF_LABELS");
        origins.set("wharf.tolerations[1]", "kubernetes.tolerations_yaml[0]");
        assert_eq!(origins.name("wharf.labels.a.b/c"), "WHARF_LABELS.a.b/c");
        assert_eq!(origins.name("wharf.tolerations[1].key"), "kubernetes.tolerations_yaml[0].key");
        assert_eq!(origins.name("wharf.tolerations[0].key"), "wharf.tolerations[0].key");
    }
}
