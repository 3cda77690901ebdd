//! A world that changes at random, small enough that everything meets everything. After every few changes, what was
//! compiled step by step, what is compiled anew in another order, and what the policies say must be one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use sluice_state::Protocol;

use super::judge::Judge;
use super::{Followed, delete, namespace, pod, policy, port, settings, upsert};
use crate::{Change, End, EnforcingMode, Kind, ObjectId, Phase, Probe};

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 4] = [53, 80, 8080, 9000];

fn pick<T: Clone + std::fmt::Debug + 'static>(list: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(list.to_vec())
}

fn some_labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let pair = |key: &'static str| proptest::option::of(pick(&[(key, "1"), (key, "2"), (key, "")]));
    (pair("app"), pair("tier")).prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn selector() -> impl Strategy<Value = serde_json::Value> {
    let expression =
        (pick(&["app", "tier"]), pick(&["In", "NotIn", "Exists", "DoesNotExist"]), pick(&["1", "2", ""]))
            .prop_map(|(key, operator, value)| {
                if operator.ends_with("In") {
                    json!({"key": key, "operator": operator, "values": [value, "2"]})
                } else {
                    json!({"key": key, "operator": operator})
                }
            });
    prop_oneof![
        Just(json!({})),
        some_labels().prop_map(|pairs| json!({"matchLabels": BTreeMap::from_iter(pairs)})),
        proptest::collection::vec(expression, 1..3).prop_map(|list| json!({"matchExpressions": list})),
    ]
}

fn peer() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        3 => selector().prop_map(|s| json!({"podSelector": s})),
        2 => selector().prop_map(|s| json!({"namespaceSelector": s})),
        2 => (selector(), selector()).prop_map(|(a, b)| json!({"namespaceSelector": a, "podSelector": b})),
        1 => pick(&["10.0.0.0/29", "10.0.0.8/29", "0.0.0.0/0", "fd00::/8"]).prop_map(|c| json!({"ipBlock": {"cidr": c}})),
        1 => Just(json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.4/30", "10.0.0.9/32"]}})),
    ]
}

fn a_port() -> impl Strategy<Value = serde_json::Value> {
    let protocol = || pick(&["TCP", "UDP"]);
    prop_oneof![
        2 => (pick(&PORTS), protocol()).prop_map(|(p, t)| json!({"port": p, "protocol": t})),
        3 => (pick(&["web", "dns"]), protocol()).prop_map(|(n, t)| json!({"port": n, "protocol": t})),
        1 => Just(json!({"port": 80, "endPort": 8080})),
        1 => protocol().prop_map(|t| json!({"protocol": t})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = serde_json::Value> {
    let list = proptest::option::of(proptest::collection::vec(peer(), 0..3));
    (list, proptest::option::of(proptest::collection::vec(a_port(), 0..3)))
        .prop_map(move |(list, ports)| json!({peers: list, "ports": ports}))
}

fn any_policy() -> impl Strategy<Value = Change> {
    let rules = |peers| proptest::option::of(proptest::collection::vec(rule(peers), 0..3));
    let types = pick(&[json!(null), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    (pick(&NAMESPACES), pick(&["p", "q", "r"]), selector(), types, rules("from"), rules("to")).prop_map(
        |(namespace, name, subject, types, ingress, egress)| {
            policy(json!({"metadata": {"namespace": namespace, "name": name},
                "spec": {"podSelector": subject, "policyTypes": types, "ingress": ingress, "egress": egress}}))
        },
    )
}

fn any_pod() -> impl Strategy<Value = Change> {
    let ports = proptest::collection::vec((pick(&["web", "dns"]), pick(&PORTS), any::<bool>()), 0..3);
    let phase = pick(&[Phase::Running, Phase::Running, Phase::Running, Phase::Pending, Phase::Succeeded]);
    let life = (phase, any::<bool>(), 0..3_i64, proptest::bool::weighted(0.1));
    (
        pick(&NAMESPACES),
        0..4_u8,
        some_labels(),
        proptest::option::weighted(0.9, 1..12_u8),
        any::<bool>(),
        ports,
        life,
    )
        .prop_map(
            |(namespace, n, labels, ip, ours, ports, (phase, terminating, created, host_network))| {
                let mut pod = pod(&format!("{namespace}/{n}"), &labels, "");
                pod.ip = ip.map(|n| Ipv4Addr::new(10, 0, 0, n));
                pod.node = Some(if ours { "n1" } else { "n2" }.into());
                (pod.phase, pod.terminating, pod.created) = (phase, terminating, Some(created));
                pod.host_network = host_network;
                let ports = ports.into_iter().map(|(name, number, tcp)| {
                    let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                    crate::ContainerPort { protocol, ..port(name, number) }
                });
                pod.ports = ports.collect::<Vec<_>>().into();
                upsert(pod)
            },
        )
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => any_pod(),
        6 => any_policy(),
        1 => (pick(&NAMESPACES), some_labels()).prop_map(|(n, labels)| namespace(n, &labels)),
        2 => (pick(&NAMESPACES), 0..4_u8).prop_map(|(n, i)| delete(Kind::Pod, &format!("{n}/{i}"))),
        2 => (pick(&NAMESPACES), pick(&["p", "q", "r"]))
            .prop_map(|(n, p)| delete(Kind::NetworkPolicy, &format!("{n}/{p}"))),
        1 => pick(&NAMESPACES).prop_map(|n| delete(Kind::Namespace, n)),
    ]
}

/// The objects that are left after some changes.
fn left(changes: &[Change]) -> Vec<Change> {
    let mut objects: BTreeMap<ObjectId, Change> = BTreeMap::new();
    for change in changes {
        match change {
            Change::Upsert(object) => objects.insert(object.id(), change.clone()),
            Change::Delete(id) => objects.remove(id),
        };
    }
    objects.into_values().collect()
}

/// Every pair of addresses, on every port that matters.
fn compare(a: &Followed, b: &Followed) -> Result<(), TestCaseError> {
    let (step, anew) = (Judge::new(&a.state.policy), Judge::new(&b.state.policy));
    let addresses: Vec<Ipv4Addr> = (1..14).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
    let mut protocols: Vec<Option<(Protocol, u16)>> = vec![None, Some((Protocol::Sctp, 80))];
    protocols.extend(PORTS.iter().flat_map(|p| [Some((Protocol::Tcp, *p)), Some((Protocol::Udp, *p))]));
    for from in &addresses {
        for to in addresses.iter().filter(|to| *to != from) {
            for port in &protocols {
                let compiled = (step.egress(*from, *to, *port), step.ingress(*from, *to, *port));
                prop_assert_eq!(compiled, (anew.egress(*from, *to, *port), anew.ingress(*from, *to, *port)));
                let decision = a.world.decide(&Probe {
                    from: End::Address(*from),
                    to: End::Address(*to),
                    protocol: port.map(|(protocol, _)| protocol),
                    port: port.map_or(0, |(_, port)| port),
                });
                let ours = |address| {
                    a.world.local_owner(address).is_some()
                        && a.world.local_owner(address) == a.world.owner(address)
                };
                let strays = |address| {
                    a.world.local_owner(address) != a.world.owner(address)
                        && a.world.local_owner(address).is_some()
                };
                let told = |half: bool, address| if ours(address) { half } else { true };
                if !strays(*from) {
                    prop_assert_eq!(
                        compiled.0,
                        told(decision.egress.allowed, *from),
                        "{} -> {} {:?} {:?}",
                        from,
                        to,
                        port,
                        decision
                    );
                }
                if !strays(*to) {
                    prop_assert_eq!(
                        compiled.1,
                        told(decision.ingress.allowed, *to),
                        "{} -> {} {:?} {:?}",
                        from,
                        to,
                        port,
                        decision
                    );
                }
            }
        }
    }
    Ok(())
}

/// Few by default, for each is a cluster's life; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_is_as_good_as_anew(
        strict in proptest::bool::weighted(0.2),
        pods in proptest::collection::vec(any_pod(), 12),
        policies in proptest::collection::vec(any_policy(), 8),
        steps in proptest::collection::vec(proptest::collection::vec(any_change(), 1..4), 1..16),
    ) {
        let mut settings = settings();
        settings.mode = if strict { EnforcingMode::Strict } else { EnforcingMode::Standard };
        let mut followed = Followed::new(settings.clone());
        let mut done: Vec<Change> = NAMESPACES.iter().map(|n| namespace(n, &[("app", "1")])).collect();
        done.extend(pods.into_iter().chain(policies));
        followed.apply(done.clone());
        followed.update();
        for step in steps {
            done.extend(step.iter().cloned());
            followed.apply(step);
            followed.update();
            let mut anew = Followed::new(settings.clone());
            anew.apply(left(&done).into_iter().rev());
            anew.update();
            compare(&followed, &anew)?;
        }
        // Nothing stays behind when everything is gone.
        let gone: Vec<Change> = left(&done).iter().filter_map(|c| match c {
            Change::Upsert(object) => Some(Change::Delete(object.id())),
            Change::Delete(_) => None,
        }).collect();
        followed.apply(gone);
        followed.update();
        let policy = followed.world.policy();
        prop_assert!(policy.addresses.as_slice().is_empty() && policy.identities.is_empty());
        prop_assert!(policy.rules.is_empty() && policy.pods.is_empty());
        prop_assert!(followed.world.is_empty());
    }
}

#[test]
fn labels_are_shared() {
    let mut followed = Followed::new(settings());
    for n in 0..10_u8 {
        followed.apply([upsert(pod(&format!("a/{n}"), &[("app", "1")], &format!("10.0.0.{}", n + 1)))]);
    }
    followed.update();
    let labels: Vec<_> = followed.world.pods.iter().map(|(_, e)| &e.pod.labels).collect();
    assert!(labels.iter().all(|l| Arc::ptr_eq(l, labels[0])));
    assert_eq!(followed.world.policy().identities.len(), 1);
}
