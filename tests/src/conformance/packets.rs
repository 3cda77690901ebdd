//! The packets of a probe: what opens a connection, and what answers it.

use std::net::Ipv4Addr;

use sluice_engine::testing::{sctp, tcp, udp};
use sluice_state::Protocol;

/// Chunks that begin an association (RFC 9260 §3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// What both chunks say first (RFC 9260 §3.3.2): a tag, a window of 64 KiB, ten streams each way, a first number.
const ASSOCIATION: [u8; 16] = [0x12, 0x34, 0x56, 0x78, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];

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
    let (from, to) = (text(ends.src), text(ends.dst));
    match protocol {
        Protocol::Tcp => tcp(&from, &to).flags(flags).build(),
        Protocol::Udp => udp(&from, &to).payload(b"probe").build(),
        Protocol::Sctp => sctp(&from, &to, chunk).payload(&ASSOCIATION).build(),
    }
}
