//! A tracer that remembers everything, so that every test also holds the trace to what happened.

use sluice_engine::trace::{Note, Trace};
use sluice_engine::worker::Output;
use sluice_engine::{Ingress, Verdict};

/// A packet as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) now: u64,
    pub(crate) ingress: Ingress,
    pub(crate) bytes: Vec<u8>,
}

/// A packet as it went.
#[derive(Debug, Clone)]
pub(crate) struct Went {
    pub(crate) slot: Option<usize>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) note: Note,
}

#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) came: Vec<Came>,
    pub(crate) went: Vec<Went>,
    checked: usize,
}

impl Recorder {
    /// Every packet that came out of the last step was traced as it left, and what was dropped to make an ICMP error of its
    /// memory was traced before.
    pub(crate) fn check(&mut self, outs: &[Output<Vec<u8>>]) {
        let new = &self.went[self.checked..];
        let replaced = |at: usize| {
            matches!(new[at].note.verdict, Verdict::Drop(_))
                && new.get(at + 1).is_some_and(|next| next.note.generated)
        };
        let left = (0..new.len()).filter(|at| !replaced(*at)).map(|at| &new[at]).collect::<Vec<_>>();
        // An ICMP error may wait for its next hop: it is traced when it leaves, as held.
        let traced = left.iter().map(|w| (w.note.verdict, &w.bytes)).collect::<Vec<_>>();
        let seen = outs.iter().map(|o| (o.verdict, &o.frame)).collect::<Vec<_>>();
        assert_eq!(traced, seen, "the trace says what happened");
        self.checked = self.went.len();
    }
}

impl Trace for Recorder {
    const ON: bool = true;

    fn input(&mut self, now: u64, _: usize, ingress: Ingress, bytes: &[u8], _: usize) {
        self.came.push(Came { now, ingress, bytes: bytes.to_vec() });
    }

    fn output(&mut self, _: u64, slot: Option<usize>, bytes: &[u8], _: usize, note: &Note) {
        self.went.push(Went { slot, bytes: bytes.to_vec(), note: *note });
    }
}
