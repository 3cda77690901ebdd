//! E. ICMP: echo, errors both ways, and what is neither.

use sluice_engine::counters::Event::{FlowsOpened, Generated, PortsTaken};
use sluice_engine::testing::{echo_reply, echo_request, icmp, icmp_error, read, show, tcp, udp};
use sluice_engine::{Drop, Verdict};

use crate::world::*;

/// The packet that an ICMP error quotes, put behind an Ethernet header so that it can be read.
fn quotation(frame: &[u8]) -> Vec<u8> {
    let l4 = usize::from(read(frame).l4_offset());
    [&[0; 12], &[8, 0][..], &frame[l4 + 8..read(frame).end()]].concat()
}

/// Addresses and ports of a quoted packet, of which only eight bytes of L4 may be there.
fn quoted(frame: &[u8]) -> (u32, u32, u16, u16) {
    let packet = &quotation(frame)[14..];
    let l4 = &packet[usize::from(packet[0] & 15) * 4..];
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    let half = |at: usize| u16::from_be_bytes(l4[at..at + 2].try_into().unwrap());
    (word(12), word(16), half(0), half(2))
}

/// A world with a translated UDP flow of A to X, port 53, and the port that it got.
fn translated() -> (World, u16) {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    (w, port)
}

fn sent(port: u16) -> Vec<u8> {
    udp(&format!("10.0.9.5:{port}"), "203.0.113.9:53").payload(b"query").ttl(60).build()
}

#[test]
fn e01_echo() {
    let mut w = World::new();
    let out = w.pass(POD_A, echo_request(A, X, 7, 1), ENI0, &[FlowsOpened, PortsTaken]);
    let id = read(&out).key.sport();
    assert_ne!(id, 7, "7 is not of the set");
    assert!(w.snapshot.ports[2].set.contains(id));
    assert_eq!(show(&out), format!("10.0.9.5>203.0.113.9 icmp echo request id {id} ttl 63 len 16"));
    let back = w.pass(WIRE0, echo_reply(X, N, id, 1), TO_A, &[]);
    assert_eq!(show(&back), "203.0.113.9>10.0.1.10 icmp echo reply id 7 ttl 63 len 16");
    w.pass(POD_A, echo_request(A, X, 7, 2), ENI0, &[]);
    assert_eq!((w.flow().forward.packets, w.flow().reply.packets), (2, 1));
}

#[test]
fn e02_the_trailer_of_a_reply_is_no_part_of_its_checksum() {
    for trailer in [1, 2, 18, 33] {
        let mut w = World::new();
        let out = w.pass(POD_A, echo_request(A, X, 7, 1), ENI0, &[FlowsOpened, PortsTaken]);
        let reply = echo_reply(X, N, read(&out).key.sport(), 1).padding(trailer);
        let back = w.pass(WIRE0, reply, TO_A, &[]);
        assert_eq!(read(&back).key.dport(), 7);
    }
}

#[test]
fn e03_error_about_a_translated_datagram() {
    let (mut w, port) = translated();
    for (kind, code) in [(3, 0), (3, 1), (3, 3), (3, 13), (11, 0), (11, 1), (12, 0)] {
        let error = icmp_error(kind, code, Y, N, &sent(port)).quote(1000);
        let back = w.pass(WIRE0, error, TO_A, &[]);
        assert_eq!(show(&back), format!("198.51.100.7>10.0.1.10 icmp {kind}/{code} ttl 63 len 33"));
        assert_eq!(quoted(&back), (address(A), address(X), 40_000, 53));
        // All of the datagram is quoted, so that its own checksum can be checked, too.
        assert_eq!(sluice_engine::testing::verify(&quotation(&back)), Ok(()));
    }
    assert_eq!(w.flow().reply.packets, 0);
}

#[test]
fn e03_error_about_translated_tcp_and_echo() {
    let mut w = World::new();
    let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S");
    let out = w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken]);
    let back = w.pass(WIRE0, icmp_error(3, 1, Y, N, &out), TO_A, &[]);
    assert_eq!(quoted(&back), (address(A), address(X), 40_000, 80));
    let out = w.pass(POD_A, echo_request(A, X, 7, 1), ENI0, &[FlowsOpened, PortsTaken]);
    let back = w.pass(WIRE0, icmp_error(11, 0, Y, N, &out).quote(1000), TO_A, &[]);
    assert_eq!(show(&quotation(&back)), "10.0.1.10>203.0.113.9 icmp echo request id 7 ttl 63 len 16");
    assert_eq!(sluice_engine::testing::verify(&quotation(&back)), Ok(()));
}

#[test]
fn e05_frag_needed_keeps_its_mtu() {
    let (mut w, port) = translated();
    let back = w.pass(WIRE0, icmp_error(3, 4, Y, N, &sent(port)).mtu(1400), TO_A, &[]);
    assert_eq!(back[38..42], [0, 0, 5, 120], "1400");
    assert_eq!(quoted(&back), (address(A), address(X), 40_000, 53));
}

#[test]
fn e03_a_redirect_is_not_translated() {
    let (mut w, port) = translated();
    w.dropped(WIRE0, icmp_error(5, 1, Y, N, &sent(port)), Drop::IcmpType, &[]);
    w.pass(POD_A, udp("10.0.1.10:1", "10.0.77.7:2"), ENI0, &[FlowsOpened]);
    let about = udp("10.0.1.10:1", "10.0.77.7:2").build();
    w.pass(WIRE0, icmp_error(5, 1, Y, A, &about), TO_A, &[]);
}

#[test]
fn e06_errors_change_neither_state_nor_timers() {
    let (mut w, port) = translated();
    let before = w.flow();
    w.advance(10 * SECOND);
    for kind in [3, 11, 12, 4] {
        w.pass(WIRE0, icmp_error(kind, 0, Y, N, &sent(port)), TO_A, &[]);
    }
    let after = w.flow();
    assert_eq!((after.phase, after.replied, after.reply.packets), (before.phase, before.replied, 0));
    assert_eq!(after.expires_in, before.expires_in - 10 * SECOND);
}

#[test]
fn e07_error_about_nothing_of_ours() {
    let (mut w, port) = translated();
    let unknown = |sport: u16, to: &str| {
        icmp_error(3, 3, Y, N, &udp(&format!("10.0.9.5:{sport}"), to).payload(b"query").build())
    };
    // A port of our set that no flow has towards that destination.
    w.dropped(WIRE0, unknown(port, "203.0.113.9:54"), Drop::IcmpUnknownFlow, &[]);
    w.dropped(WIRE0, unknown(port, "198.51.100.7:53"), Drop::IcmpUnknownFlow, &[]);
    // One that is the host's.
    w.pass(WIRE0, unknown(45_000, "203.0.113.9:53"), KERNEL0, &[]);
    // Quoting what N did not send: made up.
    let made_up = icmp_error(3, 3, Y, N, &udp("10.0.1.10:40000", "203.0.113.9:53").build());
    w.pass(WIRE0, made_up, KERNEL0, &[]);
    // About a pod's untranslated packet that was never sent.
    let stray = icmp_error(3, 3, Y, A, &udp("10.0.1.10:1", "10.0.77.7:53").build());
    w.dropped(WIRE0, stray, Drop::IcmpUnknownFlow, &[]);
    assert_eq!(w.flows().len(), 1);
}

#[test]
fn e08_error_from_the_pod_about_a_reply() {
    let (mut w, port) = translated();
    let reply = udp("203.0.113.9:53", &format!("10.0.9.5:{port}")).payload(b"answer");
    let delivered = w.pass(WIRE0, reply, TO_A, &[]);
    let error = icmp_error(3, 3, A, X, &delivered).quote(1000);
    let out = w.pass(POD_A, error, ENI0, &[]);
    assert_eq!(show(&out), "10.0.9.5>203.0.113.9 icmp 3/3 ttl 63 len 34");
    assert_eq!(quoted(&out), (address(X), address(N), 53, port));
    assert_eq!(sluice_engine::testing::verify(&quotation(&out)), Ok(()));
}

#[test]
fn e09_quoted_header_with_options() {
    for words in 1..=10 {
        let (mut w, port) = translated();
        let options = vec![1; words * 4];
        let offending =
            udp(&format!("10.0.9.5:{port}"), "203.0.113.9:53").payload(b"query").ip_options(&options).build();
        let back = w.pass(WIRE0, icmp_error(3, 3, Y, N, &offending), TO_A, &[]);
        assert_eq!(quoted(&back), (address(A), address(X), 40_000, 53), "IHL {}", 5 + words);
    }
}

#[test]
fn e10_quotation_cut_short() {
    let (mut w, port) = translated();
    // For the node: its kernel judges; for a pod: dropped.
    for len in [0, 8, 19, 20, 27] {
        w.pass(WIRE0, icmp_error(3, 3, Y, N, &sent(port)).quote(len), KERNEL0, &[]);
        let to_pod = icmp_error(3, 3, Y, A, &udp("10.0.1.10:1", "10.0.77.7:2").build()).quote(len);
        w.dropped(WIRE0, to_pod, Drop::IcmpQuote, &[]);
    }
}

#[test]
fn e12_error_about_an_error() {
    let (mut w, port) = translated();
    let error = icmp_error(3, 3, A, V, &udp("10.0.77.7:53", "10.0.1.10:9").build()).build();
    let nested = icmp_error(11, 0, V, A, &error).quote(1000);
    w.dropped(WIRE0, nested, Drop::IcmpNested, &[]);
    // One to the node's own address is its kernel's, which drops it.
    let error = icmp_error(3, 3, N, Y, &sent(port)).build();
    w.pass(WIRE0, icmp_error(11, 0, Y, N, &error).quote(1000), KERNEL0, &[]);
    let error = icmp_error(3, 3, X, A, &udp("10.0.1.10:9", "203.0.113.9:53").build()).build();
    w.dropped(POD_A, icmp_error(11, 0, A, X, &error).quote(1000), Drop::IcmpNested, &[]);
}

#[test]
fn e14_other_queries() {
    let mut w = World::new();
    for kind in [9, 10, 13, 14, 15, 17, 42] {
        w.dropped(POD_A, icmp(A, X, kind, 0, 7 << 16).payload(&[0; 12]), Drop::IcmpType, &[]);
        w.dropped(POD_A, icmp(A, V, kind, 0, 7 << 16).payload(&[0; 12]), Drop::IcmpType, &[]);
        w.dropped(WIRE0, icmp(X, N, kind, 0, 7 << 16).payload(&[0; 12]), Drop::IcmpType, &[]);
    }
}

#[test]
fn e15_ping_to_the_node_is_the_kernels() {
    let mut w = World::new();
    let out = w.pass(POD_A, echo_request(A, N, 7, 1), Verdict::KernelPod { ifindex: 10 }, &[]);
    assert_eq!(show(&out), "10.0.1.10>10.0.9.5 icmp echo request id 7 ttl 64 len 16");
    // From outside, even with an identifier that a pod's ping has.
    let out = w.pass(POD_A, echo_request(A, X, 7, 1), ENI0, &[FlowsOpened, PortsTaken]);
    let id = read(&out).key.sport();
    w.pass(WIRE0, echo_request(X, N, id, 1), KERNEL0, &[]);
    w.pass(WIRE0, echo_reply(Y, N, id, 1), KERNEL0, &[]);
    assert_eq!(w.flows().len(), 1);
}

#[test]
fn e16_ping_of_a_pod_from_outside() {
    let mut w = World::new();
    w.pass(WIRE1, echo_request(X, C, 7, 1), TO_C, &[FlowsOpened]);
    let out = w.pass(POD_C, echo_reply(C, X, 7, 1), ENI1, &[]);
    assert_eq!(read(&out).key.src(), address(C), "the originator was not the pod");
}

#[test]
fn e17_ttl_used_up_is_told_and_bounded() {
    let mut w = World::new();
    let probe = |n: u16| udp("10.0.1.10:40000", &format!("203.0.113.9:{n}")).ttl(1).payload(b"traceroute");
    let error = w.told(POD_A, probe(33434), Drop::TtlExceeded, TO_A, &[FlowsOpened, PortsTaken]);
    assert_eq!(show(&error), "10.0.9.5>10.0.1.10 icmp 11/0 ttl 64 len 38");
    assert_eq!(quoted(&error), (address(A), address(X), 40_000, 33434));
    assert_eq!(quotation(&error)[22], 1, "quoted as it came");
    // From the wire to a pod: the ENI speaks.
    let error =
        w.told(WIRE1, udp("203.0.113.9:1", "10.0.2.20:2").ttl(1), Drop::TtlExceeded, ENI1, &[FlowsOpened]);
    assert_eq!(show(&error), "10.0.10.5>203.0.113.9 icmp 11/0 ttl 64 len 28");
    // Fifty at once and then a thousand a second, as Linux has it.
    let mut w = World::new();
    let mut told = 0;
    for n in 0..200 {
        let step = w.step(vec![(POD_A, probe(1000 + n).into())]);
        told += step.moved.get(Generated.name()).copied().unwrap_or(0);
    }
    assert_eq!(told, 50);
    w.advance(SECOND / 100);
    let told = (0..200)
        .map(|n| {
            w.step(vec![(POD_A, probe(1000 + n).into())]).moved.get(Generated.name()).copied().unwrap_or(0)
        })
        .sum::<i64>();
    assert_eq!(told, 10);
}

#[test]
fn e18_too_large_and_not_to_be_cut_is_told() {
    let mut w = World::with(|_, host| host.links.iter_mut().for_each(|link| link.mtu = 9001));
    let big = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[0; 1473]).dont_fragment();
    let error = w.told(POD_A, big, Drop::FragNeeded, TO_A, &[FlowsOpened, PortsTaken]);
    assert_eq!(error[34..36], [3, 4]);
    assert_eq!(error[38..42], [0, 0, 5, 220], "1500");
    let fits = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[0; 1472]).dont_fragment();
    w.pass(POD_A, fits, ENI0, &[]);
    // An error is never told about an error, a fragment, or what went to many.
    let about = udp("10.0.77.7:53", "10.0.1.10:9").build();
    w.pass(WIRE0, udp("10.0.77.7:53", "10.0.1.10:9"), TO_A, &[FlowsOpened]);
    w.dropped(POD_A, icmp_error(3, 3, A, V, &about).ttl(1), Drop::TtlExceeded, &[]);
}
