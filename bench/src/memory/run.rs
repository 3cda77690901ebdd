//! The single-threaded measurements: packets of known flows, new flows, expiry, checksum, parse.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use sluice_engine::wire::{self, checksum};

use super::path::{Engine, Path};
use super::stream::{Order, Stream};
use super::world;
use super::yardstick::Yardstick;
use crate::load::frame::{Checksums, Template};
use crate::meter::cpu::of_this_thread;

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Numbers of flows.
    pub flows: Vec<u32>,
    /// Packets of one pass.
    pub packets: u64,
    /// Passes of engine and yardstick in turn.
    pub rounds: u32,
    /// Length of frames in bytes.
    pub length: usize,
}

/// Packets of known flows.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Number of flows.
    pub flows: u32,
    /// In which order they send.
    pub order: Order,
    /// The engine's CPU nanoseconds per packet, median of the rounds.
    pub engine_ns: f64,
    /// The yardstick's.
    pub yardstick_ns: f64,
    /// Median over the rounds of the ratio of the two.
    pub ratio: f64,
    /// The engine's best and worst round.
    pub engine_range_ns: (f64, f64),
}

/// Everything else.
#[derive(Debug, Clone, Serialize)]
pub struct Costs {
    /// Flows that one thread opens per second of CPU time, translation and port choice included.
    pub new_flows_per_second: f64,
    /// CPU nanoseconds to open one.
    pub new_flow_ns: f64,
    /// CPU nanoseconds to expire one, its slot being free again.
    pub expiry_ns: f64,
    /// Flows that one thread expires per second of CPU time.
    pub expired_per_second: f64,
    /// CPU nanoseconds to parse a frame of 64 bytes.
    pub parse_ns: f64,
    /// CPU nanoseconds to sum 40, 1460 and 65,495 bytes.
    pub checksum_ns: [f64; 3],
}

/// Lengths behind [`Costs::checksum_ns`].
pub const CHECKSUM_LENGTHS: [usize; 3] = [40, 1460, 65_495];

/// Measures one number of flows in one order, engine and yardstick in turn.
///
/// # Errors
/// The engine loses packets of flows that it knows.
pub fn cell(settings: &Settings, flows: u32, order: Order) -> Result<Cell> {
    let mut engine = open(flows, settings.length)?;
    let mut yardstick = Yardstick::new(flows);
    let mut stream = Stream::new(0..flows, order, settings.length);
    // Both have seen every flow before the clock runs.
    let warm = stream.once().min(settings.packets);
    stream.run(&mut engine, warm);
    stream.run(&mut yardstick, warm);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let cost = stream.measure(&mut engine, settings.packets);
        ensure!(cost.lost == 0, "{} packets of {flows} known flows were not forwarded", cost.lost);
        let yard = stream.measure(&mut yardstick, settings.packets);
        ours.push(cost.ns());
        theirs.push(yard.ns());
        ratios.push(cost.ns() / yard.ns());
    }
    ours.sort_by(f64::total_cmp);
    Ok(Cell {
        flows,
        order,
        engine_ns: median(&mut ours),
        yardstick_ns: median(&mut theirs),
        ratio: median(&mut ratios),
        engine_range_ns: (ours[0], ours[ours.len() - 1]),
    })
}

/// An engine that knows the flows `0..flows`.
///
/// # Errors
/// A flow was not opened.
pub fn open(flows: u32, length: usize) -> Result<Engine> {
    let mut engine = world::engine(flows)?;
    let mut stream = Stream::new(0..flows, Order::InOrder, length);
    let lost = stream.run(&mut engine, stream.once());
    ensure!(
        lost == 0 && engine.live() == flows,
        "{} of {flows} flows were opened, {lost} packets lost",
        engine.live()
    );
    Ok(engine)
}

/// Measures what is not the established path.
///
/// # Errors
/// A flow was not opened, or does not expire.
pub fn costs(settings: &Settings) -> Result<Costs> {
    let flows = *settings.flows.iter().max().unwrap_or(&100_000);
    let mut engine = world::engine(flows)?;
    let (mut opening, mut expiring) = (Vec::new(), Vec::new());
    let mut now = Duration::ZERO;
    // The first round touches the table's memory for the first time; it is not counted.
    for round in 0..=settings.rounds.min(3) {
        let mut stream = Stream::new(0..flows, Order::InOrder, settings.length);
        stream.advance(now);
        let cost = stream.measure(&mut engine, stream.once());
        ensure!(cost.lost == 0, "{} of {flows} new flows were refused", cost.lost);
        let open = engine.live();
        let (took, end) = expire(&mut engine, stream.now())?;
        if round > 0 {
            opening.push(cost.cpu.as_nanos() as f64 / f64::from(open));
            expiring.push(took.as_nanos() as f64 / f64::from(open));
        }
        now = Duration::from_nanos(end);
    }
    let (new_flow_ns, expiry_ns) = (median(&mut opening), median(&mut expiring));
    Ok(Costs {
        new_flows_per_second: 1e9 / new_flow_ns,
        new_flow_ns,
        expiry_ns,
        expired_per_second: 1e9 / expiry_ns,
        parse_ns: parse_ns(),
        checksum_ns: CHECKSUM_LENGTHS.map(checksum_ns),
    })
}

/// Lets every flow of a one-way UDP load time out. Gives the CPU time and when it was over.
///
/// # Errors
/// Flows are still there two virtual minutes later.
pub fn expire(engine: &mut Engine, now: u64) -> Result<(Duration, u64)> {
    /// Time between two steps: what a busy-polling worker would see at least.
    const STEP: u64 = 50_000;
    let limit = now + 200_000_000_000;
    // Everything up to shortly before the first flow is due is waiting, not work.
    let mut now = now + 29_000_000_000;
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let start = of_this_thread();
    while engine.live() > 0 {
        now += STEP;
        engine.carry(now, &mut input, &mut out);
        ensure!(now < limit, "{} flows never expired", engine.live());
    }
    // One more step lets the last slots be reused.
    engine.carry(now + STEP, &mut input, &mut out);
    Ok((of_this_thread() - start, now + STEP))
}

fn parse_ns() -> f64 {
    let template = Template::new(64, [2; 6], [4; 6], Checksums::Full).addressed(world::POD, world::OUTSIDE);
    let frames: Vec<Vec<u8>> = (0..256).map(|n| template.frame(1000 + n, 53, u32::from(n))).collect();
    best_of(|| {
        for frame in &frames {
            black_box(wire::parse(black_box(frame), frame.len())).ok();
        }
        frames.len()
    })
}

fn checksum_ns(length: usize) -> f64 {
    let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
    best_of(|| {
        black_box(checksum::sum(black_box(&bytes)));
        1
    })
}

/// The median of several runs of some milliseconds each, in CPU nanoseconds per item.
fn best_of(mut work: impl FnMut() -> usize) -> f64 {
    let mut runs: Vec<f64> = (0..7)
        .map(|_| {
            let (start, mut items) = (of_this_thread(), 0);
            loop {
                for _ in 0..64 {
                    items += work();
                }
                let took = of_this_thread() - start;
                if took > Duration::from_millis(4) {
                    return took.as_nanos() as f64 / items as f64;
                }
            }
        })
        .collect();
    median(&mut runs)
}

pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
