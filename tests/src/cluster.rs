//! What a control plane would say of a lab: changes of a generation as JSON. A pod's identity has one selector, which is
//! its number: `pod-a` has 1, `pod-b` 2.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::Lab;

/// The cluster's service range.
pub const SERVICE_CIDR: &str = "172.20.0.0/16";

/// Gives every pod of a lab its identity, and the cluster its service range.
///
/// # Panics
/// The lab has no pods.
#[must_use]
pub fn identities(lab: &Lab) -> Vec<Value> {
    let pods = lab.status()["pods"].as_array().expect("pods");
    let mut ops = vec![json!({ "service_cidrs": [SERVICE_CIDR] })];
    for (number, pod) in (1..).zip(pods) {
        let number: u32 = number;
        ops.push(json!({ "upsert_identity": { "id": number, "selectors": [number] } }));
        ops.push(json!({ "upsert_addresses": [[pod["address"], number]] }));
    }
    ops
}

/// A rule for everything from or to what matches a selector.
#[must_use]
pub fn selected(selector: u32) -> Value {
    json!({ "peers": [{ "selector": selector }] })
}

/// A rule for everything from or to a CIDR.
#[must_use]
pub fn block(cidr: &str) -> Value {
    json!({ "peers": [{ "block": { "cidr": cidr } }] })
}

/// Isolates a pod: what it may take and what it may send; `None`: whatever it likes. The rules' numbers are `id * 2` and
/// the next one.
#[must_use]
pub fn isolate(id: u32, pod: Ipv4Addr, takes: Option<&[Value]>, sends: Option<&[Value]>) -> Vec<Value> {
    let mut ops = Vec::new();
    let mut isolation = json!({ "ip": pod });
    for (half, number, rules) in [("ingress", id * 2, takes), ("egress", id * 2 + 1, sends)] {
        if let Some(rules) = rules {
            ops.push(json!({ "upsert_rules": { "id": number, "rule": rules } }));
            isolation[half] = json!(number);
        }
    }
    ops.push(json!({ "upsert_pod_policy": isolation }));
    ops
}

/// A service over TCP and one over UDP with the same places.
#[must_use]
pub fn services(name: &str, frontends: &[Value], endpoints: &[(Ipv4Addr, u16)]) -> Vec<Value> {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(ip, port)| json!({ "ip": ip, "port": port })).collect();
    let service = |protocol: &str| {
        json!({ "upsert_service": {
            "name": format!("lab/{name}:{protocol}"),
            "protocol": protocol,
            "frontend": frontends,
            "endpoint": endpoints,
        } })
    };
    vec![service("TCP"), service("UDP")]
}

/// Takes both away.
#[must_use]
pub fn without(name: &str) -> Vec<Value> {
    ["TCP", "UDP"].map(|protocol| json!({ "delete_service": format!("lab/{name}:{protocol}") })).into()
}

/// A NodePort, or a hostPort of no particular address.
#[must_use]
pub fn node_port(port: u16) -> Value {
    json!({ "port": port, "over_local": true })
}

/// An external address, a load balancer's, or a hostPort's own.
#[must_use]
pub fn external(address: Ipv4Addr, port: u16) -> Value {
    json!({ "address": address, "port": port, "over_local": true })
}

/// A ClusterIP.
#[must_use]
pub fn cluster_ip(address: Ipv4Addr, port: u16) -> Value {
    json!({ "address": address, "port": port })
}
