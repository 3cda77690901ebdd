//! The rows of the node's table: whose packet it is, and where its replies go.

use sluice_engine::counters::Event::{FlowsOpened, FlowsOrphaned, PortsTaken};
use sluice_engine::flow::Origin;
use sluice_engine::testing::{echo_reply, echo_request, read, show, tcp, udp};
use sluice_engine::trace::NoTrace;
use sluice_engine::{Drop, Ingress, Verdict};
use sluice_state::{Mac, RandomizeSnat};

use crate::world::*;

const KERNEL_A: Verdict = Verdict::KernelPod { ifindex: 10 };
const KERNEL_C: Verdict = Verdict::KernelPod { ifindex: 12 };

#[test]
fn between_pods_of_the_node_nothing_is_translated() {
    let mut w = World::new();
    let out = w.pass(POD_A, tcp("10.0.1.10:4000", "10.0.2.20:80").flags("S"), TO_C, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:4000>10.0.2.20:80 tcp S ttl 63 len 0");
    w.pass(POD_C, tcp("10.0.2.20:80", "10.0.1.10:4000").flags("SA"), TO_A, &[]);
    // From the wire nobody can join it.
    w.dropped(WIRE0, tcp("10.0.2.20:80", "10.0.1.10:4000").flags("A"), Drop::Spoof, &[]);
    w.dropped(POD_A, udp("10.0.1.10:4000", "10.0.1.10:80"), Drop::Hairpin, &[]);
}

#[test]
fn the_nodes_own_addresses_are_the_kernels() {
    let mut w = World::with(|_, host| {
        host.local = vec!["169.254.20.10".parse().unwrap(), "10.0.10.5".parse().unwrap()];
    });
    for to in ["10.0.9.5:10250", "10.0.10.5:80", "169.254.20.10:53"] {
        w.pass(POD_A, tcp("10.0.1.10:4000", to).flags("S"), KERNEL_A, &[]);
        w.pass(POD_A, udp("10.0.1.10:4000", to), KERNEL_A, &[]);
    }
    assert!(w.flows().is_empty());
    // IMDS and the resolver are remote, however link-local they look.
    w.pass(POD_A, tcp("10.0.1.10:4000", "169.254.169.254:80").flags("S"), ENI0, &[FlowsOpened, PortsTaken]);
}

#[test]
fn a_client_through_the_kernel_is_answered_through_the_kernel() {
    let mut w = World::new();
    let out = w.pass(
        Ingress::ToPod(12),
        tcp("203.0.113.9:5000", "10.0.2.20:80").flags("S").ttl(61),
        TO_C,
        &[FlowsOpened],
    );
    assert_eq!(read(&out).ttl, 61, "the kernel has counted this hop");
    assert_eq!(w.flow().origin, Origin::Kernel);
    w.pass(POD_C, tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA").ack(1001), KERNEL_C, &[]);
    w.pass(Ingress::ToPod(12), tcp("203.0.113.9:5000", "10.0.2.20:80").flags("A"), TO_C, &[]);
    // A connection of the pod's own to the same host is the engine's.
    w.pass(POD_C, tcp("10.0.2.20:4000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened, PortsTaken]);
    // For another pod it would be a mistake of the kernel's routes.
    w.dropped(Ingress::ToPod(12), udp("203.0.113.9:5000", "10.0.1.10:80"), Drop::PodUnreachable, &[]);
}

#[test]
fn a_clients_port_used_directly_and_then_through_the_kernel() {
    let mut w = World::new();
    let syn = tcp("203.0.113.9:5000", "10.0.2.20:80").flags("S");
    w.pass(WIRE1, syn.clone(), TO_C, &[FlowsOpened]);
    w.pass(POD_C, tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA"), ENI1, &[]);
    // The new opener wins, and its replies go its way.
    w.pass(Ingress::ToPod(12), syn.clone(), TO_C, &[FlowsOpened, FlowsOrphaned]);
    w.pass(POD_C, tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA"), KERNEL_C, &[]);
    // One in the middle of a connection does not.
    w.dropped(WIRE1, tcp("203.0.113.9:5000", "10.0.2.20:80").flags("A"), Drop::Spoof, &[]);
    w.pass(WIRE1, syn, TO_C, &[FlowsOpened, FlowsOrphaned]);
    w.pass(POD_C, tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA"), ENI1, &[]);
}

#[test]
fn a_reply_to_a_client_from_outside_keeps_the_pods_address_and_eni() {
    let mut w = World::new();
    // Whichever ENI it came by, the way back is a function of the source.
    for (wire, port) in [(WIRE0, 5000), (WIRE1, 5001)] {
        w.pass(wire, tcp(&format!("203.0.113.9:{port}"), "10.0.2.20:80").flags("S"), TO_C, &[FlowsOpened]);
        let out = w.pass(POD_C, tcp("10.0.2.20:80", &format!("203.0.113.9:{port}")).flags("SA"), ENI1, &[]);
        assert_eq!(read(&out).key.src(), address(C));
    }
    w.pass(WIRE1, udp("203.0.113.9:53", "10.0.2.20:80"), TO_C, &[FlowsOpened]);
    w.pass(POD_C, udp("10.0.2.20:80", "203.0.113.9:53"), ENI1, &[]);
}

#[test]
fn the_hosts_connection_keeps_a_port_that_is_free() {
    let mut w = World::new();
    for (from, to) in [("10.0.9.5:2000", "203.0.113.9:53"), ("10.0.9.5:2000", "10.0.77.7:53")] {
        let out = w.pass(HOST0, udp(from, to).payload(b"x"), ENI0, &[FlowsOpened]);
        assert_eq!(read(&out).key.sport(), 2000);
        w.pass(WIRE0, udp(to, from), KERNEL0, &[]);
    }
    w.pass(HOST0, echo_request(N, X, 2000, 1), ENI0, &[FlowsOpened]);
    w.pass(WIRE0, echo_reply(X, N, 2000, 1), KERNEL0, &[]);
    assert!(w.flows().iter().all(|f| f.origin == Origin::Host && f.replied));
    // Not the address that is shared: nothing of ours.
    w.dropped(HOST0, udp("10.0.10.5:2000", "203.0.113.9:53"), Drop::NotOurs, &[]);
}

#[test]
fn the_hosts_connection_gets_another_port_when_a_pod_holds_its_own() {
    let mut w = World::with(|state, _| state.nat.randomize = RandomizeSnat::None);
    w.pass(
        POD_A,
        tcp("10.0.1.10:2000", "203.0.113.9:80").flags("S").seq(1),
        ENI0,
        &[FlowsOpened, PortsTaken],
    );
    let out = w.pass(
        HOST0,
        tcp("10.0.9.5:2000", "203.0.113.9:80").flags("S").seq(9),
        ENI0,
        &[FlowsOpened, PortsTaken],
    );
    let given = read(&out).key.sport();
    assert_ne!(given, 2000);
    let reply = |port: u16, ack| tcp("203.0.113.9:80", &format!("10.0.9.5:{port}")).flags("SA").ack(ack);
    let back = w.pass(WIRE0, reply(given, 10), KERNEL0, &[]);
    assert_eq!(read(&back).key.dport(), 2000, "not one crossed reply");
    let back = w.pass(WIRE0, reply(2000, 2), TO_A, &[]);
    assert_eq!(read(&back).key.dst(), address(A));
    // And the other way round: the pod's connection avoids the host's.
    w.pass(HOST0, tcp("10.0.9.5:3000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened]);
    let out =
        w.pass(POD_A, tcp("10.0.1.10:3000", "203.0.113.9:80").flags("S"), ENI0, &[FlowsOpened, PortsTaken]);
    assert_ne!(read(&out).key.sport(), 3000);
}

#[test]
fn a_process_of_the_node_on_a_port_of_our_set_works() {
    let mut w = World::new();
    // A SYN that nobody claims is the kernel's, its SYN/ACK is the host's flow, and both directions go on.
    w.pass(WIRE0, tcp("203.0.113.9:5000", "10.0.9.5:2000").flags("S"), KERNEL0, &[]);
    w.pass(HOST0, tcp("10.0.9.5:2000", "203.0.113.9:5000").flags("SA").ack(1001), ENI0, &[FlowsOpened]);
    w.pass(WIRE0, tcp("203.0.113.9:5000", "10.0.9.5:2000").flags("A"), KERNEL0, &[]);
    // Nobody listens: the reset passes and leaves nothing.
    w.pass(WIRE0, tcp("203.0.113.9:5001", "10.0.9.5:2001").flags("S"), KERNEL0, &[]);
    w.pass(HOST0, tcp("10.0.9.5:2001", "203.0.113.9:5001").flags("RA"), ENI0, &[]);
    assert_eq!(w.flows().len(), 1);
}

#[test]
fn the_wire_cannot_claim_a_local_pods_address_or_the_nodes() {
    let mut w = World::new();
    for to in ["10.0.1.11:80", "10.0.9.5:2000", "10.0.2.20:80"] {
        w.dropped(WIRE0, udp("10.0.9.5:4000", to), Drop::Spoof, &[]);
        w.dropped(WIRE0, udp("10.0.10.5:4000", to), Drop::Spoof, &[]);
        w.dropped(WIRE0, udp("10.0.1.10:4000", to), Drop::Spoof, &[]);
        w.dropped(WIRE1, tcp("10.0.1.10:4000", to).flags("S"), Drop::Spoof, &[]);
    }
    assert!(w.flows().is_empty());
}

#[test]
fn h12_a_pods_address_given_to_another_pod() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    w.pass(POD_A, udp("10.0.1.10:5000", "10.0.77.7:53"), ENI0, &[FlowsOpened]);
    w.pass(POD_B, udp("10.0.1.11:5000", "10.0.1.10:53"), TO_A, &[FlowsOpened]);
    // A is deleted, D has its address, on an interface of its own.
    w.reload(|state, host| {
        state.pods[0].name = "d".into();
        state.pods[0].interface = "enid".into();
        state.pods[0].mac = Mac([2, 0, 0, 0, 9, 9]);
        host.links[0].name = "enid".into();
        host.links[0].ifindex = 20;
    });
    let (pod_d, to_d) = (Ingress::Pod(20), Verdict::Pod { ifindex: 20 });
    w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{port}")), KERNEL0, &[FlowsOrphaned]);
    assert_eq!(w.flows().len(), 2, "D gets nothing of A's mapping");
    // Where nothing was translated, a packet for the address is the new pod's, by a flow of its own.
    let out = w.pass(WIRE0, udp("10.0.77.7:53", "10.0.1.10:5000"), to_d, &[FlowsOrphaned, FlowsOpened]);
    assert_eq!(out[..6], [2, 0, 0, 0, 9, 9]);
    w.pass(POD_B, udp("10.0.1.11:5000", "10.0.1.10:53"), to_d, &[FlowsOrphaned, FlowsOpened]);
    // D uses the very ports that A had.
    let out = w.pass(pod_d, udp("10.0.1.10:40000", "203.0.113.9:53"), ENI0, &[FlowsOpened, PortsTaken]);
    assert_eq!(read(&out).key.src(), address(N));
}

#[test]
fn h12_a_deleted_pod_is_unreachable() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    w.pass(WIRE0, udp("10.0.77.7:1", "10.0.1.10:80"), TO_A, &[FlowsOpened]);
    w.reload(|state, _| {
        state.pods.remove(0);
    });
    w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{port}")), KERNEL0, &[FlowsOrphaned]);
    w.dropped(WIRE0, udp("10.0.77.7:1", "10.0.1.10:80"), Drop::NotOurs, &[FlowsOrphaned]);
    w.dropped(POD_A, udp("10.0.1.10:40000", "203.0.113.9:53"), Drop::UnknownInterface, &[]);
    assert!(w.flows().is_empty());
}

#[test]
fn a_packet_waits_for_its_next_hop_and_goes_with_the_next_snapshot() {
    let mut w = World::with(|_, host| host.neighbours.retain(|n| n.ifindex != 3));
    let frame = udp("10.0.2.20:4000", "10.0.77.7:53").payload(b"x");
    w.held(POD_C, frame.clone(), &[FlowsOpened]);
    w.held(POD_C, frame, &[]);
    assert_eq!(w.workers[0].neighbours_wanted().collect::<Vec<_>>(), [(3, address("10.0.10.1")); 2]);
    // Another pod's traffic is not held up.
    w.pass(POD_A, udp("10.0.1.10:4000", "10.0.77.7:53"), ENI0, &[FlowsOpened]);
    let known = host(&w.state).neighbours;
    w.reload(|_, host| host.neighbours = known);
    let step = w.idle();
    assert_eq!((step.outs.len(), step.moved["to_eni"], step.moved["held"]), (2, 2, -2));
    for out in &step.outs {
        assert_eq!((out.verdict, &out.frame[..6]), (ENI1, &[2, 0, 0, 1, 0, 3][..]));
        assert_eq!(show(&out.frame), "10.0.2.20:4000>10.0.77.7:53 udp ttl 63 len 1");
    }
}

#[test]
fn a_next_hop_that_stays_silent_costs_its_packet() {
    let mut w = World::with(|_, host| host.neighbours.retain(|n| n.ifindex != 3));
    w.held(POD_C, udp("10.0.2.20:4000", "10.0.77.7:53"), &[FlowsOpened]);
    assert_eq!(w.workers[0].next_timer(), Some(w.now + SECOND / 4), "flows age before it comes due");
    w.advance(SECOND - 1);
    assert!(w.idle().outs.is_empty());
    w.advance(1);
    let out = w.idle().only();
    assert_eq!(out.verdict, Verdict::Drop(Drop::NeighbourUnresolved));
    // The room is bounded.
    for _ in 0..256 {
        w.held(POD_C, udp("10.0.2.20:4000", "10.0.77.7:53"), &[]);
    }
    let mut step = w.step(vec![(POD_C, udp("10.0.2.20:4000", "10.0.77.7:53").into())]);
    assert_eq!(step.only().verdict, Verdict::Drop(Drop::NeighbourQueueFull));
    // What waits at shutdown is given back.
    let mut out = Vec::new();
    w.workers[0].drain(w.now, &mut out, &mut NoTrace);
    assert_eq!(out.len(), 256);
    assert!(out.iter().all(|o| o.verdict == Verdict::Drop(Drop::Shutdown)));
}

#[test]
fn inside_the_subnet_the_neighbour_is_the_next_hop() {
    let mut w = World::with(|_, host| {
        let mac = Mac([2, 0, 0, 0, 7, 7]);
        host.neighbours.push(sluice_engine::snapshot::Neighbour {
            ifindex: 2,
            address: "10.0.9.77".parse().unwrap(),
            mac,
        });
    });
    let out = w.pass(POD_A, udp("10.0.1.10:1", "10.0.9.77:2"), ENI0, &[FlowsOpened]);
    assert_eq!(out[..6], [2, 0, 0, 0, 7, 7]);
    w.held(POD_A, udp("10.0.1.10:1", "10.0.9.78:2"), &[FlowsOpened]);
    assert_eq!(w.workers[0].neighbours_wanted().collect::<Vec<_>>(), [(2, address("10.0.9.78"))]);
    // The gateway's address was given, nobody need resolve it.
    let out = w.pass(POD_A, udp("10.0.1.10:1", "10.0.9.1:2"), ENI0, &[FlowsOpened]);
    assert_eq!(out[..6], [2, 0, 0, 0, 9, 1]);
}

#[test]
fn a_node_without_an_eni_translates_nothing() {
    let mut w = World::with(|state, host| {
        state.enis.clear();
        state.pods.clear();
        host.enis.clear();
    });
    w.dropped(POD_A, udp("10.0.1.10:1", "203.0.113.9:2"), Drop::UnknownInterface, &[]);
}
