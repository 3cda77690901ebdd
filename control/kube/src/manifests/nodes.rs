//! The nodes: those of the inventory, and what manifests say of them or add.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sluice_policy::Node;

use super::placement::{NodePlace, Placement, Pool};

/// The label that a node has of its own name.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// The label that a node has of its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Every node that is known.
#[derive(Debug)]
pub(super) struct Nodes {
    /// Name of this node.
    pub here: Arc<str>,
    inventory: BTreeMap<Arc<str>, NodePlace>,
    known: BTreeMap<Arc<str>, Known>,
    elsewhere: Option<Pool>,
}

#[derive(Debug)]
struct Known {
    node: Node,
    cidr: Option<Ipv4Net>,
    pool: Option<Pool>,
}

impl Nodes {
    pub(super) fn new(placement: &Placement) -> Self {
        let mut inventory: BTreeMap<Arc<str>, NodePlace> =
            placement.nodes.iter().map(|node| (node.name.as_str().into(), node.clone())).collect();
        let here: Arc<str> = placement.node.as_str().into();
        let place = || NodePlace { name: placement.node.clone(), ..NodePlace::default() };
        inventory.entry(Arc::clone(&here)).or_insert_with(place);
        Self { here, inventory, known: BTreeMap::new(), elsewhere: placement.elsewhere.map(Pool::addresses) }
    }

    /// Takes what manifests say; gives the nodes that are others now, and the names of those that are gone.
    pub(super) fn update<'a>(
        &mut self,
        manifests: impl Iterator<Item = (&'a Node, Option<Ipv4Net>)>,
    ) -> (Vec<Node>, Vec<Arc<str>>) {
        let mut wanted: BTreeMap<Arc<str>, (Node, Option<Ipv4Net>)> = BTreeMap::new();
        for (name, place) in &self.inventory {
            wanted.insert(Arc::clone(name), (from_inventory(place), place.pod_cidr));
        }
        for (node, cidr) in manifests {
            let place = self.inventory.get(&node.name);
            let merged = merge(node, wanted.get(&node.name).map(|(node, _)| node));
            wanted.insert(Arc::clone(&node.name), (merged, place.and_then(|p| p.pod_cidr).or(cidr)));
        }
        let gone: Vec<_> = self.known.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.known.remove(name);
        }
        let mut changed = Vec::new();
        for (name, (node, cidr)) in wanted {
            let old = self.known.remove(&name);
            if old.as_ref().is_none_or(|old| old.node != node || old.cidr != cidr) {
                changed.push(node.clone());
            }
            let pool = match old {
                Some(old) if old.cidr == cidr => old.pool,
                _ => cidr.map(Pool::addresses),
            };
            self.known.insert(name, Known { node, cidr, pool });
        }
        (changed, gone)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// The names of the nodes that have these labels; this one first, then by name.
    pub(super) fn with_labels<'a>(
        &'a self,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let here = self.known.get_key_value(&self.here);
        let others = self.known.iter().filter(|(name, _)| **name != self.here);
        here.into_iter()
            .chain(others)
            .filter(|(_, known)| {
                labels.iter().all(|(k, v)| known.node.labels.get(k.as_str()).is_some_and(|x| **x == **v))
            })
            .map(|(name, _)| name)
    }

    /// The first address of a node.
    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.known.get(name)?.node.addresses.first().copied()
    }

    /// The addresses for pods of a node.
    pub(super) fn pool(&mut self, name: &str) -> Option<&mut Pool> {
        match self.known.get_mut(name) {
            Some(known) => known.pool.as_mut(),
            None => self.elsewhere.as_mut(),
        }
    }
}

fn from_inventory(place: &NodePlace) -> Node {
    let mut labels: BTreeMap<Arc<str>, Arc<str>> =
        place.labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
    labels.entry(HOSTNAME.into()).or_insert_with(|| place.name.as_str().into());
    if let Some(zone) = &place.zone {
        labels.entry(ZONE.into()).or_insert_with(|| zone.as_str().into());
    }
    let zone = labels.get(ZONE).cloned();
    Node { name: place.name.as_str().into(), addresses: place.addresses.clone(), zone, labels: labels.into() }
}

/// A manifest's node, with what only the inventory knows.
fn merge(node: &Node, inventory: Option<&Node>) -> Node {
    let mut node = node.clone();
    let mut labels = BTreeMap::clone(&node.labels);
    labels.entry(HOSTNAME.into()).or_insert_with(|| Arc::clone(&node.name));
    if let Some(inventory) = inventory {
        if node.addresses.is_empty() {
            node.addresses.clone_from(&inventory.addresses);
        }
        for (key, value) in inventory.labels.iter() {
            labels.entry(Arc::clone(key)).or_insert_with(|| Arc::clone(value));
        }
    }
    node.zone = labels.get(ZONE).cloned();
    node.labels = labels.into();
    node
}
