//! Numbered changes: what travels over the state socket.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    Eni, Identity, MasqueradedNodeTraffic, Nat, Node, OnPolicyChange, Pod, PodPolicy, Policy, Rules, Service,
    Services, SnatPorts, State, StateError, Timeouts,
};

/// A set of changes that comes into force as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Its number; each generation's is higher than that of the one before.
    pub number: u64,
    /// The changes, applied in order.
    pub ops: Vec<Op>,
}

/// One keyed change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Replaces everything: a full resync.
    Replace(Box<State>),
    /// Adds a pod or replaces the one with its address.
    UpsertPod(Pod),
    /// Removes the pod with this address; absent is no error.
    DeletePod(Ipv4Addr),
    /// Adds an ENI or replaces the one of its name.
    UpsertEni(Eni),
    /// Removes the ENI of this name; absent is no error.
    DeleteEni(String),
    /// Replaces the node's own settings.
    Node(Node),
    /// Replaces what is translated.
    Nat(Nat),
    /// Replaces the port contract.
    SnatPorts(SnatPorts),
    /// Replaces the timeouts.
    Timeouts(Timeouts),
    /// Replaces everything about policy.
    Policy(Box<Policy>),
    /// Replaces what becomes of live flows when policy changes, and how masqueraded traffic is judged.
    PolicySettings {
        /// See [`Policy::on_change`].
        on_change: OnPolicyChange,
        /// See [`Policy::masqueraded_node_traffic`].
        masqueraded_node_traffic: MasqueradedNodeTraffic,
    },
    /// Gives addresses an identity.
    UpsertAddresses(Vec<(Ipv4Addr, u32)>),
    /// Takes the identity of addresses away; absent is no error.
    DeleteAddresses(Vec<Ipv4Addr>),
    /// Adds an identity or replaces the one of its number.
    UpsertIdentity(Arc<Identity>),
    /// Removes the identity of this number; absent is no error.
    DeleteIdentity(u32),
    /// Adds rules or replaces the ones of their number.
    UpsertRules(Arc<Rules>),
    /// Removes the rules of this number; absent is no error.
    DeleteRules(u32),
    /// Isolates a pod, or replaces what it has.
    UpsertPodPolicy(PodPolicy),
    /// Ends the isolation of the pod with this address; absent is no error.
    DeletePodPolicy(Ipv4Addr),
    /// Replaces everything about services.
    Services(Box<Services>),
    /// Replaces the service ranges.
    ServiceCidrs(Vec<Ipv4Net>),
    /// Adds a service or replaces the one of its name.
    UpsertService(Arc<Service>),
    /// Removes the service of this name; absent is no error.
    DeleteService(String),
}

impl Op {
    /// It is about the node, its pods and its ENIs, not about policy or services.
    pub(crate) const fn is_of_node(&self) -> bool {
        matches!(
            self,
            Self::UpsertPod(_)
                | Self::DeletePod(_)
                | Self::UpsertEni(_)
                | Self::DeleteEni(_)
                | Self::Node(_)
                | Self::Nat(_)
                | Self::SnatPorts(_)
                | Self::Timeouts(_)
        )
    }
}

impl State {
    /// The state after a generation; this one stays as it is. It is taken to be valid, so that only what the generation
    /// touches is checked: a change of one address must not cost a look at a hundred thousand.
    ///
    /// # Errors
    /// The result fails [`State::check`]; nothing of the generation is then in force.
    pub fn apply(&self, generation: &Generation) -> Result<Self, StateError> {
        let next = self.changed(generation);
        next.check_after(&generation.ops).map(|()| next)
    }

    /// The state after a generation, valid or not.
    pub(crate) fn changed(&self, generation: &Generation) -> Self {
        let mut next = self.clone();
        for op in &generation.ops {
            match op {
                Op::Replace(state) => next = (**state).clone(),
                Op::UpsertPod(pod) => upsert(&mut next.pods, pod, |p| p.ip == pod.ip),
                Op::DeletePod(ip) => next.pods.retain(|p| p.ip != *ip),
                Op::UpsertEni(eni) => upsert(&mut next.enis, eni, |e| e.name == eni.name),
                Op::DeleteEni(name) => next.enis.retain(|e| e.name != *name),
                Op::Node(node) => next.node = node.clone(),
                Op::Nat(nat) => next.nat = nat.clone(),
                Op::SnatPorts(ports) => next.snat_ports = ports.clone(),
                Op::Timeouts(timeouts) => next.timeouts = timeouts.clone(),
                Op::Policy(policy) => next.policy = (**policy).clone(),
                Op::PolicySettings { on_change, masqueraded_node_traffic } => {
                    next.policy.on_change = *on_change;
                    next.policy.masqueraded_node_traffic = *masqueraded_node_traffic;
                }
                Op::UpsertAddresses(pairs) => next.policy.addresses.insert_all(pairs),
                Op::DeleteAddresses(gone) => next.policy.addresses.remove_all(gone),
                Op::UpsertIdentity(identity) => {
                    upsert(&mut next.policy.identities, identity, |i| i.id == identity.id);
                }
                Op::DeleteIdentity(id) => next.policy.identities.retain(|i| i.id != *id),
                Op::UpsertRules(rules) => upsert(&mut next.policy.rules, rules, |r| r.id == rules.id),
                Op::DeleteRules(id) => next.policy.rules.retain(|r| r.id != *id),
                Op::UpsertPodPolicy(pod) => upsert(&mut next.policy.pods, pod, |p| p.ip == pod.ip),
                Op::DeletePodPolicy(ip) => next.policy.pods.retain(|p| p.ip != *ip),
                Op::Services(services) => next.services = (**services).clone(),
                Op::ServiceCidrs(cidrs) => next.services.cidrs.clone_from(cidrs),
                Op::UpsertService(service) => {
                    upsert(&mut next.services.services, service, |s| s.name == service.name);
                }
                Op::DeleteService(name) => next.services.services.retain(|s| s.name != *name),
            }
        }
        next
    }
}

fn upsert<T: Clone>(list: &mut Vec<T>, item: &T, same: impl Fn(&T) -> bool) {
    match list.iter_mut().find(|x| same(x)) {
        Some(slot) => *slot = item.clone(),
        None => list.push(item.clone()),
    }
}
