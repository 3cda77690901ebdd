//! The last stretch: TTL, size, rewrite, next hop.

use super::target::Exit;
use super::{End, Matched, Moment, Worker};
use crate::counters::Event;
use crate::frame::{Frame, GsoKind, Ingress, Offload, Packet};
use crate::snapshot::{Link, Snapshot};
use crate::trace::Trace;
use crate::verdict::{Drop, Verdict};
use crate::wire::{self, Kind, Parsed, Report, Rewrite, TcpFlags, Ttl};

impl<F: Frame> Worker<F> {
    /// Rewrites a packet and sends it on.
    #[inline]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact about the packet's way and they meet only here"
    )]
    pub(super) fn forward(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        parsed: &Parsed,
        rewrite: &Rewrite,
        exit: Exit<'_>,
        ttl: Ttl,
        matched: Option<Matched>,
    ) -> End {
        // The checksum of SCTP covers the whole datagram, of which this is a piece.
        let ports = (rewrite.sport(), rewrite.dport()) != (parsed.key.sport(), parsed.key.dport());
        if parsed.is_fragment() && ports && matches!(parsed.kind, Kind::Sctp { .. }) {
            return End::Done(Verdict::Drop(Drop::UnsupportedProtocol), matched);
        }
        if ttl == Ttl::Decrement && parsed.ttl <= 1 {
            return End::Tell { reason: Drop::TtlExceeded, report: Report::TimeExceeded, matched };
        }
        if let Some(mtu) = exceeded(exit, parsed, &packet.offload) {
            return End::Tell { reason: Drop::FragNeeded, report: Report::FragNeeded { mtu }, matched };
        }
        if parsed.tcp_flags().is_some_and(TcpFlags::syn) {
            self.clamp_mss(moment.snapshot, exit, packet, parsed);
        }
        wire::apply(packet.frame.bytes_mut(), parsed, rewrite, ttl, packet.offload.partial);
        send(moment, packet, exit, rewrite.dst(), matched)
    }

    /// Hands a packet to the kernel, untouched, where it came from; what came from there for a pod, to the pod.
    pub(super) fn hand_back(&mut self, moment: Moment<'_>, packet: &mut Packet<F>, parsed: &Parsed) -> End {
        let exit = match moment.snapshot.link(packet.ingress.ifindex()) {
            Some(Link::Pod(pod)) if matches!(packet.ingress, Ingress::FromNode(_)) => Exit::Pod(pod),
            Some(Link::Pod(pod)) => Exit::KernelPod(pod),
            Some(Link::Eni(eni)) => Exit::KernelEni(eni),
            None => return End::drop(Drop::UnknownInterface),
        };
        send(moment, packet, exit, parsed.key.dst(), None)
    }

    /// Lowers the MSS that a peer is told where an ENI carries less than the pod's veth: a peer with a larger MTU would
    /// send what the ENI drops, and the VPC sends no ICMP about it.
    #[cold]
    fn clamp_mss(&self, snapshot: &Snapshot, exit: Exit<'_>, packet: &mut Packet<F>, parsed: &Parsed) {
        let (eni, pod) = match (snapshot.link(packet.ingress.ifindex()), exit) {
            (Some(Link::Pod(pod)), Exit::Eni(eni)) | (Some(Link::Eni(eni)), Exit::Pod(pod)) => {
                (eni.mtu, pod.mtu)
            }
            _ => return,
        };
        let limit = wire::mss_for(u16::try_from(eni).unwrap_or(u16::MAX));
        let partial = packet.offload.partial;
        if eni < pod && wire::clamp_mss(packet.frame.bytes_mut(), parsed, limit, partial) {
            self.counters.add(Event::MssClamped, 1);
        }
    }

    /// Tries again what waits for a next hop, and drops what waited long enough.
    pub(super) fn retry_waiting<T: Trace>(&mut self, moment: Moment<'_>, sinks: &mut super::Sinks<'_, F, T>) {
        if !self.waiting.is_due(moment.now, moment.snapshot.generation) {
            return;
        }
        for _ in 0..self.waiting.len() {
            let Some(mut waiting) = self.waiting.pop() else { break };
            let verdict = match waiting.target.exit(moment.snapshot) {
                None => Verdict::Drop(Drop::PodUnreachable),
                Some(exit) => match exit.addresses(moment.snapshot, waiting.destination) {
                    Ok((dst, src)) => {
                        wire::set_ethernet(waiting.packet.frame.bytes_mut(), dst, src);
                        exit.verdict()
                    }
                    Err(_) if waiting.until <= moment.now => Verdict::Drop(Drop::NeighbourUnresolved),
                    Err(_) => {
                        // There is room: it has just left.
                        let Err(back) = self.waiting.enter(waiting) else { continue };
                        waiting = back;
                        Verdict::Drop(Drop::NeighbourQueueFull)
                    }
                },
            };
            self.end_held(moment.now, sinks, waiting.packet, waiting.flow, verdict);
        }
    }
}

/// Sends a packet that is finished but for its Ethernet header.
#[inline]
pub(super) fn send<F: Frame>(
    moment: Moment<'_>,
    packet: &mut Packet<F>,
    exit: Exit<'_>,
    destination: u32,
    matched: Option<Matched>,
) -> End {
    match exit.addresses(moment.snapshot, destination) {
        Ok((dst, src)) => {
            wire::set_ethernet(packet.frame.bytes_mut(), dst, src);
            End::Done(exit.verdict(), matched)
        }
        Err(unresolved) => {
            End::Wait { target: exit.target(), destination, next: unresolved.address, matched }
        }
    }
}

/// The way out's limit when the packet exceeds it and must not be cut. Super-packets are judged by what they are cut
/// into. What may be fragmented is left to the port.
#[inline]
fn exceeded(exit: Exit<'_>, parsed: &Parsed, offload: &Offload) -> Option<u16> {
    let gso = offload.gso != GsoKind::None;
    let headers = u32::from(parsed.header_len) + u32::from(parsed.l4_header_len);
    let size = if gso { headers + u32::from(offload.gso_size) } else { u32::from(parsed.total_len) };
    // Nothing carries less than 576 bytes (RFC 791 §3.1), so that most small packets need no look at the link.
    if size <= 576 {
        return None;
    }
    let mtu = exit.mtu()?;
    (size > mtu && (gso || parsed.dont_fragment())).then(|| u16::try_from(mtu).unwrap_or(u16::MAX))
}
