//! Whether one rule allows everything that another does, by their words alone: what holds in whatever cluster.

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Rule;
use super::selector::keys;

pub(super) fn covers(wider: Rule<'_>, narrower: Rule<'_>) -> bool {
    let peers = wider.peers.is_empty()
        || !narrower.peers.is_empty()
            && narrower.peers.iter().all(|n| wider.peers.iter().any(|w| peer_covers(w, n)));
    let ports = wider.ports.is_empty()
        || !narrower.ports.is_empty()
            && narrower.ports.iter().all(|n| wider.ports.iter().any(|w| port_covers(w, n)));
    peers && ports
}

fn peer_covers(wider: &NetworkPolicyPeer, narrower: &NetworkPolicyPeer) -> bool {
    match (&wider.ip_block, &narrower.ip_block) {
        (Some(w), Some(n)) => {
            let net = |text: &str| text.parse::<Ipv4Net>().ok();
            let inside = net(&w.cidr).zip(net(&n.cidr)).is_some_and(|(w, n)| w.trunc().contains(&n));
            w == n || inside && w.except.iter().flatten().next().is_none()
        }
        (None, None) => {
            let everything = |s: &Option<LabelSelector>| s.as_ref().is_none_or(|s| keys(s).next().is_none());
            let namespaces = wider.namespace_selector == narrower.namespace_selector
                || wider.namespace_selector.as_ref().is_some_and(|s| keys(s).next().is_none());
            let pods = everything(&wider.pod_selector) || wider.pod_selector == narrower.pod_selector;
            namespaces && pods
        }
        _ => false,
    }
}

fn port_covers(wider: &NetworkPolicyPort, narrower: &NetworkPolicyPort) -> bool {
    let protocol = |p: &NetworkPolicyPort| p.protocol.clone().unwrap_or_else(|| "TCP".into());
    if protocol(wider) != protocol(narrower) {
        return false;
    }
    match (&wider.port, &narrower.port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(IntOrString::Int(port))) => {
            let last = wider.end_port.unwrap_or(*first);
            *first <= *port && narrower.end_port.unwrap_or(*port) <= last
        }
        (Some(IntOrString::String(a)), Some(IntOrString::String(b))) => a == b,
        _ => false,
    }
}
