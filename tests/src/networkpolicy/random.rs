//! Clusters, policies, probes and changes that nobody thought of.
//!
//! The vocabulary is small on purpose: a few labels, ports and addresses, so that almost everything a policy names is there
//! somewhere and almost every rule decides something. All of it is valid as the API server has it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_state::Protocol;

use super::cluster::{
    Cluster, ContainerPort, Endpoint, Labels, Mutation, Namespace, Node, Phase, Pod, Probe, key,
};

const KEYS: [&str; 3] = ["app", "role", "example.com/tier"];
const VALUES: [&str; 4] = ["a", "b", "c", ""];
const PORTS: [u16; 6] = [1, 53, 80, 81, 8080, 65_535];
const PORT_NAMES: [&str; 3] = ["web", "dns", "serve-80"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const NAMESPACES: [&str; 4] = ["x", "y", "z", "w"];
const CIDRS: [(&str, &[&str]); 9] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "10.0.1.96/28", "203.0.113.7/32"]),
    ("10.0.0.0/16", &["10.0.1.0/24", "10.0.2.100/30", "10.0.2.101/32"]),
    ("10.0.1.77/24", &["10.0.1.100/31", "10.0.1.102/32"]),
    ("10.0.2.96/28", &["10.0.2.100/30"]),
    ("10.0.1.101/32", &[]),
    ("203.0.113.0/24", &["203.0.113.0/25"]),
    ("198.51.100.0/24", &[]),
    ("::/0", &["2001:db8::/32"]),
    ("2001:db8::/32", &[]),
];
const OUTSIDE: [Ipv4Addr; 4] = [
    Ipv4Addr::new(203, 0, 113, 7),
    Ipv4Addr::new(203, 0, 113, 200),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(10, 0, 2, 250),
];

/// The generator: the same seed gives the same numbers (Steele, Lea, Flood: `SplitMix`).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % limit.max(1)
    }

    /// True once in so many times.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn many<T>(&mut self, limit: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.below(limit + 1);
        (0..count).map(|_| make(self)).collect()
    }

    /// Absent, empty, or with something in it.
    fn list<T>(&mut self, limit: usize, make: impl FnMut(&mut Self) -> T) -> Option<Vec<T>> {
        if self.once_in(6) { None } else { Some(self.many(limit, make)) }
    }
}

/// A cluster of two nodes, `n1` local.
pub fn cluster(random: &mut Random) -> Cluster {
    let node =
        |name: &str, third, local| Node { name: name.into(), ip: Ipv4Addr::new(10, 0, third, 10), local };
    let mut cluster =
        Cluster { nodes: vec![node("n1", 1, true), node("n2", 2, false)], ..Cluster::default() };
    for name in &NAMESPACES[..1 + random.below(3)] {
        cluster.namespaces.push(Namespace { name: (*name).to_owned(), labels: labels(random) });
    }
    for _ in 0..1 + random.below(8) {
        if let Some(pod) = pod(random, &cluster) {
            cluster.pods.push(pod);
        }
    }
    for _ in 0..random.below(6) {
        let policy = policy(random, &cluster);
        let _ = cluster.apply(&Mutation::ApplyPolicy { policy: Box::new(policy) });
    }
    cluster
}

/// A connection of which the ends are in the cluster, or outside.
pub fn probe(random: &mut Random, cluster: &Cluster) -> Probe {
    Probe {
        from: endpoint(random, cluster),
        to: endpoint(random, cluster),
        protocol: *random.pick(&PROTOCOLS),
        port: *random.pick(&PORTS),
    }
}

/// A change that the cluster can go through.
pub fn mutation(random: &mut Random, cluster: &Cluster) -> Mutation {
    let pod_name = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
    let pods: Vec<&Pod> = cluster.pods.iter().collect();
    match random.below(12) {
        0 if !pods.is_empty() => Mutation::DeletePod { pod: pod_name(random.pick::<&Pod>(&pods)) },
        1 | 2 if !pods.is_empty() => {
            Mutation::SetPodLabels { pod: pod_name(random.pick::<&Pod>(&pods)), labels: labels(random) }
        }
        3 if pods.iter().any(|p| !p.host_network) => {
            let own: Vec<_> = pods.into_iter().filter(|p| !p.host_network).collect();
            let pod = random.pick(&own);
            let ip = if random.once_in(4) { None } else { free(random, cluster, &pod.node) };
            Mutation::SetPodIp { pod: pod_name(pod), ip }
        }
        4 if !pods.is_empty() => {
            let pod = random.pick(&pods);
            // Time does not run backwards: what has ended stays so.
            let later: &[Phase] = match pod.phase {
                Phase::Pending => &[Phase::Running, Phase::Failed],
                Phase::Running => &[Phase::Succeeded, Phase::Failed],
                Phase::Succeeded => &[Phase::Succeeded],
                Phase::Failed => &[Phase::Failed],
            };
            Mutation::SetPodPhase { pod: pod_name(pod), phase: *random.pick(later) }
        }
        5 => {
            let namespace = random.pick(&cluster.namespaces).name.clone();
            Mutation::SetNamespaceLabels { namespace, labels: labels(random) }
        }
        6 if !cluster.policies.is_empty() => {
            let (namespace, name) = key(random.pick(&cluster.policies));
            Mutation::DeletePolicy { namespace: namespace.to_owned(), name: name.to_owned() }
        }
        7 if cluster.namespaces.len() > 1 && random.once_in(2) => {
            Mutation::DeleteNamespace { namespace: random.pick(&cluster.namespaces).name.clone() }
        }
        8 if cluster.namespaces.len() < NAMESPACES.len() => {
            let unused = NAMESPACES.iter().find(|name| cluster.namespace(name).is_none());
            Mutation::CreateNamespace {
                namespace: unused.map_or_else(String::new, ToString::to_string),
                labels: labels(random),
            }
        }
        9 | 10 => match pod(random, cluster) {
            Some(pod) => Mutation::CreatePod { pod },
            None => Mutation::ApplyPolicy { policy: Box::new(policy(random, cluster)) },
        },
        _ => Mutation::ApplyPolicy { policy: Box::new(policy(random, cluster)) },
    }
}

fn labels(random: &mut Random) -> Labels {
    random.many(3, |r| (r.pick(&KEYS).to_string(), r.pick(&VALUES).to_string())).into_iter().collect()
}

/// A pod of a name that is not taken; none when all are.
fn pod(random: &mut Random, cluster: &Cluster) -> Option<Pod> {
    let namespace = random.pick(&cluster.namespaces).name.clone();
    let name = (0..12).map(|i| format!("p{i}"));
    let mut free_names =
        name.filter(|name| !cluster.pods.iter().any(|p| p.namespace == namespace && p.name == *name));
    let name = free_names.next()?;
    let node = random.pick(&cluster.nodes).name.clone();
    let host_network = random.once_in(10);
    let ip = if host_network || random.once_in(12) { None } else { free(random, cluster, &node) };
    let phase = match random.below(10) {
        0 => Phase::Pending,
        1 => Phase::Succeeded,
        _ => Phase::Running,
    };
    let ports = random.many(3, |r| ContainerPort {
        name: (!r.once_in(4)).then(|| r.pick(&PORT_NAMES).to_string()),
        protocol: *r.pick(&PROTOCOLS),
        port: *r.pick(&PORTS),
    });
    Some(Pod { namespace, name, labels: labels(random), ip, node, host_network, phase, ports })
}

/// An address of a node's pods that none owns; that of one that has ended may be it.
fn free(random: &mut Random, cluster: &Cluster, node: &str) -> Option<Ipv4Addr> {
    let third = if node == "n1" { 1 } else { 2 };
    let candidates: Vec<_> = (100..112u8)
        .map(|last| Ipv4Addr::new(10, 0, third, last))
        .filter(|ip| !cluster.pods.iter().any(|p| p.live_ip() == Some(*ip)))
        .collect();
    (!candidates.is_empty()).then(|| *random.pick(&candidates))
}

fn endpoint(random: &mut Random, cluster: &Cluster) -> Endpoint {
    let able: Vec<_> = cluster.pods.iter().filter(|p| p.host_network || p.live_ip().is_some()).collect();
    let able: Vec<_> = able.into_iter().filter(|p| !p.phase.finished()).collect();
    match random.below(10) {
        0 => Endpoint::Ip(*random.pick(&OUTSIDE)),
        1 => Endpoint::Node(random.pick(&cluster.nodes).name.clone()),
        2 => {
            Endpoint::Ip(Ipv4Addr::new(10, 0, 1 + u8::from(random.once_in(2)), 100 + random.below(12) as u8))
        }
        _ if able.is_empty() => Endpoint::Ip(*random.pick(&OUTSIDE)),
        _ => {
            let pod = random.pick(&able);
            Endpoint::Pod(pod.namespace.clone(), pod.name.clone())
        }
    }
}

/// A valid policy in one of the cluster's namespaces; of few names, so that some replace others.
fn policy(random: &mut Random, cluster: &Cluster) -> NetworkPolicy {
    const TYPES: [Option<&[&str]>; 5] =
        [None, Some(&[]), Some(&["Ingress"]), Some(&["Egress"]), Some(&["Ingress", "Egress"])];
    let types = *random.pick(&TYPES);
    NetworkPolicy {
        metadata: ObjectMeta {
            namespace: Some(random.pick(&cluster.namespaces).name.clone()),
            name: Some(format!("policy{}", random.below(5))),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: if random.once_in(8) { None } else { Some(selector(random)) },
            policy_types: types.map(|types| types.iter().map(ToString::to_string).collect()),
            ingress: random
                .list(2, |r| NetworkPolicyIngressRule { from: r.list(3, peer), ports: r.list(2, port) }),
            egress: random
                .list(2, |r| NetworkPolicyEgressRule { to: r.list(3, peer), ports: r.list(2, port) }),
        }),
    }
}

fn selector(random: &mut Random) -> LabelSelector {
    let (mut match_labels, mut match_expressions) = (None, None);
    if !random.once_in(3) {
        let mut equal = labels(random);
        while equal.len() > 1 + random.below(2) {
            equal.pop_first();
        }
        match_labels = Some(equal).filter(|l: &BTreeMap<_, _>| !l.is_empty() || random.once_in(2));
    }
    if random.once_in(2) {
        match_expressions = random.list(2, |r| {
            let operator = *r.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
            let valued = operator.ends_with("In");
            let first = r.pick(&VALUES).to_string();
            let values = valued.then(|| {
                let mut values = vec![first];
                values.extend(r.many(1, |r| r.pick(&VALUES).to_string()));
                values
            });
            LabelSelectorRequirement { key: r.pick(&KEYS).to_string(), operator: operator.into(), values }
        });
    }
    LabelSelector { match_labels, match_expressions }
}

fn peer(random: &mut Random) -> NetworkPolicyPeer {
    if random.once_in(3) {
        let (cidr, exceptions) = *random.pick(&CIDRS);
        let except = random.list(2, |r| r.below(exceptions.len().max(1))).map(|picked| {
            picked.into_iter().filter_map(|i| exceptions.get(i)).map(ToString::to_string).collect()
        });
        let block = IPBlock { cidr: cidr.into(), except };
        return NetworkPolicyPeer { ip_block: Some(block), ..NetworkPolicyPeer::default() };
    }
    let (pods, namespaces) = *random.pick(&[(true, false), (false, true), (true, true)]);
    NetworkPolicyPeer {
        ip_block: None,
        pod_selector: pods.then(|| selector(random)),
        namespace_selector: namespaces.then(|| selector(random)),
    }
}

fn port(random: &mut Random) -> NetworkPolicyPort {
    let protocol = if random.once_in(4) { None } else { Some(random.pick(&PROTOCOLS).to_string()) };
    let first = *random.pick(&PORTS);
    let (port, end_port) = match random.below(6) {
        0 => (None, None),
        1 | 2 => (Some(IntOrString::String(random.pick(&PORT_NAMES).to_string())), None),
        3 => {
            let last = PORTS.iter().copied().filter(|p| *p >= first).collect::<Vec<_>>();
            (Some(IntOrString::Int(i32::from(first))), Some(i32::from(*random.pick(&last))))
        }
        _ => (Some(IntOrString::Int(i32::from(first))), None),
    };
    NetworkPolicyPort { protocol, port, end_port }
}
