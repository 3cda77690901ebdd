//! The builder of frames.

use super::check::{full_l4_checksum, sctp_checksum};
use crate::frame::Offload;
use crate::wire::{ETHERNET_LEN, checksum};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A UDP datagram from `"address:port"` to `"address:port"`.
#[must_use]
pub fn udp(from: &str, to: &str) -> FrameBuilder {
    let (from, to) = (socket(from), socket(to));
    FrameBuilder::new(*from.ip(), *to.ip(), L4::Udp { sport: from.port(), dport: to.port(), len: None })
}

/// A TCP segment from `"address:port"` to `"address:port"`: a bare ACK until [`FrameBuilder::flags`] says otherwise.
#[must_use]
pub fn tcp(from: &str, to: &str) -> FrameBuilder {
    let (from, to) = (socket(from), socket(to));
    let mut header = TcpHeader::new(from.port(), to.port(), 1000, 64_000);
    header.ack = true;
    FrameBuilder::new(*from.ip(), *to.ip(), L4::Tcp { header, flags: None, options: Vec::new() })
}

/// An SCTP packet from `"address:port"` to `"address:port"` with one chunk of this type, whose value is the payload.
#[must_use]
pub fn sctp(from: &str, to: &str, chunk: u8) -> FrameBuilder {
    let (from, to) = (socket(from), socket(to));
    FrameBuilder::new(*from.ip(), *to.ip(), L4::Sctp { sport: from.port(), dport: to.port(), chunk })
}

/// An ICMP echo request with a short payload.
#[must_use]
pub fn echo_request(from: &str, to: &str, id: u16, seq: u16) -> FrameBuilder {
    icmp(from, to, 8, 0, u32::from(id) << 16 | u32::from(seq)).payload(b"0123456789abcdef")
}

/// An ICMP echo reply with a short payload.
#[must_use]
pub fn echo_reply(from: &str, to: &str, id: u16, seq: u16) -> FrameBuilder {
    icmp(from, to, 0, 0, u32::from(id) << 16 | u32::from(seq)).payload(b"0123456789abcdef")
}

/// Any ICMP message: type, code and the four bytes behind the checksum.
#[must_use]
pub fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: u32) -> FrameBuilder {
    FrameBuilder::new(address(from), address(to), L4::Icmp { kind, code, rest })
}

/// An ICMP error that quotes the IP packet of the frame `quoted`: its header and the first eight bytes behind it.
/// [`FrameBuilder::quote`] quotes more or less.
#[must_use]
pub fn icmp_error(kind: u8, code: u8, from: &str, to: &str, quoted: &[u8]) -> FrameBuilder {
    let packet = quoted[ETHERNET_LEN..].to_vec();
    let header_len = usize::from(packet[0] & 0x0F) * 4;
    let mut builder = icmp(from, to, kind, code, 0);
    builder.quoted = packet;
    builder.quote(header_len + 8)
}

/// A packet of any protocol whose L4 bytes are the payload.
#[must_use]
pub fn raw(from: &str, to: &str, protocol: u8) -> FrameBuilder {
    FrameBuilder::new(address(from), address(to), L4::Raw(protocol))
}

#[derive(Debug, Clone)]
enum L4 {
    Udp { sport: u16, dport: u16, len: Option<u16> },
    Tcp { header: TcpHeader, flags: Option<u8>, options: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: u32 },
    Sctp { sport: u16, dport: u16, chunk: u8 },
    Raw(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum L4Sum {
    Full,
    Partial,
    Zero,
    Wrong,
}

/// A frame in the making.
#[derive(Debug, Clone)]
pub struct FrameBuilder {
    macs: ([u8; 6], [u8; 6]),
    ip: Ipv4Header,
    fragment_field_value: Option<u16>,
    l4: L4,
    payload: Vec<u8>,
    quoted: Vec<u8>,
    padding: usize,
    sum: L4Sum,
    wrong_ip_checksum: bool,
}

impl FrameBuilder {
    fn new(src: Ipv4Addr, dst: Ipv4Addr, l4: L4) -> Self {
        let protocol = match l4 {
            L4::Udp { .. } => IpNumber::UDP,
            L4::Tcp { .. } => IpNumber::TCP,
            L4::Icmp { .. } => IpNumber::ICMP,
            L4::Sctp { .. } => IpNumber::SCTP,
            L4::Raw(protocol) => IpNumber(protocol),
        };
        let mut ip =
            Ipv4Header::new(0, 64, protocol, src.octets(), dst.octets()).expect("an empty payload fits");
        ip.dont_fragment = false;
        Self {
            macs: ([2, 0, 0, 0, 0, 0xD], [2, 0, 0, 0, 0, 0x5]),
            ip,
            fragment_field_value: None,
            l4,
            payload: Vec::new(),
            quoted: Vec::new(),
            padding: 0,
            sum: L4Sum::Full,
            wrong_ip_checksum: false,
        }
    }

    /// Destination and source Ethernet address.
    #[must_use]
    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.macs = (dst, src);
        self
    }

    /// Time to live, 64 by default.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.time_to_live = ttl;
        self
    }

    /// IP identification, 0 by default.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.ip.identification = id;
        self
    }

    /// Type of service byte.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.ip.dscp = etherparse::IpDscp::try_new(tos >> 2).expect("six bits");
        self.ip.ecn = etherparse::IpEcn::try_new(tos & 3).expect("two bits");
        self
    }

    /// Forbids fragmentation.
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.ip.dont_fragment = true;
        self
    }

    /// Flags and fragment offset of the IP header as they shall stand there.
    #[must_use]
    pub fn fragment_field(mut self, field: u16) -> Self {
        self.fragment_field_value = Some(field);
        self
    }

    /// IP options, a multiple of four bytes up to 40.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.try_into().expect("a multiple of four, at most 40");
        self
    }

    /// What follows the L4 header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// TCP: the flags, letters of `FSRPAUEC`.
    #[must_use]
    pub fn flags(self, letters: &str) -> Self {
        let bits = letters.chars().fold(0, |bits, c| {
            bits | 1 << "FSRPAUEC".find(c).unwrap_or_else(|| panic!("{c} is none of FSRPAUEC"))
        });
        self.flag_bits(bits)
    }

    /// TCP: the flags byte.
    #[must_use]
    pub fn flag_bits(mut self, bits: u8) -> Self {
        *self.tcp().1 = Some(bits);
        self
    }

    /// TCP: the sequence number, 1000 by default.
    #[must_use]
    pub fn seq(mut self, seq: u32) -> Self {
        self.tcp().0.sequence_number = seq;
        self
    }

    /// TCP: the acknowledgement number; it does not set the flag.
    #[must_use]
    pub fn ack(mut self, ack: u32) -> Self {
        self.tcp().0.acknowledgment_number = ack;
        self
    }

    /// TCP: the window, 64000 by default.
    #[must_use]
    pub fn window(mut self, window: u16) -> Self {
        self.tcp().0.window_size = window;
        self
    }

    /// TCP: adds a maximum segment size option.
    #[must_use]
    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.tcp_options(&[2, 4, high, low])
    }

    /// TCP: adds a window scale option.
    #[must_use]
    pub fn window_scale(self, shift: u8) -> Self {
        self.tcp_options(&[3, 3, shift])
    }

    /// TCP: adds raw option bytes; zeros fill them up to a multiple of four.
    #[must_use]
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        self.tcp().2.extend_from_slice(bytes);
        self
    }

    /// UDP: the length field, when it shall not be the true one.
    #[must_use]
    pub fn udp_len(mut self, value: u16) -> Self {
        match &mut self.l4 {
            L4::Udp { len, .. } => *len = Some(value),
            other => panic!("no UDP: {other:?}"),
        }
        self
    }

    /// ICMP error: the next-hop MTU.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        match &mut self.l4 {
            L4::Icmp { rest, .. } => *rest = *rest & 0xFFFF_0000 | u32::from(mtu),
            other => panic!("no ICMP: {other:?}"),
        }
        self
    }

    /// ICMP error: how many bytes of the offending IP packet are quoted, at most all.
    #[must_use]
    pub fn quote(mut self, bytes: usize) -> Self {
        self.payload = self.quoted[..bytes.min(self.quoted.len())].to_vec();
        self
    }

    /// Bytes behind the IP packet's end that are no part of it.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// A wrong L4 checksum.
    #[must_use]
    pub fn bad_l4_checksum(mut self) -> Self {
        self.sum = L4Sum::Wrong;
        self
    }

    /// No L4 checksum: zero.
    #[must_use]
    pub fn no_l4_checksum(mut self) -> Self {
        self.sum = L4Sum::Zero;
        self
    }

    /// A wrong IP header checksum.
    #[must_use]
    pub fn bad_ip_checksum(mut self) -> Self {
        self.wrong_ip_checksum = true;
        self
    }

    /// The frame.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        let mut ip = self.ip.clone();
        ip.total_len =
            u16::try_from(ip.header_len() + l4.len()).expect("an IPv4 packet is at most 65535 bytes");
        let mut frame = Vec::with_capacity(ETHERNET_LEN + usize::from(ip.total_len) + self.padding);
        frame.extend_from_slice(&self.macs.0);
        frame.extend_from_slice(&self.macs.1);
        frame.extend_from_slice(&[0x08, 0x00]);
        if let Some(field) = self.fragment_field_value {
            ip.dont_fragment = field & 0x4000 != 0;
            ip.more_fragments = field & 0x2000 != 0;
            ip.fragment_offset = IpFragOffset::try_new(field & 0x1FFF).expect("13 bits");
        }
        ip.header_checksum = ip.calc_header_checksum();
        if self.wrong_ip_checksum {
            ip.header_checksum = checksum::add(ip.header_checksum, 1);
        }
        ip.write_raw(&mut frame).expect("writing to memory");
        frame.extend_from_slice(&l4);
        frame.resize(frame.len() + self.padding, 0xA5);
        frame
    }

    /// The frame as the trunk delivers it: its L4 checksum holds the pseudo header's sum, hardware shall complete it.
    #[must_use]
    pub fn build_partial(&self) -> (Vec<u8>, Offload) {
        let mut builder = self.clone();
        builder.sum = L4Sum::Partial;
        let csum_offset = match self.l4 {
            L4::Udp { .. } => 6,
            L4::Tcp { .. } => 16,
            L4::Icmp { .. } | L4::Sctp { .. } | L4::Raw(_) => panic!("only TCP and UDP have a pseudo header"),
        };
        let csum_start = u16::try_from(ETHERNET_LEN + self.ip.header_len()).expect("at most 74");
        (builder.build(), Offload { partial: true, csum_start, csum_offset, ..Offload::default() })
    }

    fn tcp(&mut self) -> (&mut TcpHeader, &mut Option<u8>, &mut Vec<u8>) {
        match &mut self.l4 {
            L4::Tcp { header, flags, options } => (header, flags, options),
            other => panic!("no TCP: {other:?}"),
        }
    }

    fn sctp_bytes(&self) -> Vec<u8> {
        let L4::Sctp { sport, dport, chunk } = self.l4 else { return Vec::new() };
        let mut bytes = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        bytes.extend_from_slice(&0x1234_5678u32.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let len = u16::try_from(4 + self.payload.len()).expect("at most 65535 bytes");
        bytes.extend_from_slice(&[chunk, 0]);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = match self.sum {
            L4Sum::Full | L4Sum::Partial => sctp_checksum(&bytes),
            L4Sum::Zero => [0; 4],
            L4Sum::Wrong => sctp_checksum(&bytes).map(|byte| byte ^ 0x55),
        };
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let (mut bytes, field) = match &self.l4 {
            L4::Udp { sport, dport, len } => {
                let true_len = u16::try_from(8 + self.payload.len()).expect("at most 65535 bytes");
                let header = UdpHeader {
                    source_port: *sport,
                    destination_port: *dport,
                    length: len.unwrap_or(true_len),
                    checksum: 0,
                };
                (header.to_bytes().to_vec(), Some(6))
            }
            L4::Tcp { header, flags, options } => {
                let mut bytes = header.to_bytes().to_vec();
                if let Some(flags) = flags {
                    bytes[13] = *flags;
                }
                bytes.extend_from_slice(options);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                assert!(bytes.len() <= 60, "{} bytes of TCP options, 40 fit", bytes.len() - 20);
                bytes[12] = (bytes.len() as u8 / 4) << 4;
                (bytes, Some(16))
            }
            L4::Icmp { kind, code, rest } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend_from_slice(&rest.to_be_bytes());
                (bytes, Some(2))
            }
            L4::Sctp { .. } => return self.sctp_bytes(),
            L4::Raw(_) => (Vec::new(), None),
        };
        bytes.extend_from_slice(&self.payload);
        let Some(field) = field else { return bytes };
        let full = full_l4_checksum(&self.ip, &bytes);
        let value = match self.sum {
            L4Sum::Full => full,
            L4Sum::Zero => 0,
            // Neither right nor, by accident, the zero that means "none".
            L4Sum::Wrong => {
                if full == 0x5555 {
                    0x1111
                } else {
                    full ^ 0x5555
                }
            }
            L4Sum::Partial => {
                let (src, dst) =
                    (u32::from_be_bytes(self.ip.source), u32::from_be_bytes(self.ip.destination));
                checksum::pseudo(src, dst, self.ip.protocol.0, bytes.len() as u16)
            }
        };
        bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }
}

fn socket(text: &str) -> SocketAddrV4 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no address:port"))
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no IPv4 address"))
}
