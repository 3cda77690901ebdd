//! The tier that nearly every packet is served by: a whole TCP or UDP packet in the middle of a known flow, with nothing
//! unusual about it.
//!
//! Whatever is unusual is seen before anything is changed, and is then the business of the general path, which does the
//! same to every packet that this tier takes (a test holds them together). What the tier saves is asking each question
//! several times in several places: here every one is asked once, on whole words.

use super::target::{Target, TargetKind};
use super::{Matched, Moment, Staged, Worker, segment};
use crate::frame::{Frame, GsoKind, Packet};
use crate::snapshot::HopKind;
use crate::verdict::Verdict;
use crate::wire::{self, Kind, TcpFlags, Ttl};

impl<F: Frame> Worker<F> {
    #[inline]
    pub(super) fn fast(
        &mut self,
        moment: Moment<'_>,
        packet: &mut Packet<F>,
        stage: &Staged,
    ) -> Option<(Verdict, Matched)> {
        let parsed = &stage.parsed;
        #[cfg(test)]
        if self.general_only {
            return None;
        }
        let tcp = match parsed.kind {
            Kind::Udp => false,
            Kind::Tcp { flags } if flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) == 0 => true,
            _ => return None,
        };
        let (id, dir) = stage.candidate?;
        if parsed.ttl <= 1 || parsed.is_fragment() || packet.offload.gso != GsoKind::None {
            return None;
        }
        let flow = self.table.confirm((id, dir), &parsed.key, moment.now)?;
        let rewrite = flow.rewrite(dir);
        let target = Target::from_word(flow.egress(dir));
        let hop = moment.snapshot.hop(target.ifindex());
        let leads = match target.kind() {
            TargetKind::Eni => hop.kind == HopKind::Eni && hop.is_plain(rewrite.dst()),
            TargetKind::Pod => hop.kind == HopKind::Pod && hop.ip == rewrite.dst(),
            TargetKind::KernelPod | TargetKind::KernelEni => false,
        };
        let usual = leads
            && Target::from_word(flow.egress(dir.opposite())).admits_directly(packet.ingress)
            && flow.policy_generation() == moment.snapshot.policy.generation()
            && u32::from(parsed.total_len) <= hop.mtu;
        if !usual {
            return None;
        }
        let matched = Matched { id, dir, opened: false };
        if tcp {
            // Without SYN, FIN and RST there is nothing in it to refuse.
            let segment = segment(packet.frame.bytes(), parsed)?;
            self.table.tcp_of(flow, dir, moment.now, &segment);
        } else {
            self.table.datagram_of(flow, dir);
        }
        self.table.touch_flow(flow, dir, moment.now, packet.frame.len() as u64);
        let bytes = packet.frame.bytes_mut();
        wire::apply(bytes, parsed, &rewrite, Ttl::Decrement, packet.offload.partial);
        if let Some(ethernet) = bytes.first_chunk_mut::<12>() {
            *ethernet = hop.ethernet;
        }
        let ifindex = target.ifindex();
        let verdict =
            if hop.kind == HopKind::Eni { Verdict::Eni { ifindex } } else { Verdict::Pod { ifindex } };
        Some((verdict, matched))
    }
}
