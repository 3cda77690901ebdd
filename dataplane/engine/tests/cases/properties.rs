//! What must hold for any node and any packet.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use sluice_engine::flow::Origin;
use sluice_engine::random::Random;
use sluice_engine::testing::{FrameBuilder, echo_request, read, show, tcp, udp};
use sluice_engine::{Ingress, Verdict};
use sluice_state::{Eni, Mac, Pod, RandomizeSnat, State};

use crate::world::*;

/// A node of random shape.
#[derive(Debug, Clone)]
struct Shape {
    enis: usize,
    primary: usize,
    /// The ENI of each pod.
    pods: Vec<usize>,
    external_snat: bool,
    excluded: bool,
    randomize: RandomizeSnat,
}

fn shape() -> impl Strategy<Value = Shape> {
    let randomize =
        prop::sample::select(vec![RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None]);
    (1usize..=4)
        .prop_flat_map(move |enis| {
            let pods = prop::collection::vec(0..enis, 1..6);
            (Just(enis), 0..enis, pods, any::<bool>(), any::<bool>(), randomize.clone())
        })
        .prop_map(|(enis, primary, pods, external_snat, excluded, randomize)| Shape {
            enis,
            primary,
            pods,
            external_snat,
            excluded,
            randomize,
        })
}

fn build(shape: &Shape) -> World {
    World::with(|state, facts| {
        state.enis = (0..shape.enis as u8)
            .map(|i| Eni {
                name: format!("eni{i}"),
                primary: usize::from(i) == shape.primary,
                address: Ipv4Addr::new(10, 0, 100 + i, 5),
                subnet: format!("10.0.{}.0/24", 100 + i).parse().unwrap(),
                gateway: Ipv4Addr::new(10, 0, 100 + i, 1),
                gateway_mac: None,
            })
            .collect();
        state.pods = (0u8..)
            .zip(&shape.pods)
            .map(|(i, eni)| Pod {
                namespace: "default".into(),
                name: format!("p{i}"),
                ip: Ipv4Addr::new(10, 0, 1, 10 + i),
                eni: format!("eni{eni}"),
                interface: format!("veth{i}"),
                mac: Mac([2, 0, 0, 9, 9, i]),
            })
            .collect();
        state.nat.external_snat = shape.external_snat;
        state.nat.randomize = shape.randomize;
        if shape.excluded {
            state.nat.exclude_cidrs = vec!["198.51.100.0/24".parse().unwrap()];
        }
        *facts = host(state);
    })
}

/// The ENI that owns an address, written down anew from the state.
fn owner(state: &State, source: Ipv4Addr) -> Option<u32> {
    let name = match state.pods.iter().find(|pod| pod.ip == source) {
        Some(pod) => &pod.eni,
        None => &state.enis.iter().find(|eni| eni.address == source)?.name,
    };
    state.enis.iter().position(|eni| &eni.name == name).map(|i| 2 + i as u32)
}

fn random_packet(state: &State, random: &mut Random, sent: &[Vec<u8>]) -> (Ingress, FrameBuilder) {
    let mut draw = |n: usize| random.next_u64() as usize % n;
    let pod = draw(state.pods.len());
    let eni = draw(state.enis.len());
    let far = [
        "203.0.113.9",
        "198.51.100.7",
        "10.0.77.7",
        "100.64.1.1",
        "10.0.1.10",
        "10.0.1.11",
        "10.96.0.10",
        "10.96.0.10",
        "10.96.0.11",
        "10.96.0.12",
    ][draw(10)];
    let (near, far_port) = (format!("{}:{}", state.pods[pod].ip, [1024, 40_000][draw(2)]), [53, 80][draw(2)]);
    let far = format!("{far}:{far_port}");
    let flags = ["S", "SA", "A", "FA", "R"][draw(5)];
    let (ingress, from, to) = match draw(4) {
        0 | 1 => (Ingress::Pod(10 + pod as u32), near, far),
        2 => (Ingress::Eni(2 + eni as u32), far, near),
        // A reply to something that was sent.
        _ => match sent.get(draw(sent.len().max(1))) {
            Some(frame) => {
                let key = read(frame).key;
                let end = |address, port| format!("{}:{port}", Ipv4Addr::from_bits(address));
                (Ingress::Eni(2 + eni as u32), end(key.dst(), key.dport()), end(key.src(), key.sport()))
            }
            None => (Ingress::Pod(10 + pod as u32), near, far),
        },
    };
    let address = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
    let builder = match draw(4) {
        0 => udp(&from, &to),
        1 => echo_request(&address(&from), &address(&to), 7, 1),
        _ => tcp(&from, &to).flags(flags),
    };
    (ingress, builder)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// EC2 drops what leaves by an ENI that does not own its source; and a pod's private address never leaves where it
    /// must be translated, unless the other side opened the connection.
    #[test]
    fn the_egress_eni_is_a_function_of_the_source_after_translation(shape in shape(), seed: u64) {
        let mut w = build(&shape);
        let mut random = Random::new(seed);
        w.reload(|state, _| crate::traffic::serve(state, &mut random));
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for _ in 0..60 {
            let (ingress, builder) = random_packet(&w.state, &mut random, &sent);
            let out = w.step(vec![(ingress, builder.into())]).only();
            assert_not_to_a_service(&w, out.ingress, out.verdict, &out.frame);
            let Verdict::Eni { ifindex } = out.verdict else { continue };
            let parsed = read(&out.frame);
            let (src, dst) = (Ipv4Addr::from_bits(parsed.key.src()), Ipv4Addr::from_bits(parsed.key.dst()));
            prop_assert_eq!(Some(ifindex), owner(&w.state, src), "{}", show(&out.frame));
            let pods = w.state.pods.iter().any(|pod| pod.ip == src);
            if pods && w.state.nat.translates(dst) {
                let theirs = w.flows().iter().any(|f| {
                    f.origin == Origin::Wire && f.original == parsed.key.reversed()
                });
                let icmp = parsed.key.proto() == 1;
                prop_assert!(theirs || icmp, "leaked: {}", show(&out.frame));
            }
            sent.push(out.frame);
        }
    }

    /// Any bytes at all: no panic, no frame lost, every counter in its place.
    #[test]
    fn any_bytes_end_with_a_verdict(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        damage in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
        seed: u64,
    ) {
        let mut w = World::new();
        let mut random = Random::new(seed);
        w.step(vec![(POD_A, bytes.clone().into()), (WIRE0, bytes.into())]);
        for _ in 0..10 {
            let (ingress, mut input) = crate::traffic::packet(&mut random);
            for (at, value) in &damage {
                if let Some(byte) = input.frame.get_mut(*at) {
                    *byte = *value;
                }
            }
            w.step(vec![(ingress, input)]);
        }
    }

    /// No two live flows can be confused: every packet belongs to at most one.
    #[test]
    fn mappings_are_unique(seed: u64, workers in 1u16..4) {
        let mut w = World::sized(Size { workers, seed, ..Size::default() }, |state, host| {
            let mut set = sluice_state::PortSet::default();
            (1024..1056).for_each(|port| set.insert(port));
            (host.tcp, host.udp, host.icmp) = (set.clone(), set.clone(), set);
            state.nat.randomize = RandomizeSnat::None;
            crate::traffic::serve(state, &mut Random::new(seed));
        });
        let mut random = Random::new(seed);
        for _ in 0..300 {
            w.at = random.next_u64() as usize % usize::from(workers);
            let packet = crate::traffic::packet(&mut random);
            w.step(vec![packet]);
        }
        assert_unique(&w);
    }
}

/// Nothing of a pod's leaves the node for an address of the service range, where nobody is.
pub(crate) fn assert_not_to_a_service(w: &World, ingress: Ingress, verdict: Verdict, frame: &[u8]) {
    if matches!(verdict, Verdict::Eni { .. }) && !matches!(ingress, Ingress::Host(_)) {
        let dst = Ipv4Addr::from_bits(u32::from_be_bytes([frame[30], frame[31], frame[32], frame[33]]));
        assert!(!w.state.services.cidrs.iter().any(|range| range.contains(&dst)), "{}", show(frame));
    }
}

/// Keys of both directions of all live flows are different, and every translated source is of the set.
pub(crate) fn assert_unique(w: &World) {
    let mut keys = HashSet::new();
    for flow in w.flows() {
        assert!(keys.insert(flow.original), "twice: {flow:?}");
        // What somebody sends to itself has one key for both directions.
        let itself = flow.original == flow.translated.reversed();
        assert!(itself || keys.insert(flow.translated.reversed()), "twice: {flow:?}");
        // What goes to a service keeps its source, unless the endpoint is reached from the node's address.
        if flow.original.src() != flow.translated.src() {
            let set = match flow.translated.proto() {
                6 => &w.snapshot.ports[0],
                17 => &w.snapshot.ports[1],
                _ => &w.snapshot.ports[2],
            };
            assert!(set.set.contains(flow.translated.sport()), "{flow:?}");
            assert_eq!(flow.translated.src(), address(N), "{flow:?}");
        }
    }
}
