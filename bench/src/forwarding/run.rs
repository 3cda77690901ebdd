//! The rounds: in each, every dataplane is measured once, one after the other.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::bed::{Bed, Direction, Shape, Window};
use super::lab::{Dataplane, Lab};
use super::plan::{BACKGROUND_RATE, Plan};
use crate::load::learn::Learned;
use crate::meter::rtt::{self, RoundTrips};
use crate::meter::tcp::{self, Way};
use crate::progress::Progress;

/// How the lab is brought up.
#[derive(Debug, Clone)]
pub struct Place {
    /// The `sluice` command.
    pub command: PathBuf,
    /// The lab's name.
    pub name: String,
    /// Further arguments of `sluice lab up`.
    pub arguments: Vec<String>,
}

/// The generator with nothing behind it.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    /// Number of the round, from 0.
    pub round: u32,
    /// What was measured.
    pub window: Window,
}

/// One dataplane in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Slot {
    /// Number of the round, from 0.
    pub round: u32,
    /// Who was measured.
    pub dataplane: Dataplane,
    /// Windows at the fixed rate.
    pub paced: Vec<Window>,
    /// Windows at rising rates, the last flat out, per direction.
    pub overload: Vec<Window>,
    /// A window at the fixed rate right after each flat-out one.
    pub recovery: Vec<Window>,
    /// Round trips with nothing else on the way.
    pub idle: RoundTrips,
    /// Round trips beside a load of 20,000 packets a second.
    pub loaded: RoundTrips,
    /// TCP, pod to wire, in Gbit/s.
    pub tcp_up: f64,
    /// TCP, wire to pod, in Gbit/s.
    pub tcp_down: f64,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Ceilings of every round.
    pub ceilings: Vec<Ceiling>,
    /// Slots of every round.
    pub slots: Vec<Slot>,
    /// Rounds that were completed.
    pub rounds: u32,
    /// How long it took.
    pub took: Duration,
}

/// Runs the plan.
///
/// # Errors
/// A dataplane does not come up or does not forward, the user interrupts, or not one round fits before the deadline.
pub fn run(plan: &Plan, place: &Place, progress: &Progress) -> Result<Measured> {
    let start = Instant::now();
    let mut measured = Measured::default();
    let first = plan.order(0).next().context("no dataplane was asked for")?;
    progress.part(&format!("bringing up the lab `{}`", place.name));
    let mut lab = Lab::up(&place.command, &place.name, first, &place.arguments)?;
    for round in 0..plan.rounds {
        let longest = start.elapsed() / round.max(1);
        if round > 0 && start.elapsed() + longest > plan.deadline {
            progress.say(&format!("{round} rounds of {}: another would pass the deadline", plan.rounds));
            break;
        }
        let mut ceilings = false;
        for dataplane in plan.order(round) {
            let headline = format!("round {} of {}, {}", round + 1, plan.rounds, dataplane.label());
            progress.part(&headline);
            progress.step(&headline, "switching")?;
            lab.switch(dataplane)?;
            let bed = Bed::new(&lab, plan.checksums)?;
            bed.thread_far_end(false)?;
            // Sluice's XDP would come before the ceiling's sink.
            if !ceilings && dataplane != Dataplane::Sluice {
                ceilings = true;
                measured.ceilings.extend(ceiling(plan, &bed, round, progress)?);
            }
            let slot = slot(plan, &bed, round, dataplane, progress, &headline)
                .with_context(|| format!("round {}, {}", round + 1, dataplane.label()))?;
            measured.slots.push(slot);
        }
        if !ceilings {
            lab.switch(Dataplane::Kernel)?;
            measured.ceilings.extend(ceiling(plan, &Bed::new(&lab, plan.checksums)?, round, progress)?);
        }
        measured.rounds += 1;
    }
    progress.finish();
    measured.took = start.elapsed();
    Ok(measured)
}

fn shape(plan: &Plan, length: usize, rate: Option<f64>) -> Shape {
    Shape { length, rate, warm_up: plan.warm_up, window: plan.window }
}

fn ceiling(plan: &Plan, bed: &Bed<'_>, round: u32, progress: &Progress) -> Result<Vec<Ceiling>> {
    let mut ceilings = Vec::new();
    for direction in [Direction::Up, Direction::Down] {
        for length in &plan.lengths {
            for rate in [Some(plan.rate), None] {
                progress.step("the generator alone", &format!("{}, {length} bytes", direction.label()))?;
                let window = bed.ceiling(direction, shape(plan, *length, rate), 1000)?;
                ceilings.push(Ceiling { round, window });
            }
        }
    }
    Ok(ceilings)
}

fn slot(
    plan: &Plan,
    bed: &Bed<'_>,
    round: u32,
    dataplane: Dataplane,
    progress: &Progress,
    headline: &str,
) -> Result<Slot> {
    let mut paced = Vec::new();
    for flows in &plan.flows {
        progress.step(headline, &format!("opening {flows} flows"))?;
        let back = bed.open_flows(*flows)?;
        for length in &plan.lengths {
            for direction in [Direction::Up, Direction::Down] {
                progress.step(headline, &format!("{}, {length} bytes, {flows} flows", direction.label()))?;
                paced.push(bed.window(direction, shape(plan, *length, Some(plan.rate)), *flows, &back)?);
            }
        }
    }
    let back = bed.open_flows(1000)?;
    let (mut overload, mut recovery) = (Vec::new(), Vec::new());
    for direction in [Direction::Up, Direction::Down] {
        overload.extend(overloaded(plan, bed, direction, &back, progress, headline)?);
        progress.step(headline, "recovery")?;
        recovery.push(bed.window(direction, shape(plan, 64, Some(plan.rate)), 1000, &back)?);
    }

    bed.thread_far_end(true)?;
    let (host, address) = bed.host();
    progress.step(headline, "round trips")?;
    let idle = rtt::measure(bed.pod(), host, address, plan.round_trips)?;
    progress.step(headline, "round trips under load")?;
    let background = bed.background(BACKGROUND_RATE)?;
    let loaded = rtt::measure(bed.pod(), host, address, plan.round_trips)?;
    drop(background);
    progress.step(headline, "TCP up")?;
    let tcp_up = tcp::measure(bed.pod(), host, address, Way::Up, plan.tcp)?;
    progress.step(headline, "TCP down")?;
    let tcp_down = tcp::measure(bed.pod(), host, address, Way::Down, plan.tcp)?;
    Ok(Slot { round, dataplane, paced, overload, recovery, idle, loaded, tcp_up, tcp_down })
}

fn overloaded(
    plan: &Plan,
    bed: &Bed<'_>,
    direction: Direction,
    back: &Learned,
    progress: &Progress,
    headline: &str,
) -> Result<Vec<Window>> {
    let rates = plan.overload_rates.iter().copied().map(Some).chain([None]);
    rates
        .map(|rate| {
            progress.step(headline, &format!("overload, {}", direction.label()))?;
            bed.window(direction, shape(plan, 64, rate), 1000, back)
        })
        .collect()
}
