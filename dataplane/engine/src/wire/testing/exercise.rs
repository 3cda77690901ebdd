//! One function that does to arbitrary bytes all that the packet path does to frames, and says what must hold. A fuzzer and
//! a property test call it.

use crate::flow::FlowKey;
use crate::frag::{FragTable, Later, Limits, owner};
use crate::frame::{GsoKind, Offload};
use crate::wire::{
    ETHERNET_LEN, Kind, L4Checksum, Parsed, Report, Rewrite, Ttl, apply, checksum, clamp_mss, icmp,
    l4_checksum, may_report, parse, report, set_ethernet, set_ip_id, tcp_options,
};

/// Takes `data` for a frame that may go on in further buffers, and asserts what holds for every frame: nothing panics,
/// nothing outside the packet is changed, IP checksums stay right, a rewrite gives the key that it should.
///
/// The first two bytes steer: whether the IP header's checksum is put right first (little would be reached otherwise), how
/// much longer the whole frame is, whether it is a super-packet.
pub fn exercise_frame(data: &[u8]) {
    let Some((&[steer, extra], frame)) = data.split_first_chunk::<2>() else { return };
    let mut frame = frame.to_vec();
    if steer & 1 != 0 {
        put_right(&mut frame);
    }
    let whole = frame.len() + usize::from(extra) * 16;
    let Ok(parsed) = parse(&frame, whole) else { return };
    let headers = usize::from(parsed.l4_offset()) + usize::from(parsed.l4_header_len);
    assert!(headers <= frame.len() || parsed.kind == Kind::LaterFragment);
    assert!(headers <= parsed.end() && parsed.end() <= whole);
    assert_eq!(parsed.l4_len(), u16::from(parsed.l4_header_len) + parsed.payload_len());
    assert_eq!(parsed.tcp(&frame).is_some(), matches!(parsed.kind, Kind::Tcp { .. }));
    let _ = (l4_checksum(&frame, &parsed, false), tcp_options(&frame, &parsed));
    assert_eq!(parse(&frame, whole), Ok(parsed), "reading is repeatable");

    rewriting(&frame, whole, &parsed);
    quoting(&frame, &parsed);
    reporting(&frame, &parsed, steer);
}

/// Takes `data` for a sequence of fragments of few datagrams in any order, and asserts that every one is accounted for.
pub fn exercise_fragments(data: &[u8]) {
    let limits = Limits { held: 6, datagrams: 9, timeout: 40 };
    let mut table: FragTable<usize, u8> = FragTable::new(limits, 7);
    let (mut now, mut arrived, mut left) = (0, 0, 0);
    for &[id, field_high, field_low, len] in data.as_chunks::<4>().0 {
        now += u64::from(id >> 4);
        let payload = vec![0; usize::from(len)];
        let fragment = u16::from_be_bytes([field_high & 0x20, field_low]);
        let frame = super::udp("10.0.1.10:1", "10.0.1.11:2")
            .id(u16::from(id & 7))
            .fragment_field(fragment)
            .payload(&payload)
            .build();
        let Ok(parsed) = parse(&frame, frame.len()) else { continue };
        if !parsed.is_fragment() {
            continue;
        }
        assert!(owner(&parsed, now, 3) < 3);
        arrived += 1;
        left += table.expire(now).count();
        if parsed.is_first_fragment() {
            left += 1;
            if table.first(now, 1, &parsed, id).is_ok() {
                left += std::iter::from_fn(|| table.release(1, &parsed)).count();
            }
        } else if !matches!(table.later(now, 1, &parsed, arrived), Later::Held) {
            left += 1;
        }
        assert_eq!(arrived, left + table.held() as usize);
        assert!(table.held() <= limits.held && table.datagrams() <= limits.datagrams);
    }
    left += table.drain().count();
    assert_eq!((arrived, table.datagrams()), (left, 0));
}

fn rewriting(frame: &[u8], whole: usize, parsed: &Parsed) {
    let key = parsed.key;
    let identity = Rewrite::identity(&key);
    let mut copy = frame.to_vec();
    apply(&mut copy, parsed, &identity, Ttl::Keep, false);
    apply(&mut copy, parsed, &identity, Ttl::Keep, true);
    assert_eq!(copy, frame, "no change is no change");

    let (sport, dport) = match parsed.kind {
        Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } => (key.dport() ^ 0x0F0F, key.sport()),
        Kind::IcmpQuery { reply: false } => (!key.sport(), 0),
        Kind::IcmpQuery { reply: true } => (0, !key.dport()),
        _ => (0, 0),
    };
    let to = FlowKey::new(0x0A00_0905, key.src(), sport, dport, key.proto());
    let before = l4_checksum(frame, parsed, false);
    // What has no hop left is never forwarded.
    let (hop, ttl) = if parsed.ttl > 1 { (Ttl::Decrement, parsed.ttl - 1) } else { (Ttl::Keep, parsed.ttl) };
    apply(&mut copy, parsed, &Rewrite::new(&key, &to), hop, false);
    set_ip_id(&mut copy, !parsed.id);
    set_ethernet(&mut copy, [1; 6], [2; 6]);
    let again = parse(&copy, whole).expect("a rewritten packet is as good as it was");
    assert_eq!((again.key, again.id, again.ttl), (to, !parsed.id, ttl));
    // An echo reply of zeros throughout is wrong with a checksum of zero too, and only there a zero is not a zero.
    let null = matches!(parsed.kind, Kind::IcmpQuery { reply: true })
        && before == L4Checksum::Bad
        && key.sport() == 0;
    if !null {
        assert_eq!(l4_checksum(&copy, &again, false), before, "right stays right and wrong stays wrong");
    }
    assert_eq!(copy[headers_end(parsed, frame)..], frame[headers_end(parsed, frame)..]);

    let before = tcp_options(&copy, &again).mss;
    let checked = l4_checksum(&copy, &again, false);
    clamp_mss(&mut copy, &again, 1000, false);
    assert_eq!(l4_checksum(&copy, &again, false), checked);
    if again.tcp_flags().is_some_and(crate::wire::TcpFlags::syn) {
        assert_eq!(tcp_options(&copy, &again).mss, before.map(|mss| mss.min(1000)));
    }
}

fn quoting(frame: &[u8], parsed: &Parsed) {
    if parsed.kind != Kind::IcmpError {
        return;
    }
    let Ok(quoted) = icmp::quoted(frame, parsed) else { return };
    let from = quoted.key.reversed();
    let to = FlowKey::new(from.src(), 0x0A00_010A, from.sport(), from.dport(), from.proto());
    let mut copy = frame.to_vec();
    icmp::translate(&mut copy, parsed, &quoted, &Rewrite::new(&from, &to), Ttl::Keep);
    let again = parse(&copy, parsed.end()).expect("a translated error is as good as it was");
    assert_eq!(again.key.dst(), to.dst());
    assert_eq!(icmp::quoted(&copy, &again).map(|q| q.key.reversed()), Ok(to));
    assert_eq!(l4_checksum(&copy, &again, false), l4_checksum(frame, parsed, false));
}

fn reporting(frame: &[u8], parsed: &Parsed, steer: u8) {
    let offload = Offload {
        partial: steer & 2 != 0,
        gso: [GsoKind::None, GsoKind::Tcp4, GsoKind::Udp4, GsoKind::None][usize::from(steer >> 2 & 3)],
        gso_size: u16::from(steer) * 8,
        ..Offload::default()
    };
    let mut copy = frame.to_vec();
    let may = may_report(frame, parsed);
    let done = report(&mut copy, parsed, &offload, Report::FragNeeded { mtu: 1400 }, 0x0A00_0905);
    assert_eq!(may, done);
    if !done {
        assert_eq!(copy, frame);
        return;
    }
    assert!(copy.len() <= ETHERNET_LEN + 576);
    let said = parse(&copy, copy.len()).expect("our own reports are well-formed");
    assert_eq!((said.kind, said.key.dst()), (Kind::IcmpError, parsed.key.src()));
    assert_eq!(checksum::sum(&copy[34..]), 0xFFFF);
}

fn headers_end(parsed: &Parsed, frame: &[u8]) -> usize {
    match parsed.kind {
        Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } | Kind::IcmpQuery { .. } => {
            usize::from(parsed.l4_offset()) + usize::from(parsed.l4_header_len)
        }
        _ => usize::from(parsed.l4_offset()).min(frame.len()),
    }
}

/// Makes an IPv4 frame of it, and its header's checksum right.
fn put_right(frame: &mut [u8]) {
    if frame.len() < ETHERNET_LEN + 20 {
        return;
    }
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let end = (ETHERNET_LEN + usize::from(frame[14] & 0x0F) * 4).min(frame.len());
    frame[24..26].fill(0);
    if end > ETHERNET_LEN + 12 {
        let sum = !checksum::sum(&frame[ETHERNET_LEN..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}
