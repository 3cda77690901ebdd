//! Manifests' pods in their places: which node, which address, which phase.
//!
//! A pod keeps its place while it exists. There is no scheduler: a pod goes where `nodeName` or `nodeSelector` say, and to
//! this node otherwise. What has no free address waits as Pending until there is one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice_policy::{Phase, Pod};

use super::decode::{Key, Kind};
use super::finding::Severity;
use super::nodes::Nodes;
use super::placement::{Allocations, Placement, Slot};
use super::problems::Problems;
use super::source::{Pods, Replicas, Template};

/// Namespace and name of a pod.
pub(super) type PodId = (Arc<str>, Arc<str>);

/// A pod in its place.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// As everybody else sees it.
    pub pod: Arc<Pod>,
    /// Its conditions do not say that it is not ready.
    pub ready: bool,
    owner: Key,
    held: Held,
    asked: Option<Ipv4Addr>,
    has_phase: bool,
}

/// What a pod must give back when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Slot(usize),
    /// An address of its node's range.
    Address(Ipv4Addr),
}

/// A pod that was, is now, or is another one now.
#[derive(Debug)]
pub(super) struct Moved {
    pub id: PodId,
    pub before: Option<Arc<Pod>>,
}

/// Every pod.
#[derive(Debug)]
pub(super) struct PodSet {
    pods: BTreeMap<PodId, Placed>,
    /// The pods of workloads. A Pod's own is the one of its name.
    owned: HashMap<Key, Box<[PodId]>>,
    /// Owners that want a name that another one's pod has.
    blocked: BTreeSet<Key>,
    /// Pods that wait for an address.
    waiting: BTreeSet<PodId>,
    slots: Option<Vec<Slot>>,
    /// How many of them were there from the beginning.
    written: usize,
    tenants: Vec<Option<PodId>>,
    remembered: BTreeMap<String, Ipv4Addr>,
}

/// A pod that a manifest asks for.
struct Wanted {
    owner: Key,
    pod: Arc<Pod>,
    has_phase: bool,
    ready: bool,
}

impl PodSet {
    pub(super) fn new(placement: &Placement, allocations: &Allocations) -> Self {
        let slots = placement.slots.clone();
        Self {
            pods: BTreeMap::new(),
            owned: HashMap::new(),
            blocked: BTreeSet::new(),
            waiting: BTreeSet::new(),
            tenants: vec![None; slots.as_ref().map_or(0, Vec::len)],
            written: slots.as_ref().map_or(0, Vec::len),
            slots,
            remembered: allocations.pods.clone(),
        }
    }

    /// A pod.
    pub(super) fn pod(&self, id: &PodId) -> Option<&Placed> {
        self.pods.get(id)
    }

    /// Makes a place; gives the pods that have changed.
    pub(super) fn open(&mut self, slot: Slot, nodes: &mut Nodes, problems: &mut Problems) -> Vec<Moved> {
        let slots = self.slots.get_or_insert_default();
        // Whose place it is, moves into it.
        if let Some((namespace, name)) = &slot.pod {
            let id: PodId = (namespace.as_str().into(), name.as_str().into());
            if let Some(placed) = self.pods.get_mut(&id)
                && let Held::Slot(i) = placed.held
            {
                placed.held = Held::Nothing;
                self.tenants[i] = None;
                self.waiting.insert(id);
            }
        }
        match slots.iter().position(Slot::is_closed) {
            Some(i) => slots[i] = slot,
            None => {
                slots.push(slot);
                self.tenants.push(None);
            }
        }
        self.seat(nodes, problems)
    }

    /// Ends a place; who had it looks for another one. Gives the pods that have changed.
    pub(super) fn close(&mut self, ip: Ipv4Addr, nodes: &mut Nodes, problems: &mut Problems) -> Vec<Moved> {
        let slots = self.slots.as_deref_mut().unwrap_or_default();
        let Some(i) = slots.iter().position(|slot| slot.ip == ip && !slot.is_closed()) else {
            return Vec::new();
        };
        slots[i] = Slot::closed();
        if let Some(id) = self.tenants[i].take()
            && let Some(placed) = self.pods.get_mut(&id)
        {
            placed.held = Held::Nothing;
            self.waiting.insert(id);
        }
        self.seat(nodes, problems)
    }

    /// Gives places to those who wait for one.
    fn seat(&mut self, nodes: &mut Nodes, problems: &mut Problems) -> Vec<Moved> {
        let mut moved = Vec::new();
        self.place(BTreeMap::new(), nodes, problems, &mut moved);
        moved
    }

    /// Every manifest that has pods.
    pub(super) fn owners(&self) -> impl Iterator<Item = &Key> {
        let single = self.pods.values().map(|placed| &placed.owner).filter(|owner| owner.kind == Kind::Pod);
        self.owned.keys().chain(single)
    }

    /// The pods of a namespace, by name.
    pub(super) fn of_namespace<'a>(&'a self, namespace: &Arc<str>) -> impl Iterator<Item = &'a Placed> {
        let first = (Arc::clone(namespace), Arc::from(""));
        let namespace = Arc::clone(namespace);
        self.pods.range(first..).take_while(move |((n, _), _)| *n == namespace).map(|(_, placed)| placed)
    }

    /// The addresses of this node's pods.
    pub(super) fn allocations(&self) -> BTreeMap<String, Ipv4Addr> {
        self.tenants().into_iter().map(|(ip, id)| (full_name(id), ip)).collect()
    }

    /// Who has which place of this node.
    pub(super) fn tenants(&self) -> BTreeMap<Ipv4Addr, &PodId> {
        let slots = self.slots.as_deref().unwrap_or_default();
        slots.iter().zip(&self.tenants).filter_map(|(slot, id)| Some((slot.ip, id.as_ref()?))).collect()
    }

    /// Brings the pods of the owners up to what their manifests say; gives those that have changed.
    pub(super) fn update<'a>(
        &mut self,
        mut dirty: BTreeSet<Key>,
        source: impl Fn(&Key) -> Option<&'a Pods>,
        nodes: &mut Nodes,
        problems: &mut Problems,
    ) -> Vec<Moved> {
        dirty.append(&mut self.blocked);
        let mut expanded: BTreeMap<Key, Vec<(PodId, Arc<Pod>)>> = BTreeMap::new();
        while let Some(owner) = dirty.pop_first() {
            problems.clear(&owner);
            let pods = source(&owner).map(|pods| expand(&owner, pods, nodes, problems)).unwrap_or_default();
            // Who holds a name that another one wants is asked, too: whose it is must not depend on who came first.
            let holders = pods.iter().filter_map(|(id, _)| self.pods.get(id)).map(|placed| &placed.owner);
            dirty.extend(holders.filter(|h| **h != owner && !expanded.contains_key(*h)).cloned());
            expanded.insert(owner, pods);
        }
        let mut wanted: BTreeMap<PodId, Wanted> = BTreeMap::new();
        let mut gone: BTreeSet<PodId> = BTreeSet::new();
        for (owner, pods) in expanded {
            if owner.kind == Kind::Pod {
                let id = (Arc::clone(&owner.namespace), Arc::clone(&owner.name));
                let holds = self.pods.get(&id).is_some_and(|placed| placed.owner == owner);
                gone.extend(holds.then_some(id));
            } else {
                gone.extend(self.owned.remove(&owner).unwrap_or_default());
            }
            let Some(template) = source(&owner).map(|pods| &pods.template) else { continue };
            let mut own = Vec::with_capacity(pods.len());
            for (id, pod) in pods {
                if let Some(other) = wanted.get(&id).map(|other| &other.owner) {
                    let name = full_name(&id);
                    let message = format!("is not whole: pod {name} is already there, made by {other}");
                    problems.add(&owner, Severity::Error, &message);
                    self.blocked.insert(owner.clone());
                    continue;
                }
                own.push(id.clone());
                let (ready, has_phase) = (template.ready, template.has_phase);
                wanted.insert(id, Wanted { owner: owner.clone(), pod, has_phase, ready });
            }
            if owner.kind != Kind::Pod {
                self.owned.insert(owner, own.into());
            }
        }
        gone.retain(|id| !wanted.contains_key(id));
        let mut moved = Vec::new();
        for id in gone {
            problems.clear_pod(&id);
            self.waiting.remove(&id);
            if let Some(placed) = self.pods.remove(&id) {
                self.give_back(&placed, nodes);
                moved.push(Moved { id, before: Some(placed.pod) });
            }
        }
        self.place(wanted, nodes, problems, &mut moved);
        moved
    }

    fn place(
        &mut self,
        wanted: BTreeMap<PodId, Wanted>,
        nodes: &mut Nodes,
        problems: &mut Problems,
        moved: &mut Vec<Moved>,
    ) {
        let mut before: BTreeMap<PodId, Option<Arc<Pod>>> = BTreeMap::new();
        let mut homeless: BTreeSet<PodId> = BTreeSet::new();
        // First what pods hold already, so that nobody takes it from them.
        for (id, wanted) in wanted {
            let Wanted { owner, mut pod, has_phase, ready } = wanted;
            let asked = pod.ip;
            let old = self.pods.remove(&id);
            let stays = old.as_ref().is_some_and(|old| {
                old.asked == asked
                    && old.pod.node == pod.node
                    && old.pod.host_network == pod.host_network
                    && is_finished(&old.pod) == is_finished(&pod)
            });
            let mut held = Held::Nothing;
            match &old {
                Some(old) if stays => {
                    held = old.held;
                    set_address(&mut pod, old.pod.ip);
                }
                Some(old) => self.give_back(old, nodes),
                None => {}
            }
            if held == Held::Nothing {
                homeless.insert(id.clone());
            } else if !has_phase {
                follow_address(&mut pod);
            }
            before.insert(id.clone(), old.map(|old| old.pod));
            self.pods.insert(id, Placed { pod, ready, owner, held, asked, has_phase });
        }
        // Those that ask for an address are first, then those that had one before a restart, then those that take any.
        for id in &self.waiting {
            before.entry(id.clone()).or_insert_with(|| self.pods.get(id).map(|p| p.pod.clone()));
        }
        homeless.extend(std::mem::take(&mut self.waiting));
        let mut homeless: Vec<_> = homeless.into_iter().collect();
        homeless.sort_by_cached_key(|id| {
            let asks = self.pods.get(id).is_some_and(|placed| placed.asked.is_some());
            (!asks, !self.remembered.contains_key(&full_name(id)))
        });
        for id in homeless {
            let Some(mut placed) = self.pods.remove(&id) else { continue };
            problems.clear_pod(&id);
            let (ip, held) = self.home(&id, &placed, nodes, problems);
            placed.held = held;
            set_address(&mut placed.pod, ip);
            if !placed.has_phase {
                follow_address(&mut placed.pod);
            }
            self.pods.insert(id, placed);
        }
        for (id, before) in before {
            if self.pods.get(&id).map(|p| &p.pod) != before.as_ref() {
                moved.push(Moved { id, before });
            }
        }
    }

    /// Finds an address for a pod.
    fn home(
        &mut self,
        id: &PodId,
        placed: &Placed,
        nodes: &mut Nodes,
        problems: &mut Problems,
    ) -> (Option<Ipv4Addr>, Held) {
        let mut say = |message: String| problems.add_pod(id, &placed.owner, Severity::Warning, &message);
        let pod = &placed.pod;
        let Some(node) = pod.node.clone() else { return (placed.asked, Held::Nothing) };
        if is_finished(pod) {
            return (placed.asked, Held::Nothing);
        }
        if pod.host_network {
            let address = nodes.address(&node);
            if address.is_none() {
                say(format!("has no address: node {node} has none"));
            }
            return (address, Held::Nothing);
        }
        if node == nodes.here && self.slots.is_some() {
            return match self.slot(id, placed.asked) {
                Ok(slot) => {
                    self.tenants[slot.0] = Some(id.clone());
                    (Some(slot.1), Held::Slot(slot.0))
                }
                Err(message) => {
                    say(message);
                    if placed.asked.is_none() {
                        self.waiting.insert(id.clone());
                    }
                    (placed.asked, Held::Nothing)
                }
            };
        }
        let known = nodes.contains(&node);
        let pool = nodes.pool(&node);
        if let Some(asked) = placed.asked {
            let took = pool.is_some_and(|pool| pool.take(asked.to_bits()));
            return (Some(asked), if took { Held::Address(asked) } else { Held::Nothing });
        }
        let Some(pool) = pool else {
            let way = if known { "has no pod_cidr" } else { "is in no inventory and no manifest" };
            say(format!("has no address: its node {node} {way}"));
            self.waiting.insert(id.clone());
            return (None, Held::Nothing);
        };
        if let Some(address) = pool.choose(&full_name(id)).map(Ipv4Addr::from_bits) {
            return (Some(address), Held::Address(address));
        }
        say(format!("has no address: all of node {node}'s are taken"));
        self.waiting.insert(id.clone());
        (None, Held::Nothing)
    }

    /// The slot of this node that a pod gets: its own, the one it asks for, the one it had, or the first free one.
    fn slot(&self, id: &PodId, asked: Option<Ipv4Addr>) -> Result<(usize, Ipv4Addr), String> {
        let slots = self.slots.as_deref().unwrap_or_default();
        let is_own =
            |slot: &Slot| slot.pod.as_ref().is_some_and(|(ns, name)| **ns == *id.0 && **name == *id.1);
        let free = |i: usize| self.tenants[i].is_none();
        let numbered = || slots.iter().enumerate();
        let name = full_name(id);
        if let Some(ip) = asked {
            let Some((i, slot)) = numbered().find(|(_, slot)| slot.ip == ip) else {
                return Err(format!("has no path: its address {ip} is no pod's of the inventory"));
            };
            if !free(i) {
                let other = self.tenants[i].as_ref().map(full_name).unwrap_or_default();
                return Err(format!("has no path: pod {other} has its address {ip}"));
            }
            return match &slot.pod {
                Some((ns, other)) if !is_own(slot) => {
                    Err(format!("has no path: the inventory keeps its address {ip} for {ns}/{other}"))
                }
                _ => Ok((i, ip)),
            };
        }
        let own = numbered().find(|(i, slot)| is_own(slot) && free(*i));
        let had = self.remembered.get(&name);
        let had = || numbered().find(|(i, slot)| slot.pod.is_none() && free(*i) && had == Some(&slot.ip));
        // What others had before a restart is theirs as long as there is anything else.
        let theirs: BTreeSet<_> = self.remembered.values().collect();
        let any = |spare: bool| {
            numbered()
                .find(|(i, slot)| slot.pod.is_none() && free(*i) && (spare || !theirs.contains(&slot.ip)))
        };
        let found = own.or_else(had).or_else(|| any(false)).or_else(|| any(true));
        found.map(|(i, slot)| (i, slot.ip)).ok_or_else(|| match self.written {
            0 => {
                "waits: this node has no place for pods: add a [[pod]] to the inventory, or let a container \
                      runtime add the pod (CNI)"
                    .to_owned()
            }
            total => format!(
                "waits: none of this node's {total} places for pods is free; add a [[pod]] to the inventory"
            ),
        })
    }

    fn give_back(&mut self, placed: &Placed, nodes: &mut Nodes) {
        match placed.held {
            Held::Nothing => {}
            Held::Slot(i) => self.tenants[i] = None,
            Held::Address(address) => {
                let pool = placed.pod.node.as_ref().and_then(|node| nodes.pool(node));
                if let Some(pool) = pool {
                    pool.give_back(address.to_bits());
                }
            }
        }
    }
}

fn set_address(pod: &mut Arc<Pod>, ip: Option<Ipv4Addr>) {
    if pod.ip != ip {
        Arc::make_mut(pod).ip = ip;
    }
}

/// A pod of which nobody says in which phase it is runs as soon as it has an address.
fn follow_address(pod: &mut Arc<Pod>) {
    let phase = if pod.ip.is_some() { Phase::Running } else { Phase::Pending };
    if pod.phase != phase {
        Arc::make_mut(pod).phase = phase;
    }
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.phase, Phase::Succeeded | Phase::Failed)
}

pub(super) fn full_name(id: &PodId) -> String {
    format!("{}/{}", id.0, id.1)
}

/// The pods that a manifest asks for, each with its name and its node.
fn expand(owner: &Key, pods: &Pods, nodes: &Nodes, problems: &mut Problems) -> Vec<(PodId, Arc<Pod>)> {
    let template = &pods.template;
    let single = |name: String, labels: &[(&str, String)]| {
        let mut pod = named(template, name, labels);
        if pod.node.is_none() {
            Arc::make_mut(&mut pod).node = nodes.with_labels(&template.node_selector).next().cloned();
        }
        ((Arc::clone(&owner.namespace), Arc::clone(&pod.name)), pod)
    };
    let list: Vec<_> = match pods.replicas {
        Replicas::Itself => vec![single(owner.name.to_string(), &[])],
        Replicas::Numbered { first, count, labelled } => (0..count)
            .map(|i| {
                let number = u64::from(first) + u64::from(i);
                let name = format!("{}-{number}", owner.name);
                let labels = [
                    ("statefulset.kubernetes.io/pod-name", name.clone()),
                    ("apps.kubernetes.io/pod-index", number.to_string()),
                ];
                single(name, if labelled { &labels } else { &[] })
            })
            .collect(),
        Replicas::EachNode => nodes
            .with_labels(&template.node_selector)
            .map(|node| {
                let mut pod = named(template, format!("{}-{node}", owner.name), &[]);
                Arc::make_mut(&mut pod).node = Some(Arc::clone(node));
                ((Arc::clone(&owner.namespace), Arc::clone(&pod.name)), pod)
            })
            .collect(),
    };
    if list.is_empty() || list.iter().any(|(_, pod)| pod.node.is_none()) {
        let nowhere = pods.replicas == Replicas::EachNode || !list.is_empty();
        if nowhere {
            let selector = serde_json::to_string(&template.node_selector).unwrap_or_default();
            problems.add(
                owner,
                Severity::Warning,
                &format!("has no node: none has the labels of its nodeSelector {selector}"),
            );
        }
    }
    list
}

fn named(template: &Template, name: String, labels: &[(&str, String)]) -> Arc<Pod> {
    let mut shared = Arc::clone(&template.pod);
    if *shared.name == *name && !shared.uid.is_empty() && labels.is_empty() {
        return shared;
    }
    let pod = Arc::make_mut(&mut shared);
    if *pod.name != *name {
        pod.name = name.into();
    }
    if pod.uid.is_empty() {
        pod.uid = format!("{}/{}", pod.namespace, pod.name).into();
    }
    if !labels.is_empty() {
        let mut all = BTreeMap::clone(&pod.labels);
        all.extend(labels.iter().map(|(key, value)| (Arc::from(*key), Arc::from(value.as_str()))));
        pod.labels = all.into();
    }
    shared
}
