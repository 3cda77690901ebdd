//! K. Policy on packets: asked once per flow and half, again when something that it was judged by changes.

use std::sync::Arc;

use rstest::rstest;
use sluice_engine::counters::Event::{FlowsOpened, FlowsOrphaned, FlowsRechecked, FlowsRevoked, PortsTaken};
use sluice_engine::testing::{echo_reply, echo_request, icmp_error, read, tcp, udp};
use sluice_engine::trace::NoTrace;
use sluice_engine::{Drop, Ingress, Offload, Packet, Verdict};
use sluice_state::{
    Identity, MasqueradedNodeTraffic, OnPolicyChange, Peer, PodPolicy, PortMatch, Protocol, Rule, Rules,
    State,
};

use crate::world::*;

/// Selector 1 matches pod B and host V (a pod of another node), nothing matches pod C. A takes TCP 80 from selector 1 and
/// whatever from 203.0.113.0/24, and sends UDP 53 to everybody.
pub(crate) fn isolate_a(state: &mut State) {
    let rule = |peers: Option<Vec<Peer>>, ports: Option<(Protocol, u16)>| Rule {
        origin: "default/test".into(),
        peers,
        ports: ports.map(|(protocol, port)| vec![PortMatch { protocol, first: port, last: port }]),
    };
    let block = Peer::Block { cidr: "203.0.113.0/24".parse().unwrap(), except: vec![] };
    state.policy.rules = vec![
        Arc::new(Rules {
            id: 1,
            rules: vec![
                rule(Some(vec![Peer::Selector(1)]), Some((Protocol::Tcp, 80))),
                rule(Some(vec![block]), None),
            ],
        }),
        Arc::new(Rules { id: 2, rules: vec![rule(None, Some((Protocol::Udp, 53)))] }),
    ]
    .into();
    state.policy.pods = vec![PodPolicy { ip: A.parse().unwrap(), ingress: Some(1), egress: Some(2) }];
    state.policy.identities = vec![
        Arc::new(Identity { id: 1, selectors: vec![1] }),
        Arc::new(Identity { id: 2, selectors: vec![] }),
    ]
    .into();
    for (address, identity) in [(A, 2), (B, 1), (C, 2), (V, 1)] {
        state.policy.addresses.insert(address.parse().unwrap(), identity);
    }
}

fn isolated() -> World {
    World::with(|state, _| isolate_a(state))
}

#[test]
fn k01_each_half_is_judged_for_its_own_pod() {
    let mut w = isolated();
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    w.dropped(POD_B, tcp("10.0.1.11:40001", "10.0.1.10:81").flags("S"), Drop::PolicyIngress, &[]);
    w.dropped(POD_C, tcp("10.0.2.20:40000", "10.0.1.10:80").flags("S"), Drop::PolicyIngress, &[]);
    w.dropped(POD_A, tcp("10.0.1.10:40000", "10.0.1.11:80").flags("S"), Drop::PolicyEgress, &[]);
    w.dropped(POD_A, tcp("10.0.1.10:40000", "198.51.100.7:80").flags("S"), Drop::PolicyEgress, &[]);
    w.pass(POD_A, udp("10.0.1.10:40000", "198.51.100.7:53"), ENI0, &[FlowsOpened, PortsTaken]);
    w.pass(POD_A, udp("10.0.1.10:40000", "10.0.1.11:53"), TO_B, &[FlowsOpened]);
    // What nobody isolates is free.
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.2.20:81").flags("S"), TO_C, &[FlowsOpened]);
}

#[test]
fn k02_replies_pass_where_the_reverse_connection_is_denied_and_a_denied_one_leaves_nothing() {
    let mut w = isolated();
    w.pass(WIRE0, tcp("203.0.113.9:40000", "10.0.1.10:9").flags("S"), TO_A, &[FlowsOpened]);
    w.pass(POD_A, tcp("10.0.1.10:9", "203.0.113.9:40000").flags("SA"), ENI0, &[]);
    w.dropped(WIRE0, tcp("198.51.100.7:40000", "10.0.1.10:9").flags("S"), Drop::PolicyIngress, &[]);
    assert_eq!(w.flows().len(), 1);
    // Its answer would be a flow of its own, which egress denies.
    w.dropped(POD_A, udp("10.0.1.10:9", "198.51.100.7:40000"), Drop::PolicyEgress, &[]);
}

#[test]
fn k03_a_rule_with_ports_never_matches_icmp_and_one_without_matches_everything() {
    let mut w = isolated();
    w.dropped(POD_B, echo_request("10.0.1.11", "10.0.1.10", 7, 1), Drop::PolicyIngress, &[]);
    w.pass(WIRE0, echo_request("203.0.113.9", "10.0.1.10", 7, 1), TO_A, &[FlowsOpened]);
    w.pass(POD_A, echo_reply("10.0.1.10", "203.0.113.9", 7, 1), ENI0, &[]);
    w.dropped(POD_A, echo_request("10.0.1.10", "10.0.1.11", 7, 1), Drop::PolicyEgress, &[]);
}

#[test]
fn k04_an_icmp_error_of_an_allowed_flow_passes_where_icmp_is_denied() {
    let mut w = isolated();
    let sent = w.pass(POD_B, udp("10.0.1.11:40000", "10.0.2.20:53"), TO_C, &[FlowsOpened]);
    assert_eq!(read(&sent).key.dst(), address(C));
    let sent = w.pass(POD_A, udp("10.0.1.10:40000", "10.0.77.7:53"), ENI0, &[FlowsOpened]);
    w.pass(WIRE0, icmp_error(3, 3, "10.0.77.7", A, &sent), TO_A, &[]);
}

#[rstest]
#[case::recheck(OnPolicyChange::Recheck)]
#[case::keep(OnPolicyChange::Keep)]
fn k05_a_relabelled_peer_is_judged_again_at_its_next_packet(#[case] on_change: OnPolicyChange) {
    let mut w = isolated();
    w.reload(|state, _| state.policy.on_change = on_change);
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    w.pass(POD_A, tcp("10.0.1.10:80", "10.0.77.7:40000").flags("SA"), ENI0, &[]);
    w.reload(|state, _| state.policy.addresses.insert(V.parse().unwrap(), 2));
    let ack = || tcp("10.0.77.7:40000", "10.0.1.10:80").flags("A").seq(1001).ack(1001);
    match on_change {
        OnPolicyChange::Keep => {
            w.pass(WIRE0, ack(), TO_A, &[FlowsRechecked]);
            w.pass(WIRE0, ack(), TO_A, &[]);
        }
        OnPolicyChange::Recheck => {
            w.dropped(WIRE0, ack(), Drop::Revoked, &[FlowsRechecked, FlowsRevoked]);
            // The pod's own packets of it do not bring it back.
            let answer = tcp("10.0.1.10:80", "10.0.77.7:40000").flags("A").seq(1001).ack(1001);
            w.dropped(POD_A, answer, Drop::Revoked, &[]);
        }
    }
    // A new one is denied in any case.
    w.dropped(WIRE0, tcp("10.0.77.7:40001", "10.0.1.10:80").flags("S"), Drop::PolicyIngress, &[]);
}

#[test]
fn k06_a_change_elsewhere_costs_a_flow_one_look_and_no_packet() {
    let mut w = isolated();
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    w.reload(|state, _| state.policy.addresses.insert("10.0.50.1".parse().unwrap(), 1));
    w.pass(POD_A, tcp("10.0.1.10:80", "10.0.77.7:40000").flags("SA"), ENI0, &[FlowsRechecked]);
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("A").seq(1001).ack(1001), TO_A, &[]);
    // A reload that changes nothing about policy is none of the flow's business.
    w.reload(|_, _| {});
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("A").seq(1001).ack(1001), TO_A, &[]);
}

#[rstest]
#[case::allow(MasqueradedNodeTraffic::Allow)]
#[case::policy(MasqueradedNodeTraffic::Policy)]
fn k07_what_the_kernel_masqueraded_to_the_nodes_address(#[case] judged_as: MasqueradedNodeTraffic) {
    let mut w = isolated();
    w.reload(|state, _| state.policy.masqueraded_node_traffic = judged_as);
    let to_a = Ingress::ToPod(10);
    let syn = || tcp("10.0.9.5:40000", "10.0.1.10:80").flags("S");
    match judged_as {
        MasqueradedNodeTraffic::Allow => {
            w.pass(to_a, syn(), TO_A, &[FlowsOpened]);
            let back = Verdict::KernelPod { ifindex: 10 };
            w.pass(POD_A, tcp("10.0.1.10:80", "10.0.9.5:40000").flags("SA"), back, &[]);
        }
        MasqueradedNodeTraffic::Policy => w.dropped(to_a, syn(), Drop::PolicyIngress, &[]),
    }
    // A client whose address the kernel has kept is judged by it, always.
    w.dropped(to_a, tcp("198.51.100.7:40000", "10.0.1.10:80").flags("S"), Drop::PolicyIngress, &[]);
    w.pass(to_a, tcp("203.0.113.9:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
}

#[test]
fn k08_a_source_that_no_watch_knows_yet_has_its_own_reason() {
    let mut w = isolated();
    let syn = || tcp("10.0.60.1:40000", "10.0.1.10:80").flags("S");
    w.dropped(WIRE0, syn(), Drop::PolicyUnknownPeer, &[]);
    w.reload(|state, _| state.policy.addresses.insert("10.0.60.1".parse().unwrap(), 1));
    w.pass(WIRE0, syn(), TO_A, &[FlowsOpened]);
}

#[test]
fn k09_a_connection_that_is_under_way_is_picked_up_when_it_may_be_either_way_round() {
    let mut w = isolated();
    // After a restart, the first packet that is seen is the server's: as if the pod opened it, egress would deny it.
    let data = tcp("10.0.1.10:80", "10.0.77.7:40000").flags("A").seq(5).ack(9);
    w.pass(POD_A, data, ENI0, &[FlowsOpened]);
    let flow = w.flow();
    assert_eq!((flow.original.dst(), flow.original.dport()), (address(A), 80), "the other end opened it");
    w.pass(WIRE0, tcp("10.0.77.7:40000", "10.0.1.10:80").flags("A").seq(9).ack(6), TO_A, &[]);
    // A change that concerns it not leaves it.
    w.reload(|state, _| state.policy.addresses.insert("10.0.50.1".parse().unwrap(), 1));
    w.pass(POD_A, tcp("10.0.1.10:80", "10.0.77.7:40000").flags("A").seq(6).ack(9), ENI0, &[FlowsRechecked]);
    // Neither way round: no.
    let stray = tcp("10.0.1.10:81", "10.0.77.7:40000").flags("A").seq(5).ack(9);
    w.dropped(POD_A, stray, Drop::PolicyEgress, &[]);
}

#[test]
fn k10_a_revoked_connection_is_not_picked_up_the_other_way_round() {
    // Nothing keeps A from opening connections to B, so that a segment of B's in the middle of one could be its answer.
    let only_in = |state: &mut State| {
        isolate_a(state);
        state.policy.pods[0].egress = None;
    };
    let mut w = World::with(|state, _| only_in(state));
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    w.pass(POD_A, tcp("10.0.1.10:80", "10.0.1.11:40000").flags("SA"), TO_B, &[]);
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("A"), TO_A, &[]);
    w.reload(|state, _| {
        only_in(state);
        state.policy.addresses.insert(B.parse().unwrap(), 2);
    });
    w.dropped(
        POD_B,
        tcp("10.0.1.11:40000", "10.0.1.10:80").flags("PA"),
        Drop::Revoked,
        &[FlowsRechecked, FlowsRevoked],
    );
    // It tries again for as long as TCP does, and so does the other end.
    for seconds in [1, 2, 60, 120, 120, 120] {
        w.advance(seconds * 1_000_000_000);
        w.dropped(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("PA"), Drop::Revoked, &[]);
        w.dropped(POD_A, tcp("10.0.1.10:80", "10.0.1.11:40000").flags("PA"), Drop::Revoked, &[]);
    }
    // A connection of its own, which policy allows, has the ports at once.
    let syn = tcp("10.0.1.10:80", "10.0.1.11:40000").flags("S");
    w.pass(POD_A, syn, TO_B, &[FlowsOrphaned, FlowsOpened]);
    assert_eq!(w.flows().len(), 1);
}

#[test]
fn k11_a_revoked_connection_goes_on_when_it_is_allowed_again_and_is_forgotten_when_nobody_tries() {
    let mut w = isolated();
    let revoke = |w: &mut World, identity| {
        w.reload(|state, _| {
            isolate_a(state);
            state.policy.addresses.insert(B.parse().unwrap(), identity);
        });
    };
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    revoke(&mut w, 2);
    let data = || tcp("10.0.1.11:40000", "10.0.1.10:80").flags("PA");
    w.dropped(POD_B, data(), Drop::Revoked, &[FlowsRechecked, FlowsRevoked]);
    revoke(&mut w, 1);
    w.pass(POD_B, data(), TO_A, &[FlowsOrphaned, FlowsOpened]);
    revoke(&mut w, 2);
    w.dropped(POD_B, data(), Drop::Revoked, &[FlowsRechecked, FlowsRevoked]);
    w.advance(301_000_000_000);
    w.idle();
    assert_eq!(w.flows().len(), 0);
}

#[test]
fn k12_a_million_denied_openings_leave_the_table_as_it_was() {
    let mut w = isolated();
    w.pass(POD_B, tcp("10.0.1.11:40000", "10.0.1.10:80").flags("S"), TO_A, &[FlowsOpened]);
    let (before, counted) = (w.flows(), w.totals());
    // From every port of another pod, and from an address that nobody knows.
    let opening = |source: &str, n: u32| {
        tcp(&format!("{source}:{}", 1024 + n % 64_000), "10.0.1.10:80").flags("S").build()
    };
    let frames: Vec<(Ingress, Vec<u8>)> =
        (0..64_000)
            .map(|n| {
                if n % 8 == 0 {
                    (WIRE0, opening("198.51.100.7", n))
                } else {
                    (POD_C, opening("10.0.2.20", n))
                }
            })
            .collect();
    let (mut input, mut out) = (Vec::new(), Vec::new());
    let mut sent = 0;
    for batch in frames.chunks(250).cycle().take(4000) {
        input.extend(batch.iter().map(|(ingress, frame)| Packet {
            frame: frame.clone(),
            ingress: *ingress,
            offload: Offload::default(),
        }));
        sent += batch.len() as u64;
        w.workers[0].step(w.now, &w.snapshot, &mut input, &mut out, &mut NoTrace);
        assert!(out.drain(..).all(|o| o.verdict == Verdict::Drop(Drop::PolicyIngress)));
    }
    assert_eq!(w.flows(), before);
    assert_eq!(w.totals().dropped(Drop::PolicyIngress) - counted.dropped(Drop::PolicyIngress), sent);
    assert_eq!(sent, 1_000_000);
}
