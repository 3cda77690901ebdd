//! ICMP errors: those of others translated (cases E3 to E12), and our own.

use super::icmp::{quoted, translate};
use super::*;
use crate::flow::FlowKey;
use crate::frame::{GsoKind, Offload};
use crate::testing::{echo_request, fragments, icmp, icmp_error, raw, read, sctp, show, tcp, udp, verify};
use crate::verdict::Drop;
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const A: &str = "10.0.1.10";
const N: &str = "10.0.9.5";
const X: &str = "203.0.113.9";
const Y: &str = "198.51.100.7";

fn bits(ip: &str) -> u32 {
    ip.parse::<Ipv4Addr>().unwrap().to_bits()
}

fn key(src: &str, sport: u16, dst: &str, dport: u16, protocol: u8) -> FlowKey {
    FlowKey::new(bits(src), bits(dst), sport, dport, protocol)
}

/// Translates `error` by the rewrite that turns its own direction `from` into `to`.
fn translated(error: &[u8], from: FlowKey, to: FlowKey) -> Vec<u8> {
    let mut frame = error.to_vec();
    let p = read(error);
    let q = quoted(error, &p).unwrap();
    assert_eq!(q.key.reversed(), from);
    translate(&mut frame, &p, &q, &Rewrite::new(&from, &to), Ttl::Decrement);
    frame
}

/// The flow A:40000>X:53, seen outside as N:5000>X:53, in the direction of its replies.
fn reply(protocol: u8) -> (FlowKey, FlowKey) {
    // Who answers an ICMP query has no port.
    let port = if protocol == 1 { 0 } else { 53 };
    (key(X, port, N, 5000, protocol), key(X, port, A, 40_000, protocol))
}

#[test]
fn an_error_from_the_way_reaches_the_pod() {
    for len in [28, 32, 36, 38, 40, 60, 548] {
        let sent = udp("10.0.9.5:5000", "203.0.113.9:53").payload(&[9; 700]).ttl(1).build();
        let got = translated(&icmp_error(3, 3, Y, N, &sent).quote(len).build(), reply(17).0, reply(17).1);
        let original = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[9; 700]).ttl(1).build();
        assert_eq!(got, icmp_error(3, 3, Y, A, &original).quote(len).ttl(63).build(), "quote of {len}");

        let sent = tcp("10.0.9.5:5000", "203.0.113.9:53").payload(&[9; 700]).build();
        let got =
            translated(&icmp_error(3, 4, Y, N, &sent).mtu(1400).quote(len).build(), reply(6).0, reply(6).1);
        let original = tcp("10.0.1.10:40000", "203.0.113.9:53").payload(&[9; 700]).build();
        let expected = icmp_error(3, 4, Y, A, &original).mtu(1400).quote(len).ttl(63).build();
        assert_eq!(got, expected, "quote of {len}");
        assert_eq!(got[38..42], [0, 0, 0x05, 0x78]);

        let sent = echo_request(N, X, 5000, 3).payload(&[9; 700]).build();
        let got = translated(&icmp_error(11, 0, Y, N, &sent).quote(len).build(), reply(1).0, reply(1).1);
        let original = echo_request(A, X, 40_000, 3).payload(&[9; 700]).build();
        assert_eq!(got, icmp_error(11, 0, Y, A, &original).quote(len).ttl(63).build(), "quote of {len}");
    }
}

#[test]
fn an_error_from_the_pod_hides_it() {
    // A says port unreachable about a reply X:53>A:40000.
    let received = udp("203.0.113.9:53", "10.0.1.10:40000").payload(b"late").build();
    let got = translated(
        &icmp_error(3, 3, A, X, &received).build(),
        key(A, 40_000, X, 53, 17),
        key(N, 5000, X, 53, 17),
    );
    let seen = udp("203.0.113.9:53", "10.0.9.5:5000").payload(b"late").build();
    assert_eq!(got, icmp_error(3, 3, N, X, &seen).ttl(63).build());
}

#[test]
fn the_quotation_without_udp_checksum_keeps_none() {
    let sent = udp("10.0.9.5:5000", "203.0.113.9:53").no_l4_checksum().build();
    let got = translated(&icmp_error(3, 3, X, N, &sent).build(), reply(17).0, reply(17).1);
    let original = udp("10.0.1.10:40000", "203.0.113.9:53").no_l4_checksum().build();
    assert_eq!(got, icmp_error(3, 3, X, A, &original).ttl(63).build());
}

#[test]
fn every_quoted_header_length_is_read() {
    for words in 0..=10 {
        let sent = udp("10.0.9.5:5000", "203.0.113.9:53").ip_options(&vec![1; words * 4]).build();
        let error = icmp_error(3, 3, Y, N, &sent).ip_options(&vec![1; (10 - words) * 4]).build();
        let got = translated(&error, reply(17).0, reply(17).1);
        let original = udp("10.0.1.10:40000", "203.0.113.9:53").ip_options(&vec![1; words * 4]).build();
        let expected =
            icmp_error(3, 3, Y, A, &original).ip_options(&vec![1; (10 - words) * 4]).ttl(63).build();
        assert_eq!(got, expected);
    }
}

#[test]
fn extensions_stay() {
    // RFC 4884: the datagram padded to 128 bytes, its length in words, then the extension.
    let sent = tcp("10.0.9.5:5000", "203.0.113.9:53").build();
    let mut message = sent[14..].to_vec();
    message.resize(128, 0);
    message.extend_from_slice(&[0x20, 0, 0xBE, 0xEF, 0, 8, 1, 1, 1, 2, 3, 4]);
    let error = icmp(Y, N, 11, 0, 32 << 16).payload(&message).build();
    let got = translated(&error, reply(6).0, reply(6).1);
    assert_eq!(verify(&got), Ok(()));
    assert_eq!(got[14 + 28 + 40..], error[14 + 28 + 40..]);
    let inner = tcp("10.0.1.10:40000", "203.0.113.9:53").build();
    assert_eq!(got[14 + 28..14 + 28 + 40], inner[14..]);
}

#[test]
fn what_cannot_be_placed_is_named() {
    let sent = udp("10.0.9.5:5000", "203.0.113.9:53").payload(&[1; 64]).build();
    let fail = |frame: &[u8]| quoted(frame, &read(frame)).unwrap_err();
    for len in 0..28 {
        assert_eq!(fail(&icmp_error(3, 3, Y, N, &sent).quote(len).build()), Drop::IcmpQuote);
    }
    let error = icmp_error(3, 3, Y, N, &sent).build();
    for kind in [3, 4, 5, 11, 12] {
        let nested = icmp_error(kind, 0, Y, N, &icmp_error(3, 3, N, X, &sent).build()).build();
        assert_eq!(fail(&nested), Drop::IcmpNested);
        let about_error =
            icmp_error(3, 3, Y, N, &icmp(N, X, kind, 0, 0).payload(&sent[14..]).build()).build();
        assert_eq!(fail(&about_error), Drop::IcmpNested);
    }
    // Quoting a packet that the receiver did not send.
    let others = udp("10.0.9.6:5000", "203.0.113.9:53").build();
    assert_eq!(fail(&icmp_error(3, 3, Y, N, &others).build()), Drop::IcmpQuote);
    let pieces = fragments(&sent, 24);
    assert_eq!(fail(&icmp_error(3, 3, Y, N, &pieces[1]).build()), Drop::IcmpQuote);
    assert!(quoted(&error, &read(&error)).is_ok());
    assert!(quoted(&icmp_error(3, 3, Y, N, &pieces[0]).build(), &read(&error)).is_ok());
    let timestamp = icmp_error(11, 0, Y, N, &icmp(N, X, 13, 0, 0).payload(&[0; 12]).build()).build();
    assert_eq!(fail(&timestamp), Drop::IcmpUnknownFlow);
    for first in [0x65, 0x44] {
        let mut bad = sent.clone();
        bad[14] = first;
        let error = icmp(Y, N, 3, 3, 0).payload(&bad[14..]).build();
        assert_eq!(fail(&error), Drop::IcmpQuote);
    }
}

#[test]
fn reports_quote_the_packet_and_go_back() {
    for payload in [0, 8, 519, 520, 521, 1400] {
        let packet =
            udp("10.0.1.10:40000", "203.0.113.9:53").payload(&vec![7; payload]).ttl(1).padding(6).build();
        let mut frame = packet.clone();
        assert!(report(&mut frame, &read(&packet), &Offload::default(), Report::TimeExceeded, bits(N)));
        assert_eq!(verify(&frame), Ok(()));
        let quote = (28 + payload).min(548);
        assert_eq!(show(&frame), format!("10.0.9.5>10.0.1.10 icmp 11/0 ttl 64 len {quote}"));
        assert_eq!(frame[42..], packet[14..14 + quote]);
        assert_eq!((&frame[0..6], &frame[6..12]), (&packet[6..12], &packet[0..6]));
        let q = quoted(&frame, &read(&frame)).unwrap();
        assert_eq!(q.key, read(&packet).key);
    }
    let packet = tcp("10.0.1.10:40000", "203.0.113.9:80").payload(&[7; 1460]).dont_fragment().build();
    let mut frame = packet.clone();
    assert!(report(
        &mut frame,
        &read(&packet),
        &Offload::default(),
        Report::FragNeeded { mtu: 1400 },
        bits(N)
    ));
    assert_eq!(show(&frame), "10.0.9.5>10.0.1.10 icmp 3/4 ttl 64 len 548");
    assert_eq!(frame[38..42], [0, 0, 0x05, 0x78]);
    let mut frame = packet.clone();
    assert!(report(
        &mut frame,
        &read(&packet),
        &Offload::default(),
        Report::Unreachable { code: 13 },
        bits(N)
    ));
    assert_eq!(show(&frame), "10.0.9.5>10.0.1.10 icmp 3/13 ttl 64 len 548");
    assert_eq!(verify(&frame), Ok(()));
}

#[test]
fn nothing_is_said_about_what_must_not_be_answered() {
    let sent = udp("10.0.9.5:5000", "203.0.113.9:53").payload(&[0; 64]).build();
    let silent = [
        icmp_error(3, 3, A, X, &sent).build(),
        icmp_error(5, 0, A, X, &sent).build(),
        icmp(A, X, 42, 0, 0).build(),
        udp("10.0.1.10:5", "224.0.0.251:5353").build(),
        udp("10.0.1.10:5", "255.255.255.255:67").build(),
        fragments(&sent, 24).remove(1),
        udp("10.0.1.10:5", "10.0.0.255:5").macs([0xFF; 6], [2; 6]).build(),
    ];
    for packet in silent {
        let mut frame = packet.clone();
        assert!(!report(&mut frame, &read(&packet), &Offload::default(), Report::TimeExceeded, bits(N)));
        assert_eq!(frame, packet, "{}", show(&packet));
    }
    let answered = [
        sent.clone(),
        fragments(&sent, 24).remove(0),
        echo_request(A, X, 1, 1).build(),
        icmp(A, X, 13, 0, 0).build(),
        raw(A, X, 47).payload(&[0; 20]).build(),
    ];
    for packet in answered {
        let mut frame = packet.clone();
        assert!(report(&mut frame, &read(&packet), &Offload::default(), Report::TimeExceeded, bits(N)));
        assert_eq!(verify(&frame), Ok(()));
    }
}

#[test]
fn a_super_packet_is_quoted_as_its_first_segment() {
    let payload = vec![5; 30_000];
    let (packet, offload) =
        tcp("10.0.1.10:40000", "203.0.113.9:80").flags("FPA").payload(&payload).build_partial();
    let offload = Offload { gso: GsoKind::Tcp4, gso_size: 400, ..offload };
    let mut frame = packet.clone();
    assert!(report(&mut frame, &read(&packet), &offload, Report::FragNeeded { mtu: 430 }, bits(N)));
    let mut first = tcp("10.0.1.10:40000", "203.0.113.9:80").flag_bits(0x10).payload(&payload[..400]).build();
    assert_eq!(frame[42..], first[14..]);

    let (packet, offload) = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&payload).build_partial();
    let offload = Offload { gso: GsoKind::Udp4, gso_size: 400, ..offload };
    let mut frame = packet.clone();
    assert!(report(&mut frame, &read(&packet), &offload, Report::TimeExceeded, bits(N)));
    first = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&payload[..400]).build();
    assert_eq!(frame[42..], first[14..]);

    let (packet, offload) = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&[1; 900]).build_partial();
    let mut frame = packet.clone();
    assert!(report(&mut frame, &read(&packet), &offload, Report::TimeExceeded, bits(N)));
    let full = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&[1; 900]).build();
    assert_eq!(frame[42..], full[14..14 + 548]);
}

proptest! {
    #[test]
    fn any_quotation_is_translated_or_refused(
        quotation in vec(any::<u8>(), 0..80),
        first in prop::sample::select(&[0x45u8, 0x46, 0x4F, 0x40][..]),
        protocol in prop::sample::select(&[1u8, 6, 17, 47, 132][..]),
        values: (u32, u32, u16, u16),
        code: u8,
    ) {
        let mut quotation = quotation;
        if quotation.len() >= 20 {
            quotation[0] = first;
            quotation[6..8].fill(0);
            quotation[9] = protocol;
            quotation[12..16].copy_from_slice(&bits(N).to_be_bytes());
        }
        let error = icmp(Y, N, 3, code, 0).payload(&quotation).build();
        let p = read(&error);
        if let Ok(q) = quoted(&error, &p) {
            let from = q.key.reversed();
            let (sport, dport) = match protocol {
                // Who answers has no port.
                1 if from.sport() == 0 => (0, values.2),
                1 => (values.2, 0),
                6 | 17 | 132 => (values.2, values.3),
                _ => (0, 0),
            };
            let to = FlowKey::new(values.0, values.1, sport, dport, protocol);
            let mut frame = error.clone();
            translate(&mut frame, &p, &q, &Rewrite::new(&from, &to), Ttl::Keep);
            let sum = checksum::sum(&frame[14..34]);
            prop_assert_eq!(sum, 0xFFFF);
            prop_assert_eq!(checksum::sum(&frame[34..]), 0xFFFF);
            prop_assert_eq!(frame.len(), error.len());
            if usable_source(values.0) {
                let again = quoted(&frame, &read(&frame)).unwrap();
                prop_assert_eq!(again.key.reversed(), to);
            }
        }
    }
}

#[test]
fn a_quoted_sctp_packet_is_translated_with_its_checksum_where_it_is_quoted() {
    for len in [28, 32, 36, 548] {
        let sent = sctp("10.0.9.5:5000", "203.0.113.9:53", 0).payload(&[9; 700]).build();
        let got = translated(&icmp_error(3, 2, Y, N, &sent).quote(len).build(), reply(132).0, reply(132).1);
        let original = sctp("10.0.1.10:40000", "203.0.113.9:53", 0).payload(&[9; 700]).build();
        assert_eq!(got, icmp_error(3, 2, Y, A, &original).quote(len).ttl(63).build(), "quote of {len}");
    }
}
