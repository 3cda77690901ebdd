use std::collections::HashSet;

use sluice_state::{PortRange, PortSet};

use super::*;
use crate::snapshot::Ports;

fn ports(ranges: &[(u16, u16)]) -> Ports {
    let mut set = PortSet::default();
    for (first, last) in ranges {
        set.insert_range(PortRange { first: *first, last: *last });
    }
    Ports::new(&set)
}

struct World {
    taken: HashSet<(u32, u16, u16)>,
    chooser: PortChooser,
    random: Random,
}

impl World {
    fn new() -> Self {
        Self { taken: HashSet::new(), chooser: PortChooser::new(), random: Random::new(7) }
    }

    fn open(&mut self, now: u64, ports: &Ports, mode: RandomizeSnat, original: FlowKey) -> Option<u16> {
        let taken = &mut self.taken;
        self.chooser.choose(now, &mut self.random, ports, mode, &original, 99, |key| {
            if taken.insert((key.dst(), key.dport(), key.sport())) {
                Attempt::Settled(key.sport())
            } else {
                Attempt::Taken
            }
        })
    }
}

fn to(dst: u32, sport: u16) -> FlowKey {
    FlowKey::new(1, dst, sport, 80, 6)
}

#[test]
fn every_port_is_given_out_before_one_is_refused() {
    for mode in [RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None] {
        let ports = ports(&[(1024, 1523), (61_000, 61_499), (65_535, 65_535)]);
        let mut world = World::new();
        let mut seen = HashSet::new();
        for i in 0..1001u16 {
            let port = world.open(0, &ports, mode, to(5, i)).unwrap();
            assert!(ports.set.contains(port) && seen.insert(port), "{mode:?} {port}");
        }
        assert_eq!(world.open(0, &ports, mode, to(5, 40_000)), None);
        assert!(world.open(0, &ports, mode, to(6, 40_000)).is_some(), "another destination is not affected");
        world.taken.remove(&(5, 80, 1100));
        assert_eq!(
            world.open(RESCAN_NS, &ports, mode, to(5, 40_000)),
            Some(1100),
            "a freed port is found again"
        );
    }
}

#[test]
fn none_keeps_a_port_of_the_set_and_prng_does_not() {
    let ports = ports(&[(1024, 29_999)]);
    let mut world = World::new();
    assert_eq!(world.open(0, &ports, RandomizeSnat::None, to(5, 2000)), Some(2000));
    assert_ne!(world.open(0, &ports, RandomizeSnat::None, to(5, 2000)), Some(2000), "a clash gets another");
    let outside = world.open(0, &ports, RandomizeSnat::None, to(5, 40_000)).unwrap();
    assert!(ports.set.contains(outside));
    let kept =
        (0..40u16).filter(|i| world.open(0, &ports, RandomizeSnat::Prng, to(7, 3000 + i)) == Some(3000 + i));
    assert!(kept.count() < 3);
}

#[test]
fn hashrandom_repeats_itself_for_the_same_connection() {
    let ports = ports(&[(1024, 29_999)]);
    let mut world = World::new();
    let first = world.open(0, &ports, RandomizeSnat::HashRandom, to(5, 2000)).unwrap();
    world.taken.clear();
    assert_eq!(world.open(0, &ports, RandomizeSnat::HashRandom, to(5, 2000)), Some(first));
}

#[test]
fn ports_by_rank_are_the_set_in_order() {
    let ports = ports(&[(1024, 1026), (5000, 5000), (65_534, 65_535)]);
    let all: Vec<_> = (0..ports.len()).map(|rank| ports.nth(rank).unwrap()).collect();
    assert_eq!(all, [1024, 1025, 1026, 5000, 65_534, 65_535]);
    assert_eq!(ports.nth(6), Some(1024));
}

#[test]
fn an_empty_set_gives_nothing() {
    let mut world = World::new();
    assert_eq!(world.open(0, &ports(&[]), RandomizeSnat::Prng, to(5, 1)), None);
}
