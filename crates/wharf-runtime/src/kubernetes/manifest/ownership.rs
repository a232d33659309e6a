//! Whose an object is, and how it is made a sandbox's. Pure.

use serde_json::{Value, json};

use crate::kubernetes::names::Names;

/// Who writes our fields, for server-side apply.
pub const FIELD_MANAGER: &str = "wharf";
pub(super) const SANDBOX_LABEL: &str = labels::SANDBOX;

/// Labels and annotations of ours.
pub mod labels {
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Which of several programs in one namespace a sandbox belongs to.
    pub const INSTALLATION: &str = "wharf.dev/installation";
    /// Which sandbox an object is of.
    pub const SANDBOX: &str = "wharf.dev/sandbox";
    /// Label of a pod with a NetworkPolicy of its own: all that this one does not open is closed.
    pub const WALLED: &str = "wharf.dev/walled";
    /// Annotation of an anchor: the sandbox's id as its maker wrote it.
    pub const ID: &str = "wharf.dev/id";
    pub const PROFILE: &str = "wharf.dev/profile";
    /// Annotation of an anchor: `running` or `suspended`, what is wanted.
    pub const DESIRED: &str = "wharf.dev/desired";
    /// Annotation of an anchor: which call made it.
    pub const CREATION: &str = "wharf.dev/creation";
    /// Annotation of an anchor: until when whoever needs it has said to be there.
    pub const LEASED_UNTIL: &str = "wharf.dev/leased-until";
}

/// To whom an object is to belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub installation: String,
    /// The value of its label.
    pub sandbox: String,
    pub anchor: String,
    pub anchor_uid: String,
}

impl Owner {
    pub(crate) fn new(installation: &str, names: &Names, anchor_uid: &str) -> Self {
        Self {
            installation: installation.to_owned(),
            sandbox: names.label().to_owned(),
            anchor: names.anchor.clone(),
            anchor_uid: anchor_uid.to_owned(),
        }
    }

    /// The labels of everything that belongs to the sandbox.
    pub fn labels(installation: &str, sandbox: &str) -> Value {
        json!({
            labels::MANAGED_BY: "wharf",
            labels::INSTALLATION: installation,
            labels::SANDBOX: sandbox,
        })
    }

    /// The object with our labels and its owner.
    pub fn adopt(&self, object: &Value) -> Value {
        let mut object = object.clone();
        let metadata = &mut object["metadata"];
        for (name, value) in Self::labels(&self.installation, &self.sandbox).as_object().into_iter().flatten() {
            metadata["labels"][name] = value.clone();
        }
        metadata["ownerReferences"] = json!([{
            "apiVersion": "v1",
            "kind": "Secret",
            "name": self.anchor,
            "uid": self.anchor_uid,
            // The anchor goes last, so that whoever finds no anchor finds nothing.
            "blockOwnerDeletion": true,
        }]);
        object
    }

    /// Whose an object is that has the name of one of ours.
    pub fn of(&self, metadata: &Value) -> Ownership {
        whose(metadata, &self.installation, &self.sandbox, Some(&self.anchor_uid))
    }
}

/// Whose an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// This sandbox's, as it is now.
    Ours,
    /// This sandbox's of an earlier life: its anchor is gone, so it goes too.
    Stale,
    /// Nobody's that we know, such as what the original has made.
    Unowned,
    /// Another installation's or another sandbox's.
    Foreign(String),
}

/// Whether nobody owns it. What an anchor made always names its anchor, and the cluster collects it after that one's end.
pub(crate) fn is_orphan(metadata: &Value) -> bool {
    metadata["ownerReferences"].as_array().is_none_or(Vec::is_empty)
}

/// Whose an object is that has the name of one of a sandbox's.
pub(crate) fn whose(metadata: &Value, installation: &str, sandbox: &str, anchor_uid: Option<&str>) -> Ownership {
    let label = |name: &str| metadata["labels"][name].as_str();
    match label(labels::INSTALLATION) {
        None => return Ownership::Unowned,
        Some(other) if other != installation => return Ownership::Foreign(format!("installation `{other}`")),
        Some(_) => {}
    }
    if label(labels::SANDBOX) != Some(sandbox) {
        return Ownership::Foreign(format!("sandbox `{}`", label(labels::SANDBOX).unwrap_or_default()));
    }
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = anchor_uid.is_some_and(|uid| owners.iter().any(|owner| owner["uid"].as_str() == Some(uid)));
    if ours { Ownership::Ours } else { Ownership::Stale }
}
