//! Identifications for translated datagrams.
//!
//! Behind one address, two pods may use one IP identification towards one host at the same time, and the host would put
//! their fragments together (RFC 6864 §5.3.1, RFC 7857 §9). So a fragmented datagram whose source is translated gets an
//! identification of ours, the same for all its fragments, as part of what was decided for its first one.

/// Identifications that no other worker gives out.
#[derive(Debug, Clone)]
pub struct FragmentIds {
    next: u32,
    step: u32,
    worker: u32,
}

impl FragmentIds {
    /// Those of `worker` of `workers`, beginning anywhere (`seed`) in its share.
    #[must_use]
    pub fn new(worker: u16, workers: u16, seed: u64) -> Self {
        let step = u32::from(workers.max(1));
        let worker = u32::from(worker) % step;
        let share = (0x1_0000 - worker).div_ceil(step);
        Self { next: worker + step * ((seed % u64::from(share)) as u32), step, worker }
    }

    /// The one that was given out longest ago.
    pub fn allocate(&mut self) -> u16 {
        let id = self.next as u16;
        self.next += self.step;
        if self.next > u32::from(u16::MAX) {
            self.next = self.worker;
        }
        id
    }
}
