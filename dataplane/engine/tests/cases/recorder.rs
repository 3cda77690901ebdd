//! A tracer that remembers everything, so that every test also holds the trace to what happened.

use sluice_engine::trace::{Note, Trace};
use sluice_engine::worker::Output;
use sluice_engine::{Drop, Ingress, Verdict};

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
    /// Every packet that came out of the last step was traced as it left. One that was dropped to make an ICMP error of its
    /// memory was traced, too, and comes out as that error, perhaps in a later step.
    pub(crate) fn check(&mut self, outs: &[Output<Vec<u8>>]) {
        let mut outs = outs.iter().peekable();
        for went in &self.went[self.checked..] {
            let same = outs.next_if(|o| (o.verdict, &o.frame) == (went.note.verdict, &went.bytes)).is_some();
            let told = matches!(
                went.note.verdict,
                Verdict::Drop(
                    Drop::TtlExceeded | Drop::FragNeeded | Drop::ServiceUnknown | Drop::ServiceNoEndpoints
                )
            );
            assert!(same || told, "traced {went:?}, came out: {:?}", outs.peek());
        }
        assert!(outs.peek().is_none(), "not traced: {:?}", outs.peek());
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
