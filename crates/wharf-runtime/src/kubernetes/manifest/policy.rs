//! The NetworkPolicy of a sandbox: in only from where clients come, out as configured, never to metadata services.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::kubernetes::{
    manifest::labels,
    names::Names,
    settings::{Clients, Egress, Settings},
};

/// Where clouds give a machine's credentials to whoever asks from it: AWS, Google, Azure, OpenStack, DigitalOcean
/// (169.254.169.254, fd00:ec2::254, fd20:ce::254), GKE's metadata server (169.254.169.252), Amazon ECS and EKS pod identities, Azure's wire server, Alibaba, Oracle.
const METADATA: [&str; 10] = [
    "169.254.169.254/32",
    "169.254.169.252/32",
    "169.254.170.2/32",
    "169.254.170.23/32",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "fd00:ec2::254/128",
    "fd00:ec2::23/128",
    "fd20:ce::254/128",
];
/// Where nodes cache names (NodeLocal DNSCache).
const NODE_LOCAL_DNS: &str = "169.254.20.10/32";

pub(super) fn policy(names: &Names, settings: &Settings, selector: Value, ports: &[u16]) -> Value {
    let ports: Vec<_> = ports.iter().map(|port| json!({ "port": port, "protocol": "TCP" })).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": names.policy },
        "spec": {
            "podSelector": { "matchLabels": selector },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [from(&settings.clients)], "ports": ports }],
            "egress": egress(&settings.egress),
        },
    })
}

fn from(clients: &Clients) -> Value {
    match clients {
        // The ports of web applications ask for no key: one sandbox is no client of another.
        Clients::SameNamespace => json!({
            "podSelector": { "matchExpressions": [{ "key": labels::SANDBOX, "operator": "DoesNotExist" }] }
        }),
        Clients::Namespaces(labels) => json!({ "namespaceSelector": { "matchLabels": labels } }),
        Clients::Cluster => json!({ "namespaceSelector": {} }),
    }
}

fn egress(egress: &Egress) -> Value {
    match egress {
        Egress::None => json!([]),
        Egress::Open => json!([{ "to": [block("0.0.0.0/0"), block("::/0")] }]),
        Egress::To(networks) => {
            let dns = json!({
                "to": [{ "namespaceSelector": {} }, { "ipBlock": { "cidr": NODE_LOCAL_DNS } }],
                "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 53, "protocol": "TCP" }],
            });
            let networks: Vec<_> = networks.iter().map(|network| block(network)).collect();
            if networks.is_empty() { json!([dns]) } else { json!([dns, { "to": networks }]) }
        }
    }
}

/// A network without the metadata addresses in it, unless it is one of them: who names one means it.
fn block(network: &str) -> Value {
    let lies_within = |address: &&str| contains(network, address) && !contains(address, network);
    let except: Vec<_> = METADATA.into_iter().filter(lies_within).collect();
    if except.is_empty() {
        json!({ "ipBlock": { "cidr": network } })
    } else {
        json!({ "ipBlock": { "cidr": network, "except": except } })
    }
}

/// Whether the second network lies in the first; both are checked before.
fn contains(outer: &str, inner: &str) -> bool {
    let parse = |text: &str| -> Option<(IpAddr, u32)> {
        let (address, bits) = text.split_once('/')?;
        Some((address.parse().ok()?, bits.parse().ok()?))
    };
    let bits_of = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
        IpAddr::V6(address) => (address.to_bits(), false),
    };
    let (Some((outer, length)), Some((inner, inner_length))) = (parse(outer), parse(inner)) else { return false };
    let ((outer, outer_v4), (inner, inner_v4)) = (bits_of(outer), bits_of(inner));
    let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
    outer_v4 == inner_v4 && length <= inner_length && outer & mask == inner & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_lies_in_another_of_its_own_family() {
        for (outer, inner, expected) in [
            ("0.0.0.0/0", "169.254.169.254/32", true),
            ("169.254.0.0/16", "169.254.169.254/32", true),
            ("10.0.0.0/8", "169.254.169.254/32", false),
            ("0.0.0.0/0", "fd00:ec2::254/128", false),
            ("::/0", "fd00:ec2::254/128", true),
            ("fd00::/8", "fd00:ec2::254/128", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
        ] {
            assert_eq!(contains(outer, inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn metadata_addresses_are_closed_wherever_they_lie_in_an_open_network() {
        let open = egress(&Egress::Open).to_string();
        assert!(METADATA.iter().all(|address| open.contains(address)), "{open}");
        assert_eq!(block("10.0.0.0/8"), json!({ "ipBlock": { "cidr": "10.0.0.0/8" } }));
        assert_eq!(block("169.254.0.0/16")["ipBlock"]["except"], json!(METADATA[..4]));
        for named in ["169.254.169.254/32", "fd00:ec2:0::254/128"] {
            assert_eq!(block(named), json!({ "ipBlock": { "cidr": named } }));
        }
        assert_eq!(egress(&Egress::None), json!([]));
    }
}
