//! A policy as the API means it: defaults applied, selectors and CIDRs parsed, what cannot match left out.

use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_state::{PortMatch, Protocol};

use crate::Refusal;
use crate::admission::{admit, cidr};
use crate::model::convert::namespace;
use crate::selector::Selector;

/// A policy. Equal specs are one policy, whatever else their objects say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// Whom it is about.
    pub(crate) subject: Selector,
    /// Absent: it does not isolate in this direction. Rules of a direction that `policyTypes` does not list are not here.
    pub(crate) ingress: Option<Vec<SpecRule>>,
    pub(crate) egress: Option<Vec<SpecRule>>,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpecRule {
    /// `namespace/policy ingress[0]`.
    pub(crate) origin: Arc<str>,
    /// Absent: everybody, pods or not.
    pub(crate) peers: Option<Vec<Who>>,
    /// Absent: every protocol and port.
    pub(crate) ports: Option<Vec<SpecPort>>,
}

/// Who a peer of a rule is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Every pod; not written by users, stands for absent peers where only a pod can match.
    EveryPod,
    /// Pods by their labels.
    Pods {
        namespaces: Scope,
        pods: Selector,
    },
    Block {
        cidr: Ipv4Net,
        except: Vec<Ipv4Net>,
    },
}

/// In which namespaces a peer selects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// In the policy's own.
    Own(Arc<str>),
    /// In those with labels that match.
    Selected(Selector),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SpecPort {
    Numbers(PortMatch),
    /// A name, which each destination pod resolves for itself.
    Named(PortName),
}

/// A port's name and protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortName {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.protocol)
    }
}

impl Spec {
    pub(crate) fn new(policy: &NetworkPolicy) -> Result<Self, Vec<Refusal>> {
        let refusals = admit(policy);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let own = namespace(&policy.metadata);
        let name: Arc<str> = policy.metadata.name.as_deref().unwrap_or_default().into();
        let spec = policy.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.unwrap_or_default();
        let egress = spec.egress.unwrap_or_default();
        let types = spec.policy_types.unwrap_or_default();
        // Ingress always and egress if it has rules, unless the policy says which.
        let (isolates_ingress, isolates_egress) = if types.is_empty() {
            (true, !egress.is_empty())
        } else {
            (types.iter().any(|t| t == "Ingress"), types.iter().any(|t| t == "Egress"))
        };
        let rule = |direction, i, peers, ports| SpecRule {
            origin: format!("{own}/{name} {direction}[{i}]").into(),
            peers: read_peers(&own, peers),
            ports: read_ports(ports),
        };
        let ingress = isolates_ingress.then(|| {
            ingress.iter().enumerate().map(|(i, r)| rule("ingress", i, &r.from, &r.ports)).collect()
        });
        let egress = isolates_egress
            .then(|| egress.iter().enumerate().map(|(i, r)| rule("egress", i, &r.to, &r.ports)).collect());
        let subject = spec.pod_selector.as_ref().map(Selector::new).unwrap_or_default();
        Ok(Self { namespace: own, name, subject, ingress, egress })
    }
}

/// No peer at all, written `[]`, `null` or not, is everybody. A list of nothing but IPv6 blocks is nobody.
fn read_peers(own: &Arc<str>, peers: &Option<Vec<NetworkPolicyPeer>>) -> Option<Vec<Who>> {
    let peers = peers.as_ref().filter(|list| !list.is_empty())?;
    let mut list: Vec<Who> = Vec::with_capacity(peers.len());
    for peer in peers {
        let who = match &peer.ip_block {
            Some(block) => read_block(block),
            None => Some(Who::Pods {
                namespaces: match &peer.namespace_selector {
                    Some(selector) => Scope::Selected(Selector::new(selector)),
                    None => Scope::Own(own.clone()),
                },
                pods: peer.pod_selector.as_ref().map(Selector::new).unwrap_or_default(),
            }),
        };
        if let Some(who) = who
            && !list.contains(&who)
        {
            list.push(who);
        }
    }
    Some(list)
}

fn read_block(block: &IPBlock) -> Option<Who> {
    let v4 = |text: &str| match cidr("", text, &mut Vec::new()) {
        Some(IpNet::V4(net)) => Some(net),
        Some(IpNet::V6(_)) | None => None,
    };
    let cidr = v4(&block.cidr)?;
    let mut except: Vec<Ipv4Net> = block.except.iter().flatten().filter_map(|text| v4(text)).collect();
    except.sort_unstable();
    except.dedup();
    Some(Who::Block { cidr, except })
}

fn read_ports(ports: &Option<Vec<NetworkPolicyPort>>) -> Option<Vec<SpecPort>> {
    let ports = ports.as_ref().filter(|list| !list.is_empty())?;
    let mut list: Vec<SpecPort> = ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.as_deref().and_then(|p| p.parse().ok()).unwrap_or(Protocol::Tcp);
            // Admission has seen that numbers fit.
            let number = |n: i32| u16::try_from(n).unwrap_or(0);
            match &port.port {
                None => SpecPort::Numbers(PortMatch { protocol, first: 0, last: u16::MAX }),
                Some(IntOrString::Int(first)) => SpecPort::Numbers(PortMatch {
                    protocol,
                    first: number(*first),
                    last: number(port.end_port.unwrap_or(*first)),
                }),
                Some(IntOrString::String(name)) => {
                    SpecPort::Named(PortName { name: name.as_str().into(), protocol })
                }
            }
        })
        .collect();
    list.sort_unstable();
    list.dedup();
    Some(list)
}

impl SpecRule {
    /// The ports by number; absent: every protocol and port.
    pub(crate) fn numbers(&self) -> Option<Vec<PortMatch>> {
        let ports = self.ports.as_ref()?;
        Some(
            ports.iter().filter_map(|p| if let SpecPort::Numbers(n) = p { Some(*n) } else { None }).collect(),
        )
    }

    /// The ports by name.
    pub(crate) fn names(&self) -> impl Iterator<Item = &PortName> {
        let ports = self.ports.iter().flatten();
        ports.filter_map(|p| if let SpecPort::Named(n) = p { Some(n) } else { None })
    }
}
