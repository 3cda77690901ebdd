//! What a packet went through, for whoever watches.
//!
//! The engine is compiled against a [`Trace`]; with [`NoTrace`] every call vanishes, so that watching costs nothing while
//! nobody does. A tracer sees each packet as it came and as it went, with the reason.

use crate::flow::{Dir, FlowId, FlowKey};
use crate::frame::Ingress;
use crate::verdict::Verdict;

/// What became of a packet, and why.
#[derive(Debug, Clone, Copy)]
pub struct Note {
    /// Where it entered.
    pub ingress: Ingress,
    /// How it ended.
    pub verdict: Verdict,
    /// The flow it belongs to.
    pub flow: Option<FlowNote>,
    /// It waited: for its first fragment or for an Ethernet address.
    pub held: bool,
    /// The engine made it (an ICMP error about a packet that was dropped).
    pub generated: bool,
}

/// The flow that a packet belongs to.
#[derive(Debug, Clone, Copy)]
pub struct FlowNote {
    /// Its number in the table.
    pub id: FlowId,
    /// The packet's direction.
    pub dir: Dir,
    /// The packet opened it.
    pub opened: bool,
    /// As the originator sees it.
    pub original: FlowKey,
    /// As the other side sees it.
    pub translated: FlowKey,
}

/// Watches packets.
pub trait Trace {
    /// False: nothing is called and nothing is prepared.
    const ON: bool;

    /// A packet came in. `slot` numbers the packets of one step.
    fn input(&mut self, now: u64, slot: usize, ingress: Ingress, bytes: &[u8], len: usize);

    /// The packet of a slot went out or was dropped; `slot` is absent for one that waited since an earlier step or that
    /// the engine made. The bytes are as they leave.
    fn output(&mut self, now: u64, slot: Option<usize>, bytes: &[u8], len: usize, note: &Note);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    const ON: bool = false;

    #[inline]
    fn input(&mut self, _: u64, _: usize, _: Ingress, _: &[u8], _: usize) {}

    #[inline]
    fn output(&mut self, _: u64, _: Option<usize>, _: &[u8], _: usize, _: &Note) {}
}
