//! Services with their addresses: cluster IPs and node ports, given ones before those that are given out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use sluice_policy::Object;
use sluice_state::Protocol;

use super::decode::Key;
use super::finding::Severity;
use super::placement::{Allocations, Placement, Pool};
use super::problems::Problems;

/// Every service.
#[derive(Debug)]
pub(super) struct ServiceSet {
    served: BTreeMap<Key, Served>,
    by_address: BTreeMap<Ipv4Addr, Key>,
    cidrs: Vec<Ipv4Net>,
    addresses: Option<Pool>,
    node_ports: RangeInclusive<u16>,
    ports: [(Protocol, Pool); 3],
    port_owners: BTreeMap<(Protocol, u16), Key>,
    remembered: Allocations,
}

#[derive(Debug, Clone)]
struct Served {
    /// With everything filled in.
    service: Service,
    slim: sluice_policy::Service,
    address: Option<Ipv4Addr>,
    /// The manifest names the address.
    given: bool,
    ports: Vec<(Protocol, u16)>,
}

impl ServiceSet {
    pub(super) fn new(placement: &Placement, allocations: &Allocations) -> Self {
        let pool = |protocol| (protocol, Pool::ports(&placement.node_ports));
        Self {
            served: BTreeMap::new(),
            by_address: BTreeMap::new(),
            cidrs: placement.service_cidrs.clone(),
            addresses: placement.service_cidrs.first().map(|cidr| Pool::addresses(*cidr)),
            node_ports: placement.node_ports.clone(),
            ports: [pool(Protocol::Tcp), pool(Protocol::Udp), pool(Protocol::Sctp)],
            port_owners: BTreeMap::new(),
            remembered: Allocations {
                pods: BTreeMap::new(),
                cluster_ips: allocations.cluster_ips.clone(),
                node_ports: allocations.node_ports.clone(),
            },
        }
    }

    /// A service with everything filled in.
    pub(super) fn service(&self, key: &Key) -> Option<&Service> {
        self.served.get(key).map(|served| &served.service)
    }

    /// What was given out and not written down by anybody.
    pub(super) fn allocations(&self, into: &mut Allocations) {
        for (key, served) in &self.served {
            let name = format!("{}/{}", key.namespace, key.name);
            for (protocol, port) in &served.ports {
                let spec = served.service.spec.as_ref();
                let own = spec.into_iter().flat_map(|s| s.ports.iter().flatten());
                let number = own
                    .filter(|p| {
                        p.node_port == Some(i32::from(*port))
                            && protocol_of(p.protocol.as_deref()) == Some(*protocol)
                    })
                    .map(|p| p.port)
                    .next();
                if let Some(number) = number {
                    into.node_ports.insert(format!("{name}:{number}/{protocol}"), *port);
                }
            }
            if let Some(address) = served.address.filter(|_| !served.given) {
                into.cluster_ips.insert(name, address);
            }
        }
    }

    /// Takes what manifests say of services; gives those that are others now, and those that are gone.
    pub(super) fn update<'a>(
        &mut self,
        mut dirty: BTreeSet<Key>,
        source: impl Fn(&Key) -> Option<&'a Service>,
        problems: &mut Problems,
    ) -> Vec<(Key, Option<Object>)> {
        let mut old: BTreeMap<Key, Option<Served>> = BTreeMap::new();
        // Given addresses first: who only has one that was given out moves for them.
        let given: Vec<_> = dirty.iter().filter_map(|key| Some((source(key)?, key))).collect();
        let evicted: BTreeSet<Key> = given
            .into_iter()
            .filter_map(|(service, key)| {
                let address = given_address(service.spec.as_ref()?)?;
                let holder = self.by_address.get(&address).filter(|holder| *holder != key)?;
                self.served.get(holder).filter(|served| !served.given).map(|_| holder.clone())
            })
            .collect();
        dirty.extend(evicted);
        for key in &dirty {
            old.insert(key.clone(), self.release(key));
            problems.clear(key);
        }
        let (given, others): (Vec<_>, Vec<_>) = dirty
            .iter()
            .filter_map(|key| Some((key, source(key)?)))
            .partition(|(_, service)| service.spec.as_ref().is_some_and(asks_for_something));
        for (key, service) in given.into_iter().chain(others) {
            match self.serve(key, service, problems) {
                Ok(served) => self.keep(key, served),
                Err(reason) => {
                    let before = old.get(key).cloned().flatten();
                    let tail = if before.is_some() { "; its last good version stays in force" } else { "" };
                    problems.add(key, Severity::Error, &format!("is refused: {reason}{tail}"));
                    if let Some(before) = before {
                        self.keep(key, before);
                    }
                }
            }
        }
        let mut changes = Vec::new();
        for (key, before) in old {
            let now = self.served.get(&key);
            let same = now.map(|s| (&s.slim, &s.service)) == before.as_ref().map(|s| (&s.slim, &s.service));
            if !same {
                let object = now.map(|served| Object::Service(served.slim.clone()));
                changes.push((key, object));
            }
        }
        changes
    }

    fn serve(&mut self, key: &Key, service: &Service, problems: &mut Problems) -> Result<Served, String> {
        let mut service = service.clone();
        let spec = service.spec.get_or_insert_default();
        let name = format!("{}/{}", key.namespace, key.name);
        let kind = spec.type_.clone().unwrap_or_default();
        let mut served = Vec::new();
        let address = given_address(spec);
        let given = address.is_some();
        let mut taken = address;
        // Everything that may be refused comes before anything is taken.
        let balanced = kind == "LoadBalancer";
        let node_ports =
            kind == "NodePort" || (balanced && spec.allocate_load_balancer_node_ports != Some(false));
        if node_ports || balanced {
            self.check_node_ports(spec)?;
        }
        if let Some(address) = address {
            self.check_given(address)?;
        } else if kind != "ExternalName" && spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
            taken = self.choose_address(&name);
            spec.cluster_ip = taken.map(|address| address.to_string());
            spec.cluster_ips = taken.map(|address| vec![address.to_string()]);
            if taken.is_none() {
                let way = "has no cluster IP: none is free in the service range, see service_cidrs of the inventory";
                problems.add(key, Severity::Warning, way);
            }
        }
        for port in spec.ports.iter_mut().flatten().filter(|_| node_ports || balanced) {
            let Some(protocol) = protocol_of(port.protocol.as_deref()) else { continue };
            let number = match asked_port(port) {
                None if node_ports => self.choose_port(&format!("{name}:{}/{protocol}", port.port), protocol),
                asked => asked,
            };
            if let Some(number) = number {
                port.node_port = Some(i32::from(number));
                served.push((protocol, number));
            }
        }
        let slim = sluice_policy::Service::try_from(&service)
            .map_err(|refusals| refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        Ok(Served { service, slim, address: taken, given, ports: served })
    }

    fn check_given(&self, address: Ipv4Addr) -> Result<(), String> {
        let field = format!("spec.clusterIPs[0]: Invalid value: \"{address}\"");
        if !self.cidrs.iter().any(|cidr| cidr.contains(&address)) {
            let ranges: Vec<_> = self.cidrs.iter().map(ToString::to_string).collect();
            return Err(format!(
                "{field}: the provided IP is not in the service range [{}]",
                ranges.join(", ")
            ));
        }
        match self.by_address.get(&address) {
            Some(other) => Err(format!("{field}: provided IP is already allocated to {other}")),
            None => Ok(()),
        }
    }

    fn check_node_ports(&self, spec: &ServiceSpec) -> Result<(), String> {
        let mut own = BTreeSet::new();
        for (i, port) in spec.ports.iter().flatten().enumerate() {
            let (Some(number), Some(protocol)) = (asked_port(port), protocol_of(port.protocol.as_deref()))
            else {
                continue;
            };
            let field = format!("spec.ports[{i}].nodePort: Invalid value: {number}");
            if !self.node_ports.contains(&number) {
                let (first, last) = (self.node_ports.start(), self.node_ports.end());
                return Err(format!("{field}: provided port is not in the valid range: {first}-{last}"));
            }
            if let Some(other) = self.port_owners.get(&(protocol, number)) {
                return Err(format!("{field}: provided port is already allocated to {other}"));
            }
            if !own.insert((protocol, number)) {
                return Err(format!("{field}: is also the node port of another of its ports"));
            }
        }
        Ok(())
    }

    fn choose_address(&mut self, name: &str) -> Option<Ipv4Addr> {
        let pool = self.addresses.as_mut()?;
        let had = self.remembered.cluster_ips.get(name).filter(|a| self.cidrs.iter().any(|c| c.contains(*a)));
        if let Some(had) = had.filter(|had| pool.take(had.to_bits())) {
            return Some(*had);
        }
        pool.choose(name).map(Ipv4Addr::from_bits)
    }

    fn choose_port(&mut self, label: &str, protocol: Protocol) -> Option<u16> {
        let had = self.remembered.node_ports.get(label).copied();
        let pool = self.port_pool(protocol)?;
        if let Some(had) = had.filter(|had| pool.take(u32::from(*had))) {
            return Some(had);
        }
        pool.choose(label).and_then(|port| u16::try_from(port).ok())
    }

    fn port_pool(&mut self, protocol: Protocol) -> Option<&mut Pool> {
        self.ports.iter_mut().find(|(p, _)| *p == protocol).map(|(_, pool)| pool)
    }

    fn keep(&mut self, key: &Key, served: Served) {
        if let Some(address) = served.address {
            self.by_address.insert(address, key.clone());
            if let Some(pool) = &mut self.addresses {
                pool.take(address.to_bits());
            }
        }
        for (protocol, port) in &served.ports {
            self.port_owners.insert((*protocol, *port), key.clone());
            if let Some(pool) = self.port_pool(*protocol) {
                pool.take(u32::from(*port));
            }
        }
        self.served.insert(key.clone(), served);
    }

    fn release(&mut self, key: &Key) -> Option<Served> {
        let served = self.served.remove(key)?;
        let name = format!("{}/{}", key.namespace, key.name);
        if let Some(address) = served.address {
            self.by_address.remove(&address);
            if let Some(pool) = &mut self.addresses {
                pool.give_back(address.to_bits());
            }
            if !served.given {
                self.remembered.cluster_ips.insert(name.clone(), address);
            }
        }
        for (protocol, port) in &served.ports {
            self.port_owners.remove(&(*protocol, *port));
            if let Some(pool) = self.port_pool(*protocol) {
                pool.give_back(u32::from(*port));
            }
            let own = served.service.spec.iter().flat_map(|s| s.ports.iter().flatten());
            for own in own.filter(|p| p.node_port == Some(i32::from(*port))) {
                self.remembered.node_ports.insert(format!("{name}:{}/{protocol}", own.port), *port);
            }
        }
        Some(served)
    }
}

fn protocol_of(text: Option<&str>) -> Option<Protocol> {
    text.unwrap_or("TCP").parse().ok()
}

fn asked_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

fn given_address(spec: &ServiceSpec) -> Option<Ipv4Addr> {
    let proxied = spec.type_.as_deref() != Some("ExternalName");
    spec.cluster_ip.as_deref().filter(|_| proxied)?.parse().ok()
}

fn asks_for_something(spec: &ServiceSpec) -> bool {
    given_address(spec).is_some() || spec.ports.iter().flatten().any(|p| p.node_port.is_some_and(|p| p != 0))
}
