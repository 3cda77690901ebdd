//! Where a direction of a flow goes, as one word that fits into the flow, and what that word stands for at the moment.

use crate::frame::Ingress;
use crate::snapshot::{EniEntry, Link, PodEntry, Snapshot, Unresolved};
use crate::verdict::Verdict;
use crate::wire::Ttl;

const KIND_SHIFT: u32 = 28;
const INDEX: u32 = (1 << KIND_SHIFT) - 1;

/// A way out, or the way that a packet must have come in by: kind and interface index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target(u32);

/// The kinds of [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetKind {
    /// A pod behind its host-side veth.
    Pod,
    /// The wire behind an ENI.
    Eni,
    /// The kernel, as if from a pod's veth.
    KernelPod,
    /// The kernel, as if from an ENI.
    KernelEni,
}

/// A target whose interface is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exit<'s> {
    Pod(&'s PodEntry),
    Eni(&'s EniEntry),
    KernelPod(&'s PodEntry),
    KernelEni(&'s EniEntry),
}

impl Target {
    #[inline]
    pub(super) const fn from_word(word: u32) -> Self {
        Self(word)
    }

    #[inline]
    pub(super) const fn word(self) -> u32 {
        self.0
    }

    #[inline]
    pub(super) const fn kind(self) -> TargetKind {
        match self.0 >> KIND_SHIFT & 3 {
            0 => TargetKind::Pod,
            1 => TargetKind::Eni,
            2 => TargetKind::KernelPod,
            _ => TargetKind::KernelEni,
        }
    }

    #[inline]
    pub(super) const fn ifindex(self) -> u32 {
        self.0 & INDEX
    }

    /// The target that a verdict names; for a drop and a handoff, which name none, one that leads nowhere.
    pub(super) const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pod { ifindex } => Self::new(TargetKind::Pod, ifindex),
            Verdict::Eni { ifindex } => Self::new(TargetKind::Eni, ifindex),
            Verdict::KernelPod { ifindex } => Self::new(TargetKind::KernelPod, ifindex),
            Verdict::KernelEni { ifindex } => Self::new(TargetKind::KernelEni, ifindex),
            Verdict::Drop(_) | Verdict::Handoff { .. } => Self::new(TargetKind::Pod, 0),
        }
    }

    pub(super) const fn verdict(self) -> Verdict {
        let ifindex = self.ifindex();
        match self.kind() {
            TargetKind::Pod => Verdict::Pod { ifindex },
            TargetKind::Eni => Verdict::Eni { ifindex },
            TargetKind::KernelPod => Verdict::KernelPod { ifindex },
            TargetKind::KernelEni => Verdict::KernelEni { ifindex },
        }
    }

    pub(super) const fn is_kernel(self) -> bool {
        matches!(self.kind(), TargetKind::KernelPod | TargetKind::KernelEni)
    }

    /// What the target is now; none when its interface is gone.
    #[inline]
    pub(super) fn exit(self, snapshot: &Snapshot) -> Option<Exit<'_>> {
        match (self.kind(), snapshot.link(self.ifindex())?) {
            (TargetKind::Pod, Link::Pod(pod)) => Some(Exit::Pod(pod)),
            (TargetKind::Eni, Link::Eni(eni)) => Some(Exit::Eni(eni)),
            (TargetKind::KernelPod, Link::Pod(pod)) => Some(Exit::KernelPod(pod)),
            (TargetKind::KernelEni, Link::Eni(eni)) => Some(Exit::KernelEni(eni)),
            _ => None,
        }
    }

    /// Whether a packet came in by the way that its flow's other direction goes out by: a wire packet cannot join a flow
    /// between two pods, nor one pod another's.
    #[inline]
    pub(super) fn admits(self, ingress: Ingress) -> bool {
        match ingress {
            Ingress::Pod(ifindex) => self.0 == Self::new(TargetKind::Pod, ifindex).0,
            Ingress::Eni(_) => matches!(self.kind(), TargetKind::Eni),
            Ingress::ToPod(ifindex) | Ingress::FromNode(ifindex) => {
                self.0 == Self::new(TargetKind::KernelPod, ifindex).0
            }
            Ingress::Host(_) => matches!(self.kind(), TargetKind::KernelEni),
        }
    }

    /// [`Target::admits`] for the fast tier, which carries what stays on pods' veths and on ENIs.
    #[inline]
    pub(super) fn admits_directly(self, ingress: Ingress) -> bool {
        match ingress {
            Ingress::Pod(ifindex) => self.0 == Self::new(TargetKind::Pod, ifindex).0,
            Ingress::Eni(_) => matches!(self.kind(), TargetKind::Eni),
            Ingress::ToPod(_) | Ingress::Host(_) | Ingress::FromNode(_) => false,
        }
    }

    /// Whether a flow that came by this way gives way to a packet that came by another one: the port of a client that was
    /// used directly is used again through a NodePort, or the other way round. The new opener wins.
    pub(super) fn yields_to(self, ingress: Ingress, opens: bool) -> bool {
        match ingress {
            Ingress::ToPod(_) | Ingress::Host(_) => opens && self.kind() == TargetKind::Eni,
            Ingress::Eni(_) => opens && self.is_kernel(),
            Ingress::Pod(_) | Ingress::FromNode(_) => false,
        }
    }

    /// Interface indexes are below 2^28 on any real machine; the kernel counts them up from 1.
    const fn new(kind: TargetKind, ifindex: u32) -> Self {
        Self((kind as u32) << KIND_SHIFT | ifindex & INDEX)
    }
}

/// What the engine forwards loses a hop; what the kernel has forwarded or will forward, sends itself or takes itself, does not.
#[inline]
pub(super) fn ttl_between(one: Target, other: Target) -> Ttl {
    if one.is_kernel() || other.is_kernel() { Ttl::Keep } else { Ttl::Decrement }
}

impl Exit<'_> {
    pub(super) const fn target(self) -> Target {
        match self {
            Self::Pod(pod) => Target::new(TargetKind::Pod, pod.ifindex),
            Self::Eni(eni) => Target::new(TargetKind::Eni, eni.ifindex),
            Self::KernelPod(pod) => Target::new(TargetKind::KernelPod, pod.ifindex),
            Self::KernelEni(eni) => Target::new(TargetKind::KernelEni, eni.ifindex),
        }
    }

    #[inline]
    pub(super) const fn verdict(self) -> Verdict {
        match self {
            Self::Pod(pod) => Verdict::Pod { ifindex: pod.ifindex },
            Self::Eni(eni) => Verdict::Eni { ifindex: eni.ifindex },
            Self::KernelPod(pod) => Verdict::KernelPod { ifindex: pod.ifindex },
            Self::KernelEni(eni) => Verdict::KernelEni { ifindex: eni.ifindex },
        }
    }

    /// Whether a packet from `src` to `dst` may go this way: the pod behind the interface is still the one with the
    /// flow's address. A pod that is gone must not leave its flows to the next one on its interface or its address.
    #[inline]
    pub(super) const fn suits(self, src: u32, dst: u32) -> bool {
        match self {
            Self::Pod(pod) => pod.ip == dst,
            Self::KernelPod(pod) => pod.ip == src,
            Self::Eni(_) | Self::KernelEni(_) => true,
        }
    }

    /// Largest IP packet in bytes; none where the kernel decides.
    #[inline]
    pub(super) const fn mtu(self) -> Option<u32> {
        match self {
            Self::Pod(pod) => Some(pod.mtu),
            Self::Eni(eni) => Some(eni.mtu),
            Self::KernelPod(_) | Self::KernelEni(_) => None,
        }
    }

    /// Destination and source Ethernet address for a packet to `destination`.
    #[inline]
    pub(super) fn addresses(
        self,
        snapshot: &Snapshot,
        destination: u32,
    ) -> Result<([u8; 6], [u8; 6]), Unresolved> {
        match self {
            Self::Pod(pod) => Ok((pod.mac, pod.host_mac)),
            Self::Eni(eni) => Ok((eni.next_hop(snapshot, destination)?, eni.mac)),
            Self::KernelPod(pod) => Ok((pod.host_mac, pod.mac)),
            Self::KernelEni(eni) => Ok((eni.mac, eni.next_hop(snapshot, 0).unwrap_or(eni.mac))),
        }
    }
}
