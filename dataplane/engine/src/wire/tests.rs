//! What the parser and the rewrites must hold for every packet, and the corner cases by hand.

use super::*;
use crate::flow::FlowKey;
use crate::testing;
use crate::verdict::Drop;
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddrV4};

fn ends(key: &FlowKey) -> (String, String) {
    let socket = |ip: u32, port: u16| SocketAddrV4::new(Ipv4Addr::from_bits(ip), port).to_string();
    (socket(key.src(), key.sport()), socket(key.dst(), key.dport()))
}

fn udp(key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(key);
    testing::udp(&from, &to).payload(payload).build()
}

fn tcp(key: &FlowKey, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(key);
    testing::tcp(&from, &to).flag_bits(flags).payload(payload).build()
}

fn echo(key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (Ipv4Addr::from_bits(key.src()), Ipv4Addr::from_bits(key.dst()));
    testing::echo_request(&src.to_string(), &dst.to_string(), key.sport(), 1).payload(payload).build()
}

fn parsed(frame: &[u8]) -> Parsed {
    parse(frame, frame.len()).unwrap()
}

prop_compose! {
    fn keys(proto: u8)(
        src in any::<u32>().prop_filter("usable", |s| usable_source(*s)),
        dst in any::<u32>(),
        sport in any::<u16>(),
        dport in any::<u16>(),
    ) -> FlowKey {
        if proto == proto::ICMP { FlowKey::echo_request(src, dst, sport) } else { FlowKey::new(src, dst, sport, dport, proto) }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), extra in 0usize..3000) {
        let mut bytes = bytes;
        if let Ok(p) = parse(&bytes, bytes.len() + extra) {
            let _ = (l4_checksum(&bytes, &p, false), p.tcp(&bytes), p.icmp_type(&bytes), p.payload_len());
            apply(&mut bytes, &p, &Rewrite::identity(&p.key), Ttl::Keep, false);
        }
    }

    #[test]
    fn what_is_built_is_what_is_parsed(
        key in prop_oneof![keys(1), keys(6), keys(17)],
        payload in vec(any::<u8>(), 0..64),
        options in 0usize..=10,
        tcp_options in 0usize..=10,
        ttl: u8,
        id: u16,
        dont_fragment: bool,
        padding in 0usize..20,
        flags in prop::sample::select(&[0x02u8, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0xC2][..]),
        numbers: (u32, u32, u16),
    ) {
        let (from, to) = ends(&key);
        let address = |a: u32| Ipv4Addr::from_bits(a).to_string();
        let l4_header_len = if key.proto() == 6 { 20 + tcp_options * 4 } else { 8 };
        let builder = match key.proto() {
            6 => testing::tcp(&from, &to).flag_bits(flags).seq(numbers.0).ack(numbers.1).window(numbers.2).tcp_options(&vec![1; tcp_options * 4]),
            17 => testing::udp(&from, &to),
            _ if numbers.2 % 2 == 0 => testing::echo_reply(&address(key.src()), &address(key.dst()), key.sport(), 9),
            _ => testing::echo_request(&address(key.src()), &address(key.dst()), key.sport(), 9),
        };
        let key = match key.proto() {
            1 if numbers.2 % 2 == 0 => FlowKey::echo_reply(key.src(), key.dst(), key.sport()),
            _ => key,
        };
        let builder = builder.payload(&payload).ip_options(&vec![1; options * 4]).ttl(ttl).id(id).padding(padding);
        let frame = if dont_fragment { builder.dont_fragment() } else { builder }.build();
        prop_assert_eq!(testing::verify(&frame), Ok(()));
        let p = parsed(&frame);
        prop_assert_eq!((p.key, p.ttl, p.id, p.dont_fragment()), (key, ttl, id, dont_fragment));
        prop_assert_eq!(usize::from(p.header_len), 20 + options * 4);
        prop_assert_eq!(usize::from(p.l4_header_len), l4_header_len);
        prop_assert_eq!(usize::from(p.payload_len()), payload.len());
        prop_assert_eq!(p.end(), frame.len() - padding);
        prop_assert!(!p.is_fragment());
        prop_assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
        match p.tcp(&frame) {
            Some(tcp) => {
                prop_assert_eq!(key.proto(), 6);
                prop_assert_eq!((tcp.flags.0, tcp.seq, tcp.ack, tcp.window), (flags, numbers.0, numbers.1, numbers.2));
            }
            None => prop_assert_ne!(key.proto(), 6),
        }
    }

    #[test]
    fn damaged_frames_keep_every_rule(
        which in 0usize..8,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        steer: [u8; 2],
        cut in 0usize..20,
    ) {
        let sent = testing::tcp("10.0.9.5:5000", "203.0.113.9:53").payload(&[3; 40]).build();
        let frame = match which {
            0 => testing::tcp("10.0.1.10:1", "10.0.1.11:2").flags("S").mss(9001).window_scale(7).build(),
            1 => testing::udp("10.0.1.10:1", "10.0.1.11:2").ip_options(&[1; 12]).payload(b"payload").build(),
            2 => testing::echo_request("10.0.1.10", "10.0.1.11", 5, 6).build(),
            3 => testing::fragments(&sent, 24).remove(1),
            4 => testing::icmp_error(3, 4, "198.51.100.7", "10.0.9.5", &sent).mtu(1400).quote(60).build(),
            5 => testing::icmp_error(3, 3, "198.51.100.7", "10.0.9.5", &udp(&FlowKey::new(0x0A00_0905, 9, 1, 2, 17), b"x")).build(),
            6 => testing::icmp_error(11, 0, "198.51.100.7", "10.0.9.5", &echo(&FlowKey::echo_request(0x0A00_0905, 9, 1), b"x")).build(),
            _ => testing::raw("10.0.1.10", "10.0.1.11", 47).payload(&[1; 30]).build(),
        };
        let mut data = steer.to_vec();
        data.extend_from_slice(&frame[..frame.len() - cut]);
        for (at, value) in damage {
            let at = 2 + at.index(data.len() - 2);
            data[at] = value;
        }
        testing::exercise_frame(&data);
    }

    #[test]
    fn any_sequence_of_fragments_is_accounted_for(data in vec(prop_oneof![0u8..8, any::<u8>()], 0..400)) {
        testing::exercise_fragments(&data);
    }

    #[test]
    fn a_changed_byte_never_panics(
        key in prop_oneof![keys(1), keys(6), keys(17)],
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        repaired: bool,
    ) {
        let (from, to) = ends(&key);
        let mut frame = match key.proto() {
            6 => testing::tcp(&from, &to).mss(1460).ip_options(&[1; 8]).payload(b"abcdefgh").build(),
            17 => udp(&key, b"abcdefgh"),
            _ => echo(&key, b"abcdefgh"),
        };
        for (at, value) in changes {
            let at = 12 + at.index(frame.len() - 12);
            frame[at] = value;
        }
        // Half of them past the header's checksum, or little else would be reached.
        if repaired {
            refresh_ip(&mut frame);
        }
        let len = frame.len();
        frame.truncate(14 + cut.index(len - 13));
        if let Ok(p) = parse(&frame, len) {
            prop_assert!(p.end() <= len);
            prop_assert!(usize::from(p.l4_offset()) + usize::from(p.l4_header_len) <= frame.len().max(34));
            let before = frame.clone();
            let _ = (l4_checksum(&frame, &p, false), p.tcp(&frame), p.icmp_type(&frame), p.payload_len());
            apply(&mut frame, &p, &Rewrite::identity(&p.key), Ttl::Keep, false);
            prop_assert_eq!(frame, before);
        }
    }

    #[test]
    fn incremental_equals_full_udp(from in keys(17), to in keys(17), payload in vec(any::<u8>(), 0..64)) {
        let mut frame = udp(&from, &payload);
        let p = parsed(&frame);
        prop_assert_eq!(p.key, from);
        prop_assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
        apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Decrement, false);
        prop_assert_eq!(testing::verify(&frame), Ok(()));
        let p = parsed(&frame);
        prop_assert_eq!((p.key, p.ttl), (to, 63));
    }

    #[test]
    fn incremental_equals_full_tcp(from in keys(6), to in keys(6), payload in vec(any::<u8>(), 0..64)) {
        let mut frame = tcp(&from, TcpFlags::ACK, &payload);
        let p = parsed(&frame);
        prop_assert_eq!(p.key, from);
        prop_assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
        apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Decrement, false);
        prop_assert_eq!(testing::verify(&frame), Ok(()));
        prop_assert_eq!(parsed(&frame).key, to);
    }

    #[test]
    fn incremental_equals_full_echo(from in keys(1), to in keys(1), payload in vec(any::<u8>(), 0..64)) {
        let mut frame = echo(&from, &payload);
        let p = parsed(&frame);
        prop_assert_eq!(p.key, from);
        prop_assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
        apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Keep, false);
        prop_assert_eq!(testing::verify(&frame), Ok(()));
        prop_assert_eq!((parsed(&frame).key, parsed(&frame).ttl), (to, 64));
    }

    #[test]
    fn a_bad_checksum_stays_exactly_as_bad(from in keys(17), to in keys(17), error in 1u16..0xFFFF) {
        let mut frame = udp(&from, b"payload");
        let good = u16::from_be_bytes([frame[40], frame[41]]);
        let bad = checksum::add(good, error);
        prop_assume!(bad != 0 && checksum::sub(bad, good) != 0xFFFF);
        frame[40..42].copy_from_slice(&bad.to_be_bytes());
        let p = parsed(&frame);
        prop_assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Bad);
        apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Decrement, false);
        prop_assert_eq!(l4_checksum(&frame, &parsed(&frame), false), L4Checksum::Bad);
    }

    #[test]
    fn partial_holds_the_new_pseudo_header(from in keys(6), to in keys(6), payload in vec(any::<u8>(), 0..64)) {
        let mut frame = tcp(&from, TcpFlags::ACK, &payload);
        let p = parsed(&frame);
        let pseudo = checksum::pseudo(from.src(), from.dst(), 6, p.l4_len());
        frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
        apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Decrement, true);
        // The hardware sums from the TCP header on, the field included, and stores the complement.
        let completed = !checksum::sum(&frame[34..]);
        frame[50..52].copy_from_slice(&completed.to_be_bytes());
        prop_assert_eq!(l4_checksum(&frame, &parsed(&frame), false), L4Checksum::Good);
    }

    #[test]
    fn sum_is_the_plain_definition(bytes in vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        let mut plain: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
        while plain > 0xFFFF {
            plain = (plain & 0xFFFF) + (plain >> 16);
        }
        prop_assert_eq!(u32::from(checksum::sum(&bytes)), plain);
        // In two pieces, the second at any offset, over a payload that a packet carries.
        let frame = udp(&FlowKey::new(0x0A00_0001, 0x0A00_0002, 1, 2, 17), &bytes);
        let p = parsed(&frame);
        let l4 = &frame[34..];
        let cut = 8 + cut.index(l4.len() - 7);
        prop_assert_eq!(l4_sum(&p, [&l4[..cut], &l4[cut..]]), Some(0xFFFF));
    }
}

#[test]
fn every_delta_of_a_udp_checksum_avoids_zero() {
    for field in [1u16, 2, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF] {
        for delta in 0..=u16::MAX {
            assert_ne!(checksum::update_udp(field, delta), 0);
        }
    }
    for delta in [0, 1, 0x8000, 0xFFFE, 0xFFFF] {
        assert_eq!(checksum::update_udp(0, delta), 0);
    }
}

#[test]
fn sum_becoming_zero_is_sent_as_all_ones() {
    let from = FlowKey::new(0x0A00_010A, 0xCB00_7109, 40_000, 53, 17);
    let before = udp(&from, b"some question");
    let field = u16::from_be_bytes([before[40], before[41]]);
    // The source port that brings the complement to zero.
    let to = FlowKey::new(from.src(), from.dst(), checksum::add(from.sport(), field), 53, 17);
    let mut frame = before.clone();
    apply(&mut frame, &parsed(&before), &Rewrite::new(&from, &to), Ttl::Keep, false);
    assert_eq!(frame[40..42], [0xFF, 0xFF]);
    assert_eq!(l4_checksum(&frame, &parsed(&frame), false), L4Checksum::Good);
    // And back again.
    let p = parsed(&frame);
    apply(&mut frame, &p, &Rewrite::new(&to, &from), Ttl::Keep, false);
    assert_eq!(frame, before);
}

#[test]
fn udp_without_checksum_keeps_none() {
    let (from, to) =
        (FlowKey::new(0x0A00_010A, 1, 40_000, 53, 17), FlowKey::new(0x0A00_0905, 1, 5000, 53, 17));
    let mut frame = udp(&from, b"x");
    frame[40..42].fill(0);
    let p = parsed(&frame);
    apply(&mut frame, &p, &Rewrite::new(&from, &to), Ttl::Decrement, false);
    assert_eq!(frame[40..42], [0, 0]);
    assert_eq!(l4_checksum(&frame, &parsed(&frame), false), L4Checksum::Good);
}

#[test]
fn identity_changes_nothing_but_the_ttl() {
    for key in [FlowKey::new(0x0A00_010A, 7, 1, 2, 17), FlowKey::new(0x0A00_010A, 7, 1, 2, 6)] {
        let before = if key.proto() == 17 { udp(&key, b"abc") } else { tcp(&key, TcpFlags::SYN, b"") };
        let mut frame = before.clone();
        apply(&mut frame, &parsed(&before), &Rewrite::identity(&key), Ttl::Keep, false);
        assert_eq!(frame, before);
        apply(&mut frame, &parsed(&before), &Rewrite::identity(&key), Ttl::Decrement, false);
        assert_eq!(frame[22], 63);
        frame[22] = 64;
        frame[24..26].copy_from_slice(&before[24..26]);
        assert_eq!(frame, before);
    }
}

#[test]
fn identity_keeps_even_a_wrong_checksum() {
    for key in [
        FlowKey::new(0x0A00_010A, 7, 1, 2, 17),
        FlowKey::new(0x0A00_010A, 7, 1, 2, 6),
        FlowKey::echo_request(0x0A00_010A, 7, 1),
    ] {
        assert_eq!((Rewrite::identity(&key).l3_delta(), Rewrite::identity(&key).l4_delta()), (0, 0));
        let (mut before, field) = match key.proto() {
            17 => (udp(&key, b"abc"), 40),
            6 => (tcp(&key, TcpFlags::SYN, b""), 50),
            _ => (echo(&key, b"abc"), 36),
        };
        for wrong in [[0, 0], [0, 1], [0xFF, 0xFE], [0xFF, 0xFF]] {
            before[field..field + 2].copy_from_slice(&wrong);
            for partial in [false, true] {
                let mut frame = before.clone();
                apply(&mut frame, &parsed(&before), &Rewrite::identity(&key), Ttl::Keep, partial);
                assert_eq!(frame, before);
            }
        }
    }
}

#[test]
fn an_echo_reply_of_zeros_gets_the_checksum_of_zeros() {
    for (from, to) in [(7, 0), (0, 7), (0xFFFF, 0), (0, 0xFFFF)] {
        let reply =
            |id| testing::echo_reply("203.0.113.9", "10.0.9.5", id, 0).payload(&[0; 20]).padding(3).build();
        let mut frame = reply(from);
        let p = parsed(&frame);
        let key = |id| FlowKey::echo_reply(p.key.src(), p.key.dst(), id);
        apply(&mut frame, &p, &Rewrite::new(&key(from), &key(to)), Ttl::Keep, false);
        assert_eq!(l4_checksum(&frame, &parsed(&frame), false), L4Checksum::Good, "{from} to {to}");
        if to == 0 {
            assert_eq!(frame, reply(0));
        }
    }
}

#[test]
fn padding_is_no_part_of_the_packet_and_a_cut_one_is_refused() {
    let key = FlowKey::new(0x0A00_010A, 7, 1, 2, 17);
    let mut frame = udp(&key, b"ab");
    let len = frame.len();
    frame.extend_from_slice(&[0xAA; 17]);
    let p = parsed(&frame);
    assert_eq!((p.end(), p.payload_len()), (len, 2));
    assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
    frame.truncate(len - 1);
    assert_eq!(parse(&frame, frame.len()), Err(Drop::Truncated));
    // The rest may lie in further buffers.
    assert_eq!(parse(&frame, len).map(|p| p.key), Ok(key));
    assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Unknown);
}

#[test]
fn malformed_headers_are_named() {
    let key = FlowKey::new(0x0A00_010A, 7, 1, 2, 17);
    let good = udp(&key, b"abcdefgh");
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let err = |frame: &[u8]| parse(frame, frame.len()).unwrap_err();
    assert_eq!(err(&good[..10]), Drop::Truncated);
    assert_eq!(err(&good[..33]), Drop::Truncated);
    assert_eq!(err(&with(13, 0x06)[..40]), Drop::NotIpv4);
    assert_eq!(err(&with(13, 0x06)[..20]), Drop::NotIpv4);
    assert_eq!(err(&with(14, 0x65)), Drop::BadIpHeader);
    assert_eq!(err(&with(14, 0x44)), Drop::BadIpHeader);
    assert_eq!(err(&with(17, 19)), Drop::BadIpHeader);
    assert_eq!(err(&with(16, 0x40)), Drop::Truncated);
    assert_eq!(err(&with(22, 63)), Drop::BadIpChecksum);
    let mut short_udp = with(39, 7);
    refresh_ip(&mut short_udp);
    assert_eq!(err(&short_udp), Drop::Truncated);
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [239, 255, 255, 255], [255; 4]] {
        let mut frame = good.clone();
        frame[26..30].copy_from_slice(&source);
        refresh_ip(&mut frame);
        assert_eq!(err(&frame), Drop::BadIpHeader, "{source:?}");
    }
}

#[test]
fn tcp_flags_are_those_of_conntrack() {
    let key = FlowKey::new(0x0A00_010A, 7, 1, 2, 6);
    let mut accepted = Vec::new();
    for flags in 0..=255u8 {
        let frame = tcp(&key, flags, b"");
        match parse(&frame, frame.len()) {
            Ok(p) => {
                assert_eq!(p.kind, Kind::Tcp { flags: TcpFlags(flags) });
                accepted.push(flags & 0x37);
            }
            Err(drop) => assert_eq!(drop, Drop::TcpFlags, "{flags:#x}"),
        }
    }
    accepted.sort_unstable();
    accepted.dedup();
    // SYN, RST, ACK, FIN+ACK, SYN+ACK, RST+ACK, and with URG: SYN, ACK, FIN+ACK.
    assert_eq!(accepted, [0x02, 0x04, 0x10, 0x11, 0x12, 0x14, 0x22, 0x30, 0x31]);
}

#[test]
fn fragments_are_told_apart() {
    let key = FlowKey::new(0x0A00_010A, 7, 1, 2, 17);
    let base = udp(&key, &[7; 16]);
    let with = |field: u16| {
        let mut frame = base.clone();
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        refresh_ip(&mut frame);
        frame
    };
    let first = parsed(&with(0x2000));
    assert!(first.is_first_fragment() && first.is_fragment() && first.kind == Kind::Udp && first.key == key);
    let later = parsed(&with(0x2003));
    assert!(later.is_fragment() && !later.is_first_fragment() && later.more_fragments());
    assert_eq!((later.kind, later.fragment_offset()), (Kind::LaterFragment, 24));
    assert_eq!(later.key, FlowKey::new(key.src(), key.dst(), 0, 0, 17));
    let last = parsed(&with(0x0003));
    assert!(last.is_fragment() && !last.more_fragments());
    assert!(!parsed(&with(0x4000)).is_fragment() && parsed(&with(0x4000)).dont_fragment());
    let too_far = with(0x1FFF);
    assert_eq!(parse(&too_far, too_far.len()), Err(Drop::BadIpHeader));
}

/// Writes the IP header's checksum anew, as far as there is a header.
fn refresh_ip(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0x0F) * 4;
    frame[24..26].fill(0);
    if let Some(header) = frame.get(14..end) {
        let sum = !checksum::sum(header);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn sctp_has_ports_and_a_checksum_that_follows_them() {
    let frame = testing::sctp("10.0.1.10:40000", "10.96.0.10:80", 1).payload(&[7; 333]).build();
    let p = testing::read(&frame);
    assert_eq!((p.kind, p.l4_header_len), (Kind::Sctp { chunk: 1 }, 12));
    assert_eq!((p.key.sport(), p.key.dport(), p.key.proto()), (40_000, 80, proto::SCTP));
    assert_eq!(l4_checksum(&frame, &p, false), L4Checksum::Good);
    let bad = testing::sctp("10.0.1.10:40000", "10.96.0.10:80", 1).bad_l4_checksum().build();
    assert_eq!(l4_checksum(&bad, &testing::read(&bad), false), L4Checksum::Bad);
    let none = testing::sctp("10.0.1.10:40000", "10.96.0.10:80", 1).no_l4_checksum().build();
    assert_eq!(l4_checksum(&none, &testing::read(&none), false), L4Checksum::Unknown);
    // Fifteen bytes are no packet with a chunk.
    let short = testing::raw("10.0.1.10", "10.96.0.10", proto::SCTP).payload(&[1; 15]).build();
    assert_eq!(parse(&short, short.len()), Err(Drop::Truncated));

    let to = FlowKey::new(p.key.src(), p.key.dst() ^ 77, 40_000, 8080, proto::SCTP);
    let rewrite = Rewrite::new(&p.key, &to);
    // The payload of a long one may lie in further buffers.
    for seen in [frame.len(), 46] {
        let mut copy = frame.clone();
        apply(&mut copy[..seen], &p, &rewrite, Ttl::Decrement, false);
        assert_eq!(testing::verify(&copy), Ok(()));
        assert_eq!(testing::read(&copy).key, to);
    }
}
