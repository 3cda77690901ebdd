//! ICMP errors of others: whose packet they quote, and their translation (RFC 5508 §4).
//!
//! An error travels against the packet that it quotes. So the rewrite of the error's own direction, turned round, is what
//! the quotation needs: its source becomes what the error's destination becomes, its source port what the destination port
//! becomes. Its deltas are the same numbers, because a sum does not care for order.

use super::parse::{ETHERNET_LEN, Parsed, proto};
use super::rewrite::{Rewrite, Ttl};
use super::{checksum, sctp};
use crate::flow::FlowKey;
use crate::verdict::Drop;

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;
/// Bytes behind the quoted IP header that every sender quotes (RFC 792).
const QUOTED_L4: usize = 8;

/// The packet that an ICMP error quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Key of the quoted packet as it stands there. The error belongs to the flow direction `key.reversed()`.
    pub key: FlowKey,
    /// Where the quoted L4 header begins, from the start of the frame.
    l4_offset: u16,
    /// Where the quoted packet ends in the frame.
    end: u16,
    /// Bytes that the quoted packet had behind its IP header, quoted or not.
    whole_len: u16,
}

/// True for an ICMP type that is an error and quotes a packet: unreachable, source quench, redirect, time exceeded,
/// parameter problem (RFC 1122 §3.2.2).
#[inline]
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Finds the packet that the ICMP error in `bytes` quotes.
///
/// # Errors
/// `IcmpQuote` when the quotation is too short, malformed, a later fragment, or of a packet that the error's receiver did
/// not send; `IcmpNested` when it is an ICMP error itself;
/// `IcmpUnknownFlow` when it is ICMP but no echo, which has no flow.
pub fn quoted(bytes: &[u8], parsed: &Parsed) -> Result<Quoted, Drop> {
    let start = usize::from(parsed.l4_offset()) + ICMP_LEN;
    let packet = bytes.get(start..parsed.end().min(bytes.len())).unwrap_or_default();
    let ip = packet.first_chunk::<20>().ok_or(Drop::IcmpQuote)?;
    let header_len = usize::from(ip[0] & 0x0F) * 4;
    if ip[0] >> 4 != 4 || header_len < 20 {
        return Err(Drop::IcmpQuote);
    }
    let fragment_offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1FFF;
    let l4 = packet.get(header_len..).and_then(|b| b.first_chunk::<QUOTED_L4>()).ok_or(Drop::IcmpQuote)?;
    if fragment_offset != 0 {
        return Err(Drop::IcmpQuote);
    }
    let src = u32::from_be_bytes([ip[12], ip[13], ip[14], ip[15]]);
    let dst = u32::from_be_bytes([ip[16], ip[17], ip[18], ip[19]]);
    // An error is for who sent the packet. One that is not was made up to reach somebody else's flow.
    if src != parsed.key.dst() {
        return Err(Drop::IcmpQuote);
    }
    let (sport, dport) = match ip[9] {
        proto::TCP | proto::UDP | proto::SCTP => {
            (u16::from_be_bytes([l4[0], l4[1]]), u16::from_be_bytes([l4[2], l4[3]]))
        }
        proto::ICMP if is_error(l4[0]) => return Err(Drop::IcmpNested),
        proto::ICMP if matches!(l4[0], 0 | 8) => {
            let id = u16::from_be_bytes([l4[4], l4[5]]);
            if l4[0] == 8 { (id, 0) } else { (0, id) }
        }
        // Its place of the identifier means something else, and a flow of identifier zero may exist.
        proto::ICMP => return Err(Drop::IcmpUnknownFlow),
        _ => (0, 0),
    };
    // Behind the quoted packet may follow zeros and extensions (RFC 4884), which are nobody's checksum.
    let total_len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let len = packet.len().min(total_len.max(header_len + QUOTED_L4));
    Ok(Quoted {
        key: FlowKey::new(src, dst, sport, dport, ip[9]),
        whole_len: total_len.saturating_sub(header_len) as u16,
        l4_offset: (start + header_len) as u16,
        end: (start + len) as u16,
    })
}

/// Translates an ICMP error, outer and quoted headers, in place.
///
/// `rewrite` is the flow's rewrite for the direction `quoted.key.reversed()`, the one that the error travels in. The
/// source of an error from a router on the way is kept where that direction's source is not translated, and is hidden
/// where it is (RFC 5508 §4.2, and Linux). MTU, pointer and extensions stay. Checksums that were wrong stay wrong.
pub fn translate(bytes: &mut [u8], parsed: &Parsed, quoted: &Quoted, rewrite: &Rewrite, ttl: Ttl) {
    let outer_l4 = usize::from(parsed.l4_offset());
    let inner_l4 = usize::from(quoted.l4_offset);
    if bytes.len() < inner_l4 + QUOTED_L4 || inner_l4 < outer_l4 + ICMP_LEN + 20 {
        return;
    }
    let delta = translate_quotation(bytes, outer_l4 + ICMP_LEN, quoted, rewrite);
    update_field(bytes, outer_l4 + 2, delta);

    let src = if rewrite.src() == quoted.key.dst() { parsed.key.src() } else { rewrite.src() };
    let mut l3_delta = checksum::add(
        checksum::delta32(parsed.key.src(), src),
        checksum::delta32(parsed.key.dst(), rewrite.dst()),
    );
    if ttl == Ttl::Decrement {
        bytes[ETHERNET_LEN + 8] = bytes[ETHERNET_LEN + 8].wrapping_sub(1);
        l3_delta = checksum::add(l3_delta, !0x0100);
    }
    update_field(bytes, ETHERNET_LEN + 10, l3_delta);
    bytes[ETHERNET_LEN + 12..ETHERNET_LEN + 16].copy_from_slice(&src.to_be_bytes());
    bytes[ETHERNET_LEN + 16..ETHERNET_LEN + 20].copy_from_slice(&rewrite.dst().to_be_bytes());
}

/// Translates the quoted headers and gives the delta of the bytes that changed, checksums included.
fn translate_quotation(bytes: &mut [u8], ip: usize, quoted: &Quoted, rewrite: &Rewrite) -> u16 {
    let l4 = usize::from(quoted.l4_offset);
    bytes[ip + 12..ip + 16].copy_from_slice(&rewrite.dst().to_be_bytes());
    bytes[ip + 16..ip + 20].copy_from_slice(&rewrite.src().to_be_bytes());
    let mut delta = checksum::add(rewrite.l3_delta(), update_field(bytes, ip + 10, rewrite.l3_delta()));

    let field = match quoted.key.proto() {
        proto::TCP => 16,
        proto::UDP => 6,
        proto::ICMP => 2,
        proto::SCTP => sctp::CHECKSUM,
        _ => return delta,
    };
    if quoted.key.proto() == proto::ICMP {
        // Only queries have an identifier, and no other ICMP has a flow to be found by.
        let id = rewrite.sport() | rewrite.dport();
        bytes[l4 + 4..l4 + 6].copy_from_slice(&id.to_be_bytes());
        delta = checksum::add(delta, checksum::delta16(quoted.key.echo_id(), id));
    } else {
        bytes[l4..l4 + 2].copy_from_slice(&rewrite.dport().to_be_bytes());
        bytes[l4 + 2..l4 + 4].copy_from_slice(&rewrite.sport().to_be_bytes());
        delta = checksum::add(delta, checksum::delta16(quoted.key.sport(), rewrite.dport()));
        delta = checksum::add(delta, checksum::delta16(quoted.key.dport(), rewrite.sport()));
    }
    if quoted.key.proto() == proto::SCTP {
        return checksum::add(delta, update_sctp(bytes, l4, quoted, rewrite));
    }
    if l4 + field + 2 > usize::from(quoted.end) {
        return delta;
    }
    let changed = if quoted.key.proto() == proto::UDP {
        let old = u16::from_be_bytes([bytes[l4 + field], bytes[l4 + field + 1]]);
        let new = checksum::update_udp(old, rewrite.l4_delta());
        bytes[l4 + field..l4 + field + 2].copy_from_slice(&new.to_be_bytes());
        checksum::delta16(old, new)
    } else {
        update_field(bytes, l4 + field, rewrite.l4_delta())
    };
    checksum::add(delta, changed)
}

/// Updates the checksum of a quoted SCTP packet, if it is quoted so far, and gives the delta of the field itself.
fn update_sctp(bytes: &mut [u8], l4: usize, quoted: &Quoted, rewrite: &Rewrite) -> u16 {
    let at = l4 + sctp::CHECKSUM;
    if at + 4 > usize::from(quoted.end) {
        return 0;
    }
    let ports = |source: u16, destination: u16| u32::from(source) << 16 | u32::from(destination);
    let old = ports(quoted.key.sport(), quoted.key.dport());
    let change = old ^ ports(rewrite.dport(), rewrite.sport());
    let field = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let updated = sctp::update(field, change.to_be_bytes(), quoted.whole_len);
    bytes[at..at + 4].copy_from_slice(&updated);
    checksum::delta32(u32::from_be_bytes(field), u32::from_be_bytes(updated))
}

/// Updates the checksum field at `at` and gives the delta of the field itself.
fn update_field(bytes: &mut [u8], at: usize, delta: u16) -> u16 {
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let new = checksum::update(old, delta);
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    checksum::delta16(old, new)
}
