//! Fragments: shallow virtual reassembly.
//!
//! Only the first fragment of a datagram has ports, so only it can be judged and translated; what is decided for it holds
//! for the rest. Nothing is put together: fragments that follow their first one pass at once, those that overtook it wait
//! for it, in the order in which they came. All fragments of a datagram meet at one worker ([`owner`]), so there is no lock.
//!
//! ```text
//! later, no first yet ----> held (bounded in number and time) ---- first comes ----> release, in order of arrival
//! later, first known  ----> passes with the first one's decision
//! overlap, duplicate  ----> dropped by name
//! ```
//!
//! Memory is allocated once, in [`FragTable::new`]:
//!
//! ```text
//! buckets[hash] -> datagrams[i] -> chained by `chain`; each is in one of two queues by age (waiting, decided) or free
//!                     '-> held[j] -> held[k] -> ...     the items that wait, owned here
//! ```

#![forbid(unsafe_code)]

mod ids;
mod ranges;
#[cfg(test)]
mod tests;

pub use ids::FragmentIds;

use crate::flow::FlowKey;
use crate::verdict::Drop;
use crate::wire::Parsed;
use ranges::Ranges;

/// How much may wait, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Fragments that wait for their first one.
    pub held: u32,
    /// Datagrams known at once; raised above `held`, so that a first fragment always finds a place.
    pub datagrams: u32,
    /// Nanoseconds for which a datagram waits for its first fragment, and is remembered after it. Linux: 30 s.
    pub timeout: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { held: 256, datagrams: 4096, timeout: 30_000_000_000 }
    }
}

/// What becomes of a later fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Later<T, D> {
    /// Its first fragment passed: the same for this one.
    Pass(T, D),
    /// It waits for its first fragment, here.
    Held,
    /// Dropped, for this reason.
    Drop(T, Drop),
}

/// The worker that owns all fragments of a datagram, of `workers`. The ingress does not count: it is the same for all.
#[must_use]
pub fn owner(parsed: &Parsed, seed: u64, workers: usize) -> usize {
    // The upper half of the hash, because the lower bits choose the bucket.
    ((u128::from(hash(&key_of(parsed), seed)) * workers.max(1) as u128) >> 64) as usize
}

/// What one worker knows of fragmented datagrams. `T` is what is held, frame and all that belongs to it; `D` is what the
/// worker decided for a first fragment.
#[derive(Debug)]
pub struct FragTable<T, D> {
    limits: Limits,
    seed: u64,
    buckets: Vec<u32>,
    datagrams: Vec<Datagram<D>>,
    held: Vec<Held<T>>,
    free_datagrams: u32,
    free_held: u32,
    waiting: Queue,
    decided: Queue,
    held_count: u32,
    datagram_count: u32,
}

#[derive(Debug)]
struct Datagram<D> {
    key: FlowKey,
    ifindex: u32,
    decision: Option<D>,
    seen: Ranges,
    deadline: u64,
    first_held: u32,
    last_held: u32,
    chain: u32,
    older: u32,
    younger: u32,
}

#[derive(Debug)]
struct Held<T> {
    item: Option<T>,
    next: u32,
}

/// Datagrams by age; since every one waits equally long, the oldest is due first.
#[derive(Debug, Clone, Copy)]
struct Queue {
    oldest: u32,
    youngest: u32,
}

const NONE: u32 = u32::MAX;
const EMPTY: Queue = Queue { oldest: NONE, youngest: NONE };

impl<T, D: Copy> FragTable<T, D> {
    /// An empty table; all its memory is allocated here.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let held = limits.held.min(1 << 24);
        let count = limits.datagrams.clamp(held + 1, 1 << 25);
        let datagrams = (0..count)
            .map(|i| Datagram {
                key: FlowKey::new(0, 0, 0, 0, 0),
                ifindex: 0,
                decision: None,
                seen: Ranges::new(),
                deadline: 0,
                first_held: NONE,
                last_held: NONE,
                chain: if i + 1 < count { i + 1 } else { NONE },
                older: NONE,
                younger: NONE,
            })
            .collect();
        Self {
            limits: Limits { held, datagrams: count, ..limits },
            seed,
            buckets: vec![NONE; (count as usize).next_power_of_two()],
            datagrams,
            held: (0..held)
                .map(|i| Held { item: None, next: if i + 1 < held { i + 1 } else { NONE } })
                .collect(),
            free_datagrams: 0,
            free_held: if held > 0 { 0 } else { NONE },
            waiting: EMPTY,
            decided: EMPTY,
            held_count: 0,
            datagram_count: 0,
        }
    }

    /// A first fragment passes by this decision, which holds for the rest of its datagram. Call [`FragTable::release`]
    /// right after it, until it gives none.
    ///
    /// When the table is full, the datagram whose first fragment is longest ago is forgotten.
    ///
    /// # Errors
    /// `FragmentOverlap` when it overlaps what was seen of its datagram, or is it again; nothing changed then.
    pub fn first(&mut self, now: u64, ifindex: u32, parsed: &Parsed, decision: D) -> Result<(), Drop> {
        let key = key_of(parsed);
        let found = self.find(&key, ifindex, now);
        let at = if found == NONE { self.insert(key, ifindex, now, Some(decision))? } else { found };
        // Only an entry that was there before can refuse, and keeps what it had.
        self.see(at, parsed)?;
        if found != NONE {
            self.unqueue(at);
            self.datagrams[at as usize].decision = Some(decision);
            self.enqueue(at, now);
        }
        Ok(())
    }

    /// A later fragment, with all that shall be held of it.
    pub fn later(&mut self, now: u64, ifindex: u32, parsed: &Parsed, item: T) -> Later<T, D> {
        let key = key_of(parsed);
        let mut at = self.find(&key, ifindex, now);
        let decision = if at == NONE { None } else { self.datagrams[at as usize].decision };
        if decision.is_none() && self.free_held == NONE {
            return Later::Drop(item, Drop::FragmentQueueFull);
        }
        if at == NONE {
            match self.insert(key, ifindex, now, None) {
                Ok(new) => at = new,
                Err(drop) => return Later::Drop(item, drop),
            }
        }
        if let Err(drop) = self.see(at, parsed) {
            return Later::Drop(item, drop);
        }
        if let Some(decision) = decision {
            self.forget_if_done(at);
            return Later::Pass(item, decision);
        }
        self.hold(at, item);
        Later::Held
    }

    /// The next fragment that waited for this first one, in order of arrival, and its decision; none when there are no more.
    pub fn release(&mut self, ifindex: u32, parsed: &Parsed) -> Option<(T, D)> {
        let at = self.search(&key_of(parsed), ifindex);
        if at == NONE {
            return None;
        }
        let decision = self.datagrams[at as usize].decision?;
        let item = self.unhold(at);
        self.forget_if_done(at);
        Some((item?, decision))
    }

    /// Forgets what is due by `now` and gives back what waited too long. Ask to the end, or go on at the next call.
    pub fn expire(&mut self, now: u64) -> impl Iterator<Item = (T, Drop)> {
        std::iter::from_fn(move || self.take_due(now).map(|item| (item, Drop::FragmentTimeout)))
    }

    /// Gives everything back that is held, and forgets all: the end of the worker.
    pub fn drain(&mut self) -> impl Iterator<Item = (T, Drop)> {
        std::iter::from_fn(move || self.take_due(u64::MAX).map(|item| (item, Drop::Shutdown)))
    }

    /// When the next datagram is due, if there is one.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        [self.waiting.oldest, self.decided.oldest]
            .into_iter()
            .filter_map(|at| self.datagrams.get(at as usize).map(|d| d.deadline))
            .min()
    }

    /// Fragments that are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held_count
    }

    /// Datagrams that are known.
    #[must_use]
    pub fn datagrams(&self) -> u32 {
        self.datagram_count
    }

    fn take_due(&mut self, now: u64) -> Option<T> {
        for queue in [self.waiting, self.decided] {
            let mut at = queue.oldest;
            while at != NONE && self.datagrams[at as usize].deadline <= now {
                if let Some(item) = self.unhold(at) {
                    return Some(item);
                }
                let younger = self.datagrams[at as usize].younger;
                self.remove(at);
                at = younger;
            }
        }
        None
    }

    /// Notes which bytes of the datagram these are.
    fn see(&mut self, at: u32, parsed: &Parsed) -> Result<(), Drop> {
        let start = parsed.fragment_offset();
        // The parser refuses what would end behind 65,535.
        let end = start.saturating_add(parsed.l4_len());
        self.datagrams[at as usize].seen.insert(start, end, !parsed.more_fragments())
    }

    fn forget_if_done(&mut self, at: u32) {
        let datagram = &self.datagrams[at as usize];
        if datagram.first_held == NONE && datagram.seen.complete() {
            self.remove(at);
        }
    }

    /// As [`Self::search`], but what is due and holds nothing is gone, whether or not somebody came to sweep it.
    fn find(&mut self, key: &FlowKey, ifindex: u32, now: u64) -> u32 {
        let at = self.search(key, ifindex);
        if at != NONE {
            let datagram = &self.datagrams[at as usize];
            if datagram.deadline <= now && datagram.first_held == NONE {
                self.remove(at);
                return NONE;
            }
        }
        at
    }

    fn search(&self, key: &FlowKey, ifindex: u32) -> u32 {
        let mut at = self.buckets[self.bucket(key)];
        while at != NONE {
            let datagram = &self.datagrams[at as usize];
            if datagram.key == *key && datagram.ifindex == ifindex {
                break;
            }
            at = datagram.chain;
        }
        at
    }

    fn insert(&mut self, key: FlowKey, ifindex: u32, now: u64, decision: Option<D>) -> Result<u32, Drop> {
        if self.free_datagrams == NONE {
            // Every datagram that waits holds a fragment, and there are fewer of those: some are decided. The oldest
            // of them has most likely lost a fragment, unless its own are about to be released.
            let oldest = self.decided.oldest;
            if oldest == NONE || self.datagrams[oldest as usize].first_held != NONE {
                return Err(Drop::FragmentQueueFull);
            }
            self.remove(oldest);
        }
        let at = self.free_datagrams;
        let bucket = self.bucket(&key);
        let chain = std::mem::replace(&mut self.buckets[bucket], at);
        let datagram = &mut self.datagrams[at as usize];
        self.free_datagrams = std::mem::replace(&mut datagram.chain, chain);
        (datagram.key, datagram.ifindex, datagram.decision) = (key, ifindex, decision);
        datagram.seen = Ranges::new();
        self.datagram_count += 1;
        self.enqueue(at, now);
        Ok(at)
    }

    /// Forgets a datagram that holds nothing.
    fn remove(&mut self, at: u32) {
        self.unqueue(at);
        let bucket = self.bucket(&self.datagrams[at as usize].key);
        let next = std::mem::replace(&mut self.datagrams[at as usize].chain, self.free_datagrams);
        self.free_datagrams = at;
        self.datagram_count -= 1;
        if self.buckets[bucket] == at {
            self.buckets[bucket] = next;
            return;
        }
        let mut before = self.buckets[bucket];
        while self.datagrams[before as usize].chain != at {
            before = self.datagrams[before as usize].chain;
        }
        self.datagrams[before as usize].chain = next;
    }

    fn bucket(&self, key: &FlowKey) -> usize {
        hash(key, self.seed) as usize & (self.buckets.len() - 1)
    }

    fn queue(&mut self, decided: bool) -> &mut Queue {
        if decided { &mut self.decided } else { &mut self.waiting }
    }

    fn enqueue(&mut self, at: u32, now: u64) {
        let deadline = now.saturating_add(self.limits.timeout);
        let decided = self.datagrams[at as usize].decision.is_some();
        let queue = self.queue(decided);
        let older = std::mem::replace(&mut queue.youngest, at);
        if older == NONE {
            queue.oldest = at;
        } else {
            self.datagrams[older as usize].younger = at;
        }
        let datagram = &mut self.datagrams[at as usize];
        (datagram.deadline, datagram.older, datagram.younger) = (deadline, older, NONE);
    }

    fn unqueue(&mut self, at: u32) {
        let Datagram { older, younger, ref decision, .. } = self.datagrams[at as usize];
        let decided = decision.is_some();
        if older == NONE {
            self.queue(decided).oldest = younger;
        } else {
            self.datagrams[older as usize].younger = younger;
        }
        if younger == NONE {
            self.queue(decided).youngest = older;
        } else {
            self.datagrams[younger as usize].older = older;
        }
    }

    /// Takes the item in; the caller saw that there is room.
    fn hold(&mut self, at: u32, item: T) {
        let slot = self.free_held;
        let held = &mut self.held[slot as usize];
        self.free_held = std::mem::replace(&mut held.next, NONE);
        held.item = Some(item);
        self.held_count += 1;
        let datagram = &mut self.datagrams[at as usize];
        let last = std::mem::replace(&mut datagram.last_held, slot);
        if last == NONE {
            datagram.first_held = slot;
        } else {
            self.held[last as usize].next = slot;
        }
    }

    /// The item that has waited longest for this datagram.
    fn unhold(&mut self, at: u32) -> Option<T> {
        let datagram = &mut self.datagrams[at as usize];
        let slot = datagram.first_held;
        let held = self.held.get_mut(slot as usize)?;
        datagram.first_held = std::mem::replace(&mut held.next, self.free_held);
        if datagram.first_held == NONE {
            datagram.last_held = NONE;
        }
        self.free_held = slot;
        self.held_count -= 1;
        held.item.take()
    }
}

/// What all fragments of a datagram have in common (RFC 791 §3.2), in the shape of a flow's key.
fn key_of(parsed: &Parsed) -> FlowKey {
    FlowKey::new(parsed.key.src(), parsed.key.dst(), parsed.id, 0, parsed.key.proto())
}

/// A seeded hash, so that nobody outside can choose which datagrams collide.
fn hash(key: &FlowKey, seed: u64) -> u64 {
    let [addresses, rest] = key.words();
    let mix = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        (wide as u64) ^ (wide >> 64) as u64
    };
    let once =
        mix(addresses ^ seed ^ 0x9E37_79B9_7F4A_7C15, rest ^ seed.rotate_left(32) ^ 0xA076_1D64_78BD_642F);
    mix(once ^ 0xE703_7ED1_A0B4_28DB, seed ^ 0x8EBC_6AF0_9C88_C6E3)
}
