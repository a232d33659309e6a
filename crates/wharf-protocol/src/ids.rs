use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}` is not valid: {reason}")]
pub struct IdError {
    what: &'static str,
    value: String,
    reason: &'static str,
}

fn check_token(what: &'static str, value: &str, longest: usize) -> Result<(), IdError> {
    let reason = if value.is_empty() {
        Some("it is empty")
    } else if value.len() > longest {
        Some("it is too long")
    } else if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        Some("only ASCII letters, digits, `-` and `_` are allowed")
    } else if !value.as_bytes()[0].is_ascii_alphanumeric() {
        Some("it must start with a letter or a digit")
    } else {
        None
    };
    match reason {
        None => Ok(()),
        Some(reason) => Err(IdError { what, value: value.chars().take(80).collect(), reason }),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(value: &str) -> Result<Self, IdError> {
                check_token($what, value, $longest)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(value: String) -> Result<Self, IdError> {
                check_token($what, &value, $longest)?;
                Ok(Self(value))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A sandbox's name, chosen by a person or made up: at most 63 characters of `[A-Za-z0-9_-]`.
    SandboxName, "sandbox name", 63
);
/// What a sandbox is called by whoever made it: any text of 1 to 256 characters without control characters, such as a
/// conversation's id. A runtime makes names of it that it can use, and keeps the text beside them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

impl SandboxId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = IdError;

    fn from_str(value: &str) -> Result<Self, IdError> {
        Self::try_from(value.to_owned())
    }
}

impl TryFrom<String> for SandboxId {
    type Error = IdError;

    fn try_from(value: String) -> Result<Self, IdError> {
        let reason = match value.chars().count() {
            0 => Some("it is empty"),
            257.. => Some("it has more than 256 characters"),
            _ if value.chars().any(char::is_control) => Some("it has control characters"),
            _ if value.trim() != value => Some("it begins or ends with white space"),
            _ => None,
        };
        match reason {
            None => Ok(Self(value)),
            Some(reason) => {
                Err(IdError { what: "sandbox name", value: value.escape_debug().take(80).collect(), reason })
            }
        }
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl From<SandboxName> for SandboxId {
    fn from(name: SandboxName) -> Self {
        Self(name.0)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

id!(
    /// A session's id within its sandbox: at most 64 characters of `[A-Za-z0-9_-]`.
    SessionId, "session id", 64
);
id!(
    /// An exec's id within its sandbox: at most 64 characters of `[A-Za-z0-9_-]`.
    ExecId, "exec id", 64
);
id!(
    /// Changes with every start of sandboxd: offsets and ids of another boot mean nothing in this one.
    BootId, "boot id", 64
);

/// A position in an output log, counted in bytes from the first byte ever written. Never reused.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = u64)]
pub struct ByteOffset(pub u64);

impl ByteOffset {
    /// The position `bytes` after this one.
    #[must_use]
    pub fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_called_by_any_text_that_can_be_shown() {
        for good in ["a/b", "Übung 7", "..", &"é".repeat(256)] {
            assert!(good.parse::<SandboxId>().is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "\u{1b}[31m", " a", &"x".repeat(257)] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_is_no_id() {
        for bad in ["", "..", "a/b", "-x", "ü", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
        assert_eq!("Main_1-a".parse::<SessionId>().map(String::from), Ok("Main_1-a".to_owned()));
    }
}
