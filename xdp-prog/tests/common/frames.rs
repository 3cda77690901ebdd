//! Frames, byte by byte: the tests state what is on the wire and use no code of the programs under test.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const DESTINATION: [u8; 6] = [0x0a, 1, 2, 3, 4, 5];
pub const SOURCE: [u8; 6] = [0x0a, 9, 8, 7, 6, 5];
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

/// An Ethernet frame.
pub fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&DESTINATION[..], &SOURCE, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet in the making.
#[derive(Clone)]
pub struct Ip {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    /// Bytes of options, a multiple of 4.
    pub options: usize,
    /// Flags and fragment offset, as on the wire.
    pub fragment: u16,
    pub payload: Vec<u8>,
}

impl Ip {
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, protocol, options: 0, fragment: 0, payload }
    }

    pub fn options(mut self, bytes: usize) -> Self {
        self.options = bytes;
        self
    }

    pub fn fragment(mut self, field: u16) -> Self {
        self.fragment = field;
        self
    }

    pub fn packet(&self) -> Vec<u8> {
        let header = 20 + self.options;
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(((header + self.payload.len()) as u16).to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(std::iter::repeat_n(1, self.options)); // no-operation
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    pub fn frame(&self) -> Vec<u8> {
        ethernet(0x0800, &self.packet())
    }
}

/// Header and 8 bytes of payload; TCP has 20 bytes of header, UDP's checksum is absent.
pub fn ports(protocol: u8, source: u16, destination: u16) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    if protocol == TCP {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        bytes.extend([0, 16, 0, 0]);
    }
    bytes.extend(*b"payload!");
    bytes
}

pub fn icmp(kind: u8, id: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(*b"payload!");
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

pub fn ipv6(source: &str, destination: &str) -> Vec<u8> {
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an IPv6 address").octets();
    let mut bytes = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    bytes.extend(address(source));
    bytes.extend(address(destination));
    bytes.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    ethernet(0x86dd, &bytes)
}

pub fn arp() -> Vec<u8> {
    ethernet(0x0806, &[0; 46])
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
