//! ICMP errors of our own, made in place of the packet that they are about.
//!
//! The frame that cannot go on becomes the message to its sender: no memory is asked for, and the number of frames is the
//! same before and after. How often that may happen is the worker's business.

use super::checksum;
use super::parse::{ETHERNET_LEN, Kind, Parsed, proto};
use super::tcp::TcpFlags;
use crate::frame::{Frame, GsoKind, Offload};

/// Bytes of the IP and ICMP headers that we put before the quotation.
const HEADERS: usize = 28;
/// A report is at most this long (RFC 1812 §4.3.2.3).
const MAX_REPORT: usize = 576;

/// What is said to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// The TTL was used up in transit (type 11, code 0).
    TimeExceeded,
    /// Larger than the next hop carries and not to be fragmented (type 3, code 4; RFC 1191).
    FragNeeded {
        /// What the next hop carries: bytes of IP.
        mtu: u16,
    },
    /// Unreachable for another reason (type 3).
    Unreachable {
        /// Its code; 3 is "port", 13 "administratively prohibited".
        code: u8,
    },
}

/// May an ICMP error be sent about this packet? Never about an ICMP error, an ICMP type that is not known, a later
/// fragment, a packet to many, or one whose source is no single host (RFC 1122 §3.2.2).
#[must_use]
pub fn may_report(bytes: &[u8], parsed: &Parsed) -> bool {
    let (src, dst) = (parsed.key.src(), parsed.key.dst());
    let to_many = bytes.first().is_none_or(|b| b & 1 != 0) || dst >> 28 == 0xE || dst == u32::MAX;
    let about = match parsed.kind {
        Kind::IcmpError | Kind::LaterFragment => false,
        Kind::IcmpOther => parsed.icmp_type(bytes).is_some_and(|(kind, _)| kind <= LAST_KNOWN_ICMP_TYPE),
        Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } | Kind::IcmpQuery { .. } | Kind::Other(_) => true,
    };
    about && !to_many && super::usable_source(src)
}

/// Address mask reply, where Linux' list of types ends.
const LAST_KNOWN_ICMP_TYPE: u8 = 18;

/// Turns `frame` into the ICMP error about itself, from `source` to the packet's sender. True when that was done; the frame
/// is as it was when the rules forbid it or it cannot hold the report.
///
/// The packet is quoted as it is in the frame, so this belongs before any rewrite. A super-packet is quoted as its first
/// segment, and a checksum that hardware would complete is completed, so that the quotation is a packet that could
/// have been on a wire. The Ethernet addresses are exchanged; the result has full checksums and an empty [`Offload`].
pub fn report<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    offload: &Offload,
    what: Report,
    source: u32,
) -> bool {
    let headers = usize::from(parsed.l4_offset()) + usize::from(parsed.l4_header_len);
    if frame.bytes().len() < headers || frame.capacity() < ETHERNET_LEN + MAX_REPORT {
        return false;
    }
    if !may_report(frame.bytes(), parsed) {
        return false;
    }
    complete(frame.bytes_mut(), parsed, offload);
    let quote = (MAX_REPORT - HEADERS).min(quotable(parsed, offload)).min(frame.bytes().len() - ETHERNET_LEN);
    frame.resize(ETHERNET_LEN + HEADERS + quote);
    let bytes = frame.bytes_mut();
    bytes.copy_within(ETHERNET_LEN..ETHERNET_LEN + quote, ETHERNET_LEN + HEADERS);
    write_headers(bytes, parsed, what, source, HEADERS + quote);
    true
}

/// Bytes of the IP packet that is quoted: the first segment's where it is a super-packet.
fn quotable(parsed: &Parsed, offload: &Offload) -> usize {
    let headers = usize::from(parsed.header_len) + usize::from(parsed.l4_header_len);
    match offload.gso {
        GsoKind::None => usize::from(parsed.total_len),
        GsoKind::Tcp4 | GsoKind::Udp4 => {
            usize::from(parsed.total_len).min(headers + usize::from(offload.gso_size))
        }
    }
}

/// Makes of a packet from the trunk what hardware would have made of it: the first segment, with its checksum.
fn complete(bytes: &mut [u8], parsed: &Parsed, offload: &Offload) {
    if !offload.partial && offload.gso == GsoKind::None {
        return;
    }
    let total_len = quotable(parsed, offload);
    let l4 = usize::from(parsed.l4_offset());
    let l4_len = (total_len - usize::from(parsed.header_len)) as u16;
    if total_len < usize::from(parsed.total_len) {
        bytes[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&(total_len as u16).to_be_bytes());
        let field = u16::from_be_bytes([bytes[ETHERNET_LEN + 10], bytes[ETHERNET_LEN + 11]]);
        let updated = checksum::update(field, checksum::delta16(parsed.total_len, total_len as u16));
        bytes[ETHERNET_LEN + 10..ETHERNET_LEN + 12].copy_from_slice(&updated.to_be_bytes());
        match parsed.kind {
            // They belong to the last segment.
            Kind::Tcp { .. } => bytes[l4 + 13] &= !(TcpFlags::FIN | TcpFlags::PSH),
            Kind::Udp => bytes[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes()),
            _ => {}
        }
    }
    let (field, protocol) = match parsed.kind {
        Kind::Tcp { .. } => (l4 + 16, proto::TCP),
        Kind::Udp => (l4 + 6, proto::UDP),
        _ => return,
    };
    bytes[field..field + 2].fill(0);
    // Where the payload lies in further buffers there is nothing to sum: no checksum, rather than a wrong one.
    let Some(segment) = bytes.get(l4..l4 + usize::from(l4_len)) else { return };
    let pseudo = checksum::pseudo(parsed.key.src(), parsed.key.dst(), protocol, l4_len);
    let sum = match !checksum::add(pseudo, checksum::sum(segment)) {
        0 if protocol == proto::UDP => 0xFFFF,
        sum => sum,
    };
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Writes everything before the quotation.
fn write_headers(bytes: &mut [u8], parsed: &Parsed, what: Report, source: u32, total_len: usize) {
    let Some((head, quotation)) = bytes.split_first_chunk_mut::<{ ETHERNET_LEN + HEADERS }>() else { return };
    let (dst, src) = head[..12].split_at_mut(6);
    dst.swap_with_slice(src);

    let (ip, icmp) = head[ETHERNET_LEN..].split_at_mut(20);
    // Internetwork control (RFC 1812 §4.3.2.5). The identification need not be unique, for nobody fragments so short a packet.
    ip[0..2].copy_from_slice(&[0x45, 0xC0]);
    ip[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
    ip[4..6].copy_from_slice(&parsed.id.to_be_bytes());
    ip[6..12].copy_from_slice(&[0, 0, 64, proto::ICMP, 0, 0]);
    ip[12..16].copy_from_slice(&source.to_be_bytes());
    ip[16..20].copy_from_slice(&parsed.key.src().to_be_bytes());
    let sum = !checksum::sum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let (kind, code, mtu) = match what {
        Report::TimeExceeded => (11, 0, 0),
        Report::FragNeeded { mtu } => (3, 4, mtu),
        Report::Unreachable { code } => (3, code, 0),
    };
    icmp.copy_from_slice(&[kind, code, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8]);
    let sum = !checksum::add(checksum::sum(icmp), checksum::sum(quotation));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
}
