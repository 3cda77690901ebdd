//! What can carry a batch: the engine, or the yardstick beside it.

use std::sync::Arc;

use sluice_engine::counters::Counters;
use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::Snapshot;
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::{Output, Worker};
use sluice_engine::{Packet, Verdict};

/// A frame of the bench: plain memory.
pub type Frame = Vec<u8>;

/// Carries packets.
pub trait Path {
    /// Takes every packet of `input` through at time `now` (ns). Frames end in `out`, or stay in `input`.
    fn carry(&mut self, now: u64, input: &mut Vec<Packet<Frame>>, out: &mut Vec<Output<Frame>>);
}

/// The engine: one worker.
pub struct Engine {
    worker: Worker<Frame>,
    snapshot: Arc<Snapshot>,
    table: Arc<FlowTable>,
}

impl Engine {
    /// A worker on a table, under a snapshot.
    #[must_use]
    pub fn new(worker: Worker<Frame>, snapshot: Arc<Snapshot>, table: Arc<FlowTable>) -> Self {
        Self { worker, snapshot, table }
    }

    /// Flows that are tracked now.
    #[must_use]
    pub fn live(&self) -> u32 {
        self.table.live()
    }

    /// The worker's counters.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.worker.counters()
    }

    /// Says that this worker rests: others need not wait for it.
    pub fn sleep(&mut self) {
        self.worker.sleep();
    }
}

impl Path for Engine {
    #[inline(never)] // a name for callgrind's --toggle-collect
    fn carry(&mut self, now: u64, input: &mut Vec<Packet<Frame>>, out: &mut Vec<Output<Frame>>) {
        self.worker.step(now, &self.snapshot, input, out, &mut NoTrace);
    }
}

/// Packets in `out` that were not sent by an ENI.
#[must_use]
pub fn not_forwarded(out: &[Output<Frame>]) -> usize {
    out.iter().filter(|o| !matches!(o.verdict, Verdict::Eni { .. })).count()
}
