//! J09. Clients that keep their endpoint.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use sluice_engine::counters::Event::FlowsOpened;
use sluice_engine::testing::read;
use sluice_engine::{Drop, Verdict};
use sluice_state::Protocol;

use crate::j_services::{put, service, syn};
use crate::world::*;

#[test]
fn j09_a_client_keeps_its_endpoint_for_the_time_that_the_service_says() {
    let endpoints: Vec<String> = (1..=50).map(|n| format!("10.0.77.{n}:80")).collect();
    let of = |endpoints: &[String]| {
        let list: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut sticky = service(Protocol::Tcp, "10.96.0.10:80", &list);
        sticky.affinity = Some(60);
        sticky
    };
    let mut w = World::with(|state, _| put(state, of(&endpoints)));
    let mut port = 1000;
    let mut connect = |w: &mut World, from: &str, ingress, way| {
        port += 1;
        let out = w.pass(ingress, syn(&format!("{from}:{port}"), "10.96.0.10:80"), way, &[FlowsOpened]);
        read(&out).key.dst()
    };
    let first = connect(&mut w, A, POD_A, ENI0);
    for _ in 0..20 {
        // Each connection begins the time anew.
        w.advance(50 * SECOND);
        w.reload(|_, _| {});
        w.at = 0;
        let step = w.idle();
        assert!(step.outs.is_empty());
        assert_eq!(connect(&mut w, A, POD_A, ENI0), first);
    }
    // Another client has another one, by a chance of 49 in 50 each.
    let others: HashSet<_> = (0..3)
        .map(|n| connect(&mut w, [B, C, B][n], [POD_B, POD_C, POD_B][n], [ENI0, ENI1, ENI0][n]))
        .collect();
    assert!(others.len() == 2 && !others.contains(&first), "{others:?}");
    // It keeps it while others come and go, and not longer than it serves.
    let less: Vec<String> = endpoints[..30].to_vec();
    let keeps = less.iter().any(|e| e.starts_with(&format!("{}:", Ipv4Addr::from_bits(first))));
    w.reload(|state, _| put(state, of(&less)));
    let now = connect(&mut w, A, POD_A, ENI0);
    assert_eq!(now == first, keeps);
    assert_eq!(connect(&mut w, A, POD_A, ENI0), now);
    // When its time is over, chance chooses again.
    let mut seen = HashSet::new();
    for _ in 0..10 {
        w.advance(61 * SECOND);
        w.idle();
        seen.insert(connect(&mut w, A, POD_A, ENI0));
    }
    assert!(seen.len() > 3, "{seen:?}");
}

#[test]
fn j09_a_refused_connection_is_not_remembered() {
    let mut w = World::with(|state, _| {
        let mut sticky = service(Protocol::Tcp, "10.96.0.10:80", &["10.0.2.20:80", "10.0.1.11:81"]);
        sticky.affinity = Some(10_800);
        put(state, sticky);
        crate::k_policy::isolate_a(state);
        // Of the two only B takes from A.
        state.policy.pods[0].egress = None;
        state.policy.pods.push(sluice_state::PodPolicy {
            ip: C.parse().unwrap(),
            ingress: Some(1),
            egress: None,
        });
    });
    // Half of the tries meet C, which refuses; the first that comes to be is remembered, and every later one is B.
    let (mut refused, mut opened) = (0, 0);
    for port in 1000..1100 {
        let from = format!("10.0.1.10:{port}");
        let out = w.step(vec![(POD_A, syn(&from, "10.96.0.10:80").into())]).only();
        match out.verdict {
            Verdict::Drop(Drop::PolicyIngress) => refused += 1,
            verdict => {
                assert_eq!(verdict, TO_B);
                opened += 1;
            }
        }
        assert!(opened == 0 || out.verdict == TO_B);
    }
    assert!(opened > 80, "{refused} refused");
}
