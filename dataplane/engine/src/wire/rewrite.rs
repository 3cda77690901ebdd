//! Rewriting a packet in place: addresses, ports, TTL, Ethernet header, and the checksums by their deltas.
//!
//! What a flow changes is worked out once, when the flow is made ([`Rewrite::new`]); a packet of it then costs a few stores
//! and two additions. Nothing here sums a payload.

use super::parse::{ETHERNET_LEN, Kind, Parsed, proto};
use super::{checksum, sctp};
use crate::flow::FlowKey;

/// The values that a packet of one direction of a flow gets, and what they do to its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// The key that the packet has afterwards.
    to: FlowKey,
    /// [`Rewrite::l3_delta`] in the order of the wire: one's complement sums do not depend on it (RFC 1071 §2B).
    l3: u16,
    /// [`Rewrite::l4_delta`], likewise.
    l4: u16,
}

impl Rewrite {
    /// The rewrite that turns a packet with the key `from` into one with the key `to`.
    #[must_use]
    pub const fn new(from: &FlowKey, to: &FlowKey) -> Self {
        let l3_delta =
            checksum::add(checksum::delta32(from.src(), to.src()), checksum::delta32(from.dst(), to.dst()));
        let sport = checksum::delta16(from.sport(), to.sport());
        let ports = checksum::add(sport, checksum::delta16(from.dport(), to.dport()));
        // ICMP has no pseudo header.
        let l4_delta = if from.proto() == proto::ICMP { ports } else { checksum::add(l3_delta, ports) };
        Self { to: *to, l3: positive(l3_delta).to_be(), l4: positive(l4_delta).to_be() }
    }

    /// A rewrite whose deltas were worked out before: [`Rewrite::wire_deltas`].
    #[inline]
    pub(crate) const fn known(to: FlowKey, [l3, l4]: [u16; 2]) -> Self {
        Self { to, l3, l4 }
    }

    /// Both deltas, in the order of the wire.
    #[inline]
    pub(crate) const fn wire_deltas(&self) -> [u16; 2] {
        [self.l3, self.l4]
    }

    /// New source address.
    #[inline]
    #[must_use]
    pub const fn src(&self) -> u32 {
        self.to.src()
    }

    /// New destination address.
    #[inline]
    #[must_use]
    pub const fn dst(&self) -> u32 {
        self.to.dst()
    }

    /// New source port; the identifier of an ICMP query.
    #[inline]
    #[must_use]
    pub const fn sport(&self) -> u16 {
        self.to.sport()
    }

    /// New destination port; the identifier of an answer to an ICMP query.
    #[inline]
    #[must_use]
    pub const fn dport(&self) -> u16 {
        self.to.dport()
    }

    /// Sum of `new - old` over the addresses: what the IP header's checksum and a pseudo header change by.
    #[inline]
    #[must_use]
    pub const fn l3_delta(&self) -> u16 {
        u16::from_be(self.l3)
    }

    /// Sum of `new - old` over all that the L4 checksum covers: addresses and ports, or the identifier alone for ICMP. SCTP's
    /// is no sum, and is worked out from the ports.
    #[inline]
    #[must_use]
    pub const fn l4_delta(&self) -> u16 {
        u16::from_be(self.l4)
    }

    /// The rewrite of a flow that is not translated.
    #[must_use]
    pub const fn identity(key: &FlowKey) -> Self {
        Self::new(key, key)
    }
}

/// One's complement has two zeros, and a difference of equals is the negative one. Only adding the positive one changes no
/// field at all, not even one that is wrong.
const fn positive(delta: u16) -> u16 {
    if delta == 0xFFFF { 0 } else { delta }
}

/// What happens to the TTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// We forward: one less. The caller has checked that it is above 1.
    Decrement,
    /// The kernel forwards, and will decrement itself.
    Keep,
}

/// Rewrites addresses, ports or ICMP identifier, TTL and the checksums of the frame that starts at `bytes`.
///
/// `partial` is the frame's [`Offload::partial`](crate::Offload::partial): the L4 field then holds the pseudo header's sum
/// and changes by the addresses only. Later fragments have no L4 header and get addresses only; an ICMP packet that is no
/// query likewise (an error's quotation is the business of [`icmp`](super::icmp)). A checksum that was wrong stays wrong.
/// SCTP's covers its whole datagram: the caller does not change the ports of a fragment of it.
#[inline(always)]
pub fn apply(bytes: &mut [u8], parsed: &Parsed, rewrite: &Rewrite, ttl: Ttl, partial: bool) {
    let Some(ip) = bytes.get_mut(ETHERNET_LEN..).and_then(|b| b.first_chunk_mut::<20>()) else { return };
    // TTL and protocol are one 16-bit word of the header.
    let (less, delta) = match ttl {
        Ttl::Decrement => (1, checksum::add(rewrite.l3, (!0x0100_u16).to_be())),
        Ttl::Keep => (0, rewrite.l3),
    };
    ip[8] = ip[8].wrapping_sub(less);
    // Sums, deltas and fields stay in the order of the wire throughout.
    let field = u16::from_ne_bytes([ip[10], ip[11]]);
    ip[10..12].copy_from_slice(&checksum::update(field, delta).to_ne_bytes());
    ip[12..20].copy_from_slice(&rewrite.to.wire_addresses().to_ne_bytes());
    let ports = rewrite.to.wire_ports().to_ne_bytes();

    let Some(l4) = bytes.get_mut(usize::from(parsed.l4_offset())..) else { return };
    match parsed.kind {
        Kind::Tcp { .. } => {
            let Some(tcp) = l4.first_chunk_mut::<20>() else { return };
            tcp[0..4].copy_from_slice(&ports);
            let field = u16::from_ne_bytes([tcp[16], tcp[17]]);
            let updated = if partial {
                checksum::update_partial(field, rewrite.l3)
            } else {
                checksum::update(field, rewrite.l4)
            };
            tcp[16..18].copy_from_slice(&updated.to_ne_bytes());
        }
        Kind::Udp => {
            let Some(udp) = l4.first_chunk_mut::<8>() else { return };
            udp[0..4].copy_from_slice(&ports);
            let field = u16::from_ne_bytes([udp[6], udp[7]]);
            let updated = if partial {
                checksum::update_partial(field, rewrite.l3)
            } else {
                checksum::update_udp(field, rewrite.l4)
            };
            udp[6..8].copy_from_slice(&updated.to_ne_bytes());
        }
        Kind::Sctp { .. } => {
            let Some(head) = l4.first_chunk_mut::<{ sctp::HEADER_LEN }>() else { return };
            let old = [head[0], head[1], head[2], head[3]];
            head[0..4].copy_from_slice(&ports);
            let changed = std::array::from_fn(|i| old[i] ^ head[i]);
            // Whoever makes a partial one sums the new ports.
            if !partial {
                let field = [head[8], head[9], head[10], head[11]];
                head[sctp::CHECKSUM..].copy_from_slice(&sctp::update(field, changed, parsed.l4_len()));
            }
        }
        Kind::IcmpQuery { .. } => {
            let Some((icmp, payload)) = l4.split_first_chunk_mut::<8>() else { return };
            // One of the two is zero.
            let id = rewrite.to.echo_id();
            icmp[4..6].copy_from_slice(&id.to_be_bytes());
            // A partial ICMP checksum has no pseudo header: whoever completes it sums the new identifier by itself.
            if !partial {
                let field = u16::from_be_bytes([icmp[2], icmp[3]]);
                let mut updated = checksum::update(field, rewrite.l4_delta());
                let zeros = [icmp[0], icmp[6], icmp[7]] == [0; 3] && id == 0;
                if updated == 0 && zeros && parsed.key.echo_id() != 0 {
                    updated = null_reply(icmp[1], payload, usize::from(parsed.payload_len()));
                }
                icmp[2..4].copy_from_slice(&updated.to_be_bytes());
            }
        }
        Kind::IcmpError | Kind::IcmpOther | Kind::Other(_) | Kind::LaterFragment => {}
    }
}

/// The checksum of an echo reply with identifier and sequence zero whose delta came to zero. Without a pseudo header it can
/// be zeros throughout, the one message whose sum is the positive zero, and its checksum 0xFFFF (RFC 1624 §3).
#[cold]
fn null_reply(code: u8, payload: &[u8], len: usize) -> u16 {
    let null = code == 0 && payload.iter().take(len).all(|b| *b == 0);
    if null { 0xFFFF } else { 0 }
}

/// Writes the Ethernet addresses. The type stays.
#[inline]
pub fn set_ethernet(bytes: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    if let Some(header) = bytes.first_chunk_mut::<12>() {
        header[0..6].copy_from_slice(&dst);
        header[6..12].copy_from_slice(&src);
    }
}

/// Writes the IP identification and updates the header's checksum.
#[inline]
pub fn set_ip_id(bytes: &mut [u8], id: u16) {
    let Some(ip) = bytes.get_mut(ETHERNET_LEN..).and_then(|b| b.first_chunk_mut::<20>()) else { return };
    let old = u16::from_be_bytes([ip[4], ip[5]]);
    let field = u16::from_be_bytes([ip[10], ip[11]]);
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[10..12].copy_from_slice(&checksum::update(field, checksum::delta16(old, id)).to_be_bytes());
}
