//! The frames of the load: UDP over IPv4, each with its flow's number, checksums right.
//!
//! A flow is a pair of ports. There are 1,024 source ports and as many destination ports as the flows need, because a
//! translating node has some ten thousands of ports *per destination*: 100,000 flows to one destination port would
//! measure exhaustion. The payload begins with a mark, by which sinks know the load whatever was translated, and the
//! flow's number, by which the far end learns how the flow was translated.

use std::net::Ipv4Addr;

/// First word of every payload: `SLBN`.
pub const MARK: u32 = 0x534c_424e;

/// Ethernet, IPv4 and UDP header.
pub const HEADERS: usize = 42;

/// The shortest frame that holds the headers, the mark and the flow's number.
pub const SHORTEST: usize = HEADERS + 8;

/// First source port of the load.
pub const FIRST_SOURCE_PORT: u16 = 20_000;

/// First destination port of the load.
pub const FIRST_DESTINATION_PORT: u16 = 32_768;

/// Source ports that are used before the next destination port is.
pub const SOURCE_PORTS: u32 = 1024;

/// Where a flow's frames go from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl Endpoints {
    /// Flow `number` from `source` to `destination`.
    ///
    /// # Panics
    /// Never for numbers below 2^25, which is where destination ports end.
    #[must_use]
    pub fn of_flow(number: u32, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source,
            destination,
            source_port: FIRST_SOURCE_PORT + (number % SOURCE_PORTS) as u16,
            destination_port: FIRST_DESTINATION_PORT + (number / SOURCE_PORTS) as u16,
        }
    }

    /// The way back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// What the L4 checksum field of a frame holds when it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksums {
    /// The pseudo header's sum, for hardware to complete: what a pod's own sockets send over veth.
    Partial,
    /// The whole sum: what comes from a wire.
    Full,
}

/// A frame of which only ports, flow number and checksum change from packet to packet.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    checksums: Checksums,
}

impl Template {
    /// A frame of `length` bytes, Ethernet header included and frame check sequence not; below [`SHORTEST`] it is that.
    #[must_use]
    pub fn new(length: usize, source_mac: [u8; 6], destination_mac: [u8; 6], checksums: Checksums) -> Self {
        let length = length.max(SHORTEST);
        let mut bytes = vec![0; length];
        bytes[..6].copy_from_slice(&destination_mac);
        bytes[6..12].copy_from_slice(&source_mac);
        bytes[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&((length - 14) as u16).to_be_bytes());
        bytes[20] = 0x40;
        bytes[22] = 64;
        bytes[23] = 17;
        bytes[38..40].copy_from_slice(&((length - 34) as u16).to_be_bytes());
        bytes[42..46].copy_from_slice(&MARK.to_be_bytes());
        for (i, byte) in bytes.iter_mut().enumerate().skip(SHORTEST) {
            *byte = i as u8;
        }
        Self { bytes, checksums }
    }

    /// Bytes of every frame made from it.
    #[must_use]
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The same frame for the two addresses of `endpoints`; ports stay to be written by [`Addressed::write`].
    #[must_use]
    pub fn addressed(mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Addressed {
        self.bytes[26..30].copy_from_slice(&source.octets());
        self.bytes[30..34].copy_from_slice(&destination.octets());
        let header = !fold(sum(&self.bytes[14..34]));
        self.bytes[24..26].copy_from_slice(&header.to_be_bytes());
        let l4 = (self.bytes.len() - 34) as u64;
        let pseudo = sum(&self.bytes[26..34]) + 17 + l4;
        let rest = match self.checksums {
            Checksums::Partial => 0,
            Checksums::Full => sum(&self.bytes[34..]),
        };
        Addressed { bytes: self.bytes, sum: u64::from(fold(pseudo + rest)), checksums: self.checksums }
    }
}

/// A template with addresses.
#[derive(Debug, Clone)]
pub struct Addressed {
    bytes: Vec<u8>,
    /// Sum of everything that the L4 checksum covers, ports and flow number at zero.
    sum: u64,
    checksums: Checksums,
}

impl Addressed {
    /// Bytes of every frame.
    #[must_use]
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Lays the whole frame into `frame`, which is of its length.
    pub fn lay(&self, frame: &mut [u8]) {
        frame.copy_from_slice(&self.bytes);
    }

    /// Makes a frame that was laid out before the given flow's.
    #[inline]
    pub fn write(&self, frame: &mut [u8], source_port: u16, destination_port: u16, number: u32) {
        frame[34..36].copy_from_slice(&source_port.to_be_bytes());
        frame[36..38].copy_from_slice(&destination_port.to_be_bytes());
        frame[46..50].copy_from_slice(&number.to_be_bytes());
        let checksum = match self.checksums {
            Checksums::Partial => self.sum as u16,
            Checksums::Full => {
                let number = u64::from(number >> 16) + u64::from(number & 0xffff);
                match !fold(self.sum + u64::from(source_port) + u64::from(destination_port) + number) {
                    0 => 0xffff,
                    checksum => checksum,
                }
            }
        };
        frame[40..42].copy_from_slice(&checksum.to_be_bytes());
    }

    /// A whole frame of the given flow.
    #[must_use]
    pub fn frame(&self, source_port: u16, destination_port: u16, number: u32) -> Vec<u8> {
        let mut frame = self.bytes.clone();
        self.write(&mut frame, source_port, destination_port, number);
        frame
    }
}

/// The load's flow number and endpoints in a received frame; `None` for a frame that is not the load's.
#[must_use]
pub fn read(frame: &[u8]) -> Option<(u32, Endpoints)> {
    let word = |at: usize| frame.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let half = |at: usize| frame.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let ours = half(12)? == 0x0800 && frame[14] == 0x45 && *frame.get(23)? == 17 && word(42)? == MARK;
    let endpoints = Endpoints {
        source: Ipv4Addr::from_bits(word(26)?),
        destination: Ipv4Addr::from_bits(word(30)?),
        source_port: half(34)?,
        destination_port: half(36)?,
    };
    Some((word(46)?, endpoints)).filter(|_| ours)
}

fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let odd = pairs.remainder().first().map_or(0, |b| u64::from(*b) << 8);
    odd + pairs.map(|p| u64::from(u16::from_be_bytes([p[0], p[1]]))).sum::<u64>()
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 20);
    const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    fn template(length: usize, checksums: Checksums) -> Addressed {
        Template::new(length, [2; 6], [4; 6], checksums).addressed(A, B)
    }

    #[test]
    fn every_checksum_verifies() {
        for length in [64, 65, 1400] {
            let template = template(length, Checksums::Full);
            for number in [0, 1, 1023, 1024, 99_999, 0xffff_ffff] {
                let frame = template.frame(20_000, 40_000, number);
                assert_eq!(frame.len(), length);
                assert_eq!(fold(sum(&frame[14..34])), 0xffff, "IP header");
                let pseudo = sum(&frame[26..34]) + 17 + (length as u64 - 34);
                assert_eq!(fold(pseudo + sum(&frame[34..])), 0xffff, "UDP, {length} bytes, flow {number}");
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_the_pseudo_header() {
        let frame = template(64, Checksums::Partial).frame(1, 2, 3);
        let pseudo = fold(sum(&frame[26..34]) + 17 + 30);
        assert_eq!(frame[40..42], pseudo.to_be_bytes());
    }

    #[test]
    fn what_was_written_is_read_back() {
        let endpoints = Endpoints::of_flow(99_999, A, B);
        let frame =
            template(64, Checksums::Full).frame(endpoints.source_port, endpoints.destination_port, 99_999);
        assert_eq!(read(&frame), Some((99_999, endpoints)));
        assert_eq!(read(&frame[..49]), None);
        assert_eq!(read(&[0; 64]), None);
    }

    #[test]
    fn flows_are_distinct() {
        let mut seen = std::collections::HashSet::new();
        assert!((0..100_000).all(|n| seen.insert(Endpoints::of_flow(n, A, B))));
    }
}
