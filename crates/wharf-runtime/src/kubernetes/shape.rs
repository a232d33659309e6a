//! What one sandbox asks for, put into the settings. Pure.

use wharf_protocol::{Isolation, NetworkMode, SandboxSpec};

use super::settings::{self, Egress, Profile, Settings, SettingsError, SettingsProblem};

/// The longest `activeDeadlineSeconds` that Kubernetes takes, without what the pod has beyond the sandbox's own deadline.
const LONGEST_DEADLINE: u64 = i32::MAX as u64 - super::manifest::DEADLINE_GRACE_SECONDS;

/// The settings with what one sandbox asks for.
///
/// # Errors
///
/// Everything for which a cluster would refuse it, under the spec's names where the spec says it.
pub(super) fn shaped(settings: &Settings, spec: &SandboxSpec) -> Result<Settings, SettingsError> {
    let mut shaped = settings.clone();
    let mut names = Vec::new();
    let mut problems = Vec::new();
    let mut refuse = |field: &str, value: &str, reason: &str| problems.push(SettingsProblem::new(field, value, reason));
    if let Some(image) = &spec.image {
        shaped.image = Some(image.clone());
        names.push(("wharf.image", "image"));
    } else if settings.image.is_none() && settings.profile == Profile::Wharf {
        refuse("image", "", "a sandbox in a cluster needs a container image, such as `python:3.12`");
    }
    if let Some(mount) = spec.mounts.first() {
        let reason = "a directory of this machine cannot be shown in a cluster; copy it with `wharf cp`";
        refuse("mounts", &mount.source, reason);
    }
    if let Some(path) = spec.unprotect.first() {
        refuse("unprotect", path, "a sandbox in a cluster has no mounts of this machine");
    }
    if let Some(user) = &spec.user {
        refuse("user", user, "`run_as_user` and `run_as_group` in [wharf] say whom a pod runs as");
    }
    if let Some(system) = spec.system {
        refuse("system", system.as_str(), "a pod's system is its image's, and can be changed");
    }
    if let Some(device) = spec.devices.first() {
        refuse("devices", device, "a pod gets devices from its cluster; `[wharf] gpu` asks for GPUs");
    }
    if let Some(bytes) = spec.shm_bytes {
        refuse("shm_bytes", &bytes.to_string(), "a pod's `/dev/shm` is its container engine's");
    }
    if spec.isolation != Isolation::Full {
        refuse("isolation", spec.isolation.as_str(), "a pod has its cluster's walls");
    }
    if let Some(processes) = spec.processes {
        let reason = "a cluster bounds processes by its kubelets' `podPidsLimit`";
        refuse("processes", &processes.to_string(), reason);
    }
    if settings.profile == Profile::OpenHands {
        // Its objects are the original's, which have no place for these.
        if spec.network == NetworkMode::None && !settings.hardened {
            refuse("network", "none", "the profile `openhands` has a NetworkPolicy only with `hardened`");
        }
        if !spec.environment.is_empty() {
            let reason = "the profile `openhands` takes variables from `sandbox.runtime_startup_env_vars`";
            refuse("environment", "", reason);
        }
        if let Some(seconds) = spec.deadline_seconds {
            refuse("deadline_seconds", &seconds.to_string(), "the profile `openhands` has no deadline");
        }
    }
    if spec.network == NetworkMode::None {
        shaped.egress = Egress::None;
    }
    if spec.working_dir != SandboxSpec::default().working_dir {
        shaped.workspace_path = spec.working_dir.clone();
        names.push(("core.workspace_mount_path_in_sandbox", "working_dir"));
    }
    if let Some(bytes) = spec.memory_bytes {
        shaped.memory_limit = bytes.to_string();
        shaped.memory_request = settings::at_most(&settings.memory_request, &shaped.memory_limit);
        names.push(("kubernetes.resource_memory_limit", "memory_bytes"));
    }
    if let Some(millis) = spec.cpu_millis {
        let limit = format!("{millis}m");
        shaped.cpu_request = settings::at_most(&settings.cpu_request, &limit);
        shaped.cpu_limit = Some(limit);
        names.push(("wharf.cpu_limit", "cpu_millis"));
    }
    if let Some(bytes) = spec.disk_bytes {
        shaped.storage_size = bytes.to_string();
        names.push(("kubernetes.pvc_storage_size", "disk_bytes"));
    }
    if let Some(seconds) = spec.deadline_seconds.filter(|seconds| *seconds > LONGEST_DEADLINE) {
        refuse("deadline_seconds", &seconds.to_string(), "a pod's deadline is at most 68 years away");
    }
    for (name, value) in &spec.environment {
        // A value may be a secret.
        if name.is_empty() || name.contains(['=', '\0']) {
            refuse("environment", name, "a variable's name is not empty and has no `=` and no zero in it");
        } else if value.contains('\0') {
            refuse(&format!("environment.{name}"), "", "it must not contain the character zero");
        }
    }
    problems.extend(shaped.problems(&names));
    if problems.is_empty() { Ok(shaped) } else { Err(SettingsError { problems }) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;
    use wharf_protocol::{Environment, MountSpec, SystemAccess};

    use super::{
        super::settings::{Overrides, Sources},
        *,
    };

    #[test]
    fn all_that_a_cluster_would_refuse_of_a_sandbox_is_told_at_once_under_the_specs_names() {
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: None, environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        let settings = Settings::load(&sources).unwrap().settings;
        let refused = |spec: SandboxSpec| shaped(&settings, &spec).unwrap_err().to_string();
        let wrong = SandboxSpec {
            image: Some("Foo Bar".to_owned()),
            working_dir: "/wharf/bin".to_owned(),
            environment: Environment::from([("A=B".to_owned(), String::new()), ("C".to_owned(), "s3cr\0t".to_owned())]),
            mounts: vec![MountSpec { source: "/a".to_owned(), target: "/b".to_owned(), read_only: false }],
            system: Some(SystemAccess::ReadOnly),
            isolation: Isolation::BestEffort,
            processes: Some(1),
            deadline_seconds: Some(u64::MAX),
            ..SandboxSpec::default()
        };
        expect![[r#"
            9 settings are not valid:
              `mounts` is not valid: a directory of this machine cannot be shown in a cluster; copy it with `wharf cp` (it was `/a`)
              `system` is not valid: a pod's system is its image's, and can be changed (it was `read-only`)
              `isolation` is not valid: a pod has its cluster's walls (it was `best-effort`)
              `processes` is not valid: a cluster bounds processes by its kubelets' `podPidsLimit` (it was `1`)
              `deadline_seconds` is not valid: a pod's deadline is at most 68 years away (it was `18446744073709551615`)
              `environment` is not valid: a variable's name is not empty and has no `=` and no zero in it (it was `A=B`)
              `environment.C` is not valid: it must not contain the character zero
              `image` is not valid: an image such as `python:3.12` is expected, without spaces (it was `Foo Bar`)
              `working_dir` is not valid: nothing is mounted there (it was `/wharf/bin`)"#]].assert_eq(&refused(wrong));
        expect!["`image` is not valid: a sandbox in a cluster needs a container image, such as `python:3.12`"]
            .assert_eq(&refused(SandboxSpec::default()));
    }
}
