//! Pods come, change and go: who owns which address, and which class a pod is of.

use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::classes::{Traits, Turn};
use super::intern::NamedPort;
use super::{PodEntry, World};
use crate::spec::PortName;
use crate::{Phase, Pod};

/// The pods that have one address, nearly always one.
#[derive(Debug)]
pub(super) struct Takers {
    first: u32,
    more: Vec<u32>,
}

impl Takers {
    fn new(first: u32) -> Self {
        Self { first, more: Vec::new() }
    }

    /// Removes a pod; true if it was the last one.
    fn leave(&mut self, id: u32) -> bool {
        if self.first != id {
            self.more.retain(|other| *other != id);
            return false;
        }
        match self.more.pop() {
            Some(other) => self.first = other,
            None => return true,
        }
        false
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

impl World {
    pub(super) fn upsert_pod(&mut self, pod: Arc<Pod>) {
        let (pod, named) = self.intern_pod(pod);
        let known = self.namespaces.get(&pod.namespace).and_then(|n| n.pods.get(&pod.name).copied());
        if known.and_then(|id| self.pods.get(id)).is_some_and(|old| old.pod == pod) {
            return;
        }
        if let Some(id) = known {
            self.take_out(id);
        }
        let id = known.unwrap_or_else(|| self.pod_numbers.take());
        let local = self.is_local(&pod);
        let entry = self.namespaces.entry(pod.namespace.clone()).or_default();
        if known.is_none() {
            entry.pods.insert(pod.name.clone(), id);
        }
        if let Some(address) = pod.address() {
            if local {
                entry.local.insert(id);
                self.marks.subjects.insert(address);
            }
            self.takers.entry(address).and_modify(|takers| takers.more.push(id)).or_insert(Takers::new(id));
            self.mark_address(address);
        }
        self.mark_host_ports(&pod);
        self.pods.insert(id, PodEntry { pod, named, class: None });
        self.classify(id);
    }

    /// The pod of parts that are kept once: itself, where it is of those already.
    fn intern_pod(&mut self, mut pod: Arc<Pod>) -> (Arc<Pod>, Arc<[NamedPort]>) {
        let (ports, named) = self.interner.ports(&pod.ports);
        let namespace = self.interner.text(&pod.namespace);
        let labels = self.interner.labels(&pod.labels);
        let node = pod.node.as_ref().map(|node| self.interner.text(node));
        let same_node = pod.node.iter().zip(&node).all(|(a, b)| Arc::ptr_eq(a, b));
        let is_whole = same_node
            && Arc::ptr_eq(&pod.ports, &ports)
            && Arc::ptr_eq(&pod.namespace, &namespace)
            && Arc::ptr_eq(&pod.labels, &labels);
        if !is_whole {
            let own = Arc::make_mut(&mut pod);
            (own.ports, own.namespace, own.labels, own.node) = (ports, namespace, labels, node);
        }
        (pod, named)
    }

    pub(super) fn delete_pod(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let Some(entry) = self.namespaces.get_mut(namespace) else { return };
        let Some(id) = entry.pods.remove(name) else { return };
        self.take_out(id);
        self.pods.remove(id);
        self.pod_numbers.give(id);
        self.forget_namespace(namespace);
    }

    fn mark_address(&mut self, address: Ipv4Addr) {
        if self.told {
            self.marks.addresses.insert(address);
        }
    }

    /// The pod is of this node.
    pub(super) fn is_local(&self, pod: &Pod) -> bool {
        pod.node.as_ref() == Some(&self.settings.node)
    }

    /// Removes a pod from everything that is about its address.
    fn take_out(&mut self, id: u32) {
        self.declassify(id);
        let Some(entry) = self.pods.get(id) else { return };
        let pod = entry.pod.clone();
        self.mark_host_ports(&pod);
        let Some(address) = pod.address() else { return };
        if self.takers.get_mut(&address).is_some_and(|takers| takers.leave(id)) {
            self.takers.remove(&address);
        }
        self.mark_address(address);
        if let Some(namespace) = self.namespaces.get_mut(&pod.namespace)
            && namespace.local.remove(&id)
        {
            self.marks.subjects.insert(address);
        }
    }

    /// Puts a pod into its class, and its class among those of its namespace.
    pub(super) fn classify(&mut self, id: u32) {
        let Some(entry) = self.pods.get_mut(id) else { return };
        let Some(address) = entry.pod.address() else { return };
        let traits = Traits {
            namespace: entry.pod.namespace.clone(),
            labels: entry.pod.labels.clone(),
            named: entry.named.clone(),
            by_address: self.peers.matching_address(address, &entry.named),
        };
        let (class, place, turn) = self.classes.join(traits, id);
        entry.class = Some((class, place));
        if turn == Turn::Size {
            return;
        }
        if let Some(namespace) = self.namespaces.get_mut(&entry.pod.namespace) {
            namespace.classes.insert(class);
        }
        for (name, protocol, number) in &*entry.named {
            let port = PortName { name: name.clone(), protocol: *protocol };
            let numbers = self.ports.entry(port.clone()).or_default();
            *numbers.entry(*number).or_default() += 1;
            if numbers[number] == 1 {
                self.marks.ports.insert(port);
            }
        }
    }

    pub(super) fn declassify(&mut self, id: u32) {
        let Some((class, place)) = self.pods.get_mut(id).and_then(|entry| entry.class.take()) else {
            return;
        };
        let (moved, gone) = self.classes.leave(class, place);
        if let Some(moved) = moved.and_then(|pod| self.pods.get_mut(pod)) {
            moved.class = Some((class, place));
        }
        let Some(gone) = gone else { return };
        if let Some(namespace) = self.namespaces.get_mut(&gone.traits.namespace) {
            namespace.classes.remove(&class);
        }
        for (name, protocol, number) in &*gone.traits.named {
            let port = PortName { name: name.clone(), protocol: *protocol };
            let Some(numbers) = self.ports.get_mut(&port) else { continue };
            if let Some(classes) = numbers.get_mut(number) {
                *classes -= 1;
                if *classes > 0 {
                    continue;
                }
            }
            numbers.remove(number);
            if numbers.is_empty() {
                self.ports.remove(&port);
            }
            self.marks.ports.insert(port);
        }
    }

    /// The pod that an address stands for: the newest running one.
    pub(super) fn owner(&self, address: Ipv4Addr) -> Option<u32> {
        match self.takers.get(&address)? {
            Takers { first, more } if more.is_empty() => Some(*first),
            Takers { .. } => self.newest(address, |_| true),
        }
    }

    /// The pod of this node that an address isolates. Where another node claims the address, too, ours stays isolated.
    pub(super) fn local_owner(&self, address: Ipv4Addr) -> Option<u32> {
        self.newest(address, |pod| self.is_local(pod))
    }

    fn newest(&self, address: Ipv4Addr, wanted: impl Fn(&Pod) -> bool) -> Option<u32> {
        let takers = self.takers.get(&address)?;
        let takers = takers.iter().filter_map(|id| Some((id, &self.pods.get(id)?.pod)));
        let rank = |pod: &Pod| (pod.phase == Phase::Running, pod.created, !pod.terminating);
        let best = takers
            .filter(|(_, pod)| wanted(pod))
            .max_by_key(|(_, pod)| (rank(pod), Reverse((pod.namespace.clone(), pod.name.clone()))));
        best.map(|(id, _)| id)
    }
}
