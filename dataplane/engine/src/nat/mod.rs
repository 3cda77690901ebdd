//! Choosing the source port of a translated connection.
//!
//! A port (an ICMP identifier is one) is taken per destination: the same port serves any number of destinations at once,
//! because replies are told apart by where they come from. Whether a port is free is decided in one place only, by
//! inserting the reply's key into the flow table; everything here is about which port to try next. Random tries find one
//! at once while a destination is far from exhaustion. Near it, a bitmap of what was found taken keeps the search short;
//! it is a hint, rebuilt by a full scan at most every [`RESCAN_NS`], so that a port is refused only when none is left.

use sluice_state::RandomizeSnat;

use crate::flow::FlowKey;
use crate::random::Random;
use crate::snapshot::Ports;

/// Random tries before the bitmap of the destination is asked.
const TRIES: u32 = 16;
/// Destinations near exhaustion that one worker keeps a bitmap for. One such destination holds tens of thousands of flows,
/// so that few can exist at once.
const TRACKED: usize = 16;
/// Shortest time between two full scans for one destination.
pub const RESCAN_NS: u64 = 10_000_000;

/// What became of the attempt to take one port.
#[derive(Debug)]
pub enum Attempt<T> {
    /// Another flow holds it.
    Taken,
    /// The search ends: the port was taken for us, or there is no point in going on.
    Settled(T),
}

/// Chooses ports for one worker.
#[derive(Debug)]
pub struct PortChooser {
    tracked: Vec<Tracker>,
    clock: u64,
    scans: u64,
}

/// A destination near exhaustion and the ports found taken there.
#[derive(Debug)]
struct Tracker {
    destination: (u32, u16, u8),
    used_at: u64,
    scanned_at: Option<u64>,
    taken: Box<[u64; 1024]>,
}

impl PortChooser {
    /// A chooser with all its memory.
    #[must_use]
    pub fn new() -> Self {
        let tracker =
            || Tracker { destination: (0, 0, 0), used_at: 0, scanned_at: None, taken: Box::new([0; 1024]) };
        Self { tracked: (0..TRACKED).map(|_| tracker()).collect(), clock: 0, scans: 0 }
    }

    /// Full scans made so far.
    #[must_use]
    pub const fn scans(&self) -> u64 {
        self.scans
    }

    /// Offers ports to `attempt` until one is settled; `None` when every port of the set is taken for the destination of
    /// `original`, or the set is empty.
    ///
    /// `attempt` gets the key as it would leave, from `address` and the port, and must insert it.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the search and they meet only here")]
    pub fn choose<T>(
        &mut self,
        now: u64,
        random: &mut Random,
        ports: &Ports,
        mode: RandomizeSnat,
        original: &FlowKey,
        address: u32,
        mut attempt: impl FnMut(FlowKey) -> Attempt<T>,
    ) -> Option<T> {
        let mut offer = |port: u16| {
            attempt(FlowKey::new(address, original.dst(), port, original.dport(), original.proto()))
        };
        if mode == RandomizeSnat::None
            && ports.set.contains(original.sport())
            && let Attempt::Settled(done) = offer(original.sport())
        {
            return Some(done);
        }
        let start = match mode {
            RandomizeSnat::HashRandom => {
                random.keyed(original.src(), original.dst(), original.sport(), original.dport())
            }
            RandomizeSnat::Prng | RandomizeSnat::None => random.next_u32(),
        };
        for i in 0..TRIES.min(ports.len()) {
            let rank = if mode == RandomizeSnat::HashRandom || i == 0 {
                start.wrapping_add(i)
            } else {
                random.next_u32()
            };
            if let Attempt::Settled(done) = offer(ports.nth(rank)?) {
                return Some(done);
            }
        }
        let destination = (original.dst(), original.dport(), original.proto());
        let mut scans = 0;
        let found = self.tracker(destination).search(now, ports, start, &mut scans, offer);
        self.scans += scans;
        found
    }

    fn tracker(&mut self, destination: (u32, u16, u8)) -> &mut Tracker {
        self.clock += 1;
        let at = self.tracked.iter().position(|t| t.destination == destination && t.used_at > 0);
        let at = at.unwrap_or_else(|| {
            let oldest = self.tracked.iter().enumerate().min_by_key(|(_, t)| t.used_at).map_or(0, |(i, _)| i);
            let tracker = &mut self.tracked[oldest];
            tracker.destination = destination;
            tracker.scanned_at = None;
            tracker.taken.fill(0);
            oldest
        });
        let tracker = &mut self.tracked[at];
        tracker.used_at = self.clock;
        tracker
    }
}

impl Default for PortChooser {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracker {
    fn search<T>(
        &mut self,
        now: u64,
        ports: &Ports,
        start: u32,
        scans: &mut u64,
        mut offer: impl FnMut(u16) -> Attempt<T>,
    ) -> Option<T> {
        if let Some(done) = self.pass(ports, start, &mut offer) {
            return Some(done);
        }
        if self.scanned_at.is_some_and(|at| now.saturating_sub(at) < RESCAN_NS) {
            return None;
        }
        self.scanned_at = Some(now);
        self.taken.fill(0);
        *scans += 1;
        self.pass(ports, start, &mut offer)
    }

    /// Offers every port that is not marked, from a random place on, and marks what turns out to be taken.
    fn pass<T>(&mut self, ports: &Ports, start: u32, offer: &mut impl FnMut(u16) -> Attempt<T>) -> Option<T> {
        let words = ports.set.words();
        let first = usize::from(ports.nth(start)? >> 6);
        for step in 0..words.len() {
            let at = (first + step) % words.len();
            let mut free = words[at] & !self.taken[at];
            while free != 0 {
                let bit = free.trailing_zeros();
                free &= free - 1;
                self.taken[at] |= 1 << bit;
                let port = u16::try_from(at as u32 * 64 + bit).unwrap_or(u16::MAX);
                if let Attempt::Settled(done) = offer(port) {
                    return Some(done);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
