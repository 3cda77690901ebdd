//! A flow's memory: one line that packets read, and one line that each direction writes. Everything is an atomic word and
//! most accesses are relaxed, which costs nothing on the processors we run on and needs no `unsafe`.

use std::array::from_fn;

use super::key::FlowKey;
use super::phase::State;
use super::sync::{AtomicU64, Ordering};
use super::table::Dir;
use crate::wire::Rewrite;

/// Who opened a flow, which decides where its packets may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Origin {
    /// A pod of this node.
    Pod,
    /// Somebody beyond an ENI.
    Wire,
    /// Traffic that the kernel forwards into a pod (NodePort, hostPort); replies go back to the kernel.
    Kernel,
    /// The node itself, with a port of our set.
    Host,
}

impl Origin {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Wire => "wire",
            Self::Kernel => "kernel",
            Self::Host => "host",
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Pod,
            1 => Self::Wire,
            2 => Self::Kernel,
            _ => Self::Host,
        }
    }
}

/// The slot is on no wheel.
pub(super) const UNLINKED: u64 = u64::MAX;

// Words of the shared line. The ports' words have 24 bits to spare between ports and protocol.
const ORIGINAL: usize = 0;
const REPLY: usize = 2;
const EGRESS: usize = 4;
const POLICY: usize = 5;
const STATE: usize = 6;
const LINK: usize = 7;
const DELTA_SHIFT: u32 = 8;
const ORIGIN_SHIFT: u32 = 24;
const KEY_BITS: u64 = 0xFFFF_FFFF_0000_00FF;

/// What one direction writes.
#[repr(C, align(64))]
pub(super) struct Meter {
    /// Time of its last packet, ns.
    pub(super) last_seen: AtomicU64,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// TCP: end of what it has sent above, its last acknowledgement below.
    pub(super) sequence: AtomicU64,
    /// TCP: largest window it has offered above (bytes), flags and scale below.
    pub(super) window: AtomicU64,
    /// Forward: when the flow was opened, ns.
    pub(super) opened: AtomicU64,
    /// Reply: the next one in a list of retired slots.
    pub(super) retired: AtomicU64,
}

impl Meter {
    fn new() -> Self {
        Self {
            last_seen: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            window: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            retired: AtomicU64::new(0),
        }
    }

    /// Starts over at `now`.
    pub(super) fn reset(&self, now: u64) {
        self.last_seen.store(now, Ordering::Relaxed);
        self.packets.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.sequence.store(0, Ordering::Relaxed);
        self.window.store(0, Ordering::Relaxed);
    }

    /// Counts a packet. A load and a store instead of an addition under a bus lock: a direction has one writer as long as
    /// its packets keep their queue, and a count lost while they move is no harm.
    #[inline]
    pub(super) fn count(&self, bytes: u64) {
        self.packets.store(self.packets.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }
}

#[repr(C, align(64))]
struct Shared([AtomicU64; 8]);

/// The memory of one flow.
#[repr(C)]
pub(super) struct Slot {
    shared: Shared,
    meters: [Meter; 2],
}

/// The parts that never change while a flow lives.
pub(super) struct Fixed {
    pub(super) original: FlowKey,
    pub(super) reply: FlowKey,
    pub(super) origin: Origin,
    pub(super) egress: [u32; 2],
}

impl Slot {
    pub(super) fn new() -> Self {
        let slot = Self { shared: Shared(from_fn(|_| AtomicU64::new(0))), meters: from_fn(|_| Meter::new()) };
        slot.shared.0[LINK].store(UNLINKED, Ordering::Relaxed);
        slot
    }

    #[inline]
    pub(super) fn state(&self) -> &AtomicU64 {
        &self.shared.0[STATE]
    }

    #[inline]
    pub(super) fn load_state(&self) -> State {
        State(self.state().load(Ordering::Acquire))
    }

    /// Moves the state word from `from` to `to`; false when somebody has moved it before.
    #[inline]
    pub(super) fn move_state(&self, from: State, to: State) -> bool {
        self.state().compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    #[inline]
    pub(super) fn meter(&self, dir: Dir) -> &Meter {
        &self.meters[dir as usize]
    }

    #[inline]
    pub(super) fn link(&self) -> &AtomicU64 {
        &self.shared.0[LINK]
    }

    #[inline]
    pub(super) fn policy_generation(&self) -> &AtomicU64 {
        &self.shared.0[POLICY]
    }

    /// The key that packets of `dir` carry.
    #[inline]
    pub(super) fn key(&self, dir: Dir) -> FlowKey {
        let at = ORIGINAL + (dir as usize) * (REPLY - ORIGINAL);
        FlowKey::from_words([self.load(at), self.load(at + 1)])
    }

    /// Whether packets of `dir` carry the key with these words.
    #[inline]
    pub(super) fn has_key(&self, dir: Dir, words: [u64; 2]) -> bool {
        let at = ORIGINAL + (dir as usize) * (REPLY - ORIGINAL);
        let difference = (self.load(at) ^ words[0]) | ((self.load(at + 1) & KEY_BITS) ^ words[1]);
        difference == 0
    }

    #[inline]
    pub(super) fn origin(&self) -> Origin {
        Origin::from_bits(self.load(ORIGINAL + 1) >> ORIGIN_SHIFT)
    }

    #[inline]
    pub(super) fn egress(&self, dir: Dir) -> u32 {
        (self.load(EGRESS) >> (32 * dir as u32)) as u32
    }

    /// What a packet of `dir` gets, the checksum deltas from memory.
    #[inline]
    pub(super) fn rewrite(&self, dir: Dir) -> Rewrite {
        let to = self.key(dir.opposite()).reversed();
        let l3 = (self.load(ORIGINAL + 1) >> DELTA_SHIFT) as u16;
        let l4 = (self.load(REPLY + 1) >> DELTA_SHIFT) as u16;
        // The way back subtracts what the way there adds: in one's complement, the bits inverted.
        let sign = 0u16.wrapping_sub(dir as u16);
        Rewrite::known(to, [l3 ^ sign, l4 ^ sign])
    }

    /// Writes what stays, while nobody but the caller uses the slot.
    pub(super) fn fill(&self, fixed: &Fixed, policy_generation: u32) {
        let [l3, l4] = Rewrite::new(&fixed.original, &fixed.reply.reversed()).wire_deltas();
        let [original, reply] = [fixed.original.words(), fixed.reply.words()];
        let origin = (fixed.origin as u64) << ORIGIN_SHIFT;
        let store = |at: usize, value| self.shared.0[at].store(value, Ordering::Relaxed);
        store(ORIGINAL, original[0]);
        store(ORIGINAL + 1, original[1] | origin | u64::from(l3) << DELTA_SHIFT);
        store(REPLY, reply[0]);
        store(REPLY + 1, reply[1] | u64::from(l4) << DELTA_SHIFT);
        store(EGRESS, u64::from(fixed.egress[0]) | u64::from(fixed.egress[1]) << 32);
        store(POLICY, u64::from(policy_generation));
    }

    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.shared.0[at].load(Ordering::Relaxed)
    }
}
