//! Addresses and prefixes as one kind of thing: a block of the subnet, /32 or /28.

use crate::cloud::Placed;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// Every address of a block, the first and the last one too: a delegated prefix has no network address.
pub fn addresses(block: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    (u32::from(block.network())..=u32::from(block.broadcast())).map(Ipv4Addr::from)
}

/// Addresses as /32 and prefixes as they are.
pub fn blocks_of(what: &Placed) -> impl Iterator<Item = Ipv4Net> {
    what.addresses.iter().map(|a| Ipv4Net::from(*a)).chain(what.prefixes.iter().copied())
}

/// The other way round.
pub fn placed(blocks: impl IntoIterator<Item = Ipv4Net>) -> Placed {
    let mut placed = Placed::default();
    for block in blocks {
        if block.prefix_len() == 32 {
            placed.addresses.push(block.network());
        } else {
            placed.prefixes.push(block);
        }
    }
    placed
}

/// Maps as lists of pairs, as JSON has no keys but strings.
pub(super) mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub(in crate::store) fn serialize<S: Serializer, K: Serialize, V: Serialize>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(in crate::store) fn deserialize<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        D: Deserializer<'de>,
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}
