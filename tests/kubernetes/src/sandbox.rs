//! The sandbox `box` of the `wharf` profile, as most tests have it: its image, its settings, and its objects.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use tokio::time::{sleep, timeout};
use wharf_protocol::{SandboxId, SandboxSpec};
use wharf_runtime::kubernetes::{
    Cluster, KubernetesRuntime, Settings,
    install::manifests,
    settings::{Overrides, Sources},
};

use crate::cluster::Namespace;

pub const IMAGE: &str = "localhost/wharf/debian:test";
/// The same, with a user that is a number.
pub const IMAGE_OF_4242: &str = "localhost/wharf/debian-4242:test";
pub const SUSPENDED: &[&str] = &["NetworkPolicy/wharf-box", "PersistentVolumeClaim/wharf-box", "Secret/wharf-box"];
pub const RUNNING: &[&str] = &[
    "NetworkPolicy/wharf-box",
    "PersistentVolumeClaim/wharf-box",
    "Pod/wharf-box",
    "Secret/wharf-box",
    "Service/wharf-box",
];

/// What [`install`] makes, of what a leak check sees.
pub const INSTALLED: &[&str] = &["NetworkPolicy/wharf-closed", "ServiceAccount/wharf"];

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

pub fn id() -> SandboxId {
    "box".parse().unwrap()
}

pub fn spec() -> SandboxSpec {
    SandboxSpec { image: Some(IMAGE.to_owned()), ..SandboxSpec::default() }
}

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

/// Installs Wharf into the namespace, as an administrator does, and gives the way in of the account that this makes.
///
/// # Panics
///
/// If the server does not take it.
pub async fn install(namespace: &Namespace, settings: &Settings) -> kube::Config {
    for manifest in manifests(settings) {
        let object: DynamicObject = serde_json::from_value(manifest).unwrap();
        let types = object.types.clone().unwrap();
        let resource = ApiResource::from_gvk(&(&types).try_into().unwrap());
        let api: Api<DynamicObject> = Api::namespaced_with(namespace.client.clone(), &namespace.name, &resource);
        api.create(&PostParams::default(), &object).await.unwrap();
    }
    let accounts = namespace.api::<ServiceAccount>();
    let token = accounts.create_token_request("wharf", &PostParams::default(), &TokenRequest::default()).await.unwrap();
    let mut config = namespace.config.clone();
    config.auth_info.token = Some(token.status.unwrap().token.into());
    let allowed = async {
        let secrets: Api<Secret> = Api::namespaced(Client::try_from(config.clone()).unwrap(), &namespace.name);
        // The server reads a new role a moment after it has stored it.
        while secrets.get_opt("none").await.is_err() {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, allowed).await.expect("the account has its rights");
    config
}
