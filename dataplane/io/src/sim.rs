//! Two ports in memory, back to back: what one sends the other receives. For tests and simulations.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_engine::{Drop as Reason, Frame, Ingress, Offload, Packet, Verdict};

use crate::{IoFrame, Port, PortStats};

/// What lies on the wire between two ports: the frame with the verdict it was sent by and its offload.
type Cable = Arc<Mutex<VecDeque<(IoFrame, Verdict, Offload)>>>;

/// One end of a pair.
pub struct SimPort {
    ingress: Ingress,
    incoming: Cable,
    outgoing: Cable,
    queued: VecDeque<(IoFrame, Verdict, Offload)>,
    depth: usize,
    rx_packets: u64,
    tx_packets: u64,
    tx_full: u64,
}

/// Two ends of a cable that holds `depth` frames in each direction. What arrives at the first end has ingress `first`.
#[must_use]
pub fn pair(depth: usize, first: Ingress, second: Ingress) -> (SimPort, SimPort) {
    let (left, right) = (Cable::default(), Cable::default());
    (
        SimPort::new(depth, first, Arc::clone(&left), Arc::clone(&right)),
        SimPort::new(depth, second, right, left),
    )
}

impl SimPort {
    fn new(depth: usize, ingress: Ingress, incoming: Cable, outgoing: Cable) -> Self {
        let queued = VecDeque::new();
        Self { ingress, incoming, outgoing, queued, depth, rx_packets: 0, tx_packets: 0, tx_full: 0 }
    }

    /// Everything that arrived, with the verdicts it was sent by.
    pub fn drain(&mut self) -> Vec<(IoFrame, Verdict, Offload)> {
        let all: Vec<_> = lock(&self.incoming).drain(..).collect();
        self.rx_packets += all.len() as u64;
        all
    }
}

impl Port for SimPort {
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize {
        let mut incoming = lock(&self.incoming);
        let count = budget.min(incoming.len());
        for (frame, _, offload) in incoming.drain(..count) {
            into.push(Packet { frame, ingress: self.ingress, offload });
        }
        self.rx_packets += count as u64;
        count
    }

    fn send(&mut self, frame: IoFrame, verdict: Verdict, offload: Offload) -> Result<(), (IoFrame, Reason)> {
        if matches!(verdict, Verdict::Handoff { .. } | Verdict::Drop(_)) || frame.is_empty() {
            return Err((frame, Reason::TxError));
        }
        if lock(&self.outgoing).len() + self.queued.len() >= self.depth {
            self.tx_full += 1;
            return Err((frame, Reason::TxFull));
        }
        self.queued.push_back((frame, verdict, offload));
        Ok(())
    }

    fn flush(&mut self) {
        self.tx_packets += self.queued.len() as u64;
        lock(&self.outgoing).append(&mut self.queued);
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> PortStats {
        [("rx_packets", self.rx_packets), ("tx_packets", self.tx_packets), ("tx_full", self.tx_full)]
            .into_iter()
            .collect()
    }
}

fn lock(cable: &Cable) -> std::sync::MutexGuard<'_, VecDeque<(IoFrame, Verdict, Offload)>> {
    cable.lock().unwrap_or_else(PoisonError::into_inner)
}
