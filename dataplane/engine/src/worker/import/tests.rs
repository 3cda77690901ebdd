use super::*;
use crate::testing::{read, tcp, udp};
use crate::verdict::Verdict;
use crate::worker::tests::{ENI0, ENI1, POD_A, POD_C, World};

const POD: u32 = 0x0A00_010A;
const OTHER: u32 = 0x0A00_0214;
const NODE: u32 = 0x0A00_0905;
const OUTSIDE: u32 = 0xCB00_7109;
const INSIDE: u32 = 0x0A00_6307;
const TCP: u8 = proto::TCP;

fn key(src: u32, sport: u16, dst: u32, dport: u16) -> FlowKey {
    FlowKey::new(src, dst, sport, dport, TCP)
}

fn known(original: FlowKey, translated: FlowKey) -> Known {
    Known { original, translated, phase: Phase::Established }
}

impl World {
    fn import(&mut self, known: &[Known]) -> Imports {
        self.worker.import(self.now, &self.snapshot, known)
    }

    fn takes(&mut self, original: FlowKey, translated: FlowKey) {
        let imports = self.import(&[known(original, translated)]);
        assert_eq!(imports, Imports { taken: 1, ..Imports::default() }, "{original:?} {translated:?}");
    }

    fn verdict(&mut self, ingress: Ingress, src: &str, dst: &str, flags: &str) -> (Verdict, FlowKey) {
        let (verdict, frame) = self.one(ingress, tcp(src, dst).flags(flags).build());
        (verdict, read(&frame).key)
    }
}

#[test]
fn a_pods_translated_connection_keeps_the_port_that_its_peer_knows_although_it_is_none_of_ours() {
    let mut world = World::new();
    let (original, translated) = (key(POD, 40_000, OUTSIDE, 80), key(NODE, 45_001, OUTSIDE, 80));
    assert!(!world.snapshot.ports[0].set.contains(45_001));
    // Without the import nobody knows the port.
    let lost = world.verdict(Ingress::Pod(POD_A), "10.0.1.10:40000", "203.0.113.9:80", "A").0;
    assert_eq!(lost, Verdict::Drop(Drop::NoFlow));
    world.takes(original, translated);
    let out = world.verdict(Ingress::Pod(POD_A), "10.0.1.10:40000", "203.0.113.9:80", "A");
    assert_eq!(out, (Verdict::Eni { ifindex: ENI0 }, translated));
    let back = world.verdict(Ingress::Eni(ENI0), "203.0.113.9:80", "10.0.9.5:45001", "A");
    assert_eq!(back, (Verdict::Pod { ifindex: POD_A }, original.reversed()));
    // A second look finds it, and nobody else gets the port towards that peer.
    assert_eq!(world.import(&[known(original, translated)]).had, 1);
    let rival = known(key(OTHER, 40_000, OUTSIDE, 80), translated);
    assert_eq!(world.import(&[rival]).left[Left::Taken as usize], 1);
}

#[test]
fn each_pair_of_ends_becomes_a_flow_with_the_right_ways() {
    let wire = key(OUTSIDE, 5000, OTHER, 80);
    let mut world = World::new();
    world.takes(wire, wire);
    let back = world.verdict(Ingress::Pod(POD_C), "10.0.2.20:80", "203.0.113.9:5000", "A");
    assert_eq!(back, (Verdict::Eni { ifindex: ENI1 }, wire.reversed()));

    let inside = key(OTHER, 5001, INSIDE, 80);
    world.takes(inside, inside);
    let out = world.verdict(Ingress::Pod(POD_C), "10.0.2.20:5001", "10.0.99.7:80", "A");
    assert_eq!(out, (Verdict::Eni { ifindex: ENI1 }, inside));

    let (cluster_ip, endpoint) = (key(POD, 5002, 0x0A60_0001, 80), key(POD, 5002, OTHER, 8080));
    world.takes(cluster_ip, endpoint);
    let out = world.verdict(Ingress::Pod(POD_A), "10.0.1.10:5002", "10.96.0.1:80", "A");
    assert_eq!(out, (Verdict::Pod { ifindex: POD_C }, endpoint));
    let back = world.verdict(Ingress::Pod(POD_C), "10.0.2.20:8080", "10.0.1.10:5002", "A");
    assert_eq!(back, (Verdict::Pod { ifindex: POD_A }, cluster_ip.reversed()));

    // A node port: the engine sees what the kernel has made of it, and gives it the answers.
    let (node_port, into) = (key(OUTSIDE, 5003, NODE, 30_080), key(NODE, 61_234, OTHER, 80));
    world.takes(node_port, into);
    let back = world.verdict(Ingress::Pod(POD_C), "10.0.2.20:80", "10.0.9.5:61234", "A");
    assert_eq!(back, (Verdict::KernelPod { ifindex: POD_C }, into.reversed()));
}

#[test]
fn the_hosts_own_connection_with_a_port_of_ours_is_known_and_keeps_it() {
    let mut world = World::new();
    let own = key(NODE, 20_000, OUTSIDE, 80);
    world.takes(own, own);
    // To a pod's flow that would leave with it, the port is taken.
    let flow = world.worker.table.flows(world.now).next().expect("a flow");
    assert_eq!((flow.origin, flow.original, flow.translated), (Origin::Host, own, own));
    let back = world.verdict(Ingress::Eni(ENI0), "203.0.113.9:80", "10.0.9.5:20000", "A");
    assert_eq!(back, (Verdict::KernelEni { ifindex: ENI0 }, own.reversed()));
    // With a port that is none of ours it never passes the engine.
    let others = key(NODE, 45_000, OUTSIDE, 80);
    assert_eq!(world.import(&[known(others, others)]).elsewhere, 1);
}

#[test]
fn what_the_kernel_still_forwards_passes_as_it_is_and_is_not_taken_for_the_hosts() {
    let mut world = World::new();
    let (original, translated) = (key(POD, 40_000, OUTSIDE, 80), key(NODE, 20_001, OUTSIDE, 80));
    // The port is ours already and the kernel forwards: a flow of the host's comes to be, and must give way.
    let sent = world.verdict(Ingress::Host(ENI0), "10.0.9.5:20001", "203.0.113.9:80", "A");
    assert_eq!(sent, (Verdict::Eni { ifindex: ENI0 }, translated));
    world.takes(original, translated);
    let sent = world.verdict(Ingress::Host(ENI0), "10.0.9.5:20001", "203.0.113.9:80", "A");
    assert_eq!(sent, (Verdict::Eni { ifindex: ENI0 }, translated), "unchanged, with its port");
    let got = world.verdict(Ingress::ToPod(POD_A), "203.0.113.9:80", "10.0.1.10:40000", "A");
    assert_eq!(got, (Verdict::Pod { ifindex: POD_A }, original.reversed()));
    // From the pod's first own packet on the port is the pod's alone.
    let out = world.verdict(Ingress::Pod(POD_A), "10.0.1.10:40000", "203.0.113.9:80", "A");
    assert_eq!(out, (Verdict::Eni { ifindex: ENI0 }, translated));
    let (verdict, moved) = world.verdict(Ingress::Host(ENI0), "10.0.9.5:20001", "203.0.113.9:80", "S");
    assert_eq!(verdict, Verdict::Eni { ifindex: ENI0 });
    assert_ne!(moved.sport(), 20_001, "another connection of the host's gets another port");
}

#[test]
fn what_cannot_be_taken_over_says_why() {
    let mut world = World::new();
    let original = key(POD, 40_000, OUTSIDE, 80);
    let reason = |world: &mut World, original, translated| {
        let left = world.import(&[known(original, translated)]).left;
        Left::ALL.into_iter().find(|reason| left[*reason as usize] == 1).map(Left::name)
    };
    assert_eq!(reason(&mut world, original, key(0x0A00_094D, 40_000, OUTSIDE, 80)), Some("other_address"));
    let sctp = |src, sport| FlowKey::new(src, OUTSIDE, sport, 80, proto::SCTP);
    assert_eq!(reason(&mut world, sctp(POD, 1), sctp(NODE, 1)), Some("protocol"));
    // The node to its pod, and who is nobody's: not the engine's.
    for elsewhere in [key(INSIDE, 1, OUTSIDE, 2), key(INSIDE, 1, NODE, 10_250)] {
        assert_eq!(world.import(&[known(elsewhere, elsewhere)]).elsewhere, 1);
    }
}

#[test]
fn a_half_open_connection_opens_and_a_datagrams_is_answered() {
    let mut world = World::new();
    let (original, translated) = (key(POD, 40_000, OUTSIDE, 80), key(NODE, 45_001, OUTSIDE, 80));
    world.import(&[Known { original, translated, phase: Phase::SynSent }]);
    world.verdict(Ingress::Eni(ENI0), "203.0.113.9:80", "10.0.9.5:45001", "SA");
    let out = world.verdict(Ingress::Pod(POD_A), "10.0.1.10:40000", "203.0.113.9:80", "A");
    assert_eq!(out, (Verdict::Eni { ifindex: ENI0 }, translated));
    let of = |key: FlowKey| FlowKey::new(key.src(), key.dst(), key.sport(), key.dport(), proto::UDP);
    world.import(&[Known { original: of(original), translated: of(translated), phase: Phase::UdpOneWay }]);
    let (verdict, frame) = world.one(Ingress::Eni(ENI0), udp("203.0.113.9:80", "10.0.9.5:45001").build());
    assert_eq!((verdict, read(&frame).key), (Verdict::Pod { ifindex: POD_A }, of(original).reversed()));
    let phases: Vec<_> = world.worker.table.flows(world.now).map(|flow| flow.phase).collect();
    assert!(phases.contains(&Phase::Established) && phases.contains(&Phase::UdpTwoWay), "{phases:?}");
}
