//! Services as pods of this node see them: where a connection to a frontend goes.
//!
//! Looked up for the first packet of a flow only; what was chosen is the flow's rewrite from then on. A cluster has tens
//! of thousands of services and changes one of them every second, so that the map of frontends is split into shards that
//! two moments share, and a change costs a walk along the list of services and the shards of what has changed.
//!
//! ```text
//!  address, port, protocol ──> place: who may, is it above the node's own ──> service: endpoints, affinity
//!  any of the node's ────────> place ───────────────────────────────────────>
//! ```

mod affinity;
mod compile;

use std::sync::Arc;

use sluice_state::{Service as Wanted, Shared, WithoutEndpoints};

pub(crate) use self::affinity::{Affinity, Client};
use self::affinity::{Known, spread};
use crate::flow::FlowKey;
use crate::map::Map;
use crate::random::Random;
use crate::wire::proto;

/// An address and port that serves. Host order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Its address.
    pub ip: u32,
    /// Its port.
    pub port: u16,
}

/// Frontends that share a set of endpoints, ready for the packet path.
#[derive(Debug)]
pub struct Service {
    id: u64,
    /// In order, so that membership is a binary search.
    endpoints: Box<[Backend]>,
    affinity: Option<u32>,
    without_endpoints: WithoutEndpoints,
}

/// A frontend.
#[derive(Debug, Clone)]
pub struct Place {
    service: Arc<Service>,
    sources: Option<Arc<[(u32, u32)]>>,
    over_local: bool,
}

/// The compiled services of a node.
#[derive(Debug, Clone)]
pub struct Services {
    shards: Arc<[Arc<Map<u64, Place>>]>,
    /// The service ranges as network and mask.
    ranges: Vec<(u32, u32)>,
    listed: Shared<Arc<Wanted>>,
}

/// An endpoint for one new flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) backend: Backend,
    /// To be remembered when the flow has come to be: whose it is, and for how many seconds.
    pub(crate) keep: Option<(Client, u32)>,
}

/// The key of a frontend in the map; without an address, of one on every address of the node.
const fn place_key(address: Option<u32>, port: u16, protocol: u8) -> u64 {
    let (address, any) = match address {
        Some(address) => (address, 0),
        None => (0, 1),
    };
    (address as u64) << 32 | (port as u64) << 16 | (protocol as u64) << 8 | any
}

impl Services {
    /// The frontend that a packet with this key is for; `local` when its destination is an address of this node, where
    /// only some frontends come before what is the node's own.
    #[inline]
    #[must_use]
    pub fn find(&self, key: &FlowKey, local: bool) -> Option<&Place> {
        if !matches!(key.proto(), proto::TCP | proto::UDP | proto::SCTP) {
            return None;
        }
        let exact = self.place(place_key(Some(key.dst()), key.dport(), key.proto()));
        match exact {
            Some(place) if !local || place.over_local => exact,
            _ if local => self.place(place_key(None, key.dport(), key.proto())),
            _ => None,
        }
    }

    /// Whether an address lies in the service ranges.
    #[inline]
    #[must_use]
    pub fn covers(&self, address: u32) -> bool {
        self.ranges.iter().any(|(net, mask)| address & mask == *net)
    }

    #[inline]
    fn place(&self, key: u64) -> Option<&Place> {
        self.shards[compile::shard(key)].get(&key)
    }
}

impl Place {
    /// Whether a client may use it (`loadBalancerSourceRanges`).
    #[must_use]
    pub fn admits(&self, source: u32) -> bool {
        self.sources.as_ref().is_none_or(|nets| nets.iter().any(|(net, mask)| source & mask == *net))
    }

    /// What it leads to.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }
}

impl Service {
    /// A number that stands for its name.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether this is one of its endpoints.
    #[must_use]
    pub fn has(&self, backend: Backend) -> bool {
        self.endpoints.binary_search(&backend).is_ok()
    }

    /// What becomes of a connection when there is no endpoint.
    #[must_use]
    pub const fn without_endpoints(&self) -> WithoutEndpoints {
        self.without_endpoints
    }

    /// The endpoint for a new flow of `client` at `now` (ns): the one that it had, where clients keep theirs; any other
    /// one at random. None without endpoints.
    pub(crate) fn choose(
        &self,
        client: u32,
        now: u64,
        random: &mut Random,
        affinity: &Affinity,
    ) -> Option<Choice> {
        let mut by_chance =
            || self.endpoints.get(random.below(self.endpoints.len() as u32) as usize).copied();
        let Some(seconds) = self.affinity else {
            return by_chance().map(|backend| Choice { backend, keep: None });
        };
        let client = Client { address: client, service: self.id };
        let keep = Some((client, seconds));
        let choice = match affinity.look(client, second(now)) {
            Known::Kept(backend) if self.has(backend) => Choice { backend, keep },
            Known::Kept(_) | Known::Room => Choice { backend: by_chance()?, keep },
            Known::Full => Choice { backend: self.steady(client)?, keep: None },
        };
        Some(choice)
    }

    /// The endpoint that follows from the client alone: the highest of one number for each (rendezvous hashing), so that a
    /// change of the endpoints moves only the clients of those that go, and to those that come.
    fn steady(&self, client: Client) -> Option<Backend> {
        let own = spread(client.service ^ u64::from(client.address));
        let score = |b: &Backend| spread(own ^ (u64::from(b.ip) << 16 | u64::from(b.port)));
        self.endpoints.iter().copied().max_by_key(score)
    }
}

/// The second of a time in nanoseconds. It lasts for 136 years of running.
pub(crate) const fn second(now: u64) -> u32 {
    (now / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests;
