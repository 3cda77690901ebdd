//! When may an unlinked slot be used again? When no worker can still hold its index: after each has begun a new step
//! (quiescent-state based reclamation).
//!
//! The one that unlinks collects slots, closes the collection by raising the global epoch, and may reuse them once every
//! worker has been seen at that epoch or asleep. A worker at that epoch has read the epoch after the words were cleared, so
//! it cannot find the slots; a worker asleep will, before it reads any word, have to be seen awake.

use super::local::Local;
use super::sync::{AtomicU64, Ordering, fence};
use super::table::{Dir, FlowTable};

/// Slots reused in one step.
#[cfg(not(loom))]
const BATCH: usize = 512;
#[cfg(loom)]
const BATCH: usize = 2;

const ASLEEP: u64 = u64::MAX;

/// What the other workers see of one.
pub(super) struct WorkerCell {
    /// The epoch it has reached, or [`ASLEEP`].
    epoch: AtomicU64,
    /// Flows it has inserted less flows it has removed, modulo 2^64. Written by it alone.
    balance: AtomicU64,
    /// Its [`Local`] exists.
    taken: AtomicU64,
}

impl WorkerCell {
    pub(super) fn new() -> Self {
        Self { epoch: AtomicU64::new(ASLEEP), balance: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }

    pub(super) fn balance(&self) -> u64 {
        self.balance.load(Ordering::Relaxed)
    }

    pub(super) fn add_balance(&self, change: u64) {
        self.balance.store(self.balance().wrapping_add(change), Ordering::Relaxed);
    }

    pub(super) fn set_balance(&self, balance: u64) {
        self.balance.store(balance, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> bool {
        self.taken.swap(1, Ordering::AcqRel) == 0
    }

    pub(super) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire) != 0
    }

    pub(super) fn give_back(&self) {
        self.epoch.store(ASLEEP, Ordering::Release);
        self.taken.store(0, Ordering::Release);
    }
}

/// Unlinked slots of one worker, in lists through the slots themselves; 0 ends a list.
pub(super) struct Retired {
    /// Unlinked since the last epoch was raised.
    collecting: u32,
    /// May be reused when everybody has reached `until`.
    waiting: u32,
    until: u64,
    /// The epoch that this worker has shown, or [`ASLEEP`].
    shown: u64,
    pub(super) count: u32,
}

impl Retired {
    pub(super) fn new() -> Self {
        Self { collecting: 0, waiting: 0, until: 0, shown: ASLEEP, count: 0 }
    }

    pub(super) fn push(&mut self, table: &FlowTable, index: u32) {
        next(table, index).store(u64::from(self.collecting), Ordering::Relaxed);
        self.collecting = index;
        self.count += 1;
    }
}

fn next(table: &FlowTable, index: u32) -> &AtomicU64 {
    &table.slot(index).meter(Dir::Reply).retired
}

impl Local {
    /// Tells the others that this worker holds no index and will hold none until its next step. For a worker that is about
    /// to wait for packets: otherwise nobody could reuse a slot meanwhile.
    pub fn sleep(&mut self, table: &FlowTable) {
        table.workers[self.worker].epoch.store(ASLEEP, Ordering::Release);
        self.retired.shown = ASLEEP;
    }

    /// Tells the others that this worker may hold indices again. [`Local::begin_step`] does it too.
    pub fn wake(&mut self, table: &FlowTable) {
        if self.retired.shown == ASLEEP {
            let epoch = table.epoch.load(Ordering::Acquire);
            table.workers[self.worker].epoch.store(epoch, Ordering::Release);
            self.retired.shown = epoch;
            // Pairs with the fence in `reclaim`: either we are seen awake, or we see the words cleared.
            fence(Ordering::SeqCst);
        }
    }

    pub(super) fn quiesce(&mut self, table: &FlowTable) {
        if self.retired.shown == ASLEEP {
            self.wake(table);
            return;
        }
        let epoch = table.epoch.load(Ordering::Acquire);
        if epoch != self.retired.shown {
            table.workers[self.worker].epoch.store(epoch, Ordering::Release);
            self.retired.shown = epoch;
        }
    }

    /// Reuses what every worker has let go of. At a quiescent point of this worker only.
    pub(super) fn reclaim(&mut self, table: &FlowTable) {
        self.release_waiting(table);
        if self.retired.waiting == 0 && self.retired.collecting != 0 {
            // The words were cleared before; pairs with the fence in `wake`.
            fence(Ordering::SeqCst);
            let epoch = table.epoch.fetch_add(1, Ordering::AcqRel) + 1;
            self.retired.waiting = std::mem::take(&mut self.retired.collecting);
            self.retired.until = epoch;
            table.workers[self.worker].epoch.store(epoch, Ordering::Release);
            self.retired.shown = epoch;
            self.release_waiting(table);
        }
    }

    fn release_waiting(&mut self, table: &FlowTable) {
        if self.retired.waiting == 0 || !everybody_reached(table, self.retired.until) {
            return;
        }
        for _ in 0..BATCH {
            let index = self.retired.waiting;
            if index == 0 {
                return;
            }
            self.retired.waiting = next(table, index).load(Ordering::Relaxed) as u32;
            self.retired.count -= 1;
            self.release(table, index);
        }
    }
}

fn everybody_reached(table: &FlowTable, epoch: u64) -> bool {
    // A worker asleep has the highest epoch of all.
    table.workers.iter().all(|cell| cell.epoch.load(Ordering::Acquire) >= epoch)
}
