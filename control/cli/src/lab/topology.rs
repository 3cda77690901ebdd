//! The plan of a lab: who has which name, address and MAC. Pure, so that what `lab status` prints, what the daemon's
//! state says and what is built can never differ.
//!
//! ```text
//!  pod-a 10.0.1.10  pod-b 10.0.1.11   pod-c 10.0.2.20  pod-d 10.0.2.21     PREFIX-pod-*
//!      eth0 |           eth0 |            eth0 |           eth0 |          /32, default via 169.254.1.1
//!  enia0a00010a     enia0a00010b      enia0a000214     enia0a000215
//!  -+---------------+---------------- node ---+---------------+---------   PREFIX-node
//!         eni0 10.0.9.5 (primary)           eni1 10.0.10.5
//!              |                                 |
//!         eni0 10.0.9.1                     eni1 10.0.10.1
//!  -------------------------- vpc fabric --------------------------------   PREFIX-vpc: routes by owner, checks sources
//!    host-v 10.0.77.7  host-w 100.64.3.3  host-x 203.0.113.9  host-y 198.51.100.7  imds 169.254.169.254
//! ```

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sluice_state::{Eni, Mac, Node, Pod, State};

use super::options::Options;

/// The gateway that every pod sees (VPC CNI: a link-local address with a permanent neighbour).
pub(crate) const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The address that answers like IMDS.
pub(crate) const IMDS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Everything that is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The lab's name, prefix of its namespaces.
    pub name: String,
    /// The node's network namespace.
    pub node: String,
    /// The fabric's network namespace.
    pub fabric: String,
    /// The node's ENIs, the primary one first.
    pub enis: Vec<EniLink>,
    /// The pods.
    pub pods: Vec<PodLink>,
    /// The hosts that hang on the fabric.
    pub hosts: Vec<HostLink>,
}

/// An ENI: a veth between the node and the fabric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniLink {
    /// Name of its interface, at both ends.
    pub name: String,
    /// The primary ENI.
    pub primary: bool,
    /// Its primary address.
    pub address: Ipv4Addr,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The subnet's gateway, an address of the fabric.
    pub gateway: Ipv4Addr,
    /// MAC of the node's end.
    pub mac: Mac,
    /// MAC of the fabric's end.
    pub gateway_mac: Mac,
    /// Addresses that it owns for pods that a CNI plugin adds.
    #[serde(default)]
    pub spare: Vec<Ipv4Addr>,
    /// Routing table of this ENI in the node (VPC CNI: device number + 1); 254 is `main`.
    pub table: u32,
}

/// A pod: a veth between its namespace and the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLink {
    /// Its name, `pod-a`.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The ENI that owns the address.
    pub eni: String,
    /// Name of the node's end of its veth; its own end is `eth0`.
    pub interface: String,
    /// MAC of its own end.
    pub mac: Mac,
    /// MAC of the node's end: the pod's gateway.
    pub gateway_mac: Mac,
}

/// A host on the fabric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLink {
    /// Its name, `host-v`.
    pub name: String,
    /// What it stands for.
    pub role: String,
    /// Its network namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its gateway, an address of the fabric.
    pub gateway: Ipv4Addr,
    /// MAC of its end.
    pub mac: Mac,
    /// MAC of the fabric's end.
    pub gateway_mac: Mac,
    /// MTU of the way from the fabric to it, in bytes.
    pub path_mtu: u16,
}

impl Topology {
    /// The plan that the options ask for.
    #[must_use]
    pub fn plan(name: &str, options: &Options) -> Self {
        let enis = (0..options.enis).map(|i| eni(i, options.spare_addresses)).collect::<Vec<_>>();
        let mut per_eni = vec![0_u8; enis.len()];
        let pods = (0..options.pods)
            .map(|i| {
                let owner = owner(i, options.enis);
                let nth = per_eni[usize::from(owner)];
                per_eni[usize::from(owner)] = nth.saturating_add(1);
                pod(name, i, owner, nth)
            })
            .collect();
        Self {
            name: name.to_owned(),
            node: format!("{name}-node"),
            fabric: format!("{name}-vpc"),
            enis,
            pods,
            hosts: hosts(name, options),
        }
    }

    /// Every namespace, the node's first.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let pods = self.pods.iter().map(|p| p.namespace.clone());
        let hosts = self.hosts.iter().map(|h| h.namespace.clone());
        [self.node.clone(), self.fabric.clone()].into_iter().chain(pods).chain(hosts).collect()
    }

    /// The namespace of a member: `node`, `vpc`, `pod-a`, `host-x`, `imds`, or a namespace's whole name.
    #[must_use]
    pub fn namespace_of(&self, member: &str) -> Option<String> {
        let full = format!("{}-{member}", self.name);
        self.namespaces().into_iter().find(|ns| *ns == member || *ns == full)
    }

    /// The addresses that an ENI owns: its primary one, its pods', and those that no pod has yet.
    #[must_use]
    pub fn owned(&self, eni: &EniLink) -> Vec<Ipv4Addr> {
        let pods = self.pods.iter().filter(|p| p.eni == eni.name).map(|p| p.address);
        std::iter::once(eni.address).chain(pods).chain(eni.spare.iter().copied()).collect()
    }

    /// What the daemon of this node is told.
    #[must_use]
    pub fn state(&self, options: &Options) -> State {
        State {
            node: Node { name: self.node.clone(), ..Node::default() },
            enis: self.enis.iter().map(state_eni).collect(),
            pods: self.pods.iter().map(state_pod).collect(),
            nat: options.nat(),
            snat_ports: options.snat_ports.clone().unwrap_or_default(),
            timeouts: options.timeouts.clone(),
            ..State::default()
        }
    }
}

fn state_eni(eni: &EniLink) -> Eni {
    Eni {
        name: eni.name.clone(),
        primary: eni.primary,
        address: eni.address,
        subnet: eni.subnet,
        gateway: eni.gateway,
        gateway_mac: None,
    }
}

fn state_pod(pod: &PodLink) -> Pod {
    Pod {
        namespace: "lab".into(),
        name: pod.name.clone(),
        ip: pod.address,
        eni: pod.eni.clone(),
        interface: pod.interface.clone(),
        mac: pod.mac,
    }
}

/// Two pods on the primary ENI, two on the first secondary one, the rest in turn.
fn owner(pod: u16, enis: u16) -> u16 {
    match pod {
        0 | 1 => 0,
        2 | 3 => 1 % enis,
        _ => pod % enis,
    }
}

#[allow(clippy::cast_possible_truncation, reason = "clap bounds ENIs to 8")]
fn eni(i: u16, spare: u16) -> EniLink {
    let third = 9 + i as u8;
    EniLink {
        name: format!("eni{i}"),
        primary: i == 0,
        address: Ipv4Addr::new(10, 0, third, 5),
        subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, third, 0), 24),
        gateway: Ipv4Addr::new(10, 0, third, 1),
        mac: mac(0x0e, i),
        gateway_mac: mac(0x0f, i),
        spare: (0..spare).map(|n| Ipv4Addr::new(10, 0, 201 + i as u8, 10 + n as u8)).collect(),
        table: if i == 0 { 254 } else { u32::from(i) + 1 },
    }
}

#[allow(clippy::cast_possible_truncation, reason = "clap bounds ENIs to 8")]
fn pod(lab: &str, i: u16, owner: u16, nth: u8) -> PodLink {
    // 250 pods on one ENI need more than one block of 200 addresses: they go on in 10.0.(owner + 101).0.
    let (block, rest) = (nth / 200, nth % 200);
    let first = if owner == 1 { 20 } else { 10 };
    let address = Ipv4Addr::new(10, 0, owner as u8 + 1 + block * 100, first + rest);
    let letter = u8::try_from(i).ok().filter(|i| *i < 26).map(|i| char::from(b'a' + i));
    let name = letter.map_or_else(|| format!("pod-{}", i + 1), |letter| format!("pod-{letter}"));
    PodLink {
        namespace: format!("{lab}-{name}"),
        name,
        address,
        eni: format!("eni{owner}"),
        // Begins with `enia`, so that a rule on `enia+` matches pods and never an ENI; 12 bytes.
        interface: format!("enia{:08x}", address.to_bits()),
        mac: mac(0x0a, i),
        gateway_mac: mac(0x0b, i),
    }
}

fn hosts(lab: &str, options: &Options) -> Vec<HostLink> {
    let inside = options.eni_mtu();
    // The way to an internet gateway carries 1500 bytes whatever the ENI does.
    let outside = inside.min(1500);
    let plan = [
        (
            "host-v",
            "in the VPC's primary CIDR",
            Ipv4Addr::new(10, 0, 77, 7),
            Ipv4Addr::new(10, 0, 77, 1),
            inside,
        ),
        (
            "host-w",
            "in the VPC's second CIDR",
            Ipv4Addr::new(100, 64, 3, 3),
            Ipv4Addr::new(100, 64, 3, 1),
            inside,
        ),
        ("host-x", "outside", Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(203, 0, 113, 1), outside),
        (
            "host-y",
            "outside, behind a smaller MTU",
            Ipv4Addr::new(198, 51, 100, 7),
            Ipv4Addr::new(198, 51, 100, 1),
            options.path_mtu.min(outside),
        ),
        ("imds", "answers like IMDS", IMDS, Ipv4Addr::new(169, 254, 169, 253), inside),
    ];
    plan.into_iter()
        .zip(0..)
        .map(|((name, role, address, gateway, path_mtu), i)| HostLink {
            name: name.into(),
            role: role.into(),
            namespace: format!("{lab}-{name}"),
            address,
            gateway,
            mac: mac(0x0c, i),
            gateway_mac: mac(0x0d, i),
            path_mtu,
        })
        .collect()
}

/// Locally administered, second byte 0: never the trunk's tags, whose second byte is a kind of 0x11 and above.
fn mac(kind: u8, i: u16) -> Mac {
    let [high, low] = i.to_be_bytes();
    Mac([0x02, 0x00, 0x00, kind, high, low])
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn plan(line: &[&str]) -> (Topology, Options) {
        let options = Line::parse_from(std::iter::once(&"lab").chain(line)).options;
        (Topology::plan("sluice", &options), options)
    }

    #[test]
    fn the_documented_addresses_stand() {
        let (plan, _) = plan(&[]);
        let pods: Vec<_> =
            plan.pods.iter().map(|p| (p.name.as_str(), p.address.to_string(), p.eni.as_str())).collect();
        let expected = [
            ("pod-a", "10.0.1.10", "eni0"),
            ("pod-b", "10.0.1.11", "eni0"),
            ("pod-c", "10.0.2.20", "eni1"),
            ("pod-d", "10.0.2.21", "eni1"),
        ];
        assert_eq!(pods, expected.map(|(n, a, e)| (n, a.to_owned(), e)));
        assert_eq!(plan.enis[0].address.to_string(), "10.0.9.5");
        assert_eq!(plan.enis[1].gateway.to_string(), "10.0.10.1");
        assert_eq!(plan.namespace_of("host-x").as_deref(), Some("sluice-host-x"));
        assert_eq!(plan.namespace_of("sluice-pod-c").as_deref(), Some("sluice-pod-c"));
        assert_eq!(plan.namespace_of("pod-z"), None);
    }

    #[test]
    fn every_size_is_a_state_that_the_daemon_accepts() {
        for enis in 1..=8 {
            for pods in [0_u16, 1, 4, 26, 27, 250] {
                let line =
                    ["--enis", &enis.to_string(), "--pods", &pods.to_string(), "--spare-addresses", "200"];
                let (plan, options) = plan(&line);
                let owned: Vec<_> = plan.enis.iter().flat_map(|eni| plan.owned(eni)).collect();
                let once: std::collections::BTreeSet<_> = owned.iter().collect();
                assert_eq!(once.len(), owned.len());
                let state = plan.state(&options);
                state.check().unwrap_or_else(|e| panic!("{pods} pods, {enis} ENIs: {e}"));
                let text = toml::to_string(&state).unwrap();
                assert_eq!(sluice_state::State::from_toml(&text).unwrap(), state);
                let mut names = plan.namespaces();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), usize::from(pods) + 7);
                assert!(plan.pods.iter().all(|p| p.interface.len() <= 15));
            }
        }
    }
}
