use std::sync::Arc;

use sluice_state::{Mac, State};

use super::*;
use crate::snapshot::{HostFacts, HostLink, Neighbour};
use crate::testing::{echo_reply, echo_request, read, tcp, udp, verify};
use crate::trace::NoTrace;

const STATE: &str = r#"
version = 1
[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
gateway_mac = "02:00:00:00:09:01"
[[eni]]
name = "eni1"
address = "10.0.10.5"
subnet = "10.0.10.0/24"
gateway = "10.0.10.1"
[[pod]]
namespace = "default"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "enia"
mac = "02:00:00:00:01:0a"
[[pod]]
namespace = "default"
name = "c"
ip = "10.0.2.20"
eni = "eni1"
interface = "enic"
mac = "02:00:00:00:02:14"
[nat]
vpc_cidrs = ["10.0.0.0/16", "100.64.0.0/16"]
"#;

pub(super) const ENI0: u32 = 2;
pub(super) const ENI1: u32 = 3;
pub(super) const POD_A: u32 = 10;
pub(super) const POD_C: u32 = 12;

pub(super) struct World {
    pub(super) worker: Worker<Vec<u8>>,
    pub(super) snapshot: Snapshot,
    pub(super) now: u64,
}

fn snapshot(gateway_known: bool, generation: u64) -> Snapshot {
    let state = State::from_toml(STATE).unwrap();
    let link = |name: &str, ifindex: u32| HostLink {
        name: name.into(),
        ifindex,
        mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
    };
    let set = state.snat_ports.set();
    let gateway =
        Neighbour { ifindex: ENI1, address: "10.0.10.1".parse().unwrap(), mac: Mac([2, 0, 0, 0, 10, 1]) };
    let host = HostFacts {
        enis: vec![link("eni0", ENI0), link("eni1", ENI1)],
        links: vec![link("enia", POD_A), link("enic", POD_C)],
        neighbours: if gateway_known { vec![gateway] } else { vec![] },
        local: vec![],
        tcp: set.clone(),
        udp: set.clone(),
        icmp: set,
    };
    Snapshot::compile(&state, &host, generation).unwrap().0
}

impl World {
    pub(super) fn new() -> Self {
        let table = Arc::new(FlowTable::new(1024, 1, 3));
        let setup = Setup { id: 0, workers: 1, seed: 5, fragments: 64, fragment_timeout: 30_000_000_000 };
        Self { worker: Worker::new(setup, table).unwrap(), snapshot: snapshot(true, 1), now: 1_000_000_000 }
    }

    pub(super) fn send(&mut self, ingress: Ingress, frame: Vec<u8>) -> Vec<Output<Vec<u8>>> {
        let mut out = Vec::new();
        let mut input = vec![Packet { frame, ingress, offload: Offload::default() }];
        self.worker.step(self.now, &self.snapshot, &mut input, &mut out, &mut NoTrace);
        assert!(self.worker.counters.totals().conserved());
        out
    }

    pub(super) fn one(&mut self, ingress: Ingress, frame: Vec<u8>) -> (Verdict, Vec<u8>) {
        let mut out = self.send(ingress, frame);
        assert_eq!(out.len(), 1);
        let output = out.remove(0);
        (output.verdict, output.frame)
    }
}

#[test]
fn a_pod_reaches_outside_by_the_primary_eni_and_gets_the_reply() {
    for (pod, ip) in [(POD_A, "10.0.1.10"), (POD_C, "10.0.2.20")] {
        let mut world = World::new();
        let out = tcp(&format!("{ip}:40000"), "203.0.113.9:80").flags("S").mss(1460).ttl(64).build();
        let (verdict, frame) = world.one(Ingress::Pod(pod), out);
        assert_eq!(verdict, Verdict::Eni { ifindex: ENI0 });
        verify(&frame).unwrap();
        let sent = read(&frame);
        assert_eq!((sent.key.src(), sent.ttl), (0x0A00_0905, 63));
        assert!(world.snapshot.ports[0].set.contains(sent.key.sport()));
        assert_eq!(frame[..6], [2, 0, 0, 0, 9, 1]);

        let reply =
            tcp("203.0.113.9:80", &format!("10.0.9.5:{}", sent.key.sport())).flags("SA").ttl(64).build();
        let (verdict, frame) = world.one(Ingress::Eni(ENI0), reply);
        assert_eq!(verdict, Verdict::Pod { ifindex: pod });
        verify(&frame).unwrap();
        assert_eq!((read(&frame).key.dport(), read(&frame).ttl), (40_000, 63));
    }
}

#[test]
fn inside_the_vpc_a_pod_keeps_its_address_and_leaves_by_its_own_eni() {
    let mut world = World::new();
    for to in ["10.0.77.7:80", "100.64.3.3:80"] {
        let (verdict, frame) = world.one(Ingress::Pod(POD_C), udp("10.0.2.20:4000", to).build());
        assert_eq!(verdict, Verdict::Eni { ifindex: ENI1 });
        assert_eq!(read(&frame).key.src(), 0x0A00_0214);
        assert_eq!(frame[..6], [2, 0, 0, 0, 10, 1]);
    }
}

#[test]
fn the_reply_to_a_client_from_outside_keeps_the_pods_address() {
    let mut world = World::new();
    let syn = tcp("203.0.113.9:5000", "10.0.2.20:80").flags("S").build();
    assert_eq!(world.one(Ingress::Eni(ENI1), syn).0, Verdict::Pod { ifindex: POD_C });
    let reply = tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA").build();
    let (verdict, frame) = world.one(Ingress::Pod(POD_C), reply);
    assert_eq!(verdict, Verdict::Eni { ifindex: ENI1 });
    assert_eq!(read(&frame).key.src(), 0x0A00_0214);
}

#[test]
fn what_the_kernel_forwards_goes_back_to_it() {
    let mut world = World::new();
    let syn = tcp("203.0.113.9:5000", "10.0.2.20:80").flags("S").ttl(63).build();
    let (verdict, frame) = world.one(Ingress::ToPod(POD_C), syn);
    assert_eq!(verdict, Verdict::Pod { ifindex: POD_C });
    assert_eq!(read(&frame).ttl, 63, "the kernel has forwarded it already");
    let reply = tcp("10.0.2.20:80", "203.0.113.9:5000").flags("SA").ttl(64).build();
    let (verdict, frame) = world.one(Ingress::Pod(POD_C), reply);
    assert_eq!(verdict, Verdict::KernelPod { ifindex: POD_C });
    assert_eq!(read(&frame).ttl, 64, "the kernel will forward it");
}

#[test]
fn the_hosts_port_gives_way_to_a_pods() {
    let mut world = World::new();
    let (_, frame) = world.one(Ingress::Pod(POD_A), udp("10.0.1.10:4000", "203.0.113.9:53").build());
    let taken = read(&frame).key.sport();
    let (verdict, frame) =
        world.one(Ingress::Host(ENI0), udp(&format!("10.0.9.5:{taken}"), "203.0.113.9:53").build());
    assert_eq!(verdict, Verdict::Eni { ifindex: ENI0 });
    let given = read(&frame).key.sport();
    assert_ne!(given, taken);
    verify(&frame).unwrap();
    let reply = udp("203.0.113.9:53", &format!("10.0.9.5:{given}")).build();
    let (verdict, frame) = world.one(Ingress::Eni(ENI0), reply);
    assert_eq!((verdict, read(&frame).key.dport()), (Verdict::KernelEni { ifindex: ENI0 }, taken));
}

#[test]
fn spoofed_unknown_and_unclaimed_packets_end_as_they_should() {
    let mut world = World::new();
    let spoof = udp("10.0.1.99:1", "203.0.113.9:53").build();
    assert_eq!(world.one(Ingress::Pod(POD_A), spoof).0, Verdict::Drop(Drop::Spoof));
    let local_source = udp("10.0.1.10:1", "10.0.2.20:53").build();
    assert_eq!(world.one(Ingress::Eni(ENI0), local_source).0, Verdict::Drop(Drop::Spoof));
    let stray = tcp("203.0.113.9:80", "10.0.9.5:2000").flags("A").build();
    assert_eq!(world.one(Ingress::Eni(ENI0), stray).0, Verdict::KernelEni { ifindex: ENI0 });
    let midstream = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("A").build();
    assert_eq!(world.one(Ingress::Pod(POD_A), midstream).0, Verdict::Drop(Drop::NoFlow));
    let ping_node = echo_request("10.0.1.10", "10.0.9.5", 7, 1).build();
    assert_eq!(world.one(Ingress::Pod(POD_A), ping_node).0, Verdict::KernelPod { ifindex: POD_A });
    assert_eq!(world.worker.table.live(), 0);
}

#[test]
fn a_packet_waits_for_its_next_hop_and_leaves_with_the_next_snapshot() {
    let mut world = World::new();
    world.snapshot = snapshot(false, 2);
    let frame = udp("10.0.2.20:4000", "10.0.77.7:53").build();
    assert!(world.send(Ingress::Pod(POD_C), frame.clone()).is_empty());
    assert_eq!(world.worker.neighbours_wanted().collect::<Vec<_>>(), [(ENI1, 0x0A00_0A01)]);
    world.snapshot = snapshot(true, 3);
    let mut out = Vec::new();
    world.worker.step(world.now, &world.snapshot, &mut Vec::new(), &mut out, &mut NoTrace);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].verdict, Verdict::Eni { ifindex: ENI1 });
    assert_eq!(out[0].frame[..6], [2, 0, 0, 0, 10, 1]);

    world.snapshot = snapshot(false, 4);
    assert!(world.send(Ingress::Pod(POD_C), frame).is_empty());
    world.now += 2_000_000_000;
    let mut out = Vec::new();
    world.worker.step(world.now, &world.snapshot, &mut Vec::new(), &mut out, &mut NoTrace);
    assert_eq!(out[0].verdict, Verdict::Drop(Drop::NeighbourUnresolved));
    assert!(world.worker.counters.totals().conserved());
}

#[test]
fn the_last_hop_is_told_to_the_sender() {
    let mut world = World::new();
    let (verdict, frame) =
        world.one(Ingress::Pod(POD_A), udp("10.0.1.10:4000", "203.0.113.9:53").ttl(1).build());
    assert_eq!(verdict, Verdict::Pod { ifindex: POD_A });
    verify(&frame).unwrap();
    assert_eq!(frame[34], 11);
    let totals = world.worker.counters.totals();
    assert_eq!((totals.dropped(Drop::TtlExceeded), totals.event(Event::Generated)), (1, 1));
}

/// One packet of a random conversation.
#[derive(Debug, Clone)]
struct Move {
    pod: bool,
    inside: bool,
    reply: bool,
    tcp: Option<&'static str>,
    ttl: u8,
    payload: usize,
    partial: bool,
    pause: u64,
}

fn moves() -> impl proptest::strategy::Strategy<Value = Vec<Move>> {
    use proptest::prelude::*;
    let tcp = proptest::option::of(proptest::sample::select(vec!["S", "SA", "A", "PA", "FA", "R", "RA"]));
    let one = (any::<(bool, bool, bool, bool)>(), tcp, 0u8..4, 0usize..1600, 0u64..40).prop_map(
        |((pod, inside, reply, partial), tcp, ttl, payload, pause)| {
            let ttl = if ttl == 0 { 1 } else { 64 };
            Move { pod, inside, reply, tcp, ttl, payload, partial, pause }
        },
    );
    proptest::collection::vec(one, 1..60)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn the_fast_tier_does_what_the_general_path_does(moves in moves()) {
        let (mut fast, mut general) = (World::new(), World::new());
        general.worker.general_only = true;
        let mut translated = 1024;
        for m in moves {
            let (pod, ip, ifindex) = if m.pod { ("10.0.1.10:4000", ENI0, POD_A) } else { ("10.0.2.20:4000", ENI1, POD_C) };
            let far = if m.inside { "10.0.77.7:80" } else { "203.0.113.9:80" };
            let near = if m.inside { pod.to_owned() } else { format!("10.0.9.5:{translated}") };
            let (from, to) = if m.reply { (far, near.as_str()) } else { (pod, far) };
            let ingress = match (m.reply, m.inside) {
                (true, true) => Ingress::Eni(ip),
                (true, false) => Ingress::Eni(ENI0),
                (false, _) => Ingress::Pod(ifindex),
            };
            let builder = match m.tcp {
                Some(flags) => tcp(from, to).flags(flags),
                None => udp(from, to),
            };
            let builder = builder.payload(&vec![7; m.payload]).ttl(m.ttl);
            let (frame, offload) =
                if m.partial { builder.build_partial() } else { (builder.build(), Offload::default()) };
            let mut results = Vec::new();
            for world in [&mut fast, &mut general] {
                world.now += m.pause * 1_000_000_000;
                let mut out = Vec::new();
                let mut input = vec![Packet { frame: frame.clone(), ingress, offload }];
                world.worker.step(world.now, &world.snapshot, &mut input, &mut out, &mut NoTrace);
                let seen = out.into_iter().map(|o| (o.verdict, o.frame, o.offload)).collect::<Vec<_>>();
                results.push((seen, world.worker.counters.totals(), world.worker.table.live()));
            }
            proptest::prop_assert_eq!(&results[0], &results[1]);
            if let (false, false, Some((Verdict::Eni { .. }, frame, _))) = (m.reply, m.inside, results[0].0.first()) {
                translated = read(frame).key.sport();
            }
        }
    }
}

#[test]
fn all_fragments_of_a_translated_datagram_get_one_source_and_one_identification() {
    use crate::testing::fragments;
    let whole = udp("10.0.1.10:4000", "203.0.113.9:53").payload(&[5; 4000]).build();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut world = World::new();
        let pieces = fragments(&whole, 1480);
        assert_eq!(pieces.len(), 3);
        let mut sent = Vec::new();
        for i in order {
            sent.extend(world.send(Ingress::Pod(POD_A), pieces[i].clone()));
        }
        assert_eq!(sent.len(), 3);
        let ids: std::collections::HashSet<_> = sent.iter().map(|o| read(&o.frame).id).collect();
        assert_eq!(ids.len(), 1);
        for output in &sent {
            assert_eq!(output.verdict, Verdict::Eni { ifindex: ENI0 });
            assert_eq!(read(&output.frame).key.src(), 0x0A00_0905);
        }
        assert_eq!(read(&sent[0].frame).fragment_offset(), 0, "the first leaves first");
        let frames: Vec<_> = sent.into_iter().map(|o| o.frame).collect();
        verify(&crate::testing::reassemble(&frames).unwrap()).unwrap();
        assert_eq!(world.worker.counters.totals().held, 0);
    }
}

#[test]
fn fragments_without_their_first_one_are_given_up_in_time() {
    let mut world = World::new();
    let whole = udp("203.0.113.9:53", "10.0.9.5:2000").payload(&[5; 4000]).build();
    let pieces = crate::testing::fragments(&whole, 1480);
    assert!(world.send(Ingress::Eni(ENI0), pieces[1].clone()).is_empty());
    assert_eq!(world.worker.counters.totals().held, 1);
    world.now += 31_000_000_000;
    let mut out = Vec::new();
    world.worker.step(world.now, &world.snapshot, &mut Vec::new(), &mut out, &mut NoTrace);
    assert_eq!(out[0].verdict, Verdict::Drop(Drop::FragmentTimeout));
    let mut world = World::new();
    let mut given = Vec::new();
    for piece in [2, 0, 1] {
        given.extend(world.send(Ingress::Eni(ENI0), pieces[piece].clone()));
    }
    assert!(
        given.iter().all(|o| o.verdict == Verdict::KernelEni { ifindex: ENI0 }),
        "not ours: the kernel's, whole"
    );
    assert_eq!(given.len(), 3);
}

#[test]
fn two_hosts_that_ping_each_other_with_one_identifier_have_two_flows() {
    let mut world = World::new();
    let out = echo_request("10.0.1.10", "203.0.113.9", 7, 1).build();
    let (verdict, frame) = world.one(Ingress::Pod(POD_A), out);
    assert_eq!(verdict, Verdict::Eni { ifindex: ENI0 });
    let id = read(&frame).key.echo_id();
    // The other way round, straight to the pod's address.
    let asked = echo_request("203.0.113.9", "10.0.1.10", 7, 1).build();
    assert_eq!(world.one(Ingress::Eni(ENI0), asked).0, Verdict::Pod { ifindex: POD_A });
    let (verdict, frame) =
        world.one(Ingress::Pod(POD_A), echo_reply("10.0.1.10", "203.0.113.9", 7, 1).build());
    assert_eq!((verdict, read(&frame).key.src()), (Verdict::Eni { ifindex: ENI0 }, 0x0A00_010A));
    let (verdict, frame) =
        world.one(Ingress::Eni(ENI0), echo_reply("203.0.113.9", "10.0.9.5", id, 1).build());
    assert_eq!((verdict, read(&frame).key.echo_id()), (Verdict::Pod { ifindex: POD_A }, 7));
    verify(&frame).unwrap();
    // And a ping to the node with the identifier of the pod's mapping.
    let to_node = echo_request("203.0.113.9", "10.0.9.5", id, 1).build();
    assert_eq!(world.one(Ingress::Eni(ENI0), to_node).0, Verdict::KernelEni { ifindex: ENI0 });
}
