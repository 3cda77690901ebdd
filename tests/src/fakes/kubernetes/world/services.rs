//! Addresses and node ports of services.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::World;
use crate::fakes::kubernetes::kinds;
use crate::fakes::kubernetes::status::{Cause, Refusal};

/// 65,534 addresses.
pub(super) const DEFAULT_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);

fn address(text: &str) -> Option<u32> {
    text.parse::<Ipv4Addr>().ok().map(u32::from)
}

/// The addresses that a service has.
fn addresses(service: &Value) -> impl Iterator<Item = u32> + '_ {
    service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(|ip| address(ip.as_str()?))
}

fn ports(service: &Value) -> impl Iterator<Item = u16> + '_ {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.filter_map(|port| u16::try_from(port["nodePort"].as_u64()?).ok())
}

impl World {
    /// The address of the API server itself.
    pub(super) fn first_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_range.network()) + 1)
    }

    /// Gives a service the address and the node ports that it has not asked for, and looks at those that it has.
    pub(super) fn allocate(&mut self, name: &str, service: &mut Value) -> Result<(), Refusal> {
        let Some(resource) = kinds::of_path("", "v1", "services") else { return Ok(()) };
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default();
        let known = self.object(resource, namespace, name).ok().map(|o| o.value(resource));
        let own: Vec<u32> = known.iter().flat_map(addresses).collect();
        let own_ports: Vec<u16> = known.iter().flat_map(ports).collect();
        let kind = service["spec"]["type"].as_str().unwrap_or_default().to_string();
        if kind == "ExternalName" {
            return Ok(());
        }
        let asked = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_string();
        if let Some(ip) = address(&asked).filter(|ip| !own.contains(ip)) {
            let why = if !self.service_range.contains(&Ipv4Addr::from(ip)) {
                "the provided network does not match the current range"
            } else if self.addresses.contains(&ip) {
                "provided IP is already allocated"
            } else {
                ""
            };
            if !why.is_empty() {
                let why = format!("failed to allocate IP {asked}: {why}");
                let cause = Cause::invalid("spec.clusterIPs", &service["spec"]["clusterIPs"], &why);
                return Err(Refusal::invalid(resource, name, &[cause]));
            }
        }
        if asked.is_empty() {
            let hosts = u32::from(self.service_range.network())..u32::from(self.service_range.broadcast());
            let size = hosts.end - hosts.start;
            let first = u32::try_from(self.lots.draw() % u64::from(size.max(1))).unwrap_or(0);
            let free = (0..size).map(|i| hosts.start + (first + i) % size);
            let Some(ip) = free.filter(|ip| *ip > hosts.start).find(|ip| !self.addresses.contains(ip)) else {
                let message = format!("failed to allocate a serviceIP: range {} is full", self.service_range);
                return Err(Refusal::new(500, "InternalError", message, Value::Null));
            };
            service["spec"]["clusterIP"] = json!(Ipv4Addr::from(ip).to_string());
            service["spec"]["clusterIPs"] = json!([Ipv4Addr::from(ip).to_string()]);
        }
        if kind == "NodePort" || kind == "LoadBalancer" {
            let mut taken = self.ports.clone();
            for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
                if let Some(asked) = port["nodePort"].as_u64().and_then(|p| u16::try_from(p).ok()) {
                    if self.ports.contains(&asked) && !own_ports.contains(&asked) {
                        let why = "provided port is already allocated";
                        let cause = Cause::invalid("spec.ports[0].nodePort", &port["nodePort"], why);
                        return Err(Refusal::invalid(resource, name, &[cause]));
                    }
                } else {
                    let first = self.lots.draw() % 2_768;
                    let mut all =
                        (0..2_768).map(|i| 30_000 + u16::try_from((first + i) % 2_768).unwrap_or(0));
                    let free = all.find(|port| !taken.contains(port)).unwrap_or(30_000);
                    taken.insert(free);
                    port["nodePort"] = json!(free);
                }
            }
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, service: &Value) {
        self.addresses.extend(addresses(service));
        self.ports.extend(ports(service));
    }

    pub(super) fn release(&mut self, service: &Value) {
        for ip in addresses(service) {
            self.addresses.remove(&ip);
        }
        for port in ports(service) {
            self.ports.remove(&port);
        }
    }
}
