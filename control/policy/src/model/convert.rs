//! The API's types made slim. What cannot be understood is refused with its field, so that the last good version of the
//! object stays in force; what is merely of no use here (IPv6, host names) is left out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_state::Protocol;

use super::{
    ContainerPort, EndpointSlice, Labels, Namespace, Node, Phase, Pod, Service, ServicePort, SliceEndpoint,
    SlicePort,
};
use crate::Refusal;
use crate::admission::{cidr, port_number};

/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`: 3 hours.
const AFFINITY_SECONDS: i32 = 10_800;

impl TryFrom<&core::Namespace> for Namespace {
    type Error = Vec<Refusal>;

    fn try_from(object: &core::Namespace) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let name = name(&object.metadata, &mut refusals);
        finish(refusals, Self { name, labels: labels(&object.metadata) })
    }
}

impl TryFrom<&core::Node> for Node {
    type Error = Vec<Refusal>;

    fn try_from(object: &core::Node) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let name = name(&object.metadata, &mut refusals);
        let labels = labels(&object.metadata);
        let status = object.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let mut addresses: Vec<Ipv4Addr> = status.filter_map(|a| a.address.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let zone = labels.get("topology.kubernetes.io/zone").filter(|z| !z.is_empty()).cloned();
        finish(refusals, Self { name, addresses, zone, labels })
    }
}

impl TryFrom<&core::Pod> for Pod {
    type Error = Vec<Refusal>;

    fn try_from(object: &core::Pod) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let name = name(&object.metadata, &mut refusals);
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let phase = match status.and_then(|s| s.phase.as_deref()) {
            None | Some("" | "Pending") => Phase::Pending,
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some(_) => Phase::Unknown,
        };
        let more = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
        let mut ips = status.and_then(|s| s.pod_ip.as_deref()).into_iter().chain(more);
        let pod = Self {
            namespace: namespace(&object.metadata),
            name,
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            labels: labels(&object.metadata),
            ip: ips.find_map(|ip| ip.parse().ok()),
            node: spec.and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()).map(Into::into),
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            phase,
            terminating: object.metadata.deletion_timestamp.is_some(),
            created: created(&object.metadata),
            ports: spec.map(|s| container_ports(s, &mut refusals)).unwrap_or_default().into(),
        };
        finish(refusals, pod)
    }
}

/// Sidecars are init containers that go on: they serve, and their ports count.
fn container_ports(spec: &core::PodSpec, refusals: &mut Vec<Refusal>) -> Vec<ContainerPort> {
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().enumerate().map(|c| ("containers", c));
    let mut ports = Vec::new();
    for (list, (i, container)) in containers.chain(sidecars.map(|c| ("initContainers", c))) {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let field = |name: &str| format!("spec.{list}[{i}].ports[{j}].{name}");
            let protocol = protocol(&field("protocol"), port.protocol.as_deref(), refusals);
            let number = port_number(&field("containerPort"), port.container_port, refusals);
            let host_port = port.host_port.filter(|p| *p != 0);
            let host_port = host_port.and_then(|p| port_number(&field("hostPort"), p, refusals));
            let host_ip = port.host_ip.as_deref().filter(|ip| !matches!(*ip, "" | "0.0.0.0" | "::"));
            let only_v6 = host_ip.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
            let host_ip = host_ip.filter(|_| !only_v6).and_then(|ip| {
                let parsed = ip.parse().ok();
                if parsed.is_none() {
                    let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                    refusals.push(Refusal::invalid(field("hostIP"), ip, why));
                }
                parsed
            });
            if let (Some(protocol), Some(port_number)) = (protocol, number) {
                ports.push(ContainerPort {
                    name: port.name.as_deref().filter(|n| !n.is_empty()).map(Into::into),
                    protocol,
                    port: port_number,
                    host_port: host_port.filter(|_| !only_v6),
                    host_ip,
                });
            }
        }
    }
    ports
}

impl TryFrom<&core::Service> for Service {
    type Error = Vec<Refusal>;

    fn try_from(object: &core::Service) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let name = name(&object.metadata, &mut refusals);
        let empty = core::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let proxied = kind != "ExternalName";
        let more = spec.cluster_ips.iter().flatten().map(String::as_str);
        let cluster_ips = addresses(spec.cluster_ip.as_deref().into_iter().chain(more));
        // A service without a cluster IP, headless or not, has no other frontends either (kube-proxy skips it whole).
        let proxied = proxied && !cluster_ips.is_empty();
        let balancer = object.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let balancer = balancer.into_iter().flat_map(|b| b.ingress.iter().flatten());
        let vips = balancer.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_deref());
        let load_balancer_ips = if kind == "LoadBalancer" { addresses(vips) } else { Vec::new() };
        let mut source_ranges = Vec::new();
        let ranges = spec.load_balancer_source_ranges.iter().flatten().enumerate();
        for (i, range) in ranges.filter(|_| kind == "LoadBalancer") {
            let field = format!("spec.loadBalancerSourceRanges[{i}]");
            match cidr(&field, range.trim(), &mut refusals) {
                Some(ipnet::IpNet::V4(net)) => source_ranges.push(net),
                Some(ipnet::IpNet::V6(_)) | None => {}
            }
        }
        // Only ranges of the other family: nobody may, not everybody.
        if source_ranges.is_empty() && spec.load_balancer_source_ranges.iter().flatten().next().is_some() {
            source_ranges.push(ipnet::Ipv4Net::from(Ipv4Addr::UNSPECIFIED));
        }
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
            u32::try_from(seconds.max(1)).unwrap_or(1)
        });
        let service = Self {
            namespace: namespace(&object.metadata),
            name,
            created: created(&object.metadata),
            external_ips: if proxied {
                addresses(spec.external_ips.iter().flatten().map(String::as_str))
            } else {
                Vec::new()
            },
            load_balancer_ips: if proxied { load_balancer_ips } else { Vec::new() },
            source_ranges,
            ports: if proxied { service_ports(spec, kind, &mut refusals) } else { Vec::new() },
            cluster_ips: if proxied { cluster_ips } else { Vec::new() },
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity,
        };
        finish(refusals, service)
    }
}

fn service_ports(spec: &core::ServiceSpec, kind: &str, refusals: &mut Vec<Refusal>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let protocol = protocol(&field("protocol"), port.protocol.as_deref(), refusals);
        let number = port_number(&field("port"), port.port, refusals);
        let node_port = port.node_port.filter(|p| *p != 0 && kind != "ClusterIP");
        let node_port = node_port.and_then(|p| port_number(&field("nodePort"), p, refusals));
        if let (Some(protocol), Some(number)) = (protocol, number) {
            let name = port.name.as_deref().unwrap_or_default().into();
            ports.push(ServicePort { name, protocol, port: number, node_port });
        }
    }
    ports
}

impl TryFrom<&discovery::EndpointSlice> for EndpointSlice {
    type Error = Vec<Refusal>;

    fn try_from(object: &discovery::EndpointSlice) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Vec::new();
        let labels = object.metadata.labels.as_ref();
        let mut slice = Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata, &mut refusals),
            service: labels.and_then(|l| l.get("kubernetes.io/service-name")).map(|s| s.as_str().into()),
            ports: Vec::new(),
            endpoints: Vec::new(),
        };
        if object.address_type != "IPv4" {
            return finish(refusals, slice);
        }
        for (i, port) in object.ports.iter().flatten().enumerate() {
            let protocol = protocol(&format!("ports[{i}].protocol"), port.protocol.as_deref(), &mut refusals);
            // Without a number it means every port, which no service can use (kube-proxy skips it).
            let number = port.port.and_then(|p| port_number(&format!("ports[{i}].port"), p, &mut refusals));
            if let (Some(protocol), Some(port_number)) = (protocol, number) {
                let name = port.name.as_deref().unwrap_or_default().into();
                slice.ports.push(SlicePort { name, protocol, port: port_number });
            }
        }
        for (i, endpoint) in object.endpoints.iter().flatten().enumerate() {
            let Some(address) = endpoint.addresses.first() else { continue };
            let Ok(ip) = address.parse() else {
                let why = "must be a valid IPv4 address, (e.g. 10.9.8.7)";
                refusals.push(Refusal::invalid(format!("endpoints[{i}].addresses[0]"), address, why));
                continue;
            };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let hints = endpoint.hints.as_ref();
            slice.endpoints.push(SliceEndpoint {
                ip,
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.as_deref().map(Into::into),
                for_zones: hints
                    .into_iter()
                    .flat_map(|h| h.for_zones.iter().flatten())
                    .map(|z| z.name.as_str().into())
                    .collect(),
                for_nodes: hints
                    .into_iter()
                    .flat_map(|h| h.for_nodes.iter().flatten())
                    .map(|n| n.name.as_str().into())
                    .collect(),
            });
        }
        finish(refusals, slice)
    }
}

fn finish<T>(refusals: Vec<Refusal>, object: T) -> Result<T, Vec<Refusal>> {
    if refusals.is_empty() { Ok(object) } else { Err(refusals) }
}

fn name(meta: &ObjectMeta, refusals: &mut Vec<Refusal>) -> Arc<str> {
    let name = meta.name.as_deref().unwrap_or_default();
    if name.is_empty() {
        refusals.push(Refusal::required("metadata.name", "name or generateName is required"));
    }
    name.into()
}

/// What names no namespace is in `default`, as `kubectl apply` has it.
pub(crate) fn namespace(meta: &ObjectMeta) -> Arc<str> {
    meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default").into()
}

fn labels(meta: &ObjectMeta) -> Labels {
    let pairs = meta.labels.iter().flatten();
    let pairs = pairs.map(|(k, v)| (Arc::from(k.as_str()), Arc::from(v.as_str())));
    Arc::new(pairs.collect::<BTreeMap<Arc<str>, Arc<str>>>())
}

fn created(meta: &ObjectMeta) -> Option<i64> {
    meta.creation_timestamp.as_ref().map(|t| t.0.as_second())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Ipv4Addr> {
    let mut list: Vec<Ipv4Addr> = Vec::new();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !list.contains(&address) {
            list.push(address);
        }
    }
    list
}

fn protocol(field: &str, text: Option<&str>, refusals: &mut Vec<Refusal>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            refusals.push(Refusal::unsupported(field, other, &["TCP", "UDP", "SCTP"]));
            None
        }
    }
}
