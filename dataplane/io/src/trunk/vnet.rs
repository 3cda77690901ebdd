//! The virtio-net header in front of every frame on the trunk (virtio 1.2 §5.1.6), in the machine's byte order.

use sluice_engine::{GsoKind, Offload};

/// Bytes of the header.
pub(super) const HEADER: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const GSO_TCP4: u8 = 1;
const GSO_UDP4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What the header says; `None` for a kind of super-packet that was not asked for.
pub(super) fn parse(header: [u8; HEADER]) -> Option<Offload> {
    let [flags, gso, _, _, size @ .., s0, s1, o0, o1] = header;
    let gso_kind = match gso & !GSO_ECN {
        0 => GsoKind::None,
        GSO_TCP4 => GsoKind::Tcp4,
        GSO_UDP4 => GsoKind::Udp4,
        _ => return None,
    };
    Some(Offload {
        partial: flags & NEEDS_CHECKSUM != 0,
        csum_start: u16::from_ne_bytes([s0, s1]),
        csum_offset: u16::from_ne_bytes([o0, o1]),
        gso: gso_kind,
        gso_size: u16::from_ne_bytes(size),
        ecn: gso & GSO_ECN != 0,
    })
}

/// The header that says `offload`; `headers` is the bytes of all protocol headers of a super-packet, `verified` promises
/// that the checksum was found right.
pub(super) fn build(offload: Offload, headers: u16, verified: bool) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if offload.partial {
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&offload.csum_start.to_ne_bytes());
        header[8..10].copy_from_slice(&offload.csum_offset.to_ne_bytes());
    } else if verified {
        header[0] = CHECKSUM_VALID;
    }
    let gso = match offload.gso {
        GsoKind::None => return header,
        GsoKind::Tcp4 => GSO_TCP4,
        GsoKind::Udp4 => GSO_UDP4,
    };
    header[1] = gso | if offload.ecn { GSO_ECN } else { 0 };
    header[2..4].copy_from_slice(&headers.to_ne_bytes());
    header[4..6].copy_from_slice(&offload.gso_size.to_ne_bytes());
    header
}
