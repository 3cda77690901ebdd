//! Objects, world and inventory as one: what the dataplane must know now, and what is different since it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use sluice_kube::cluster::News;
use sluice_kube::manifests::{Allocations, Directory, Finding, Severity, Topic, Touched};
use sluice_policy::{Change, Kind, Object, ObjectId, World};
use sluice_state::{Op, Pod, PortRange, SnatPorts, State};

use crate::inventory::Inventory;
use crate::objects::{Local, Objects};
use crate::settings::Settings;

/// What the node's dataplane must know.
#[derive(Debug)]
pub struct Model {
    inventory: Inventory,
    objects: Objects,
    world: World,
    /// The pods that a container runtime has added.
    attached: BTreeMap<Ipv4Addr, Pod>,
    /// The pods that have a path.
    paths: BTreeMap<Ipv4Addr, Pod>,
    /// Ports of the node that lead to its pods.
    host_ports: BTreeMap<ObjectId, Vec<u16>>,
    snat_ports: SnatPorts,
    refused: BTreeMap<ObjectId, String>,
}

impl Model {
    /// A model of a directory that has not been looked at.
    #[must_use]
    pub fn new(
        inventory: Inventory,
        manifests: &Path,
        settings: &Settings,
        allocations: &Allocations,
    ) -> Self {
        let mut placement = inventory.placement();
        placement.service_cidrs = service_cidrs(&inventory, settings);
        let directory = Directory::new(manifests, &placement, allocations);
        Self::of(inventory, settings, Objects::Directory(Box::new(directory)))
    }

    /// A model of an API server that has told nothing yet.
    #[must_use]
    pub fn of_cluster(inventory: Inventory, settings: &Settings) -> Self {
        let local = Local::new(&inventory.state.node.name);
        Self::of(inventory, settings, Objects::Cluster(local))
    }

    fn of(inventory: Inventory, settings: &Settings, objects: Objects) -> Self {
        let world = World::new(sluice_policy::Settings {
            node: inventory.state.node.name.as_str().into(),
            mode: settings.mode(),
            on_change: settings.on_change(),
            masqueraded_node_traffic: settings.masqueraded(),
            service_cidrs: service_cidrs(&inventory, settings),
        });
        Self {
            objects,
            snat_ports: inventory.state.snat_ports.clone(),
            inventory,
            world,
            attached: BTreeMap::new(),
            paths: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The same objects on a node that is another one now, as an inventory that was read again says. Only of an API
    /// server's, which says nothing twice.
    pub fn relocate(&mut self, inventory: Inventory) {
        self.inventory = inventory;
        self.snat_ports = self.wanted_snat_ports();
        self.paths = self.wanted_paths();
    }

    /// Whether everything is known that there was at the start: before that the daemon is told nothing.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.objects.is_known()
    }

    /// Takes what an API server tells; gives what is different for the dataplane.
    pub fn hear(&mut self, news: News) -> Vec<Op> {
        let Objects::Cluster(local) = &mut self.objects else { return Vec::new() };
        if let Some(findings) = news.findings {
            local.found(findings);
        }
        if news.synced {
            local.synced();
        }
        let changes = local.take(news.changes);
        self.take(changes)
    }

    /// Whether a pod of this node is known by name and UID; an empty UID is any. A directory has no UIDs.
    #[must_use]
    pub fn knows(&self, namespace: &str, name: &str, uid: &str) -> bool {
        match &self.objects {
            Objects::Cluster(local) => local.knows(namespace, name, uid),
            Objects::Directory(_) => true,
        }
    }

    /// Looks at what differs in the directory; gives what is different for the dataplane.
    pub fn scan(&mut self) -> Vec<Op> {
        let changes = self.objects.look(Directory::scan);
        self.take(changes)
    }

    /// Looks at what was touched; gives what is different for the dataplane.
    pub fn refresh(&mut self, touched: &Touched) -> Vec<Op> {
        let changes = self.objects.look(|directory| directory.refresh(touched));
        self.take(changes)
    }

    /// A container runtime has added a pod: it has its path as soon as the objects know it, in what this gives or later.
    pub fn attach(&mut self, pod: Pod) -> Vec<Op> {
        let changes = self.objects.attach(&pod);
        self.attached.insert(pod.ip, pod);
        self.follow(changes)
    }

    /// A pod that a container runtime had added is gone.
    pub fn detach(&mut self, ip: Ipv4Addr) -> Vec<Op> {
        let Some(pod) = self.attached.remove(&ip) else { return Vec::new() };
        // Another sandbox of the pod may have its own lease by now.
        let again =
            self.attached.values().find(|other| other.namespace == pod.namespace && other.name == pod.name);
        let changes = match (&self.objects, again) {
            (Objects::Cluster(_), Some(again)) => self.objects.attach(&again.clone()),
            _ => self.objects.detach(&pod),
        };
        self.follow(changes)
    }

    /// The pods that a container runtime has added.
    pub fn attached(&self) -> impl Iterator<Item = &Pod> {
        self.attached.values()
    }

    /// The pod that has its path with this address.
    #[must_use]
    pub fn path(&self, ip: Ipv4Addr) -> Option<&Pod> {
        self.paths.get(&ip)
    }

    /// How many pods have a path.
    #[must_use]
    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    fn take(&mut self, changes: Vec<Change>) -> Vec<Op> {
        if changes.is_empty() {
            return Vec::new();
        }
        self.follow(changes)
    }

    fn follow(&mut self, changes: Vec<Change>) -> Vec<Op> {
        let mut ports_touched = false;
        for change in changes {
            ports_touched |= self.note_host_ports(&change);
            let id = match &change {
                Change::Upsert(object) => object.id(),
                Change::Delete(id) => id.clone(),
            };
            match self.world.apply(change) {
                Ok(()) => self.refused.remove(&id),
                Err(refusals) => {
                    let reasons: Vec<_> = refusals.iter().map(ToString::to_string).collect();
                    self.refused.insert(id, reasons.join("; "))
                }
            };
        }
        let update = self.world.update();
        let paths = self.wanted_paths();
        let gone = self.paths.keys().filter(|ip| !paths.contains_key(*ip));
        let mut ops: Vec<Op> = gone.map(|ip| Op::DeletePod(*ip)).collect();
        ops.extend(update.ops);
        // A pod's path comes after its policy, in the same generation.
        let new = paths.iter().filter(|(ip, pod)| self.paths.get(*ip) != Some(*pod));
        ops.extend(new.map(|(_, pod)| Op::UpsertPod(pod.clone())));
        self.paths = paths;
        if ports_touched {
            let ports = self.wanted_snat_ports();
            if ports != self.snat_ports {
                ops.push(Op::SnatPorts(ports.clone()));
                self.snat_ports = ports;
            }
        }
        ops
    }

    /// The places that pods have.
    fn wanted_paths(&self) -> BTreeMap<Ipv4Addr, Pod> {
        let tenants = self.objects.tenants();
        let places = self.inventory.places.iter().chain(self.attached.values()).filter_map(|place| {
            let (namespace, name) = self.objects.tenant(place, &tenants)?;
            Some((place.ip, Pod { namespace, name, ..place.clone() }))
        });
        places.collect()
    }

    fn note_host_ports(&mut self, change: &Change) -> bool {
        let (id, ports) = match change {
            Change::Upsert(Object::Pod(pod)) if pod.node.as_ref() == Some(self.world.node()) => {
                let ports = pod.ports.iter().filter_map(|port| port.host_port).collect();
                (
                    ObjectId { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() },
                    ports,
                )
            }
            Change::Upsert(Object::Pod(pod)) => (
                ObjectId { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() },
                Vec::new(),
            ),
            Change::Delete(id) if id.kind == Kind::Pod => (id.clone(), Vec::new()),
            _ => return false,
        };
        let old = if ports.is_empty() {
            self.host_ports.remove(&id)
        } else {
            self.host_ports.insert(id.clone(), ports)
        };
        old.as_ref() != self.host_ports.get(&id)
    }

    /// The node's hostPorts are never a source of ours.
    fn wanted_snat_ports(&self) -> SnatPorts {
        let mut ports = self.inventory.state.snat_ports.clone();
        let taken: BTreeSet<u16> = self.host_ports.values().flatten().copied().collect();
        ports.exclude.extend(taken.into_iter().map(|port| PortRange { first: port, last: port }));
        ports
    }

    /// Everything that the dataplane must know.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            pods: self.paths.values().cloned().collect(),
            snat_ports: self.snat_ports.clone(),
            policy: self.world.policy(),
            services: self.world.services(),
            ..self.inventory.state.clone()
        }
    }

    /// What the inventory says.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What was given out so far.
    #[must_use]
    pub fn allocations(&self) -> Allocations {
        self.objects.allocations()
    }

    /// Everything there is to say.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.objects.findings();
        findings.extend(self.refused.iter().map(|(id, why)| {
            let message = format!("{id} is refused: {why}");
            Finding::new(Severity::Error, message).about(Topic::of("Refused", id))
        }));
        findings.extend(self.world.findings().iter().map(|found| {
            let topic = Topic::of(found.word, &found.object);
            Finding::new(Severity::Warning, found.to_string()).about(topic)
        }));
        findings
    }
}

/// The cluster's service ranges: a flag's, or the inventory's.
fn service_cidrs(inventory: &Inventory, settings: &Settings) -> Vec<Ipv4Net> {
    if settings.service_cidrs.is_empty() {
        inventory.cluster.service_cidrs.clone()
    } else {
        settings.service_cidrs.clone()
    }
}
