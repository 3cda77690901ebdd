//! What nobody writes into manifests because a cluster decides it: nodes, addresses, node ports.
//!
//! All choices are stable: a choice holds while its object exists, [`Allocations`] carries it over a restart, and what has
//! never been chosen begins at a hash of its name, so that one object more moves no other.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The node ports of a cluster that says nothing else.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Where things go.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// Name of this node.
    pub node: String,
    /// The nodes, this one among them; manifests may add more, and say more of these.
    pub nodes: Vec<NodePlace>,
    /// The places for pods on this node; absent: its pods get addresses from its `pod_cidr`.
    pub slots: Option<Vec<Slot>>,
    /// The ranges of cluster IPs; given out from the first.
    pub service_cidrs: Vec<Ipv4Net>,
    /// The range of node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Where the addresses of pods come from whose node nothing describes; absent: they have none.
    pub elsewhere: Option<Ipv4Net>,
}

impl Default for Placement {
    /// A node `node` with room for every pod, for who only wants to know what manifests come to.
    fn default() -> Self {
        let net = |octets: [u8; 4], length| Ipv4Net::new_assert(octets.into(), length);
        let address = Ipv4Addr::new(10, 0, 0, 1);
        let pod_cidr = Some(net([100, 64, 0, 0], 11));
        let here =
            NodePlace { name: "node".into(), addresses: vec![address], pod_cidr, ..NodePlace::default() };
        Self {
            node: here.name.clone(),
            nodes: vec![here],
            slots: None,
            service_cidrs: vec![net([172, 20, 0, 0], 16), net([10, 0, 0, 0], 8)],
            node_ports: NODE_PORTS,
            elsewhere: Some(net([100, 96, 0, 0], 11)),
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePlace {
    /// Its name.
    pub name: String,
    /// Its own addresses, the first is its `InternalIP`.
    pub addresses: Vec<Ipv4Addr>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where its pods' addresses come from.
    pub pod_cidr: Option<Ipv4Net>,
}

/// A place for a pod on this node: an address, and an interface that whoever holds the slots knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The address.
    pub ip: Ipv4Addr,
    /// Namespace and name of the only pod that may have it; absent: any.
    pub pod: Option<(String, String)>,
}

impl Slot {
    /// A place that is no more; its number stays, so that others keep theirs.
    pub(super) fn closed() -> Self {
        Self { ip: Ipv4Addr::UNSPECIFIED, pod: Some((String::new(), String::new())) }
    }

    /// Nobody can have it.
    pub(super) fn is_closed(&self) -> bool {
        self.ip.is_unspecified()
    }
}

/// What was chosen, to be chosen again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Allocations {
    /// Addresses of this node's pods, by `namespace/name`.
    pub pods: BTreeMap<String, Ipv4Addr>,
    /// Cluster IPs, by `namespace/name`.
    pub cluster_ips: BTreeMap<String, Ipv4Addr>,
    /// Node ports, by `namespace/name:port/protocol`.
    pub node_ports: BTreeMap<String, u16>,
}

/// Addresses or ports that are given out to names.
#[derive(Debug)]
pub(super) struct Pool {
    first: u32,
    size: u32,
    taken: HashSet<u32>,
}

impl Pool {
    /// The addresses of a network, as numbers, but its first, which is its own name, its second, which is a gateway or the
    /// API's, and its last.
    pub(super) fn addresses(net: Ipv4Net) -> Self {
        let first = net.network().to_bits().saturating_add(2);
        let size = net.broadcast().to_bits().saturating_sub(first);
        Self { first, size, taken: HashSet::new() }
    }

    /// The ports of a range.
    pub(super) fn ports(range: &RangeInclusive<u16>) -> Self {
        let (first, last) = (u32::from(*range.start()), u32::from(*range.end()));
        Self { first, size: (last + 1).saturating_sub(first), taken: HashSet::new() }
    }

    /// Takes a choice; false when somebody has it.
    pub(super) fn take(&mut self, choice: u32) -> bool {
        self.taken.insert(choice)
    }

    /// Gives a choice back.
    pub(super) fn give_back(&mut self, choice: u32) {
        self.taken.remove(&choice);
    }

    /// A free choice for a name: the first from the name's hash on. None when all are taken.
    pub(super) fn choose(&mut self, name: &str) -> Option<u32> {
        let start = u32::try_from(hash(name).checked_rem(u64::from(self.size))?).ok()?;
        let candidates = (start..self.size).chain(0..start).map(|i| self.first + i);
        let choice = candidates.into_iter().find(|choice| !self.taken.contains(choice))?;
        self.taken.insert(choice);
        Some(choice)
    }
}

/// FNV-1a with a last mix: the same on every machine and in every version.
fn hash(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_depends_on_the_name_and_moves_only_for_a_collision() {
        let mut pool = Pool::addresses("10.96.0.0/24".parse().unwrap());
        let chosen = pool.choose("a/web").unwrap();
        let mut other = Pool::addresses("10.96.0.0/24".parse().unwrap());
        assert_eq!(other.choose("a/web"), Some(chosen));
        pool.give_back(chosen);
        assert_eq!(pool.choose("a/web"), Some(chosen));
        assert_ne!(pool.choose("a/web"), Some(chosen));
    }

    #[test]
    fn a_pool_gives_out_everything_once_and_then_nothing() {
        let mut pool = Pool::addresses("10.96.0.0/29".parse().unwrap());
        let mut all: Vec<_> = (0..5).map(|i| pool.choose(&format!("n/{i}")).unwrap()).collect();
        all.sort_unstable();
        let wanted: Vec<_> = (2..7).map(|last| Ipv4Addr::new(10, 96, 0, last).to_bits()).collect();
        assert_eq!(all, wanted);
        assert_eq!(pool.choose("n/6"), None);
        assert_eq!(Pool::addresses("10.0.0.1/32".parse().unwrap()).choose("x"), None);
        assert_eq!(Pool::ports(&(30_000..=30_000)).choose("x"), Some(30_000));
    }
}
