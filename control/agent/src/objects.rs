//! Where a cluster's objects come from, as the model sees it: a directory of manifests, or an API server.
//!
//! The two differ in who decides about a pod's address on this node. A directory gives its pods places, one after the other;
//! a place that a container runtime has made is one more. An API server tells of pods before they have an address and,
//! seconds later, which one kubelet has reported. That is too late for a policy: from CNI ADD on a pod's identity is its lease.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_kube::manifests::{Allocations, Batch, Directory, Finding, Slot};
use sluice_policy::{Change, Kind, Object, ObjectId};

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// The source of a model's objects.
#[derive(Debug)]
pub(crate) enum Objects {
    /// A directory of manifests.
    Directory(Box<Directory>),
    /// An API server.
    Cluster(Local),
}

/// What an API server says of this node's pods, and the leases that go over it.
#[derive(Debug)]
pub(crate) struct Local {
    node: Arc<str>,
    /// This node's pods with an address of their own, as the server has them; `gone`: it has them no more.
    pods: BTreeMap<Name, Held>,
    leases: BTreeMap<Name, Ipv4Addr>,
    findings: Vec<Finding>,
    synced: bool,
}

#[derive(Debug)]
struct Held {
    pod: Arc<sluice_policy::Pod>,
    gone: bool,
}

impl Objects {
    /// Makes a place for a pod that a container runtime has added.
    pub(crate) fn attach(&mut self, pod: &sluice_state::Pod) -> Vec<Change> {
        match self {
            Self::Directory(directory) => {
                let owner = (pod.namespace.clone(), pod.name.clone());
                let mut changes = directory.close(pod.ip).changes;
                changes.extend(directory.open(Slot { ip: pod.ip, pod: Some(owner) }).changes);
                changes
            }
            Self::Cluster(local) => local.lease(&pod.namespace, &pod.name, Some(pod.ip)),
        }
    }

    /// Ends such a place.
    pub(crate) fn detach(&mut self, pod: &sluice_state::Pod) -> Vec<Change> {
        match self {
            Self::Directory(directory) => directory.close(pod.ip).changes,
            Self::Cluster(local) => local.lease(&pod.namespace, &pod.name, None),
        }
    }

    /// Everything is known that there was at the start.
    pub(crate) fn is_known(&self) -> bool {
        match self {
            Self::Directory(_) => true,
            Self::Cluster(local) => local.synced,
        }
    }

    /// What was given out so far.
    pub(crate) fn allocations(&self) -> Allocations {
        match self {
            Self::Directory(directory) => directory.allocations(),
            Self::Cluster(_) => Allocations::default(),
        }
    }

    /// What is wrong with the source and its objects.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        match self {
            Self::Directory(directory) => directory.findings(),
            Self::Cluster(local) => local.findings.clone(),
        }
    }

    /// The pod that a place of this node is for now, by its address and by the name that it is kept for.
    pub(crate) fn tenant(&self, place: &sluice_state::Pod, tenants: &Tenants) -> Option<(String, String)> {
        match self {
            Self::Directory(_) => tenants.get(&place.ip).cloned(),
            Self::Cluster(local) => {
                let name = (place.namespace.as_str().into(), place.name.as_str().into());
                local.pods.contains_key(&name).then(|| (place.namespace.clone(), place.name.clone()))
            }
        }
    }

    /// Who has which place of a directory.
    pub(crate) fn tenants(&self) -> Tenants {
        match self {
            Self::Directory(directory) => {
                let tenants = directory.tenants().into_iter();
                tenants
                    .map(|(ip, (namespace, name))| (ip, (namespace.to_string(), name.to_string())))
                    .collect()
            }
            Self::Cluster(_) => Tenants::new(),
        }
    }

    /// What a directory has changed.
    pub(crate) fn look(&mut self, look: impl FnOnce(&mut Directory) -> Batch) -> Vec<Change> {
        match self {
            Self::Directory(directory) => look(directory).changes,
            Self::Cluster(_) => Vec::new(),
        }
    }
}

/// Namespace and name of the pods that have places, by address.
pub(crate) type Tenants = BTreeMap<Ipv4Addr, (String, String)>;

impl Local {
    /// Nothing is known yet of a node of this name.
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            pods: BTreeMap::new(),
            leases: BTreeMap::new(),
            findings: Vec::new(),
            synced: false,
        }
    }

    /// Whether the pod of a UID is known here; an empty UID is any.
    pub(crate) fn knows(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let held = self.pods.get(&(namespace.into(), name.into()));
        held.is_some_and(|held| !held.gone && (uid.is_empty() || *held.pod.uid == *uid))
    }

    pub(crate) fn found(&mut self, findings: Vec<Finding>) {
        self.findings = findings;
    }

    pub(crate) fn synced(&mut self) {
        self.synced = true;
    }

    /// What changes of the server come to here.
    pub(crate) fn take(&mut self, changes: Vec<Change>) -> Vec<Change> {
        changes.into_iter().filter_map(|change| self.one(change)).collect()
    }

    fn one(&mut self, change: Change) -> Option<Change> {
        match change {
            Change::Upsert(Object::Pod(pod)) => {
                let name = (Arc::clone(&pod.namespace), Arc::clone(&pod.name));
                if pod.node.as_ref() == Some(&self.node) && !pod.host_network {
                    self.pods.insert(name.clone(), Held { pod, gone: false });
                    return self.told(&name);
                }
                self.pods.remove(&name);
                Some(Change::Upsert(Object::Pod(pod)))
            }
            Change::Delete(id) if id.kind == Kind::Pod => {
                let name = (Arc::clone(&id.namespace), Arc::clone(&id.name));
                // A pod that is deleted by force runs on; while its veth is there, so is its policy.
                if self.leases.contains_key(&name)
                    && let Some(held) = self.pods.get_mut(&name)
                {
                    held.gone = true;
                    return None;
                }
                self.pods.remove(&name);
                Some(Change::Delete(id))
            }
            other => Some(other),
        }
    }

    fn lease(&mut self, namespace: &str, name: &str, ip: Option<Ipv4Addr>) -> Vec<Change> {
        let name: Name = (namespace.into(), name.into());
        match ip {
            Some(ip) => self.leases.insert(name.clone(), ip),
            None => self.leases.remove(&name),
        };
        if ip.is_none() && self.pods.get(&name).is_some_and(|held| held.gone) {
            self.pods.remove(&name);
            let (namespace, name) = name;
            return vec![Change::Delete(ObjectId { kind: Kind::Pod, namespace, name })];
        }
        self.told(&name).into_iter().collect()
    }

    /// A pod of this node as the compiler is told of it.
    fn told(&self, name: &Name) -> Option<Change> {
        let mut pod = Arc::clone(&self.pods.get(name)?.pod);
        if let Some(ip) = self.leases.get(name)
            && pod.ip != Some(*ip)
        {
            Arc::make_mut(&mut pod).ip = Some(*ip);
        }
        Some(Change::Upsert(Object::Pod(pod)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_policy::{Phase, Pod};

    fn pod(node: &str, ip: Option<[u8; 4]>, uid: &str) -> Change {
        Change::Upsert(Object::Pod(Arc::new(Pod {
            namespace: "n".into(),
            name: "p".into(),
            uid: uid.into(),
            labels: Arc::default(),
            ip: ip.map(Into::into),
            node: Some(node.into()),
            host_network: false,
            phase: Phase::Pending,
            terminating: false,
            created: None,
            ports: [].into(),
        })))
    }

    fn gone() -> Change {
        Change::Delete(ObjectId { kind: Kind::Pod, namespace: "n".into(), name: "p".into() })
    }

    fn ip_of(changes: &[Change]) -> Option<Ipv4Addr> {
        match changes {
            [Change::Upsert(Object::Pod(pod))] => pod.ip,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_goes_over_what_the_server_says_and_outlives_the_object() {
        let mut local = Local::new("here");
        let lease: Ipv4Addr = [10, 0, 0, 9].into();
        assert!(local.lease("n", "p", Some(lease)).is_empty(), "nobody knows the pod yet");
        assert!(!local.knows("n", "p", "u"));
        assert_eq!(ip_of(&local.take(vec![pod("here", None, "u")])), Some(lease));
        assert!(local.knows("n", "p", "u") && local.knows("n", "p", "") && !local.knows("n", "p", "v"));
        // Kubelet reports the address of a sandbox before.
        assert_eq!(ip_of(&local.take(vec![pod("here", Some([10, 0, 0, 8]), "u")])), Some(lease));
        assert!(local.take(vec![gone()]).is_empty(), "its veth is there, and so is its policy");
        assert!(!local.knows("n", "p", "u"));
        assert!(matches!(local.lease("n", "p", None)[..], [Change::Delete(_)]));
        assert!(local.lease("n", "p", None).is_empty());
        // Pods of other nodes pass as they are.
        let other = local.take(vec![pod("there", Some([10, 0, 1, 1]), "w")]);
        assert_eq!(ip_of(&other), Some([10, 0, 1, 1].into()));
        assert!(matches!(local.take(vec![gone()])[..], [Change::Delete(_)]));
    }
}
