//! Cuts against a naive reading of their pieces: etherparse verifies every header and checksum, payloads are glued back.

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use proptest::prelude::*;
use sluice_engine::wire::checksum::{pseudo, sum};
use sluice_engine::{Drop as Reason, GsoKind, Offload};

use super::*;

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) ^ (i >> 8) as u8).collect()
}

/// A packet as the trunk delivers it: its L4 field holds the pseudo header's sum when `partial`.
fn tcp(payload: &[u8], id: u16, seq: u32, flags: u8, timestamps: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let mut builder = PacketBuilder::ethernet2(MACS.0, MACS.1)
        .ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                identification: id,
                dont_fragment: true,
                ..etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                    .unwrap()
            },
            etherparse::Ipv4Extensions::default(),
        ))
        .tcp(40_000, 443, seq, 1024)
        .ack(99);
    if timestamps {
        builder = builder.options(&[TcpOptionElement::Timestamp(7, 8)]).unwrap();
    }
    builder.write(&mut frame, payload).unwrap();
    frame[47] = flags;
    partial(&mut frame, 16);
    frame
}

fn udp(payload: &[u8], id: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MACS.0, MACS.1)
        .ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                identification: id,
                dont_fragment: false,
                ..etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2])
                    .unwrap()
            },
            etherparse::Ipv4Extensions::default(),
        ))
        .udp(5000, 53)
        .write(&mut frame, payload)
        .unwrap();
    partial(&mut frame, 6);
    frame
}

fn partial(frame: &mut [u8], at: usize) {
    let value = pseudo(0x0A00_0001, 0x0A00_0002, frame[23], (frame.len() - 34) as u16);
    frame[34 + at..36 + at].copy_from_slice(&value.to_be_bytes());
}

fn offload(gso: GsoKind, gso_size: u16, csum_offset: u16) -> Offload {
    Offload { partial: true, csum_start: 34, csum_offset, gso, gso_size, ecn: false }
}

fn pieces(bytes: &[u8], offload: Offload, mtu: usize) -> Result<Vec<Vec<u8>>, Reason> {
    let cut = Cut::plan(bytes, offload, mtu)?;
    Ok((0..cut.count())
        .map(|i| {
            let mut out = vec![0xEE; cut.piece_len(i)];
            cut.write(bytes, i, &mut out);
            assert!(out.len() <= cut.largest() && out.len() <= 14 + mtu);
            out
        })
        .collect())
}

fn check_ip(piece: &[u8]) -> usize {
    let header = usize::from(piece[14] & 15) * 4;
    assert_eq!(sum(&piece[14..14 + header]), 0xFFFF, "IP checksum");
    assert_eq!(usize::from(u16::from_be_bytes([piece[16], piece[17]])), piece.len() - 14);
    header
}

/// Checks lengths and checksums of a piece, and gives back its payload.
fn checked(piece: &[u8]) -> Vec<u8> {
    check_ip(piece);
    let sliced = SlicedPacket::from_ethernet(piece).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
    match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            assert_eq!(
                tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
                Ok(tcp.checksum())
            );
            tcp.payload().to_vec()
        }
        TransportSlice::Udp(udp) => {
            assert_ne!(udp.checksum(), 0, "a computed zero is sent as 0xFFFF");
            let all = pseudo(0x0A00_0001, 0x0A00_0002, 17, udp.length());
            assert_eq!(sluice_engine::wire::checksum::add(all, sum(udp.slice())), 0xFFFF);
            assert_eq!(usize::from(udp.length()), piece.len() - 34);
            udp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn tcp_segments_are_what_the_stack_would_have_sent(
        len in 0usize..60_000, size in 1u16..9000, id: u16, seq: u32, seed: u8, timestamps: bool, flags in 0u8..=255,
    ) {
        let size = size.max((len / 200) as u16 + 1);
        let flags = (flags & 0xC9) | 0x10;
        let data = payload(len, seed);
        let frame = tcp(&data, id, seq, flags, timestamps);
        let pieces = pieces(&frame, offload(GsoKind::Tcp4, size, 16), 9060).unwrap();
        prop_assert_eq!(pieces.len(), len.div_ceil(usize::from(size)).max(1));
        let mut glued = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let number = u32::from_be_bytes(piece[38..42].try_into().unwrap());
            prop_assert_eq!(number, seq.wrapping_add(glued.len() as u32));
            prop_assert_eq!(u16::from_be_bytes([piece[18], piece[19]]), id.wrapping_add(i as u16));
            let (first, last) = (i == 0, i + 1 == pieces.len());
            let expected = flags & !(if last { 0 } else { 0x09 }) & !(if first { 0 } else { 0x80 });
            prop_assert_eq!(piece[47], expected);
            let part = checked(piece);
            prop_assert!(last || part.len() == usize::from(size));
            glued.extend(part);
        }
        prop_assert_eq!(glued, data);
    }

    #[test]
    fn udp_datagrams_keep_their_size(len in 1usize..60_000, size in 1u16..9000, id: u16, seed: u8) {
        let size = size.max((len / 200) as u16 + 1);
        let data = payload(len, seed);
        let pieces = pieces(&udp(&data, id), offload(GsoKind::Udp4, size, 6), 9028).unwrap();
        let parts: Vec<_> = pieces.iter().map(|p| checked(p)).collect();
        prop_assert!(parts[..parts.len() - 1].iter().all(|p| p.len() == usize::from(size)));
        prop_assert_eq!(parts.concat(), data);
    }

    #[test]
    fn fragments_join_to_the_datagram(len in 1500usize..60_000, mtu in 68usize..9001, id: u16, seed: u8, full: bool) {
        let mtu = mtu.max(len / 400);
        let data = payload(len, seed);
        let mut frame = udp(&data, id);
        let mut asked = offload(GsoKind::None, 0, 6);
        let whole = pieces(&frame, asked, 65_535).unwrap().remove(0);
        if full {
            frame.clone_from(&whole);
            asked = Offload::default();
        }
        let mut joined = vec![0; whole.len() - 34];
        let mut covered = 0;
        let all = pieces(&frame, asked, mtu).unwrap();
        for (i, piece) in all.iter().enumerate() {
            let header = check_ip(piece);
            let field = u16::from_be_bytes([piece[20], piece[21]]);
            let at = usize::from(field & 0x1FFF) * 8;
            prop_assert_eq!(field & 0x2000 != 0, i + 1 < all.len());
            prop_assert_eq!(&piece[18..20], &id.to_be_bytes());
            let body = &piece[14 + header..];
            joined[at..at + body.len()].copy_from_slice(body);
            covered += body.len();
        }
        prop_assert_eq!(covered, joined.len());
        prop_assert_eq!(&joined[..], &whole[34..]);
        checked(&whole);
    }

    #[test]
    fn whatever_comes_in_nothing_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), partial: bool, start: u16, offset: u16, gso in 0usize..3,
        size: u16, mtu in 0usize..2000, plausible: bool,
    ) {
        let mut bytes = bytes;
        if plausible && bytes.len() > 24 {
            (bytes[12], bytes[13], bytes[14]) = (8, 0, 0x40 | (bytes[14] & 15));
            bytes[23] = if gso == 1usize { 6 } else { 17 };
        }
        let gso = [GsoKind::None, GsoKind::Tcp4, GsoKind::Udp4][gso];
        let offload = Offload { partial, csum_start: start % 256, csum_offset: offset % 64, gso, gso_size: size, ecn: false };
        let _ = pieces_unchecked(&bytes, offload, mtu);
    }
}

fn pieces_unchecked(bytes: &[u8], offload: Offload, mtu: usize) -> Result<(), Reason> {
    let cut = Cut::plan(bytes, offload, mtu)?;
    for i in 0..cut.count() {
        let mut out = vec![0; cut.piece_len(i)];
        cut.write(bytes, i, &mut out);
    }
    Ok(())
}

#[test]
fn a_partial_udp_checksum_of_zero_becomes_all_ones() {
    // Two payload bytes that make the sum come out as zero.
    let mut frame = udp(&[0, 0], 1);
    let open = pieces(&frame, offload(GsoKind::None, 0, 6), 1500).unwrap().remove(0);
    let field = [open[40], open[41]];
    frame[42..44].copy_from_slice(&field);
    let done = pieces(&frame, offload(GsoKind::None, 0, 6), 1500).unwrap().remove(0);
    assert_eq!(done[40..42], [0xFF, 0xFF]);
}

#[test]
fn what_may_not_be_cut_says_so() {
    let mut frame = udp(&payload(3000, 1), 1);
    frame[20] |= 0x40;
    assert_eq!(pieces(&frame, offload(GsoKind::None, 0, 6), 1500), Err(Reason::FragNeeded));
    let frame = tcp(&payload(3000, 1), 1, 1, 0x10, false);
    assert_eq!(pieces(&frame, offload(GsoKind::Tcp4, 1461, 16), 1500), Err(Reason::FragNeeded));
    assert!(pieces(&frame, offload(GsoKind::Tcp4, 1460, 16), 1500).is_ok());
    // A kind that the packet is not.
    assert_eq!(pieces(&frame, offload(GsoKind::Udp4, 1000, 6), 1500), Err(Reason::TxError));
    assert_eq!(pieces(&frame, offload(GsoKind::Tcp4, 0, 16), 1500), Err(Reason::TxError));
}

#[test]
fn later_fragments_carry_only_the_options_that_are_copied() {
    // Record route (7, not copied), no-operation, loose source route (131, copied).
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 131, 7, 4, 10, 0, 0, 9, 0];
    let mut frame = vec![0; 14];
    frame[12] = 8;
    frame.extend_from_slice(&[0x49, 0, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(&options);
    frame.extend_from_slice(&payload(2000, 3));
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    let all = pieces(&frame, Offload::default(), 1000).unwrap();
    assert_eq!(all.iter().map(|p| p[14]).collect::<Vec<_>>(), [0x49, 0x47, 0x47]);
    assert_eq!(all[1][34..42], [131, 7, 4, 10, 0, 0, 9, 0]);
    let body: Vec<u8> = all.iter().flat_map(|p| p[14 + check_ip(p)..].to_vec()).collect();
    assert_eq!(body, payload(2000, 3));
}
