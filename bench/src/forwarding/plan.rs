//! What a run measures, and how long it will take.

use std::time::Duration;

use super::lab::Dataplane;
use crate::load::frame::Checksums;

/// Everything that a run is asked to do.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Plan {
    /// Who is measured; the order rotates from round to round.
    pub dataplanes: Vec<Dataplane>,
    /// Times that each is measured.
    pub rounds: u32,
    /// Lengths of frames in bytes.
    pub lengths: Vec<usize>,
    /// Numbers of flows.
    pub flows: Vec<u32>,
    /// Packets per second at which CPU time is measured.
    pub rate: f64,
    /// Packets per second of the overload's steps; flat out always comes last.
    pub overload_rates: Vec<f64>,
    /// What the pod's checksum fields hold.
    pub checksums: Checksums,
    /// Before each window.
    #[serde(serialize_with = "seconds")]
    pub warm_up: Duration,
    /// Each window.
    #[serde(serialize_with = "seconds")]
    pub window: Duration,
    /// Each measurement of round trips; there are two, idle and under a light load.
    #[serde(serialize_with = "seconds")]
    pub round_trips: Duration,
    /// Each TCP transfer; there are two, up and down.
    #[serde(serialize_with = "seconds")]
    pub tcp: Duration,
    /// The run ends with the round in which this is reached.
    #[serde(serialize_with = "seconds")]
    pub deadline: Duration,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Packets per second of the light load under which round trips are measured a second time.
pub const BACKGROUND_RATE: f64 = 20_000.0;

impl Plan {
    /// Everything, in at most 10 minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            dataplanes: vec![Dataplane::Kernel, Dataplane::Nft, Dataplane::Iptables, Dataplane::Sluice],
            rounds: 5,
            lengths: vec![64, 1400],
            flows: vec![1, 1_000, 100_000],
            rate: 180_000.0,
            overload_rates: vec![250_000.0, 400_000.0],
            checksums: Checksums::Partial,
            warm_up: Duration::from_millis(150),
            window: Duration::from_millis(500),
            round_trips: Duration::from_millis(1200),
            tcp: Duration::from_millis(2000),
            deadline: Duration::from_secs(570),
        }
    }

    /// The main figures, in at most 90 seconds.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            flows: vec![1_000],
            overload_rates: Vec::new(),
            warm_up: Duration::from_millis(100),
            window: Duration::from_millis(300),
            round_trips: Duration::from_millis(400),
            tcp: Duration::from_millis(900),
            deadline: Duration::from_secs(80),
            ..Self::full()
        }
    }

    /// Windows at the fixed rate that each slot takes.
    fn windows(&self) -> u32 {
        (self.flows.len() * self.lengths.len() * 2) as u32
    }

    /// Windows of overload that each slot takes, the recovery's included.
    fn overloads(&self) -> u32 {
        (self.overload_rates.len() as u32 + 2) * 2
    }

    /// How long it will take, about.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let window = self.warm_up + self.window + Duration::from_millis(60);
        let opening: f64 = self.flows.iter().map(|f| 0.1 + f64::from(*f) / 100_000.0).sum();
        let slot = Duration::from_millis(2500)
            + Duration::from_secs_f64(opening)
            + window * (self.windows() + self.overloads())
            + self.round_trips * 2
            + self.tcp * 2;
        let ceilings = window * self.lengths.len() as u32 * 4;
        (slot * self.dataplanes.len() as u32 + ceilings) * self.rounds
    }

    /// Steps that a progress bar will see.
    #[must_use]
    pub fn steps(&self) -> u64 {
        let slot = 1 + self.flows.len() as u32 + self.windows() + self.overloads() + 4;
        let ceilings = self.lengths.len() as u32 * 4;
        u64::from((slot * self.dataplanes.len() as u32 + ceilings) * self.rounds)
    }

    /// The dataplanes in the order of a round: each begins with another, so that none always runs in a warm or a quiet
    /// moment.
    pub fn order(&self, round: u32) -> impl Iterator<Item = Dataplane> + '_ {
        let count = self.dataplanes.len();
        (0..count).map(move |i| self.dataplanes[(i + round as usize) % count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_plans_keep_their_promises() {
        assert!(Plan::full().estimate() < Duration::from_secs(570), "{:?}", Plan::full().estimate());
        assert!(Plan::quick().estimate() < Duration::from_secs(85), "{:?}", Plan::quick().estimate());
        assert!(Plan::full().rounds >= 5);
    }

    #[test]
    fn every_round_has_everybody_and_another_first() {
        let plan = Plan::full();
        let mut firsts: Vec<_> = (0..4).filter_map(|round| plan.order(round).next()).collect();
        firsts.sort();
        assert_eq!(firsts, plan.dataplanes);
        let mut second: Vec<_> = plan.order(1).collect();
        second.sort();
        assert_eq!(second, plan.dataplanes);
    }
}
