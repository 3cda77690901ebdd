//! J10. ICMP errors about connections to services: whoever says them, the client hears of the service and the endpoint of
//! the client.

use sluice_engine::counters::Event::{FlowsOpened, PortsTaken};
use sluice_engine::testing::{FrameBuilder, icmp_error, read, sctp, tcp, udp, verify};
use sluice_engine::{Drop, Verdict};
use sluice_state::Protocol;

use crate::j_services::{KERNEL_A, NODE_A, VIP, put, service, serving, syn};
use crate::world::*;

/// What must come out: the error with these ends about this packet.
fn assert_says(out: &[u8], from: &str, to: &str, about: &FrameBuilder) {
    assert_eq!(verify(out), Ok(()));
    let key = read(out).key;
    assert_eq!((key.src(), key.dst()), (address(from), address(to)));
    let quoted = &out[42..];
    let expected = &about.build()[14..];
    // Addresses, then ports; the TTL and header checksum are those of the packet when it was refused.
    assert_eq!(quoted[12..24], expected[12..24]);
}

#[test]
fn j10_a_router_about_what_the_client_sent() {
    let mut w = serving(Protocol::Tcp, &["10.0.77.7:8080"]);
    let sent = w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), ENI0, &[FlowsOpened]);
    let out = w.pass(WIRE0, icmp_error(3, 4, "10.0.9.1", A, &sent).mtu(1400), TO_A, &[]);
    // The router stays hidden behind the service, as nf_nat has it.
    assert_says(&out, VIP, A, &syn("10.0.1.10:40000", "10.96.0.10:80"));
    assert_eq!(out[40..42], 1400u16.to_be_bytes());
    // Nobody can use it to reach another pod's connection.
    let forged = icmp_error(3, 4, "10.0.9.1", C, &sent).mtu(1400);
    w.dropped(WIRE0, forged, Drop::IcmpQuote, &[]);
}

#[test]
fn j10_the_endpoint_about_what_it_was_sent_and_the_client_about_the_answer() {
    let mut w = serving(Protocol::Udp, &["10.0.1.11:5353"]);
    let sent = w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.10:80"), TO_B, &[FlowsOpened]);
    let out = w.pass(POD_B, icmp_error(3, 3, B, A, &sent), TO_A, &[]);
    assert_says(&out, VIP, A, &udp("10.0.1.10:40000", "10.96.0.10:80"));
    let answer = w.pass(POD_B, udp("10.0.1.11:5353", "10.0.1.10:40000"), TO_A, &[]);
    let out = w.pass(POD_A, icmp_error(3, 3, A, VIP, &answer), TO_B, &[]);
    assert_says(&out, A, B, &udp("10.0.1.11:5353", "10.0.1.10:40000"));
    // About what nobody was sent it is nobody's.
    let other = udp("10.96.0.10:80", "10.0.1.10:40001").build();
    w.dropped(POD_A, icmp_error(3, 3, A, VIP, &other), Drop::IcmpUnknownFlow, &[]);
}

#[test]
fn j10_about_a_connection_that_is_translated_at_both_ends() {
    let mut w = serving(Protocol::Tcp, &["203.0.113.9:6443"]);
    let sent = w.pass(POD_C, syn("10.0.2.20:40000", "10.96.0.10:80"), ENI0, &[FlowsOpened, PortsTaken]);
    let out = w.pass(WIRE0, icmp_error(11, 0, Y, N, &sent), TO_C, &[]);
    assert_says(&out, VIP, C, &syn("10.0.2.20:40000", "10.96.0.10:80"));
}

#[test]
fn j10_about_a_pods_connection_to_itself() {
    let mut w = serving(Protocol::Udp, &["10.0.1.10:5353"]);
    let sent = w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.10:80"), TO_A, &[FlowsOpened, PortsTaken]);
    let out = w.pass(POD_A, icmp_error(3, 3, A, N, &sent), TO_A, &[]);
    assert_says(&out, VIP, A, &udp("10.0.1.10:40000", "10.96.0.10:80"));
}

#[test]
fn j10_the_node_about_its_own_closed_port() {
    let mut w = serving(Protocol::Udp, &["10.0.9.5:5353"]);
    let sent = w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.10:80"), KERNEL_A, &[FlowsOpened]);
    let out = w.pass(NODE_A, icmp_error(3, 3, N, A, &sent), TO_A, &[]);
    assert_says(&out, VIP, A, &udp("10.0.1.10:40000", "10.96.0.10:80"));
    // About what the pod sent the node itself, it is the pod's as it is.
    let direct = udp("10.0.1.10:40000", "10.0.9.5:9").build();
    let error = icmp_error(3, 3, N, A, &direct);
    let out = w.pass(NODE_A, error.clone(), TO_A, &[]);
    assert_eq!(out[14..], error.build()[14..]);
}

#[test]
fn j10_about_sctp() {
    let mut w =
        World::with(|state, _| put(state, service(Protocol::Sctp, "10.96.0.10:80", &["10.0.1.11:8080"])));
    let chunk = || sctp("10.0.1.10:40000", "10.96.0.10:80", 1).payload(&[7; 40]);
    let sent = w.pass(POD_A, chunk(), TO_B, &[FlowsOpened]);
    for quote in [28, 32, 200] {
        let out = w.pass(POD_B, icmp_error(3, 2, B, A, &sent).quote(quote), TO_A, &[]);
        assert_says(&out, VIP, A, &chunk());
        if quote >= 32 {
            assert_eq!(
                out[42 + 28..42 + 32],
                chunk().build()[42..46],
                "the quoted checksum is the one that was sent"
            );
        }
    }
}

#[test]
fn j10_a_full_mtu_on_the_way_to_an_endpoint_is_told_in_the_services_name() {
    let mut w = World::with(|state, host| {
        put(state, service(Protocol::Tcp, "10.96.0.10:80", &["10.0.77.7:8080"]));
        host.links[0].mtu = 9001;
    });
    w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), ENI0, &[FlowsOpened]);
    let large = tcp("10.0.1.10:40000", "10.96.0.10:80").payload(&[0; 2000]).dont_fragment();
    let told = w.told(POD_A, large.clone(), Drop::FragNeeded, TO_A, &[]);
    assert_eq!(told[42 + 16..42 + 20], large.build()[30..34], "it quotes what the pod sent");
    assert!(matches!(w.flow().original, key if key.dst() == address(VIP)));
    assert_eq!(Verdict::Pod { ifindex: 10 }, TO_A);
}
