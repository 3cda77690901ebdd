//! The one trait of everything that packets come from and go to.
//!
//! Sending is in two steps, because every transport is cheaper by the batch: `send` queues one frame, `flush` hands what
//! is queued to the kernel. A frame that cannot be taken comes back with the reason, so that the caller counts it by name.

use std::os::fd::RawFd;

use sluice_engine::{Drop as Reason, Offload, Packet, Verdict};

use crate::frame::IoFrame;

/// A source and sink of packets that one worker owns.
pub trait Port: Send {
    /// Appends up to `budget` packets that are there now to `into` and says how many. Never blocks.
    fn receive(&mut self, budget: usize, into: &mut Vec<Packet<IoFrame>>) -> usize;

    /// Queues one frame for the way out that `verdict` names.
    ///
    /// # Errors
    /// The frame itself and why it was not taken: [`Reason::TxFull`] when the way out has no room, [`Reason::NoFrame`]
    /// when no memory was free to carry it, [`Reason::FragNeeded`] when it is too large for the way out and may not be
    /// cut, [`Reason::TxError`] when the kernel refused it or the port cannot carry out the verdict.
    fn send(&mut self, frame: IoFrame, verdict: Verdict, offload: Offload) -> Result<(), (IoFrame, Reason)>;

    /// Hands everything that is queued to the kernel and takes back what it has finished with.
    ///
    /// What the kernel refuses only now is counted in [`Port::stats`] under `tx_full` and `tx_error`, in frames.
    fn flush(&mut self);

    /// True while the kernel has not taken all that was flushed. The port tries again at every `receive` and `flush`, so a
    /// worker must not go to sleep meanwhile.
    fn stalled(&self) -> bool {
        false
    }

    /// What to wait on for packets, if there is such a thing.
    fn fd(&self) -> Option<RawFd>;

    /// Every counter of the port, its kernel counters included.
    fn stats(&self) -> PortStats;
}

/// Counters of a port by name. Names are stable: they are metric labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortStats {
    entries: Vec<(&'static str, u64)>,
}

impl PortStats {
    /// Adds one counter.
    pub fn push(&mut self, name: &'static str, value: u64) {
        self.entries.push((name, value));
    }

    /// The value of `name`; 0 for a counter that the port does not have.
    #[must_use]
    pub fn value(&self, name: &str) -> u64 {
        self.entries.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v)
    }

    /// All counters in the port's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.entries.iter().copied()
    }

    /// Adds the counters of `other`, name by name.
    pub fn merge(&mut self, other: &Self) {
        for (name, value) in other.iter() {
            match self.entries.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += value,
                None => self.entries.push((name, value)),
            }
        }
    }
}

impl FromIterator<(&'static str, u64)> for PortStats {
    fn from_iter<T: IntoIterator<Item = (&'static str, u64)>>(iter: T) -> Self {
        Self { entries: iter.into_iter().collect() }
    }
}

/// Declares counters once: the field that is counted in, its stable name, and what it means, which is its doc comment.
macro_rules! counters {
    ($(#[$outer:meta])* $vis:vis struct $type:ident { $($(#[doc = $doc:literal])+ $field:ident = $name:literal;)* }) => {
        $(#[$outer])*
        #[derive(Default)]
        $vis struct $type { $($(#[doc = $doc])+ pub(super) $field: u64,)* }

        impl $type {
            /// Names and meanings, in the order of [`Self::report`].
            $vis const MEANINGS: &'static [(&'static str, &'static str)] =
                &[$(($name, concat!($($doc),+).trim_ascii()),)*];

            /// Adds every counter to `stats`.
            $vis fn report(&self, stats: &mut $crate::PortStats) {
                $(stats.push($name, self.$field);)*
            }
        }
    };
}
pub(crate) use counters;
