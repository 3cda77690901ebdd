//! Services as pods of this node see them, chosen as kube-proxy chooses.
//!
//! A service port becomes one or two of the engine's services: its cluster IPs, and everything that is reachable from
//! outside. They differ where `internalTrafficPolicy: Local` binds the former to this node. `externalTrafficPolicy` is not
//! looked at: kube-proxy, too, sends the cluster's own pods to any endpoint (its "short circuit"), whatever the policy is
//! for traffic from outside. Host ports of this node's pods are services with one endpoint.
//!
//! The engine refuses a place (address, port, protocol) that leads to two services, and a cluster can say that: external
//! IPs are anybody's. So each place goes to one claimant in a fixed order, and the others get it when it is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use sluice_state::{Endpoint, Frontend, Op, Protocol, Service as Compiled, Services, WithoutEndpoints};

use super::{Finding, Hashing, World};
use crate::{EndpointSlice, Kind, ObjectId, Pod, Service, ServicePort};

mod choose;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

use choose::Choice;

type Name = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct ServiceTable {
    services: HashMap<Name, Service, Hashing>,
    slices: HashMap<Name, EndpointSlice, Hashing>,
    /// Names of the slices of a service.
    of: HashMap<Name, BTreeSet<Arc<str>>, Hashing>,
    dirty: HashSet<Source, Hashing>,
    /// What each source wants, by name, and the claims on each place, the first of which holds.
    wanted: HashMap<Source, Vec<Wanted>, Hashing>,
    claims: HashMap<Place, BTreeSet<Claim>, Hashing>,
    told: BTreeMap<String, Arc<Compiled>>,
}

/// Where services come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    Service(Arc<str>, Arc<str>),
    /// The host ports of a pod of this node.
    HostPorts(Arc<str>, Arc<str>),
}

impl Source {
    fn object(&self) -> ObjectId {
        let (kind, namespace, name) = match self {
            Self::Service(namespace, name) => (Kind::Service, namespace, name),
            Self::HostPorts(namespace, name) => (Kind::Pod, namespace, name),
        };
        ObjectId { kind, namespace: namespace.clone(), name: name.clone() }
    }
}

/// An address (absent: every one of the node), a port and a protocol.
type Place = (Option<Ipv4Addr>, u16, Protocol);

/// A service as it would be if it got every place that it claims.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    rank: Rank,
    service: Compiled,
}

/// Who goes before whom: cluster IPs, then what is reachable from outside, then host ports; the older service, but the
/// newer pod, which has taken the place of one that ends.
type Rank = (u8, i64);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    rank: Rank,
    service: String,
    source: Source,
}

impl World {
    pub(super) fn upsert_service(&mut self, service: Service) {
        let name = (service.namespace.clone(), service.name.clone());
        self.services.dirty.insert(Source::Service(name.0.clone(), name.1.clone()));
        self.services.services.insert(name, service);
    }

    pub(super) fn delete_service(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        if self.services.services.remove(&(namespace.clone(), name.clone())).is_some() {
            self.services.dirty.insert(Source::Service(namespace.clone(), name.clone()));
        }
    }

    pub(super) fn upsert_slice(&mut self, slice: EndpointSlice) {
        let name = (slice.namespace.clone(), slice.name.clone());
        if self.services.slices.get(&name) == Some(&slice) {
            return;
        }
        self.delete_slice(&name.0, &name.1);
        if let Some(service) = &slice.service {
            let service = (slice.namespace.clone(), service.clone());
            self.services.dirty.insert(Source::Service(service.0.clone(), service.1.clone()));
            self.services.of.entry(service).or_default().insert(slice.name.clone());
        }
        self.services.slices.insert(name, slice);
    }

    pub(super) fn delete_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let Some(old) = self.services.slices.remove(&(namespace.clone(), name.clone())) else { return };
        let Some(service) = old.service else { return };
        let service = (namespace.clone(), service);
        if let Some(slices) = self.services.of.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.services.of.remove(&service);
            }
        }
        self.services.dirty.insert(Source::Service(service.0, service.1));
    }

    /// The node's zone may be another: every hint means something else.
    pub(super) fn mark_all_services(&mut self) {
        let ServiceTable { services, dirty, .. } = &mut self.services;
        dirty.extend(
            services.keys().map(|(namespace, name)| Source::Service(namespace.clone(), name.clone())),
        );
    }

    pub(super) fn mark_host_ports(&mut self, pod: &Pod) {
        if pod.ports.iter().any(|port| port.host_port.is_some()) && self.is_local(pod) {
            self.services.dirty.insert(Source::HostPorts(pod.namespace.clone(), pod.name.clone()));
        }
    }

    /// Everything about services, as of the last update.
    #[must_use]
    pub fn services(&self) -> Services {
        Services {
            cidrs: self.settings.service_cidrs.clone(),
            services: self.services.told.values().cloned().collect(),
        }
    }

    pub(super) fn settle_services(&mut self, findings: &mut Vec<Finding>) -> Vec<Op> {
        let mut sources: Vec<Source> = std::mem::take(&mut self.services.dirty).into_iter().collect();
        sources.sort_unstable();
        let mut touched: BTreeSet<(Source, String)> = BTreeSet::new();
        let mut rivals: BTreeSet<Place> = BTreeSet::new();
        for source in sources {
            let wanted = match &source {
                Source::Service(namespace, name) => self.wanted_of_service(namespace, name),
                Source::HostPorts(namespace, name) => self.wanted_of_pod(namespace, name),
            };
            self.services.claim(&source, wanted, &mut touched, &mut rivals);
        }
        for place in rivals {
            self.services.look_for_rivals(place, findings);
        }
        self.services.tell(touched)
    }

    fn wanted_of_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> Vec<Wanted> {
        let key = (namespace.clone(), name.clone());
        let Some(service) = self.services.services.get(&key) else { return Vec::new() };
        let slices = self.services.of.get(&key).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            slices.filter_map(|name| self.services.slices.get(&(namespace.clone(), name.clone()))).collect();
        let node = self.nodes.get(&self.settings.node);
        let zone = node.and_then(|node| node.zone.as_deref());
        let ports = service.ports.iter();
        let mut list: Vec<Wanted> = ports
            .flat_map(|port| {
                let choice = Choice::new(&slices, port, &self.settings.node, zone);
                wanted_of_port(service, port, &choice)
            })
            .collect();
        // The API server sees to it that ports have names of their own; who writes manifests may not.
        let mut names = BTreeSet::new();
        for Wanted { service, .. } in &mut list {
            while !names.insert(service.name.clone()) {
                service.name = format!("{}/{}", service.name, service.protocol);
            }
        }
        list
    }

    fn wanted_of_pod(&self, namespace: &Arc<str>, name: &Arc<str>) -> Vec<Wanted> {
        let id = self.namespaces.get(namespace).and_then(|n| n.pods.get(name));
        let Some(pod) = id.and_then(|id| self.pods.get(*id)).map(|entry| &entry.pod) else {
            return Vec::new();
        };
        let Some(ip) = pod.address().filter(|_| self.is_local(pod)) else { return Vec::new() };
        let mut list = Vec::new();
        for port in pod.ports.iter() {
            let Some(host_port) = port.host_port else { continue };
            // Of the node's loopback address pods know nothing: theirs is another.
            if port.host_ip.is_some_and(|address| address.is_loopback()) {
                continue;
            }
            let address = port.host_ip;
            let shown = address.map_or_else(String::new, |a| format!("{a}:"));
            list.push(Wanted {
                rank: (2, -pod.created.unwrap_or(0)),
                service: Compiled {
                    name: format!("{namespace}/{name}:hostport {shown}{host_port}/{}", port.protocol),
                    protocol: port.protocol,
                    frontends: vec![Frontend { address, port: host_port, sources: None, over_local: true }],
                    endpoints: vec![Endpoint { ip, port: port.port }],
                    affinity: None,
                    without_endpoints: WithoutEndpoints::Reject,
                },
            });
        }
        list
    }
}

/// The services of a port: its cluster IPs, and what is reachable from outside if it leads elsewhere.
fn wanted_of_port(service: &Service, port: &ServicePort, choice: &Choice) -> Vec<Wanted> {
    let at = |address, port, over_local| Frontend { address, port, sources: None, over_local };
    let inside: Vec<Frontend> =
        service.cluster_ips.iter().map(|ip| at(Some(*ip), port.port, false)).collect();
    let mut outside: Vec<Frontend> =
        service.external_ips.iter().map(|ip| at(Some(*ip), port.port, true)).collect();
    // An address that is both, an external IP and the load balancer's, has no source ranges: the wider one holds.
    let balancer = service.load_balancer_ips.iter().filter(|ip| !service.external_ips.contains(ip));
    outside.extend(balancer.map(|ip| Frontend {
        sources: (!service.source_ranges.is_empty()).then(|| service.source_ranges.clone()),
        ..at(Some(*ip), port.port, true)
    }));
    outside.extend(port.node_port.map(|node_port| at(None, node_port, true)));
    let shown = if port.name.is_empty() { port.port.to_string() } else { port.name.to_string() };
    let name = format!("{}/{}:{shown}", service.namespace, service.name);
    let created = service.created.unwrap_or(i64::MAX);
    let wanted = |rank, name, frontends: Vec<Frontend>, endpoints: &[Endpoint], without_endpoints| {
        (!frontends.is_empty()).then(|| Wanted {
            rank: (rank, created),
            service: Compiled {
                name,
                protocol: port.protocol,
                frontends,
                endpoints: endpoints.to_vec(),
                affinity: service.affinity,
                without_endpoints,
            },
        })
    };
    if !service.internal_local {
        let all = inside.into_iter().chain(outside).collect();
        return wanted(0, name, all, &choice.cluster, WithoutEndpoints::Reject).into_iter().collect();
    }
    let elsewhere = if choice.anywhere { WithoutEndpoints::Drop } else { WithoutEndpoints::Reject };
    let external = wanted(1, format!("{name} external"), outside, &choice.cluster, WithoutEndpoints::Reject);
    wanted(0, name, inside, &choice.local, elsewhere).into_iter().chain(external).collect()
}

impl ServiceTable {
    /// Replaces what a source wants. `touched` gets every service whose places may be others now, and `rivals` the places
    /// that more than one claims.
    fn claim(
        &mut self,
        source: &Source,
        wanted: Vec<Wanted>,
        touched: &mut BTreeSet<(Source, String)>,
        rivals: &mut BTreeSet<Place>,
    ) {
        let old = self.wanted.remove(source).unwrap_or_default();
        for (list, new) in [(&old, false), (&wanted, true)] {
            for wanted in list {
                touched.insert((source.clone(), wanted.service.name.clone()));
                for place in places(&wanted.service) {
                    let claims = self.claims.entry(place).or_default();
                    let claim = Claim {
                        rank: wanted.rank,
                        service: wanted.service.name.clone(),
                        source: source.clone(),
                    };
                    if new {
                        claims.insert(claim);
                    } else {
                        claims.remove(&claim);
                    }
                    if claims.len() > usize::from(new) {
                        touched.extend(claims.iter().map(|c| (c.source.clone(), c.service.clone())));
                        rivals.insert(place);
                    }
                    if claims.is_empty() {
                        self.claims.remove(&place);
                    }
                }
            }
        }
        if !wanted.is_empty() {
            self.wanted.insert(source.clone(), wanted);
        }
    }

    /// The operations for services that may be others now.
    fn tell(&mut self, touched: BTreeSet<(Source, String)>) -> Vec<Op> {
        let mut ops = Vec::new();
        for (source, name) in touched {
            let wanted = self.wanted.get(&source).into_iter().flatten().find(|w| w.service.name == name);
            let service = wanted.and_then(|wanted| self.granted(&source, wanted));
            match service {
                Some(service) if self.told.get(&name).is_none_or(|told| **told != service) => {
                    let service = Arc::new(service);
                    self.told.insert(name, service.clone());
                    ops.push(Op::UpsertService(service));
                }
                None if self.told.remove(&name).is_some() => ops.push(Op::DeleteService(name)),
                Some(_) | None => {}
            }
        }
        // Whoever gets a place finds it free.
        ops.sort_by_key(|op| matches!(op, Op::UpsertService(_)));
        ops
    }

    /// What a service has of what it wants; nothing without a place.
    fn granted(&self, source: &Source, wanted: &Wanted) -> Option<Compiled> {
        let mut service = wanted.service.clone();
        let protocol = service.protocol;
        // One address may be the service's twice: as its cluster IP, and as an external one.
        let mut seen = Vec::new();
        service.frontends.retain(|f| {
            let again = seen.contains(&(f.address, f.port));
            seen.push((f.address, f.port));
            let first = self.claims.get(&(f.address, f.port, protocol)).and_then(BTreeSet::first);
            !again
                && first.is_some_and(|claim| claim.service == wanted.service.name && claim.source == *source)
        });
        (!service.frontends.is_empty()).then_some(service)
    }

    fn look_for_rivals(&self, (address, port, protocol): Place, findings: &mut Vec<Finding>) {
        let Some(claims) = self.claims.get(&(address, port, protocol)) else { return };
        let Some(first) = claims.first() else { return };
        let shown = address.map_or_else(|| "node port".to_owned(), |a| a.to_string());
        for claim in claims.iter().skip(1) {
            findings.push(Finding {
                object: claim.source.object(),
                word: "PortConflict",
                reason: format!(
                    "claims {shown} {port}/{protocol}, which leads to {}: pods of this node do not reach it there",
                    first.service
                ),
            });
        }
    }
}

fn places(service: &Compiled) -> impl Iterator<Item = Place> {
    service.frontends.iter().map(|f| (f.address, f.port, service.protocol))
}
