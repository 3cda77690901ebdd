//! The table's memory and everything that a packet of a known flow needs: hash, prefetch, lookup, meters.

use std::array::from_fn;

use crossbeam::utils::CachePadded;
use thiserror::Error;

use super::key::FlowKey;
use super::local::Local;
use super::phase::{Life, Phase, REPLIED, State};
use super::prefetch;
use super::reclaim::WorkerCell;
use super::slot::{Origin, Slot};
use super::sync::{AtomicU64, FreeQueue, Ordering};
use super::timeouts::TimeoutsNs;
use super::view::Flow;
use crate::service::Affinity;

/// Words of a bucket: one cache line. Fewer under loom, whose models grow with every word.
#[cfg(not(loom))]
pub(super) const WAYS: usize = 8;
#[cfg(loom)]
pub(super) const WAYS: usize = 2;

/// Slots beyond the capacity for each worker: those that wait for a quiescent point and those in its cache. Evicting makes
/// room in the count at once but in memory only a step later, and the new flow takes one of these meanwhile.
#[cfg(not(loom))]
const SLACK: usize = 512;
#[cfg(loom)]
const SLACK: usize = 2;

/// The direction of a packet within its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dir {
    /// As the flow's first packet.
    Forward,
    /// Back.
    Reply,
}

impl Dir {
    /// The other direction.
    #[inline]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Reply,
            Self::Reply => Self::Forward,
        }
    }

    #[inline]
    pub(super) const fn from_bit(bit: u64) -> Self {
        if bit & 1 == 0 { Self::Forward } else { Self::Reply }
    }
}

/// A flow's number in the table. It stays the flow's for the rest of the worker's step in which it was obtained; whoever
/// keeps one for longer must look the flow up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub(super) u32);

impl FlowId {
    /// The number, for reports.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Why a worker's part of the table cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TableError {
    /// The table was made for fewer workers.
    #[error("worker {worker} asked for its part of a flow table that was made for {workers} workers")]
    NoSuchWorker {
        /// The number asked for.
        worker: usize,
        /// How many there are, numbered from 0.
        workers: usize,
    },
    /// Each worker's part exists once.
    #[error("worker {worker} has its part of the flow table already")]
    Taken {
        /// The number asked for.
        worker: usize,
    },
    /// Adopting needs all parts, because a worker that still runs may hold any slot.
    #[error(
        "{given} of the {taken} parts of the flow table that are in use were given back; stop the other workers first"
    )]
    StillInUse {
        /// Parts handed in.
        given: usize,
        /// Parts in use.
        taken: usize,
    },
}

#[repr(C, align(64))]
pub(super) struct Bucket(pub(super) [AtomicU64; WAYS]);

/// The flow table. Share it by `Arc`; each worker works on it through its [`Local`].
pub struct FlowTable {
    pub(super) buckets: Box<[Bucket]>,
    mask: usize,
    /// The slot of index 0 is never used, so that no word of a bucket in use is zero.
    pub(super) slots: Box<[Slot]>,
    seeds: [u64; 3],
    /// By phase; 16 so that a 4-bit number needs no bounds check.
    timeouts: [AtomicU64; 16],
    inbound_refresh: AtomicU64,
    pub(super) capacity: u32,
    pub(super) free: FreeQueue,
    pub(super) epoch: CachePadded<AtomicU64>,
    pub(super) workers: Box<[CachePadded<WorkerCell>]>,
    /// What outlives a flow: the endpoint that a client keeps. It is here because it lives as long and is shared as widely.
    pub(crate) affinity: Affinity,
}

impl FlowTable {
    /// A table for `capacity` flows (at least 1, at most 2^30), for at most `workers` workers (at least 1), hashing under
    /// `seed`. It takes about 230 bytes of memory for each flow and 256 KiB besides, and never more.
    #[must_use]
    pub fn new(capacity: u32, workers: usize, seed: u64) -> Self {
        let capacity = capacity.clamp(1, 1 << 30);
        let workers = workers.max(1);
        let slots = capacity as usize + workers * SLACK;
        // Two words a flow, at most half of them in use.
        let buckets = (capacity as usize * 4).div_ceil(WAYS).next_power_of_two().max(2);
        let table = Self {
            buckets: (0..buckets).map(|_| Bucket(from_fn(|_| AtomicU64::new(0)))).collect(),
            mask: buckets - 1,
            slots: (0..=slots).map(|_| Slot::new()).collect(),
            seeds: seeds(seed),
            timeouts: from_fn(|_| AtomicU64::new(u64::MAX)),
            inbound_refresh: AtomicU64::new(1),
            capacity,
            free: FreeQueue::new(slots),
            epoch: CachePadded::new(AtomicU64::new(1)),
            workers: (0..workers).map(|_| CachePadded::new(WorkerCell::new())).collect(),
            affinity: Affinity::new(seed),
        };
        for index in 1..=slots {
            table.free.push(index as u32);
        }
        table.follow(&TimeoutsNs::default(), false);
        table
    }

    /// The part of worker number `worker`, from 0.
    ///
    /// # Errors
    /// When the table was made for fewer workers, or the part is taken.
    pub fn local(&self, worker: usize) -> Result<Local, TableError> {
        let Some(cell) = self.workers.get(worker) else {
            return Err(TableError::NoSuchWorker { worker, workers: self.workers.len() });
        };
        if cell.take() { Ok(Local::new(self, worker)) } else { Err(TableError::Taken { worker }) }
    }

    /// Flows that fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes of memory that it takes, for as long as it lives.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // A queue's cell: the index and its stamp.
        let free = (self.slots.len() * 2 * size_of::<u64>()) as u64;
        free + size_of_val(&*self.buckets) as u64 + size_of_val(&*self.slots) as u64
    }

    /// Live flows. Exact when no worker is in a step.
    #[must_use]
    pub fn live(&self) -> u32 {
        let sum = self.workers.iter().fold(0u64, |sum, cell| sum.wrapping_add(cell.balance()));
        // While workers run, a removal may be seen before the insert it belongs to.
        if sum > u64::MAX / 2 { 0 } else { sum as u32 }
    }

    /// The key's hash under the table's seed.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        let [a, b] = key.words();
        folded(folded(a ^ self.seeds[0], b ^ self.seeds[1]), self.seeds[2])
    }

    /// Fetches the bucket in which a flow of this hash most likely is.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch::read(&self.buckets[hash as usize & self.mask]);
    }

    /// Fetches both buckets in which a flow of this hash can be: for a key that is most likely nobody's.
    #[inline]
    pub fn prefetch_both(&self, hash: u64) {
        let (first, second) = self.bucket_numbers(hash);
        prefetch::read(&self.buckets[first]);
        prefetch::read(&self.buckets[second]);
    }

    /// The flow that a key of this hash most likely belongs to, by its tag alone: worth a prefetch, not to be believed.
    #[inline]
    #[must_use]
    pub fn candidate(&self, hash: u64) -> Option<(FlowId, Dir)> {
        let tag = tag_of(hash);
        let bucket = &self.buckets[hash as usize & self.mask].0;
        // All words, without a branch: which one it is cannot be predicted, and a wrong guess costs more than eight looks.
        let mut matching = 0u32;
        for (i, word) in bucket.iter().enumerate() {
            matching |= u32::from(Word(word.load(Ordering::Relaxed)).tag() == tag) << i;
        }
        let at = matching.trailing_zeros() as usize;
        let word = Word(bucket.get(at)?.load(Ordering::Acquire));
        (word.tag() == tag).then(|| (FlowId(word.index()), word.dir()))
    }

    /// [`FlowTable::lookup`] that looks first at what [`FlowTable::candidate`] gave for the key's hash in the same step.
    #[inline]
    #[must_use]
    pub fn lookup_with(
        &self,
        candidate: Option<(FlowId, Dir)>,
        key: &FlowKey,
        hash: u64,
        now: u64,
    ) -> Option<(FlowId, Dir)> {
        if candidate.is_some_and(|candidate| self.confirm(candidate, key, now).is_some()) {
            return candidate;
        }
        self.lookup_slowly(key, hash, now)
    }

    /// What [`FlowTable::candidate`] gave, if it is the flow that packets with `key` belong to, live and not expired.
    #[inline]
    #[must_use]
    pub fn confirm(&self, (id, dir): (FlowId, Dir), key: &FlowKey, now: u64) -> Option<Flow<'_>> {
        let slot = self.slot(id.0);
        let state = slot.load_state();
        let confirmed =
            slot.has_key(dir, key.words()) && state.is_live() && self.is_fresh(slot, state, dir, now);
        confirmed.then(|| Flow::new(slot))
    }

    #[cold]
    #[inline(never)]
    fn lookup_slowly(&self, key: &FlowKey, hash: u64, now: u64) -> Option<(FlowId, Dir)> {
        self.lookup(key, hash, now)
    }

    /// Fetches what a packet of `dir` of this flow reads and writes.
    #[inline]
    pub fn prefetch_flow(&self, id: FlowId, dir: Dir) {
        let slot = self.slot(id.0);
        prefetch::read(slot);
        prefetch::read(slot.meter(dir));
    }

    /// The live flow that packets with `key` belong to and their direction; `hash` is [`FlowTable::hash`] of it. A flow
    /// whose timeout has passed at `now` is not found, whether it was cleared away already or not.
    #[inline]
    #[must_use]
    pub fn lookup(&self, key: &FlowKey, hash: u64, now: u64) -> Option<(FlowId, Dir)> {
        let (first, second) = self.bucket_numbers(hash);
        match self.find(first, key, hash, now) {
            None => self.find(second, key, hash, now),
            found => found,
        }
    }

    /// What the table knows of a flow.
    #[inline]
    #[must_use]
    pub fn flow(&self, id: FlowId) -> Flow<'_> {
        Flow::new(self.slot(id.0))
    }

    /// Notes a packet of `bytes` bytes at `now`: the flow stays alive, its meters count. After [`FlowTable::tcp`] or
    /// [`FlowTable::datagram`].
    #[inline]
    pub fn touch(&self, id: FlowId, dir: Dir, now: u64, bytes: u64) {
        self.touch_flow(self.flow(id), dir, now, bytes);
    }

    /// [`FlowTable::touch`] of a flow at hand.
    #[inline(always)]
    pub(crate) fn touch_flow(&self, flow: Flow<'_>, dir: Dir, now: u64, bytes: u64) {
        let slot = flow.slot();
        let meter = slot.meter(dir);
        if dir == Dir::Forward
            || self.inbound_refresh.load(Ordering::Relaxed) != 0
            || !refreshed_from_inside_only(slot)
        {
            meter.last_seen.store(now, Ordering::Relaxed);
        }
        meter.count(bytes);
    }

    /// Makes a flow one that is remembered only so that it is refused, and notes that an end of it tried again at `now`.
    #[cold]
    pub fn revoke(&self, id: FlowId, dir: Dir, now: u64) {
        let slot = self.slot(id.0);
        let mut state = slot.load_state();
        while state.is_live() && state.phase() != Phase::Revoked {
            slot.move_state(state, state.without_flags().with_phase(Phase::Revoked));
            state = slot.load_state();
        }
        slot.meter(dir).last_seen.store(now, Ordering::Relaxed);
    }

    /// Moves the state of a flow that is not TCP for a packet of `dir`.
    #[inline]
    pub fn datagram(&self, id: FlowId, dir: Dir) {
        self.datagram_of(self.flow(id), dir);
    }

    /// [`FlowTable::datagram`] of a flow at hand.
    #[inline(always)]
    pub(crate) fn datagram_of(&self, flow: Flow<'_>, dir: Dir) {
        if dir == Dir::Reply {
            let slot = flow.slot();
            let state = slot.load_state();
            if !state.is(REPLIED) {
                replied(slot, state);
            }
        }
    }

    #[inline]
    fn find(&self, bucket: usize, key: &FlowKey, hash: u64, now: u64) -> Option<(FlowId, Dir)> {
        let (tag, words) = (tag_of(hash), key.words());
        for word in &self.buckets[bucket].0 {
            let word = Word(word.load(Ordering::Acquire));
            if word.tag() == tag {
                let (slot, dir) = (self.slot(word.index()), word.dir());
                if slot.has_key(dir, words) {
                    let state = slot.load_state();
                    if state.is_live() && self.is_fresh(slot, state, dir, now) {
                        return Some((FlowId(word.index()), dir));
                    }
                }
            }
        }
        None
    }

    /// Whether the flow's timeout has not passed. The direction at hand is asked first: its line is about to be written
    /// anyway, the other one's may be another worker's.
    #[inline]
    pub(super) fn is_fresh(&self, slot: &Slot, state: State, dir: Dir, now: u64) -> bool {
        let timeout = self.timeout(state);
        let idle = |dir| now.saturating_sub(slot.meter(dir).last_seen.load(Ordering::Relaxed));
        idle(dir) < timeout || idle(dir.opposite()) < timeout
    }

    /// When the flow expires unless a packet comes, ns.
    pub(super) fn deadline(&self, slot: &Slot, state: State) -> u64 {
        let seen = |dir| slot.meter(dir).last_seen.load(Ordering::Relaxed);
        seen(Dir::Forward).max(seen(Dir::Reply)).saturating_add(self.timeout(state))
    }

    #[inline]
    fn timeout(&self, state: State) -> u64 {
        self.timeouts[state.phase_index()].load(Ordering::Relaxed)
    }

    /// Takes over the timeouts in force. Flows follow at once, because only their last packet's time is stored.
    pub(super) fn follow(&self, timeouts: &TimeoutsNs, pressure: bool) {
        for phase in Phase::ALL {
            let (cell, value) = (&self.timeouts[phase as usize], timeouts.in_force(phase, pressure));
            if cell.load(Ordering::Relaxed) != value {
                cell.store(value, Ordering::Relaxed);
            }
        }
        let refresh = u64::from(timeouts.inbound_refresh());
        if self.inbound_refresh.load(Ordering::Relaxed) != refresh {
            self.inbound_refresh.store(refresh, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// The two buckets that may hold a key of this hash, never the same.
    #[inline]
    pub(super) fn bucket_numbers(&self, hash: u64) -> (usize, usize) {
        let first = hash as usize & self.mask;
        let spread = tag_of(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 | 1;
        (first, (first ^ spread as usize) & self.mask)
    }
}

/// A word of a bucket: tag, direction, index. Zero is an empty one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    #[inline]
    pub(super) const fn new(hash: u64, dir: Dir, index: u32) -> Self {
        Self(tag_of(hash) << 33 | (dir as u64) << 32 | index as u64)
    }

    #[inline]
    pub(super) const fn tag(self) -> u64 {
        self.0 >> 33
    }

    #[inline]
    pub(super) const fn dir(self) -> Dir {
        Dir::from_bit(self.0 >> 32)
    }

    #[inline]
    pub(super) const fn index(self) -> u32 {
        self.0 as u32
    }
}

#[inline]
pub(super) const fn tag_of(hash: u64) -> u64 {
    hash >> 33
}

/// RFC 4787 REQ-6: packets that come in from outside need not keep a mapping alive. It is a question for UDP flows that the
/// inside opened.
#[cold]
fn refreshed_from_inside_only(slot: &Slot) -> bool {
    matches!(slot.load_state().phase(), Phase::UdpOneWay | Phase::UdpTwoWay)
        && matches!(slot.origin(), Origin::Pod | Origin::Host)
}

#[cold]
fn replied(slot: &Slot, mut state: State) {
    while state.life() == Life::Live && !state.is(REPLIED) {
        let mut next = state.with(REPLIED);
        if state.phase() == Phase::UdpOneWay {
            next = next.with_phase(Phase::UdpTwoWay);
        }
        if slot.move_state(state, next) {
            return;
        }
        state = slot.load_state();
    }
}

/// The two halves of the full product, folded together.
#[inline]
const fn folded(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Three odd words from one seed (splitmix64).
fn seeds(seed: u64) -> [u64; 3] {
    let mut state = seed;
    from_fn(|_| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) | 1
    })
}
