//! A worker's own part of the table: free slots at hand, the flows that it ages, the slots that it has unlinked.

use super::phase::{Life, State};
use super::reclaim::Retired;
use super::sync::Ordering;
use super::table::{Dir, FlowId, FlowTable};
use super::timeouts::TimeoutsNs;
use super::wheel::Wheel;

/// Free slots kept at hand, so that the shared queue is met once in some thirty inserts.
#[cfg(not(loom))]
const CACHE: usize = 64;
#[cfg(loom)]
const CACHE: usize = 2;

/// Slots that one step may look at in search of flows to give up.
const LOOKS: u32 = 256;

/// What became of flows since the last step began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aged {
    /// Cleared away after their timeout.
    pub expired: u32,
    /// Given up before their timeout for a new flow: not open yet, or closed already.
    pub evicted: u32,
}

/// One worker's part of a [`FlowTable`]. Every call must pass the table that it was made by.
pub struct Local {
    pub(super) worker: usize,
    pub(super) cache: Vec<u32>,
    /// Flows that may be inserted before the table's level must be looked at again.
    pub(super) credit: u32,
    pub(super) retired: Retired,
    pub(super) wheel: Wheel,
    pub(super) hand: u32,
    pub(super) looks: u32,
    pub(super) aged: Aged,
}

impl Local {
    pub(super) fn new(table: &FlowTable, worker: usize) -> Self {
        let share = (table.slots.len() - 1) / table.workers.len();
        Self {
            worker,
            cache: Vec::with_capacity(CACHE),
            credit: 0,
            retired: Retired::new(),
            wheel: Wheel::new(),
            hand: (share * worker) as u32,
            looks: LOOKS,
            aged: Aged::default(),
        }
    }

    /// Begins a step: a quiescent point, so no [`FlowId`] of the step before may be used any more. Reuses what every worker
    /// has let go of, clears a bounded number of flows away whose time has come, and takes over `timeouts`.
    ///
    /// Returns what became of flows since the last call, evictions by [`Local::insert`] included.
    pub fn begin_step(&mut self, table: &FlowTable, now: u64, timeouts: &TimeoutsNs) -> Aged {
        self.quiesce(table);
        self.reclaim(table);
        let pressure = table.live() >= table.capacity() - table.capacity() / 8;
        table.follow(timeouts, pressure);
        self.age(table, now);
        self.looks = LOOKS;
        std::mem::take(&mut self.aged)
    }

    /// Removes a flow; false when it was removed already. Packets that other workers hold may still be translated by it
    /// until their step ends.
    pub fn remove(&mut self, table: &FlowTable, id: FlowId) -> bool {
        loop {
            let state = table.slot(id.0).load_state();
            if !state.is_live() {
                return false;
            }
            if self.kill(table, id.0, state) {
                return true;
            }
        }
    }

    /// Whether ageing is behind: the worker should not go to sleep before another step.
    #[must_use]
    pub fn is_behind(&self, now: u64) -> bool {
        self.wheel.is_behind(now)
    }

    /// Unlinks a live flow if its state is still `state`.
    pub(super) fn kill(&mut self, table: &FlowTable, index: u32, state: State) -> bool {
        if !table.slot(index).move_state(state, state.with_life(Life::Dead)) {
            return false;
        }
        table.workers[self.worker].add_balance(u64::MAX);
        self.unlink(table, index);
        true
    }

    /// Gives the words of a slot back whose state is dead or aborted, and retires it.
    pub(super) fn unlink(&mut self, table: &FlowTable, index: u32) {
        let slot = table.slot(index);
        let (original, reply) = (slot.key(Dir::Forward), slot.key(Dir::Reply));
        table.disclaim(table.hash(&original), Dir::Forward, index);
        if original != reply {
            table.disclaim(table.hash(&reply), Dir::Reply, index);
        }
        self.retired.push(table, index);
    }

    /// A slot for a new flow, when there is room or room can be made.
    pub(super) fn allocate(&mut self, table: &FlowTable, now: u64) -> Option<u32> {
        if self.credit == 0 {
            let room = table.capacity().saturating_sub(table.live());
            if room == 0 && !self.evict(table, now) {
                return None;
            }
            self.credit = (room / table.workers.len() as u32).max(1);
        }
        let index = self.cache.pop().or_else(|| self.refill(table))?;
        if let Some(next) = self.cache.last() {
            // The next flow's memory, on its way while this one is made.
            for dir in [Dir::Forward, Dir::Reply] {
                table.prefetch_flow(FlowId(*next), dir);
            }
        }
        self.credit -= 1;
        Some(index)
    }

    /// Puts a slot that nobody can hold any more back into circulation.
    pub(super) fn release(&mut self, table: &FlowTable, index: u32) {
        let slot = table.slot(index);
        let state = State(slot.state().load(Ordering::Relaxed));
        slot.state().store(state.next_generation().0, Ordering::Release);
        if self.cache.len() < CACHE {
            self.cache.push(index);
        } else {
            table.free.push(index);
        }
    }

    fn refill(&mut self, table: &FlowTable) -> Option<u32> {
        let first = table.free.pop()?;
        while self.cache.len() < CACHE / 2
            && let Some(index) = table.free.pop()
        {
            self.cache.push(index);
        }
        Some(first)
    }
}
