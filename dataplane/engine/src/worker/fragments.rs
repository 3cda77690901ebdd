//! Fragments: the first one is judged like any packet, and what became of it holds for the rest of its datagram.
//!
//! Only the first fragment has ports. All fragments of a datagram are one worker's business, whichever queue they came
//! by, so that the others can wait for it there without a lock; a fragment that came to another worker is handed over.

use super::forward::send;
use super::target::Target;
use super::{End, Moment, Sinks, Staged, Worker, ttl_of};
use crate::flow::FlowKey;
use crate::frag::{self, Later};
use crate::frame::{Frame, Ingress, Packet};
use crate::trace::{FlowNote, Trace};
use crate::verdict::{Drop, Verdict};
use crate::wire::{self, Kind, Parsed, Rewrite, Ttl};

/// A later fragment that waits.
#[derive(Debug)]
pub(super) struct Fragment<F> {
    packet: Packet<F>,
    parsed: Parsed,
}

/// What became of a first fragment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece {
    /// It went on.
    Sent {
        target: Target,
        rewrite: Rewrite,
        ttl: Ttl,
        /// The identification that all fragments of the translated datagram get.
        id: Option<u16>,
        flow: Option<FlowNote>,
    },
    /// It was dropped, and the rest with it.
    Dropped(Drop),
}

impl<F: Frame> Worker<F> {
    #[cold]
    pub(super) fn fragment<T: Trace>(
        &mut self,
        moment: Moment<'_>,
        sinks: &mut Sinks<'_, F, T>,
        packet: Packet<F>,
        stage: &Staged,
        slot: usize,
    ) {
        let parsed = &stage.parsed;
        let owner = frag::owner(parsed, self.setup.seed, usize::from(self.setup.workers));
        if owner != usize::from(self.setup.id) {
            let worker = u16::try_from(owner).unwrap_or(self.setup.id);
            return self.end(moment.now, sinks, packet, Some(slot), None, Verdict::Handoff { worker });
        }
        if parsed.is_first_fragment() {
            return self.first_fragment(moment, sinks, packet, stage, slot);
        }
        let ifindex = packet.ingress.ifindex();
        let fragment = Fragment { packet, parsed: *parsed };
        match self.fragments.later(moment.now, ifindex, parsed, fragment) {
            Later::Pass(fragment, piece) => self.follow(moment, sinks, fragment, piece, Some(slot)),
            Later::Held => {}
            Later::Drop(Fragment { packet, .. }, reason) => {
                self.end(moment.now, sinks, packet, Some(slot), None, Verdict::Drop(reason));
            }
        }
    }

    /// Gives up on datagrams whose first fragment did not come.
    pub(super) fn expire_fragments<T: Trace>(&mut self, moment: Moment<'_>, sinks: &mut Sinks<'_, F, T>) {
        if self.fragments.next_deadline().is_none_or(|due| due > moment.now) {
            return;
        }
        loop {
            let due = self.fragments.expire(moment.now).next();
            let Some((fragment, reason)) = due else { break };
            self.end_held(moment.now, sinks, fragment.packet, None, Verdict::Drop(reason));
        }
    }

    /// Gives back every fragment that waits.
    pub(super) fn drain_fragments<T: Trace>(&mut self, now: u64, sinks: &mut Sinks<'_, F, T>) {
        loop {
            let next = self.fragments.drain().next();
            let Some((fragment, reason)) = next else { break };
            self.end_held(now, sinks, fragment.packet, None, Verdict::Drop(reason));
        }
    }

    fn first_fragment<T: Trace>(
        &mut self,
        moment: Moment<'_>,
        sinks: &mut Sinks<'_, F, T>,
        mut packet: Packet<F>,
        stage: &Staged,
        slot: usize,
    ) {
        let parsed = &stage.parsed;
        let ifindex = packet.ingress.ifindex();
        let mut end = self.packet(moment, &mut packet, stage);
        let piece = self.piece(&end, packet.ingress, parsed);
        if let Piece::Sent { id: Some(id), .. } = piece {
            wire::set_ip_id(packet.frame.bytes_mut(), id);
        }
        if let Err(reason) = self.fragments.first(moment.now, ifindex, parsed, piece) {
            end = End::drop(reason);
        }
        self.finish(moment, sinks, packet, parsed, slot, end);
        while let Some((fragment, piece)) = self.fragments.release(ifindex, parsed) {
            self.follow(moment, sinks, fragment, piece, None);
        }
    }

    /// What holds for the rest of a datagram whose first fragment ends like this.
    fn piece(&mut self, end: &End, ingress: Ingress, parsed: &Parsed) -> Piece {
        let (verdict, matched) = match *end {
            End::Done(verdict, matched) => (verdict, matched),
            End::Wait { target, matched, .. } => (target.verdict(), matched),
            End::Tell { reason, matched, .. } => (Verdict::Drop(reason), matched),
        };
        let target = match verdict {
            Verdict::Drop(reason) => return Piece::Dropped(reason),
            verdict => Target::of(verdict),
        };
        let (rewrite, ttl) = match matched {
            Some(matched) => {
                let flow = self.table.flow(matched.id);
                let way = flow.rewrite(matched.dir);
                let rewrite = match parsed.kind {
                    // An error's own source is its router's, and is hidden where the flow's is.
                    Kind::IcmpError => {
                        let hidden = way.src() != flow.key(matched.dir).src();
                        let src = if hidden { way.src() } else { parsed.key.src() };
                        let outer = FlowKey::new(src, way.dst(), 0, 0, parsed.key.proto());
                        Rewrite::new(&parsed.key, &outer)
                    }
                    _ => way,
                };
                (rewrite, ttl_of(flow))
            }
            None => {
                let kernels = matches!(ingress, Ingress::Host(_) | Ingress::ToPod(_) | Ingress::FromNode(_));
                let ttl = if kernels || target.is_kernel() { Ttl::Keep } else { Ttl::Decrement };
                (Rewrite::identity(&parsed.key), ttl)
            }
        };
        let id = (rewrite.src() != parsed.key.src()).then(|| self.fragment_ids.allocate());
        Piece::Sent { target, rewrite, ttl, id, flow: matched.map(|m| self.flow_note(m)) }
    }

    /// Sends a later fragment after its first one. `slot` is absent for one that waited.
    fn follow<T: Trace>(
        &mut self,
        moment: Moment<'_>,
        sinks: &mut Sinks<'_, F, T>,
        fragment: Fragment<F>,
        piece: Piece,
        slot: Option<usize>,
    ) {
        let Fragment { mut packet, parsed } = fragment;
        let mut told = None;
        let end = match piece {
            Piece::Dropped(reason) => End::drop(reason),
            Piece::Sent { target, rewrite, ttl, id, flow } => {
                told = flow;
                let exit =
                    target.exit(moment.snapshot).filter(|exit| exit.suits(rewrite.src(), rewrite.dst()));
                match exit {
                    None => End::drop(Drop::PodUnreachable),
                    Some(_) if ttl == Ttl::Decrement && parsed.ttl <= 1 => End::drop(Drop::TtlExceeded),
                    Some(exit) => {
                        let partial = packet.offload.partial;
                        wire::apply(packet.frame.bytes_mut(), &parsed, &rewrite, ttl, partial);
                        if let Some(id) = id {
                            wire::set_ip_id(packet.frame.bytes_mut(), id);
                        }
                        send(moment, &mut packet, exit, rewrite.dst(), None)
                    }
                }
            }
        };
        match end {
            End::Done(verdict, _) => self.end_noted(moment.now, sinks, packet, slot, told, verdict),
            End::Wait { target, destination, next, .. } => {
                self.wait_for(moment.now, sinks, packet, target, destination, next, told);
            }
            // A later fragment is nobody's to be told about.
            End::Tell { reason, .. } => {
                self.end_noted(moment.now, sinks, packet, slot, told, Verdict::Drop(reason));
            }
        }
    }
}
