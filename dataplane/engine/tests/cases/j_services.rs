//! J. Services: which endpoint, how a connection gets there and its answers back, and what is refused.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use rstest::rstest;
use sluice_engine::counters::Event::{self, FlowsOpened, FlowsOrphaned, FlowsRechecked, PortsTaken};
use sluice_engine::flow::Origin;
use sluice_engine::testing::{
    FrameBuilder, echo_request, fragments, raw, read, reassemble, sctp, show, tcp, udp, verify,
};
use sluice_engine::{Drop, Ingress, Verdict};
use sluice_state::{
    Endpoint, Frontend, Protocol, Service, State, WithoutEndpoints, WithoutEndpoints::Reject,
};

use crate::world::*;

pub(crate) const VIP: &str = "10.96.0.10";
pub(crate) const KERNEL_A: Verdict = Verdict::KernelPod { ifindex: 10 };
pub(crate) const NODE_A: Ingress = Ingress::FromNode(10);

fn socket(text: &str) -> (Ipv4Addr, u16) {
    let socket: SocketAddrV4 = text.parse().unwrap();
    (*socket.ip(), socket.port())
}

/// A service with one frontend.
pub(crate) fn service(protocol: Protocol, frontend: &str, endpoints: &[&str]) -> Service {
    let (address, port) = socket(frontend);
    let endpoint = |text: &&str| {
        let (ip, port) = socket(text);
        Endpoint { ip, port }
    };
    Service {
        name: format!("default/{frontend}/{protocol}"),
        protocol,
        frontends: vec![Frontend { address: Some(address), port, sources: None, over_local: false }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        affinity: None,
        without_endpoints: Reject,
    }
}

/// Adds a service or replaces it.
pub(crate) fn put(state: &mut State, service: Service) {
    state.services.cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let service = Arc::new(service);
    match state.services.services.iter_mut().find(|s| s.name == service.name) {
        Some(slot) => *slot = service,
        None => state.services.services.push(service),
    }
}

/// A node with one service on port 80 of the cluster IP.
pub(crate) fn serving(protocol: Protocol, endpoints: &[&str]) -> World {
    World::with(|state, _| put(state, service(protocol, "10.96.0.10:80", endpoints)))
}

pub(crate) fn syn(from: &str, to: &str) -> FrameBuilder {
    tcp(from, to).flags("S")
}

#[test]
fn j01_an_endpoint_on_this_node() {
    let mut w = serving(Protocol::Tcp, &["10.0.1.11:8080"]);
    let out = w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), TO_B, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>10.0.1.11:8080 tcp S ttl 63 len 0");
    let back = w.pass(POD_B, tcp("10.0.1.11:8080", "10.0.1.10:40000").flags("SA").ack(1001), TO_A, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 tcp SA ttl 63 len 0");
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001), TO_B, &[]);
    // Nobody else can join it, or open one in the service's name.
    w.dropped(WIRE0, tcp("10.0.1.11:8080", "10.0.1.10:40000").flags("A"), Drop::Spoof, &[]);
    w.dropped(WIRE0, tcp("10.96.0.10:80", "10.0.1.10:40001").flags("S"), Drop::Spoof, &[]);
}

#[test]
fn j02_an_endpoint_in_the_vpc_is_reached_by_the_pods_own_eni() {
    let mut w = serving(Protocol::Udp, &["10.0.77.7:5353"]);
    let out = w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.10:80").payload(b"q"), ENI0, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>10.0.77.7:5353 udp ttl 63 len 1");
    let out = w.pass(POD_C, udp("10.0.2.20:40000", "10.96.0.10:80").payload(b"q"), ENI1, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.2.20:40000>10.0.77.7:5353 udp ttl 63 len 1");
    // The answer may come by any ENI.
    let back = w.pass(WIRE0, udp("10.0.77.7:5353", "10.0.2.20:40000").payload(b"r"), TO_C, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.2.20:40000 udp ttl 63 len 1");
}

#[test]
fn j03_an_endpoint_outside_the_vpc_is_reached_from_the_nodes_address() {
    let mut w = serving(Protocol::Tcp, &["203.0.113.9:6443"]);
    let from_c = syn("10.0.2.20:40000", "10.96.0.10:80");
    let out = w.pass(POD_C, from_c, ENI0, &[FlowsOpened, PortsTaken]);
    let key = read(&out).key;
    assert_eq!((key.src(), key.dst(), key.dport()), (address(N), address(X), 6443));
    assert!(w.snapshot.ports[0].set.contains(key.sport()));
    let reply = tcp("203.0.113.9:6443", &format!("10.0.9.5:{}", key.sport())).flags("SA").ack(1001);
    let back = w.pass(WIRE0, reply, TO_C, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.2.20:40000 tcp SA ttl 63 len 0");
}

#[test]
fn j04_a_pod_that_gets_itself_sees_the_node() {
    let mut w = serving(Protocol::Tcp, &["10.0.1.10:8080"]);
    w.reload(|state, _| crate::k_policy::isolate_a(state));
    let out = w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), TO_A, &[FlowsOpened, PortsTaken]);
    let key = read(&out).key;
    assert_eq!((key.src(), key.dst(), key.dport()), (address(N), address(A), 8080));
    let reply = tcp("10.0.1.10:8080", &format!("10.0.9.5:{}", key.sport())).flags("SA").ack(1001);
    let back = w.pass(POD_A, reply, TO_A, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 tcp SA ttl 63 len 0");
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001), TO_A, &[]);
    // Only the pod itself has it.
    let stolen = tcp("10.0.1.11:8080", &format!("10.0.9.5:{}", key.sport())).flags("A");
    w.pass(POD_B, stolen, Verdict::KernelPod { ifindex: 11 }, &[]);
    // Policy changes, and a pod may still speak to itself.
    w.reload(|state, _| state.policy.addresses.insert("10.0.50.1".parse().unwrap(), 1));
    let more = tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001);
    w.pass(POD_A, more, TO_A, &[FlowsRechecked]);
}

#[test]
fn j05_a_process_of_the_node_as_an_endpoint() {
    let mut w = serving(Protocol::Tcp, &["10.0.9.5:6443"]);
    let out = w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80").ttl(1), KERNEL_A, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>10.0.9.5:6443 tcp S ttl 1 len 0");
    assert_eq!(w.flow().origin, Origin::Pod);
    let reply = tcp("10.0.9.5:6443", "10.0.1.10:40000").flags("SA").ack(1001).ttl(1);
    let back = w.pass(NODE_A, reply, TO_A, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 tcp SA ttl 1 len 0");
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001), KERNEL_A, &[]);
    // What the node says by itself is its pod's, whatever policy says, and nobody else's.
    w.reload(|state, _| crate::k_policy::isolate_a(state));
    for frame in [
        tcp("10.0.9.5:6443", "10.0.1.10:50000").flags("SA"),
        udp("10.0.9.5:53", "10.0.1.10:50000"),
        echo_request(N, A, 7, 1),
    ] {
        let unchanged = w.pass(NODE_A, frame.clone(), TO_A, &[]);
        assert_eq!(unchanged[14..], frame.build()[14..]);
    }
    w.dropped(NODE_A, udp("10.0.9.5:53", "10.0.1.11:50000"), Drop::PodUnreachable, &[]);
    assert_eq!(w.flows().len(), 1);
    // Its flow stays, and a new one may be: a pod and its node may always speak, by a service as without.
    let more = tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001);
    w.pass(POD_A, more, KERNEL_A, &[FlowsRechecked]);
    w.pass(POD_A, syn("10.0.1.10:40001", "10.96.0.10:80"), KERNEL_A, &[FlowsOpened]);
}

#[test]
fn j06_what_stands_above_the_nodes_own_addresses() {
    let mut w = World::with(|state, host| {
        let mut all = service(Protocol::Tcp, "10.96.0.10:80", &["10.0.1.11:8080"]);
        let place = |address: Option<&str>, port| Frontend {
            address: address.map(|a| a.parse().unwrap()),
            port,
            sources: None,
            over_local: true,
        };
        all.frontends.push(place(None, 30_080));
        all.frontends.push(place(Some("203.0.113.80"), 80));
        put(state, all);
        put(state, service(Protocol::Udp, "10.96.0.10:53", &["10.0.2.20:53"]));
        host.local = ["10.96.0.10", "203.0.113.80"].map(|a| a.parse().unwrap()).to_vec();
    });
    // Node-local DNS has taken the cluster IP; it is the kernel's, each port of it.
    w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.10:53"), KERNEL_A, &[]);
    w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), KERNEL_A, &[]);
    // Node ports on every address of the node, and an external address that an interface has.
    for (i, to) in
        ["10.0.9.5:30080", "10.0.10.5:30080", "10.96.0.10:30080", "203.0.113.80:80"].iter().enumerate()
    {
        let out = w.pass(POD_A, syn(&format!("10.0.1.10:{}", 1 + i), to), TO_B, &[FlowsOpened]);
        assert_eq!(read(&out).key.dport(), 8080);
    }
    // A port that is none is the node's own, and a node port is not another node's.
    w.pass(POD_A, syn("10.0.1.10:40000", "10.0.9.5:30081"), KERNEL_A, &[]);
    w.pass(POD_A, udp("10.0.1.10:40000", "10.0.9.5:30080"), KERNEL_A, &[]);
    w.pass(POD_A, syn("10.0.1.10:40000", "10.0.77.7:30080"), ENI0, &[FlowsOpened]);
    // From elsewhere they are kube-proxy's.
    w.pass(WIRE0, syn("203.0.113.9:5000", "10.0.9.5:30080"), KERNEL0, &[]);
}

#[test]
fn j07_what_is_no_service_or_has_nobody_is_refused() {
    let mut w = World::with(|state, _| {
        put(state, service(Protocol::Tcp, "10.96.0.10:80", &[]));
        let mut local = service(Protocol::Tcp, "10.96.0.11:80", &[]);
        local.without_endpoints = WithoutEndpoints::Drop;
        put(state, local);
        let mut few = service(Protocol::Tcp, "198.51.100.80:80", &["10.0.1.11:8080"]);
        few.frontends[0].sources = Some(vec!["10.0.2.0/24".parse().unwrap()]);
        put(state, few);
    });
    let told = w.told(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), Drop::ServiceNoEndpoints, TO_A, &[]);
    assert_eq!(show(&told), "10.0.9.5>10.0.1.10 icmp 3/3 ttl 64 len 40");
    w.dropped(POD_A, syn("10.0.1.10:40000", "10.96.0.11:80"), Drop::ServiceNoLocalEndpoints, &[]);
    for frame in [
        syn("10.0.1.10:40000", "10.96.0.10:81"),
        syn("10.0.1.10:40000", "10.96.0.99:80"),
        udp("10.0.1.10:40000", "10.96.0.10:80"),
        echo_request(A, VIP, 7, 1),
        raw(A, VIP, 47).payload(&[0; 40]),
        sctp("10.0.1.10:40000", "10.96.0.10:80", 1),
    ] {
        let told = w.told(POD_A, frame, Drop::ServiceUnknown, TO_A, &[]);
        assert_eq!(read(&told).key.src(), address(N));
    }
    w.dropped(POD_A, syn("10.0.1.10:40000", "198.51.100.80:80"), Drop::ServiceSourceRange, &[]);
    w.pass(POD_C, syn("10.0.2.20:40000", "198.51.100.80:80"), TO_B, &[FlowsOpened]);
    // Resets and answers are nobody's.
    w.dropped(POD_A, tcp("10.0.1.10:40000", "198.51.100.80:80").flags("R"), Drop::ServiceSourceRange, &[]);
    w.dropped(POD_C, tcp("10.0.2.20:1", "198.51.100.80:80").flags("R"), Drop::NoFlow, &[]);
    w.dropped(POD_C, tcp("10.0.2.20:1", "198.51.100.80:80").flags("SA"), Drop::NoFlow, &[]);
    // Another port of that address is somebody's on the internet.
    w.pass(POD_A, syn("10.0.1.10:40000", "198.51.100.80:81"), ENI0, &[FlowsOpened, PortsTaken]);
    assert_eq!(w.flows().len(), 2);
}

#[test]
fn j07_refusals_are_not_said_without_limit() {
    let mut w = serving(Protocol::Tcp, &[]);
    for _ in 0..50 {
        w.told(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), Drop::ServiceNoEndpoints, TO_A, &[]);
    }
    let silent = [Event::IcmpRateLimited];
    w.dropped(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), Drop::ServiceNoEndpoints, &silent);
}

#[rstest]
#[case::udp(Protocol::Udp)]
#[case::sctp(Protocol::Sctp)]
fn j08_a_datagrams_flow_moves_when_its_endpoint_goes(#[case] protocol: Protocol) {
    let frame = |from: &str, to: &str| match protocol {
        Protocol::Sctp => sctp(from, to, 0),
        _ => udp(from, to),
    };
    let mut w = serving(protocol, &["10.0.1.11:53"]);
    let query = || frame("10.0.1.10:40000", "10.96.0.10:80").payload(b"abcd");
    w.pass(POD_A, query(), TO_B, &[FlowsOpened]);
    // One more endpoint is no reason to look.
    w.reload(|state, _| put(state, service(protocol, "10.96.0.10:80", &["10.0.1.11:53", "10.0.2.20:53"])));
    w.pass(POD_A, query(), TO_B, &[]);
    w.reload(|state, _| put(state, service(protocol, "10.96.0.10:80", &["10.0.2.20:53"])));
    // What the old one still answers arrives, then the client goes on with the new one.
    let late = frame("10.0.1.11:53", "10.0.1.10:40000").payload(b"late");
    let back = w.pass(POD_B, late, TO_A, &[FlowsRechecked]);
    assert_eq!(read(&back).key.src(), address(VIP));
    w.pass(POD_A, query(), TO_C, &[FlowsRechecked, FlowsOrphaned, FlowsOpened]);
    w.pass(POD_A, query(), TO_C, &[]);
    // Nobody is left, the service goes, and comes again.
    w.reload(|state, _| put(state, service(protocol, "10.96.0.10:80", &[])));
    let events = [FlowsRechecked, FlowsOrphaned];
    w.told(POD_A, query(), Drop::ServiceNoEndpoints, TO_A, &events);
    w.reload(|state, _| state.services.services.clear());
    w.told(POD_A, query(), Drop::ServiceUnknown, TO_A, &[]);
    w.reload(|state, _| put(state, service(protocol, "10.96.0.10:80", &["10.0.1.11:53"])));
    w.pass(POD_A, query(), TO_B, &[FlowsOpened]);
}

#[test]
fn j08_a_connection_of_tcp_stays_with_its_endpoint() {
    let mut w = serving(Protocol::Tcp, &["10.0.1.11:8080"]);
    w.pass(POD_A, syn("10.0.1.10:40000", "10.96.0.10:80"), TO_B, &[FlowsOpened]);
    w.pass(POD_B, tcp("10.0.1.11:8080", "10.0.1.10:40000").flags("SA").ack(1001), TO_A, &[]);
    w.reload(|state, _| put(state, service(Protocol::Tcp, "10.96.0.10:80", &["10.0.2.20:8080"])));
    let data = || tcp("10.0.1.10:40000", "10.96.0.10:80").flags("A").seq(1001).ack(1001);
    w.pass(POD_A, data(), TO_B, &[FlowsRechecked]);
    w.pass(POD_A, data(), TO_B, &[]);
    w.pass(POD_A, syn("10.0.1.10:40001", "10.96.0.10:80"), TO_C, &[FlowsOpened]);
    // Once it is closed, the same port is a new connection, and goes where the service goes now.
    w.pass(POD_B, tcp("10.0.1.11:8080", "10.0.1.10:40000").flags("R").seq(1001), TO_A, &[]);
    let again = syn("10.0.1.10:40000", "10.96.0.10:80").seq(900_000);
    w.pass(POD_A, again, TO_C, &[FlowsOrphaned, FlowsOpened]);
}

#[test]
fn j08_an_address_becomes_a_service_and_ceases_to_be_one() {
    let mut w = World::new();
    let query = || udp("10.0.1.10:40000", "203.0.113.80:80").payload(b"q");
    w.pass(POD_A, query(), ENI0, &[FlowsOpened, PortsTaken]);
    w.reload(|state, _| put(state, service(Protocol::Udp, "203.0.113.80:80", &["10.0.1.11:53"])));
    w.pass(POD_A, query(), TO_B, &[FlowsRechecked, FlowsOrphaned, FlowsOpened]);
    w.reload(|state, _| state.services.services.clear());
    w.pass(POD_A, query(), ENI0, &[FlowsRechecked, FlowsOrphaned, FlowsOpened, PortsTaken]);
    // A range that comes to be takes what went through it.
    w.reload(|state, _| state.services.cidrs = vec!["203.0.113.0/24".parse().unwrap()]);
    w.told(POD_A, query(), Drop::ServiceUnknown, TO_A, &[FlowsRechecked, FlowsOrphaned]);
    // The node takes an address over.
    w.reload(|state, _| put(state, service(Protocol::Udp, "10.96.0.10:80", &["10.0.1.11:53"])));
    let query = || udp("10.0.1.10:40000", "10.96.0.10:80").payload(b"q");
    w.pass(POD_A, query(), TO_B, &[FlowsOpened]);
    w.reload(|_, host| host.local = vec![VIP.parse().unwrap()]);
    w.pass(POD_A, query(), KERNEL_A, &[FlowsRechecked, FlowsOrphaned]);
}

#[test]
fn j11_fragments_of_a_datagram_to_a_service() {
    let mut w = serving(Protocol::Udp, &["10.0.1.11:5353"]);
    let whole = udp("10.0.1.10:40000", "10.96.0.10:80").payload(&[5; 4000]).id(9).build();
    let pieces = fragments(&whole, 1480);
    // The last one first: it waits for who knows where it goes.
    w.held(POD_A, pieces[2].clone(), &[]);
    let mut step = w.step(vec![(POD_A, pieces[0].clone().into()), (POD_A, pieces[1].clone().into())]);
    assert_eq!(step.outs.len(), 3);
    assert!(step.outs.iter().all(|o| o.verdict == TO_B));
    let sent: Vec<_> = step.outs.drain(..).map(|o| o.frame).collect();
    let sent = reassemble(&sent).unwrap();
    assert_eq!(verify(&sent), Ok(()));
    assert_eq!(show(&sent), "10.0.1.10:40000>10.0.1.11:5353 udp ttl 63 len 4000");
    // And of its answer.
    let reply = udp("10.0.1.11:5353", "10.0.1.10:40000").payload(&[6; 4000]).id(3).build();
    let back: Vec<_> = fragments(&reply, 1480).into_iter().map(|p| w.pass(POD_B, p, TO_A, &[])).collect();
    let back = reassemble(&back).unwrap();
    assert_eq!(verify(&back), Ok(()));
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 udp ttl 63 len 4000");
    // The node's own answers come in pieces, too.
    w.reload(|state, _| put(state, service(Protocol::Udp, "10.96.0.11:80", &["10.0.9.5:5353"])));
    w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.11:80"), KERNEL_A, &[FlowsOpened]);
    for (id, port, source) in [(4, 40_000, "10.96.0.11:80"), (5, 50_000, "10.0.9.5:5353")] {
        let reply = udp("10.0.9.5:5353", &format!("10.0.1.10:{port}")).payload(&[6; 4000]).id(id).build();
        let pieces = fragments(&reply, 1480);
        let back: Vec<_> = pieces.into_iter().map(|p| w.pass(NODE_A, p, TO_A, &[])).collect();
        let back = reassemble(&back).unwrap();
        assert_eq!(show(&back), format!("{source}>10.0.1.10:{port} udp ttl 64 len 4000"));
        assert_eq!(verify(&back), Ok(()));
    }
    // Those of a refused one end as it does.
    let nobody = udp("10.0.1.10:40000", "10.96.0.10:81").payload(&[5; 3000]).id(10).build();
    let pieces = fragments(&nobody, 1480);
    w.told(POD_A, pieces[0].clone(), Drop::ServiceUnknown, TO_A, &[]);
    w.dropped(POD_A, pieces[1].clone(), Drop::ServiceUnknown, &[]);
}

#[test]
fn j12_sctp_keeps_its_checksum_right() {
    let mut w = serving(Protocol::Sctp, &["10.0.1.11:8080"]);
    let init = sctp("10.0.1.10:40000", "10.96.0.10:80", 1).payload(&[3; 16]);
    let out = w.pass(POD_A, init, TO_B, &[FlowsOpened]);
    assert_eq!(show(&out), "10.0.1.10:40000>10.0.1.11:8080 sctp 1 ttl 63 len 20");
    assert_eq!(verify(&out), Ok(()));
    let back = w.pass(POD_B, sctp("10.0.1.11:8080", "10.0.1.10:40000", 2).payload(&[4; 700]), TO_A, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 sctp 2 ttl 63 len 704");
    assert_eq!(verify(&back), Ok(()));
    // It is not UDP, and a corrupt packet opens nothing.
    w.told(POD_A, udp("10.0.1.10:40000", "10.96.0.10:80"), Drop::ServiceUnknown, TO_A, &[]);
    let bad = sctp("10.0.1.10:40001", "10.96.0.10:80", 1).payload(&[3; 16]).bad_l4_checksum();
    w.dropped(POD_A, bad, Drop::BadL4Checksum, &[]);
    w.dropped(POD_A, sctp("10.0.1.10:40001", "10.96.0.10:80", 6), Drop::NoFlow, &[]);
    // A piece does not tell where the checksum's end is.
    let whole = sctp("10.0.1.10:40000", "10.96.0.10:80", 0).payload(&[5; 4000]).id(9).build();
    let pieces = fragments(&whole, 1480);
    w.dropped(POD_A, pieces[0].clone(), Drop::UnsupportedProtocol, &[]);
    w.dropped(POD_A, pieces[1].clone(), Drop::UnsupportedProtocol, &[]);
    // Where the port stays what it is, it need not be known.
    w.reload(|state, _| put(state, service(Protocol::Sctp, "10.96.0.11:80", &["10.0.1.11:80"])));
    let whole = sctp("10.0.1.10:40000", "10.96.0.11:80", 0).payload(&[5; 4000]).id(9).build();
    let mut sent = Vec::new();
    for (i, piece) in fragments(&whole, 1480).into_iter().enumerate() {
        sent.push(w.pass(POD_A, piece, TO_B, if i == 0 { &[FlowsOpened] } else { &[] }));
    }
    assert_eq!(verify(&reassemble(&sent).unwrap()), Ok(()));
}

#[rstest]
#[case::outside("203.0.113.9:80")]
#[case::itself("10.0.1.10:80")]
fn j12_sctp_that_would_need_a_port_of_ours_is_refused(#[case] endpoint: &str) {
    let mut w = serving(Protocol::Sctp, &[endpoint]);
    w.dropped(POD_A, sctp("10.0.1.10:40000", "10.96.0.10:80", 1), Drop::UnsupportedProtocol, &[]);
    w.dropped(POD_A, sctp("10.0.1.10:40000", "203.0.113.9:80", 1), Drop::UnsupportedProtocol, &[]);
    w.pass(POD_A, sctp("10.0.1.10:40000", "10.0.77.7:80", 1), ENI0, &[FlowsOpened]);
}

#[test]
fn j13_the_same_port_directly_and_by_services_is_not_confused() {
    let mut w = World::with(|state, _| {
        put(state, service(Protocol::Tcp, "10.96.0.10:80", &["10.0.1.11:8080"]));
        put(state, service(Protocol::Tcp, "10.96.0.11:80", &["10.0.1.11:8080"]));
    });
    let mut ports = HashSet::new();
    let ways = ["10.96.0.10:80", "10.0.1.11:8080", "10.96.0.11:80"];
    let mut used = Vec::new();
    for to in ways {
        let out = w.pass(POD_A, syn("10.0.1.10:40000", to), TO_B, &[FlowsOpened]);
        let key = read(&out).key;
        assert_eq!((key.src(), key.dst(), key.dport()), (address(A), address(B), 8080));
        assert!(ports.insert(key.sport()));
        used.push(key.sport());
    }
    assert_eq!(used[0], 40_000, "the first has its own");
    for (to, port) in ways.iter().zip(used) {
        let reply = tcp("10.0.1.11:8080", &format!("10.0.1.10:{port}")).flags("SA").ack(1001);
        let back = w.pass(POD_B, reply, TO_A, &[]);
        assert_eq!(show(&back), format!("{to}>10.0.1.10:40000 tcp SA ttl 63 len 0"));
    }
}

#[test]
fn j13_an_answer_to_nothing_is_not_taken_for_what_goes_to_a_service() {
    let mut w = serving(Protocol::Tcp, &["10.0.77.7:53"]);
    w.pass(POD_A, syn("10.0.1.10:1024", "10.96.0.10:80"), ENI0, &[FlowsOpened]);
    // It would have the key of the endpoint's answers, the other way round.
    w.dropped(POD_A, tcp("10.0.1.10:1024", "10.0.77.7:53").flags("SA"), Drop::TableContended, &[]);
}

#[test]
fn j14_policy_sees_the_endpoint_and_its_port() {
    // A takes TCP 80 from B, and sends UDP 53 to everybody.
    let mut w = World::with(|state, _| {
        crate::k_policy::isolate_a(state);
        put(state, service(Protocol::Tcp, "10.96.0.10:8888", &["10.0.1.10:80"]));
        put(state, service(Protocol::Tcp, "10.96.0.11:80", &["10.0.1.10:81"]));
        put(state, service(Protocol::Udp, "10.96.0.12:5300", &["10.0.77.7:53"]));
        put(state, service(Protocol::Udp, "10.96.0.13:53", &["10.0.77.7:5300"]));
        let mut by_node = service(Protocol::Tcp, "10.96.0.14:80", &["10.0.1.10:81"]);
        by_node.frontends[0] = Frontend { address: None, port: 30_080, sources: None, over_local: true };
        put(state, by_node);
    });
    w.pass(POD_B, syn("10.0.1.11:40000", "10.96.0.10:8888"), TO_A, &[FlowsOpened]);
    w.dropped(POD_B, syn("10.0.1.11:40000", "10.96.0.11:80"), Drop::PolicyIngress, &[]);
    w.dropped(POD_C, syn("10.0.2.20:40000", "10.96.0.10:8888"), Drop::PolicyIngress, &[]);
    // Its own node's port is no way around.
    w.dropped(POD_B, syn("10.0.1.11:40000", "10.0.9.5:30080"), Drop::PolicyIngress, &[]);
    // Nor is a service whose endpoint somebody wrote to be that port.
    w.reload(|state, _| put(state, service(Protocol::Tcp, "10.96.0.15:80", &["10.0.9.5:30080"])));
    w.told(POD_B, syn("10.0.1.11:40000", "10.96.0.15:80"), Drop::ServiceNoEndpoints, TO_B, &[]);
    w.pass(POD_A, udp("10.0.1.10:40000", "10.96.0.12:5300"), ENI0, &[FlowsOpened]);
    w.dropped(POD_A, udp("10.0.1.10:40000", "10.96.0.13:53"), Drop::PolicyEgress, &[]);
    assert_eq!(w.flows().len(), 2);
}

#[test]
fn j15_a_connection_that_is_under_way_is_tried() {
    let mut w = serving(Protocol::Tcp, &["10.0.1.11:8080"]);
    let data = tcp("10.0.1.10:40000", "10.96.0.10:80").flags("PA").seq(5000).ack(7000).payload(b"x");
    w.pass(POD_A, data, TO_B, &[FlowsOpened]);
    // Who knows nothing of it says so, and the client hears it from who it spoke to.
    let reset = tcp("10.0.1.11:8080", "10.0.1.10:40000").flags("R").seq(7000);
    let back = w.pass(POD_B, reset, TO_A, &[]);
    assert_eq!(show(&back), "10.96.0.10:80>10.0.1.10:40000 tcp R ttl 63 len 0");
    assert_eq!(w.flow().phase.name(), "CLOSE");
}
