//! The packets of a probe: what opens a connection, and what answers it.

use std::net::Ipv4Addr;

use sluice_engine::testing::{raw, tcp, udp};
use sluice_state::Protocol;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// Addresses and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) src: (Ipv4Addr, u16),
    pub(crate) dst: (Ipv4Addr, u16),
}

impl Ends {
    /// The other way round.
    pub(crate) const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }
}

/// The first packet of a connection: a SYN, a datagram, an INIT.
pub(crate) fn opening(protocol: Protocol, ends: Ends) -> Vec<u8> {
    build(protocol, ends, "S", INIT)
}

/// What the other end answers.
pub(crate) fn answer(protocol: Protocol, ends: Ends) -> Vec<u8> {
    build(protocol, ends, "SA", INIT_ACK)
}

fn build(protocol: Protocol, ends: Ends, flags: &str, chunk: u8) -> Vec<u8> {
    let text = |(address, port): (Ipv4Addr, u16)| format!("{address}:{port}");
    match protocol {
        Protocol::Tcp => tcp(&text(ends.src), &text(ends.dst)).flags(flags).build(),
        Protocol::Udp => udp(&text(ends.src), &text(ends.dst)).payload(b"probe").build(),
        Protocol::Sctp => {
            let packet = sctp(ends, chunk);
            raw(&ends.src.0.to_string(), &ends.dst.0.to_string(), protocol.number()).payload(&packet).build()
        }
    }
}

/// An SCTP packet with one INIT or INIT ACK chunk (RFC 9260 §3.3.2).
fn sctp(ends: Ends, chunk: u8) -> Vec<u8> {
    const TAG: u32 = 0x5105_1CE0;
    let mut packet = Vec::with_capacity(32);
    packet.extend_from_slice(&ends.src.1.to_be_bytes());
    packet.extend_from_slice(&ends.dst.1.to_be_bytes());
    // An INIT has no tag to verify yet; what answers it carries the one that it has named.
    packet.extend_from_slice(&(if chunk == INIT { 0 } else { TAG }).to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&[chunk, 0, 0, 20]);
    packet.extend_from_slice(&TAG.to_be_bytes());
    packet.extend_from_slice(&65_536u32.to_be_bytes());
    packet.extend_from_slice(&[0, 10, 0, 10]);
    packet.extend_from_slice(&1u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The checksum of SCTP (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }
}
