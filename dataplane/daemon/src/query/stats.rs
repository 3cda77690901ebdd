//! Every counter there is, collected from the workers, their ports and the BPF programs.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam::channel::bounded;
use sluice_engine::Drop as Reason;
use sluice_engine::counters::{Event, Totals};
use sluice_state::query::{Conservation, PortCounters, Stats, WorkerCounters};

use super::Sources;
use crate::clock;
use crate::plane::{Order, Plane, Seat, Turns};

/// How long a worker may take to show its ports' counters.
const PATIENCE: Duration = Duration::from_millis(500);

/// Packets that wait inside the worker's engine.
const HELD: &str = "held";
/// Packets refused after the engine's verdict.
const REFUSED: &str = "refused_by_ports";

/// Every counter of [`Stats::total`] with what it means.
#[must_use]
pub fn meanings() -> Vec<(&'static str, &'static str)> {
    let events = Event::ALL.iter().map(|event| (event.name(), event.explain()));
    let own = [
        (
            HELD,
            "Packets that wait inside the engine now: for an Ethernet address or for a first fragment. A gauge.",
        ),
        (
            REFUSED,
            "Packets that a port or another worker refused after the engine's verdict; by reason among the drops.",
        ),
    ];
    events.chain(Turns::MEANINGS.iter().copied()).chain(own).collect()
}

/// Reads everything.
pub(super) fn collect(sources: &Sources) -> Stats {
    let plane = &sources.plane;
    let view = sources.view.load();
    let report = &view.report;
    let mut sum = Ledger::default();
    let mut workers = Vec::with_capacity(plane.seats.len());
    for (id, seat) in (0u16..).zip(&plane.seats) {
        let ledger = Ledger::of(seat);
        workers.push(WorkerCounters { id, counters: ledger.counters(), drops: ledger.drops() });
        sum.add(&ledger);
    }
    let now = clock::unix();
    Stats {
        time_ns: now,
        uptime_s: now.saturating_sub(report.started_ns) / 1_000_000_000,
        generation: report.generation,
        total: sum.counters(),
        drops: sum.drops(),
        bpf: (sources.bpf)().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ports: ports(plane),
        workers,
        flows: plane.table.live(),
        flow_capacity: plane.table.capacity(),
        extent: report.extent,
        memory: report.memory,
        conservation: sum.conservation(),
    }
}

/// Asks every worker for its ports' counters: only the worker itself may read them.
fn ports(plane: &Plane) -> Vec<PortCounters> {
    let (reply, answers) = bounded(plane.seats.len());
    for seat in &plane.seats {
        seat.order(Order::Statistics(reply.clone()));
    }
    drop(reply);
    let mut ports: Vec<PortCounters> = Vec::new();
    for _ in &plane.seats {
        match answers.recv_timeout(PATIENCE) {
            Ok(counters) => ports.extend(counters),
            Err(_) => break,
        }
    }
    ports.sort_by(|a, b| (a.worker, &a.port).cmp(&(b.worker, &b.port)));
    ports
}

/// The counters of one worker or the sum of several.
#[derive(Default)]
struct Ledger {
    engine: Totals,
    refused: Totals,
    turns: BTreeMap<&'static str, u64>,
    queued: u64,
}

impl Ledger {
    fn of(seat: &Seat) -> Self {
        // What ended is read before what came in, so that a packet in between is at most missing, never doubled.
        let refused = seat.refused.totals();
        let engine = seat.counters.totals();
        Self {
            engine,
            refused,
            turns: seat.turns.all().into_iter().collect(),
            queued: seat.parcels.len() as u64,
        }
    }

    fn add(&mut self, other: &Self) {
        self.engine += other.engine;
        self.refused += other.refused;
        for (name, value) in &other.turns {
            *self.turns.entry(name).or_default() += value;
        }
        self.queued += other.queued;
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let events = Event::ALL.iter().map(|event| (event.name().to_owned(), self.engine.event(*event)));
        let turns = self.turns.iter().map(|(name, value)| ((*name).to_owned(), *value));
        let held = std::iter::once((HELD.to_owned(), self.engine.held));
        let refused = std::iter::once((REFUSED.to_owned(), self.refused.all_drops()));
        events.chain(turns).chain(held).chain(refused).collect()
    }

    /// The engine's drops and those after its verdict.
    fn drops(&self) -> BTreeMap<String, u64> {
        let sum = |reason: Reason| self.engine.dropped(reason) + self.refused.dropped(reason);
        Reason::ALL.iter().map(|reason| (reason.name().to_owned(), sum(*reason))).collect()
    }

    fn conservation(&self) -> Conservation {
        let event = |e: Event| self.engine.event(e);
        let judged = self.turns.get("parcels_judged").copied().unwrap_or_default();
        let (engine_drops, refused) = (self.engine.all_drops(), self.refused.all_drops());
        let handoff_full = self.refused.dropped(Reason::HandoffFull);
        let to_ports =
            event(Event::ToPod) + event(Event::ToEni) + event(Event::ToKernelPod) + event(Event::ToKernelEni);
        // A packet that was handed over entered twice; it counts once.
        let packets_in = self.engine.entered().saturating_sub(judged);
        let between = event(Event::HandedOver).saturating_sub(judged);
        let held = self.engine.held + between.saturating_sub(handoff_full.min(between));
        let packets_out = to_ports.saturating_sub(refused - handoff_full.min(between));
        let dropped = engine_drops + refused;
        Conservation {
            packets_in,
            packets_out,
            dropped,
            held,
            balanced: packets_in == packets_out + dropped + held,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_engine::Verdict;
    use sluice_engine::counters::Counters;

    use super::*;

    fn seat() -> Seat {
        Seat::new(Arc::new(Counters::default())).unwrap()
    }

    #[test]
    fn a_packet_handed_over_counts_once_and_a_refused_one_as_dropped() {
        let (one, two) = (seat(), seat());
        one.counters.add(Event::In, 5);
        one.counters.verdict(Verdict::Handoff { worker: 1 });
        one.counters.verdict(Verdict::Handoff { worker: 1 });
        one.counters.verdict(Verdict::Eni { ifindex: 2 });
        one.counters.verdict(Verdict::Eni { ifindex: 2 });
        one.counters.verdict(Verdict::Drop(Reason::Spoof));
        one.refused.dropped_one(Reason::TxFull);
        two.counters.add(Event::In, 1);
        Turns::add(&two.turns.parcels_judged, 1);
        two.counters.verdict(Verdict::Pod { ifindex: 3 });
        let mut sum = Ledger::of(&one);
        sum.add(&Ledger::of(&two));
        let c = sum.conservation();
        assert_eq!((c.packets_in, c.packets_out, c.dropped, c.held), (5, 2, 2, 1));
        assert!(c.balanced);
        assert_eq!(sum.drops()["tx_full"], 1);
        one.counters.add(Event::In, 1);
        assert!(!Ledger::of(&one).conservation().balanced, "a packet without an end is seen");
    }

    #[test]
    fn every_counter_has_a_meaning_and_every_meaning_a_counter() {
        let shown: Vec<_> = Ledger::of(&seat()).counters().into_keys().collect();
        let mut explained: Vec<_> = meanings().iter().map(|(name, _)| (*name).to_owned()).collect();
        explained.sort();
        assert_eq!(shown, explained);
    }

    #[test]
    fn every_reason_is_listed_those_at_zero_too() {
        let drops = Ledger::default().drops();
        assert_eq!(drops.len(), Reason::ALL.len());
        assert!(drops.values().all(|n| *n == 0));
    }
}
