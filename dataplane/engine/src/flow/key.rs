//! What identifies one direction of a flow, in two machine words: a lookup compares twice and never meets a byte of padding,
//! so that a key can lie in memory that several processes map. Addresses and ports lie in the words as they lie in a packet:
//! reading and writing them there turns no byte round.

use std::fmt;
use std::net::Ipv4Addr;

/// Source, destination, ports and protocol of one direction. Its parts are given and read in host order.
///
/// An ICMP query's identifier is its asker's port, and zero the port of who answers: [`FlowKey::echo_request`]. So the
/// reply's key is [`FlowKey::reversed`] as for TCP and UDP, and two hosts that ask each other with one identifier have two
/// flows (nf_conntrack keeps the ICMP type for that).
/// A protocol without ports has zero for both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    /// Source, then destination, as the eight bytes lie in an IPv4 header.
    addresses: u64,
    /// In the upper half the two ports, as the four bytes lie in a TCP or UDP header; in the lowest byte the protocol.
    ports: u64,
}

impl FlowKey {
    /// A key of its parts.
    #[inline]
    #[must_use]
    pub const fn new(src: u32, dst: u32, sport: u16, dport: u16, proto: u8) -> Self {
        Self {
            addresses: (((src as u64) << 32) | dst as u64).to_be(),
            ports: ((((sport as u32) << 16) | dport as u32).to_be() as u64) << 32 | proto as u64,
        }
    }

    /// The key of an ICMP query from `src`.
    #[inline]
    #[must_use]
    pub const fn echo_request(src: u32, dst: u32, id: u16) -> Self {
        Self::new(src, dst, id, 0, 1)
    }

    /// The key of the answer from `src` to an ICMP query.
    #[inline]
    #[must_use]
    pub const fn echo_reply(src: u32, dst: u32, id: u16) -> Self {
        Self::new(src, dst, 0, id, 1)
    }

    /// The identifier of an ICMP query or its answer.
    #[inline]
    #[must_use]
    pub const fn echo_id(&self) -> u16 {
        self.sport() | self.dport()
    }

    /// Source address.
    #[inline]
    #[must_use]
    pub const fn src(&self) -> u32 {
        (u64::from_be(self.addresses) >> 32) as u32
    }

    /// Destination address.
    #[inline]
    #[must_use]
    pub const fn dst(&self) -> u32 {
        u64::from_be(self.addresses) as u32
    }

    /// Source port; the identifier of an ICMP query.
    #[inline]
    #[must_use]
    pub const fn sport(&self) -> u16 {
        (u32::from_be(self.wire_ports()) >> 16) as u16
    }

    /// Destination port; the identifier of an answer to an ICMP query.
    #[inline]
    #[must_use]
    pub const fn dport(&self) -> u16 {
        u32::from_be(self.wire_ports()) as u16
    }

    /// IP protocol number.
    #[inline]
    #[must_use]
    pub const fn proto(&self) -> u8 {
        self.ports as u8
    }

    /// The key of a packet in the opposite direction.
    #[inline]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            addresses: self.addresses.rotate_left(32),
            ports: ((((self.ports >> 32) as u32).rotate_left(16) as u64) << 32) | (self.ports & 0xFFFF_FFFF),
        }
    }

    /// The eight bytes of the addresses as they lie in an IPv4 header, read as one word of this machine.
    #[inline]
    pub(crate) const fn wire_addresses(&self) -> u64 {
        self.addresses
    }

    /// The four bytes of the ports as they lie in a TCP or UDP header, read as one word of this machine.
    #[inline]
    pub(crate) const fn wire_ports(&self) -> u32 {
        (self.ports >> 32) as u32
    }

    /// The key of a packet whose header has these words ([`FlowKey::wire_addresses`], [`FlowKey::wire_ports`]).
    #[inline]
    pub(crate) const fn from_wire(addresses: u64, ports: u32, proto: u8) -> Self {
        Self { addresses, ports: (ports as u64) << 32 | proto as u64 }
    }

    /// The key as two words, for hashing and for storage in atomics.
    #[inline]
    #[must_use]
    pub const fn words(&self) -> [u64; 2] {
        [self.addresses, self.ports]
    }

    /// The inverse of [`FlowKey::words`].
    #[inline]
    #[must_use]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self { addresses: words[0], ports: words[1] & 0xFFFF_FFFF_0000_00FF }
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = (Ipv4Addr::from_bits(self.src()), Ipv4Addr::from_bits(self.dst()));
        write!(f, "{src}:{}>{dst}:{} proto {}", self.sport(), self.dport(), self.proto())
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::FlowKey;

    #[test]
    fn keeps_its_parts_and_reverses() {
        let key = FlowKey::new(0x0A00_010A, 0xCB00_7109, 40_000, 80, 6);
        assert_eq!(
            (key.src(), key.dst(), key.sport(), key.dport(), key.proto()),
            (0x0A00_010A, 0xCB00_7109, 40_000, 80, 6)
        );
        assert_eq!(key.reversed(), FlowKey::new(0xCB00_7109, 0x0A00_010A, 80, 40_000, 6));
        assert_eq!(key.reversed().reversed(), key);
        assert_eq!(FlowKey::from_words(key.words()), key);
        assert_eq!(size_of::<FlowKey>(), 16);
        assert_eq!(key.to_string(), "10.0.1.10:40000>203.0.113.9:80 proto 6");
    }
}
