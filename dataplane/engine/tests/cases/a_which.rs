//! A. Which packets are translated: VPC CNI's rule, and who may send at all.

use sluice_engine::counters::Event::{FlowsOpened, PortsTaken};
use sluice_engine::testing::{echo_request, raw, read, show, tcp, udp};
use sluice_engine::{Drop, Verdict};

use crate::world::*;

#[test]
fn a01_vpc_destination_is_untouched() {
    let mut w = World::new();
    let out = w.pass(POD_A, tcp("10.0.1.10:40000", "10.0.77.7:80").flags("S"), ENI0, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>10.0.77.7:80 tcp S ttl 63 len 0");
    let flow = w.flow();
    assert_eq!(flow.original, flow.translated);
    let back = w.pass(WIRE0, tcp("10.0.77.7:80", "10.0.1.10:40000").flags("SA"), TO_A, &[]);
    assert_eq!(show(&back), "10.0.77.7:80>10.0.1.10:40000 tcp SA ttl 63 len 0");
    assert!(w.flow().replied);
}

#[test]
fn a02_second_vpc_cidr() {
    let mut w = World::new();
    let out = w.pass(POD_A, udp("10.0.1.10:40000", "100.64.3.3:80"), ENI0, &[FlowsOpened]);
    assert_eq!(read(&out).key.src(), address(A));
}

#[test]
fn a03_edges_of_the_cidrs() {
    for (to, inside) in [
        ("10.0.255.255:80", true),
        ("10.1.0.0:80", false),
        ("9.255.255.255:80", false),
        ("100.63.255.255:80", false),
        ("100.64.0.0:80", true),
        ("100.64.255.255:80", true),
        ("100.65.0.0:80", false),
    ] {
        let mut w = World::new();
        let events: &[_] = if inside { &[FlowsOpened] } else { &[FlowsOpened, PortsTaken] };
        let out = w.pass(POD_A, tcp("10.0.1.10:40000", to).flags("S"), ENI0, events);
        assert_eq!(read(&out).key.src(), address(if inside { A } else { N }), "to {to}");
    }
}

#[test]
fn a04_external_snat() {
    let mut w = World::new();
    let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").mss(1460);
    let out = w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken]);
    let port = read(&out).key.sport();
    assert!(w.snapshot.ports[0].set.contains(port), "{port} is of the SNAT set");
    assert_eq!(show(&out), format!("10.0.9.5:{port}>203.0.113.9:80 tcp S ttl 63 len 0"));
    let reply = tcp("203.0.113.9:80", &format!("10.0.9.5:{port}")).flags("SA").ack(1001);
    let back = w.pass(WIRE0, reply, TO_A, &[]);
    assert_eq!(show(&back), "203.0.113.9:80>10.0.1.10:40000 tcp SA ttl 63 len 0");
    let flow = w.flow();
    assert_eq!((flow.forward.packets, flow.reply.packets), (1, 1));
    assert_eq!(flow.translated.sport(), port);
}

#[test]
fn a05_externalsnat_true() {
    let mut w = World::with(|state, _| state.nat.external_snat = true);
    let out = w.pass(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>203.0.113.9:80 tcp S ttl 63 len 0");
    // A pod of a secondary ENI leaves by that one: the egress is a function of the source.
    let out = w.pass(POD_C, tcp("10.0.2.20:40000", "203.0.113.9:80").flags("S"), ENI1, &[FlowsOpened]);
    assert_eq!(read(&out).key.src(), address(C));
    assert_eq!(w.flows().len(), 2);
}

#[test]
fn a05_externalsnat_true_ignores_excluded_cidrs_and_needs_no_ports() {
    let mut w = World::with(|state, host| {
        state.nat.external_snat = true;
        state.nat.exclude_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
        host.tcp = sluice_state::PortSet::default();
    });
    w.pass(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened]);
}

#[test]
fn a06_excluded_cidr() {
    let mut w = World::with(|state, _| state.nat.exclude_cidrs = vec!["203.0.113.0/24".parse().unwrap()]);
    let out = w.pass(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened]);
    assert_eq!(read(&out).key.src(), address(A));
    let out =
        w.pass(POD_A, tcp("10.0.1.10:40000", "203.0.114.9:80").flags("S"), ENI0, &[FlowsOpened, PortsTaken]);
    assert_eq!(read(&out).key.src(), address(N));
}

#[test]
fn a08_secondary_eni_pod_leaves_by_the_primary() {
    let mut w = World::new();
    let port = w.udp_out("10.0.2.20:40000", "203.0.113.9:80");
    let reply = udp("203.0.113.9:80", &format!("10.0.9.5:{port}"));
    let back = w.pass(WIRE0, reply, TO_C, &[]);
    assert_eq!(show(&back), "203.0.113.9:80>10.0.2.20:40000 udp ttl 63 len 0");
}

#[test]
fn a09_secondary_eni_inside_the_vpc() {
    let mut w = World::new();
    let out = w.pass(POD_C, udp("10.0.2.20:40000", "10.0.77.7:53"), ENI1, &[FlowsOpened]);
    assert_eq!(read(&out).key.src(), address(C));
    w.pass(WIRE1, udp("10.0.77.7:53", "10.0.2.20:40000"), TO_C, &[]);
}

#[test]
fn a12_multicast_and_broadcast_are_the_kernels() {
    let mut w = World::new();
    for to in ["224.0.0.251:5353", "239.255.255.255:1", "255.255.255.255:67"] {
        let out = w.pass(POD_A, udp("10.0.1.10:5353", to), Verdict::KernelPod { ifindex: 10 }, &[]);
        assert_eq!(read(&out).key.src(), address(A));
    }
    assert!(w.flows().is_empty());
}

#[test]
fn a14_spoofed_source() {
    let mut w = World::new();
    for from in ["10.0.1.99:40000", "10.0.1.11:40000", "10.0.9.5:40000", "203.0.113.9:40000"] {
        for to in ["203.0.113.9:80", "10.0.77.7:80", "10.0.1.11:80", "10.0.9.5:80", "224.0.0.1:80"] {
            w.dropped(POD_A, udp(from, to), Drop::Spoof, &[]);
            w.dropped(POD_A, tcp(from, to).flags("S"), Drop::Spoof, &[]);
        }
    }
    w.dropped(POD_A, echo_request("10.0.1.99", X, 7, 1), Drop::Spoof, &[]);
    w.dropped(POD_A, raw("10.0.1.99", X, 47).payload(&[0; 20]), Drop::Spoof, &[]);
    assert!(w.flows().is_empty());
}

#[test]
fn a14_one_pod_cannot_join_another_pods_flow() {
    let mut w = World::new();
    w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    w.dropped(POD_B, udp("10.0.1.10:40000", "203.0.113.9:53"), Drop::Spoof, &[]);
    assert_eq!(w.flow().forward.packets, 1);
}
