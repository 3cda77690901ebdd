//! One pass over Ethernet, IPv4 and L4: everything that the rest of the engine asks of a packet, or the reason to drop it.
//!
//! Offsets are worked out by hand because this runs for every packet; a general parser costs more here than the flow
//! lookup does. What is accepted is what Linux' own conntrack would track, so that no malformed packet can slip past a
//! rule that was written for well-formed ones.

use super::tcp::{TcpFlags, TcpHeader};
use super::{checksum, sctp};
use crate::flow::FlowKey;
use crate::verdict::Drop;

/// Bytes of an Ethernet header. Layer 3 begins here.
pub const ETHERNET_LEN: usize = 14;

/// IP protocol numbers that the engine knows.
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Reads the headers of a frame.
///
/// `bytes` is the frame's first buffer and `frame_len` the length of the whole frame. A frame may be longer than its IP
/// packet (Ethernet padding, a trailer): the rest is no part of the packet.
///
/// # Errors
/// The reason to drop it: `NotIpv4`, `Truncated`, `BadIpHeader`, `BadIpChecksum`, `TcpFlags` or `FragmentTiny`.
#[inline]
pub fn parse(bytes: &[u8], frame_len: usize) -> Result<Parsed, Drop> {
    match common(bytes, frame_len) {
        Some(parsed) => Ok(parsed),
        None => parse_any(bytes, frame_len),
    }
}

/// [`parse()`] into memory that is there already, so that a batch's results are written once.
///
/// # Errors
/// As [`parse()`]; `parsed` is then as it was.
#[inline(always)]
pub(crate) fn parse_into(bytes: &[u8], frame_len: usize, parsed: &mut Parsed) -> Result<(), Drop> {
    match common(bytes, frame_len) {
        Some(common) => *parsed = common,
        None => *parsed = parse_any(bytes, frame_len)?,
    }
    Ok(())
}

/// Bytes up to the end of the shortest L4 header.
const COMMON_LEN: usize = ETHERNET_LEN + 20 + 8;

/// The tier that nearly every packet is served by: TCP or UDP, no IP options, no fragment, an ordinary source, nothing wrong.
/// Whatever it does not take is for [`parse_any`] to read or to refuse, which agrees with it on all that it takes (a
/// property test holds them together). What it asks is almost always so: a comparison and a branch that is never taken are
/// one operation of the processor, where collecting answers takes three.
#[inline(always)]
fn common(bytes: &[u8], frame_len: usize) -> Option<Parsed> {
    /// EtherType, version and header length, as they lie in the frame; the type of service may be anything.
    const IPV4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0x00]);
    const IPV4_MASK: u32 = u32::from_ne_bytes([0xFF, 0xFF, 0xFF, 0x00]);
    /// "More fragments" and the offset.
    const FRAGMENT: u16 = 0x3FFF_u16.to_be();

    let head = bytes.first_chunk::<COMMON_LEN>()?;
    if ne32(head, 12) & IPV4_MASK != IPV4 || ne16(head, 20) & FRAGMENT != 0 {
        return None;
    }
    let total_len = u16::from_be(ne16(head, 16));
    let end = ETHERNET_LEN + usize::from(total_len);
    if end < COMMON_LEN || end > frame_len || !sums_up(head) {
        return None;
    }
    // 240/4, too, is usable, but not usual.
    if head[26].wrapping_sub(1) >= 223 || head[26] == 127 {
        return None;
    }
    let protocol = head[23];
    let (kind, l4_header_len) = if protocol == proto::UDP {
        // Below 8 the difference is huge.
        let len = u32::from(u16::from_be(ne16(head, 38)));
        if len.wrapping_sub(8) > u32::from(total_len) - 28 {
            return None;
        }
        (Kind::Udp, 8)
    } else if protocol == proto::TCP {
        let [offset, flags] = *bytes.get(46..48)?.first_chunk::<2>()?;
        let header_len = (offset >> 4) * 4;
        let flags = TcpFlags(flags);
        if header_len < 20 || 34 + usize::from(header_len) > end.min(bytes.len()) || !flags.valid() {
            return None;
        }
        (Kind::Tcp { flags }, header_len)
    } else {
        return None;
    };
    Some(Parsed {
        key: FlowKey::from_wire(ne64(head, 26), ne32(head, 34), protocol),
        kind,
        ttl: head[22],
        header_len: 20,
        l4_header_len,
        total_len,
        id: u16::from_be(ne16(head, 18)),
        fragment: u16::from_be(ne16(head, 20)),
    })
}

/// Whether the checksum of an IPv4 header without options is right. Added in the machine's order and in words of 64 bits:
/// whether a sum comes to all ones depends on neither (RFC 1071 §2).
#[inline(always)]
fn sums_up(head: &[u8; COMMON_LEN]) -> bool {
    let (sum, carry) = ne64(head, 14).overflowing_add(ne64(head, 22));
    let (sum, carry) = sum.overflowing_add(u64::from(ne32(head, 30)) + u64::from(carry));
    // A carry out of a sum leaves it far from overflowing again.
    let sum = sum + u64::from(carry);
    // The upper half of a word plus itself turned round is the sum of its halves, end-around carry included.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    sum.wrapping_add(sum.rotate_left(16)) >= 0xFFFF_0000
}

#[inline(always)]
fn ne64(head: &[u8; COMMON_LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&head[at..at + 8]);
    u64::from_ne_bytes(word)
}

#[inline(always)]
fn ne32(head: &[u8; COMMON_LEN], at: usize) -> u32 {
    u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[inline(always)]
fn ne16(head: &[u8; COMMON_LEN], at: usize) -> u16 {
    u16::from_ne_bytes([head[at], head[at + 1]])
}

/// Reads or refuses any frame.
#[inline(never)]
fn parse_any(bytes: &[u8], frame_len: usize) -> Result<Parsed, Drop> {
    let Some((head, _)) = bytes.split_first_chunk::<{ ETHERNET_LEN + 20 }>() else {
        return Err(short(bytes));
    };
    if [head[12], head[13]] != [0x08, 0x00] {
        return Err(Drop::NotIpv4);
    }
    let first = head[14];
    if first >> 4 != 4 || first & 0x0F < 5 {
        return Err(Drop::BadIpHeader);
    }
    let header_len = usize::from(first & 0x0F) * 4;
    let total_len = u16::from_be_bytes([head[16], head[17]]);
    let end = ETHERNET_LEN + usize::from(total_len);
    if usize::from(total_len) < header_len {
        return Err(Drop::BadIpHeader);
    }
    if end > frame_len {
        return Err(Drop::Truncated);
    }
    let header_sum = if header_len == 20 {
        sum20(head)
    } else {
        checksum::sum(bytes.get(ETHERNET_LEN..ETHERNET_LEN + header_len).ok_or(Drop::Truncated)?)
    };
    if header_sum != 0xFFFF {
        return Err(Drop::BadIpChecksum);
    }
    if header_len > 20 && is_source_routed(&bytes[ETHERNET_LEN + 20..ETHERNET_LEN + header_len]) {
        return Err(Drop::SourceRoute);
    }
    let src = u32::from_be_bytes([head[26], head[27], head[28], head[29]]);
    let dst = u32::from_be_bytes([head[30], head[31], head[32], head[33]]);
    if !usable_source(src) {
        return Err(Drop::BadIpHeader);
    }
    let protocol = head[23];
    let mut parsed = Parsed {
        key: FlowKey::new(src, dst, 0, 0, protocol),
        kind: Kind::Other(protocol),
        ttl: head[22],
        header_len: header_len as u8,
        l4_header_len: 0,
        total_len,
        id: u16::from_be_bytes([head[18], head[19]]),
        fragment: u16::from_be_bytes([head[20], head[21]]),
    };
    if parsed.is_fragment() {
        fragment_facts(&parsed)?;
        if !parsed.is_first_fragment() {
            parsed.kind = Kind::LaterFragment;
            return Ok(parsed);
        }
    }
    // What lies behind the packet's end is no header, even where the buffer goes on.
    let l4 = bytes.get(ETHERNET_LEN + header_len..end.min(bytes.len())).unwrap_or_default();
    read_l4(l4, &mut parsed)?;
    Ok(parsed)
}

/// Whether the options of an IP header ask for a route of their own: loose (131) or strict (137), RFC 791 §3.1.
#[cold]
fn is_source_routed(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [131 | 137, ..] => return true,
            [1, rest @ ..] => rest,
            // The length counts the kind and itself; one that cannot be ends the walk, as the end of options does.
            [kind, len, ..] if *kind != 0 && *len >= 2 => match options.get(usize::from(*len)..) {
                Some(rest) => rest,
                None => return false,
            },
            _ => return false,
        };
    }
}

/// Reads what the flow key needs of the L4 header, and refuses a header that no stack sends.
#[inline]
fn read_l4(l4: &[u8], parsed: &mut Parsed) -> Result<(), Drop> {
    let (src, dst, protocol) = (parsed.key.src(), parsed.key.dst(), parsed.key.proto());
    let missing = if parsed.is_fragment() { Drop::FragmentTiny } else { Drop::Truncated };
    match protocol {
        proto::TCP => {
            let h = l4.first_chunk::<20>().ok_or(missing)?;
            let header_len = usize::from(h[12] >> 4) * 4;
            // The packet's length decides, not the buffer's: but all headers are in the first buffer.
            if header_len < 20 || header_len > l4.len() {
                return Err(missing);
            }
            let flags = TcpFlags(h[13]);
            if !flags.valid() {
                return Err(Drop::TcpFlags);
            }
            let (sport, dport) = (u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]]));
            parsed.key = FlowKey::new(src, dst, sport, dport, protocol);
            parsed.kind = Kind::Tcp { flags };
            parsed.l4_header_len = header_len as u8;
        }
        proto::UDP => {
            let h = l4.first_chunk::<8>().ok_or(missing)?;
            let len = u16::from_be_bytes([h[4], h[5]]);
            if len < 8 || (len > parsed.l4_len() && !parsed.is_fragment()) {
                return Err(Drop::Truncated);
            }
            let (sport, dport) = (u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]]));
            parsed.key = FlowKey::new(src, dst, sport, dport, protocol);
            parsed.kind = Kind::Udp;
            parsed.l4_header_len = 8;
        }
        proto::SCTP => {
            let h = l4.first_chunk::<{ sctp::SHORTEST }>().ok_or(missing)?;
            let (sport, dport) = (u16::from_be_bytes([h[0], h[1]]), u16::from_be_bytes([h[2], h[3]]));
            parsed.key = FlowKey::new(src, dst, sport, dport, protocol);
            parsed.kind = Kind::Sctp { chunk: h[sctp::HEADER_LEN] };
            parsed.l4_header_len = sctp::HEADER_LEN as u8;
        }
        proto::ICMP => {
            let h = l4.first_chunk::<8>().ok_or(missing)?;
            parsed.kind = match h[0] {
                0 | 8 => {
                    let id = u16::from_be_bytes([h[4], h[5]]);
                    let reply = h[0] == 0;
                    let key = if reply { FlowKey::echo_reply } else { FlowKey::echo_request };
                    parsed.key = key(src, dst, id);
                    Kind::IcmpQuery { reply }
                }
                kind if super::icmp::is_error(kind) => Kind::IcmpError,
                _ => Kind::IcmpOther,
            };
            parsed.l4_header_len = 8;
        }
        _ => {}
    }
    Ok(())
}

/// Refuses fragments that no honest sender makes.
#[cold]
fn fragment_facts(parsed: &Parsed) -> Result<(), Drop> {
    let len = usize::from(parsed.l4_len());
    // Every fragment but the last carries whole units of eight bytes, and some (RFC 791 §3.2).
    if len == 0 || (parsed.more_fragments() && len % 8 != 0) {
        return Err(Drop::BadIpHeader);
    }
    // The datagram that they make must fit its own length field.
    if usize::from(parsed.header_len) + usize::from(parsed.fragment_offset()) + len > usize::from(u16::MAX) {
        return Err(Drop::BadIpHeader);
    }
    // A fragment at offset 8 overlaps the TCP header of any first fragment that is not tiny itself (RFC 1858 §3.2.2).
    if parsed.key.proto() == proto::TCP && parsed.fragment_offset() == 8 {
        return Err(Drop::FragmentTiny);
    }
    Ok(())
}

/// Sum of the IPv4 header without options in `head`.
#[inline]
fn sum20(head: &[u8; ETHERNET_LEN + 20]) -> u16 {
    let word =
        |at: usize| u64::from(u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    checksum::fold(word(14) + word(18) + word(22) + word(26) + word(30))
}

/// Why a frame too short for Ethernet and IPv4 headers is dropped: the type decides where there is one.
#[cold]
fn short(bytes: &[u8]) -> Drop {
    match bytes.get(12..14) {
        Some([0x08, 0x00]) | None => Drop::Truncated,
        Some(_) => Drop::NotIpv4,
    }
}

/// False for a source address that no host may use: "this network" (0/8), loopback, multicast and broadcast
/// (RFC 1122 §3.2.1.3, RFC 1812 §5.3.7). 240/4 is accepted, as Linux does.
#[inline]
#[must_use]
pub const fn usable_source(src: u32) -> bool {
    let top = (src >> 24) as u8;
    !(top == 0 || top == 127 || top & 0xF0 == 0xE0 || src == u32::MAX)
}

/// What the headers of a packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// Addresses, ports (ICMP query: its identifier as the asker's; none: zero) and protocol.
    pub key: FlowKey,
    /// What it carries.
    pub kind: Kind,
    /// Time to live as it came.
    pub ttl: u8,
    /// Bytes of the IP header, 20 to 60.
    pub header_len: u8,
    /// Bytes of the TCP header with options; 8 for UDP and ICMP, 12 for SCTP; zero where there is none.
    pub l4_header_len: u8,
    /// The IP header's total length in bytes.
    pub total_len: u16,
    /// The IP header's identification.
    pub id: u16,
    /// The IP header's flags and fragment offset as they stand there.
    pub fragment: u16,
}

impl Parsed {
    /// What stands in memory before anything was parsed into it.
    pub(crate) const NOTHING: Self = Self {
        key: FlowKey::new(0, 0, 0, 0, 0),
        kind: Kind::Other(0),
        ttl: 0,
        header_len: 20,
        l4_header_len: 0,
        total_len: 20,
        id: 0,
        fragment: 0,
    };

    /// Where the L4 header begins, from the start of the frame; for a later fragment, where its bytes begin.
    #[inline]
    #[must_use]
    pub const fn l4_offset(&self) -> u16 {
        ETHERNET_LEN as u16 + self.header_len as u16
    }

    /// Bytes behind the IP header.
    #[inline]
    #[must_use]
    pub const fn l4_len(&self) -> u16 {
        self.total_len - self.header_len as u16
    }

    /// Bytes behind the L4 header.
    #[inline]
    #[must_use]
    pub const fn payload_len(&self) -> u16 {
        self.l4_len() - self.l4_header_len as u16
    }

    /// Where the packet ends, from the start of the frame; behind it is padding.
    #[inline]
    #[must_use]
    pub const fn end(&self) -> usize {
        ETHERNET_LEN + self.total_len as usize
    }

    /// The sender forbids fragmentation.
    #[inline]
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment & 0x4000 != 0
    }

    /// More fragments of the datagram follow.
    #[inline]
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.fragment & 0x2000 != 0
    }

    /// Offset of these bytes in their datagram, in bytes.
    #[inline]
    #[must_use]
    pub const fn fragment_offset(&self) -> u16 {
        (self.fragment & 0x1FFF) << 3
    }

    /// One piece of a datagram, first or later.
    #[inline]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & 0x3FFF != 0
    }

    /// The piece of a fragmented datagram that has the L4 header; [`Parsed::kind`] says which.
    #[inline]
    #[must_use]
    pub const fn is_first_fragment(&self) -> bool {
        self.fragment & 0x3FFF == 0x2000
    }

    /// The TCP flags, none for another protocol.
    #[inline]
    #[must_use]
    pub const fn tcp_flags(&self) -> Option<TcpFlags> {
        match self.kind {
            Kind::Tcp { flags } => Some(flags),
            _ => None,
        }
    }

    /// The TCP header's numbers, none for another protocol. `bytes` is the buffer that was parsed.
    #[inline]
    #[must_use]
    pub fn tcp(&self, bytes: &[u8]) -> Option<TcpHeader> {
        let Kind::Tcp { flags } = self.kind else { return None };
        let h = bytes.get(usize::from(self.l4_offset())..)?.first_chunk::<20>()?;
        Some(TcpHeader {
            flags,
            seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            window: u16::from_be_bytes([h[14], h[15]]),
        })
    }

    /// ICMP type and code, none for another protocol. `bytes` is the buffer that was parsed.
    #[inline]
    #[must_use]
    pub fn icmp_type(&self, bytes: &[u8]) -> Option<(u8, u8)> {
        if !matches!(self.kind, Kind::IcmpQuery { .. } | Kind::IcmpError | Kind::IcmpOther) {
            return None;
        }
        let h = bytes.get(usize::from(self.l4_offset())..)?.first_chunk::<2>()?;
        Some((h[0], h[1]))
    }
}

/// What a packet carries. A first fragment is of its L4 header's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP, with flags that some stack sends.
    Tcp {
        /// The flags.
        flags: TcpFlags,
    },
    /// UDP.
    Udp,
    /// SCTP.
    Sctp {
        /// Type of its first chunk.
        chunk: u8,
    },
    /// ICMP echo.
    IcmpQuery {
        /// A reply, not a request.
        reply: bool,
    },
    /// ICMP that quotes another packet: destination unreachable, source quench, redirect, time exceeded, parameter problem.
    IcmpError,
    /// Any other ICMP: timestamps, router discovery and the like.
    IcmpOther,
    /// A protocol without ports, or whose ports are not read.
    Other(u8),
    /// A fragment without L4 header.
    LaterFragment,
}

#[cfg(test)]
mod parity {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::{common, parse_any};
    use crate::testing::{tcp, udp};

    proptest! {
        #[test]
        fn the_common_tier_agrees_with_the_full_parser(
            is_tcp: bool,
            payload in vec(any::<u8>(), 0..40),
            damage in vec((0usize..80, any::<u8>()), 0..3),
            cut in 0usize..30,
        ) {
            let (from, to) = ("10.0.1.10:40000", "203.0.113.9:80");
            let mut frame = if is_tcp {
                tcp(from, to).flags("PA").payload(&payload).build()
            } else {
                udp(from, to).payload(&payload).build()
            };
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            let held = frame.len().saturating_sub(cut);
            if let Some(parsed) = common(&frame[..held], frame.len()) {
                prop_assert_eq!(parse_any(&frame[..held], frame.len()), Ok(parsed));
            }
        }
    }
}
