//! Several workers on one table, each with its own flows: what sharing costs.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;

use super::path::Engine;
use super::stream::{Cost, Order, Stream};
use super::world;
use crate::cpus;

/// What a number of threads reached.
#[derive(Debug, Clone, Serialize)]
pub struct Scale {
    /// Threads, one worker each.
    pub threads: u16,
    /// Flows over all of them.
    pub flows: u32,
    /// CPU nanoseconds per packet, mean over the threads.
    pub cpu_ns: f64,
    /// Packets per second over all threads, making the frames included; by the wall clock, so a busy machine shows.
    pub million_pps: f64,
}

/// Runs `threads` workers over `flows` flows, `packets` packets each, shuffled.
///
/// # Errors
/// A packet is lost, or a thread cannot start.
pub fn measure(threads: u16, flows: u32, packets: u64, length: usize) -> Result<Scale> {
    let engines = world::engines(flows, threads)?;
    let each = flows / u32::from(threads);
    let barrier = Arc::new(Barrier::new(usize::from(threads)));
    let workers: Vec<_> = engines
        .into_iter()
        .zip(0_u32..)
        .map(|(engine, id)| {
            let barrier = Arc::clone(&barrier);
            let mine = id * each..(id + 1) * each;
            std::thread::spawn(move || work(id as usize, engine, mine, packets, length, &barrier))
        })
        .collect();
    let mut costs = Vec::new();
    for worker in workers {
        costs.push(worker.join().map_err(|_| anyhow!("a worker panicked"))?);
    }
    let lost: u64 = costs.iter().map(|(cost, _)| cost.lost).sum();
    ensure!(lost == 0, "{lost} packets were not forwarded by {threads} workers");
    Ok(Scale {
        threads,
        flows,
        cpu_ns: costs.iter().map(|(cost, _)| cost.ns()).sum::<f64>() / f64::from(threads),
        million_pps: costs.iter().map(|(cost, seconds)| cost.packets as f64 / seconds).sum::<f64>() / 1e6,
    })
}

fn work(
    id: usize,
    mut engine: Engine,
    flows: std::ops::Range<u32>,
    packets: u64,
    length: usize,
    barrier: &Barrier,
) -> (Cost, f64) {
    // Where there is no CPU of this rank the scheduler decides.
    if let Some(cpu) = cpus::allowed(0).ok().and_then(|cpus| cpus.get(id).copied()) {
        cpus::keep(0, &[cpu]).ok();
    }
    let mut stream = Stream::new(flows, Order::Shuffled, length);
    let lost = stream.run(&mut engine, stream.once());
    barrier.wait();
    let start = Instant::now();
    let mut cost = stream.measure(&mut engine, packets);
    let seconds = start.elapsed().as_secs_f64();
    cost.lost += lost;
    engine.sleep();
    barrier.wait();
    (cost, seconds)
}
