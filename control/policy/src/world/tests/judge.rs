//! What the engine makes of a compiled policy, in the plainest words.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use sluice_state::{Peer, PodPolicy, Policy, Protocol, Rule, Rules};

/// A compiled policy, indexed.
pub(super) struct Judge<'a> {
    policy: &'a Policy,
    identities: HashMap<u32, &'a [u32]>,
    rules: HashMap<u32, &'a Rules>,
    pods: HashMap<Ipv4Addr, &'a PodPolicy>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        Self {
            policy,
            identities: policy.identities.iter().map(|i| (i.id, i.selectors.as_slice())).collect(),
            rules: policy.rules.iter().map(|r| (r.id, &**r)).collect(),
            pods: policy.pods.iter().map(|p| (p.ip, p)).collect(),
        }
    }

    /// What the pod that sends may send; no port: a protocol without any.
    pub(super) fn egress(&self, from: Ipv4Addr, to: Ipv4Addr, port: Option<(Protocol, u16)>) -> bool {
        self.half(self.pods.get(&from).and_then(|p| p.egress), to, port)
    }

    /// What the pod that receives may take.
    pub(super) fn ingress(&self, from: Ipv4Addr, to: Ipv4Addr, port: Option<(Protocol, u16)>) -> bool {
        self.half(self.pods.get(&to).and_then(|p| p.ingress), from, port)
    }

    fn half(&self, rules: Option<u32>, peer: Ipv4Addr, port: Option<(Protocol, u16)>) -> bool {
        let Some(rules) = rules else { return true };
        self.rules[&rules].rules.iter().any(|rule| self.peer(rule, peer) && ports(rule, port))
    }

    fn peer(&self, rule: &Rule, address: Ipv4Addr) -> bool {
        let Some(peers) = &rule.peers else { return true };
        let selectors = self.policy.addresses.identity(address).map(|id| self.identities[&id]);
        peers.iter().any(|peer| match peer {
            Peer::Selector(selector) => selectors.is_some_and(|list| list.contains(selector)),
            Peer::Block { cidr, except } => {
                cidr.contains(&address) && !except.iter().any(|e| e.contains(&address))
            }
        })
    }
}

fn ports(rule: &Rule, port: Option<(Protocol, u16)>) -> bool {
    let Some(ports) = &rule.ports else { return true };
    port.is_some_and(|(protocol, port)| {
        ports.iter().any(|p| p.protocol == protocol && (p.first..=p.last).contains(&port))
    })
}
