//! Equal values kept once. Pods of one workload share everything but name, uid and address, so a hundred thousand of them
//! cost little more than their table; and what is interned can be compared and hashed by its place.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use sluice_state::Protocol;

use crate::{ContainerPort, Labels};

/// A named port of a pod: what its name stands for.
pub(super) type NamedPort = (Arc<str>, Protocol, u16);

#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Pool<str>,
    labels: Pool<BTreeMap<Arc<str>, Arc<str>>>,
    /// The ports of containers, and those of them that have names.
    ports: HashMap<Arc<[ContainerPort]>, Arc<[NamedPort]>, foldhash::fast::RandomState>,
    named: Pool<[NamedPort]>,
}

impl Interner {
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        self.texts.keep(text)
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.known(labels) {
            return known;
        }
        let pairs = labels.iter().map(|(k, v)| (self.texts.keep(k), self.texts.keep(v)));
        self.labels.keep(&Arc::new(pairs.collect()))
    }

    pub(super) fn ports(&mut self, ports: &Arc<[ContainerPort]>) -> (Arc<[ContainerPort]>, Arc<[NamedPort]>) {
        if let Some((ports, named)) = self.ports.get_key_value(ports) {
            return (ports.clone(), named.clone());
        }
        let crowded = self.ports.len() > 1024 && self.ports.len() == self.ports.capacity();
        if crowded {
            self.ports.retain(|ports, _| Arc::strong_count(ports) > 1);
        }
        let ports = ports.clone();
        let named = ports.iter().filter_map(|p| {
            let name = p.name.as_ref()?;
            Some((name.clone(), p.protocol, p.port))
        });
        let mut named: Vec<NamedPort> = named.collect();
        named.sort_unstable();
        named.dedup();
        let named = self.named.keep(&named.into());
        self.ports.insert(ports.clone(), named.clone());
        (ports, named)
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>, foldhash::fast::RandomState>,
    /// When there are so many, those that nobody else has are thrown out.
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::default(), limit: 1024 }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn known(&self, value: &T) -> Option<Arc<T>> {
        self.values.get(value).cloned()
    }

    fn keep(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        if self.values.len() >= self.limit {
            self.values.retain(|v| Arc::strong_count(v) > 1);
            self.limit = (2 * self.values.len()).max(1024);
        }
        self.values.insert(value.clone());
        value.clone()
    }
}
