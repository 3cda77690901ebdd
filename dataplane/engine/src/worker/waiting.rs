//! Packets that wait for their next hop's Ethernet address.
//!
//! The kernel resolves, we mirror; until its answer shows in a snapshot the packet waits here, bounded in number and time,
//! so that the first packet of a connection is not lost to ARP and a silent neighbour cannot take frames for ever.

use std::collections::VecDeque;

use super::target::Target;
use crate::frame::{Frame, Packet};
use crate::trace::FlowNote;

/// Packets that may wait, per worker.
pub(super) const ROOM: usize = 256;
/// How long one waits, in nanoseconds.
pub(super) const PATIENCE_NS: u64 = 1_000_000_000;

/// A packet that is finished but for its Ethernet header.
#[derive(Debug)]
pub(super) struct Waiting<F> {
    pub(super) packet: Packet<F>,
    pub(super) target: Target,
    pub(super) destination: u32,
    pub(super) until: u64,
    pub(super) flow: Option<FlowNote>,
}

/// The waiting room of one worker, in order of arrival.
#[derive(Debug)]
pub(super) struct WaitingRoom<F> {
    queue: VecDeque<Waiting<F>>,
    seen: u64,
}

impl<F: Frame> WaitingRoom<F> {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::with_capacity(ROOM), seen: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Takes a packet in, or gives it back when the room is full.
    pub(super) fn enter(&mut self, waiting: Waiting<F>) -> Result<(), Waiting<F>> {
        if self.queue.len() >= ROOM {
            return Err(waiting);
        }
        self.queue.push_back(waiting);
        Ok(())
    }

    /// Whether anything could leave: a new snapshot came, or the oldest has waited long enough.
    pub(super) fn is_due(&mut self, now: u64, generation: u64) -> bool {
        let Some(oldest) = self.queue.front() else {
            self.seen = generation;
            return false;
        };
        let due = oldest.until <= now || self.seen != generation;
        self.seen = generation;
        due
    }

    /// Takes the first `n` out, for one pass over those that wait.
    pub(super) fn pop(&mut self) -> Option<Waiting<F>> {
        self.queue.pop_front()
    }

    /// When the oldest has waited long enough.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.queue.front().map(|w| w.until)
    }
}
