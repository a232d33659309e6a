//! What texts Kubernetes takes for names, labels, images and paths: one function a rule, each tells the reason.

use std::net::IpAddr;

/// The reason for which a text breaks the rule.
pub(super) type Verdict = Result<(), String>;

const LONGEST_LABEL: usize = 63;
const LONGEST_SUBDOMAIN: usize = 253;

fn rule(holds: bool, reason: &str) -> Verdict {
    if holds { Ok(()) } else { Err(reason.to_owned()) }
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| is_lower_alphanumeric(*byte));
    edge(bytes.first())
        && edge(bytes.last())
        && text.len() <= LONGEST_LABEL
        && bytes.iter().all(|byte| is_lower_alphanumeric(*byte) || *byte == b'-')
}

/// RFC 1123 label: the name of a namespace.
pub(super) fn dns_label(text: &str) -> Verdict {
    rule(
        is_dns_label(text),
        "lower-case letters, digits and `-` are expected, at most 63, a letter or digit at both ends",
    )
}

/// RFC 1123 subdomain: the name of most things, and a host name.
pub(super) fn dns_subdomain(text: &str) -> Verdict {
    let reason = "parts of lower-case letters, digits and `-`, joined by `.`, are expected, at most 253 characters";
    rule(text.len() <= LONGEST_SUBDOMAIN && text.split('.').all(is_dns_label), reason)
}

fn is_qualified(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text.len() <= LONGEST_LABEL
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The key of a label or an annotation: a name, perhaps with a domain and `/` before it.
pub(super) fn label_key(text: &str) -> Verdict {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    rule(
        is_qualified(name) && domain.is_none_or(|domain| dns_subdomain(domain).is_ok()),
        "a key is letters, digits, `-`, `_` and `.`, at most 63, perhaps with a domain and `/` before it",
    )
}

pub(super) fn label_value(text: &str) -> Verdict {
    let reason = "a label's value is letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends";
    rule(text.is_empty() || is_qualified(text), reason)
}

/// The name of an extended resource, such as `nvidia.com/gpu`.
pub(super) fn resource_name(text: &str) -> Verdict {
    label_key(text).map_err(|_| "a resource such as `nvidia.com/gpu` is expected".to_owned())?;
    rule(text.contains('/') && !text.starts_with("requests."), "a resource such as `nvidia.com/gpu` is expected")
}

/// A reference to an image: `[host[:port]/]path[:tag][@digest]`.
///
/// The grammar is that of <https://pkg.go.dev/github.com/distribution/reference>.
pub(super) fn image(text: &str) -> Verdict {
    if text.is_empty() || text.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err("an image such as `python:3.12` is expected, without spaces".to_owned());
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (text, None),
    };
    rule(digest.is_none_or(is_digest), "behind `@` a digest such as `sha256:` and 64 hexadecimal digits is expected")?;
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    rule(tag.is_none_or(is_tag), "behind `:` a tag of letters, digits, `_`, `.` and `-` is expected, at most 128")?;
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host_like(first) => (Some(first), rest),
        _ => (None, name),
    };
    rule(host.is_none_or(is_host), "its registry is not a host name with or without a port")?;
    rule(name.len() <= 255, "a repository's name has at most 255 characters")?;
    let reason = "a repository's name is lower-case letters and digits, joined by `.`, `_`, `-` or `/`";
    rule(path.split('/').all(is_path_component), reason)
}

/// Docker's rule for telling a registry from the first part of a path.
fn is_host_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_name = dns_subdomain(&host.to_ascii_lowercase()).is_ok();
    let is_ipv6 = || {
        host.strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+')) && (is_name || is_ipv6())
}

fn is_path_component(text: &str) -> bool {
    let mut separator = "";
    let mut rest = text;
    loop {
        let word = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit())).unwrap_or(rest.len());
        let joined = matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
        if word == 0 || !joined {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let end = rest.find(|c: char| !"._-".contains(c)).unwrap_or(rest.len());
        (separator, rest) = rest.split_at(end);
        if separator.is_empty() {
            return false;
        }
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    match algorithm {
        "sha256" => is_hex && hex.len() == 64,
        "sha512" => is_hex && hex.len() == 128,
        other => {
            let is_word = other.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte));
            is_word && other.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic()) && is_hex && hex.len() >= 32
        }
    }
}

/// A path in a sandbox at which a volume can be mounted.
pub(super) fn absolute_path(text: &str) -> Verdict {
    rule(text.starts_with('/'), "an absolute path is expected")?;
    rule(!text.split('/').any(|part| part == ".."), "it must not contain `..`")?;
    rule(!text.contains(':'), "it must not contain `:`")?;
    rule(!text.chars().any(char::is_control), "it must not contain control characters")?;
    rule(text.len() < 4096, "a path has at most 4095 bytes")?;
    rule(!parts(text).is_empty(), "it must not be the root directory")
}

pub(super) fn relative_path(text: &str) -> Verdict {
    rule(!text.is_empty() && !text.starts_with('/'), "a relative path is expected")?;
    rule(!text.split('/').any(|part| part == ".."), "it must not contain `..`")?;
    rule(!text.chars().any(char::is_control), "it must not contain control characters")?;
    rule(text.len() < 4096, "a path has at most 4095 bytes")
}

/// A path's components, however many slashes and dots it was written with.
pub(super) fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

/// The name of a variable of a pod; that of older API servers, which take less.
pub(super) fn variable_name(text: &str) -> Verdict {
    let word = |byte: u8| byte.is_ascii_alphabetic() || b"-._".contains(&byte);
    rule(
        text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || byte.is_ascii_digit())
            && text != "."
            && !text.starts_with(".."),
        "a variable's name is letters, digits, `_`, `-` and `.`, and starts with no digit",
    )
}

/// The name of a variable that a shell can export.
pub(super) fn shell_variable_name(text: &str) -> Verdict {
    let word = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    rule(
        text.bytes().next().is_some_and(word) && text.bytes().all(|byte| word(byte) || byte.is_ascii_digit()),
        "a shell's variable is letters, digits and `_`, and starts with no digit",
    )
}

/// A network: an address and the length of its prefix, without bits behind it.
pub(super) fn cidr(text: &str) -> Verdict {
    const SHAPE: &str = "a network such as `10.0.0.0/8` or `fd00::/8` is expected";
    let (address, length) = text.split_once('/').ok_or(SHAPE)?;
    let address: IpAddr = address.parse().map_err(|_| SHAPE)?;
    let is_plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length: u32 = length.parse().ok().filter(|_| is_plain).ok_or(SHAPE)?;
    let (bits, address) = match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    };
    let behind = u32::checked_sub(bits, length).ok_or(SHAPE)?;
    let network = address.checked_shr(behind).and_then(|kept| kept.checked_shl(behind)).unwrap_or(0);
    rule(network == address, "its address has bits behind the prefix, so it is no network")
}

/// An address alone as the network that it is; any other text as it is.
pub(super) fn as_network(text: String) -> String {
    match text.parse() {
        Ok(IpAddr::V4(_)) => format!("{text}/32"),
        Ok(IpAddr::V6(_)) => format!("{text}/128"),
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Verdict, taken: &[&str], refused: &[&str]) {
        for text in taken {
            assert_eq!(rule(text), Ok(()), "{text:?}");
        }
        for text in refused {
            assert!(rule(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn names_are_those_of_rfc_1123() {
        let (longest, longer) = ("a".repeat(63), "a".repeat(64));
        check(dns_label, &["a", "0", "team-1", &longest], &["", "-a", "a-", "A", "a.b", "a_b", "é", &longer]);
        let long_domain = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        let too_long = format!("{long_domain}e");
        check(
            dns_subdomain,
            &["localhost", "a.b-c.d", &long_domain],
            &["", ".", "a..b", "a.", "A.b", "a:80", "*.a", &longer, &too_long],
        );
    }

    #[test]
    fn labels_are_those_of_kubernetes() {
        let longer = "a".repeat(64);
        check(
            label_key,
            &["disk", "topology.kubernetes.io/zone", "A_b.c", "a.b/0"],
            &["", "/", "a/", "/a", "a/b/c", "-a", "a b", "UP.com/a", &longer],
        );
        check(label_value, &["", "eu-west-1a", "A.b_C"], &["-", "a-", "a b", "a/b", &longer]);
        check(resource_name, &["nvidia.com/gpu"], &["gpu", "nvidia.com/", "requests.nvidia.com/gpu"]);
    }

    #[test]
    fn images_are_those_of_registries() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        check(
            image,
            &[
                "python",
                "python:3.12",
                "img:env",
                "library/python",
                "nikolaik/python-nodejs:python3.12-nodejs22",
                "docker.all-hands.dev/all-hands-ai/runtime:0.48-nikolaik",
                "localhost:5000/a/b__c/d--e.f:T_a.g-1",
                "Registry.example.com/a",
                "[::1]:5000/a",
                &format!("a@{digest}"),
                &format!("host:1/a:tag@{digest}"),
            ],
            &[
                "",
                " ",
                "a b",
                "Python",
                "a/B",
                "a//b",
                "/a",
                "a/",
                "a:",
                "a:b:c",
                ":tag",
                "a:-x",
                "a@sha256:12",
                "a@",
                "a___b",
                "a..b",
                "a-",
                "-a",
                "http://a/b",
                "host:port/a",
                "é",
                "a\n",
                &format!("a:{}", "t".repeat(129)),
                &"a".repeat(256),
            ],
        );
    }

    #[test]
    fn paths_do_not_climb() {
        check(
            absolute_path,
            &["/workspace", "/data/my workspace", "/a/../b".trim_start_matches("/a/.."), "/a..b"],
            &["", "/", "//", "/.", "a", "./a", "/a/..", "/../a", "/a:b", "/a\0", "/a\nb"],
        );
        check(relative_path, &["a", "a/b", ".a"], &["", "/a", "a/..", "..", "a\0"]);
        assert_eq!(parts("//a/./b/"), ["a", "b"]);
    }

    #[test]
    fn variables_have_names_that_every_api_server_takes() {
        check(
            variable_name,
            &["A", "lower_case", "port", "a.b", "_", "-x"],
            &["", "1A", "A=B", "A B", ".", "..a", "é"],
        );
        check(shell_variable_name, &["A", "_", "a1"], &["", "1", "a.b", "a-b", "a b", "é"]);
    }

    #[test]
    fn networks_have_no_bits_behind_their_prefix() {
        check(
            cidr,
            &["10.0.0.0/8", "0.0.0.0/0", "192.168.1.1/32", "::/0", "fd00::/8", "::1/128"],
            &[
                "",
                "10.0.0.0",
                "10.0.0.1/8",
                "10.0.0.0/33",
                "10.0.0.0/08",
                "10.0.0/8",
                "fd00::1/8",
                "::/129",
                "a/8",
                "::/-1",
            ],
        );
    }

    #[test]
    fn an_address_alone_is_a_network_of_one() {
        for (text, network) in
            [("10.96.0.10", "10.96.0.10/32"), ("fd00::a", "fd00::a/128"), ("10.0.0.0/8", "10.0.0.0/8"), ("dns", "dns")]
        {
            assert_eq!(as_network(text.to_owned()), network);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_rule_panic(text in ".{0,80}", near in "[a-zA-Z0-9:/@._\\-\\[\\]]{0,80}") {
            for rule in [
                dns_label, dns_subdomain, label_key, label_value, resource_name, image, absolute_path, relative_path,
                variable_name, shell_variable_name, cidr,
            ] {
                let _ = (rule(&text), rule(&near));
            }
        }
    }
}
