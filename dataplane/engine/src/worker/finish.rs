//! The end of a packet: counted, traced, and out; or into a waiting room; or dropped, with word to its sender.

use super::target::{Exit, Target};
use super::waiting::{PATIENCE_NS, Waiting};
use super::{End, Matched, Moment, Output, Sinks, Worker};
use crate::counters::Event;
use crate::frame::{Frame, Ingress, Packet};
use crate::snapshot::Link;
use crate::trace::{FlowNote, Note, Trace};
use crate::verdict::{Drop, Verdict};
use crate::wire::{self, Parsed, Report};

/// Where word to a packet's sender goes, and who says it.
struct Back<'s> {
    exit: Exit<'s>,
    speaker: u32,
}

impl<F: Frame> Worker<F> {
    /// Does to a packet what its way led to.
    #[inline]
    pub(super) fn finish<T: Trace>(
        &mut self,
        moment: Moment<'_>,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        parsed: &Parsed,
        slot: usize,
        end: End,
    ) {
        match end {
            End::Done(verdict, matched) => self.end(moment.now, sinks, packet, Some(slot), matched, verdict),
            End::Wait { target, destination, next, matched } => {
                let flow = matched.map(|m| self.flow_note(m));
                self.wait_for(moment.now, sinks, packet, target, destination, next, flow);
            }
            End::Tell { reason, report, matched } => {
                self.tell(moment, sinks, packet, parsed, slot, matched, (reason, report));
            }
        }
    }

    /// Ends a packet of this step.
    #[inline]
    pub(super) fn end<T: Trace>(
        &mut self,
        now: u64,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        slot: Option<usize>,
        matched: Option<Matched>,
        verdict: Verdict,
    ) {
        let flow = if T::ON { matched.map(|m| self.flow_note(m)) } else { None };
        self.end_noted(now, sinks, packet, slot, flow, verdict);
    }

    /// Ends a packet that waited since an earlier step.
    pub(super) fn end_held<T: Trace>(
        &mut self,
        now: u64,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        flow: Option<FlowNote>,
        verdict: Verdict,
    ) {
        self.end_noted(now, sinks, packet, None, flow, verdict);
    }

    /// Ends a packet whose flow is known by a note; without a slot it has waited.
    #[inline]
    pub(super) fn end_noted<T: Trace>(
        &mut self,
        now: u64,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        slot: Option<usize>,
        flow: Option<FlowNote>,
        verdict: Verdict,
    ) {
        if T::ON {
            let held = slot.is_none();
            let note = Note { ingress: packet.ingress, verdict, flow, held, generated: false };
            sinks.trace.output(now, slot, packet.frame.bytes(), packet.frame.len(), &note);
        }
        self.emit(sinks, packet, verdict);
    }

    pub(super) fn flow_note(&self, matched: Matched) -> FlowNote {
        let flow = self.table.flow(matched.id);
        FlowNote {
            id: matched.id,
            dir: matched.dir,
            opened: matched.opened,
            original: flow.original(),
            translated: flow.translated(),
        }
    }

    #[inline]
    fn emit<T: Trace>(&mut self, sinks: &mut Sinks<'_, F, T>, packet: Packet<F>, verdict: Verdict) {
        self.counters.verdict(verdict);
        let Packet { frame, ingress, offload } = packet;
        sinks.out.push(Output { frame, verdict, offload, ingress });
    }

    /// Keeps a packet until the Ethernet address of its next hop is known.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "the packet, where it goes and what it waits for")]
    pub(super) fn wait_for<T: Trace>(
        &mut self,
        now: u64,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        target: Target,
        destination: u32,
        next: u32,
        flow: Option<FlowNote>,
    ) {
        if self.wanted.len() < self.wanted.capacity() {
            self.wanted.push((target.ifindex(), next));
        }
        let waiting = Waiting { packet, target, destination, until: now + PATIENCE_NS, flow };
        if let Err(waiting) = self.waiting.enter(waiting) {
            let verdict = Verdict::Drop(Drop::NeighbourQueueFull);
            self.end_held(now, sinks, waiting.packet, waiting.flow, verdict);
        }
    }

    /// Drops a packet and tells its sender why, in the packet's own memory. The rules of RFC 1122 §3.2.2 and a rate limit
    /// decide whether anything is said.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "what ends and why, and the step's own three")]
    fn tell<T: Trace>(
        &mut self,
        moment: Moment<'_>,
        sinks: &mut Sinks<'_, F, T>,
        mut packet: Packet<F>,
        parsed: &Parsed,
        slot: usize,
        matched: Option<Matched>,
        (reason, report): (Drop, Report),
    ) {
        let verdict = Verdict::Drop(reason);
        let Some(back) = back(moment, packet.ingress) else {
            return self.end(moment.now, sinks, packet, Some(slot), matched, verdict);
        };
        let may = wire::may_report(packet.frame.bytes(), parsed);
        if may && !self.icmp.take(moment.now) {
            self.counters.add(Event::IcmpRateLimited, 1);
            return self.end(moment.now, sinks, packet, Some(slot), matched, verdict);
        }
        if T::ON {
            let flow = matched.map(|m| self.flow_note(m));
            let note = Note { ingress: packet.ingress, verdict, flow, held: false, generated: false };
            sinks.trace.output(moment.now, Some(slot), packet.frame.bytes(), packet.frame.len(), &note);
        }
        if !may || !wire::report(&mut packet.frame, parsed, &packet.offload, report, back.speaker) {
            return self.emit(sinks, packet, verdict);
        }
        // The packet ends here; its memory carries another one.
        self.counters.dropped_one(reason);
        self.counters.add(Event::Generated, 1);
        packet.offload = crate::frame::Offload::default();
        let sender = parsed.key.src();
        match back.exit.addresses(moment.snapshot, sender) {
            Ok((dst, src)) => {
                wire::set_ethernet(packet.frame.bytes_mut(), dst, src);
                let verdict = back.exit.verdict();
                if T::ON {
                    let note =
                        Note { ingress: packet.ingress, verdict, flow: None, held: false, generated: true };
                    sinks.trace.output(moment.now, None, packet.frame.bytes(), packet.frame.len(), &note);
                }
                self.emit(sinks, packet, verdict);
            }
            Err(unresolved) => {
                let target = back.exit.target();
                self.wait_for(moment.now, sinks, packet, target, sender, unresolved.address, None);
            }
        }
    }
}

/// Back to where a packet came from. Nobody is told whose packet the kernel has sent: it knows the links' sizes itself.
fn back(moment: Moment<'_>, ingress: Ingress) -> Option<Back<'_>> {
    match (ingress, moment.snapshot.link(ingress.ifindex())?) {
        (Ingress::Pod(_), Link::Pod(pod)) => {
            Some(Back { exit: Exit::Pod(pod), speaker: moment.snapshot.snat.as_ref()?.address })
        }
        (Ingress::Eni(_), Link::Eni(eni)) => Some(Back { exit: Exit::Eni(eni), speaker: eni.address }),
        _ => None,
    }
}

/// How many ICMP errors may still be sent (RFC 1812 §4.3.2.8): a bucket of 50, refilled at 1,000 a second, as Linux has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct IcmpBudget {
    tokens: u64,
    at: u64,
}

impl Default for IcmpBudget {
    fn default() -> Self {
        Self { tokens: Self::BURST, at: 0 }
    }
}

impl IcmpBudget {
    const BURST: u64 = 50;
    const NS_EACH: u64 = 1_000_000;

    fn take(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.at) / Self::NS_EACH;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(Self::BURST);
            self.at = now;
        }
        let granted = self.tokens > 0;
        self.tokens -= u64::from(granted);
        granted
    }
}
