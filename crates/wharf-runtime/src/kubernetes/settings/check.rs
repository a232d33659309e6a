//! Whether the API server will take what is made of settings; every reason for which it will not, at once.

use std::cmp::Ordering;

use super::{
    Clients, Egress, Profile, Resolver, RunAs, Settings, SettingsError, SettingsProblem,
    quantity::{Quantity, compare},
    reader::Origins,
    syntax::{self, Verdict},
    tolerations, volumes,
};

/// What the API server takes of the annotations of one object, keys and values together.
const MOST_ANNOTATION_BYTES: usize = 256 * 1024;
/// What Linux passes to a program in one `NAME=value`, without its end.
const LONGEST_VARIABLE: usize = 128 * 1024 - 1;
/// An object of the API has to fit into 1.5 MiB, with all that is around the variables.
const MOST_VARIABLE_BYTES: usize = 1024 * 1024;
const LONGEST_START_SECONDS: u64 = 24 * 60 * 60;
const LONGEST_TEXT: usize = 4096;
/// The greatest id that Kubernetes takes for a user or group.
const GREATEST_ID: u32 = i32::MAX.unsigned_abs();
/// Labels and annotations of ours.
const OUR_DOMAIN: &str = "wharf.dev/";
const OUR_LABELS: &[&str] = &["app.kubernetes.io/managed-by"];
/// By these the original's Services find its pod.
const THEIR_LABELS: &[&str] = &["app", "session"];
/// Where origins have the value of the one selector whose key and value are two settings.
pub(super) const SELECTOR_PAIR: &str = "kubernetes.node_selector_val";

impl Settings {
    /// Checks settings that were changed after they were loaded. Problems name the place in the file.
    ///
    /// # Errors
    ///
    /// Every problem that the API server would have with them, one by one.
    pub fn check(&self) -> Result<(), SettingsError> {
        let problems = self.problems(&[]);
        if problems.is_empty() { Ok(()) } else { Err(SettingsError { problems }) }
    }

    /// The same; each of `names` is a place in the file and what whoever has changed the value there calls it.
    pub(in crate::kubernetes) fn problems(&self, names: &[(&str, &str)]) -> Vec<SettingsProblem> {
        let mut origins = Origins::default();
        for (path, name) in names {
            origins.set(*path, *name);
        }
        check(self, &origins)
    }
}

pub(super) fn check(settings: &Settings, origins: &Origins) -> Vec<SettingsProblem> {
    let mut check = Check { settings, origins, problems: Vec::new() };
    check.names();
    check.resources();
    check.scheduling();
    check.labels_and_annotations();
    check.paths();
    check.users();
    check.network();
    check.variables();
    check.server();
    check.problems
}

/// What is wrong with one part of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) part: &'static str,
    pub(super) value: String,
    pub(super) reason: String,
}

struct Check<'a> {
    settings: &'a Settings,
    origins: &'a Origins,
    problems: Vec<SettingsProblem>,
}

impl Check<'_> {
    /// `path` is the value's place in the file.
    fn refuse(&mut self, path: &str, value: impl AsRef<str>, reason: impl Into<String>) {
        self.problems.push(SettingsProblem::new(self.origins.name(path), value, reason));
    }

    fn text(&mut self, path: &str, value: &str, rule: fn(&str) -> Verdict) {
        if let Err(reason) = rule(value) {
            self.refuse(path, value, reason);
        }
    }

    fn texts<'t>(
        &mut self,
        values: impl IntoIterator<Item = (&'t str, Option<&'t String>)>,
        rule: fn(&str) -> Verdict,
    ) {
        for (path, value) in values {
            if let Some(value) = value {
                self.text(path, value, rule);
            }
        }
    }

    /// Tells what is wrong with parts of the value at `path`.
    fn faults(&mut self, path: &str, faults: Vec<Fault>) {
        for Fault { part, value, reason } in faults {
            self.refuse(&format!("{path}.{part}"), value, reason);
        }
    }

    fn names(&mut self) {
        let settings = self.settings;
        self.text("kubernetes.namespace", &settings.namespace, syntax::dns_label);
        self.text("wharf.installation", &settings.installation, syntax::label_value);
        if settings.installation.is_empty() {
            self.refuse("wharf.installation", "", "it must not be empty");
        }
        self.texts(
            [("wharf.image", settings.image.as_ref()), ("wharf.sandboxd_image", Some(&settings.sandboxd_image))],
            syntax::image,
        );
        for (at, secret) in settings.image_pull_secrets.iter().enumerate() {
            self.text(&format!("wharf.image_pull_secrets[{at}]"), secret, syntax::dns_subdomain);
        }
        self.texts(
            [
                // A claim without any class has an empty one.
                ("kubernetes.pvc_storage_class", settings.storage_class.as_ref().filter(|class| !class.is_empty())),
                ("kubernetes.ingress_domain", Some(&settings.ingress.domain)),
                ("kubernetes.ingress_tls_secret", settings.ingress.tls_secret.as_ref()),
                ("wharf.ingress_class", settings.ingress.class.as_ref()),
                ("wharf.runtime_class", settings.runtime_class.as_ref()),
                ("wharf.service_account", settings.service_account.as_ref()),
            ],
            syntax::dns_subdomain,
        );
    }

    fn resources(&mut self) {
        let settings = self.settings;
        let (cpu_request, cpu_limit) = ("kubernetes.resource_cpu_request", "wharf.cpu_limit");
        let (memory_request, memory_limit) = ("kubernetes.resource_memory_request", "kubernetes.resource_memory_limit");
        self.quantity(cpu_request, Some(&settings.cpu_request), Amount::Cpu);
        self.quantity(cpu_limit, settings.cpu_limit.as_ref(), Amount::Cpu);
        self.quantity(memory_request, Some(&settings.memory_request), Amount::Bytes);
        self.quantity(memory_limit, Some(&settings.memory_limit), Amount::Bytes);
        self.quantity("kubernetes.pvc_storage_size", Some(&settings.storage_size), Amount::Bytes);
        let (disk_request, disk_limit) = ("wharf.ephemeral_storage_request", "wharf.ephemeral_storage_limit");
        self.quantity(disk_request, settings.ephemeral_storage_request.as_ref(), Amount::Bytes);
        self.quantity(disk_limit, settings.ephemeral_storage_limit.as_ref(), Amount::Bytes);
        if let (Some(request), Some(limit)) = (&settings.ephemeral_storage_request, &settings.ephemeral_storage_limit) {
            self.within(disk_request, request, disk_limit, limit);
        }
        if let Some(limit) = &settings.cpu_limit {
            self.within(cpu_request, &settings.cpu_request, cpu_limit, limit);
        }
        self.within(memory_request, &settings.memory_request, memory_limit, &settings.memory_limit);
        if let Some(gpu) = &settings.gpu {
            self.text("wharf.gpu.resource", &gpu.resource, syntax::resource_name);
            if gpu.count == 0 {
                self.refuse("wharf.gpu.count", "0", "it must be at least 1");
            }
        }
    }

    fn quantity(&mut self, path: &str, value: Option<&String>, amount: Amount) {
        let Some(value) = value else { return };
        let reason = match (Quantity::parse(value), amount) {
            (Err(reason), _) => reason,
            (Ok(quantity), Amount::Bytes) if !quantity.is_whole() => {
                "it is no whole number of bytes: `m` is a thousandth, `M` a million"
            }
            (Ok(quantity), Amount::Cpu) if !quantity.is_whole_thousandths() => "a CPU is divided no finer than `1m`",
            (Ok(_), Amount::Bytes | Amount::Cpu) => return,
        };
        self.refuse(path, value, reason);
    }

    fn within(&mut self, path: &str, request: &str, limit_path: &str, limit: &str) {
        if compare(request, limit) == Some(Ordering::Greater) {
            let limit_name = self.origins.name(limit_path);
            self.refuse(path, request, format!("it is more than the limit `{limit}` of `{limit_name}`"));
        }
    }

    fn scheduling(&mut self) {
        for (key, value) in &self.settings.node_selector {
            let path = format!("wharf.node_selector.{key}");
            self.text(&path, key, syntax::label_key);
            let pair = format!("{SELECTOR_PAIR}.{key}");
            self.text(if self.origins.is_set(&pair) { &pair } else { &path }, value, syntax::label_value);
        }
        for (at, toleration) in self.settings.tolerations.iter().enumerate() {
            self.faults(&format!("wharf.tolerations[{at}]"), tolerations::faults(toleration));
        }
    }

    fn labels_and_annotations(&mut self) {
        let settings = self.settings;
        for (key, value) in &settings.labels {
            let path = format!("wharf.labels.{key}");
            self.text(&path, key, syntax::label_key);
            self.text(&path, value, syntax::label_value);
            let is_theirs = settings.profile == Profile::OpenHands && THEIR_LABELS.contains(&key.as_str());
            if key.starts_with(OUR_DOMAIN) || OUR_LABELS.contains(&key.as_str()) || is_theirs {
                self.refuse(&path, value, "this label is Wharf's own");
            }
        }
        let both = [
            ("wharf.annotations", &settings.annotations),
            ("wharf.ingress_annotations", &settings.ingress.annotations),
        ];
        for (path, annotations) in both {
            for (key, value) in annotations {
                let path = format!("{path}.{key}");
                // Only the case of a label's key matters more than that of an annotation's.
                self.text(&path, key, |key| syntax::label_key(&key.to_ascii_lowercase()));
                if key.starts_with(OUR_DOMAIN) {
                    self.refuse(&path, value, "this annotation is Wharf's own");
                }
            }
            let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
            if bytes > MOST_ANNOTATION_BYTES {
                self.refuse(path, "", format!("they have {bytes} bytes, at most {MOST_ANNOTATION_BYTES} are taken"));
            }
        }
    }

    fn paths(&mut self) {
        let settings = self.settings;
        let path = "core.workspace_mount_path_in_sandbox";
        self.text(path, &settings.workspace_path, syntax::absolute_path);
        if volumes::is_kept(&settings.workspace_path) {
            self.refuse(path, &settings.workspace_path, "nothing is mounted there");
        }
        for at in 0..settings.extra_volumes.len() {
            self.faults(&format!("wharf.extra_volumes[{at}]"), volumes::faults(at, settings));
        }
    }

    fn users(&mut self) {
        let settings = self.settings;
        let user = match settings.run_as_user {
            RunAs::Id(user) => user,
            RunAs::Image => 0,
        };
        let ids = [
            ("wharf.run_as_user", user),
            ("wharf.run_as_group", settings.run_as_group),
            ("sandbox.user_id", settings.server_user_id),
        ];
        for (path, id) in ids.into_iter().filter(|(_, id)| *id > GREATEST_ID) {
            self.refuse(path, id.to_string(), format!("at most {GREATEST_ID} is taken"));
        }
    }

    fn network(&mut self) {
        if let Clients::Namespaces(labels) = &self.settings.clients {
            let path = "wharf.clients.namespaces";
            if labels.is_empty() {
                self.refuse(path, "", "no label fits every namespace: say `cluster` if that is meant");
            }
            for (key, value) in labels {
                let path = format!("{path}.{key}");
                self.text(&path, key, syntax::label_key);
                self.text(&path, value, syntax::label_value);
            }
        }
        if let Egress::To { networks, .. } = &self.settings.egress {
            self.networks("wharf.egress", networks);
        }
        self.networks("wharf.closed_networks", &self.settings.closed_networks);
        match &self.settings.resolver {
            Resolver::Pods { namespace, labels, port } => {
                self.text("wharf.resolver.namespace", namespace, syntax::dns_label);
                if *port == 0 {
                    self.refuse("wharf.resolver.port", "0", "a port from 1 to 65535 is expected");
                }
                for (key, value) in labels {
                    let path = format!("wharf.resolver.labels.{key}");
                    self.text(&path, key, syntax::label_key);
                    self.text(&path, value, syntax::label_value);
                }
            }
            Resolver::At(networks) => self.networks("wharf.resolver", networks),
        }
    }

    fn networks(&mut self, path: &str, networks: &[String]) {
        for (at, network) in networks.iter().enumerate() {
            self.text(&format!("{path}[{at}]"), network, syntax::cidr);
        }
    }

    /// The values may be secrets and are not told.
    fn variables(&mut self) {
        let settings = self.settings;
        let pod = settings.environment.iter().map(|variable| ("sandbox.runtime_startup_env_vars", variable));
        let shell = settings.initial_environment.iter().map(|variable| ("sandbox.initial_environment", variable));
        let mut bytes = 0;
        for (path, (name, value)) in pod.chain(shell) {
            bytes += name.len() + value.len() + 2;
            let rule = if path.ends_with("env_vars") { syntax::variable_name } else { syntax::shell_variable_name };
            let path = format!("{path}.{name}");
            if let Err(reason) = rule(name) {
                self.refuse(&path, "", reason);
            }
            if value.contains('\0') {
                self.refuse(&path, "", "it must not contain the character zero");
            }
            if name.len() + value.len() + 1 > LONGEST_VARIABLE {
                self.refuse(&path, "", "a variable has at most 128 KiB");
            }
        }
        if bytes > MOST_VARIABLE_BYTES {
            self.refuse("sandbox.runtime_startup_env_vars", "", "all variables together have at most 1 MiB");
        }
    }

    fn server(&mut self) {
        let settings = self.settings;
        let texts = [
            ("core.git_user_name", Some(&settings.git_user_name)),
            ("core.git_user_email", Some(&settings.git_user_email)),
            ("sandbox.browsergym_eval_env", settings.browsergym_eval_env.as_ref()),
        ];
        self.texts(texts, |text| {
            if text.len() > LONGEST_TEXT {
                Err(format!("at most {LONGEST_TEXT} bytes are taken"))
            } else if text.chars().any(char::is_control) {
                Err("it must not contain control characters".to_owned())
            } else {
                Ok(())
            }
        });
        if settings.action_timeout_seconds == 0 {
            self.refuse("sandbox.timeout", "0", "it must be at least 1");
        }
        let seconds = settings.start_timeout.as_secs();
        if seconds == 0 || seconds > LONGEST_START_SECONDS {
            let reason = format!("1 to {LONGEST_START_SECONDS} seconds are taken");
            self.refuse("wharf.start_timeout_seconds", seconds.to_string(), reason);
        }
        if settings.profile == Profile::OpenHands && settings.image.is_none() {
            self.refuse("sandbox.runtime_container_image", "", "this profile needs an image");
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Amount {
    Cpu,
    Bytes,
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use expect_test::{Expect, expect};

    use super::super::*;

    /// Settings of the defaults, changed.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Settings), expected: Expect) {
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: None, environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        let mut settings = Settings::load(&sources).unwrap().settings;
        change(&mut settings);
        let problems = settings.check().err().map(|error| error.problems).unwrap_or_default();
        let lines = problems.iter().map(|problem| format!("{}: {}\n", problem.field, problem.because()));
        expected.assert_eq(&lines.collect::<String>());
    }

    fn set<T: From<&'static str>>(place: &mut T, text: &'static str) {
        *place = text.into();
    }

    #[test]
    fn every_wrong_name_is_told_at_once() {
        check(
            |settings| {
                set(&mut settings.namespace, "Team A");
                set(&mut settings.installation, "");
                settings.image = Some("Python 3".to_owned());
                set(&mut settings.sandboxd_image, "ghcr.io/Wharf");
                settings.image_pull_secrets = vec!["ok".to_owned(), "not_ok".to_owned()];
                settings.storage_class = Some(String::new());
                set(&mut settings.ingress.domain, "code.example.com:80");
                settings.runtime_class = Some("gVisor".to_owned());
            },
            expect![[r#"
                kubernetes.namespace: lower-case letters, digits and `-` are expected, at most 63, a letter or digit at both ends (it was `Team A`)
                wharf.installation: it must not be empty
                wharf.image: an image such as `python:3.12` is expected, without spaces (it was `Python 3`)
                wharf.sandboxd_image: a repository's name is lower-case letters and digits, joined by `.`, `_`, `-` or `/` (it was `ghcr.io/Wharf`)
                wharf.image_pull_secrets[1]: parts of lower-case letters, digits and `-`, joined by `.`, are expected, at most 253 characters (it was `not_ok`)
                kubernetes.ingress_domain: parts of lower-case letters, digits and `-`, joined by `.`, are expected, at most 253 characters (it was `code.example.com:80`)
                wharf.runtime_class: parts of lower-case letters, digits and `-`, joined by `.`, are expected, at most 253 characters (it was `gVisor`)
            "#]],
        );
    }

    #[test]
    fn amounts_are_amounts_and_requests_within_limits() {
        check(
            |settings| {
                set(&mut settings.cpu_request, "0.1m");
                settings.cpu_limit = Some("0".to_owned());
                set(&mut settings.memory_request, "3Gi");
                set(&mut settings.memory_limit, "2GiB");
                set(&mut settings.storage_size, "512m");
                settings.gpu = Some(Gpu { resource: "gpu".to_owned(), count: 0 });
            },
            expect![[r#"
                kubernetes.resource_cpu_request: a CPU is divided no finer than `1m` (it was `0.1m`)
                wharf.cpu_limit: it must be above zero (it was `0`)
                kubernetes.resource_memory_limit: the suffix must be `Gi` (or `G` for thousands of millions) (it was `2GiB`)
                kubernetes.pvc_storage_size: it is no whole number of bytes: `m` is a thousandth, `M` a million (it was `512m`)
                wharf.gpu.resource: a resource such as `nvidia.com/gpu` is expected (it was `gpu`)
                wharf.gpu.count: it must be at least 1 (it was `0`)
            "#]],
        );
        check(
            |settings| {
                settings.cpu_limit = Some("500m".to_owned());
                set(&mut settings.memory_request, "2049Mi");
            },
            expect![[r#"
                kubernetes.resource_memory_request: it is more than the limit `2Gi` of `kubernetes.resource_memory_limit` (it was `2049Mi`)
            "#]],
        );
    }

    #[test]
    fn labels_and_annotations_are_not_ours() {
        check(
            |settings| {
                let pairs = [("team", "a"), ("app", "x"), ("wharf.dev/id", "x"), ("a b", "c"), ("d", "e f")];
                settings.profile = Profile::OpenHands;
                settings.image = Some("a".to_owned());
                settings.labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
                settings.annotations = BTreeMap::from([
                    ("Example.com/Note".to_owned(), "any text, at any length".to_owned()),
                    ("wharf.dev/desired".to_owned(), "running".to_owned()),
                ]);
                settings.ingress.annotations = BTreeMap::from([("big".to_owned(), "x".repeat(300_000))]);
                settings.node_selector = BTreeMap::from([("disk".to_owned(), "s s d".to_owned())]);
                settings.clients = Clients::Namespaces(BTreeMap::new());
                let networks = vec!["10.0.0.0/8".to_owned(), "example.com".to_owned()];
                settings.egress = Egress::To { internet: true, networks };
                settings.closed_networks = vec!["1.2.3.4".to_owned()];
                settings.resolver = Resolver::At(vec!["dns".to_owned()]);
            },
            expect![[r#"
                wharf.node_selector.disk: a label's value is letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends (it was `s s d`)
                wharf.labels.a b: a key is letters, digits, `-`, `_` and `.`, at most 63, perhaps with a domain and `/` before it (it was `a b`)
                wharf.labels.app: this label is Wharf's own (it was `x`)
                wharf.labels.d: a label's value is letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends (it was `e f`)
                wharf.labels.wharf.dev/id: this label is Wharf's own (it was `x`)
                wharf.annotations.wharf.dev/desired: this annotation is Wharf's own (it was `running`)
                wharf.ingress_annotations: they have 300003 bytes, at most 262144 are taken
                wharf.clients.namespaces: no label fits every namespace: say `cluster` if that is meant
                wharf.egress[1]: a network such as `10.0.0.0/8` or `fd00::/8` is expected (it was `example.com`)
                wharf.closed_networks[0]: a network such as `10.0.0.0/8` or `fd00::/8` is expected (it was `1.2.3.4`)
                wharf.resolver[0]: a network such as `10.0.0.0/8` or `fd00::/8` is expected (it was `dns`)
            "#]],
        );
    }

    #[test]
    fn what_is_in_variables_is_not_told() {
        check(
            |settings| {
                settings.environment =
                    Variables(vec![("A=B".to_owned(), "s3cr3t".to_owned()), ("C".to_owned(), "x".repeat(200_000))]);
                settings.initial_environment = Variables(vec![("a.b".to_owned(), "s3cr\0t".to_owned())]);
            },
            expect![[r#"
                sandbox.runtime_startup_env_vars.A=B: a variable's name is letters, digits, `_`, `-` and `.`, and starts with no digit
                sandbox.runtime_startup_env_vars.C: a variable has at most 128 KiB
                sandbox.initial_environment.a.b: a shell's variable is letters, digits and `_`, and starts with no digit
                sandbox.initial_environment.a.b: it must not contain the character zero
            "#]],
        );
    }

    #[test]
    fn the_workspace_is_no_part_of_the_system() {
        check(
            |settings| set(&mut settings.workspace_path, "/proc/self"),
            expect![[r#"
            core.workspace_mount_path_in_sandbox: nothing is mounted there (it was `/proc/self`)
        "#]],
        );
        check(
            |settings| set(&mut settings.workspace_path, "/a:/b/../c"),
            expect![[r#"
            core.workspace_mount_path_in_sandbox: it must not contain `..` (it was `/a:/b/../c`)
        "#]],
        );
        check(|settings| set(&mut settings.workspace_path, "/data/my workspace"), expect![[""]]);
    }

    #[test]
    fn numbers_are_in_their_bounds() {
        check(
            |settings| {
                settings.run_as_user = RunAs::Id(u32::MAX);
                settings.start_timeout = Duration::ZERO;
                settings.action_timeout_seconds = 0;
                set(&mut settings.git_user_name, "a\nb");
                settings.profile = Profile::OpenHands;
            },
            expect![[r#"
                wharf.run_as_user: at most 2147483647 is taken (it was `4294967295`)
                core.git_user_name: it must not contain control characters (it was `a\nb`)
                sandbox.timeout: it must be at least 1 (it was `0`)
                wharf.start_timeout_seconds: 1 to 86400 seconds are taken (it was `0`)
                sandbox.runtime_container_image: this profile needs an image
            "#]],
        );
    }
}
