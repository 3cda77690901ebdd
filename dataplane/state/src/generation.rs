//! Numbered changes: what travels over the state socket.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Eni, Nat, Node, Pod, SnatPorts, State, StateError, Timeouts};

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
}

impl State {
    /// The state after a generation; this one stays as it is.
    ///
    /// # Errors
    /// The result fails [`State::check`]; nothing of the generation is then in force.
    pub fn apply(&self, generation: &Generation) -> Result<Self, StateError> {
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
            }
        }
        next.check().map(|()| next)
    }
}

fn upsert<T: Clone>(list: &mut Vec<T>, item: &T, same: impl Fn(&T) -> bool) {
    match list.iter_mut().find(|x| same(x)) {
        Some(slot) => *slot = item.clone(),
        None => list.push(item.clone()),
    }
}
