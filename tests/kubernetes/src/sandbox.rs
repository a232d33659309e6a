//! The sandbox `box` of the `wharf` profile, as most tests have it: its image, its settings, and its objects.

use std::collections::BTreeMap;

use wharf_runtime::kubernetes::{
    Cluster, KubernetesRuntime, Settings,
    settings::{Overrides, Sources},
};

use crate::cluster::Namespace;

pub const IMAGE: &str = "localhost/wharf/debian:test";
pub const SUSPENDED: &[&str] = &["NetworkPolicy/wharf-box", "PersistentVolumeClaim/wharf-box", "Secret/wharf-box"];
pub const RUNNING: &[&str] = &[
    "NetworkPolicy/wharf-box",
    "PersistentVolumeClaim/wharf-box",
    "Pod/wharf-box",
    "Secret/wharf-box",
    "Service/wharf-box",
];

/// A `config.toml` for the images of `tests/cluster/images` on a machine of two processors, with these lines in `[wharf]`.
pub fn config(namespace: &str, wharf: &str) -> String {
    format!(
        "[kubernetes]\nnamespace = \"{namespace}\"\nresource_cpu_request = \"20m\"\nresource_memory_request = \"64Mi\"\n\
         [wharf]\nsandboxd_image = \"localhost/wharf/sandboxd:test\"\nimage_pull_policy = \"Never\"\n{wharf}\n"
    )
}

/// The settings of a `config.toml` and nothing else.
pub fn settings(toml: &str) -> Settings {
    let sources =
        Sources { toml: Some(toml), environment: &BTreeMap::new(), overrides: Overrides::default(), process_uid: 0 };
    Settings::load(&sources).unwrap().settings
}

/// A runtime in the namespace that reaches the API server by `reached`: directly, or through a proxy.
pub fn runtime(namespace: &Namespace, reached: kube::Config, settings: Settings) -> KubernetesRuntime {
    KubernetesRuntime::new(Cluster::of_config(reached, Some(&namespace.name), true).unwrap(), settings)
}
