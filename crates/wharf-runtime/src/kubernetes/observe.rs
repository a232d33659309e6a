//! What there is of a sandbox in the cluster. Pure: objects in, facts out.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::part::Part;

/// One object as it was last seen. An anchor's has keys in it: `Debug` tells which object it is, and nothing of its content.
#[derive(Clone, PartialEq)]
pub struct Seen {
    pub uid: String,
    pub resource_version: String,
    /// Deleted, and not yet gone.
    pub terminating: bool,
    pub object: Value,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("name", &self.object["metadata"]["name"].as_str())
            .field("uid", &self.uid)
            .field("resource_version", &self.resource_version)
            .field("terminating", &self.terminating)
            .finish_non_exhaustive()
    }
}

impl Seen {
    pub fn of(object: Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        Self {
            uid: text(&metadata["uid"]),
            resource_version: text(&metadata["resourceVersion"]),
            terminating: !metadata["deletionTimestamp"].is_null(),
            object,
        }
    }

    /// The object as a pod; an empty one if it is none.
    pub fn pod(&self) -> Pod {
        serde_json::from_value(self.object.clone()).unwrap_or_default()
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.object["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
    }
}

/// All that was seen of one sandbox. What was looked for and is not there is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    parts: BTreeMap<Part, Seen>,
}

impl Observed {
    pub fn get(&self, part: Part) -> Option<&Seen> {
        self.parts.get(&part)
    }

    pub fn parts(&self) -> impl Iterator<Item = (Part, &Seen)> {
        self.parts.iter().map(|(part, seen)| (*part, seen))
    }

    /// Takes note of an object, or of its absence.
    pub fn note(&mut self, part: Part, object: Option<Value>) {
        match object {
            Some(object) => drop(self.parts.insert(part, Seen::of(object))),
            None => drop(self.parts.remove(&part)),
        }
    }
}
