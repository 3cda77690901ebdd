//! Which interface a frame on the trunk belongs to, and in which direction: `[0x02, kind, index...]` in the Ethernet
//! source address, the interface index in big endian. The tc programs speak the same.

use sluice_engine::{Ingress, Verdict};

const LOCAL: u8 = 0x02;

/// Kernel to engine: a pod sent it; the index is that of the host's end of the veth.
pub const POD: u8 = 0x11;
/// Kernel to engine: the kernel forwards it into a pod; index as for [`POD`].
pub const TO_POD: u8 = 0x12;
/// Kernel to engine: the kernel sends it by an ENI from a port of our set; the index is the ENI's.
pub const HOST: u8 = 0x13;
/// Kernel to engine: it came from the wire, with `--eni-port=tap`; the index is the ENI's.
pub const ENI: u8 = 0x14;
/// Kernel to engine: the node itself answers a pod from a service's endpoint; index as for [`POD`].
pub const FROM_NODE: u8 = 0x15;
/// Engine to kernel: deliver to the pod behind this host end.
pub const DELIVER_POD: u8 = 0x21;
/// Engine to kernel: send by this ENI, with `--eni-port=tap`.
pub const SEND_ENI: u8 = 0x22;
/// Engine to kernel: as if it had just arrived on this pod's host end.
pub const KERNEL_POD: u8 = 0x23;
/// Engine to kernel: as if it had just arrived on this ENI.
pub const KERNEL_ENI: u8 = 0x24;

/// Where a frame read from the trunk entered, by its source address; `None` for an untagged one.
#[inline]
#[must_use]
pub fn ingress(source: [u8; 6]) -> Option<Ingress> {
    let [LOCAL, kind, index @ ..] = source else { return None };
    let ifindex = u32::from_be_bytes(index);
    match kind {
        POD => Some(Ingress::Pod(ifindex)),
        TO_POD => Some(Ingress::ToPod(ifindex)),
        HOST => Some(Ingress::Host(ifindex)),
        ENI => Some(Ingress::Eni(ifindex)),
        FROM_NODE => Some(Ingress::FromNode(ifindex)),
        _ => None,
    }
}

/// The source address that has the trunk's tc program carry out `verdict`; `None` for one that it cannot.
#[inline]
#[must_use]
pub fn egress(verdict: Verdict) -> Option<[u8; 6]> {
    let (kind, ifindex) = match verdict {
        Verdict::Pod { ifindex } => (DELIVER_POD, ifindex),
        Verdict::Eni { ifindex } => (SEND_ENI, ifindex),
        Verdict::KernelPod { ifindex } => (KERNEL_POD, ifindex),
        Verdict::KernelEni { ifindex } => (KERNEL_ENI, ifindex),
        Verdict::Handoff { .. } | Verdict::Drop(_) => return None,
    };
    let [a, b, c, d] = ifindex.to_be_bytes();
    Some([LOCAL, kind, a, b, c, d])
}
