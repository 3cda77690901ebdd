//! The control data of one moment, immutable.
//!
//! A [`Snapshot`] is compiled from the state that the control plane gave and from what the host says of its interfaces.
//! It is swapped as a whole and loaded once per batch, so that a packet never sees half a change. Lookups that an
//! established flow needs are array accesses by interface index; maps are for the first packet of a flow.

mod hop;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sluice_state::{Invalid, Mac, Nat, PortSet, RandomizeSnat, State};

pub(crate) use self::hop::{Hop, HopKind};
use crate::flow::{FlowKey, Origin, TimeoutsNs};
use crate::map::Map;
use crate::policy::{Circumstances, Policy};
use crate::service::Services;
use crate::verdict::Drop;

/// What the host says of itself: the kernel's interfaces and neighbours, and the port contract as it came out.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The interfaces that the state names as ENIs.
    pub enis: Vec<HostLink>,
    /// All other interfaces, the host's ends of pods' veths among them.
    pub links: Vec<HostLink>,
    /// The kernel's neighbour table: entries with a usable Ethernet address.
    pub neighbours: Vec<Neighbour>,
    /// Every address of the node itself, ENIs' secondary addresses for pods not among them.
    pub local: Vec<Ipv4Addr>,
    /// Ports that are Sluice's for TCP.
    pub tcp: PortSet,
    /// Ports that are Sluice's for UDP.
    pub udp: PortSet,
    /// ICMP identifiers that are Sluice's.
    pub icmp: PortSet,
}

/// One interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Its name.
    pub name: String,
    /// Its index, unique in the network namespace.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

/// One usable entry of the kernel's neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface behind which it is.
    pub ifindex: u32,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// An ENI, ready for the packet path.
#[derive(Debug, Clone)]
pub struct EniEntry {
    /// Name of the interface.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its own Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet that it carries, in bytes.
    pub mtu: u32,
    /// Its primary address.
    pub address: u32,
    gateway: u32,
    gateway_mac: Option<[u8; 6]>,
    subnet: (u32, u32),
}

/// A pod, ready for the packet path.
#[derive(Debug, Clone)]
pub struct PodEntry {
    /// Namespace and name, `default/a`.
    pub name: String,
    /// Its address.
    pub ip: u32,
    /// Index of the host's end of its veth.
    pub ifindex: u32,
    /// Ethernet address of the pod's end.
    pub mac: [u8; 6],
    /// Ethernet address of the host's end: the pod's gateway.
    pub host_mac: [u8; 6],
    /// Largest IP packet that the veth carries, in bytes.
    pub mtu: u32,
    /// Index of the ENI that owns the address, for [`Snapshot::eni`].
    pub eni: usize,
}

/// What an interface index stands for.
#[derive(Debug, Clone, Copy)]
pub enum Link<'a> {
    /// The host's end of a pod's veth.
    Pod(&'a PodEntry),
    /// An ENI.
    Eni(&'a EniEntry),
}

/// Why a next hop cannot be given yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unresolved {
    /// The address whose Ethernet address is missing.
    pub address: u32,
}

/// How the source of a flow is translated.
#[derive(Debug, Clone)]
pub struct Snat {
    /// The node's address: the primary ENI's primary address.
    pub address: u32,
    /// How ports are chosen.
    pub randomize: RandomizeSnat,
    untouched: Vec<(u32, u32)>,
    off: bool,
}

/// The control data of one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number; a worker that has loaded it has acknowledged it.
    pub generation: u64,
    /// Translation; absent on a node without an ENI.
    pub snat: Option<Snat>,
    /// Ports that are ours: TCP, UDP, ICMP identifiers.
    pub ports: [Ports; 3],
    /// How long idle flows live.
    pub timeouts: TimeoutsNs,
    /// Who may speak to whom.
    pub policy: Policy,
    /// Where connections to services go.
    pub services: Services,
    enis: Vec<EniEntry>,
    pods: Vec<PodEntry>,
    links: Vec<LinkIndex>,
    hops: Vec<Hop>,
    pod_by_ip: Map<u32, u32>,
    local: Map<u32, ()>,
    neighbours: Map<u64, [u8; 6]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkIndex {
    None,
    Pod(u32),
    Eni(u32),
}

/// A port set with what choosing from it needs: its ranges and how many ports stand before each.
#[derive(Debug, Clone)]
pub struct Ports {
    /// The set.
    pub set: PortSet,
    ranges: Vec<(u32, u16)>,
    len: u32,
}

impl Ports {
    /// Prepares a set.
    #[must_use]
    pub fn new(set: &PortSet) -> Self {
        let mut before = 0;
        let ranges = set
            .ranges()
            .iter()
            .map(|r| {
                let entry = (before, r.first);
                before += u32::from(r.last - r.first) + 1;
                entry
            })
            .collect();
        Self { set: set.clone(), ranges, len: before }
    }

    /// Number of ports.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The port of a rank, 0 to `len() - 1` in ascending order; a rank beyond is taken modulo the length.
    #[must_use]
    pub fn nth(&self, rank: u32) -> Option<u16> {
        let rank = rank.checked_rem(self.len)?;
        let (before, first) = *self.ranges.iter().rev().find(|(before, _)| *before <= rank)?;
        u16::try_from(u32::from(first) + rank - before).ok()
    }
}

impl Snat {
    /// Whether a connection that a pod opens to `destination` is translated.
    #[inline]
    #[must_use]
    pub fn translates(&self, destination: u32) -> bool {
        !self.off && !self.leaves_alone(destination)
    }

    /// Whether an address is one of the VPC's, or of the CIDRs that are excluded from translation.
    #[inline]
    #[must_use]
    pub fn leaves_alone(&self, address: u32) -> bool {
        self.untouched.iter().any(|(net, mask)| address & mask == *net)
    }

    fn new(address: u32, nat: &Nat) -> Self {
        let pair = |cidr: &Ipv4Net| (cidr.network().to_bits(), cidr.netmask().to_bits());
        Self {
            address,
            randomize: nat.randomize,
            untouched: nat.vpc_cidrs.iter().chain(&nat.exclude_cidrs).map(pair).collect(),
            off: nat.external_snat,
        }
    }
}

impl EniEntry {
    /// The Ethernet address of the next hop towards `destination`: the neighbour itself inside the subnet, the subnet's
    /// gateway otherwise.
    ///
    /// # Errors
    /// The kernel does not know it yet: the address to ask for.
    #[inline]
    pub fn next_hop(&self, snapshot: &Snapshot, destination: u32) -> Result<[u8; 6], Unresolved> {
        let (net, mask) = self.subnet;
        if destination & mask == net && destination != self.gateway {
            let known = snapshot.neighbours.get(&neighbour_key(self.ifindex, destination));
            known.copied().ok_or(Unresolved { address: destination })
        } else {
            self.gateway_mac.ok_or(Unresolved { address: self.gateway })
        }
    }
}

impl Snapshot {
    /// Compiles the first state against what the host has; every further one is for [`Snapshot::compile_after`].
    ///
    /// A pod whose interface is not there is left out with a warning (its veth may be gone before the control plane
    /// says so); packets to it are dropped as `pod_unreachable`.
    ///
    /// # Errors
    /// An ENI that the host does not have, or a port set that the host's own use left empty.
    pub fn compile(
        state: &State,
        host: &HostFacts,
        generation: u64,
    ) -> Result<(Self, Vec<String>), Vec<Invalid>> {
        Self::compile_after(state, host, generation, None)
    }

    /// [`Snapshot::compile`] that reuses what has not changed since `previous`, and tells by the policy's generation
    /// whether flows that were judged under it must be judged again.
    ///
    /// # Errors
    /// As [`Snapshot::compile`].
    pub fn compile_after(
        state: &State,
        host: &HostFacts,
        generation: u64,
        previous: Option<&Self>,
    ) -> Result<(Self, Vec<String>), Vec<Invalid>> {
        let mut findings = Vec::new();
        let mut warnings = Vec::new();
        let enis = compile_enis(state, host, &mut findings);
        let primary = state.enis.iter().position(|e| e.primary);
        for (name, set) in [("tcp", &host.tcp), ("udp", &host.udp), ("icmp", &host.icmp)] {
            if primary.is_some() && !state.nat.external_snat && set.is_empty() {
                findings.push(Invalid {
                    field: "snat_ports".into(),
                    value: state
                        .snat_ports
                        .ranges
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(","),
                    reason: format!(
                        "leaves no {name} port after the node's own are taken away: widen the ranges"
                    ),
                });
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }

        let pods = compile_pods(state, host, &mut warnings);
        let highest = enis.iter().map(|e| e.ifindex).chain(pods.iter().map(|p| p.ifindex)).max().unwrap_or(0);
        let mut links = vec![LinkIndex::None; highest as usize + 1];
        let mut hops = vec![Hop::NONE; highest as usize + 1];
        for (i, eni) in (0u32..).zip(&enis) {
            links[eni.ifindex as usize] = LinkIndex::Eni(i);
            hops[eni.ifindex as usize] = Hop::eni(eni);
        }
        for (i, pod) in (0u32..).zip(&pods) {
            links[pod.ifindex as usize] = LinkIndex::Pod(i);
            hops[pod.ifindex as usize] = Hop::pod(pod);
        }
        let local: Map<u32, ()> = host
            .local
            .iter()
            .map(|a| a.to_bits())
            .chain(enis.iter().map(|e| e.address))
            .map(|address| (address, ()))
            .collect();
        let (no_policy, no_services) = (Policy::allow_all(), Services::default());
        let (services, moved) =
            previous.map_or(&no_services, |previous| &previous.services).follow(&state.services);
        // An address that became the node's own, or ceased to be, may come before a service or after it.
        let moved = moved || previous.is_some_and(|previous| previous.local != local);
        let policy = Policy::compile(state, previous.map_or(&no_policy, |previous| &previous.policy), moved);
        let snapshot = Self {
            generation,
            snat: primary.map(|i| Snat::new(state.enis[i].address.to_bits(), &state.nat)),
            ports: [Ports::new(&host.tcp), Ports::new(&host.udp), Ports::new(&host.icmp)],
            timeouts: TimeoutsNs::from(&state.timeouts),
            policy,
            services,
            pod_by_ip: (0u32..).zip(&pods).map(|(i, p)| (p.ip, i)).collect(),
            local,
            neighbours: host
                .neighbours
                .iter()
                .map(|n| (neighbour_key(n.ifindex, n.address.to_bits()), n.mac.0))
                .collect(),
            enis,
            pods,
            links,
            hops,
        };
        Ok((snapshot, warnings))
    }

    /// What an interface index stands for.
    #[inline]
    #[must_use]
    pub fn link(&self, ifindex: u32) -> Option<Link<'_>> {
        match self.links.get(ifindex as usize)? {
            LinkIndex::None => None,
            LinkIndex::Pod(i) => Some(Link::Pod(&self.pods[*i as usize])),
            LinkIndex::Eni(i) => Some(Link::Eni(&self.enis[*i as usize])),
        }
    }

    /// What leaving by an interface takes.
    #[inline]
    pub(crate) fn hop(&self, ifindex: u32) -> &Hop {
        self.hops.get(ifindex as usize).unwrap_or(&Hop::NONE)
    }

    /// The local pod with an address.
    #[inline]
    #[must_use]
    pub fn pod(&self, ip: u32) -> Option<&PodEntry> {
        self.pod_by_ip.get(&ip).map(|i| &self.pods[*i as usize])
    }

    /// Whether an address is the node's own.
    #[inline]
    #[must_use]
    pub fn is_local(&self, ip: u32) -> bool {
        self.local.contains_key(&ip)
    }

    /// Judges a flow: as its originator's first packet comes, with the destination that it has after service DNAT.
    ///
    /// # Errors
    /// Why policy forbids it.
    #[inline]
    pub fn judge(&self, key: &FlowKey, origin: Origin) -> Result<(), Drop> {
        // A pod and its own node may always speak to each other, by way of a service as without one.
        if origin == Origin::Pod && self.is_local(key.dst()) {
            return Ok(());
        }
        let source_is_node = self.is_local(key.src());
        let in_vpc = self.snat.as_ref().is_some_and(|snat| snat.leaves_alone(key.src()));
        let circumstances =
            Circumstances { origin, source_is_node, source_may_be_pod: in_vpc && !source_is_node };
        self.policy.judge(key, circumstances)
    }

    /// The ENI by which a packet with this source must leave (EC2's source/destination check): a function of the source
    /// address after translation and of nothing else.
    #[inline]
    #[must_use]
    pub fn egress(&self, source: u32) -> Option<&EniEntry> {
        match self.pod(source) {
            Some(pod) => self.enis.get(pod.eni),
            None => self.enis.iter().find(|e| e.address == source),
        }
    }

    /// All ENIs.
    #[must_use]
    pub fn enis(&self) -> &[EniEntry] {
        &self.enis
    }

    /// All pods that have an interface.
    #[must_use]
    pub fn pods(&self) -> &[PodEntry] {
        &self.pods
    }

    /// An ENI by its number in [`PodEntry::eni`].
    #[must_use]
    pub fn eni(&self, index: usize) -> Option<&EniEntry> {
        self.enis.get(index)
    }
}

fn compile_enis(state: &State, host: &HostFacts, findings: &mut Vec<Invalid>) -> Vec<EniEntry> {
    let mut enis = Vec::with_capacity(state.enis.len());
    for (i, eni) in state.enis.iter().enumerate() {
        let Some(link) = host.enis.iter().find(|l| l.name == eni.name) else {
            let names: Vec<_> = host.enis.iter().chain(&host.links).map(|l| l.name.as_str()).collect();
            findings.push(Invalid {
                field: format!("eni[{i}].name"),
                value: eni.name.clone(),
                reason: format!(
                    "is no interface of this network namespace: there are [{}]",
                    names.join(", ")
                ),
            });
            continue;
        };
        let resolved = host.neighbours.iter().find(|n| n.ifindex == link.ifindex && n.address == eni.gateway);
        enis.push(EniEntry {
            name: eni.name.clone(),
            ifindex: link.ifindex,
            mac: link.mac.0,
            mtu: link.mtu,
            address: eni.address.to_bits(),
            gateway: eni.gateway.to_bits(),
            gateway_mac: eni.gateway_mac.or(resolved.map(|n| n.mac)).map(|m| m.0),
            subnet: (eni.subnet.network().to_bits(), eni.subnet.netmask().to_bits()),
        });
    }
    enis
}

fn compile_pods(state: &State, host: &HostFacts, warnings: &mut Vec<String>) -> Vec<PodEntry> {
    let by_name: HashMap<&str, &HostLink> = host.links.iter().map(|l| (l.name.as_str(), l)).collect();
    let mut pods = Vec::with_capacity(state.pods.len());
    for (i, pod) in state.pods.iter().enumerate() {
        let Some(link) = by_name.get(pod.interface.as_str()) else {
            warnings.push(format!(
                "pod[{i}].interface: `{}` of pod {}/{} is no interface of this network namespace: its packets are dropped as pod_unreachable until it appears",
                pod.interface, pod.namespace, pod.name
            ));
            continue;
        };
        let Some(eni) = state.enis.iter().position(|e| e.name == pod.eni) else { continue };
        pods.push(PodEntry {
            name: format!("{}/{}", pod.namespace, pod.name),
            ip: pod.ip.to_bits(),
            ifindex: link.ifindex,
            mac: pod.mac.0,
            host_mac: link.mac.0,
            mtu: link.mtu,
            eni,
        });
    }
    pods
}

fn neighbour_key(ifindex: u32, address: u32) -> u64 {
    u64::from(ifindex) << 32 | u64::from(address)
}
