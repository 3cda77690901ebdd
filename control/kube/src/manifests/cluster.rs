//! The cluster that the manifests make: what a scheduler, controllers and IPAM would add to what people write.
//!
//! ```text
//!  edits ──> namespaces, nodes ──> pods (workloads unfolded, placed) ──> services (addresses) ──> endpoint slices ──> changes
//! ```
//! Each step looks at what the steps before have touched, so that one label's change costs what hangs on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_policy::{Change, EndpointSlice, Labels, Namespace, Object, ObjectId};

use super::decode::{Key, Kind};
use super::defaults::NAME_LABEL;
use super::endpoints;
use super::files::{Edit, Files};
use super::finding::Finding;
use super::nodes::Nodes;
use super::placement::{Allocations, Placement, Slot};
use super::pods::{Moved, PodId, PodSet};
use super::problems::Problems;
use super::services::ServiceSet;
use super::source::{Pods, Source};

/// Everything there is.
#[derive(Debug)]
pub(super) struct Cluster {
    /// What is not asked of the files because it is looked through: namespaces and nodes.
    sources: HashMap<Key, Arc<Source>>,
    /// Namespaces that something lies in, and how much.
    used: BTreeMap<Arc<str>, usize>,
    namespaces: BTreeMap<Arc<str>, Namespace>,
    nodes: Nodes,
    pods: PodSet,
    services: ServiceSet,
    /// Services' keys by namespace: a pod's change asks only those of its own.
    in_namespace: BTreeMap<Arc<str>, BTreeSet<Key>>,
    /// Hand-written slices by the service that they are for.
    written: BTreeMap<Key, BTreeSet<Key>>,
    derived: BTreeMap<Key, Vec<EndpointSlice>>,
    problems: Problems,
    first: bool,
}

impl Cluster {
    pub(super) fn new(placement: &Placement, allocations: &Allocations) -> Self {
        Self {
            sources: HashMap::new(),
            used: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            nodes: Nodes::new(placement),
            pods: PodSet::new(placement, allocations),
            services: ServiceSet::new(placement, allocations),
            in_namespace: BTreeMap::new(),
            written: BTreeMap::new(),
            derived: BTreeMap::new(),
            problems: Problems::default(),
            first: true,
        }
    }

    /// What was chosen so far.
    pub(super) fn allocations(&self) -> Allocations {
        let mut all = Allocations { pods: self.pods.allocations(), ..Allocations::default() };
        self.services.allocations(&mut all);
        all
    }

    /// Who has which place of this node.
    pub(super) fn tenants(&self) -> BTreeMap<Ipv4Addr, &PodId> {
        self.pods.tenants()
    }

    /// What is wrong beyond single manifests.
    pub(super) fn findings(&self, files: &Files) -> Vec<Finding> {
        self.problems.findings(files)
    }

    /// Makes a place for a pod of this node; gives what that changes.
    pub(super) fn open(&mut self, slot: Slot) -> Vec<Change> {
        let moved = self.pods.open(slot, &mut self.nodes, &mut self.problems);
        self.follow(&moved)
    }

    /// Ends a place of this node; gives what that changes.
    pub(super) fn close(&mut self, ip: Ipv4Addr) -> Vec<Change> {
        let moved = self.pods.close(ip, &mut self.nodes, &mut self.problems);
        self.follow(&moved)
    }

    /// What pods that moved change.
    fn follow(&mut self, moved: &[Moved]) -> Vec<Change> {
        let mut endpoints = BTreeSet::new();
        let mut changes = Vec::new();
        for moved in moved {
            self.touched_by(moved, &mut endpoints);
            changes.push(self.pod_change(moved));
        }
        for key in endpoints {
            self.derive(&key, &mut changes);
        }
        changes
    }

    /// Takes the objects that are others now; gives what that changes.
    pub(super) fn apply(&mut self, edits: Vec<Edit>, files: &Files) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut namespaces = BTreeSet::new();
        let mut owners = BTreeSet::new();
        let mut services = BTreeSet::new();
        let mut endpoints = BTreeSet::new();
        let mut nodes_touched = std::mem::take(&mut self.first);
        for Edit { key, before: old, source } in edits {
            if matches!(key.kind, Kind::Namespace | Kind::Node) {
                match &source {
                    Some(source) => self.sources.insert(key.clone(), Arc::clone(source)),
                    None => self.sources.remove(&key),
                };
            }
            self.count(&key, old.is_some(), source.is_some());
            namespaces.insert(if key.kind == Kind::Namespace {
                key.name.clone()
            } else {
                key.namespace.clone()
            });
            match key.kind {
                Kind::Namespace => {}
                Kind::Node => nodes_touched = true,
                Kind::NetworkPolicy => changes.push(policy(&key, source.as_deref())),
                Kind::Service => {
                    services.insert(key);
                }
                Kind::EndpointSlice => {
                    changes.push(slice(&key, source.as_deref()));
                    for (source, there) in [(old.as_deref(), false), (source.as_deref(), true)] {
                        endpoints.extend(source.and_then(|source| self.written_for(&key, source, there)));
                    }
                }
                _ => {
                    owners.insert(key);
                }
            }
        }
        for name in namespaces.into_iter().filter(|name| !name.is_empty()) {
            changes.extend(self.namespace(&name));
        }
        if nodes_touched {
            let before = changes.len();
            self.update_nodes(&mut changes);
            if changes.len() > before {
                owners.extend(self.pods.owners().cloned());
            }
        }
        let moved = self.update_pods(owners, files);
        for moved in &moved {
            self.touched_by(moved, &mut endpoints);
            changes.push(self.pod_change(moved));
        }
        for (key, object) in self.update_services(services, files) {
            endpoints.insert(key.clone());
            let there = object.is_some();
            changes.push(object.map_or_else(|| Change::Delete(id(&key)), Change::Upsert));
            let of_namespace = self.in_namespace.entry(key.namespace.clone()).or_default();
            if there {
                of_namespace.insert(key);
            } else {
                of_namespace.remove(&key);
            }
        }
        for key in endpoints {
            self.derive(&key, &mut changes);
        }
        changes
    }

    fn count(&mut self, key: &Key, before: bool, now: bool) {
        if key.namespace.is_empty() || before == now {
            return;
        }
        let used = self.used.entry(key.namespace.clone()).or_default();
        *used = if now { *used + 1 } else { used.saturating_sub(1) };
        if *used == 0 {
            self.used.remove(&key.namespace);
        }
    }

    /// A namespace that is used but declared nowhere is there all the same.
    fn namespace(&mut self, name: &Arc<str>) -> Option<Change> {
        let key = Key { kind: Kind::Namespace, namespace: "".into(), name: Arc::clone(name) };
        let declared = self.sources.get(&key).and_then(|source| match &**source {
            Source::Namespace(namespace) => Some(namespace.clone()),
            _ => None,
        });
        let implied = || {
            let labels: Labels = BTreeMap::from([(Arc::from(NAME_LABEL), Arc::clone(name))]).into();
            self.used.contains_key(name).then(|| Namespace { name: Arc::clone(name), labels })
        };
        let Some(now) = declared.or_else(implied) else {
            return self.namespaces.remove(name).map(|_| Change::Delete(id(&key)));
        };
        let old = self.namespaces.insert(Arc::clone(name), now.clone());
        (old.as_ref() != Some(&now)).then_some(Change::Upsert(Object::Namespace(now)))
    }

    fn update_nodes(&mut self, changes: &mut Vec<Change>) {
        let manifests = self.sources.values().filter_map(|source| match &**source {
            Source::Node(node, cidr) => Some((&**node, *cidr)),
            _ => None,
        });
        let (changed, gone) = self.nodes.update(manifests);
        changes.extend(changed.into_iter().map(|node| Change::Upsert(Object::Node(node))));
        changes.extend(gone.into_iter().map(|name| {
            Change::Delete(ObjectId { kind: sluice_policy::Kind::Node, namespace: "".into(), name })
        }));
    }

    fn update_pods(&mut self, owners: BTreeSet<Key>, files: &Files) -> Vec<Moved> {
        if owners.is_empty() {
            return Vec::new();
        }
        let source = |key: &Key| -> Option<&Pods> {
            match &**files.source(key)? {
                Source::Pods(pods) => Some(pods),
                _ => None,
            }
        };
        self.pods.update(owners, source, &mut self.nodes, &mut self.problems)
    }

    fn update_services(&mut self, dirty: BTreeSet<Key>, files: &Files) -> Vec<(Key, Option<Object>)> {
        if dirty.is_empty() {
            return Vec::new();
        }
        let source = |key: &Key| match &**files.source(key)? {
            Source::Service(service) => Some(&**service),
            _ => None,
        };
        self.services.update(dirty, source, &mut self.problems)
    }

    fn pod_change(&self, moved: &Moved) -> Change {
        match self.pods.pod(&moved.id) {
            Some(placed) => Change::Upsert(Object::Pod(placed.pod.clone())),
            None => Change::Delete(ObjectId {
                kind: sluice_policy::Kind::Pod,
                namespace: Arc::clone(&moved.id.0),
                name: Arc::clone(&moved.id.1),
            }),
        }
    }

    /// The services whose endpoints a pod's change may change.
    fn touched_by(&self, moved: &Moved, endpoints: &mut BTreeSet<Key>) {
        let now = self.pods.pod(&moved.id).map(|placed| &*placed.pod);
        for key in self.in_namespace.get(&moved.id.0).into_iter().flatten() {
            let selector = self.services.service(key).and_then(endpoints::selector);
            let Some(selector) = selector else { continue };
            if [moved.before.as_deref(), now]
                .into_iter()
                .flatten()
                .any(|pod| endpoints::selects(selector, pod))
            {
                endpoints.insert(key.clone());
            }
        }
    }

    /// Notes that a slice is, or is no longer, written by hand for a service.
    fn written_for(&mut self, key: &Key, source: &Source, there: bool) -> Option<Key> {
        let Source::Slice(slice) = source else { return None };
        let service =
            Key { kind: Kind::Service, namespace: key.namespace.clone(), name: slice.service.clone()? };
        let written = self.written.entry(service.clone()).or_default();
        if there {
            written.insert(key.clone());
        } else {
            written.remove(key);
        }
        if written.is_empty() {
            self.written.remove(&service);
        }
        Some(service)
    }

    /// Brings the derived slices of a service up to date.
    fn derive(&mut self, key: &Key, changes: &mut Vec<Change>) {
        let service = self.services.service(key).filter(|_| !self.written.contains_key(key));
        let pods = self.pods.of_namespace(&key.namespace);
        let now = service.map(|s| endpoints::slices(&key.namespace, &key.name, s, pods)).unwrap_or_default();
        let old = self.derived.remove(key).unwrap_or_default();
        let kept: BTreeSet<_> = now.iter().map(|slice| Arc::clone(&slice.name)).collect();
        for gone in old.iter().filter(|slice| !kept.contains(&slice.name)) {
            let (namespace, name) = (Arc::clone(&gone.namespace), Arc::clone(&gone.name));
            changes.push(Change::Delete(ObjectId {
                kind: sluice_policy::Kind::EndpointSlice,
                namespace,
                name,
            }));
        }
        let changed = now.iter().filter(|slice| !old.contains(slice));
        changes.extend(changed.map(|slice| Change::Upsert(Object::EndpointSlice(slice.clone()))));
        if !now.is_empty() {
            self.derived.insert(key.clone(), now);
        }
    }
}

fn policy(key: &Key, source: Option<&Source>) -> Change {
    match source {
        Some(Source::Policy(policy)) => Change::Upsert(Object::NetworkPolicy(policy.clone())),
        _ => Change::Delete(id(key)),
    }
}

fn slice(key: &Key, source: Option<&Source>) -> Change {
    match source {
        Some(Source::Slice(slice)) => Change::Upsert(Object::EndpointSlice((**slice).clone())),
        _ => Change::Delete(id(key)),
    }
}

/// The name of an object that needs no unfolding.
fn id(key: &Key) -> ObjectId {
    let kind = match key.kind {
        Kind::Namespace => sluice_policy::Kind::Namespace,
        Kind::Node => sluice_policy::Kind::Node,
        Kind::Service => sluice_policy::Kind::Service,
        Kind::EndpointSlice => sluice_policy::Kind::EndpointSlice,
        Kind::NetworkPolicy => sluice_policy::Kind::NetworkPolicy,
        _ => sluice_policy::Kind::Pod,
    };
    ObjectId { kind, namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) }
}
