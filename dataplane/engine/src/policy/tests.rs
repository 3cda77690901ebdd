//! Compiled rules against rules read one by one, and what is reused between two moments.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use proptest::prelude::*;
use sluice_state::{Identity, Peer, PodPolicy, PortMatch, Protocol, Rule, Rules, State};

use super::rules::Compiled;
use super::{Circumstances, Policy};
use crate::flow::{FlowKey, Origin};
use crate::verdict::Drop;

/// What the types say, rule by rule.
fn naive(rules: &Rules, address: Ipv4Addr, selectors: &[u32], proto: u8, port: u16) -> bool {
    let peer_matches = |peer: &Peer| match peer {
        Peer::Selector(selector) => selectors.contains(selector),
        Peer::Block { cidr, except } => {
            cidr.contains(&address) && !except.iter().any(|part| part.contains(&address))
        }
    };
    let port_matches = |m: &PortMatch| m.protocol.number() == proto && (m.first..=m.last).contains(&port);
    rules.rules.iter().any(|rule| {
        rule.peers.as_ref().is_none_or(|peers| peers.iter().any(peer_matches))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(port_matches))
    })
}

/// A small space, so that blocks nest, touch and reach both ends.
fn cidr() -> impl Strategy<Value = Ipv4Net> {
    let base = prop_oneof![Just(0_u32), Just(0x0A00_0000), Just(0xFFFF_FF00)];
    (base, 0_u32..256, prop_oneof![Just(0_u8), 24_u8..=32])
        .prop_map(|(base, low, len)| Ipv4Net::new(Ipv4Addr::from_bits(base | low), len).unwrap().trunc())
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        prop_oneof![0_u32..6, 60_u32..70, Just(200)].prop_map(Peer::Selector),
        (cidr(), prop::collection::vec(cidr(), 0..3)).prop_map(|(cidr, except)| {
            let except = except.into_iter().filter(|part| cidr.contains(part)).collect();
            Peer::Block { cidr, except }
        }),
    ]
}

fn ports() -> impl Strategy<Value = PortMatch> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let edge = prop_oneof![0_u16..12, Just(65_535)];
    (protocol, edge.clone(), edge).prop_map(|(protocol, a, b)| PortMatch {
        protocol,
        first: a.min(b),
        last: a.max(b),
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    let rule = (
        prop::option::weighted(0.9, prop::collection::vec(peer(), 0..4)),
        prop::option::weighted(0.7, prop::collection::vec(ports(), 0..4)),
    )
        .prop_map(|(peers, ports)| Rule { origin: String::new(), peers, ports });
    prop::collection::vec(rule, 0..6).prop_map(|rules| Rules { id: 1, rules })
}

proptest! {
    #[test]
    fn compiled_rules_say_what_the_rules_say(
        rules in rules(),
        addresses in prop::collection::vec((prop_oneof![Just(0_u32), Just(0x0A00_0000), Just(0xFFFF_FF00)], 0_u32..256), 16),
        selectors in prop::collection::btree_set(prop_oneof![0_u32..6, 60_u32..70, Just(200), Just(5000)], 0..5),
        probes in prop::collection::vec((prop_oneof![Just(6_u8), Just(17), Just(132), Just(1)], prop_oneof![0_u16..14, Just(65_535)]), 8),
    ) {
        let rules = Arc::new(rules);
        let compiled = Compiled::new(&rules);
        let selectors: Vec<u32> = selectors.into_iter().collect();
        for (base, low) in addresses {
            let address = base | low;
            for (proto, port) in &probes {
                for listed in [None, Some(selectors.as_slice())] {
                    prop_assert_eq!(
                        compiled.allows(address, || listed, *proto, *port),
                        naive(&rules, Ipv4Addr::from_bits(address), listed.unwrap_or_default(), *proto, *port),
                        "{} {:?} {}/{}", Ipv4Addr::from_bits(address), listed, port, proto
                    );
                }
            }
        }
    }

    #[test]
    fn the_map_of_addresses_follows_every_change(
        moments in prop::collection::vec(prop::collection::btree_map(0_u32..40, 0_u32..3, 0..30), 1..6),
    ) {
        let mut map = super::Addresses::default();
        for moment in moments {
            let mut listed = sluice_state::Addresses::default();
            for (address, identity) in &moment {
                listed.insert(Ipv4Addr::from_bits(*address), *identity);
            }
            map = map.follow(&listed);
            for address in 0..40 {
                prop_assert_eq!(map.identity(address), moment.get(&address).copied());
            }
        }
    }
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);

fn tcp(src: Ipv4Addr, dst: Ipv4Addr, port: u16) -> FlowKey {
    FlowKey::new(src.to_bits(), dst.to_bits(), 40_000, port, 6)
}

const PLAIN: Circumstances =
    Circumstances { origin: Origin::Pod, source_is_node: false, source_may_be_pod: true };

/// B takes TCP 80 from what selector 3 matches.
fn state() -> State {
    let mut state = State::default();
    state.policy.rules.push(Arc::new(Rules {
        id: 9,
        rules: vec![Rule {
            origin: "default/b ingress[0]".into(),
            peers: Some(vec![Peer::Selector(3)]),
            ports: Some(vec![PortMatch { protocol: Protocol::Tcp, first: 80, last: 80 }]),
        }],
    }));
    state.policy.pods.push(PodPolicy { ip: B, ingress: Some(9), egress: None });
    state.policy.identities.push(Arc::new(Identity { id: 5, selectors: vec![1, 3] }));
    state.policy.identities.push(Arc::new(Identity { id: 6, selectors: vec![] }));
    state.policy.addresses.insert(A, 5);
    state
}

#[test]
fn the_generation_moves_when_a_verdict_may_have_changed_and_only_then() {
    let mut state = state();
    let first = Policy::compile(&state, &Policy::allow_all(), false);
    assert_eq!(first.judge(&tcp(A, B, 80), PLAIN), Ok(()));
    assert_eq!(first.judge(&tcp(A, B, 81), PLAIN), Err(Drop::PolicyIngress));
    assert_eq!(first.judge(&tcp(B, A, 80), PLAIN), Ok(()), "nothing isolates its egress");

    // The same state, read anew: nothing is shared with the first, and nothing differs.
    let again = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    let same = Policy::compile(&again, &first, false);
    assert_eq!(same.generation(), first.generation());
    assert!(Arc::ptr_eq(&same.rules[&9], &first.rules[&9]), "compiled rules are reused");

    state.policy.addresses.insert(A, 6);
    let relabelled = Policy::compile(&state, &same, false);
    assert_ne!(relabelled.generation(), same.generation());
    assert_eq!(relabelled.judge(&tcp(A, B, 80), PLAIN), Err(Drop::PolicyIngress));

    let moved = Policy::compile(&state, &relabelled, true);
    assert_ne!(moved.generation(), relabelled.generation());
}

#[test]
fn an_address_that_no_watch_knows_has_a_reason_of_its_own_where_identity_decides() {
    let mut state = state();
    state.policy.addresses.remove(A);
    let policy = Policy::compile(&state, &Policy::allow_all(), false);
    assert_eq!(policy.judge(&tcp(A, B, 80), PLAIN), Err(Drop::PolicyUnknownPeer));
    let outside = Circumstances { source_may_be_pod: false, ..PLAIN };
    assert_eq!(policy.judge(&tcp(A, B, 80), outside), Err(Drop::PolicyIngress));
}
