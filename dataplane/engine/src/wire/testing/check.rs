//! Checks of frames, and what turns one into others.

use crate::wire::{ETHERNET_LEN, Kind, Parsed, parse};
use etherparse::checksum::Sum16BitWords;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use std::net::Ipv4Addr;

/// Cuts the frame's IP packet into fragments that carry at most `mtu_payload` bytes behind their IP header, rounded down to a
/// multiple of eight. One fragment, the frame without its padding, when it is short enough.
#[must_use]
pub fn fragments(frame: &[u8], mtu_payload: usize) -> Vec<Vec<u8>> {
    let (mut ip, _) = Ipv4Header::from_slice(&frame[ETHERNET_LEN..]).expect("an IPv4 packet");
    let packet = &frame[ETHERNET_LEN..ETHERNET_LEN + usize::from(ip.total_len)];
    let payload = &packet[ip.header_len()..];
    let unit = (mtu_payload & !7).max(8);
    if payload.len() <= mtu_payload {
        return vec![frame[..ETHERNET_LEN + packet.len()].to_vec()];
    }
    let count = payload.len().div_ceil(unit);
    let base = ip.fragment_offset.value();
    let last_has_more = ip.more_fragments;
    payload
        .chunks(unit)
        .enumerate()
        .map(|(i, piece)| {
            ip.fragment_offset = IpFragOffset::try_new(base + (i * unit / 8) as u16).expect("13 bits");
            ip.more_fragments = i + 1 < count || last_has_more;
            ip.total_len = (ip.header_len() + piece.len()) as u16;
            ip.header_checksum = ip.calc_header_checksum();
            let mut out = frame[..ETHERNET_LEN].to_vec();
            ip.write_raw(&mut out).expect("writing to memory");
            out.extend_from_slice(piece);
            out
        })
        .collect()
}

/// The frame that the fragments were cut from, in whatever order they come.
///
/// # Errors
/// What is wrong: different identification or addresses, a gap, an overlap, no end.
pub fn reassemble(fragments: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut pieces = Vec::new();
    for frame in fragments {
        let (ip, _) = Ipv4Header::from_slice(&frame[ETHERNET_LEN..]).map_err(|e| e.to_string())?;
        let end = ETHERNET_LEN + usize::from(ip.total_len);
        pieces.push((
            ip.fragment_offset.byte_offset(),
            ip.clone(),
            &frame[ETHERNET_LEN + ip.header_len()..end],
        ));
    }
    pieces.sort_by_key(|p| p.0);
    let (_, first, _) = pieces.first().ok_or("no fragment")?;
    let mut payload = Vec::new();
    for (offset, ip, piece) in &pieces {
        if usize::from(*offset) != payload.len() {
            return Err(format!("a fragment at {offset} where {} comes next", payload.len()));
        }
        if (ip.identification, ip.source, ip.destination, ip.protocol)
            != (first.identification, first.source, first.destination, first.protocol)
        {
            return Err(format!("of different datagrams: {first:?} and {ip:?}"));
        }
        payload.extend_from_slice(piece);
    }
    if pieces.last().is_some_and(|(_, ip, _)| ip.more_fragments) {
        return Err("the last fragment is missing".to_owned());
    }
    let mut ip = first.clone();
    ip.more_fragments = false;
    ip.total_len = (ip.header_len() + payload.len()) as u16;
    ip.header_checksum = ip.calc_header_checksum();
    let mut out = fragments[0][..ETHERNET_LEN].to_vec();
    ip.write_raw(&mut out).map_err(|e| e.to_string())?;
    out.extend_from_slice(&payload);
    Ok(out)
}

/// Checks everything that can be summed: the IP header's checksum, the L4 checksum (where the packet is no fragment), and
/// the checksum of the IP header that an ICMP error quotes.
///
/// # Errors
/// What is wrong, with both values.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let packet = frame.get(ETHERNET_LEN..).ok_or("shorter than an Ethernet header")?;
    let (ip, rest) = Ipv4Header::from_slice(packet).map_err(|e| e.to_string())?;
    expect("IP header checksum", ip.header_checksum, ip.calc_header_checksum())?;
    let len = usize::from(ip.total_len) - ip.header_len();
    let l4 =
        rest.get(..len).ok_or_else(|| format!("{len} bytes behind the IP header, {} there", rest.len()))?;
    if ip.is_fragmenting_payload() {
        return Ok(());
    }
    if ip.protocol == IpNumber::SCTP {
        let there = l4.get(8..12).ok_or("no SCTP header")?;
        let right = sctp_checksum(l4);
        let same = there == right || there == [0; 4];
        return if same {
            Ok(())
        } else {
            Err(format!("SCTP checksum is {there:02x?}, right is {right:02x?}"))
        };
    }
    let field = match ip.protocol {
        IpNumber::TCP => 16,
        IpNumber::UDP => 6,
        IpNumber::ICMP => 2,
        _ => return Ok(()),
    };
    let there = l4.get(field..field + 2).ok_or("no L4 header")?;
    let there = u16::from_be_bytes([there[0], there[1]]);
    if ip.protocol == IpNumber::UDP && there == 0 {
        return Ok(());
    }
    expect("L4 checksum", there, full_l4_checksum(&ip, l4))?;
    if ip.protocol == IpNumber::ICMP && matches!(l4[0], 3 | 4 | 5 | 11 | 12) {
        let (inner, _) = Ipv4Header::from_slice(&l4[8..]).map_err(|e| format!("quoted packet: {e}"))?;
        expect("quoted IP header checksum", inner.header_checksum, inner.calc_header_checksum())?;
    }
    Ok(())
}

/// The headers of a frame, for a test that wants to look at more than one thing.
///
/// # Panics
/// When the engine would drop it unseen.
#[must_use]
pub fn read(frame: &[u8]) -> Parsed {
    parse(frame, frame.len()).unwrap_or_else(|drop| panic!("{drop}: {frame:02x?}"))
}

/// One line that says what a frame is, to be compared in tests: `10.0.1.10:40000>203.0.113.9:80 tcp S ttl 64 len 0`.
#[must_use]
pub fn show(frame: &[u8]) -> String {
    let p = match parse(frame, frame.len()) {
        Ok(p) => p,
        Err(drop) => return format!("({drop})"),
    };
    let (src, dst) = (Ipv4Addr::from_bits(p.key.src()), Ipv4Addr::from_bits(p.key.dst()));
    let (sport, dport) = (p.key.sport(), p.key.dport());
    let what = match p.kind {
        Kind::Tcp { flags } => {
            let letters: String = "FSRPAUEC"
                .chars()
                .enumerate()
                .filter(|(i, _)| flags.0 >> i & 1 == 1)
                .map(|(_, c)| c)
                .collect();
            format!("{src}:{sport}>{dst}:{dport} tcp {letters}")
        }
        Kind::Udp => format!("{src}:{sport}>{dst}:{dport} udp"),
        Kind::Sctp { chunk } => format!("{src}:{sport}>{dst}:{dport} sctp {chunk}"),
        Kind::IcmpQuery { reply } => {
            format!(
                "{src}>{dst} icmp echo {} id {}",
                if reply { "reply" } else { "request" },
                p.key.echo_id()
            )
        }
        Kind::IcmpError | Kind::IcmpOther => {
            let (kind, code) = p.icmp_type(frame).unwrap_or_default();
            format!("{src}>{dst} icmp {kind}/{code}")
        }
        Kind::Other(protocol) => format!("{src}>{dst} proto {protocol}"),
        Kind::LaterFragment => format!("{src}>{dst} proto {}", p.key.proto()),
    };
    let fragment = if p.is_fragment() {
        format!(" frag {}{} id {}", p.fragment_offset(), if p.more_fragments() { "+" } else { "" }, p.id)
    } else {
        String::new()
    };
    format!("{what} ttl {} len {}{fragment}", p.ttl, p.payload_len())
}

/// The checksum of an SCTP packet, bit by bit as the polynomial is defined, whatever stands in the field.
pub(super) fn sctp_checksum(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        let byte = if (8..12).contains(&at) { 0 } else { *byte };
        for bit in 0..8 {
            let carry = (crc ^ u32::from(byte >> bit)) & 1;
            crc = (crc >> 1) ^ (carry * 0x82F6_3B78);
        }
    }
    (!crc).to_le_bytes()
}

/// The L4 checksum as a sender computes it, whatever stands in the field.
pub(super) fn full_l4_checksum(ip: &Ipv4Header, l4: &[u8]) -> u16 {
    let zeroed = |field: usize| {
        let mut bytes = l4.to_vec();
        bytes[field..field + 2].fill(0);
        bytes
    };
    // Sums by etherparse's own adder: its header types would refuse some of the malformed headers that tests want.
    let pseudo = |len: u16| {
        Sum16BitWords::new()
            .add_4bytes(ip.source)
            .add_4bytes(ip.destination)
            .add_2bytes([0, ip.protocol.0])
            .add_2bytes(len.to_be_bytes())
    };
    match ip.protocol {
        IpNumber::TCP => pseudo(l4.len() as u16).add_slice(&zeroed(16)).ones_complement().to_be(),
        IpNumber::UDP => {
            let len = usize::from(u16::from_be_bytes([l4[4], l4[5]])).clamp(8, l4.len());
            match pseudo(len as u16).add_slice(&zeroed(6)[..len]).ones_complement().to_be() {
                0 => 0xFFFF,
                sum => sum,
            }
        }
        _ => Sum16BitWords::new().add_slice(&zeroed(2)).ones_complement().to_be(),
    }
}

fn expect(what: &str, there: u16, right: u16) -> Result<(), String> {
    if there == right { Ok(()) } else { Err(format!("{what} is {there:#06x}, right is {right:#06x}")) }
}
