//! The identity of every address of the cluster: one exact map that workers read and a change copies a small part of.
//!
//! A cluster has a hundred thousand addresses and changes some of them every second. The map is split into shards that
//! two moments share unless one of the shard's addresses has changed, so that a new pod costs a shard and not the map.

use std::sync::Arc;

use sluice_state::Addresses as Listed;

use crate::map::Map;

/// Shards: at 100,000 addresses some 50 addresses each.
const SHARDS: usize = 2048;

#[derive(Debug, Clone)]
pub(super) struct Addresses {
    shards: Arc<[Arc<Map<u32, u32>>]>,
    listed: Listed,
}

impl Default for Addresses {
    fn default() -> Self {
        let empty = Arc::new(Map::default());
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(), listed: Listed::default() }
    }
}

/// The shard of an address. The low bits of addresses are the dense ones; a multiplication spreads them to the top.
#[inline]
const fn shard(address: u32) -> usize {
    (address.wrapping_mul(0x9E37_79B1) >> (32 - SHARDS.trailing_zeros())) as usize
}

impl Addresses {
    #[inline]
    pub(super) fn identity(&self, address: u32) -> Option<u32> {
        self.shards[shard(address)].get(&address).copied()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.listed.is_same(&other.listed) || self.listed == other.listed
    }

    /// The map of `listed`, sharing with this one what has not changed.
    pub(super) fn follow(&self, listed: &Listed) -> Self {
        if self.listed.is_same(listed) {
            return self.clone();
        }
        let mut shards: Option<Vec<Arc<Map<u32, u32>>>> = None;
        let mut change = |address: u32, identity: Option<u32>| {
            let shards = shards.get_or_insert_with(|| self.shards.to_vec());
            let map = Arc::make_mut(&mut shards[shard(address)]);
            match identity {
                Some(identity) => map.insert(address, identity),
                None => map.remove(&address),
            };
        };
        let (old, new) = (self.listed.as_slice(), listed.as_slice());
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            match (old.get(i), new.get(j)) {
                (Some(a), Some(b)) if a == b => (i, j) = (i + 1, j + 1),
                (Some(a), b) if b.is_none_or(|b| a.0 < b.0) => {
                    change(a.0.to_bits(), None);
                    i += 1;
                }
                (a, Some(b)) => {
                    change(b.0.to_bits(), Some(b.1));
                    i += usize::from(a.is_some_and(|a| a.0 == b.0));
                    j += 1;
                }
                (_, None) => break,
            }
        }
        let shards = shards.map_or_else(|| Arc::clone(&self.shards), Into::into);
        Self { shards, listed: listed.clone() }
    }
}
