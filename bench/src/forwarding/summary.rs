//! From windows to figures: a median per dataplane and metric, and its ratio to the kernel's peers.
//!
//! A ratio is taken within each round, where both sides saw the same hour, and the median of those is reported; the ratio
//! of two medians would mix rounds.

use serde::Serialize;

use super::bed::{Direction, Window};
use super::lab::Dataplane;
use super::run::{Measured, Slot};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// CPU nanoseconds per packet delivered at the fixed rate, the generator's own taken off.
    CpuNs,
    /// Share of the packets lost at the fixed rate, in percent.
    LossPercent,
    /// Packets that arrived with a source address that they should not have.
    Leaked,
    /// Best delivered rate at any step of the overload, in 1000 packets per second.
    BestKpps,
    /// Delivered rate with the generator flat out, in 1000 packets per second.
    FlatOutKpps,
    /// Share lost with the generator flat out, in percent.
    FlatOutLossPercent,
    /// Share lost at the fixed rate right after, in percent.
    RecoveryLossPercent,
    /// TCP in Gbit/s.
    TcpGbps,
    /// Median round trip in microseconds, nothing else on the way.
    RttP50,
    /// 99th percentile.
    RttP99,
    /// 99.9th percentile.
    RttP999,
    /// Median round trip in microseconds beside a light load.
    LoadedRttP50,
    /// 99th percentile beside a light load.
    LoadedRttP99,
    /// 99.9th percentile beside a light load.
    LoadedRttP999,
}

impl Metric {
    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::CpuNs => "CPU ns/packet",
            Self::LossPercent => "loss at the rate, %",
            Self::Leaked => "leaked packets",
            Self::BestKpps => "best delivered, kpps",
            Self::FlatOutKpps => "delivered flat out, kpps",
            Self::FlatOutLossPercent => "loss flat out, %",
            Self::RecoveryLossPercent => "loss right after, %",
            Self::TcpGbps => "TCP, Gbit/s",
            Self::RttP50 => "RTT p50, us",
            Self::RttP99 => "RTT p99, us",
            Self::RttP999 => "RTT p99.9, us",
            Self::LoadedRttP50 => "RTT p50 beside load, us",
            Self::LoadedRttP99 => "RTT p99 beside load, us",
            Self::LoadedRttP999 => "RTT p99.9 beside load, us",
        }
    }

    /// Whether a ratio of it says anything.
    fn has_ratio(self) -> bool {
        !matches!(
            self,
            Self::LossPercent | Self::Leaked | Self::FlatOutLossPercent | Self::RecoveryLossPercent
        )
    }
}

/// What exactly: a metric and where it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Key {
    /// The metric.
    pub metric: Metric,
    /// Which way, where that matters.
    pub direction: Option<Direction>,
    /// Length of frames in bytes, where that matters.
    pub length: Option<usize>,
    /// Number of flows, where that matters.
    pub flows: Option<u32>,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What it is.
    #[serde(flatten)]
    pub key: Key,
    /// Whose.
    pub dataplane: Dataplane,
    /// Median over the rounds.
    pub median: f64,
    /// Lowest of the rounds.
    pub min: f64,
    /// Highest of the rounds.
    pub max: f64,
    /// Median over the rounds of the ratio to kernel forwarding.
    pub to_kernel: Option<f64>,
    /// Median over the rounds of the ratio to nft masquerade.
    pub to_nft: Option<f64>,
}

/// Every figure of a run.
#[must_use]
pub fn summarise(measured: &Measured) -> Vec<Row> {
    let Some(first) = measured.slots.first() else { return Vec::new() };
    let keys: Vec<Key> = figures(first, measured).into_iter().map(|(key, _)| key).collect();
    let per_slot: Vec<(&Slot, Vec<(Key, f64)>)> =
        measured.slots.iter().map(|slot| (slot, figures(slot, measured))).collect();
    let value = |key: Key, round: u32, dataplane: Dataplane| {
        let (_, figures) = per_slot.iter().find(|(s, _)| s.round == round && s.dataplane == dataplane)?;
        figures.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    };
    let mut dataplanes: Vec<Dataplane> = measured.slots.iter().map(|s| s.dataplane).collect();
    dataplanes.sort();
    dataplanes.dedup();

    let mut rows = Vec::new();
    for key in keys {
        for dataplane in &dataplanes {
            let rounds = || 0..measured.rounds;
            let mut values: Vec<f64> = rounds().filter_map(|round| value(key, round, *dataplane)).collect();
            let ratio = |peer: Dataplane| {
                let one = |round| {
                    Some(value(key, round, *dataplane)? / value(key, round, peer).filter(|v| *v > 0.0)?)
                };
                let mut ratios: Vec<f64> = rounds().filter_map(one).collect();
                if key.metric.has_ratio() { median(&mut ratios) } else { None }
            };
            let (to_kernel, to_nft) = (ratio(Dataplane::Kernel), ratio(Dataplane::Nft));
            let Some(middle) = median(&mut values) else { continue };
            rows.push(Row {
                key,
                dataplane: *dataplane,
                median: middle,
                min: values[0],
                max: values[values.len() - 1],
                to_kernel,
                to_nft,
            });
        }
    }
    rows
}

/// CPUs that were busy with something else, on average over all windows: how quiet the machine was.
#[must_use]
pub fn cpus_elsewhere(measured: &Measured) -> f64 {
    let windows: Vec<f64> =
        measured.slots.iter().flat_map(|s| &s.paced).map(Window::cpus_elsewhere).collect();
    windows.iter().sum::<f64>() / windows.len().max(1) as f64
}

/// Busy time of the machine beyond every task that was counted, as a share of the path's CPU time: what schedstat missed.
#[must_use]
pub fn unaccounted(measured: &Measured) -> f64 {
    let (mut machine, mut counted, mut path) = (0.0, 0.0, 0.0);
    for window in measured.slots.iter().flat_map(|s| &s.paced) {
        machine += window.cpu.machine as f64;
        counted += (window.cpu.path() + window.cpu.elsewhere) as f64;
        path += window.cpu.path() as f64;
    }
    if path > 0.0 { (machine - counted) / path } else { 0.0 }
}

fn figures(slot: &Slot, measured: &Measured) -> Vec<(Key, f64)> {
    let mut figures = Vec::new();
    let percent = |window: &Window| window.loss() * 100.0;
    for window in &slot.paced {
        let key = |metric| Key {
            metric,
            direction: Some(window.direction),
            length: Some(window.length),
            flows: Some(window.flows),
        };
        if let Some(ns) = net_ns(window, slot.round, measured) {
            figures.push((key(Metric::CpuNs), ns));
        }
        figures.push((key(Metric::LossPercent), percent(window)));
        figures.push((key(Metric::Leaked), window.leaked as f64));
    }
    for direction in [Direction::Up, Direction::Down] {
        let key = |metric| Key { metric, direction: Some(direction), length: None, flows: None };
        let steps = || slot.overload.iter().filter(|w| w.direction == direction);
        let best = steps().map(Window::delivered_pps).fold(0.0, f64::max);
        figures.push((key(Metric::BestKpps), best / 1e3));
        if let Some(flat_out) = steps().find(|w| w.rate.is_none()) {
            figures.push((key(Metric::FlatOutKpps), flat_out.delivered_pps() / 1e3));
            figures.push((key(Metric::FlatOutLossPercent), percent(flat_out)));
        }
        if let Some(after) = slot.recovery.iter().find(|w| w.direction == direction) {
            figures.push((key(Metric::RecoveryLossPercent), percent(after)));
        }
        let tcp = if direction == Direction::Up { slot.tcp_up } else { slot.tcp_down };
        figures.push((key(Metric::TcpGbps), tcp));
    }
    let plain = |metric| Key { metric, direction: None, length: None, flows: None };
    figures.extend([
        (plain(Metric::RttP50), slot.idle.p50_us),
        (plain(Metric::RttP99), slot.idle.p99_us),
        (plain(Metric::RttP999), slot.idle.p999_us),
        (plain(Metric::LoadedRttP50), slot.loaded.p50_us),
        (plain(Metric::LoadedRttP99), slot.loaded.p99_us),
        (plain(Metric::LoadedRttP999), slot.loaded.p999_us),
    ]);
    figures
}

/// CPU nanoseconds per packet delivered, with what the generator alone costs per packet (same round, direction, length
/// and rate) taken off.
fn net_ns(window: &Window, round: u32, measured: &Measured) -> Option<f64> {
    let alone = measured.ceilings.iter().find(|c| {
        c.round == round
            && c.window.direction == window.direction
            && c.window.length == window.length
            && c.window.rate == window.rate
    })?;
    let generator = alone.window.gross_ns() * (window.sent + window.refused) as f64;
    (window.delivered > 0).then(|| (window.cpu.path() as f64 - generator) / window.delivered as f64)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::run::Ceiling;
    use crate::meter::cpu::Spent;
    use crate::meter::rtt::RoundTrips;

    fn window(generator: u64, dataplane: u64) -> Window {
        Window {
            direction: Direction::Up,
            length: 64,
            flows: 1000,
            rate: Some(1e5),
            seconds: 1.0,
            sent: 100_000,
            refused: 0,
            delivered: 100_000,
            leaked: 0,
            cpu: Spent { generator, dataplane, ..Spent::default() },
        }
    }

    fn slot(round: u32, dataplane: Dataplane, window: Window) -> Slot {
        let rtt = RoundTrips { count: 1, lost: 0, p50_us: 10.0, p99_us: 20.0, p999_us: 30.0, max_us: 40.0 };
        Slot {
            round,
            dataplane,
            paced: vec![window],
            overload: vec![],
            recovery: vec![],
            idle: rtt.clone(),
            loaded: rtt,
            tcp_up: 10.0,
            tcp_down: 8.0,
        }
    }

    #[test]
    fn the_generator_is_taken_off_and_ratios_are_of_one_round() {
        let measured = Measured {
            // The generator alone: 500 ns a packet in round 0, twice that in a noisier round 1.
            ceilings: (0..2)
                .map(|round| Ceiling { round, window: window(50_000_000 * (u64::from(round) + 1), 0) })
                .collect(),
            slots: vec![
                slot(0, Dataplane::Nft, window(150_000_000, 0)),
                slot(0, Dataplane::Sluice, window(100_000_000, 60_000_000)),
                slot(1, Dataplane::Nft, window(300_000_000, 0)),
                slot(1, Dataplane::Sluice, window(200_000_000, 120_000_000)),
            ],
            rounds: 2,
            took: std::time::Duration::ZERO,
        };
        let rows = summarise(&measured);
        let sluice =
            rows.iter().find(|r| r.key.metric == Metric::CpuNs && r.dataplane == Dataplane::Sluice).unwrap();
        assert_eq!((sluice.min, sluice.max), (1100.0, 2200.0));
        assert_eq!(sluice.to_nft, Some(1.1));
        assert_eq!(sluice.to_kernel, None);
    }
}
