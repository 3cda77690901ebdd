//! A port with a bad day: any other port, with losses, duplicates, delays, swapped order, corruption and a full way out.
//!
//! Faults follow a plan and a seed, never the system's entropy, so that a run that failed can be run again. Time is counted
//! in calls of `receive`, because the packet path has no clock. Every fault is a counter, so that a test can account for
//! each packet: `in + duplicated = out + dropped + held`.

use std::os::fd::RawFd;

use sluice_engine::{Drop as Reason, Frame, Offload, Packet, Verdict};

use crate::{IoFrame, Port, PortStats};

/// How likely each fault is, in thousandths, per packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// A received packet is lost.
    pub drop: u16,
    /// A received packet comes twice, the second time from the heap.
    pub duplicate: u16,
    /// A received packet changes places with the one before it in its batch.
    pub reorder: u16,
    /// A received packet is held back for `delay_calls` calls of `receive`.
    pub delay: u16,
    /// For how many calls.
    pub delay_calls: u32,
    /// One bit of a received packet's first buffer flips.
    pub corrupt: u16,
    /// A packet to be sent is refused as if the ring were full.
    pub refuse: u16,
}

/// A port behind which the plan happens.
pub struct FaultPort<P> {
    inner: P,
    plan: Plan,
    random: u64,
    calls: u32,
    held: Vec<(u32, Packet<IoFrame>)>,
    fresh: Vec<Packet<IoFrame>>,
    dropped: u64,
    duplicated: u64,
    reordered: u64,
    delayed: u64,
    corrupted: u64,
    refused: u64,
}

impl<P: Port> FaultPort<P> {
    /// Puts the plan in front of `inner`. Equal seeds give equal faults.
    pub fn new(inner: P, plan: Plan, seed: u64) -> Self {
        Self {
            inner,
            plan,
            // A state of zero would stay zero.
            random: seed ^ 0x9E37_79B9_7F4A_7C15,
            calls: 0,
            held: Vec::new(),
            fresh: Vec::new(),
            dropped: 0,
            duplicated: 0,
            reordered: 0,
            delayed: 0,
            corrupted: 0,
            refused: 0,
        }
    }

    /// The port itself.
    pub fn into_inner(self) -> P {
        self.inner
    }

    /// xorshift64*, good enough for dice.
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn happens(&mut self, thousandths: u16) -> bool {
        thousandths > 0 && self.next() % 1000 < u64::from(thousandths)
    }

    /// Held packets whose time has come, then new ones as the plan lets them through.
    fn suffer(&mut self, mut packet: Packet<IoFrame>, into: &mut Vec<Packet<IoFrame>>, begin: usize) {
        if self.happens(self.plan.drop) {
            self.dropped += 1;
            return;
        }
        if self.happens(self.plan.corrupt) && !packet.frame.is_empty() {
            let bit = self.next() as usize % (packet.frame.bytes().len() * 8);
            packet.frame.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
            self.corrupted += 1;
        }
        if self.happens(self.plan.duplicate) {
            let frame = IoFrame::Heap(packet.frame.to_vec());
            into.push(Packet { frame, ingress: packet.ingress, offload: packet.offload });
            self.duplicated += 1;
        }
        if self.happens(self.plan.delay) {
            self.delayed += 1;
            self.held.push((self.calls.wrapping_add(self.plan.delay_calls), packet));
            return;
        }
        into.push(packet);
        let len = into.len();
        if len - begin >= 2 && self.happens(self.plan.reorder) {
            into.swap(len - 1, len - 2);
            self.reordered += 1;
        }
    }
}

impl<P: Port> Port for FaultPort<P> {
    /// May give up to twice the budget when packets are duplicated.
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize {
        self.calls = self.calls.wrapping_add(1);
        let begin = into.len();
        let mut i = 0;
        while i < self.held.len() && into.len() - begin < budget {
            if self.held[i].0 <= self.calls {
                into.push(self.held.remove(i).1);
            } else {
                i += 1;
            }
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        self.inner.receive(budget - (into.len() - begin), &mut fresh);
        for packet in fresh.drain(..) {
            self.suffer(packet, into, begin);
        }
        self.fresh = fresh;
        into.len() - begin
    }

    fn send(&mut self, frame: IoFrame, verdict: Verdict, offload: Offload) -> Result<(), (IoFrame, Reason)> {
        if self.happens(self.plan.refuse) {
            self.refused += 1;
            return Err((frame, Reason::TxFull));
        }
        self.inner.send(frame, verdict, offload)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn stalled(&self) -> bool {
        self.inner.stalled()
    }

    fn fd(&self) -> Option<RawFd> {
        self.inner.fd()
    }

    fn stats(&self) -> PortStats {
        let mut stats = self.inner.stats();
        stats.push("fault_dropped", self.dropped);
        stats.push("fault_duplicated", self.duplicated);
        stats.push("fault_reordered", self.reordered);
        stats.push("fault_delayed", self.delayed);
        stats.push("fault_held", self.held.len() as u64);
        stats.push("fault_corrupted", self.corrupted);
        stats.push("fault_refused", self.refused);
        stats
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::Ingress;

    use super::*;
    use crate::sim::{SimPort, pair};

    const ETH: Verdict = Verdict::Eni { ifindex: 1 };

    fn run(plan: Plan, seed: u64) -> (Vec<Vec<u8>>, PortStats) {
        let (mut near, far): (SimPort, SimPort) = pair(10_000, Ingress::Eni(1), Ingress::Eni(2));
        let mut port = FaultPort::new(far, plan, seed);
        let mut packets = Vec::new();
        for i in 0..2000u16 {
            near.send(IoFrame::Heap(i.to_be_bytes().repeat(20)), ETH, Offload::default()).unwrap();
            if i % 16 == 15 {
                near.flush();
                port.receive(64, &mut packets);
            }
        }
        for _ in 0..100 {
            port.receive(64, &mut packets);
        }
        (packets.into_iter().map(|p| p.frame.to_vec()).collect(), port.stats())
    }

    #[test]
    fn every_packet_is_accounted_for_and_a_seed_repeats() {
        let plan =
            Plan { drop: 50, duplicate: 30, reorder: 100, delay: 80, delay_calls: 3, corrupt: 20, refuse: 0 };
        let (first, stats) = run(plan, 7);
        let count = |name| stats.value(name);
        assert_eq!(
            2000 + count("fault_duplicated"),
            first.len() as u64 + count("fault_dropped") + count("fault_held")
        );
        assert_eq!(count("fault_held"), 0);
        for name in
            ["fault_dropped", "fault_duplicated", "fault_reordered", "fault_delayed", "fault_corrupted"]
        {
            assert!(count(name) > 5, "{name} {}", count(name));
        }
        assert_eq!(run(plan, 7).0, first);
        assert_ne!(run(plan, 8).0, first);
    }

    #[test]
    fn no_plan_changes_nothing() {
        let (all, _) = run(Plan::default(), 1);
        assert_eq!(all, (0..2000u16).map(|i| i.to_be_bytes().repeat(20)).collect::<Vec<_>>());
    }

    #[test]
    fn a_refused_frame_comes_back() {
        let (near, _far) = pair(10_000, Ingress::Eni(1), Ingress::Eni(2));
        let mut port = FaultPort::new(near, Plan { refuse: 500, ..Plan::default() }, 3);
        let refused = (0..1000)
            .filter_map(|i: u32| {
                port.send(i.to_be_bytes().to_vec().into(), ETH, Offload::default()).err().map(|e| (i, e))
            })
            .inspect(|(i, (frame, reason))| {
                assert_eq!((frame.bytes(), *reason), (&i.to_be_bytes()[..], Reason::TxFull));
            })
            .count();
        assert!((400..600).contains(&refused));
    }
}
