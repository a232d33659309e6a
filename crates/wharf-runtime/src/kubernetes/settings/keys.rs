//! Which settings there are: the names of all keys that the file and the environment may set.

/// A table of the file whose keys we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Core,
    Sandbox,
    Kubernetes,
    /// Ours; OpenHands tells that it does not know it, and goes on.
    Wharf,
}

/// One setting by where it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) section: Section,
    pub(super) name: &'static str,
}

impl Section {
    pub(super) const ALL: [Self; 4] = [Self::Core, Self::Sandbox, Self::Kubernetes, Self::Wharf];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Sandbox => "sandbox",
            Self::Kubernetes => "kubernetes",
            Self::Wharf => "wharf",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|section| section.name() == name)
    }

    /// Every key that may stand in it, also those that mean nothing to a sandbox in a cluster.
    pub(super) const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Core => CORE,
            Self::Sandbox => SANDBOX,
            Self::Kubernetes => KUBERNETES,
            Self::Wharf => WHARF,
        }
    }
}

impl Key {
    pub(super) const fn core(name: &'static str) -> Self {
        Self { section: Section::Core, name }
    }

    pub(super) const fn sandbox(name: &'static str) -> Self {
        Self { section: Section::Sandbox, name }
    }

    pub(super) const fn kubernetes(name: &'static str) -> Self {
        Self { section: Section::Kubernetes, name }
    }

    pub(super) const fn wharf(name: &'static str) -> Self {
        Self { section: Section::Wharf, name }
    }

    /// Its place in the file.
    pub(super) fn path(self) -> String {
        format!("{}.{}", self.section.name(), self.name)
    }

    /// The variable of the environment that sets it.
    pub(super) fn variable(self) -> String {
        match self.section {
            Section::Core => self.name.to_uppercase(),
            Section::Sandbox | Section::Kubernetes | Section::Wharf => {
                format!("{}_{}", self.section.name(), self.name).to_uppercase()
            }
        }
    }
}

/// Sections of OpenHands that say nothing about where a sandbox lives.
pub(super) const OTHER_SECTIONS: &[&str] =
    &["extended", "agent", "llm", "security", "condenser", "mcp", "model_routing"];

/// Those of OpenHands 0.48 and 0.62 together, here as in the next two.
const CORE: &[&str] = &[
    "cache_dir",
    "cli",
    "cli_multiline_input",
    "client_wait_timeout",
    "conversation_max_age_seconds",
    "debug",
    "default_agent",
    "disable_color",
    "enable_browser",
    "enable_default_condenser",
    "file_store",
    "file_store_path",
    "file_store_web_hook_batch",
    "file_store_web_hook_headers",
    "file_store_web_hook_url",
    "file_uploads_allowed_extensions",
    "file_uploads_max_file_size_mb",
    "file_uploads_restrict_file_types",
    "git_user_email",
    "git_user_name",
    "init_git_in_empty_workspace",
    "jwt_secret",
    "max_budget_per_task",
    "max_concurrent_conversations",
    "max_iterations",
    "mcp_host",
    "replay_trajectory_path",
    "run_as_openhands",
    "runtime",
    "save_screenshots_in_trajectory",
    "save_trajectory_path",
    "search_api_key",
    "workspace_base",
    "workspace_mount_path",
    "workspace_mount_path_in_sandbox",
    "workspace_mount_rewrite",
];

const SANDBOX: &[&str] = &[
    "additional_networks",
    "api_key",
    "base_container_image",
    "browsergym_eval_env",
    "close_delay",
    "cuda_visible_devices",
    "docker_runtime_kwargs",
    "enable_auto_lint",
    "enable_gpu",
    "force_rebuild_runtime",
    "initialize_plugins",
    "keep_runtime_alive",
    "local_runtime_url",
    "pause_closed_runtimes",
    "platform",
    "remote_runtime_api_timeout",
    "remote_runtime_api_url",
    "remote_runtime_class",
    "remote_runtime_enable_retries",
    "remote_runtime_init_timeout",
    "remote_runtime_resource_factor",
    "rm_all_containers",
    "runtime_binding_address",
    "runtime_container_image",
    "runtime_extra_build_args",
    "runtime_extra_deps",
    "runtime_startup_env_vars",
    "selected_repo",
    "timeout",
    "trusted_dirs",
    "use_host_network",
    "user_id",
    "volumes",
    "vscode_port",
];

const KUBERNETES: &[&str] = &[
    "image_pull_secret",
    "ingress_domain",
    "ingress_tls_secret",
    "namespace",
    "node_selector_key",
    "node_selector_val",
    "privileged",
    "pvc_storage_class",
    "pvc_storage_size",
    "resource_cpu_request",
    "resource_memory_limit",
    "resource_memory_request",
    "tolerations_yaml",
];

const WHARF: &[&str] = &[
    "affinity",
    "annotations",
    "clients",
    "closed_networks",
    "cpu_limit",
    "egress",
    "ephemeral_storage_limit",
    "ephemeral_storage_request",
    "extra_volumes",
    "gpu",
    "hardened",
    "image",
    "image_pull_policy",
    "image_pull_secrets",
    "ingress_annotations",
    "ingress_class",
    "ingress_mode",
    "installation",
    "labels",
    "node_selector",
    "openhands_version",
    "profile",
    "resolver",
    "route",
    "run_as_group",
    "run_as_user",
    "runtime_class",
    "sandboxd_carrier",
    "sandboxd_image",
    "service_account",
    "start_timeout_seconds",
    "tolerations",
];

/// Why a key is refused that `section` does not have, and what was probably meant.
pub(super) fn unknown_key(section: Section, name: &str) -> String {
    let elsewhere = Section::ALL.into_iter().find(|other| other.keys().contains(&name));
    match (elsewhere, nearest(name, section.keys())) {
        (Some(other), _) => format!("unknown key; it belongs in `[{}]`", other.name()),
        (None, Some(near)) => format!("unknown key; did you mean `{near}`?"),
        (None, None) => "unknown key".to_owned(),
    }
}

/// The known word that is written most alike, if one is alike at all.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let close = |known: &&str| 1 + known.len().min(word.len()) / 4;
    let scored = known.iter().map(|known| (edits(word, known), *known)).filter(|(edits, known)| *edits <= close(known));
    scored.min_by_key(|(edits, _)| *edits).map(|(_, known)| known)
}

/// Levenshtein's distance: how many bytes to change, add or remove.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_named_as_openhands_names_it() {
        assert_eq!(Key::core("debug").variable(), "DEBUG");
        assert_eq!(Key::sandbox("timeout").variable(), "SANDBOX_TIMEOUT");
        assert_eq!(Key::kubernetes("pvc_storage_size").variable(), "KUBERNETES_PVC_STORAGE_SIZE");
        assert_eq!(Key::wharf("run_as_user").variable(), "WHARF_RUN_AS_USER");
    }

    #[test]
    fn a_hint_names_the_section_or_the_nearest_key() {
        let hint = |name| unknown_key(Section::Kubernetes, name);
        assert_eq!(hint("image_pull_policy"), "unknown key; it belongs in `[wharf]`");
        assert_eq!(hint("runtime_container_image"), "unknown key; it belongs in `[sandbox]`");
        assert_eq!(hint("namspace"), "unknown key; did you mean `namespace`?");
        assert_eq!(hint("pvc_storage"), "unknown key");
        assert_eq!(hint("foo"), "unknown key");
        assert_eq!(hint(""), "unknown key");
        assert_eq!(hint(&"n".repeat(100_000)), "unknown key");
    }

    /// Variables of ours that mean something else; none may be taken for a setting.
    #[test]
    fn no_setting_takes_a_variable_that_another_part_of_wharf_reads() {
        let taken = [
            "STATE_DIR",
            "RUNTIME",
            "CONTEXT",
            "NAMESPACE",
            "CACHE",
            "TEST_KUBECONFIG",
            "CLUSTER_DIR",
            "OUTPUT",
            "CONFIG",
        ];
        for name in WHARF {
            assert!(!taken.contains(&name.to_uppercase().as_str()), "{name}");
        }
    }
}
