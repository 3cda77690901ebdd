//! B. Source ports: which one, whose, how many.

use std::collections::HashSet;

use sluice_engine::counters::Event::{FlowsOpened, PortScans, PortsTaken};
use sluice_engine::testing::{echo_request, read, show, tcp, udp};
use sluice_engine::{Drop, Verdict};
use sluice_state::{PortRange, PortSet, RandomizeSnat};

use crate::world::*;

fn ports(ranges: &[(u16, u16)]) -> PortSet {
    let mut set = PortSet::default();
    ranges.iter().for_each(|(first, last)| set.insert_range(PortRange { first: *first, last: *last }));
    set
}

#[test]
fn b01_preserved_when_free_and_random_is_off() {
    let mut w = World::with(|state, _| state.nat.randomize = RandomizeSnat::None);
    for port in [1024, 5000, 29_999, 61_000, 65_535] {
        assert_eq!(w.udp_out(&format!("10.0.1.10:{port}"), "203.0.113.9:53"), port);
    }
    // Taken by A towards this destination, and outside the set: another one.
    for port in [5000, 40_000] {
        let given = w.udp_out(&format!("10.0.1.11:{port}"), "203.0.113.9:53");
        assert_ne!(given, port);
        assert!(w.snapshot.ports[1].set.contains(given));
    }
    // Towards another destination it is free.
    assert_eq!(w.udp_out("10.0.1.11:5000", "203.0.113.9:54"), 5000);
}

#[test]
fn b01_random_is_the_default_and_keeps_no_port() {
    let mut w = World::new();
    assert_eq!(w.state.nat.randomize, RandomizeSnat::Prng);
    let kept = (0..40u16)
        .filter(|i| w.udp_out(&format!("10.0.1.10:{}", 2000 + i), "203.0.113.9:53") == 2000 + i)
        .count();
    assert!(kept <= 2, "{kept} of 40 ports were kept by chance");
}

#[test]
fn b01_hashrandom_depends_on_the_connection_and_the_seed_alone() {
    let first = |seed: u64, from: &str, to: &str| {
        let mut w = World::sized(Size { seed, ..Size::default() }, |state, _| {
            state.nat.randomize = RandomizeSnat::HashRandom;
        });
        w.udp_out(from, to)
    };
    let (from, to) = ("10.0.1.10:40000", "203.0.113.9:53");
    assert_eq!(first(1, from, to), first(1, from, to));
    assert_ne!(first(1, from, to), first(2, from, to));
    assert_ne!(first(1, from, to), first(1, "10.0.1.10:40001", to));
    // The entropy that was drawn before makes no difference, as it does for prng.
    let after = |mode: RandomizeSnat| {
        let mut w = World::with(|state, _| state.nat.randomize = mode);
        let first = w.udp_out("10.0.1.11:1", "198.51.100.7:9");
        (first, w.udp_out(from, to))
    };
    assert_eq!(after(RandomizeSnat::HashRandom).1, first(7, from, to));
    assert_ne!(after(RandomizeSnat::Prng).0, after(RandomizeSnat::Prng).1);
}

#[test]
fn b02_two_pods_with_one_source_port_to_one_destination() {
    for mode in [RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None] {
        let mut w = World::with(|state, _| state.nat.randomize = mode);
        let a = w.udp_out("10.0.1.10:20000", "203.0.113.9:53");
        let b = w.udp_out("10.0.1.11:20000", "203.0.113.9:53");
        assert_ne!(a, b, "{mode:?}");
        let back = w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{a}")), TO_A, &[]);
        assert_eq!(show(&back), "203.0.113.9:53>10.0.1.10:20000 udp ttl 63 len 0");
        let back = w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{b}")), TO_B, &[]);
        assert_eq!(show(&back), "203.0.113.9:53>10.0.1.11:20000 udp ttl 63 len 0");
    }
}

#[test]
fn b02_two_pods_with_one_echo_identifier() {
    let mut w = World::with(|state, _| state.nat.randomize = RandomizeSnat::None);
    let mut id = |pod, from| {
        let out = w.pass(pod, echo_request(from, X, 1234, 1), ENI0, &[FlowsOpened, PortsTaken]);
        read(&out).key.sport()
    };
    assert_eq!(id(POD_A, A), 1234);
    assert_ne!(id(POD_B, B), 1234);
}

#[test]
fn b04_inside_source_ports_at_the_edges() {
    for mode in [RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None] {
        for sport in [0, 1, 511, 512, 1023, 1024, 29_999, 30_000, 60_999, 61_000, 65_535] {
            let mut w = World::with(|state, _| state.nat.randomize = mode);
            let given = w.udp_out(&format!("10.0.1.10:{sport}"), "203.0.113.9:53");
            assert!(w.snapshot.ports[1].set.contains(given), "{sport} got {given}");
            let back = w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{given}")), TO_A, &[]);
            assert_eq!(read(&back).key.dport(), sport);
        }
    }
}

#[test]
fn b04_both_ends_of_each_range_are_used() {
    let set = ports(&[(1024, 1026), (1087, 1089), (65_534, 65_535)]);
    for mode in [RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None] {
        let mut w = World::with(|state, host| {
            state.nat.randomize = mode;
            host.udp = set.clone();
        });
        let mut given = Vec::new();
        for i in 0..8 {
            let frame = udp(&format!("10.0.1.10:{}", 40_000 + i), "203.0.113.9:53").build();
            let mut step = w.step(vec![(POD_A, frame.into())]);
            given.push(read(&step.only().frame).key.sport());
        }
        given.sort_unstable();
        assert_eq!(given, set.iter().collect::<Vec<_>>(), "{mode:?}");
        // One more: exhausted, to this destination and to no other.
        let mut step = w.step(vec![(POD_A, udp("10.0.1.10:50000", "203.0.113.9:53").into())]);
        assert_eq!(step.only().verdict, Verdict::Drop(Drop::PortsExhausted));
        w.udp_out("10.0.1.10:50000", "203.0.113.9:54");
        // TCP is a space of its own.
        w.pass(POD_A, tcp("10.0.1.10:50000", "203.0.113.9:53").flags("S"), ENI0, &[FlowsOpened, PortsTaken]);
    }
}

#[test]
fn b05_a_port_is_free_again_when_its_flow_is_gone() {
    let mut w = World::with(|state, host| {
        state.nat.randomize = RandomizeSnat::Prng;
        host.udp = ports(&[(2000, 2063)]);
    });
    let mut seen = HashSet::new();
    for i in 0..64 {
        let frame = udp(&format!("10.0.1.10:{}", 40_000 + i), "203.0.113.9:53").build();
        seen.insert(read(&w.step(vec![(POD_A, frame.into())]).only().frame).key.sport());
        // Every flow a little later, so that they end one by one.
        w.advance(SECOND / 10);
    }
    assert_eq!(seen.len(), 64, "exact: not one port is left over");
    w.dropped(POD_A, udp("10.0.1.10:50000", "203.0.113.9:53"), Drop::PortsExhausted, &[PortScans]);
    w.advance(30 * SECOND - 64 * SECOND / 10);
    // The first flow has ended, the others have not.
    w.idle();
    let frame = udp("10.0.1.10:50000", "203.0.113.9:53").build();
    let mut step = w.step(vec![(POD_A, frame.into())]);
    assert_eq!(step.only().verdict, ENI0);
    // What was expired on the way is counted when the next step begins.
    assert_eq!(w.idle().moved["flows_expired"], 1);
    w.dropped(POD_A, udp("10.0.1.10:50001", "203.0.113.9:53"), Drop::PortsExhausted, &[]);
}
