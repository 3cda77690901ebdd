//! Why a connection is allowed or not: both halves judged from the policies as they are written, not from what they were
//! compiled to, so that a question about one is no answer from the other. Both nodes' halves are told, whichever is ours.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_state::Protocol;

use super::intern::NamedPort;
use super::rules::Direction;
use super::{EnforcingMode, PodEntry, World};
use crate::spec::{Scope, Spec, SpecPort, SpecRule, Who};

/// A connection to ask about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Who opens it.
    pub from: End,
    /// Whom it is for, after any service has chosen an endpoint.
    pub to: End,
    /// Its protocol; absent: ICMP, or another that has no ports.
    pub protocol: Option<Protocol>,
    /// Its destination port; means nothing without a protocol.
    pub port: u16,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// An address. If it is a live pod's or a node's, it stands for that one.
    Address(Ipv4Addr),
    /// A process in a node's own network.
    Node(Arc<str>),
}

impl std::str::FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(node) = text.strip_prefix("node:") {
            return Ok(Self::Node(node.into()));
        }
        let text = text.strip_prefix("pod:").or_else(|| text.strip_prefix("ip:")).unwrap_or(text);
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!(
                "`{text}` names no end of a connection: NAMESPACE/POD, an IPv4 address, or node:NAME"
            )),
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Node(name) => write!(f, "node:{name}"),
        }
    }
}

/// What becomes of a connection, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// What the sender may send.
    pub egress: Half,
    /// What the receiver may take.
    pub ingress: Half,
    /// What else there is to say; also why it cannot be judged, where an end is unknown or has no address.
    pub notes: Vec<String>,
}

impl Decision {
    /// Both halves are allowed.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// One half of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Half {
    /// Some policy isolates the pod in this direction, or the strict mode does.
    pub isolated: bool,
    /// It may pass.
    pub allowed: bool,
    /// The policies that isolate the pod in this direction, `namespace/name`.
    pub policies: Vec<String>,
    /// Their rules that allow this, `namespace/name ingress[0]`.
    pub rules: Vec<String>,
}

impl Half {
    fn open() -> Self {
        Self { allowed: true, ..Self::default() }
    }
}

/// An end as policies see it.
struct Party<'a> {
    address: Ipv4Addr,
    node: Option<&'a str>,
    /// Absent: no pod with an address of its own.
    pod: Option<&'a PodEntry>,
}

impl World {
    /// What becomes of a connection, and which policies and rules decide it.
    #[must_use]
    pub fn decide(&self, probe: &Probe) -> Decision {
        let mut notes = Vec::new();
        let parties = (self.party(&probe.from, &mut notes), self.party(&probe.to, &mut notes));
        let (Some(from), Some(to)) = parties else { return Decision { notes, ..Decision::default() } };
        if from.address == to.address {
            notes.push("a pod always reaches itself".to_owned());
            return Decision { egress: Half::open(), ingress: Half::open(), notes };
        }
        if from.pod.is_some() != to.pod.is_some() && from.node.is_some() && from.node == to.node {
            notes.push("a pod and the node that it runs on always reach each other".to_owned());
            return Decision { egress: Half::open(), ingress: Half::open(), notes };
        }
        let egress = self.half(Direction::Egress, &from, &to, probe, &mut notes);
        let ingress = self.half(Direction::Ingress, &to, &from, probe, &mut notes);
        Decision { egress, ingress, notes }
    }

    fn party(&self, end: &End, notes: &mut Vec<String>) -> Option<Party<'_>> {
        match end {
            End::Pod { namespace, name } => {
                let id = self.namespaces.get(namespace).and_then(|n| n.pods.get(name));
                if let Some(entry) = id.and_then(|id| self.pods.get(*id)) {
                    return self.party_of_pod(entry, notes);
                }
                notes.push(format!("there is no pod {namespace}/{name}"));
                None
            }
            End::Node(name) => {
                let node = self.nodes.get(name);
                if let Some((node, address)) = node.and_then(|n| Some((n, n.addresses.first()?))) {
                    return Some(Party { address: *address, node: Some(&node.name), pod: None });
                }
                notes.push(format!("there is no node {name} with an IPv4 address"));
                None
            }
            End::Address(address) => {
                if let Some(entry) = self.owner(*address).and_then(|id| self.pods.get(id)) {
                    return self.party_of_pod(entry, notes);
                }
                let node = self.nodes.values().find(|node| node.addresses.contains(address));
                Some(Party { address: *address, node: node.map(|n| &*n.name), pod: None })
            }
        }
    }

    fn party_of_pod<'a>(&'a self, entry: &'a PodEntry, notes: &mut Vec<String>) -> Option<Party<'a>> {
        let pod = &entry.pod;
        if let Some(address) = pod.address() {
            return Some(Party { address, node: pod.node.as_deref(), pod: Some(entry) });
        }
        let of_node = || self.nodes.get(pod.node.as_ref()?)?.addresses.first().copied();
        if pod.host_network {
            if let Some(address) = pod.ip.or_else(of_node) {
                return Some(Party { address, node: pod.node.as_deref(), pod: None });
            }
            notes
                .push(format!("{}/{} is on its node's network, which is not known", pod.namespace, pod.name));
            return None;
        }
        notes.push(format!("{}/{} has no address ({:?})", pod.namespace, pod.name, pod.phase));
        None
    }

    fn half(
        &self,
        direction: Direction,
        subject: &Party<'_>,
        peer: &Party<'_>,
        probe: &Probe,
        notes: &mut Vec<String>,
    ) -> Half {
        let Some(entry) = subject.pod else { return Half::open() };
        let policies =
            self.namespaces.get(&entry.pod.namespace).into_iter().flat_map(|n| n.policies.values());
        let policies = policies.filter_map(|id| self.policies.get(id)).map(|policy| &policy.spec);
        let selecting: Vec<&Arc<Spec>> = policies.filter(|s| s.subject.matches(&entry.pod.labels)).collect();
        if selecting.is_empty() && self.settings.mode == EnforcingMode::Strict {
            notes.push(format!(
                "no policy selects {}/{}, and the enforcing mode is strict",
                entry.pod.namespace, entry.pod.name
            ));
            return Half { isolated: true, ..Half::default() };
        }
        let destination = if direction == Direction::Ingress { subject } else { peer };
        let named = destination.pod.map(|entry| &*entry.named).unwrap_or_default();
        let mut half = Half::open();
        for spec in selecting {
            let rules = match direction {
                Direction::Ingress => spec.ingress.as_ref(),
                Direction::Egress => spec.egress.as_ref(),
            };
            let Some(rules) = rules else { continue };
            half.isolated = true;
            half.policies.push(format!("{}/{}", spec.namespace, spec.name));
            let allowing = rules
                .iter()
                .filter(|rule| self.rule_is_about(rule, peer) && rule_has_port(rule, probe, named));
            half.rules.extend(allowing.map(|rule| rule.origin.to_string()));
        }
        half.allowed = !half.isolated || !half.rules.is_empty();
        half
    }

    fn rule_is_about(&self, rule: &SpecRule, peer: &Party<'_>) -> bool {
        let Some(peers) = &rule.peers else { return true };
        peers.iter().any(|who| match who {
            Who::EveryPod => peer.pod.is_some(),
            Who::Block { cidr, except } => {
                cidr.contains(&peer.address) && !except.iter().any(|part| part.contains(&peer.address))
            }
            Who::Pods { namespaces, pods } => peer.pod.is_some_and(|entry| {
                let pod = &entry.pod;
                let labels = self.namespaces.get(&pod.namespace).and_then(|n| n.labels.as_ref());
                let namespace = match namespaces {
                    Scope::Own(own) => *own == pod.namespace,
                    Scope::Selected(selector) => labels.is_some_and(|labels| selector.matches(labels)),
                };
                namespace && pods.matches(&pod.labels)
            }),
        })
    }
}

fn rule_has_port(rule: &SpecRule, probe: &Probe, named: &[NamedPort]) -> bool {
    let Some(ports) = &rule.ports else { return true };
    let Some(protocol) = probe.protocol else { return false };
    ports.iter().any(|port| match port {
        SpecPort::Numbers(range) => {
            range.protocol == protocol && (range.first..=range.last).contains(&probe.port)
        }
        SpecPort::Named(wanted) => named.iter().any(|(name, p, number)| {
            *name == wanted.name && *p == wanted.protocol && *p == protocol && *number == probe.port
        }),
    })
}
