//! Who may speak to whom, compiled from NetworkPolicies as far as it is the same for every packet.
//!
//! An address has an *identity*: a number for all pods that every policy treats alike. An identity lists the *selectors*
//! that match it: numbers for the peers that policies name. A pod has *rules* for each direction in which a policy isolates
//! it. So a new pod anywhere in the cluster is one address, a new set of labels one identity, and neither touches a rule.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Shared;

/// From so many changes on a pass over the whole list is cheaper than moving its tail for each.
const MANY: usize = 16;

/// A transport protocol that policies and services name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            _ => Err(format!("`{text}` is no protocol: TCP, UDP or SCTP")),
        }
    }
}

/// Everything about policy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What becomes of live flows when a policy or an identity changes.
    pub on_change: OnPolicyChange,
    /// How traffic is judged whose source the kernel has replaced by this node's address (a masqueraded `NodePort`).
    pub masqueraded_node_traffic: MasqueradedNodeTraffic,
    /// The identity of each address: every running pod of the cluster that has an address of its own.
    pub addresses: Addresses,
    /// The identities.
    #[serde(rename = "identity")]
    pub identities: Shared<Arc<Identity>>,
    /// The rules that pods have.
    pub rules: Shared<Arc<Rules>>,
    /// The pods of this node that a policy isolates. A pod that is not here is not isolated.
    #[serde(rename = "pod")]
    pub pods: Vec<PodPolicy>,
}

/// What becomes of live flows when the policy of either end, or the identity of either end's address, changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPolicyChange {
    /// They are judged again at their next packet, and revoked when they may no longer be.
    #[default]
    Recheck,
    /// They live on, as under the network policy agent of the VPC CNI.
    Keep,
}

/// How traffic from this node's address that the kernel forwards into a pod is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasqueradedNodeTraffic {
    /// It is allowed, as the VPC CNI has it. Never covers a local pod's own packets.
    #[default]
    Allow,
    /// It is judged as the node's address: an ipBlock has to allow it.
    Policy,
}

/// Identities by address, in order of address. A copy costs nothing until one of the two changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses(Shared<(Ipv4Addr, u32)>);

impl Addresses {
    /// The pairs, in order of address, each address once.
    #[must_use]
    pub fn as_slice(&self) -> &[(Ipv4Addr, u32)] {
        &self.0
    }

    /// The identity of an address.
    #[must_use]
    pub fn identity(&self, address: Ipv4Addr) -> Option<u32> {
        self.0.binary_search_by_key(&address, |(a, _)| *a).ok().map(|i| self.0[i].1)
    }

    /// Gives an address an identity.
    pub fn insert(&mut self, address: Ipv4Addr, identity: u32) {
        match self.0.binary_search_by_key(&address, |(a, _)| *a) {
            Ok(i) => self.0[i].1 = identity,
            Err(i) => self.0.insert(i, (address, identity)),
        }
    }

    /// Gives many addresses an identity; of two for one address the later one holds.
    pub fn insert_all(&mut self, pairs: &[(Ipv4Addr, u32)]) {
        if pairs.len() < MANY {
            return pairs.iter().for_each(|(address, identity)| self.insert(*address, *identity));
        }
        // A stable sort: what comes later in the list stays behind what came earlier.
        let list = &mut *self.0;
        list.extend_from_slice(pairs);
        list.sort_by_key(|(address, _)| *address);
        list.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = later.1;
            }
            same
        });
    }

    /// Takes many addresses out.
    pub fn remove_all(&mut self, gone: &[Ipv4Addr]) {
        if gone.len() < MANY {
            return gone.iter().for_each(|address| self.remove(*address));
        }
        let gone: HashSet<Ipv4Addr> = gone.iter().copied().collect();
        self.0.retain(|(address, _)| !gone.contains(address));
    }

    /// Takes an address out.
    pub fn remove(&mut self, address: Ipv4Addr) {
        if let Ok(i) = self.0.binary_search_by_key(&address, |(a, _)| *a) {
            self.0.remove(i);
        }
    }

    /// Whether the two are one copy, which tells without a look that nothing has changed.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }
}

impl From<BTreeMap<Ipv4Addr, u32>> for Addresses {
    fn from(map: BTreeMap<Ipv4Addr, u32>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(address, identity)| (address, identity)))
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs)
    }
}

/// Reads the map without building one: a hundred thousand entries come with every full resync.
struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Addresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from addresses to numbers of identities")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Addresses, A::Error> {
        let mut list: Vec<(Ipv4Addr, u32)> = Vec::new();
        while let Some(pair) = map.next_entry()? {
            list.push(pair);
        }
        list.sort_unstable_by_key(|(address, _)| *address);
        if let Some(twice) = list.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(de::Error::custom(format_args!("duplicate address `{}`", twice[0].0)));
        }
        list.shrink_to_fit();
        Ok(Addresses(list.into()))
    }
}

/// All pods that every policy treats alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its number. Small numbers: the engine indexes by them.
    pub id: u32,
    /// The selectors that match it, ascending, each once.
    #[serde(default)]
    pub selectors: Vec<u32>,
}

/// What a pod may take or send in one direction: the union of its rules. Without any rule nothing is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Its number.
    pub id: u32,
    /// The rules; one that matches is enough.
    #[serde(default, rename = "rule")]
    pub rules: Vec<Rule>,
}

/// One rule: any of its peers on any of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where it comes from, `namespace/policy ingress[0]`; shown, never interpreted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// Who: absent means everybody, an empty list nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<Peer>>,
    /// Which ports: absent means every protocol and port, an empty list none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortMatch>>,
}

/// Who a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Peer {
    /// Addresses whose identity lists this selector.
    Selector(u32),
    /// Addresses in a CIDR but in none of the exceptions; whether they are pods' or not.
    Block {
        /// The CIDR.
        cidr: Ipv4Net,
        /// Parts of it that this peer does not cover; another peer may.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<Ipv4Net>,
    },
}

/// Ports of one protocol, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMatch {
    /// The protocol.
    pub protocol: Protocol,
    /// The first destination port.
    pub first: u16,
    /// The last destination port.
    pub last: u16,
}

/// A pod of this node that some policy isolates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPolicy {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// Number of the [`Rules`] for what it takes; absent: it is not isolated in this direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u32>,
    /// Number of the [`Rules`] for what it sends; absent: it is not isolated in this direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<u32>,
}
