//! Who may speak to whom.
//!
//! A policy is asked once per flow, its egress half for a local sender and its ingress half for a local receiver, on the
//! addresses after service DNAT and before SNAT. The answer is stamped into the flow with the generation it came from;
//! an established flow pays a compare. Without any policy everything is allowed, as Kubernetes has it.
//!
//! ```text
//!  key ── source ──> pods: its egress rules ──┐
//!     └── destination ──> its ingress rules ──┤ everybody's ports, or
//!  the other end's address ──> identity ──────┤ ports of a selector that the identity lists, or
//!                        └──────────────────> └ ports of the interval of the address
//! ```
//!
//! Everything is compiled from what the one before was compiled from, so that a change costs what changed.

mod addresses;
mod intervals;
mod ports;
mod rules;

use std::sync::Arc;

use sluice_state::{Identity, MasqueradedNodeTraffic, OnPolicyChange, PodPolicy, Shared, State};

use self::addresses::Addresses;
use self::rules::Compiled;
use crate::flow::{FlowKey, Origin};
use crate::map::Map;
use crate::verdict::Drop;

/// The compiled policy of a node.
#[derive(Debug, Clone)]
pub struct Policy {
    generation: u32,
    on_change: OnPolicyChange,
    masqueraded: MasqueradedNodeTraffic,
    addresses: Addresses,
    identities: Identities,
    rules: Map<u32, Arc<Compiled>>,
    pods: Map<u32, Guard>,
    listed: Vec<PodPolicy>,
}

/// What isolates a pod; absent: nothing does, in that direction.
#[derive(Debug, Clone, Default)]
struct Guard {
    ingress: Option<Arc<Compiled>>,
    egress: Option<Arc<Compiled>>,
}

/// What is asked of a policy besides the flow's ends.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Who opened the flow.
    pub origin: Origin,
    /// The source is an address of this node.
    pub source_is_node: bool,
    /// The source lies where pods have their addresses: one that has no identity is a pod that no watch knows yet.
    pub source_may_be_pod: bool,
}

impl Policy {
    /// No policy selects any pod: everything is allowed.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            generation: 1,
            on_change: OnPolicyChange::default(),
            masqueraded: MasqueradedNodeTraffic::default(),
            addresses: Addresses::default(),
            identities: Identities::default(),
            rules: Map::default(),
            pods: Map::default(),
            listed: Vec::new(),
        }
    }

    /// Compiles what a state says, reusing what `previous` has of it.
    ///
    /// `moved`: something else that flows were judged by has changed, too (a service's endpoints).
    #[must_use]
    pub fn compile(state: &State, previous: &Self, moved: bool) -> Self {
        let wanted = &state.policy;
        let mut rules = Map::default();
        for wanted in &wanted.rules {
            let known = previous.rules.get(&wanted.id).filter(|compiled| compiled.is_of(wanted));
            let compiled = known.map_or_else(|| Arc::new(Compiled::new(wanted)), Arc::clone);
            rules.insert(wanted.id, compiled);
        }
        let guard = |pod: &PodPolicy| {
            let of = |id: Option<u32>| id.and_then(|id| rules.get(&id)).map(Arc::clone);
            (pod.ip.to_bits(), Guard { ingress: of(pod.ingress), egress: of(pod.egress) })
        };
        let pods = wanted.pods.iter().map(guard).collect();
        let mut policy = Self {
            generation: previous.generation,
            on_change: wanted.on_change,
            masqueraded: wanted.masqueraded_node_traffic,
            addresses: previous.addresses.follow(&wanted.addresses),
            identities: previous.identities.follow(&wanted.identities),
            rules,
            pods,
            listed: wanted.pods.clone(),
        };
        if moved || !policy.is_same(previous) {
            // Zero is no generation, so that a flow that was never judged cannot look as if it were.
            policy.generation = previous.generation.checked_add(1).unwrap_or(1);
        }
        policy
    }

    /// Changes whenever any verdict may have changed.
    #[inline]
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether live flows are judged again after a change.
    #[inline]
    #[must_use]
    pub fn rechecks(&self) -> bool {
        self.on_change == OnPolicyChange::Recheck
    }

    /// Judges a flow by its originator's first packet: source before SNAT, destination after service DNAT.
    ///
    /// # Errors
    /// Why it may not be: `PolicyEgress`, `PolicyIngress` or `PolicyUnknownPeer`.
    #[inline]
    pub fn judge(&self, key: &FlowKey, circumstances: Circumstances) -> Result<(), Drop> {
        if self.pods.is_empty() || key.src() == key.dst() {
            return Ok(());
        }
        if !self.egress_allows(key) {
            return Err(Drop::PolicyEgress);
        }
        let masqueraded = circumstances.origin == Origin::Kernel
            && circumstances.source_is_node
            && self.masqueraded == MasqueradedNodeTraffic::Allow;
        if masqueraded || self.ingress_allows(key) {
            return Ok(());
        }
        // An address that is nobody's yet: whether it matches a selector nobody can say.
        let unknown = circumstances.source_may_be_pod
            && self.identity(key.src()).is_none()
            && self.pods.get(&key.dst()).and_then(|g| g.ingress.as_ref()).is_some_and(|r| r.asks_identity());
        Err(if unknown { Drop::PolicyUnknownPeer } else { Drop::PolicyIngress })
    }

    /// The half of the sender: true when its egress is not isolated or a rule allows the destination.
    #[inline]
    #[must_use]
    pub fn egress_allows(&self, key: &FlowKey) -> bool {
        match self.pods.get(&key.src()).and_then(|guard| guard.egress.as_ref()) {
            Some(rules) => rules.allows(key.dst(), || self.identity(key.dst()), key.proto(), key.dport()),
            None => true,
        }
    }

    /// The half of the receiver: true when its ingress is not isolated or a rule allows the source.
    #[inline]
    #[must_use]
    pub fn ingress_allows(&self, key: &FlowKey) -> bool {
        match self.pods.get(&key.dst()).and_then(|guard| guard.ingress.as_ref()) {
            Some(rules) => rules.allows(key.src(), || self.identity(key.src()), key.proto(), key.dport()),
            None => true,
        }
    }

    /// The selectors that an address matches; none when no identity is known for it.
    #[inline]
    fn identity(&self, address: u32) -> Option<&[u32]> {
        let number = self.addresses.identity(address)?;
        let identity = self.identities.numbered.get(number as usize)?.as_ref()?;
        Some(&identity.selectors)
    }

    /// Whether both give the same verdict on everything. May say no where they do, never the other way round.
    fn is_same(&self, other: &Self) -> bool {
        let same_rules = |(id, rules): (&u32, &Arc<Compiled>)| {
            other.rules.get(id).is_some_and(|known| Arc::ptr_eq(known, rules))
        };
        self.masqueraded == other.masqueraded
            && self.on_change == other.on_change
            && self.addresses.is_same(&other.addresses)
            && self.listed == other.listed
            && self.rules.len() == other.rules.len()
            && self.rules.iter().all(same_rules)
            && self.identities.is_same(&other.identities)
    }
}

/// The identities by number, and the list that they come from.
#[derive(Debug, Clone, Default)]
struct Identities {
    numbered: Arc<[Option<Arc<Identity>>]>,
    listed: Shared<Arc<Identity>>,
}

impl Identities {
    /// Those of `listed`, which are these when the list is the same one.
    fn follow(&self, listed: &Shared<Arc<Identity>>) -> Self {
        if self.listed.is_same(listed) {
            return self.clone();
        }
        let highest = listed.iter().map(|identity| identity.id as usize + 1).max();
        let mut numbered = vec![None; highest.unwrap_or(0)];
        for identity in listed {
            numbered[identity.id as usize] = Some(Arc::clone(identity));
        }
        Self { numbered: numbered.into(), listed: listed.clone() }
    }

    fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Option<Arc<Identity>>, &Option<Arc<Identity>>)| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&self.numbered, &other.numbered)
            || self.numbered.len() == other.numbered.len()
                && self.numbered.iter().zip(other.numbered.iter()).all(same)
    }
}

#[cfg(test)]
mod tests;
