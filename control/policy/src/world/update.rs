//! From marks to operations: what of the engine's state is different now.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_state::{Op, Policy};

use super::World;
use super::peers::{Candidate, Term};
use crate::spec::Who;
use crate::{Kind, ObjectId};

/// More new selectors than this at once, and it is cheaper to look at every class once than at some for each of them.
const MANY: usize = 64;

/// What is different since the last update.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Operations for one generation; none: nothing changed for the engine.
    pub ops: Vec<Op>,
    /// What a user should know about the objects that changed.
    pub findings: Vec<Finding>,
}

/// Something about an object that is valid, but hardly meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object.
    pub object: ObjectId,
    /// One word for it.
    pub word: &'static str,
    /// What is the matter, and what is done about it.
    pub reason: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

impl World {
    /// Settles what was applied since the last update, and says what is different for the engine. The first time that
    /// is everything.
    pub fn update(&mut self) -> Update {
        let mut findings = Vec::new();
        self.settle_policies(&mut findings);
        self.settle_classes();
        let mut ops = self.settle_addresses(&mut findings);
        ops.extend(self.settle_subjects());
        let services = self.settle_services(&mut findings);
        let (rules, gone_rules) = self.rules.changed();
        let (identities, gone_identities) = self.classes.changed();
        // What others refer to comes first and goes last.
        let mut all: Vec<Op> = identities.into_iter().map(Op::UpsertIdentity).collect();
        all.extend(rules.into_iter().map(Op::UpsertRules));
        all.extend(ops);
        all.extend(gone_rules.into_iter().map(Op::DeleteRules));
        all.extend(gone_identities.into_iter().map(Op::DeleteIdentity));
        all.extend(services);
        if !self.told {
            self.told = true;
            all = vec![Op::Policy(Box::new(self.policy())), Op::Services(Box::new(self.services()))];
        }
        findings.sort_unstable();
        findings.dedup();
        Update { ops: all, findings }
    }

    /// Everything about policy, as of the last update.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let addresses: BTreeMap<Ipv4Addr, u32> = self.assigned.iter().map(|(a, i)| (*a, *i)).collect();
        let mut pods: Vec<_> = self.isolated.values().cloned().collect();
        pods.sort_unstable_by_key(|pod| pod.ip);
        Policy {
            on_change: self.settings.on_change,
            masqueraded_node_traffic: self.settings.masqueraded_node_traffic,
            addresses: addresses.into(),
            identities: self.classes.identities().into(),
            rules: self.rules.all().into(),
            pods,
        }
    }

    fn settle_policies(&mut self, findings: &mut Vec<Finding>) {
        let ports = std::mem::take(&mut self.marks.ports);
        if !ports.is_empty() {
            let users = self.policies.iter().filter(|(_, policy)| policy.uses(&ports));
            self.marks.policies.extend(users.map(|(id, _)| *id));
        }
        let mut dirty = std::mem::take(&mut self.marks.policies);
        dirty.retain(|id| {
            let Some(policy) = self.policies.get_mut(id) else { return false };
            policy.compile(&mut self.peers, &self.ports)
        });
        for id in &dirty {
            self.look_for_ports(*id, findings);
        }
        // Also where only the direction of a policy changed: its pods are marked, and their rules have other keys.
        self.rebuild_rules(&dirty);
    }

    /// Marks the classes that new or gone selectors match, and gives them their identity.
    fn settle_classes(&mut self) {
        let changed = self.peers.changed();
        if changed.iter().any(|term| matches!(term.who, Who::Block { .. })) {
            let named = self.pods.iter().filter(|(_, entry)| !entry.named.is_empty());
            for id in named.map(|(id, _)| id).collect::<Vec<_>>() {
                self.declassify(id);
                self.classify(id);
                let address = self.pods.get(id).and_then(|entry| entry.pod.address());
                self.marks.addresses.extend(address);
            }
        }
        if changed.len() > MANY {
            self.classes.dirty.extend(self.classes.all.keys().copied());
        } else {
            for term in changed {
                self.mark_classes(&term);
            }
        }
        let Self { classes, peers, namespaces, pods, marks, .. } = self;
        let selectors = |traits: &super::classes::Traits| {
            let candidate = Candidate {
                namespace: &traits.namespace,
                namespace_labels: namespaces.get(&traits.namespace).and_then(|n| n.labels.as_ref()),
                labels: &traits.labels,
                named: &traits.named,
            };
            peers.matching(&candidate, &traits.by_address)
        };
        let all_are_meant = !self.told;
        classes.settle(selectors, |class| {
            if all_are_meant {
                return;
            }
            let members = class.members.iter().filter_map(|id| pods.get(*id));
            marks.addresses.extend(members.filter_map(|entry| entry.pod.address()));
        });
    }

    fn mark_classes(&mut self, term: &Arc<Term>) {
        let Self { classes, namespaces, .. } = self;
        let one = term.namespace();
        let entries = one.and_then(|name| namespaces.get(name)).into_iter();
        let all = one.is_none().then(|| namespaces.values()).into_iter().flatten();
        for namespace in entries.chain(all) {
            for id in &namespace.classes {
                let Some(class) = classes.all.get(id) else { continue };
                let candidate = Candidate {
                    namespace: &class.traits.namespace,
                    namespace_labels: namespace.labels.as_ref(),
                    labels: &class.traits.labels,
                    named: &class.traits.named,
                };
                if term.matches(&candidate) {
                    classes.dirty.insert(*id);
                }
            }
        }
    }

    fn settle_addresses(&mut self, findings: &mut Vec<Finding>) -> Vec<Op> {
        let marked = std::mem::take(&mut self.marks.addresses).into_iter();
        let mut addresses: Vec<Ipv4Addr> =
            if self.told { marked.collect() } else { self.takers.keys().copied().collect() };
        if !self.told {
            self.assigned.reserve(addresses.len());
        }
        addresses.sort_unstable();
        let (mut given, mut gone) = (Vec::new(), Vec::new());
        for address in addresses {
            self.look_for_rivals(address, findings);
            let class = self.owner(address).and_then(|id| self.pods.get(id)?.class);
            let identity = class.and_then(|(class, _)| self.classes.identity(class));
            match identity {
                Some(identity) => {
                    if self.assigned.insert(address, identity) != Some(identity) {
                        given.push((address, identity));
                    }
                }
                None => {
                    if self.assigned.remove(&address).is_some() {
                        gone.push(address);
                    }
                }
            }
        }
        let given = (!given.is_empty()).then_some(Op::UpsertAddresses(given));
        let gone = (!gone.is_empty()).then_some(Op::DeleteAddresses(gone));
        given.into_iter().chain(gone).collect()
    }

    fn settle_subjects(&mut self) -> Vec<Op> {
        let mut subjects: Vec<Ipv4Addr> = std::mem::take(&mut self.marks.subjects).into_iter().collect();
        subjects.sort_unstable();
        let mut ops = Vec::new();
        for address in subjects {
            let new = self.isolate(address);
            let old = match &new {
                Some(new) => self.isolated.insert(address, new.clone()),
                None => self.isolated.remove(&address),
            };
            if let Some(old) = &old {
                old.ingress.into_iter().chain(old.egress).for_each(|rules| self.rules.release(rules));
            }
            match new {
                Some(new) if old.as_ref() != Some(&new) => ops.push(Op::UpsertPodPolicy(new)),
                None if old.is_some() => ops.push(Op::DeletePodPolicy(address)),
                Some(_) | None => {}
            }
        }
        ops
    }

    /// Two live pods with one address.
    fn look_for_rivals(&self, address: Ipv4Addr, findings: &mut Vec<Finding>) {
        let Some(takers) = self.takers.get(&address).filter(|takers| takers.iter().nth(1).is_some()) else {
            return;
        };
        let name = |id: u32| self.pods.get(id).map(|e| (e.pod.namespace.clone(), e.pod.name.clone()));
        let Some(owner) = self.owner(address) else { return };
        let Some((namespace, winner)) = name(owner) else { return };
        for (ns, pod) in takers.iter().filter(|id| *id != owner).filter_map(name) {
            findings.push(Finding {
                object: ObjectId { kind: Kind::Pod, namespace: ns, name: pod },
                word: "AddressConflict",
                reason: format!(
                    "has address {address} with pod {namespace}/{winner}, which is the newest running one: peers see \
                     that one there until one of the two is gone"
                ),
            });
        }
    }

    /// A policy's names of ports that no pod has.
    fn look_for_ports(&self, id: u32, findings: &mut Vec<Finding>) {
        let Some(policy) = self.policies.get(&id) else { return };
        let spec = &policy.spec;
        let mut find = |origin: &str, port: &crate::spec::PortName, whose: &str| {
            findings.push(Finding {
                object: ObjectId {
                    kind: Kind::NetworkPolicy,
                    namespace: spec.namespace.clone(),
                    name: spec.name.clone(),
                },
                word: "UnknownPortName",
                reason: format!(
                    "{origin} allows port `{}` ({}), but {whose} has a port of this name and protocol: it matches nothing",
                    port.name, port.protocol
                ),
            });
        };
        for rule in spec.egress.iter().flatten() {
            for port in rule.names().filter(|port| !self.ports.contains_key(*port)) {
                find(&rule.origin, port, "no pod");
            }
        }
        let Some(namespace) = self.namespaces.get(&spec.namespace) else { return };
        for rule in spec.ingress.iter().flatten() {
            for port in rule.names() {
                let classes = namespace.classes.iter().filter_map(|id| self.classes.all.get(id));
                let mut selected = classes.filter(|class| spec.subject.matches(&class.traits.labels));
                let has = selected.any(|class| {
                    class.traits.named.iter().any(|(n, p, _)| *n == port.name && *p == port.protocol)
                });
                if !has {
                    find(&rule.origin, port, "no pod that it selects");
                }
            }
        }
    }

    /// All findings about the world as it is, not only about what changed.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.policies.keys().for_each(|id| self.look_for_ports(*id, &mut findings));
        self.takers.keys().for_each(|address| self.look_for_rivals(*address, &mut findings));
        findings.sort_unstable();
        findings.dedup();
        findings
    }
}
