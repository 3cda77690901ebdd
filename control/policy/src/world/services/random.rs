//! Services, slices and host ports at random, that claim each other's places: step by step is as good as anew.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use sluice_state::Protocol;

use crate::world::tests::{Followed, delete, pod, settings, upsert};
use crate::{
    Change, ContainerPort, EndpointSlice, Kind, Node, Object, ObjectId, Service, ServicePort, SliceEndpoint,
    SlicePort,
};

const NAMES: [&str; 3] = ["x", "y", "z"];

fn pick<T: Clone + std::fmt::Debug + 'static>(list: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(list.to_vec())
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, n)
}

fn service() -> impl Strategy<Value = Change> {
    let ips = || proptest::collection::btree_set(1..4_u8, 0..2);
    let port = (1..3_u16, proptest::option::of(30_000..30_002_u16));
    (pick(&NAMES), 0..3_i64, ips(), ips(), ips(), port, any::<bool>()).prop_map(
        |(name, created, cluster, external, balancer, (port, node_port), internal_local)| {
            let list = |ips: std::collections::BTreeSet<u8>| ips.into_iter().map(address).collect();
            let name_of_port = "p".into();
            Change::Upsert(Object::Service(Service {
                namespace: "a".into(),
                name: name.into(),
                created: Some(created),
                cluster_ips: list(cluster),
                external_ips: list(external),
                load_balancer_ips: list(balancer),
                source_ranges: Vec::new(),
                ports: vec![ServicePort { name: name_of_port, protocol: Protocol::Tcp, port, node_port }],
                internal_local,
                affinity: None,
            }))
        },
    )
}

fn slice() -> impl Strategy<Value = Change> {
    let endpoint =
        (1..6_u8, any::<bool>(), any::<bool>(), any::<bool>(), pick(&["n1", "n2"]), pick(&["", "z1", "z2"]))
            .prop_map(|(ip, ready, serving, terminating, node, zone)| SliceEndpoint {
                ip: Ipv4Addr::new(10, 0, 0, ip),
                ready,
                serving,
                terminating,
                node: Some(node.into()),
                for_zones: Some(zone.into()).filter(|_| !zone.is_empty()).into_iter().collect(),
                for_nodes: Vec::new(),
            });
    (0..4_u8, proptest::option::of(pick(&NAMES)), proptest::collection::vec(endpoint, 0..4)).prop_map(
        |(n, service, endpoints)| {
            Change::Upsert(Object::EndpointSlice(EndpointSlice {
                namespace: "a".into(),
                name: format!("s{n}").into(),
                service: service.map(Into::into),
                ports: vec![SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }],
                endpoints,
            }))
        },
    )
}

fn host_port() -> impl Strategy<Value = Change> {
    (0..3_u8, 0..3_i64, proptest::option::of(30_000..30_002_u16), any::<bool>()).prop_map(
        |(n, created, host_port, ours)| {
            let mut pod = pod(&format!("a/{n}"), &[], &format!("10.0.1.{n}"));
            pod.created = Some(created);
            pod.node = Some(if ours { "n1" } else { "n2" }.into());
            pod.ports =
                [ContainerPort { name: None, protocol: Protocol::Tcp, port: 1, host_port, host_ip: None }]
                    .into();
            upsert(pod)
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let node = proptest::option::of(pick(&["z1", "z2"])).prop_map(|zone| {
        let zone = zone.map(Into::into);
        let labels = std::sync::Arc::default();
        Change::Upsert(Object::Node(Node { name: "n1".into(), addresses: Vec::new(), zone, labels }))
    });
    prop_oneof![
        4 => service(),
        4 => slice(),
        3 => host_port(),
        1 => node,
        2 => pick(&NAMES).prop_map(|name| delete(Kind::Service, &format!("a/{name}"))),
        2 => (0..4_u8).prop_map(|n| delete(Kind::EndpointSlice, &format!("a/s{n}"))),
        1 => (0..3_u8).prop_map(|n| delete(Kind::Pod, &format!("a/{n}"))),
        1 => Just(delete(Kind::Node, "n1")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_is_as_good_as_anew(
        steps in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..20),
    ) {
        let mut followed = Followed::new(settings());
        let mut left: BTreeMap<ObjectId, Change> = BTreeMap::new();
        for step in steps {
            for change in &step {
                match change {
                    Change::Upsert(object) => left.insert(object.id(), change.clone()),
                    Change::Delete(id) => left.remove(id),
                };
            }
            followed.apply(step);
            followed.update();
            let mut anew = Followed::new(settings());
            anew.apply(left.values().rev().cloned());
            anew.update();
            prop_assert_eq!(followed.world.services(), anew.world.services());
        }
        followed.apply(left.into_keys().map(Change::Delete));
        followed.update();
        let table = &followed.world.services;
        prop_assert!(table.told.is_empty() && table.claims.is_empty() && table.wanted.is_empty());
        prop_assert!(table.services.is_empty() && table.slices.is_empty() && table.of.is_empty());
    }
}
