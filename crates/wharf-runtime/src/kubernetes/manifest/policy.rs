//! The NetworkPolicy of a sandbox: in only from where clients come, out as configured, never to metadata services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::kubernetes::{
    manifest::labels,
    names::Names,
    settings::{Clients, Egress, Resolver, Settings},
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

/// IPv4 addresses that are no internet: this machine, private networks, those of carriers (and of many clusters' pods),
/// link-local, benchmarks, multicast, reserved ones (which some clusters give to pods), and metadata and Services that some
/// clouds have at addresses which look public (Azure's wire server, GKE's Services).
const NO_INTERNET_V4: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "34.118.224.0/20",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// All that IPv6 calls global; private, link-local and loopback addresses lie elsewhere.
const GLOBAL_V6: &str = "2000::/3";
/// Of those: protocols' own (Teredo, which leads to IPv4 addresses, among them) and 6to4, which does too.
const NO_INTERNET_V6: [&str; 2] = ["2001::/23", "2002::/16"];
/// Where a cluster without IPv4 reaches it (NAT64): an IPv4 address is the end of these.
const NAT64: &str = "64:ff9b::";
const NAT64_LENGTH: u32 = 96;

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
            "egress": egress(settings),
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

fn egress(settings: &Settings) -> Value {
    match &settings.egress {
        Egress::None => json!([]),
        // Some network plugins take no pod for an address: pods are named too.
        Egress::Open => {
            json!([dns(&settings.resolver), { "to": [{ "namespaceSelector": {} }, block("0.0.0.0/0"), block("::/0")] }])
        }
        Egress::To { internet, networks } => {
            let internet = if *internet { internet_without(&settings.closed_networks) } else { Vec::new() };
            let to: Vec<_> = internet.into_iter().chain(networks.iter().map(|network| block(network))).collect();
            let dns = dns(&settings.resolver);
            if to.is_empty() { json!([dns]) } else { json!([dns, { "to": to }]) }
        }
    }
}

/// The way to whoever resolves names, and to nothing else.
fn dns(resolver: &Resolver) -> Value {
    let (to, port) = match resolver {
        Resolver::Pods { namespace, labels, port } => {
            let pods = json!({
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                "podSelector": { "matchLabels": labels },
            });
            (vec![pods, json!({ "ipBlock": { "cidr": NODE_LOCAL_DNS } })], *port)
        }
        Resolver::At(networks) => {
            (networks.iter().map(|network| json!({ "ipBlock": { "cidr": network } })).collect(), Resolver::PORT)
        }
    };
    let ports = if port == Resolver::PORT { vec![port] } else { vec![Resolver::PORT, port] };
    let ports: Vec<_> = ports
        .into_iter()
        .flat_map(|port| ["UDP", "TCP"].map(|protocol| json!({ "port": port, "protocol": protocol })))
        .collect();
    json!({ "to": to, "ports": ports })
}

/// All that is public, but for the closed networks.
fn internet_without(closed: &[String]) -> Vec<Value> {
    let v4: Vec<&str> = NO_INTERNET_V4.into_iter().chain(closed.iter().map(String::as_str)).collect();
    let through_nat64: Vec<String> = v4.iter().filter_map(|network| behind_nat64(network)).collect();
    let v6: Vec<&str> = NO_INTERNET_V6.into_iter().chain(closed.iter().map(String::as_str)).collect();
    let through_nat64: Vec<&str> =
        through_nat64.iter().map(String::as_str).chain(closed.iter().map(String::as_str)).collect();
    let blocks =
        [("0.0.0.0/0".to_owned(), v4), (GLOBAL_V6.to_owned(), v6), (format!("{NAT64}/{NAT64_LENGTH}"), through_nat64)];
    // Who closes all of a family leaves nothing of it.
    let open = blocks.into_iter().filter(|(network, except)| !except.iter().any(|closed| contains(closed, network)));
    open.map(|(network, except)| {
        let except: Vec<_> = except.into_iter().filter(|closed| contains(&network, closed)).collect();
        json!({ "ipBlock": { "cidr": network, "except": except } })
    })
    .collect()
}

/// The addresses by which a cluster without IPv4 reaches an IPv4 network.
fn behind_nat64(network: &str) -> Option<String> {
    let (address, length) = network.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u32>().ok()?);
    let prefix: Ipv6Addr = NAT64.parse().ok()?;
    let address = Ipv6Addr::from_bits(prefix.to_bits() | u128::from(address.to_bits()));
    Some(format!("{address}/{}", NAT64_LENGTH + length))
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
    use std::collections::BTreeMap;

    use expect_test::expect;

    use super::*;
    use crate::kubernetes::settings::{Overrides, Sources};

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

    fn made(egress: Egress, change: impl FnOnce(&mut Settings)) -> Value {
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: None, environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        let mut settings = Settings::load(&sources).unwrap().settings;
        settings.egress = egress;
        change(&mut settings);
        super::egress(&settings)
    }

    /// Whether one of the rules lets an address through on every port, as Kubernetes reads them.
    fn lets_through(egress: &Value, address: &str) -> bool {
        let length = if address.contains(':') { 128 } else { 32 };
        let address = format!("{address}/{length}");
        let rules = egress.as_array().unwrap().iter().filter(|rule| rule["ports"].is_null());
        let mut blocks = rules.flat_map(|rule| rule["to"].as_array().unwrap()).map(|to| &to["ipBlock"]);
        blocks.any(|block| {
            let within = |network: &Value| contains(network.as_str().unwrap_or_default(), &address);
            within(&block["cidr"]) && !block["except"].as_array().into_iter().flatten().any(within)
        })
    }

    const PUBLIC: [&str; 7] = [
        "1.1.1.1",
        "8.8.8.8",
        "140.82.121.3",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "2a00:1450:4001:82a::200e",
        // 140.82.121.3 from a cluster without IPv4.
        "64:ff9b::8c52:7903",
    ];
    const NOT_PUBLIC: [&str; 30] = [
        "0.0.0.0",
        "10.96.0.1",
        "10.200.0.1",
        "34.118.224.1",
        "100.64.0.10",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.169.252",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.20.10",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:10.0.0.1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fc00::1",
        "fe80::1",
        "ff02::1",
        "2002:a00:1::1",
        // 10.0.0.1 from a cluster without IPv4.
        "64:ff9b::a00:1",
    ];

    #[test]
    fn the_internet_is_all_that_is_public_and_nothing_of_the_cluster() {
        let internet = made(Egress::default(), |_| {});
        for address in PUBLIC {
            assert!(lets_through(&internet, address), "{address}");
        }
        for address in NOT_PUBLIC {
            assert!(!lets_through(&internet, address), "{address}");
        }
    }

    #[test]
    fn what_is_named_is_open_beside_the_internet_and_closed_networks_are_no_internet() {
        let networks = vec!["10.1.0.0/16".to_owned()];
        let named = made(Egress::To { internet: true, networks: networks.clone() }, |settings| {
            settings.closed_networks = ["203.0.113.0/24", "2a00:1450::/32"].map(str::to_owned).to_vec();
        });
        for (address, expected) in [
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("1.1.1.1", true),
            ("203.0.113.7", false),
            ("64:ff9b::cb00:7107", false),
            ("2a00:1450:4001:82a::200e", false),
            ("2606:4700:4700::1111", true),
        ] {
            assert_eq!(lets_through(&named, address), expected, "{address}");
        }
        let only = made(Egress::To { internet: false, networks }, |_| {});
        assert!(lets_through(&only, "10.1.2.3") && !lets_through(&only, "1.1.1.1"));
        let v4_alone = made(Egress::default(), |settings| settings.closed_networks = vec!["::/0".to_owned()]);
        assert!(lets_through(&v4_alone, "1.1.1.1") && !lets_through(&v4_alone, "2606:4700:4700::1111"));
    }

    #[test]
    fn names_are_asked_of_the_clusters_resolver_alone() {
        let internet = made(Egress::default(), |_| {});
        expect![[r#"{"to":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"kube-system"}},"podSelector":{"matchLabels":{"k8s-app":"kube-dns"}}},{"ipBlock":{"cidr":"169.254.20.10/32"}}],"ports":[{"port":53,"protocol":"UDP"},{"port":53,"protocol":"TCP"}]}"#]]
        .assert_eq(&internet[0].to_string());
        let other = made(Egress::default(), |settings| {
            let labels = BTreeMap::from([("dns".to_owned(), "default".to_owned())]);
            settings.resolver = Resolver::Pods { namespace: "openshift-dns".to_owned(), labels, port: 5353 };
        });
        let ports = |rule: &Value| rule["ports"].as_array().unwrap().iter().map(|port| port["port"].clone()).collect();
        let all: Vec<Value> = ports(&other[0]);
        assert_eq!(all, [53, 53, 5353, 5353]);
        let at = made(Egress::default(), |settings| settings.resolver = Resolver::At(vec!["10.96.0.10/32".to_owned()]));
        assert_eq!(at[0]["to"], json!([{ "ipBlock": { "cidr": "10.96.0.10/32" } }]));
    }

    #[test]
    fn metadata_addresses_are_closed_wherever_they_lie_in_an_open_network() {
        let open = made(Egress::Open, |_| {});
        for address in METADATA {
            let address = address.split_once('/').unwrap().0;
            assert!(!lets_through(&open, address), "{address}");
        }
        for address in ["10.96.0.1", "192.168.1.1", "1.1.1.1", "fd00::1"] {
            assert!(lets_through(&open, address), "{address}");
        }
        assert_eq!(block("10.0.0.0/8"), json!({ "ipBlock": { "cidr": "10.0.0.0/8" } }));
        assert_eq!(block("169.254.0.0/16")["ipBlock"]["except"], json!(METADATA[..4]));
        for named in ["169.254.169.254/32", "fd00:ec2:0::254/128"] {
            assert_eq!(block(named), json!({ "ipBlock": { "cidr": named } }));
        }
        assert_eq!(made(Egress::None, |_| {}), json!([]));
    }
}
