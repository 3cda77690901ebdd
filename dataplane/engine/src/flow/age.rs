//! Clearing flows away: those whose time has come, a bounded number in each step, and when the table is full those that a
//! new flow is worth more than.

use super::local::Local;
use super::phase::{Life, State};
use super::prefetch;
use super::sync::Ordering;
use super::table::{FlowTable, TableError};
use super::wheel::RECHECK;

/// Flows that one step looks at because their time may have come. Above a batch of packets, so that a steady stream of
/// short flows is cleared away as fast as it comes.
const VISITS: usize = 128;

/// Flows that one insert into a full table looks at before it is refused.
const SEARCH: u32 = 64;
/// Flows that it looks at for an expired one before it gives up one that is not open yet or closed already. With the looks
/// that a step has, a whole batch of new flows finds room among such ones.
const PATIENCE: u32 = 4;

impl Local {
    /// Looks at up to [`VISITS`] flows that are due.
    pub(super) fn age(&mut self, table: &FlowTable, now: u64) {
        for _ in 0..VISITS {
            let Some(index) = self.wheel.next(table, now) else { return };
            self.visit(table, index, now);
        }
    }

    pub(super) fn visit(&mut self, table: &FlowTable, index: u32, now: u64) {
        let slot = table.slot(index);
        let state = slot.load_state();
        match state.life() {
            Life::Live => {
                let deadline = table.deadline(slot, state);
                if deadline <= now && self.kill(table, index, state) {
                    self.aged.expired += 1;
                    // Nobody else can use the slot before this worker has passed a quiescent point.
                    self.wheel.let_go(table, index);
                } else {
                    self.wheel.put_back(table, index, deadline.min(now + RECHECK));
                }
            }
            // Its inserter may have found it on this wheel.
            Life::Pending => self.wheel.put_back(table, index, now),
            Life::Free | Life::Dead | Life::Aborted => {
                self.wheel.let_go(table, index);
                if matches!(slot.load_state().life(), Life::Live | Life::Pending) {
                    self.wheel.add(table, index, now);
                }
            }
        }
    }

    /// Makes room for one flow in a full table: an expired one if the clock's hand meets one soon, or one that is not open
    /// yet or closed already. False when it meets neither: established flows stay.
    #[cold]
    pub(super) fn evict(&mut self, table: &FlowTable, now: u64) -> bool {
        let last = table.slots.len() as u32 - 1;
        let mut second_best: Option<(u32, State)> = None;
        let mut seen = 0;
        for _ in 0..last {
            if self.looks == 0 || seen == SEARCH || (seen >= PATIENCE && second_best.is_some()) {
                break;
            }
            self.hand = if self.hand >= last { 1 } else { self.hand + 1 };
            if let Some(ahead) = table.slots.get(self.hand as usize + 4) {
                prefetch::read(ahead);
            }
            let slot = table.slot(self.hand);
            let state = slot.load_state();
            if !state.is_live() {
                // A full table has few of these, but they may lie side by side: to count them would refuse new flows.
                continue;
            }
            seen += 1;
            self.looks -= 1;
            if table.deadline(slot, state) <= now && self.kill(table, self.hand, state) {
                self.aged.expired += 1;
                return true;
            }
            if second_best.is_none() && state.is_evictable() {
                second_best = Some((self.hand, state));
            }
        }
        let evicted = second_best.is_some_and(|(index, state)| self.kill(table, index, state));
        self.aged.evicted += u32::from(evicted);
        evicted
    }
}

impl FlowTable {
    /// Hands all flows over to `workers` new parts after the number of workers has changed. It takes all parts in use, so
    /// no worker can be in a step; flows, their numbers and their states stay as they are.
    ///
    /// # Errors
    /// When a part is missing, or the table was made for fewer than `workers` workers; `parts` is as it was then, and empty
    /// otherwise.
    pub fn adopt(&self, parts: &mut Vec<Local>, workers: usize) -> Result<Vec<Local>, TableError> {
        let taken = self.workers.iter().filter(|cell| cell.is_taken()).count();
        if parts.len() != taken {
            return Err(TableError::StillInUse { given: parts.len(), taken });
        }
        if workers == 0 || workers > self.workers.len() {
            return Err(TableError::NoSuchWorker { worker: workers, workers: self.workers.len() });
        }
        for part in parts.drain(..) {
            self.workers[part.worker].give_back();
            self.workers[part.worker].set_balance(0);
        }
        while self.free.pop().is_some() {}
        let mut new = (0..workers).map(|worker| self.local(worker)).collect::<Result<Vec<_>, _>>()?;
        for index in 1..self.slots.len() as u32 {
            let slot = self.slot(index);
            slot.link().store(super::slot::UNLINKED, Ordering::Relaxed);
            let state = slot.load_state();
            if state.is_live() {
                let part = &mut new[index as usize % workers];
                self.workers[part.worker].add_balance(1);
                part.wheel.add(self, index, 0);
            } else {
                slot.state().store(state.next_generation().0, Ordering::Release);
                self.free.push(index);
            }
        }
        Ok(new)
    }
}
