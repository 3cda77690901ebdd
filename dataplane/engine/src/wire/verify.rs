//! Is a packet's L4 checksum right? Asked only where a wrong answer costs something: of packets that would open a flow, and
//! before segments are coalesced. All other packets carry their checksum through, right or wrong, by its delta.

use super::parse::{Kind, Parsed, proto};
use super::{checksum, sctp};

/// What can be said about a packet's L4 checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4Checksum {
    /// Right, or none was sent (UDP), or it is the hardware's to complete.
    Good,
    /// Wrong.
    Bad,
    /// Not to be told here: a fragment, a protocol that is not known, SCTP that carries none (RFC 9653), or bytes that are in
    /// further buffers.
    Unknown,
}

/// Checks the L4 checksum of a packet whose bytes are all in its first buffer.
///
/// `partial` is the frame's [`Offload::partial`](crate::Offload::partial): such a checksum was not made yet and cannot be wrong.
#[must_use]
pub fn l4_checksum(bytes: &[u8], parsed: &Parsed, partial: bool) -> L4Checksum {
    if partial {
        return L4Checksum::Good;
    }
    let Some(l4) = bytes.get(usize::from(parsed.l4_offset())..parsed.end()) else {
        return L4Checksum::Unknown;
    };
    if matches!(parsed.kind, Kind::Sctp { .. }) {
        return sctp_checksum(l4, parsed);
    }
    match l4_sum(parsed, [l4]) {
        None => L4Checksum::Unknown,
        Some(0xFFFF) => L4Checksum::Good,
        Some(_) => L4Checksum::Bad,
    }
}

fn sctp_checksum(packet: &[u8], parsed: &Parsed) -> L4Checksum {
    let field = packet.get(sctp::CHECKSUM..sctp::HEADER_LEN);
    match (field, sctp::checksum(packet)) {
        _ if parsed.is_fragment() => L4Checksum::Unknown,
        (Some([0, 0, 0, 0]), _) => L4Checksum::Unknown,
        (Some(field), Some(right)) if field == right => L4Checksum::Good,
        (Some(_), Some(_)) => L4Checksum::Bad,
        _ => L4Checksum::Unknown,
    }
}

/// Sum over the L4 header, the payload and, where the protocol has one, the pseudo header: 0xFFFF when the checksum in it
/// is right or absent. None for a fragment and for a protocol whose checksum is no such sum or not known.
///
/// `l4` are the bytes from the L4 header to the packet's end, in as many pieces as there are buffers.
#[must_use]
pub fn l4_sum<'a>(parsed: &Parsed, l4: impl IntoIterator<Item = &'a [u8]>) -> Option<u16> {
    if parsed.is_fragment() {
        return None;
    }
    let key = &parsed.key;
    let start = match parsed.kind {
        Kind::Tcp { .. } => checksum::pseudo(key.src(), key.dst(), proto::TCP, parsed.l4_len()),
        // UDP has a length of its own, which may be less than the IP packet holds, and is read below; ICMP has no pseudo header.
        Kind::Udp | Kind::IcmpQuery { .. } | Kind::IcmpError | Kind::IcmpOther => 0,
        Kind::Sctp { .. } | Kind::Other(_) | Kind::LaterFragment => return None,
    };
    let mut pieces = l4.into_iter();
    let Some(head) = pieces.next() else { return Some(start) };
    let mut left = usize::from(parsed.l4_len());
    let mut acc = start;
    if parsed.kind == Kind::Udp {
        let udp = head.first_chunk::<8>()?;
        if udp[6..8] == [0, 0] {
            return Some(0xFFFF);
        }
        let len = u16::from_be_bytes([udp[4], udp[5]]);
        left = usize::from(len);
        acc = checksum::pseudo(key.src(), key.dst(), proto::UDP, len);
    }
    let mut odd = false;
    for piece in std::iter::once(head).chain(pieces) {
        let piece = &piece[..piece.len().min(left)];
        let sum = checksum::sum(piece);
        // A piece that begins at an odd offset has its halves the other way round (RFC 1071 §2B).
        acc = checksum::add(acc, if odd { sum.swap_bytes() } else { sum });
        odd ^= piece.len() % 2 == 1;
        left -= piece.len();
    }
    Some(acc)
}
