//! Which endpoint a client had: `ClientIP` affinity, shared by all workers.
//!
//! A client is a pod of this node, so that a small table of fixed size holds them all. It is a memory, not a promise: when
//! a client finds no room, its endpoint is one that follows from its address alone, the same at every connection for as
//! long as the endpoints are the same.
//!
//! ```text
//! bucket, one cache line:  [tag, value] x 4      a client of a service may be in one of two
//! tag:    48 bits that stand for client and service | port of the endpoint
//! value:  address of the endpoint                   | second at which it is forgotten
//! ```
//!
//! The two words of an entry are read and written one after the other. What a reader then puts together of two entries is
//! an endpoint that the service has, or else it is not believed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Backend;

/// Entries of a bucket.
const WAYS: usize = 4;
/// Buckets, a power of two: 16,384 entries in 256 KiB.
#[cfg(not(loom))]
const BUCKETS: usize = 4096;
#[cfg(loom)]
const BUCKETS: usize = 1;

#[repr(align(64))]
struct Bucket([Entry; WAYS]);

#[derive(Default)]
struct Entry {
    tag: AtomicU64,
    value: AtomicU64,
}

/// The endpoints that clients keep.
pub(crate) struct Affinity {
    buckets: Box<[Bucket]>,
    seed: u64,
}

/// A client of a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// Its address.
    pub(crate) address: u32,
    /// [`Service::id`](super::Service::id).
    pub(crate) service: u64,
}

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The endpoint that it had.
    Kept(Backend),
    /// Nothing, and what it gets can be kept.
    Room,
    /// Nothing, and nothing more can be kept.
    Full,
}

impl Affinity {
    /// The table, with all its memory.
    pub(crate) fn new(seed: u64) -> Self {
        let bucket = || Bucket(std::array::from_fn(|_| Entry::default()));
        Self { buckets: (0..BUCKETS).map(|_| bucket()).collect(), seed: seed | 1 }
    }

    /// What is known of a client in this second.
    pub(crate) fn look(&self, client: Client, second: u32) -> Known {
        let (tag, buckets) = self.place(client);
        let mut room = false;
        for entry in buckets.into_iter().flat_map(|bucket| &bucket.0) {
            let (found, value) = (entry.tag.load(Relaxed), entry.value.load(Relaxed));
            let forgotten = value as u32 <= second;
            if found >> 16 == tag && !forgotten {
                return Known::Kept(Backend { ip: (value >> 32) as u32, port: found as u16 });
            }
            room |= forgotten || found >> 16 == tag;
        }
        if room { Known::Room } else { Known::Full }
    }

    /// Remembers the endpoint that a client has got in this second, for `seconds`. Without room, or when another worker is
    /// in the way, nothing is remembered.
    pub(crate) fn keep(&self, client: Client, backend: Backend, second: u32, seconds: u32) {
        let (tag, buckets) = self.place(client);
        let new = tag << 16 | u64::from(backend.port);
        let value = u64::from(backend.ip) << 32 | u64::from(second.saturating_add(seconds));
        let entries = || buckets.into_iter().flat_map(|bucket| &bucket.0);
        let own = entries().find(|entry| entry.tag.load(Relaxed) >> 16 == tag);
        let free = || {
            entries().find(|entry| {
                let found = entry.tag.load(Relaxed);
                // Whoever exchanges the tag owns the entry: it is another client's until then.
                entry.value.load(Relaxed) as u32 <= second
                    && entry.tag.compare_exchange(found, new, Relaxed, Relaxed).is_ok()
            })
        };
        if let Some(entry) = own.or_else(free) {
            entry.value.store(value, Relaxed);
            entry.tag.store(new, Relaxed);
        }
    }

    fn place(&self, client: Client) -> (u64, [&Bucket; 2]) {
        let hash = spread(client.service ^ spread(u64::from(client.address) ^ self.seed));
        let first = hash as usize & (BUCKETS - 1);
        // Another one, where there is another one.
        let second = first ^ (hash as usize >> 12 | 1) & (BUCKETS - 1);
        // Zero is the tag of an entry that nobody has had.
        let tag = (hash >> 16).max(1);
        (tag, [&self.buckets[first], &self.buckets[second]])
    }
}

/// A number of which every bit depends on every bit of `value` (splitmix64).
pub(super) const fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Affinity, BUCKETS, Client, Known, WAYS};
    use crate::service::Backend;

    fn backend(n: u32) -> Backend {
        Backend { ip: 0x0A00_0200 + n, port: 8080 + n as u16 }
    }

    #[test]
    fn an_entry_is_kept_for_its_time_and_renewed() {
        let table = Affinity::new(7);
        let client = Client { address: 1, service: 99 };
        assert_eq!(table.look(client, 10), Known::Room);
        table.keep(client, backend(1), 10, 60);
        assert_eq!(table.look(client, 69), Known::Kept(backend(1)));
        assert_eq!(table.look(client, 70), Known::Room);
        table.keep(client, backend(1), 69, 60);
        assert_eq!(table.look(client, 128), Known::Kept(backend(1)));
        table.keep(client, backend(2), 100, 60);
        assert_eq!(table.look(client, 100), Known::Kept(backend(2)));
        assert_eq!(table.look(Client { address: 2, service: 99 }, 100), Known::Room);
        assert_eq!(table.look(Client { address: 1, service: 98 }, 100), Known::Room);
    }

    #[test]
    fn a_full_table_forgets_nobody_and_takes_nobody_until_somebodys_time_has_come() {
        let table = Affinity::new(7);
        let many = (BUCKETS * WAYS * 4) as u32;
        let client = |address| Client { address, service: 5 };
        let mut kept = Vec::new();
        for n in 0..many {
            if table.look(client(n), 1) == Known::Room {
                table.keep(client(n), backend(n % 8), 1, 60);
                kept.push(n);
            }
        }
        assert!(kept.len() > BUCKETS * WAYS * 9 / 10, "{}", kept.len());
        for n in &kept {
            assert_eq!(table.look(client(*n), 2), Known::Kept(backend(n % 8)));
        }
        let late = (0..many).find(|n| table.look(client(*n), 2) == Known::Full).unwrap();
        table.keep(client(late), backend(0), 2, 60);
        assert_eq!(table.look(client(late), 2), Known::Full);
        assert_eq!(table.look(client(late), 61), Known::Room);
        table.keep(client(late), backend(3), 61, 60);
        assert_eq!(table.look(client(late), 62), Known::Kept(backend(3)));
    }

    #[test]
    fn workers_at_once_leave_one_valid_endpoint_for_each_client() {
        let table = Affinity::new(7);
        std::thread::scope(|scope| {
            for worker in 0..4u32 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..20_000u32 {
                        let client = Client { address: round % 50, service: 1 };
                        match table.look(client, 1) {
                            Known::Kept(found) => assert!((0..4).any(|n| backend(n) == found), "{found:?}"),
                            Known::Room => table.keep(client, backend(worker), 1, 60),
                            Known::Full => panic!("fifty fit"),
                        }
                    }
                });
            }
        });
        for address in 0..50 {
            assert!(matches!(table.look(Client { address, service: 1 }, 2), Known::Kept(_)));
        }
    }
}
