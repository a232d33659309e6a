//! What the objects of a sandbox are called. Pure.

use sha2::{Digest, Sha256};
use wharf_protocol::SandboxId;

use super::settings::Profile;

/// The longest name of most things in Kubernetes, and of a label's value.
const LONGEST_LABEL: usize = 63;
/// `openhands-runtime-` before it and `-svc-code` behind it make 63.
const LONGEST_ORIGINAL: usize = 36;
const HASH_CHARACTERS: usize = 20;

/// The names of all objects of one sandbox. Different ids never share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The first part of an Ingress' host name. The original's is the id itself, also as a label's value; `box` of our profile
    /// and `wharf-box` of the original's share one.
    pub token: String,
    pub anchor: String,
    pub pod: String,
    pub pvc: String,
    pub service: String,
    /// `openhands` profile only.
    pub code_service: String,
    pub ingress: String,
    pub policy: String,
}

impl Names {
    /// Under the `openhands` profile an id that the original takes gives the original's names.
    pub fn of(id: &SandboxId, profile: Profile) -> Self {
        let plain = |longest| Some(id.as_str()).filter(|id| is_dns_label(id) && id.len() <= longest);
        // A hashed name begins with another word, so that no plain id can have it.
        match profile {
            Profile::OpenHands => {
                // With the hash it has at least 38 characters: no plain id is as long, so the tokens differ too.
                let (base, token) = match plain(LONGEST_ORIGINAL) {
                    Some(id) => (format!("openhands-runtime-{id}"), id.to_owned()),
                    None => {
                        let base = format!("openhands-sandbox-{}", hashed(id, 11));
                        (base.clone(), base)
                    }
                };
                Self {
                    token,
                    anchor: format!("{base}-wharf"),
                    pvc: format!("{base}-pvc"),
                    service: format!("{base}-svc"),
                    code_service: format!("{base}-svc-code"),
                    ingress: format!("{base}-ingress-code"),
                    policy: base.clone(),
                    pod: base,
                }
            }
            Profile::Wharf => {
                let base = match plain(LONGEST_LABEL - "30082-".len() - "wharf-".len()) {
                    Some(id) => format!("wharf-{id}"),
                    None => format!("wharf0-{}", hashed(id, 29)),
                };
                Self {
                    token: base.clone(),
                    anchor: base.clone(),
                    pvc: base.clone(),
                    service: base.clone(),
                    code_service: base.clone(),
                    ingress: base.clone(),
                    policy: base.clone(),
                    pod: base,
                }
            }
        }
    }

    /// The value of the label [`labels::SANDBOX`](super::labels::SANDBOX): no sandbox of the other profile has it either.
    pub fn label(&self) -> &str {
        &self.pod
    }
}

fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= LONGEST_LABEL
        && !text.is_empty()
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// What a person recognises of an id, and a hash that tells it from all others.
fn hashed(id: &SandboxId, most: usize) -> String {
    let mut readable = String::new();
    for character in id.as_str().chars() {
        match character.to_ascii_lowercase() {
            kept if kept.is_ascii_lowercase() || kept.is_ascii_digit() => readable.push(kept),
            _ if !readable.is_empty() && !readable.ends_with('-') => readable.push('-'),
            _ => {}
        }
    }
    readable.truncate(most);
    let readable = readable.trim_end_matches('-');
    let hash = hash(id.as_str().as_bytes());
    if readable.is_empty() { hash } else { format!("{readable}-{hash}") }
}

/// A hundred bits of SHA-256, in an alphabet that names take.
fn hash(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(bytes);
    let bit = |at: usize| digest[at / 8] >> (7 - at % 8) & 1;
    let character = |at: usize| (0..5).fold(0, |value, next| value << 1 | usize::from(bit(at * 5 + next)));
    (0..HASH_CHARACTERS).map(|at| char::from(ALPHABET[character(at)])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(id: &str, profile: Profile) -> Names {
        Names::of(&id.parse().unwrap(), profile)
    }

    fn all(names: &Names) -> [&String; 8] {
        let Names { token, anchor, pod, pvc, service, code_service, ingress, policy } = names;
        [token, anchor, pod, pvc, service, code_service, ingress, policy]
    }

    #[test]
    fn an_id_that_the_original_takes_keeps_its_names() {
        let names = names("4f3c1d2e5a6b47c89d0e1f2a3b4c5d6e", Profile::OpenHands);
        assert_eq!(names.pod, "openhands-runtime-4f3c1d2e5a6b47c89d0e1f2a3b4c5d6e");
        assert_eq!(names.code_service, format!("{}-svc-code", names.pod));
        assert_eq!(names.ingress, format!("{}-ingress-code", names.pod));
        assert_eq!((names.service, names.pvc), (format!("{}-svc", names.pod), format!("{}-pvc", names.pod)));
    }

    #[test]
    fn an_id_that_is_no_name_is_made_one_and_stays_recognisable() {
        let names = names("MyProject_-Session.With.Very-Long-Identifier-0123456789", Profile::Wharf);
        assert!(names.pod.starts_with("wharf0-myproject-session-with-very-l"), "{}", names.pod);
    }

    #[test]
    fn a_name_never_changes() {
        assert_eq!(names("a/b", Profile::Wharf).pod, "wharf0-a-b-yfgn3qbt6zfz32ua5jtv");
    }

    /// A Service of one would lead to the pod of the other.
    #[test]
    fn the_two_profiles_share_no_label_and_no_object() {
        let (ours, originals) = (names("box", Profile::Wharf), names("wharf-box", Profile::OpenHands));
        assert_eq!(ours.token, originals.token, "the case that this is about");
        assert_ne!(ours.label(), originals.label());
        assert!(all(&ours)[1..].iter().all(|name| !all(&originals)[1..].contains(name)), "{ours:?} {originals:?}");
    }

    proptest! {
        #[test]
        fn every_id_gives_valid_names(id in "[^\\p{C}\\s]{1,256}") {
            for profile in [Profile::Wharf, Profile::OpenHands] {
                let names = names(&id, profile);
                for name in all(&names) {
                    // A web application's host begins with its port.
                    let host = if *name == names.token { format!("30082-{name}") } else { name.clone() };
                    let subdomain = *name == names.ingress && name.len() <= 67;
                    prop_assert!(is_dns_label(&host) || subdomain, "{host}");
                }
            }
        }

        #[test]
        fn different_ids_share_no_name(a in "[a-zA-Z0-9/_.é-]{1,80}", b in "[a-zA-Z0-9/_.é-]{1,80}") {
            prop_assume!(a != b);
            for profile in [Profile::Wharf, Profile::OpenHands] {
                let (a, b) = (names(&a, profile), names(&b, profile));
                prop_assert!(all(&a).iter().zip(all(&b)).all(|(a, b)| **a != *b), "{a:?} {b:?}");
            }
        }
    }
}
