//! The cluster as one node sees it, and what of it the node's engine must know.
//!
//! [`World::apply`] only takes note: it keeps the tables of pods, namespaces and policies and marks what may be affected.
//! [`World::update`] then settles everything marked, once however many changes there were, and says what is different for
//! the engine. So the first list of a cluster and a single event go the same way, and the order of events cannot matter.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::Ipv4Net;
use sluice_state::{MasqueradedNodeTraffic, OnPolicyChange, PodPolicy};

use crate::numbers::Numbers;
use crate::spec::{PortName, Spec};
use crate::{Change, Kind, Labels, Namespace, Node, Object, ObjectId, Pod, Refusal};

mod classes;
mod explain;
mod intern;
mod peers;
mod pods;
mod rules;
mod services;
mod slab;
#[cfg(test)]
mod tests;
mod update;

use classes::Classes;
pub use explain::{Decision, End, Half, Probe};
use intern::{Interner, NamedPort};
use peers::Peers;
use pods::Takers;
use rules::{PolicyEntry, RulesTable};
use services::ServiceTable;
use slab::Slab;
pub use update::{Finding, Update};

type Hashing = foldhash::fast::RandomState;

/// What the world is seen from, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of this node: its pods are the ones that policies isolate here.
    pub node: Arc<str>,
    /// What becomes of a pod that no policy selects.
    pub mode: EnforcingMode,
    /// What becomes of live flows when policy changes.
    pub on_change: OnPolicyChange,
    /// How traffic is judged whose source the kernel has replaced by the node's address.
    pub masqueraded_node_traffic: MasqueradedNodeTraffic,
    /// The cluster's service ranges.
    pub service_cidrs: Vec<Ipv4Net>,
}

/// What becomes of a pod that no policy selects (`NETWORK_POLICY_ENFORCING_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnforcingMode {
    /// It is not isolated, as the API has it.
    #[default]
    Standard,
    /// It is isolated both ways, and only its node reaches it. A policy that selects it takes its place.
    Strict,
}

impl std::str::FromStr for EnforcingMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "standard" => Ok(Self::Standard),
            "strict" => Ok(Self::Strict),
            _ => Err(format!("`{text}` is no enforcing mode: standard or strict")),
        }
    }
}

/// The cluster as one node sees it.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    interner: Interner,
    namespaces: HashMap<Arc<str>, NamespaceEntry, Hashing>,
    nodes: HashMap<Arc<str>, Node, Hashing>,
    pods: Slab<PodEntry>,
    pod_numbers: Numbers,
    /// The pods that have an address: more than one while the cluster has not made up its mind.
    takers: HashMap<Ipv4Addr, Takers, Hashing>,
    classes: Classes,
    peers: Peers,
    policies: HashMap<u32, PolicyEntry, Hashing>,
    policy_numbers: Numbers,
    /// What ports' names stand for, and for how many classes of pods.
    ports: HashMap<PortName, BTreeMap<u16, usize>, Hashing>,
    rules: RulesTable,
    services: ServiceTable,
    /// What the engine was told: identities of addresses, and what isolates pods.
    assigned: HashMap<Ipv4Addr, u32, Hashing>,
    isolated: HashMap<Ipv4Addr, PodPolicy, Hashing>,
    marks: Marks,
    /// [`World::update`] has been called.
    told: bool,
}

#[derive(Debug, Default)]
struct NamespaceEntry {
    /// Absent: pods or policies came before their namespace.
    labels: Option<Labels>,
    pods: HashMap<Arc<str>, u32, Hashing>,
    /// By name: what is compiled from several lists them in this order.
    policies: BTreeMap<Arc<str>, u32>,
    classes: HashSet<u32, Hashing>,
    /// Those of its pods that are on this node and have an address.
    local: HashSet<u32, Hashing>,
}

impl NamespaceEntry {
    fn is_unused(&self) -> bool {
        self.labels.is_none() && self.pods.is_empty() && self.policies.is_empty()
    }
}

#[derive(Debug)]
struct PodEntry {
    pod: Arc<Pod>,
    named: Arc<[NamedPort]>,
    /// Its class and its place there; pods without an address of their own have none.
    class: Option<(u32, usize)>,
}

/// What may be different for the engine.
#[derive(Debug, Default)]
struct Marks {
    /// Addresses whose owner or its class changed. Before the first update all are meant, and none is noted.
    addresses: HashSet<Ipv4Addr, Hashing>,
    /// Addresses of local pods whose policies may be others.
    subjects: HashSet<Ipv4Addr, Hashing>,
    policies: HashSet<u32, Hashing>,
    ports: HashSet<PortName, Hashing>,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            interner: Interner::default(),
            namespaces: HashMap::default(),
            nodes: HashMap::default(),
            pods: Slab::default(),
            pod_numbers: Numbers::default(),
            takers: HashMap::default(),
            classes: Classes::default(),
            peers: Peers::default(),
            policies: HashMap::default(),
            policy_numbers: Numbers::default(),
            ports: HashMap::default(),
            rules: RulesTable::default(),
            services: ServiceTable::default(),
            assigned: HashMap::default(),
            isolated: HashMap::default(),
            marks: Marks::default(),
            told: false,
        }
    }

    /// Takes note of a change. What it means comes with the next [`World::update`].
    ///
    /// # Errors
    /// The API server would refuse the object. Its last good version stays in force.
    pub fn apply(&mut self, change: Change) -> Result<(), Vec<Refusal>> {
        match change {
            Change::Upsert(Object::Namespace(namespace)) => self.upsert_namespace(&namespace),
            Change::Upsert(Object::Node(node)) => self.upsert_node(node),
            Change::Upsert(Object::Pod(pod)) => self.upsert_pod(pod),
            Change::Upsert(Object::NetworkPolicy(policy)) => self.upsert_policy(Spec::new(&policy)?),
            Change::Upsert(Object::Service(service)) => self.upsert_service(service),
            Change::Upsert(Object::EndpointSlice(slice)) => self.upsert_slice(slice),
            Change::Delete(id) => self.delete(&id),
        }
        Ok(())
    }

    fn delete(&mut self, id: &ObjectId) {
        match id.kind {
            Kind::Namespace => {
                if let Some(entry) = self.namespaces.get_mut(&id.name) {
                    entry.labels = None;
                    self.classes.dirty.extend(entry.classes.iter().copied());
                }
                self.forget_namespace(&id.name);
            }
            Kind::Node => {
                self.nodes.remove(&id.name);
                if id.name == self.settings.node {
                    self.mark_all_services();
                }
            }
            Kind::Pod => self.delete_pod(&id.namespace, &id.name),
            Kind::NetworkPolicy => self.delete_policy(&id.namespace, &id.name),
            Kind::Service => self.delete_service(&id.namespace, &id.name),
            Kind::EndpointSlice => self.delete_slice(&id.namespace, &id.name),
        }
    }

    fn upsert_namespace(&mut self, namespace: &Namespace) {
        let mut labels = (*namespace.labels).clone();
        // The API server sees to it that this label is always there.
        labels.insert("kubernetes.io/metadata.name".into(), namespace.name.clone());
        let labels = self.interner.labels(&Arc::new(labels));
        let name = self.interner.text(&namespace.name);
        let entry = self.namespaces.entry(name).or_default();
        if entry.labels.as_ref() != Some(&labels) {
            entry.labels = Some(labels);
            self.classes.dirty.extend(entry.classes.iter().copied());
        }
    }

    fn upsert_node(&mut self, node: Node) {
        let ours = node.name == self.settings.node;
        let zone = node.zone.clone();
        let old = self.nodes.insert(node.name.clone(), node);
        if ours && old.is_none_or(|old| old.zone != zone) {
            self.mark_all_services();
        }
    }

    fn upsert_policy(&mut self, spec: Spec) {
        let namespace = self.interner.text(&spec.namespace);
        let entry = self.namespaces.entry(namespace.clone()).or_default();
        let known = entry.policies.get(&spec.name).copied();
        if let Some(old) = known.and_then(|id| self.policies.get(&id))
            && *old.spec == spec
        {
            return;
        }
        let id = known.unwrap_or_else(|| self.policy_numbers.take());
        entry.policies.insert(spec.name.clone(), id);
        if known.is_some() {
            self.mark_subjects(id);
        }
        let spec = Arc::new(spec);
        match self.policies.get_mut(&id) {
            Some(entry) => entry.spec = spec,
            None => {
                self.policies.insert(id, PolicyEntry::new(spec));
            }
        }
        self.mark_subjects(id);
        self.marks.policies.insert(id);
    }

    fn delete_policy(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let Some(entry) = self.namespaces.get_mut(namespace) else { return };
        let Some(id) = entry.policies.remove(name) else { return };
        self.mark_subjects(id);
        if let Some(policy) = self.policies.remove(&id) {
            policy.terms.iter().for_each(|term| self.peers.release(*term));
        }
        self.policy_numbers.give(id);
        self.marks.policies.remove(&id);
        self.forget_namespace(namespace);
    }

    /// Marks the local pods that a policy selects.
    fn mark_subjects(&mut self, policy: u32) {
        let Some(policy) = self.policies.get(&policy) else { return };
        let Some(entry) = self.namespaces.get(&policy.spec.namespace) else { return };
        for pod in entry.local.iter().filter_map(|id| self.pods.get(*id)) {
            if policy.spec.subject.matches(&pod.pod.labels) {
                self.marks.subjects.extend(pod.pod.address());
            }
        }
    }

    fn forget_namespace(&mut self, name: &Arc<str>) {
        if self.namespaces.get(name).is_some_and(NamespaceEntry::is_unused) {
            self.namespaces.remove(name);
        }
    }

    /// Nothing is kept of what has gone.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.pods.iter().next().is_none()
            && self.takers.is_empty()
            && self.policies.is_empty()
            && self.ports.is_empty()
            && self.peers.is_empty()
            && self.classes.all.is_empty()
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &Arc<str> {
        &self.settings.node
    }
}
