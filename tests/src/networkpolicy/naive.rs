//! The evaluator: the documentation of `networking.k8s.io/v1`, sentence by sentence.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_state::Protocol;

use super::cluster::{Cluster, Labels, Party, Pod, Probe, Unplayable};

/// What each end of a connection has to say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halves {
    /// The source's policies let it out.
    pub egress: bool,
    /// The destination's policies let it in.
    pub ingress: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// A rule of either direction: `from` and `to` say the same thing.
struct Rule<'p> {
    peers: &'p [NetworkPolicyPeer],
    ports: &'p [NetworkPolicyPort],
}

/// Both halves of a probe. "For a connection from a source pod to a destination pod to be allowed, both the egress policy
/// on the source pod and the ingress policy on the destination pod need to allow the connection."
///
/// # Errors
/// An end of the probe is not in the cluster.
pub fn evaluate(cluster: &Cluster, probe: &Probe) -> Result<Halves, Unplayable> {
    let (from, to) = (cluster.party(&probe.from)?, cluster.party(&probe.to)?);
    Ok(Halves {
        egress: half(cluster, Direction::Egress, from, to, to, probe),
        ingress: half(cluster, Direction::Ingress, to, from, to, probe),
    })
}

/// What the policies that select `subject` say of its peer; the port is always one of the destination.
fn half(
    cluster: &Cluster,
    direction: Direction,
    subject: Party<'_>,
    peer: Party<'_>,
    destination: Party<'_>,
    probe: &Probe,
) -> bool {
    // Only pods are isolated, and those on the host's network are not.
    let Some(pod) = subject.pod else { return true };
    // "A Pod cannot block access to itself."
    if peer.pod.is_some_and(|p| std::ptr::eq(p, pod)) {
        return true;
    }
    // "Traffic to and from the node where a Pod is running is always allowed."
    if peer.node.is_some_and(|n| n.name == pod.node) {
        return true;
    }
    let mut isolated = false;
    for policy in &cluster.policies {
        let Some(spec) = &policy.spec else { continue };
        if !applies(policy, spec, direction, pod) {
            continue;
        }
        isolated = true;
        // "The effects of those ingress lists combine additively."
        for rule in rules(spec, direction) {
            let who = rule.peers.is_empty() || rule.peers.iter().any(|p| peer_is(cluster, policy, p, peer));
            let where_to = rule.ports.is_empty() || rule.ports.iter().any(|p| port_is(p, destination, probe));
            if who && where_to {
                return true;
            }
        }
    }
    // "By default, a pod is non-isolated; all connections are allowed."
    !isolated
}

/// Whether a policy isolates a pod in a direction.
fn applies(policy: &NetworkPolicy, spec: &NetworkPolicySpec, direction: Direction, pod: &Pod) -> bool {
    let same_namespace = policy.metadata.namespace.as_deref() == Some(&pod.namespace);
    // "An empty podSelector selects all pods in the namespace."
    let selected = spec.pod_selector.as_ref().is_none_or(|s| selects(s, &pod.labels));
    let types = spec.policy_types.as_deref().unwrap_or_default();
    // "If no policyTypes are specified then by default Ingress will always be set and Egress will be set if the policy
    // has any egress rules."
    let named = match (direction, types.is_empty()) {
        (Direction::Ingress, true) => true,
        (Direction::Egress, true) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        (Direction::Ingress, false) => types.iter().any(|t| t == "Ingress"),
        (Direction::Egress, false) => types.iter().any(|t| t == "Egress"),
    };
    same_namespace && selected && named
}

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    match direction {
        Direction::Ingress => (spec.ingress.iter().flatten())
            .map(|r| Rule {
                peers: r.from.as_deref().unwrap_or_default(),
                ports: r.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => (spec.egress.iter().flatten())
            .map(|r| Rule {
                peers: r.to.as_deref().unwrap_or_default(),
                ports: r.ports.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

fn peer_is(cluster: &Cluster, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, party: Party<'_>) -> bool {
    if let Some(block) = &peer.ip_block {
        return party.ip.is_some_and(|ip| block_has(block, ip));
    }
    let Some(pod) = party.pod else { return false };
    let pod_fits = peer.pod_selector.as_ref().is_none_or(|s| selects(s, &pod.labels));
    let namespace_fits = match &peer.namespace_selector {
        Some(selector) => cluster.namespace(&pod.namespace).is_some_and(|n| selects(selector, &n.labels)),
        // "Otherwise it selects the pods matching podSelector in the policy's own namespace."
        None => peer.pod_selector.is_some() && policy.metadata.namespace.as_deref() == Some(&pod.namespace),
    };
    pod_fits && namespace_fits
}

/// Whether an ipBlock covers an IPv4 address; a block or an exception of IPv6 covers none.
fn block_has(block: &IPBlock, ip: Ipv4Addr) -> bool {
    let covers = |cidr: &String| cidr.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&ip));
    covers(&block.cidr) && !block.except.iter().flatten().any(covers)
}

fn port_is(port: &NetworkPolicyPort, destination: Party<'_>, probe: &Probe) -> bool {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return false,
    };
    if protocol != probe.protocol {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), None) => *first == i32::from(probe.port),
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(probe.port)),
        // "A numerical or named port on a pod": what is no pod has no named ports.
        (Some(IntOrString::String(name)), _) => destination.pod.is_some_and(|pod| {
            pod.ports
                .iter()
                .any(|p| p.name.as_ref() == Some(name) && p.protocol == protocol && p.port == probe.port)
        }),
    }
}

/// Whether a selector matches labels: all of `matchLabels` and all of `matchExpressions`; an empty one matches all.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let value = labels.get(&e.key);
        let listed = value.is_some_and(|v| e.values.iter().flatten().any(|x| x == v));
        match e.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressions
}
