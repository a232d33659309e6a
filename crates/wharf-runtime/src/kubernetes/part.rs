//! The objects that a sandbox is made of.

use kube::core::{ApiResource, GroupVersionKind};
use serde::{Deserialize, Serialize};

use super::names::Names;

/// One object of a sandbox by what it is for. In the order in which a person would make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Owns all others: deleting it deletes all. A Secret that holds keys and what the sandbox is.
    Anchor,
    Policy,
    /// The PersistentVolumeClaim of the workspace.
    Workspace,
    Pod,
    Service,
    /// The original's Service of the editor in the browser.
    CodeService,
    Ingress,
}

impl Part {
    pub const ALL: [Self; 7] =
        [Self::Anchor, Self::Policy, Self::Workspace, Self::Pod, Self::Service, Self::CodeService, Self::Ingress];

    pub fn name(self, names: &Names) -> &str {
        match self {
            Self::Anchor => &names.anchor,
            Self::Policy => &names.policy,
            Self::Workspace => &names.pvc,
            Self::Pod => &names.pod,
            Self::Service => &names.service,
            Self::CodeService => &names.code_service,
            Self::Ingress => &names.ingress,
        }
    }

    /// The kind as Kubernetes spells it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Anchor => "Secret",
            Self::Policy => "NetworkPolicy",
            Self::Workspace => "PersistentVolumeClaim",
            Self::Pod => "Pod",
            Self::Service | Self::CodeService => "Service",
            Self::Ingress => "Ingress",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Self::Policy | Self::Ingress => "networking.k8s.io/v1",
            Self::Anchor | Self::Workspace | Self::Pod | Self::Service | Self::CodeService => "v1",
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        let (group, version) = self.api_version().split_once('/').unwrap_or(("", self.api_version()));
        let kind = GroupVersionKind::gvk(group, version, self.kind());
        let plural = match self {
            Self::Anchor => "secrets",
            Self::Policy => "networkpolicies",
            Self::Workspace => "persistentvolumeclaims",
            Self::Pod => "pods",
            Self::Service | Self::CodeService => "services",
            Self::Ingress => "ingresses",
        };
        ApiResource::from_gvk_with_plural(&kind, plural)
    }

    /// Whether a suspended sandbox keeps it. A policy that no pod is left for costs nothing.
    pub fn survives_suspension(self) -> bool {
        match self {
            Self::Anchor | Self::Workspace | Self::Policy => true,
            Self::Pod | Self::Service | Self::CodeService | Self::Ingress => false,
        }
    }
}
