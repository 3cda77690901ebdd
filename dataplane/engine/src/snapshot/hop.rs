//! What the fast tier needs of a way out, laid out so that one cache line has it.

use super::{EniEntry, PodEntry};

/// What leaving by an interface takes, in one cache line: for packets of known flows.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Hop {
    /// Destination and source Ethernet address.
    pub(crate) ethernet: [u8; 12],
    pub(crate) kind: HopKind,
    /// Largest IP packet, in bytes.
    pub(crate) mtu: u32,
    /// The pod's address.
    pub(crate) ip: u32,
    /// Destinations whose next hop is another one than the gateway: the ENI's subnet; all, while the gateway is not known;
    /// none for a pod.
    net: u32,
    mask: u32,
}

/// What a [`Hop`] leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HopKind {
    None,
    Pod,
    Eni,
}

impl Hop {
    pub(super) const NONE: Self =
        Self { ethernet: [0; 12], kind: HopKind::None, mtu: 0, ip: 0, net: 0, mask: 0 };

    /// Whether a packet to `destination` leaves with [`Hop::ethernet`] as it stands.
    #[inline]
    pub(crate) const fn is_plain(&self, destination: u32) -> bool {
        destination & self.mask != self.net
    }

    pub(super) fn pod(pod: &PodEntry) -> Self {
        let ethernet = joined(pod.mac, pod.host_mac);
        // No address masked by zero is one.
        Self { ethernet, kind: HopKind::Pod, mtu: pod.mtu, ip: pod.ip, net: 1, mask: 0 }
    }

    pub(super) fn eni(eni: &EniEntry) -> Self {
        let ethernet = joined(eni.gateway_mac.unwrap_or_default(), eni.mac);
        let (net, mask) = if eni.gateway_mac.is_some() { eni.subnet } else { (0, 0) };
        Self { ethernet, kind: HopKind::Eni, mtu: eni.mtu, ip: eni.address, net, mask }
    }
}

fn joined(dst: [u8; 6], src: [u8; 6]) -> [u8; 12] {
    std::array::from_fn(|i| if i < 6 { dst[i] } else { src[i - 6] })
}
