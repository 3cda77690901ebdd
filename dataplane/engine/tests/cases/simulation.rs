//! Several workers on one thread under a seeded scheduler, with faults: every run can be repeated by its seed.
//!
//! Packets come to any worker in any order, fragments are handed over late, the clock jumps, snapshots change under the
//! traffic, workers sleep. At the end not one frame is missing and no mapping is given out twice.

use std::collections::VecDeque;
use std::sync::Arc;

use sluice_engine::random::Random;
use sluice_engine::testing::read;
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::Output;
use sluice_engine::{Ingress, Packet, Verdict};
use sluice_state::{MasqueradedNodeTraffic, PodPolicy, Rules, State};

use crate::properties::{assert_not_to_a_service, assert_unique};
use crate::traffic;
use crate::world::*;

struct Simulation {
    w: World,
    random: Random,
    queues: Vec<VecDeque<Packet<Vec<u8>>>>,
    entered: u64,
    left: u64,
    asleep: Vec<bool>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let workers = 1 + seed as u16 % 4;
        let size = Size { workers, flows: 300, fragments: 32, seed };
        let mut random = Random::new(seed);
        let w = World::sized(size, |state, host| {
            traffic::serve(state, &mut random);
            // Few ports, so that they run out, and one next hop that is not known yet.
            let mut set = sluice_state::PortSet::default();
            (1024..1088).for_each(|port| set.insert(port));
            (host.tcp, host.udp, host.icmp) = (set.clone(), set.clone(), set);
            host.neighbours.retain(|n| n.ifindex != 3);
        });
        let queues = (0..workers).map(|_| VecDeque::new()).collect();
        let asleep = vec![false; usize::from(workers)];
        Self { w, random, queues, entered: 0, left: 0, asleep }
    }

    fn draw(&mut self, n: usize) -> usize {
        self.random.next_u64() as usize % n
    }

    fn run(mut self, steps: usize) {
        for _ in 0..steps {
            match self.draw(64) {
                0 => self.change_something(),
                1 => {
                    let jump = self.random.next_u64() % (40 * SECOND);
                    self.w.advance(jump);
                }
                2 => {
                    let at = self.draw(self.queues.len());
                    self.w.workers[at].sleep();
                    self.asleep[at] = true;
                }
                3..40 => self.arrive(),
                _ => {
                    let at = self.draw(self.queues.len());
                    self.step(at);
                }
            }
            let pause = self.random.next_u64() % (SECOND / 50);
            self.w.advance(pause);
        }
        self.finish();
    }

    /// A packet arrives at some worker, perhaps damaged.
    fn arrive(&mut self) {
        let (ingress, mut input) = traffic::packet(&mut self.random);
        if self.draw(20) == 0 {
            let (at, bit) = (self.draw(input.frame.len()), self.draw(8));
            input.frame[at] ^= 1 << bit;
        }
        if self.draw(40) == 0 {
            let len = self.draw(input.frame.len());
            input.frame.truncate(len);
        }
        let at = self.draw(self.queues.len());
        self.entered += 1;
        self.queues[at].push_back(Packet { frame: input.frame, ingress, offload: input.offload });
    }

    fn step(&mut self, at: usize) {
        if std::mem::take(&mut self.asleep[at]) {
            self.w.workers[at].wake();
        }
        let most = 1 + self.draw(64);
        let waiting = &mut self.queues[at];
        let mut input: Vec<_> = waiting.drain(..most.min(waiting.len())).collect();
        let mut out = Vec::new();
        self.w.workers[at].step(self.w.now, &self.w.snapshot, &mut input, &mut out, &mut NoTrace);
        self.route(out);
        let totals = self.w.workers[at].counters().totals();
        assert!(totals.conserved(), "{totals:?}");
    }

    fn route(&mut self, out: Vec<Output<Vec<u8>>>) {
        for Output { frame, verdict, offload, ingress } in out {
            match verdict {
                Verdict::Handoff { worker } => {
                    self.queues[usize::from(worker)].push_back(Packet { frame, ingress, offload });
                }
                _ => {
                    assert_not_to_a_service(&self.w, ingress, verdict, &frame);
                    self.assert_quarantined(ingress, verdict, &frame);
                    self.left += 1;
                }
            }
        }
    }

    /// While policy lets pod B speak to nobody, nothing of it leaves and nothing reaches it, whatever was allowed before; but
    /// for its own node and itself. What is left of a datagram whose first fragment has passed is part of that decision.
    fn assert_quarantined(&self, ingress: Ingress, verdict: Verdict, frame: &[u8]) {
        let isolated = !self.w.state.policy.pods.is_empty();
        if !isolated || matches!(verdict, Verdict::Drop(_)) || read(frame).is_fragment() {
            return;
        }
        let key = read(frame).key;
        if key.src() == key.dst() {
            return;
        }
        let from_b = ingress == POD_B && !matches!(verdict, Verdict::KernelPod { .. });
        let to_b = verdict == TO_B && !matches!(ingress, Ingress::FromNode(_));
        assert!(
            verdict == TO_B && ingress == POD_B || !from_b && !to_b,
            "{ingress:?} to {verdict:?}: {}",
            sluice_engine::testing::show(frame)
        );
    }

    /// The control plane changes its mind: a pod moves to another interface, a next hop gets known or lost.
    fn change_something(&mut self) {
        let (choice, ifindex) = (self.draw(7), 10 + self.draw(20) as u32);
        let resolved = host(&self.w.state).neighbours;
        let random = &mut self.random;
        self.w.reload(|state, host| match choice {
            0 => host.links[0].ifindex = if matches!(ifindex, 11 | 12) { 30 } else { ifindex },
            1 => host.neighbours = resolved,
            3 => traffic::serve(state, random),
            // The node takes a service's address over, and lets it go.
            4 if host.local.is_empty() => host.local = vec!["10.96.0.11".parse().unwrap()],
            4 => host.local.clear(),
            5 | 6 => quarantine(state),
            _ => host.neighbours.retain(|n| n.ifindex != 3),
        });
    }

    fn finish(mut self) {
        assert_unique(&self.w);
        while self.queues.iter().any(|q| !q.is_empty()) {
            for at in 0..self.queues.len() {
                self.step(at);
            }
        }
        for at in 0..self.queues.len() {
            let mut out = Vec::new();
            self.w.workers[at].drain(self.w.now, &mut out, &mut NoTrace);
            self.route(out);
        }
        assert_eq!(self.entered, self.left, "not one frame is missing");
        let totals = self.w.totals();
        assert!(totals.conserved() && totals.held == 0, "{totals:?}");
        // All flows end by age alone.
        for _ in 0..60 {
            self.w.advance(10_000 * SECOND);
            for at in 0..self.queues.len() {
                self.step(at);
            }
        }
        assert_eq!(self.w.table.live(), 0);
    }
}

/// Isolates pod B both ways without a rule, or sets it free.
fn quarantine(state: &mut State) {
    if state.policy.pods.is_empty() {
        state.policy.masqueraded_node_traffic = MasqueradedNodeTraffic::Policy;
        state.policy.rules = vec![Arc::new(Rules { id: 1, rules: Vec::new() })].into();
        let ip = B.parse().unwrap();
        state.policy.pods = vec![PodPolicy { ip, ingress: Some(1), egress: Some(1) }];
    } else {
        state.policy = sluice_state::Policy::default();
    }
}

#[test]
fn any_schedule_conserves_frames_and_keeps_mappings_unique() {
    for seed in 0..60 {
        let run = std::panic::catch_unwind(|| Simulation::new(seed).run(1500));
        assert!(run.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_schedule_is_repeatable() {
    let run = |seed| {
        let mut s = Simulation::new(seed);
        for _ in 0..500 {
            s.arrive();
            let at = s.draw(s.queues.len());
            s.step(at);
        }
        (s.w.totals(), s.w.flows().len(), s.left)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(7));
}

#[test]
fn interfaces_that_nobody_knows_cost_only_their_packets() {
    let mut s = Simulation::new(5);
    for ifindex in 0..40 {
        let (_, input) = traffic::packet(&mut s.random);
        s.entered += 1;
        let ingress = Ingress::Pod(ifindex);
        s.queues[0].push_back(Packet { frame: input.frame, ingress, offload: input.offload });
    }
    s.finish();
}
