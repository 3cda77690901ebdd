use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;
use sluice_state::{Endpoint, Frontend, Protocol, Service as Wanted, Services as State};

use super::*;

fn frontend(address: Option<&str>, port: u16) -> Frontend {
    Frontend { address: address.map(|a| a.parse().unwrap()), port, sources: None, over_local: false }
}

fn service(name: &str, frontends: Vec<Frontend>, endpoints: &[&str]) -> Wanted {
    let endpoint = |text: &&str| {
        let socket: std::net::SocketAddrV4 = text.parse().unwrap();
        Endpoint { ip: *socket.ip(), port: socket.port() }
    };
    Wanted {
        name: name.into(),
        protocol: Protocol::Tcp,
        frontends,
        endpoints: endpoints.iter().map(endpoint).collect(),
        affinity: None,
        without_endpoints: WithoutEndpoints::Reject,
    }
}

fn state(services: Vec<Wanted>) -> State {
    State {
        cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        services: services.into_iter().map(Arc::new).collect(),
    }
}

fn key(dst: &str, dport: u16, protocol: u8) -> FlowKey {
    let dst: std::net::Ipv4Addr = dst.parse().unwrap();
    FlowKey::new(0x0A00_010A, dst.to_bits(), 40_000, dport, protocol)
}

#[test]
fn a_frontend_is_found_by_address_port_and_protocol() {
    let mut above = frontend(Some("203.0.113.80"), 80);
    above.over_local = true;
    let places = vec![frontend(Some("10.96.0.10"), 80), above, frontend(None, 30_080)];
    let (services, _) = Services::default().follow(&state(vec![service("a", places, &["10.0.1.11:8080"])]));
    let found = |dst, port, protocol, local| services.find(&key(dst, port, protocol), local).is_some();
    assert!(found("10.96.0.10", 80, 6, false));
    assert!(!found("10.96.0.10", 80, 17, false) && !found("10.96.0.10", 81, 6, false));
    assert!(!found("10.96.0.11", 80, 6, false));
    // A cluster IP that the node has taken over is the node's, what stands above it is not.
    assert!(!found("10.96.0.10", 80, 6, true) && found("203.0.113.80", 80, 6, true));
    // A node port is on the node's addresses and nowhere else.
    assert!(found("10.0.9.5", 30_080, 6, true) && !found("10.0.9.5", 30_080, 6, false));
    // Nothing without ports is for a service, whatever its key looks like.
    assert!(!found("10.96.0.10", 80, 1, false));
    assert!(services.covers(0x0A60_0001) && !services.covers(0x0A61_0001));
}

#[test]
fn only_what_takes_an_endpoint_or_an_address_away_moves_flows() {
    let one =
        |endpoints: &[&str]| state(vec![service("a", vec![frontend(Some("10.96.0.10"), 80)], endpoints)]);
    let (first, _) = Services::default().follow(&one(&["10.0.1.11:80"]));
    let after = |next: &State| first.follow(next).1;
    assert!(!after(&one(&["10.0.1.11:80"])), "equal, though told anew");
    assert!(!after(&one(&["10.0.1.12:80", "10.0.1.11:80"])), "one more");
    assert!(after(&one(&["10.0.1.12:80"])));
    assert!(after(&one(&[])));
    assert!(after(&State::default()));
    let mut wider = one(&["10.0.1.11:80"]);
    wider.cidrs.push("10.97.0.0/16".parse().unwrap());
    assert!(after(&wider));
    let other = state(vec![service("a", vec![frontend(Some("10.96.0.11"), 80)], &["10.0.1.11:80"])]);
    assert!(after(&other));
}

#[test]
fn a_change_shares_everything_else() {
    let many = |changed: &str| {
        let of = |n: u32| {
            let address = format!("10.96.{}.{}", n >> 8, n & 255);
            service(&format!("s{n}"), vec![frontend(Some(&address), 80)], &["10.0.1.11:80"])
        };
        let mut all: Vec<_> = (0..2000).map(of).collect();
        all[700].endpoints = service("x", vec![], &[changed]).endpoints;
        all
    };
    let before = state(many("10.0.1.11:80"));
    let (first, _) = Services::default().follow(&before);
    let mut after = before.clone();
    after.services[700] = Arc::new(many("10.0.1.12:80").swap_remove(700));
    let (second, moved) = first.follow(&after);
    assert!(moved);
    let shared = first.shards.iter().zip(&*second.shards).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, first.shards.len() - 1);
    let (third, moved) = second.follow(&after);
    assert!(!moved && Arc::ptr_eq(&second.shards, &third.shards));
}

#[test]
fn chance_is_fair() {
    let endpoints: Vec<String> = (0..7).map(|n| format!("10.0.3.{n}:80")).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let wanted = state(vec![service("a", vec![frontend(Some("10.96.0.10"), 80)], &endpoints)]);
    let (services, _) = Services::default().follow(&wanted);
    let place = services.find(&key("10.96.0.10", 80, 6), false).unwrap();
    let (mut random, affinity) = (Random::new(3), Affinity::new(3));
    let mut counts = BTreeMap::<u32, u32>::new();
    for _ in 0..70_000 {
        let choice = place.service().choose(1, 0, &mut random, &affinity).unwrap();
        *counts.entry(choice.backend.ip).or_default() += 1;
    }
    assert_eq!(counts.len(), 7);
    assert!(counts.values().all(|n| (9_500..10_500).contains(n)), "{counts:?}");
}

#[test]
fn without_room_a_client_has_what_its_address_gives_it() {
    let mut wanted = service("a", vec![frontend(Some("10.96.0.10"), 80)], &[]);
    wanted.affinity = Some(10_800);
    let with = |n: u8| {
        let mut wanted = wanted.clone();
        let endpoint = |n| Endpoint { ip: std::net::Ipv4Addr::new(10, 0, 3, n), port: 80 };
        wanted.endpoints = (0..n).map(endpoint).collect();
        Services::default().follow(&state(vec![wanted])).0
    };
    let (seven, eight) = (with(7), with(8));
    let steady = |services: &Services, address| {
        let service = services.find(&key("10.96.0.10", 80, 6), false).unwrap().service();
        service.steady(Client { address, service: service.id() }).unwrap()
    };
    let (mut used, mut moved) = (HashSet::new(), 0);
    for client in 0..8000 {
        let (before, after) = (steady(&seven, client), steady(&eight, client));
        assert_eq!(before, steady(&seven, client));
        used.insert(before);
        if before != after {
            assert_eq!(after.ip & 255, 7, "only to the one that came");
            moved += 1;
        }
    }
    assert_eq!(used.len(), 7);
    assert!((800..1200).contains(&moved), "{moved}");
}

/// A random change of a list of services, as generations make them and as resyncs do.
fn change(list: &mut Vec<Arc<Wanted>>, draw: &mut Random) {
    let n = (draw.next_u32() % 40) as usize;
    let make = |n: usize, port: u16| {
        let address = format!("10.96.0.{n}");
        Arc::new(service(&format!("s{n}"), vec![frontend(Some(&address), port)], &["10.0.1.11:80"]))
    };
    match draw.next_u32() % 6 {
        0 | 1 => {
            let new = make(n, 80 + (draw.next_u32() % 3) as u16);
            match list.iter_mut().find(|s| s.name == new.name) {
                Some(slot) => *slot = new,
                None => list.push(new),
            }
        }
        2 => list.retain(|s| s.name != format!("s{n}")),
        3 => list.reverse(),
        4 => list.iter_mut().for_each(|s| *s = Arc::new((**s).clone())),
        _ => list.truncate(n),
    }
}

proptest! {
    /// Whatever way the services came to be, what is found is what compiling them at once gives.
    #[test]
    fn following_is_compiling_anew(seed: u64) {
        let mut draw = Random::new(seed);
        let mut list = Vec::new();
        let mut services = Services::default();
        for _ in 0..30 {
            for _ in 0..=draw.next_u32() % 3 {
                change(&mut list, &mut draw);
            }
            let wanted = State { cidrs: Vec::new(), services: list.clone().into() };
            services = services.follow(&wanted).0;
            let anew = Services::default().follow(&wanted).0;
            let places = |services: &Services| -> BTreeMap<u64, (u64, Vec<Backend>)> {
                let entries = services.shards.iter().flat_map(|shard| shard.iter());
                entries.map(|(k, p)| (*k, (p.service.id, p.service.endpoints.to_vec()))).collect()
            };
            prop_assert_eq!(places(&services), places(&anew));
        }
    }
}
