//! ICMP errors: they belong to the flow of the packet that they quote, travel against it, and change nothing about it
//! (RFC 5508 §4, RFC 5382 REQ-10).

use super::forward::send;
use super::target::Target;
use super::{End, Matched, Moment, Worker, open, ttl_of};
use crate::flow::Phase;
use crate::frame::{Frame, Ingress, Packet};
use crate::snapshot::Snapshot;
use crate::verdict::{Drop, Verdict};
use crate::wire::{self, Parsed, Report, Ttl, proto};

/// ICMP type (RFC 792).
const REDIRECT: u8 = 5;

impl<F: Frame> Worker<F> {
    #[cold]
    pub(super) fn icmp_error(&mut self, moment: Moment<'_>, packet: &mut Packet<F>, parsed: &Parsed) -> End {
        let snapshot = moment.snapshot;
        let for_node = matches!(packet.ingress, Ingress::Eni(_)) && snapshot.is_local(parsed.key.dst());
        let from_node = matches!(packet.ingress, Ingress::FromNode(_));
        let quoted = match wire::icmp::quoted(packet.frame.bytes(), parsed) {
            Ok(quoted) => quoted,
            // What it quotes cannot be ours: the node's kernel judges what is sent to the node.
            Err(_) if for_node => return self.hand_back(moment, packet, parsed),
            Err(_) if from_node => return self.open(moment, packet, parsed),
            Err(reason) => return End::drop(reason),
        };
        let key = quoted.key.reversed();
        let Some((id, dir)) = self.table.lookup(&key, self.table.hash(&key), moment.now) else {
            if for_node && !is_ours(snapshot, quoted.key.proto(), quoted.key.sport()) {
                return self.hand_back(moment, packet, parsed);
            }
            if from_node {
                return self.open(moment, packet, parsed);
            }
            return End::drop(Drop::IcmpUnknownFlow);
        };
        let matched = Some(Matched { id, dir, opened: false });
        let flow = self.table.flow(id);
        // An error is judged as its flow's next packet would be, but never changes the flow.
        let judged = || snapshot.judge(&open::judged(&flow.original(), &flow.translated()), flow.origin());
        let stale = flow.policy_generation() != snapshot.policy.generation() && snapshot.policy.rechecks();
        if flow.phase() == Phase::Revoked || stale && judged().is_err() {
            return End::Done(Verdict::Drop(Drop::Revoked), matched);
        }
        let rewrite = flow.rewrite(dir);
        // A redirect is about routes of one side of the translation (nf_nat drops it, too).
        let translated = flow.original() != flow.translated();
        if translated && parsed.icmp_type(packet.frame.bytes()).is_some_and(|(kind, _)| kind == REDIRECT) {
            return End::Done(Verdict::Drop(Drop::IcmpType), matched);
        }
        // Any router may be its sender, but one on the side that the flow's packets come from.
        if !Target::from_word(flow.egress(dir.opposite())).admits(packet.ingress) {
            if from_node {
                return self.open(moment, packet, parsed);
            }
            return End::Done(Verdict::Drop(Drop::IcmpUnknownFlow), matched);
        }
        let exit = Target::from_word(flow.egress(dir)).exit(snapshot);
        let Some(exit) = exit.filter(|exit| exit.suits(rewrite.src(), rewrite.dst())) else {
            return End::Done(Verdict::Drop(Drop::PodUnreachable), matched);
        };
        let ttl = ttl_of(flow);
        if ttl == Ttl::Decrement && parsed.ttl <= 1 {
            return End::Tell { reason: Drop::TtlExceeded, report: Report::TimeExceeded, matched };
        }
        wire::icmp::translate(packet.frame.bytes_mut(), parsed, &quoted, &rewrite, ttl);
        send(moment, packet, exit, rewrite.dst(), matched)
    }
}

/// Whether a source port on the node's address is of our set.
fn is_ours(snapshot: &Snapshot, protocol: u8, port: u16) -> bool {
    let [tcp, udp, icmp] = &snapshot.ports;
    match protocol {
        proto::TCP => tcp.set.contains(port),
        proto::UDP => udp.set.contains(port),
        proto::ICMP => icmp.set.contains(port),
        _ => false,
    }
}
