use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    ops::{Deref, DerefMut},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A key or another secret: its `Debug` is `****`, and it is compared in constant time by whoever checks it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = String, format = Password)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself. Not for logs, argv or error texts.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What tells that a secret is this one.
    pub fn digest(&self) -> SecretDigest {
        SecretDigest(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// The SHA-256 of a secret: enough to know the secret by, and worth nothing to whoever reads it if that one is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for SecretDigest {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 hexadecimal digits")]
pub struct DigestError;

impl FromStr for SecretDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(DigestError);
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| DigestError)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// Environment variables by name. A value may be a secret: `Debug` shows the names alone.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = BTreeMap<String, String>)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn new() -> Self {
        Self::default()
    }

    /// What may be shown of it.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, format_args!("****")))).finish()
    }
}

impl Deref for Environment {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Environment {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<const N: usize> From<[(String, String); N]> for Environment {
    fn from(variables: [(String, String); N]) -> Self {
        Self(variables.into())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl Extend<(String, String)> for Environment {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, variables: I) {
        self.0.extend(variables);
    }
}

impl IntoIterator for Environment {
    type Item = (String, String);
    type IntoIter = btree_map::IntoIter<String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Environment {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// The user that sessions and execs run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    pub name: String,
    /// The uid to create the user with if it does not exist. An existing user keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// What one sandbox may use of sandboxd. Every value has a default; zero is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at the same time.
    pub sessions: u32,
    /// Execs at the same time. Finished ones count as long as they are kept, and make place for new ones, oldest first.
    pub execs: u32,
    /// Connections at the same time, over all listeners.
    pub connections: u32,
    /// Bytes of latest output that a session or an exec keeps.
    pub output_bytes: u64,
    /// Bytes of output that all sessions and execs keep together; what exceeds them goes from finished execs first.
    pub output_total_bytes: u64,
    /// Bytes of a JSON request body.
    pub request_bytes: u64,
    /// Bytes of one uploaded file or archive, and of all that an archive unpacks to.
    pub upload_bytes: u64,
    /// Entries of one uploaded archive.
    pub archive_entries: u64,
    /// Bytes that all files below the working directory take on disk, each at least 4096. More ends the sandbox within
    /// about a second. Absent: not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Seconds that a connection may stay open without a request.
    pub idle_connection_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 64,
            execs: 256,
            connections: 512,
            output_bytes: 16 << 20,
            output_total_bytes: 128 << 20,
            request_bytes: 64 << 20,
            upload_bytes: 16 << 30,
            archive_entries: 1_000_000,
            disk_bytes: None,
            idle_connection_seconds: 600,
        }
    }
}

/// Gives a blank sandboxd its identity. Accepted once, with the bind secret as the bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindRequest {
    /// The keys that open this sandbox. At least one; each at least 16 characters.
    pub keys: Vec<Secret>,
    /// Variables for every session and exec.
    #[serde(default)]
    pub environment: Environment,
    /// Whether the variables that sandboxd was started with, such as an image's, come before those of `environment`.
    #[serde(default)]
    pub inherit_environment: bool,
    /// Whom sessions and execs run as; created if unknown. Absent: sandboxd's own user.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Absolute path where sessions and execs start; created if missing.
    pub working_dir: String,
    #[serde(default)]
    pub limits: Limits,
    /// Seconds from now after which sandboxd ends everything and exits. Absent: never.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_told_by_name_and_sent_whole() {
        let environment = Environment::from([("TOKEN".to_owned(), "s3cr3t".to_owned())]);
        assert_eq!(format!("{environment:?}"), "{\"TOKEN\": ****}");
        let request = BindRequest {
            keys: vec![Secret::new("k3y")],
            environment,
            inherit_environment: false,
            user: None,
            working_dir: "/".to_owned(),
            limits: Limits::default(),
            deadline_seconds: None,
        };
        let shown = format!("{request:?}");
        assert!(!shown.contains("s3cr3t") && !shown.contains("k3y"), "{shown}");
        let sent = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<BindRequest>(&sent).unwrap(), request);
        assert!(sent.contains(r#""environment":{"TOKEN":"s3cr3t"}"#), "{sent}");
    }

    #[test]
    fn a_digest_is_written_and_read_as_hexadecimal_digits() {
        // FIPS 180-2, appendix B.1.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Secret::new("abc").digest();
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(text.to_uppercase().parse(), Ok(digest));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('b', "g"), &text.replacen("ba", "é", 1)] {
            assert_eq!(wrong.parse::<SecretDigest>(), Err(DigestError), "{wrong}");
        }
    }
}
