//! Streams of frames through a path, and the CPU time that the path took.
//!
//! Frames are rewritten in place, so they must be made anew for every pass. That happens in chunks of eight batches between
//! two readings of the clock, so that making them is not measured and the caches hold what a receive queue would have put
//! there: the frames, not megabytes of them.

use std::time::Duration;

use sluice_engine::worker::{BATCH, Output};
use sluice_engine::{Offload, Packet};

use super::path::{Frame, Path, not_forwarded};
use super::world::{FROM_POD, OUTSIDE, POD};
use crate::load::frame::{Addressed, Checksums, Endpoints, Template};
use crate::meter::cpu::of_this_thread;

/// Batches between two readings of the clock.
const CHUNK: usize = 8;

/// In which order flows send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they were opened.
    InOrder,
    /// In a random order that is the same in every pass.
    Shuffled,
}

/// A stream of frames: one packet of each flow in turn, for ever.
#[derive(Debug)]
pub struct Stream {
    template: Addressed,
    flows: Vec<u32>,
    next: usize,
    input: Vec<Vec<Packet<Frame>>>,
    output: Vec<Vec<Output<Frame>>>,
    spare: Vec<Frame>,
    clock: Duration,
    now: u64,
}

/// What a pass cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Packets.
    pub packets: u64,
    /// CPU time of the path.
    pub cpu: Duration,
    /// Packets that were not forwarded.
    pub lost: u64,
}

impl Cost {
    /// CPU nanoseconds per packet.
    #[must_use]
    pub fn ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.packets.max(1) as f64
    }
}

impl Stream {
    /// A stream of `flows`, given by their numbers, in frames of `length` bytes.
    #[must_use]
    pub fn new(flows: std::ops::Range<u32>, order: Order, length: usize) -> Self {
        let mut flows: Vec<u32> = flows.collect();
        if order == Order::Shuffled {
            shuffle(&mut flows);
        }
        let template = Template::new(length, [2, 0, 0, 0, 1, 10], [2, 0, 0, 0, 0, 10], Checksums::Full);
        Self {
            template: template.addressed(POD, OUTSIDE),
            flows,
            next: 0,
            input: (0..CHUNK).map(|_| Vec::with_capacity(BATCH)).collect(),
            output: (0..CHUNK).map(|_| Vec::with_capacity(2 * BATCH)).collect(),
            spare: Vec::with_capacity(CHUNK * BATCH),
            clock: cost_of_clock(),
            now: 1_000_000_000,
        }
    }

    /// Time at the engine, in nanoseconds. It moves by 1 us a batch.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Moves the engine's time on.
    pub fn advance(&mut self, by: Duration) {
        self.now += by.as_nanos() as u64;
    }

    /// Sends `packets` packets, rounded up to whole chunks, and measures.
    pub fn measure(&mut self, path: &mut impl Path, packets: u64) -> Cost {
        let mut cost = Cost::default();
        while cost.packets < packets {
            self.prepare();
            let start = of_this_thread();
            self.carry(path);
            let took = of_this_thread() - start;
            cost.cpu += took.saturating_sub(self.clock);
            cost.packets += (CHUNK * BATCH) as u64;
            cost.lost += self.recycle();
        }
        cost
    }

    /// Sends `packets` packets without a look at any clock, for tools that count instructions. Gives how many were not
    /// forwarded.
    pub fn run(&mut self, path: &mut impl Path, packets: u64) -> u64 {
        let mut lost = 0;
        for _ in 0..packets.div_ceil((CHUNK * BATCH) as u64) {
            self.prepare();
            self.carry(path);
            lost += self.recycle();
        }
        lost
    }

    /// One packet of every flow, the last chunk filled up with the first flows again.
    #[must_use]
    pub fn once(&self) -> u64 {
        self.flows.len() as u64
    }

    /// Fills every batch; not measured.
    pub fn prepare(&mut self) {
        for input in &mut self.input {
            while input.len() < BATCH {
                let number = self.flows[self.next];
                self.next = if self.next + 1 == self.flows.len() { 0 } else { self.next + 1 };
                let ends = Endpoints::of_flow(number, POD, OUTSIDE);
                let mut frame = self.spare.pop().unwrap_or_else(|| vec![0; self.template.length()]);
                frame.resize(self.template.length(), 0);
                self.template.lay(&mut frame);
                self.template.write(&mut frame, ends.source_port, ends.destination_port, number);
                input.push(Packet { frame, ingress: FROM_POD, offload: Offload::default() });
            }
        }
    }

    /// Carries every batch: what is measured.
    #[inline]
    pub fn carry(&mut self, path: &mut impl Path) {
        for (input, output) in self.input.iter_mut().zip(&mut self.output) {
            self.now += 1000;
            path.carry(self.now, input, output);
        }
    }

    /// Takes the frames back; not measured. Gives how many packets were not forwarded.
    pub fn recycle(&mut self) -> u64 {
        let mut lost = 0;
        for (input, output) in self.input.iter_mut().zip(&mut self.output) {
            lost += not_forwarded(output) as u64;
            self.spare.extend(input.drain(..).map(|p| p.frame));
            self.spare.extend(output.drain(..).map(|o| o.frame));
        }
        lost
    }

    /// Packets between [`Stream::prepare`] and [`Stream::recycle`].
    #[must_use]
    pub const fn chunk() -> u64 {
        (CHUNK * BATCH) as u64
    }
}

/// What a reading of the clock adds to the time between two readings.
fn cost_of_clock() -> Duration {
    let mut costs: Vec<Duration> = (0..2001)
        .map(|_| {
            let start = of_this_thread();
            of_this_thread() - start
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// Fisher and Yates, from a fixed seed: every run sees the same order.
fn shuffle(items: &mut [u32]) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for i in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(i, (state % (i as u64 + 1)) as usize);
    }
}
