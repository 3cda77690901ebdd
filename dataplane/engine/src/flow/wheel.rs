//! A timing wheel of one worker: which of its flows to look at when. Lists run through the slots (a word of the shared
//! line), so an entry costs no memory and an insert one store.
//!
//! A slot stays on the wheel that it is on until that wheel looks at it, whoever removes its flow or puts another one there
//! meanwhile: entries never have to be taken out of the middle of another worker's list. So a slot may be looked at later
//! than its flow's time. No packet can tell, because a lookup compares the time itself.

use super::slot::UNLINKED;
use super::sync::{Ordering, fence};
use super::table::FlowTable;

/// A tick is 2^28 ns, 268 ms: a shift instead of a division.
const TICK_SHIFT: u32 = 28;
const PLACES: usize = 128;

/// One tick, ns.
#[cfg(all(test, not(loom)))]
pub(super) const TICK: u64 = 1 << TICK_SHIFT;

/// A flow is looked at this often at least, ns: shortened timeouts free their memory within it.
pub(super) const RECHECK: u64 = 32_000_000_000;

pub(super) struct Wheel {
    /// First slot of each list, 0 for none.
    places: [u32; PLACES],
    /// The list that is being worked off: the place of tick `turned`.
    due: u32,
    /// The last tick whose place was emptied.
    turned: u64,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { places: [0; PLACES], due: 0, turned: 0 }
    }

    pub(super) fn is_behind(&self, now: u64) -> bool {
        self.due != 0
            || (now >> TICK_SHIFT).saturating_sub(self.turned) > 1 && self.places.iter().any(|&p| p != 0)
    }

    /// Puts a slot on that is on no wheel, to be looked at after `time`; leaves it where it is when it is on one.
    pub(super) fn add(&mut self, table: &FlowTable, index: u32, time: u64) {
        let place = self.place(time);
        let link = table.slot(index).link();
        // Usually nobody competes, and a failed exchange is dearer than a load.
        if link.load(Ordering::Relaxed) == UNLINKED
            && link
                .compare_exchange(
                    UNLINKED,
                    u64::from(self.places[place]),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
        {
            self.places[place] = index;
        }
    }

    /// Puts a slot back that [`Wheel::next`] gave.
    pub(super) fn put_back(&mut self, table: &FlowTable, index: u32, time: u64) {
        let place = self.place(time);
        table.slot(index).link().store(u64::from(self.places[place]), Ordering::Relaxed);
        self.places[place] = index;
    }

    /// Lets a slot go that [`Wheel::next`] gave. Its next user may have seen it on this wheel just before, and relies on
    /// it: look at its state again after this.
    pub(super) fn let_go(&self, table: &FlowTable, index: u32) {
        table.slot(index).link().store(UNLINKED, Ordering::Relaxed);
        // Pairs with the fence in `insert`, between the state word and `add`.
        fence(Ordering::SeqCst);
    }

    /// The next slot to look at. It stays marked as being on this wheel.
    pub(super) fn next(&mut self, table: &FlowTable, now: u64) -> Option<u32> {
        let tick = now >> TICK_SHIFT;
        while self.due == 0 {
            if self.turned >= tick {
                return None;
            }
            // After a long pause every place is due, each once.
            self.turned = (self.turned + 1).max(tick.saturating_sub(PLACES as u64));
            self.due = std::mem::take(&mut self.places[self.turned as usize % PLACES]);
        }
        let index = self.due;
        self.due = table.slot(index).link().load(Ordering::Relaxed) as u32;
        Some(index)
    }

    /// Where to put what is to be looked at after `time`: never the place being worked off, never a round ahead of it.
    fn place(&self, time: u64) -> usize {
        let tick = (time >> TICK_SHIFT) + 1;
        tick.clamp(self.turned + 1, self.turned + PLACES as u64 - 1) as usize % PLACES
    }
}
