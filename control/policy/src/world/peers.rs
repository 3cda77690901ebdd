//! Peers of all policies, each a numbered selector, found by the labels of a pod instead of by trying them all: a cluster
//! has thousands of peers, and a new pod matches a handful.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::intern::NamedPort;
use crate::Labels;
use crate::numbers::Numbers;
use crate::spec::{PortName, Scope, Who};

type Hashing = foldhash::fast::RandomState;

/// What a selector stands for: who, and for an egress rule with a port's name also what the name must stand for there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) who: Who,
    pub(super) named: Option<(PortName, u16)>,
}

/// What terms are matched against. All pods of a class are equal in it.
pub(super) struct Candidate<'a> {
    pub(super) namespace: &'a Arc<str>,
    /// The namespace's labels; absent: the namespace is not known, and no namespace selector matches it.
    pub(super) namespace_labels: Option<&'a Labels>,
    pub(super) labels: &'a Labels,
    pub(super) named: &'a [NamedPort],
}

impl Term {
    /// Terms with a block depend on the pod's address and match no candidate.
    pub(super) fn matches(&self, candidate: &Candidate<'_>) -> bool {
        let who = match &self.who {
            Who::EveryPod => true,
            Who::Pods { namespaces, pods } => {
                let namespace = match namespaces {
                    Scope::Own(own) => own == candidate.namespace,
                    Scope::Selected(selector) => {
                        candidate.namespace_labels.is_some_and(|l| selector.matches(l))
                    }
                };
                namespace && pods.matches(candidate.labels)
            }
            Who::Block { .. } => false,
        };
        who && self.has_port(candidate.named)
    }

    /// A term with a block matches a pod.
    pub(super) fn matches_address(&self, address: Ipv4Addr, named: &[NamedPort]) -> bool {
        let Who::Block { cidr, except } = &self.who else { return false };
        cidr.contains(&address) && !except.iter().any(|e| e.contains(&address)) && self.has_port(named)
    }

    fn has_port(&self, named: &[NamedPort]) -> bool {
        self.named.as_ref().is_none_or(|(port, number)| {
            named
                .iter()
                .any(|(name, protocol, n)| name == &port.name && *protocol == port.protocol && n == number)
        })
    }

    /// The one namespace whose pods it can match.
    pub(super) fn namespace(&self) -> Option<&Arc<str>> {
        match &self.who {
            Who::Pods { namespaces: Scope::Own(own), .. } => Some(own),
            _ => None,
        }
    }

    fn anchor(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        match &self.who {
            Who::Pods { pods, .. } => pods.anchor(),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    ids: HashMap<Arc<Term>, u32, Hashing>,
    terms: HashMap<u32, (Arc<Term>, u32), Hashing>,
    numbers: Numbers,
    /// Terms of one namespace, and those of more.
    own: HashMap<Arc<str>, Bucket, Hashing>,
    wide: Bucket,
    /// Terms with a block.
    blocks: Vec<u32>,
    /// Terms that came or went since [`Peers::changed`].
    changed: Vec<Arc<Term>>,
}

/// Terms by the value of the label that they need.
type ByValue = HashMap<Arc<str>, Vec<u32>, Hashing>;

/// Terms by a label that they need; the rest need none.
#[derive(Debug, Default)]
struct Bucket {
    anchored: HashMap<Arc<str>, ByValue, Hashing>,
    rest: Vec<u32>,
}

impl Bucket {
    fn list(&mut self, anchor: Option<(&Arc<str>, &Arc<str>)>) -> &mut Vec<u32> {
        match anchor {
            Some((key, value)) => {
                self.anchored.entry(key.clone()).or_default().entry(value.clone()).or_default()
            }
            None => &mut self.rest,
        }
    }

    /// Removes a term; true if the bucket is empty now.
    fn remove(&mut self, anchor: Option<(&Arc<str>, &Arc<str>)>, id: u32) -> bool {
        let list = self.list(anchor);
        list.retain(|other| *other != id);
        if list.is_empty()
            && let Some((key, value)) = anchor
            && let Some(values) = self.anchored.get_mut(key)
        {
            values.remove(value);
            if values.is_empty() {
                self.anchored.remove(key);
            }
        }
        self.anchored.is_empty() && self.rest.is_empty()
    }
}

impl Peers {
    /// The number of a term, for one more user of it.
    pub(super) fn acquire(&mut self, term: Term) -> u32 {
        if let Some(id) = self.ids.get(&term) {
            if let Some((_, users)) = self.terms.get_mut(id) {
                *users += 1;
            }
            return *id;
        }
        let (id, term) = (self.numbers.take(), Arc::new(term));
        self.ids.insert(term.clone(), id);
        self.terms.insert(id, (term.clone(), 1));
        match (&term.who, term.namespace()) {
            (Who::Block { .. }, _) => self.blocks.push(id),
            (_, Some(own)) => self.own.entry(own.clone()).or_default().list(term.anchor()).push(id),
            (_, None) => self.wide.list(term.anchor()).push(id),
        }
        self.changed.push(term);
        id
    }

    /// One user less; the last one frees the number.
    pub(super) fn release(&mut self, id: u32) {
        let Some((term, users)) = self.terms.get_mut(&id) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        let term = term.clone();
        self.terms.remove(&id);
        self.ids.remove(&term);
        self.numbers.give(id);
        match (&term.who, term.namespace()) {
            (Who::Block { .. }, _) => self.blocks.retain(|other| *other != id),
            (_, Some(own)) => {
                if self.own.get_mut(own).is_some_and(|bucket| bucket.remove(term.anchor(), id)) {
                    self.own.remove(own);
                }
            }
            (_, None) => {
                self.wide.remove(term.anchor(), id);
            }
        }
        self.changed.push(term);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let bucket = |b: &Bucket| b.anchored.is_empty() && b.rest.is_empty();
        self.ids.is_empty() && self.terms.is_empty() && self.own.is_empty() && bucket(&self.wide)
    }

    /// The terms that came or went since this was last asked.
    pub(super) fn changed(&mut self) -> Vec<Arc<Term>> {
        std::mem::take(&mut self.changed)
    }

    /// The selectors that match a candidate, added to those that match its address, in order.
    pub(super) fn matching(&self, candidate: &Candidate<'_>, by_address: &[u32]) -> Vec<u32> {
        let mut ids = by_address.to_vec();
        let hit = |id: &&u32| self.terms.get(*id).is_some_and(|(term, _)| term.matches(candidate));
        for bucket in self.own.get(candidate.namespace).into_iter().chain([&self.wide]) {
            ids.extend(bucket.rest.iter().filter(hit));
            if bucket.anchored.is_empty() {
                continue;
            }
            for (key, value) in &**candidate.labels {
                let anchored = bucket.anchored.get(key).and_then(|values| values.get(value));
                ids.extend(anchored.into_iter().flatten().filter(hit));
            }
        }
        ids.sort_unstable();
        ids
    }

    /// The selectors with a block that match a pod by its address.
    pub(super) fn matching_address(&self, address: Ipv4Addr, named: &[NamedPort]) -> Vec<u32> {
        if named.is_empty() {
            return Vec::new();
        }
        let mut ids: Vec<u32> = self.blocks.clone();
        ids.retain(|id| self.terms.get(id).is_some_and(|(term, _)| term.matches_address(address, named)));
        ids.sort_unstable();
        ids
    }
}
