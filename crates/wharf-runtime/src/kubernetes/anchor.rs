//! The anchor: the Secret that a sandbox hangs on, and that tells all about it to whoever finds it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret as KubernetesSecret};
use serde_json::{Value, json};
use wharf_protocol::{BindRequest, SandboxId, Secret};

use super::{
    manifest::{BIND_SECRET, KEY, Objects, Owner, labels},
    names::Names,
    part::Part,
    settings::Profile,
};

const BIND: &str = "bind";
const OBJECTS: &str = "objects";
const SECRET_TYPE: &str = "wharf.dev/sandbox";

/// Whether a sandbox is to have a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Running,
    Suspended,
}

impl Wanted {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
        }
    }
}

/// What an anchor says.
#[derive(Debug, Clone)]
pub struct Anchor {
    pub uid: String,
    pub id: SandboxId,
    pub profile: Profile,
    pub wanted: Wanted,
    pub created_at: Timestamp,
    /// Which call made it.
    pub creation: String,
    /// Garbage after this, unless whoever needs it says otherwise.
    pub leased_until: Option<Timestamp>,
    pub key: Secret,
    pub bind_secret: Secret,
    /// What the sandbox is bound to, without the key.
    pub bind: BindRequest,
    /// The objects without an owner, as they are made anew when a suspended sandbox is resumed.
    pub objects: Objects,
}

/// A new anchor, before the API server has it.
#[derive(Debug, Clone)]
pub(super) struct NewAnchor {
    pub(super) id: SandboxId,
    pub(super) profile: Profile,
    pub(super) creation: String,
    /// As [`Anchor::leased_until`].
    pub(super) leased_until: Option<Timestamp>,
    pub(super) key: Secret,
    pub(super) bind_secret: Secret,
    pub(super) bind: BindRequest,
}

impl NewAnchor {
    pub(super) fn manifest(&self, installation: &str, names: &Names, objects: &Objects) -> Value {
        let mut manifest = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": SECRET_TYPE,
            "metadata": {
                "name": names.anchor,
                "labels": Owner::labels(installation, names.label()),
                "annotations": {
                    labels::ID: self.id,
                    labels::PROFILE: profile_name(self.profile),
                    labels::DESIRED: Wanted::Running.as_str(),
                    labels::CREATION: self.creation,
                },
            },
            "stringData": {
                KEY: self.key.reveal(),
                BIND_SECRET: self.bind_secret.reveal(),
                BIND: json!(self.bind).to_string(),
                OBJECTS: json!(objects).to_string(),
            },
        });
        if let Some(until) = self.leased_until {
            manifest["metadata"]["annotations"][labels::LEASED_UNTIL] = json!(until.to_string());
        }
        manifest
    }
}

fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Wharf => "wharf",
        Profile::OpenHands => "openhands",
    }
}

/// Changes of an anchor, each `None` left alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct AnchorChange {
    pub(super) wanted: Option<Wanted>,
    pub(super) objects: Option<Objects>,
    pub(super) bind: Option<BindRequest>,
    /// `Some(None)` takes the lease away: the sandbox stays.
    pub(super) leased_until: Option<Option<Timestamp>>,
}

impl AnchorChange {
    /// A JSON merge patch, which the API server refuses if the anchor is another one by now.
    pub(super) fn patch(&self, uid: &str) -> Value {
        let mut annotations = serde_json::Map::new();
        if let Some(wanted) = self.wanted {
            annotations.insert(labels::DESIRED.to_owned(), json!(wanted.as_str()));
        }
        if let Some(until) = self.leased_until {
            annotations.insert(labels::LEASED_UNTIL.to_owned(), json!(until.map(|until| until.to_string())));
        }
        let mut patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        if let Some(objects) = &self.objects {
            patch["stringData"][OBJECTS] = json!(json!(objects).to_string());
        }
        if let Some(bind) = &self.bind {
            patch["stringData"][BIND] = json!(json!(bind).to_string());
        }
        patch
    }
}

/// Why a Secret is no anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Secret `{name}` is not what Wharf has made: `{field}` {reason}")]
pub struct AnchorError {
    pub name: String,
    pub field: &'static str,
    pub reason: String,
}

impl Anchor {
    /// Reads an anchor back.
    ///
    /// # Errors
    ///
    /// [`AnchorError`], for one that a hand has changed.
    pub fn read(object: &Value) -> Result<Self, AnchorError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let wrong = |field: &'static str, reason: String| AnchorError { name: name.clone(), field, reason };
        let secret: KubernetesSecret =
            serde_json::from_value(object.clone()).map_err(|error| wrong("data", error.to_string()))?;
        let annotations: BTreeMap<String, String> = secret.metadata.annotations.unwrap_or_default();
        let data = secret.data.unwrap_or_default();
        let annotation = |field: &'static str| {
            annotations.get(field).map(String::as_str).ok_or_else(|| wrong(field, "is missing".to_owned()))
        };
        let text = |field: &'static str| -> Result<&str, AnchorError> {
            let ByteString(bytes) = data.get(field).ok_or_else(|| wrong(field, "is missing".to_owned()))?;
            std::str::from_utf8(bytes).map_err(|error| wrong(field, error.to_string()))
        };
        let time = |field: &'static str, text: &str| {
            text.parse::<Timestamp>().map_err(|error| wrong(field, format!("was `{text}`: {error}")))
        };
        let profile = match annotation(labels::PROFILE)? {
            "wharf" => Profile::Wharf,
            "openhands" => Profile::OpenHands,
            other => return Err(wrong(labels::PROFILE, format!("was `{other}`"))),
        };
        let wanted = match annotation(labels::DESIRED)? {
            "running" => Wanted::Running,
            "suspended" => Wanted::Suspended,
            other => return Err(wrong(labels::DESIRED, format!("was `{other}`"))),
        };
        Ok(Self {
            uid: secret.metadata.uid.unwrap_or_default(),
            id: annotation(labels::ID)?.parse().map_err(|error| wrong(labels::ID, format!("{error}")))?,
            profile,
            wanted,
            created_at: secret.metadata.creation_timestamp.map(|time| time.0).unwrap_or_default(),
            creation: annotation(labels::CREATION)?.to_owned(),
            leased_until: match annotations.get(labels::LEASED_UNTIL) {
                Some(text) => Some(time(labels::LEASED_UNTIL, text)?),
                None => None,
            },
            key: Secret::new(text(KEY)?),
            bind_secret: Secret::new(text(BIND_SECRET)?),
            bind: serde_json::from_str(text(BIND)?).map_err(|error| wrong(BIND, error.to_string()))?,
            objects: serde_json::from_str(text(OBJECTS)?).map_err(|error| wrong(OBJECTS, error.to_string()))?,
        })
    }

    /// Whether it is to be kept and has not been ready yet. A throw-away sandbox has a lease for as long as it lives, and
    /// no workspace.
    pub fn is_half_made(&self) -> bool {
        self.leased_until.is_some() && self.objects.contains_key(&Part::Workspace)
    }

    /// The identity that sandboxd is given.
    pub fn bind_request(&self) -> BindRequest {
        BindRequest { keys: vec![self.key.clone()], ..self.bind.clone() }
    }
}
