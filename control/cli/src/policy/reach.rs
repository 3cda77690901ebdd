//! Who may reach whom on which ports, exactly: not by trying ports, but by what the compiler made of the policies.
//!
//! All pods are put on one node for the purpose, so that one compilation has the rules of every one of them. A party is a
//! set of pods that nothing tells apart, or a part of the address space outside that policies name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use sluice_policy::Labels;
use sluice_state::{Peer, Policy, Rules};

use super::load::Cluster;
use super::ports::Ports;

/// Addresses that are tried when one is looked for that is no pod's.
const TRIES: u32 = 4096;

/// Pods that nothing tells apart, or a part of the outside.
#[derive(Debug, Clone)]
pub(super) struct Party {
    /// What it is called in a table.
    pub(super) name: String,
    pub(super) kind: PartyKind,
    address: Ipv4Addr,
    selectors: Vec<u32>,
    ingress: Option<Arc<Rules>>,
    egress: Option<Arc<Rules>>,
}

#[derive(Debug, Clone)]
pub(super) enum PartyKind {
    /// Pods of one namespace with equal labels, `namespace/name` each.
    Pods { namespace: Arc<str>, labels: Labels, pods: Vec<String> },
    /// Addresses outside, without those that are parties of their own.
    Net(Ipv4Net),
}

/// A cluster's parties.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) parties: Vec<Party>,
}

/// What makes pods different.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sameness {
    namespace: Arc<str>,
    labels: Labels,
    identity: Option<u32>,
    rules: (Option<u32>, Option<u32>),
    blocks: Vec<bool>,
}

impl Reach {
    /// Compiles a cluster's policies and finds its parties.
    pub(super) fn new(cluster: &Cluster) -> Self {
        let policy = cluster.compile_together();
        let nets = nets(&policy);
        let blocks: Vec<&Peer> = peers(&policy).filter(|p| matches!(p, Peer::Block { .. })).collect();
        let rules: HashMap<u32, &Arc<Rules>> = policy.rules.iter().map(|r| (r.id, r)).collect();
        let isolated: HashMap<Ipv4Addr, (Option<u32>, Option<u32>)> =
            policy.pods.iter().map(|p| (p.ip, (p.ingress, p.egress))).collect();
        let mut groups: BTreeMap<Sameness, Vec<(String, Ipv4Addr)>> = BTreeMap::new();
        for (pod, ip) in cluster.pods() {
            let sameness = Sameness {
                namespace: pod.namespace.clone(),
                labels: pod.labels.clone(),
                identity: policy.addresses.identity(ip),
                rules: isolated.get(&ip).copied().unwrap_or_default(),
                blocks: blocks.iter().map(|block| matches(block, ip, &[])).collect(),
            };
            groups.entry(sameness).or_default().push((format!("{}/{}", pod.namespace, pod.name), ip));
        }
        let mut parties = Vec::new();
        for (sameness, mut pods) in groups {
            pods.sort();
            let Some((first, address)) = pods.first().cloned() else { continue };
            let name = if pods.len() == 1 { first } else { format!("{first} and {} more", pods.len() - 1) };
            let rules = |id: Option<u32>| id.and_then(|id| rules.get(&id)).map(|rules| Arc::clone(rules));
            parties.push(Party {
                name,
                address,
                selectors: selectors(&policy, sameness.identity),
                ingress: rules(sameness.rules.0),
                egress: rules(sameness.rules.1),
                kind: PartyKind::Pods {
                    namespace: sameness.namespace,
                    labels: sameness.labels,
                    pods: pods.into_iter().map(|(name, _)| name).collect(),
                },
            });
        }
        let taken: BTreeSet<Ipv4Addr> = cluster.addresses().collect();
        for net in &nets {
            let inner: Vec<&Ipv4Net> = nets.iter().filter(|n| *n != net && net.contains(*n)).collect();
            if let Some(address) = outside(net, &inner, &taken) {
                let name = match (net.prefix_len(), inner.is_empty()) {
                    (0, _) => "anywhere else".into(),
                    (_, true) => net.to_string(),
                    (_, false) => format!("rest of {net}"),
                };
                let kind = PartyKind::Net(*net);
                parties.push(Party {
                    name,
                    kind,
                    address,
                    selectors: Vec::new(),
                    ingress: None,
                    egress: None,
                });
            }
        }
        Self { parties }
    }

    /// On which ports one party's pods may open connections to another's. None between two that are both outside, and for a
    /// pod and itself, which no policy can forbid.
    pub(super) fn between(&self, from: usize, to: usize) -> Option<Ports> {
        let (a, b) = (&self.parties[from], &self.parties[to]);
        let alone = |p: &Party| matches!(&p.kind, PartyKind::Pods { pods, .. } if pods.len() == 1);
        if (a.is_outside() && b.is_outside()) || (from == to && alone(a)) {
            return None;
        }
        let egress = half(a.egress.as_deref(), b);
        Some(if egress.is_empty() { egress } else { egress.and(&half(b.ingress.as_deref(), a)) })
    }

    /// The party of each pod.
    pub(super) fn party_of(&self) -> BTreeMap<&str, usize> {
        let mut of = BTreeMap::new();
        for (i, party) in self.parties.iter().enumerate() {
            match &party.kind {
                PartyKind::Pods { pods, .. } => of.extend(pods.iter().map(|pod| (pod.as_str(), i))),
                PartyKind::Net(_) => {
                    of.insert(party.name.as_str(), i);
                }
            }
        }
        of
    }
}

impl Party {
    pub(super) const fn is_outside(&self) -> bool {
        matches!(self.kind, PartyKind::Net(_))
    }
}

/// What rules open towards a peer; without rules there is no isolation.
fn half(rules: Option<&Rules>, peer: &Party) -> Ports {
    let Some(rules) = rules else { return Ports::all() };
    let fitting = rules.rules.iter().filter(|rule| match &rule.peers {
        None => true,
        Some(peers) => peers.iter().any(|p| matches(p, peer.address, &peer.selectors)),
    });
    fitting.fold(Ports::none(), |open, rule| open.or(&Ports::of(rule.ports.as_deref())))
}

fn matches(peer: &Peer, address: Ipv4Addr, selectors: &[u32]) -> bool {
    match peer {
        Peer::Selector(selector) => selectors.contains(selector),
        Peer::Block { cidr, except } => {
            cidr.contains(&address) && !except.iter().any(|part| part.contains(&address))
        }
    }
}

fn selectors(policy: &Policy, identity: Option<u32>) -> Vec<u32> {
    let found = policy.identities.iter().find(|i| Some(i.id) == identity);
    found.map(|i| i.selectors.clone()).unwrap_or_default()
}

fn peers(policy: &Policy) -> impl Iterator<Item = &Peer> {
    policy.rules.iter().flat_map(|rules| &rules.rules).flat_map(|rule| rule.peers.iter().flatten())
}

/// Every part of the address space that policies name, and the whole.
fn nets(policy: &Policy) -> BTreeSet<Ipv4Net> {
    let mut nets = BTreeSet::from([Ipv4Net::default()]);
    for peer in peers(policy) {
        if let Peer::Block { cidr, except } = peer {
            nets.insert(*cidr);
            nets.extend(except);
        }
    }
    nets
}

/// An address of a net that is in none of the smaller ones and nobody's in the cluster.
fn outside(net: &Ipv4Net, inner: &[&Ipv4Net], taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
    let behind = inner.iter().filter_map(|n| n.broadcast().to_bits().checked_add(1));
    // Zero is no host's: the whole address space begins where hosts do.
    let starts = std::iter::once(first.max(0x0100_0001)).chain(behind);
    starts
        .flat_map(|start| (start..=last).take(TRIES as usize).map(Ipv4Addr::from_bits))
        .find(|address| !taken.contains(address) && !inner.iter().any(|n| n.contains(address)))
}
