//! Equal values kept once. Pods of one workload share everything but name, uid and address, so a hundred thousand of them
//! cost little more than their table; and what is interned can be compared and hashed by its place.

use std::sync::Arc;

use hashbrown::HashMap;
use sluice_state::Protocol;

use crate::{ContainerPort, LabelPool, Labels, Pool};

/// A named port of a pod: what its name stands for.
pub(super) type NamedPort = (Arc<str>, Protocol, u16);

#[derive(Debug)]
pub(super) struct Interner {
    labels: LabelPool,
    /// The ports of containers, and those of them that have names.
    ports: HashMap<Arc<[ContainerPort]>, Arc<[NamedPort]>, foldhash::fast::RandomState>,
    named: Pool<[NamedPort]>,
}

impl Default for Interner {
    fn default() -> Self {
        Self { labels: LabelPool::new(1), ports: HashMap::default(), named: Pool::new(1) }
    }
}

impl Interner {
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        self.labels.text(text)
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        self.labels.labels(labels)
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
