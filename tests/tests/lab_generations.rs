//! How fast a change is in force in a large cluster, and what the daemon is then: 250 pods on the node, 100,000 addresses,
//! 5,000 services.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::lab::{Lab, Pusher};
use sluice_tests::node::{Usage, pods, raw_stats, report};

const ADDRESSES: u32 = 100_000;
const IDENTITIES: u32 = 10_000;
const SERVICES: u32 = 5_000;
const ENDPOINTS: u32 = 20;
/// Selectors that an identity lists, and rules of the node.
const SELECTORS: u32 = 10;
const RULES: u32 = 500;

#[test]
fn a_change_in_a_large_cluster_is_in_force_at_once_and_the_daemon_stays_small() {
    let lab = Lab::up("s", &["--pods", "250", "--queues", "2"]);
    let mut pusher = Pusher::connect(&lab);
    let whole = pusher.push(&cluster(&lab));

    let changes: [(&str, Change); 4] = [
        ("an address", |n| json!([{ "upsert_addresses": [[pod_address(n), (n + 1) % IDENTITIES]] }])),
        ("an identity", |n| json!([{ "upsert_identity": identity(n, n + 3) }])),
        ("rules", |n| json!([{ "upsert_rules": rules(n % RULES, n + 3) }])),
        ("a service", |n| json!([{ "upsert_service": service(n, n + 3) }])),
    ];
    let mut said = format!("full resync: {whole:?}");
    let mut worst = Duration::ZERO;
    for (what, op) in changes {
        // The bound on generations a second is not what is measured.
        let mut took: Vec<Duration> = (0..200)
            .map(|n| {
                std::thread::sleep(Duration::from_millis(5));
                pusher.push(&op(n * 7))
            })
            .collect();
        took.sort_unstable();
        let (median, late) = (took[took.len() / 2], took[took.len() * 99 / 100]);
        let _ = write!(said, "; {what}: median {median:?}, 99 % {late:?}");
        worst = worst.max(median);
    }
    let stats = raw_stats(&lab);
    let extent = &stats["extent"];
    assert_eq!(extent["addresses"], ADDRESSES, "{extent}");
    assert_eq!((&extent["identities"], &extent["rules"]), (&json!(IDENTITIES), &json!(RULES)), "{extent}");
    let services = [&extent["services"], &extent["endpoints"]];
    assert_eq!(services, [&json!(SERVICES), &json!(SERVICES * ENDPOINTS)], "{extent}");

    let memory = &report(&lab)["memory"];
    let aside = memory["flow_table"].as_u64().expect("bytes") + memory["umem"].as_u64().expect("bytes");
    let rss = Usage::of(lab.pid("sluiced")).rss_kib;
    let rest = rss.saturating_sub(aside >> 10) >> 10;
    let _ = write!(said, "; resident {} MiB, without what is set aside {rest} MiB", rss >> 10);
    println!("{said}");
    assert!(rest < 100, "{said}");
    // Without optimisation and beside other tests it takes several times as long.
    let bound = Duration::from_millis(if cfg!(debug_assertions) { 60 } else { 3 });
    assert!(worst < bound, "{said}");
}

#[test]
fn a_pod_whose_veth_was_made_just_before_has_its_path_when_the_generation_is_acknowledged() {
    let lab = Lab::up("v", &[]);
    let mut pusher = Pusher::connect(&lab);
    for n in 1..=10 {
        let (interface, ip) = (format!("enianew{n}"), Ipv4Addr::new(10, 0, 1, 100 + n));
        let mac = format!("02:00:00:00:01:{n:02x}");
        // The kernel's own report of the new interface comes some milliseconds after the command has ended.
        lab.sh(
            "node",
            &format!("ip link add {interface} type veth peer name new{n} address {mac} && ip link set {interface} up"),
        );
        let pod = json!({
            "namespace": "lab", "name": format!("new-{n}"), "ip": ip, "eni": "eni0", "interface": interface, "mac": mac,
        });
        let (answer, _) = pusher.offer(&json!([{ "upsert_pod": pod }]));
        assert_eq!(answer["accepted"]["warnings"], json!([]), "pod {n}: {answer}");
        let bound = pods(&lab).into_iter().find(|known| known["ip"] == json!(ip)).expect("the pod");
        assert_eq!(bound["attached"], true, "{bound}");
    }
    // A pod whose interface is not there is in force, but who waits for its path is told that it has none.
    let pod = |interface: &str| {
        json!({
            "namespace": "lab", "name": "none", "ip": "10.0.1.200", "eni": "eni0", "interface": interface,
            "mac": "02:00:00:00:02:00",
        })
    };
    let (answer, _) = pusher.offer(&json!([{ "upsert_pod": pod("eninone") }]));
    assert_eq!(answer["accepted"]["without_path"], json!(["10.0.1.200"]), "{answer}");
    lab.sh("node", "ip link add eninone type veth peer name none && ip link set eninone up");
    let mut answers = (0..100).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        pusher.offer(&json!([{ "upsert_pod": pod("eninone") }])).0
    });
    assert!(answers.any(|answer| answer["accepted"]["without_path"] == json!(null)), "it never has a path");
}

/// The changes of a generation, of this number.
type Change = fn(u32) -> Value;

fn pod_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + n % ADDRESSES)
}

fn identity(id: u32, salt: u32) -> Value {
    let selectors: Vec<u32> = (0..SELECTORS).map(|n| n * 100 + (id + salt) % 100).collect();
    json!({ "id": id % IDENTITIES, "selectors": selectors })
}

fn rules(id: u32, salt: u32) -> Value {
    let peers =
        json!([{ "selector": salt % 1000 }, { "block": { "cidr": format!("172.{}.0.0/16", 16 + id % 16) } }]);
    let ports = json!([{ "protocol": "TCP", "first": 80 + salt % 100, "last": 90 + salt % 100 }]);
    json!({ "id": id, "rule": [{ "origin": format!("ns/policy-{id} ingress[0]"), "peers": peers, "ports": ports }] })
}

fn service(n: u32, salt: u32) -> Value {
    let n = n % SERVICES;
    let address = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 20, 0, 1)) + n);
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|e| json!({ "ip": pod_address(n * ENDPOINTS + e + salt), "port": 8080 }))
        .collect();
    // Every other one has a NodePort.
    let mut frontends = vec![json!({ "address": address, "port": 80 })];
    if n.is_multiple_of(2) && n / 2 < 2700 {
        frontends.push(json!({ "port": 30_000 + n / 2, "over_local": true }));
    }
    json!({
        "name": format!("some-namespace/some-service-{n}:http"),
        "protocol": "TCP",
        "frontend": frontends,
        "endpoint": endpoints,
    })
}

/// Policy and services of the cluster, as changes that leave the lab's node and pods as they are.
fn cluster(lab: &Lab) -> Value {
    let addresses: serde_json::Map<String, Value> =
        (0..ADDRESSES).map(|n| (pod_address(n).to_string(), json!(n % IDENTITIES))).collect();
    let pods = lab.status()["pods"].as_array().expect("pods");
    let isolated: Vec<Value> = (0..RULES)
        .zip(pods)
        .map(|(n, pod)| json!({ "ip": pod["address"], "ingress": n * 2 % RULES, "egress": (n * 2 + 1) % RULES }))
        .collect();
    let policy = json!({
        "addresses": addresses,
        "identity": (0..IDENTITIES).map(|n| identity(n, 0)).collect::<Vec<_>>(),
        "rules": (0..RULES).map(|n| rules(n, n)).collect::<Vec<_>>(),
        "pod": isolated,
    });
    let services = json!({
        "cidrs": ["172.20.0.0/16"],
        "service": (0..SERVICES).map(|n| service(n, 0)).collect::<Vec<_>>(),
    });
    json!([{ "policy": policy }, { "services": services }])
}
