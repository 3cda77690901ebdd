//! G. Other protocols, lengths that disagree, checksums that are wrong or not there yet.

use proptest::prelude::*;
use sluice_engine::counters::Event::{FlowsOpened, PortsTaken};
use sluice_engine::testing::{echo_request, raw, read, show, tcp, udp, verify};
use sluice_engine::{Drop, GsoKind, Verdict};

use crate::check::completed;
use crate::world::*;

#[test]
fn g02_protocols_without_ports() {
    let mut w = World::new();
    for protocol in [2, 4, 41, 47, 50, 51, 132, 255] {
        w.dropped(POD_A, raw(A, X, protocol).payload(&[0; 40]), Drop::UnsupportedProtocol, &[]);
    }
    assert!(w.flows().is_empty());
    // Inside the VPC there is nothing to translate.
    let out = w.pass(POD_A, raw(A, V, 47).payload(&[0; 40]), ENI0, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10>10.0.77.7 proto 47 ttl 63 len 40");
    w.pass(WIRE0, raw(V, A, 47).payload(&[0; 40]), TO_A, &[]);
    assert!(w.flow().replied);
}

#[test]
fn g04_padding_behind_the_packet() {
    for padding in [1, 4, 18, 100] {
        let mut w = World::new();
        let frame = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").padding(padding).build();
        let out = w.pass(POD_A, frame.clone(), ENI0, &[FlowsOpened, PortsTaken]);
        assert_eq!(out.len(), frame.len());
        assert_eq!(verify(&out), Ok(()));
    }
}

#[test]
fn g04_packet_longer_than_its_frame() {
    let mut w = World::new();
    let whole = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&[7; 100]).build();
    for len in [1, 13, 14, 20, 33, 34, 41, 42, 100, whole.len() - 1] {
        w.dropped(POD_A, whole[..len].to_vec(), Drop::Truncated, &[]);
        w.dropped(WIRE0, whole[..len].to_vec(), Drop::Truncated, &[]);
    }
    w.dropped(POD_A, tcp("10.0.1.10:1", "203.0.113.9:80").build()[..53].to_vec(), Drop::Truncated, &[]);
    w.dropped(POD_A, raw(A, X, 6).payload(&[0; 19]), Drop::Truncated, &[]);
    w.dropped(POD_A, raw(A, X, 17).payload(&[0; 7]), Drop::Truncated, &[]);
    w.dropped(POD_A, udp("10.0.1.10:1", "203.0.113.9:80").udp_len(9), Drop::Truncated, &[]);
    w.dropped(POD_A, udp("10.0.1.10:1", "203.0.113.9:80").udp_len(7), Drop::Truncated, &[]);
    assert!(w.flows().is_empty());
}

#[test]
fn g05_bad_ip_checksum_is_dropped_and_never_repaired() {
    let mut w = World::new();
    w.udp_out("10.0.1.10:40000", "203.0.113.9:80");
    w.dropped(POD_A, udp("10.0.1.10:40000", "203.0.113.9:80").bad_ip_checksum(), Drop::BadIpChecksum, &[]);
    w.dropped(
        POD_A,
        tcp("10.0.1.10:1", "10.0.77.7:80").flags("S").bad_ip_checksum(),
        Drop::BadIpChecksum,
        &[],
    );
    assert_eq!(w.flow().forward.packets, 1);
}

#[test]
fn g05_malformed_ip_headers() {
    let mut w = World::new();
    let good = udp("10.0.1.10:40000", "203.0.113.9:80").payload(&[7; 30]).build();
    for (first, reason) in [(0x55, Drop::BadIpHeader), (0x44, Drop::BadIpHeader), (0x40, Drop::BadIpHeader)] {
        let mut bad = good.clone();
        bad[14] = first;
        w.dropped(POD_A, bad, reason, &[]);
    }
    let mut short = good;
    short[16..18].copy_from_slice(&19u16.to_be_bytes());
    w.dropped(POD_A, short, Drop::BadIpHeader, &[]);
    for source in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.1:1", "255.255.255.255:1"] {
        w.dropped(WIRE0, udp(source, "10.0.1.10:2"), Drop::BadIpHeader, &[]);
    }
}

#[test]
fn g06_bad_l4_checksum_stays_bad_and_opens_nothing() {
    let mut w = World::new();
    w.dropped(
        POD_A,
        tcp("10.0.1.10:1", "203.0.113.9:80").flags("S").bad_l4_checksum(),
        Drop::BadL4Checksum,
        &[],
    );
    w.dropped(POD_A, udp("10.0.1.10:1", "203.0.113.9:80").bad_l4_checksum(), Drop::BadL4Checksum, &[]);
    w.dropped(POD_A, echo_request(A, X, 7, 1).bad_l4_checksum(), Drop::BadL4Checksum, &[]);
    w.dropped(POD_A, udp("10.0.1.10:1", "10.0.77.7:80").bad_l4_checksum(), Drop::BadL4Checksum, &[]);
    assert!(w.flows().is_empty());
    // In a flow: translated, and still bad. The world checks that it verifies after exactly when it did before.
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:80");
    let out = w.pass(POD_A, udp("10.0.1.10:40000", "203.0.113.9:80").bad_l4_checksum(), ENI0, &[]);
    assert!(verify(&out).is_err());
    let reply = udp("203.0.113.9:80", &format!("10.0.9.5:{port}")).bad_l4_checksum();
    assert!(verify(&w.pass(WIRE0, reply, TO_A, &[])).is_err());
}

#[test]
fn g07_not_ipv4_from_a_pod() {
    let mut w = World::new();
    let plain = udp("10.0.1.10:40000", "203.0.113.9:80").build();
    let tagged = [&plain[..12], &[0x81, 0x00, 0x00, 0x05], &plain[12..]].concat();
    w.dropped(POD_A, tagged, Drop::NotIpv4, &[]);
    for ethertype in [0x86DD_u16, 0x0806, 0x88A8, 0x8847, 0x0100] {
        let mut frame = plain.clone();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        w.dropped(POD_A, frame, Drop::NotIpv4, &[]);
    }
}

#[test]
fn g09_partial_checksums_stay_partial_and_come_out_right() {
    let mut w = World::new();
    for size in [0, 1, 2, 1399, 1400] {
        let payload = vec![0x5A; size];
        for (port, expected) in
            [(2000 + size as u16, &[FlowsOpened, PortsTaken][..]), (2000 + size as u16, &[])]
        {
            let datagram = udp(&format!("10.0.1.10:{port}"), "203.0.113.9:53").payload(&payload);
            let (out, offload) = w.pass_offloaded(POD_A, datagram.build_partial(), ENI0, expected);
            assert!(offload.partial);
            // That it verifies once completed, and differs in addresses and ports alone, is checked for every packet.
            assert_eq!(read(&out).key.src(), address(N));
        }
        let syn = tcp(&format!("10.0.1.10:{}", 2000 + size), "203.0.113.9:80").flags("S").payload(&payload);
        w.pass(POD_A, syn.build_partial(), ENI0, &[FlowsOpened, PortsTaken]);
    }
    // Between pods it stays as it is.
    let (frame, offload) = udp("10.0.1.10:1", "10.0.1.11:2").payload(b"x").build_partial();
    let (out, left) = w.pass_offloaded(POD_A, (frame.clone(), offload), TO_B, &[FlowsOpened]);
    assert_eq!((left, &out[40..42]), (offload, &frame[40..42]));
}

#[test]
fn g09_super_packets_keep_their_cut() {
    let mut w = World::new();
    let from = "10.0.1.10:40000";
    w.pass(POD_A, tcp(from, "203.0.113.9:80").flags("S").build_partial(), ENI0, &[FlowsOpened, PortsTaken]);
    let (frame, mut offload) = tcp(from, "203.0.113.9:80").flags("PA").payload(&[1; 60_000]).build_partial();
    offload.gso = GsoKind::Tcp4;
    offload.gso_size = 1448;
    let (_, left) = w.pass_offloaded(POD_A, (frame.clone(), offload), ENI0, &[]);
    assert_eq!(left, offload);
    // Pieces that the way out does not carry are not cut anew: its sender is told.
    offload.gso_size = 8000;
    let error = w.told(POD_A, (frame, offload), Drop::FragNeeded, TO_A, &[]);
    assert_eq!(error[38..42], [0, 0, 5, 220]);
    assert!(error.len() <= 14 + 576);
    let (frame, mut offload) = udp(from, "203.0.113.9:53").payload(&[1; 30_000]).build_partial();
    offload.gso = GsoKind::Udp4;
    offload.gso_size = 1400;
    let (_, left) = w.pass_offloaded(POD_A, (frame, offload), ENI0, &[FlowsOpened, PortsTaken]);
    assert_eq!(left, offload);
}

#[test]
fn g11_ip_options_are_kept() {
    let mut w = World::new();
    for options in [&[7, 7, 4, 0, 0, 0, 0, 0][..], &[148, 4, 0, 0], &[1; 40]] {
        let frame = udp("10.0.1.10:40000", "203.0.113.9:53").payload(b"x").ip_options(options);
        let mut step = w.step(vec![(POD_A, frame.clone().into())]);
        let out = step.only();
        assert_eq!(out.verdict, ENI0);
        assert_eq!(out.frame[34..34 + options.len()], *options);
        assert_eq!(verify(&out.frame), Ok(()));
    }
}

#[test]
fn g11_source_routes_are_refused() {
    let mut w = World::new();
    for options in
        [&[131, 7, 4, 10, 0, 9, 5, 0][..], &[1, 137, 7, 4, 10, 0, 9, 5], &[7, 3, 4, 131, 3, 4, 0, 0]]
    {
        w.dropped(POD_A, udp("10.0.1.10:1", "203.0.113.9:2").ip_options(options), Drop::SourceRoute, &[]);
        w.dropped(WIRE0, udp("203.0.113.9:1", "10.0.1.10:2").ip_options(options), Drop::SourceRoute, &[]);
    }
    // The same bytes inside another option, and behind the end.
    for options in [&[7, 7, 131, 137, 131, 137, 131, 0][..], &[0, 131, 3, 4]] {
        let mut step = w.step(vec![(POD_A, udp("10.0.1.10:1", "203.0.113.9:2").ip_options(options).into())]);
        assert_eq!(step.only().verdict, ENI0);
    }
}

#[test]
fn g12_unknown_interfaces() {
    let mut w = World::new();
    for ifindex in [0, 1, 4, 99, u32::MAX] {
        let frame = udp("10.0.1.10:1", "203.0.113.9:2");
        w.dropped(sluice_engine::Ingress::Pod(ifindex), frame.clone(), Drop::UnknownInterface, &[]);
        w.dropped(sluice_engine::Ingress::Eni(ifindex), frame.clone(), Drop::UnknownInterface, &[]);
    }
    // A pod's index as an ENI's and the other way round.
    w.dropped(
        sluice_engine::Ingress::Eni(10),
        udp("10.0.1.10:1", "203.0.113.9:2"),
        Drop::UnknownInterface,
        &[],
    );
    w.dropped(
        sluice_engine::Ingress::Pod(2),
        udp("10.0.1.10:1", "203.0.113.9:2"),
        Drop::UnknownInterface,
        &[],
    );
    w.dropped(WIRE0, udp("203.0.113.9:1", "10.0.200.1:2"), Drop::NotOurs, &[]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn g10_incremental_is_full(
        is_tcp: bool,
        sport: u16,
        dport in 1u16..,
        to in prop_oneof![Just([203u8, 0, 113, 9]), any::<[u8; 4]>()],
        ttl in 2u8..,
        tos: u8,
        id: u16,
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        options in proptest::collection::vec(any::<u8>(), 0..=40),
        partial: bool,
    ) {
        let to = format!("{}.{}.{}.{}:{dport}", to[0], to[1], to[2], to[3]);
        let from = format!("10.0.1.10:{sport}");
        let builder = if is_tcp { tcp(&from, &to).flags("S").tcp_options(&options) } else { udp(&from, &to) };
        let builder = builder.ttl(ttl).tos(tos).id(id).payload(&payload);
        let input: Input = if partial { builder.build_partial().into() } else { builder.into() };
        let mut w = World::new();
        let out = w.step(vec![(POD_A, input.clone())]).only();
        if matches!(out.verdict, Verdict::Eni { .. }) {
            let right = completed(&Input { frame: out.frame.clone(), offload: out.offload });
            prop_assert_eq!(verify(&right), Ok(()));
            let port = read(&out.frame).key.sport();
            let reply = if is_tcp { tcp(&to, &format!("10.0.9.5:{port}")) } else { udp(&to, &format!("10.0.9.5:{port}")) };
            if read(&out.frame).key.src() == address(N) {
                let back = w.step(vec![(WIRE0, reply.ttl(ttl).tos(tos).payload(&payload).into())]).only();
                if read(&out.frame).key.dst() >> 24 != 0 && back.verdict == TO_A {
                    prop_assert_eq!(verify(&back.frame), Ok(()));
                    prop_assert_eq!(read(&back.frame).key.dport(), sport);
                }
            }
        }
    }
}
