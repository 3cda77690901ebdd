//! Compiling services: from what the moment before had, only what differs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use ipnet::Ipv4Net;
use sluice_state::{Service as Wanted, Services as State, Shared};

use super::{Backend, Place, Service, Services, place_key};
use crate::map::Map;

/// Shards: at 50,000 frontends some 50 of them each.
const SHARDS: usize = 1024;

/// The shard of a frontend's key.
#[inline]
pub(super) const fn shard(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SHARDS.trailing_zeros())) as usize
}

/// A service that is not what it was.
struct Change<'a> {
    old: Option<&'a Arc<Wanted>>,
    new: Option<&'a Arc<Wanted>>,
}

impl Default for Services {
    fn default() -> Self {
        let empty = Arc::new(Map::default());
        Self {
            shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(),
            ranges: Vec::new(),
            listed: Shared::default(),
        }
    }
}

impl Services {
    /// The services of a state, sharing with these what has not changed. True with it: a flow may have to go elsewhere
    /// than it went, because an endpoint is gone or an address became a service or ceased to be one.
    #[must_use]
    pub fn follow(&self, state: &State) -> (Self, bool) {
        let ranges = nets(&state.cidrs);
        let (old, new) = if self.listed.is_same(&state.services) {
            Default::default()
        } else {
            differing(&self.listed, &state.services)
        };
        let changes = changes(old, new);
        let moved = ranges != self.ranges || changes.iter().any(Change::moves_flows);
        let listed = state.services.clone();
        if changes.is_empty() {
            return (Self { shards: Arc::clone(&self.shards), ranges, listed }, moved);
        }
        let mut shards = self.shards.to_vec();
        for old in changes.iter().filter_map(|change| change.old) {
            for key in keys(old) {
                Arc::make_mut(&mut shards[shard(key)]).remove(&key);
            }
        }
        for new in changes.iter().filter_map(|change| change.new) {
            let service = Arc::new(Service::new(new));
            for (frontend, key) in new.frontends.iter().zip(keys(new)) {
                let place = Place {
                    service: Arc::clone(&service),
                    sources: frontend.sources.as_deref().map(|cidrs| nets(cidrs).into()),
                    over_local: frontend.over_local,
                };
                Arc::make_mut(&mut shards[shard(key)]).insert(key, place);
            }
        }
        (Self { shards: shards.into(), ranges, listed }, moved)
    }
}

impl Service {
    fn new(wanted: &Wanted) -> Self {
        let mut name = DefaultHasher::new();
        wanted.name.hash(&mut name);
        let mut endpoints: Vec<_> =
            wanted.endpoints.iter().map(|e| Backend { ip: e.ip.to_bits(), port: e.port }).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Self {
            id: name.finish(),
            endpoints: endpoints.into(),
            affinity: wanted.affinity,
            without_endpoints: wanted.without_endpoints,
        }
    }
}

impl Change<'_> {
    /// Whether a live flow may have to go elsewhere. More endpoints take none away.
    fn moves_flows(&self) -> bool {
        match (self.old, self.new) {
            (Some(old), Some(new)) => {
                let same_places = old.protocol == new.protocol && old.frontends == new.frontends;
                let mut left = new.endpoints.clone();
                left.sort_unstable_by_key(|e| (e.ip, e.port));
                let stays = |e: &sluice_state::Endpoint| {
                    left.binary_search_by_key(&(e.ip, e.port), |e| (e.ip, e.port))
                };
                !same_places || !old.endpoints.iter().all(|e| stays(e).is_ok())
            }
            _ => true,
        }
    }
}

fn keys(service: &Wanted) -> impl Iterator<Item = u64> {
    let protocol = service.protocol.number();
    service
        .frontends
        .iter()
        .map(move |f| place_key(f.address.map(std::net::Ipv4Addr::to_bits), f.port, protocol))
}

fn nets(cidrs: &[Ipv4Net]) -> Vec<(u32, u32)> {
    cidrs.iter().map(|c| (c.network().to_bits(), c.netmask().to_bits())).collect()
}

/// The parts of two lists between what both begin with and what both end with. Only pointers are compared.
fn differing<'a>(old: &'a [Arc<Wanted>], new: &'a [Arc<Wanted>]) -> (&'a [Arc<Wanted>], &'a [Arc<Wanted>]) {
    let same = |(a, b): &(&Arc<Wanted>, &Arc<Wanted>)| Arc::ptr_eq(a, b);
    let head = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    (&old[..old.len() - tail], &new[..new.len() - tail])
}

/// What differs between two lists of services. They are nearly always the same, but for one that was replaced where it
/// stood, left out, or put at the end: a walk along both. Only where they go apart in another way are they matched by name.
fn changes<'a>(old: &'a [Arc<Wanted>], new: &'a [Arc<Wanted>]) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let differ = |old: &'a Arc<Wanted>, new: &'a Arc<Wanted>, changes: &mut Vec<Change<'a>>| {
        if !Arc::ptr_eq(old, new) && old != new {
            changes.push(Change { old: Some(old), new: Some(new) });
        }
    };
    let named = |a: &Arc<Wanted>, b: &Arc<Wanted>| Arc::ptr_eq(a, b) || a.name == b.name;
    let (mut old, mut new) = (old, new);
    while let ([a, old_rest @ ..], [b, new_rest @ ..]) = (old, new) {
        if named(a, b) {
            differ(a, b, &mut changes);
            (old, new) = (old_rest, new_rest);
        } else if old_rest.first().is_some_and(|next| named(next, b)) {
            changes.push(Change { old: Some(a), new: None });
            old = old_rest;
        } else {
            break;
        }
    }
    let mut left: HashMap<&str, &'a Arc<Wanted>> = old.iter().map(|s| (s.name.as_str(), s)).collect();
    for b in new {
        match left.remove(b.name.as_str()) {
            Some(a) => differ(a, b, &mut changes),
            None => changes.push(Change { old: None, new: Some(b) }),
        }
    }
    changes.extend(left.into_values().map(|a| Change { old: Some(a), new: None }));
    changes
}
