//! What isolates the pods of this node. Pods that the same policies select share one set of rules, unless these have
//! ports by name that the pods resolve differently.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use sluice_state::{Peer, PodPolicy, PortMatch, Rule, Rules};

use super::intern::NamedPort;
use super::peers::{Peers, Term};
use super::{EnforcingMode, Hashing, World};
use crate::numbers::Numbers;
use crate::spec::{PortName, Spec, SpecRule, Who};

/// What a port's name stands for in the cluster, by name.
pub(super) type PortNumbers = HashMap<PortName, BTreeMap<u16, usize>, Hashing>;

#[derive(Debug)]
pub(super) struct PolicyEntry {
    pub(super) spec: Arc<Spec>,
    /// The selectors that it uses, each as often as it does.
    pub(super) terms: Vec<u32>,
    ingress: Vec<IngressRule>,
    egress: Vec<Rule>,
}

/// A rule whose ports by name are resolved by the pod that has it.
#[derive(Debug, Clone, PartialEq)]
struct IngressRule {
    rule: Rule,
    names: Vec<PortName>,
}

impl PolicyEntry {
    pub(super) fn new(spec: Arc<Spec>) -> Self {
        Self { spec, terms: Vec::new(), ingress: Vec::new(), egress: Vec::new() }
    }

    /// Compiles the policy anew; true if its rules are others than before.
    pub(super) fn compile(&mut self, peers: &mut Peers, ports: &PortNumbers) -> bool {
        let mut compiler = Compiler { peers, terms: Vec::new() };
        let ingress = self.spec.ingress.iter().flatten().filter_map(|r| compiler.ingress(r)).collect();
        let egress =
            self.spec.egress.iter().flatten().flat_map(|r| compiler.egress(r, ports)).collect::<Vec<_>>();
        let terms = compiler.terms;
        // The new ones are held before the old ones go: what both use keeps its number.
        std::mem::replace(&mut self.terms, terms).into_iter().for_each(|term| peers.release(term));
        let same = self.ingress == ingress && self.egress == egress;
        (self.ingress, self.egress) = (ingress, egress);
        !same
    }

    /// It has an egress rule with one of these names of ports.
    pub(super) fn uses(&self, names: &HashSet<PortName, Hashing>) -> bool {
        self.spec.egress.iter().flatten().flat_map(SpecRule::names).any(|name| names.contains(name))
    }
}

struct Compiler<'a> {
    peers: &'a mut Peers,
    terms: Vec<u32>,
}

impl Compiler<'_> {
    fn ingress(&mut self, rule: &SpecRule) -> Option<IngressRule> {
        let names: Vec<PortName> = rule.names().cloned().collect();
        let rule = self.plain(rule)?;
        Some(IngressRule { rule, names })
    }

    /// Numbers apply as they are. A name applies to the pods that have it, each of the numbers that it stands for in the
    /// cluster to those where it does: one rule for each number.
    fn egress(&mut self, rule: &SpecRule, ports: &PortNumbers) -> Vec<Rule> {
        let plain = self.plain(rule).filter(|r| r.ports.as_ref().is_none_or(|list| !list.is_empty()));
        let mut rules: Vec<Rule> = plain.into_iter().collect();
        for name in rule.names() {
            for number in ports.get(name).into_iter().flat_map(BTreeMap::keys) {
                let every_pod = [Who::EveryPod];
                let who = rule.peers.as_deref().unwrap_or(&every_pod);
                let named = || Some((name.clone(), *number));
                let peers = who.iter().map(|who| self.selector(Term { who: who.clone(), named: named() }));
                let peers: Vec<Peer> = peers.collect();
                let port = PortMatch { protocol: name.protocol, first: *number, last: *number };
                if !peers.is_empty() {
                    let origin = rule.origin.to_string();
                    rules.push(Rule { origin, peers: Some(peers), ports: Some(vec![port]) });
                }
            }
        }
        rules
    }

    /// The rule with its ports by number. A rule about nobody is none.
    fn plain(&mut self, rule: &SpecRule) -> Option<Rule> {
        let peers = match &rule.peers {
            None => None,
            Some(list) if list.is_empty() => return None,
            Some(list) => {
                let peer = |who: &Who| match who {
                    Who::Block { cidr, except } => Peer::Block { cidr: *cidr, except: except.clone() },
                    Who::EveryPod | Who::Pods { .. } => self.selector(Term { who: who.clone(), named: None }),
                };
                Some(list.iter().map(peer).collect())
            }
        };
        Some(Rule { origin: rule.origin.to_string(), peers, ports: rule.numbers() })
    }

    fn selector(&mut self, term: Term) -> Peer {
        let id = self.peers.acquire(term);
        self.terms.push(id);
        Peer::Selector(id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// What rules are made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RulesKey {
    direction: Direction,
    /// In order of name. None: nothing is allowed, and no policy says so (strict mode).
    policies: Vec<u32>,
    /// The pod's ports by name, if one of the policies uses one.
    named: Option<Arc<[NamedPort]>>,
}

#[derive(Debug, Default)]
pub(super) struct RulesTable {
    numbers: Numbers,
    by_key: HashMap<Arc<RulesKey>, u32, Hashing>,
    entries: HashMap<u32, RulesEntry, Hashing>,
    changed: HashSet<u32, Hashing>,
}

#[derive(Debug)]
struct RulesEntry {
    key: Arc<RulesKey>,
    rules: Arc<Rules>,
    users: usize,
}

impl RulesTable {
    fn acquire(&mut self, key: RulesKey, content: impl FnOnce() -> Vec<Rule>) -> u32 {
        if let Some(id) = self.by_key.get(&key) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.users += 1;
            }
            return *id;
        }
        let (id, key) = (self.numbers.take(), Arc::new(key));
        let rules = Arc::new(Rules { id, rules: content() });
        self.by_key.insert(key.clone(), id);
        self.entries.insert(id, RulesEntry { key, rules, users: 1 });
        self.changed.insert(id);
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.users -= 1;
        if entry.users == 0
            && let Some(entry) = self.entries.remove(&id)
        {
            self.by_key.remove(&entry.key);
            self.numbers.give(id);
            self.changed.insert(id);
        }
    }

    /// The rules that came or changed, and those that went, since this was last asked.
    pub(super) fn changed(&mut self) -> (Vec<Arc<Rules>>, Vec<u32>) {
        let mut changed: Vec<u32> = std::mem::take(&mut self.changed).into_iter().collect();
        changed.sort_unstable();
        let gone = changed.iter().filter(|id| !self.entries.contains_key(*id)).copied().collect();
        let there = changed.iter().filter_map(|id| Some(self.entries.get(id)?.rules.clone()));
        (there.collect(), gone)
    }

    /// All rules, by number.
    pub(super) fn all(&self) -> Vec<Arc<Rules>> {
        let mut all: Vec<Arc<Rules>> = self.entries.values().map(|e| e.rules.clone()).collect();
        all.sort_unstable_by_key(|rules| rules.id);
        all
    }
}

impl World {
    /// Compiles what isolates the pod with this address. The caller releases the rules that it had.
    pub(super) fn isolate(&mut self, address: Ipv4Addr) -> Option<PodPolicy> {
        let entry = self.local_owner(address).and_then(|id| self.pods.get(id))?;
        let namespace = self.namespaces.get(&entry.pod.namespace)?;
        let selecting: Vec<u32> = namespace
            .policies
            .values()
            .filter(|id| self.policies.get(*id).is_some_and(|p| p.spec.subject.matches(&entry.pod.labels)))
            .copied()
            .collect();
        let strict = selecting.is_empty() && self.settings.mode == EnforcingMode::Strict;
        let named = entry.named.clone();
        let mut rules = |direction| {
            let isolating = |id: &&u32| {
                self.policies.get(*id).is_some_and(|p| match direction {
                    Direction::Ingress => p.spec.ingress.is_some(),
                    Direction::Egress => p.spec.egress.is_some(),
                })
            };
            let policies: Vec<u32> = selecting.iter().filter(isolating).copied().collect();
            if policies.is_empty() && !strict {
                return None;
            }
            let entries = || policies.iter().filter_map(|id| self.policies.get(id));
            let resolves = direction == Direction::Ingress
                && entries().any(|p| p.ingress.iter().any(|rule| !rule.names.is_empty()));
            let key =
                RulesKey { direction, policies: policies.clone(), named: resolves.then(|| named.clone()) };
            Some(self.rules.acquire(key.clone(), || content(&key, &self.policies)))
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
        (ingress.is_some() || egress.is_some()).then_some(PodPolicy { ip: address, ingress, egress })
    }

    /// Makes the rules anew that come from policies whose rules are others now.
    pub(super) fn rebuild_rules(&mut self, policies: &HashSet<u32, Hashing>) {
        for (id, entry) in &mut self.rules.entries {
            if !entry.key.policies.iter().any(|p| policies.contains(p)) {
                continue;
            }
            let rules = content(&entry.key, &self.policies);
            if entry.rules.rules != rules {
                entry.rules = Arc::new(Rules { id: *id, rules });
                self.rules.changed.insert(*id);
            }
        }
    }
}

fn content(key: &RulesKey, policies: &HashMap<u32, PolicyEntry, Hashing>) -> Vec<Rule> {
    let policies = key.policies.iter().filter_map(|id| policies.get(id));
    match key.direction {
        Direction::Egress => policies.flat_map(|p| p.egress.iter().cloned()).collect(),
        Direction::Ingress => {
            let named = key.named.as_deref().unwrap_or_default();
            policies.flat_map(|p| &p.ingress).filter_map(|rule| resolve(rule, named)).collect()
        }
    }
}

/// A rule with ports of which the pod has none is none.
fn resolve(rule: &IngressRule, named: &[NamedPort]) -> Option<Rule> {
    let mut rule_with = rule.rule.clone();
    let Some(ports) = &mut rule_with.ports else { return Some(rule_with) };
    for port in &rule.names {
        let numbers =
            named.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        ports.extend(numbers.map(|(_, protocol, n)| PortMatch { protocol: *protocol, first: *n, last: *n }));
    }
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then_some(rule_with)
}
