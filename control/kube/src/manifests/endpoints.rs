//! The endpoint slices of a service with a selector, as the endpoint slice controller would write them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_policy::{EndpointSlice, Phase, Pod, SliceEndpoint, SlicePort};
use sluice_state::Protocol;

use super::pods::Placed;

/// The selector of a service whose endpoints are derived.
pub(super) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let proxied = spec.type_.as_deref() != Some("ExternalName");
    spec.selector.as_ref().filter(|selector| proxied && !selector.is_empty())
}

/// Whether a service takes a pod of its namespace.
pub(super) fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    selector.iter().all(|(key, value)| pod.labels.get(key.as_str()).is_some_and(|v| **v == **value))
}

/// The slices of a service: one for each set of port numbers that its pods resolve its ports to.
pub(super) fn slices<'a>(
    namespace: &Arc<str>,
    name: &Arc<str>,
    service: &Service,
    pods: impl Iterator<Item = &'a Placed>,
) -> Vec<EndpointSlice> {
    let (Some(selector), Some(spec)) = (selector(service), service.spec.as_ref()) else { return Vec::new() };
    let mut by_ports: BTreeMap<Vec<(Protocol, u16, String)>, Vec<SliceEndpoint>> = BTreeMap::new();
    for placed in pods.filter(|placed| selects(selector, &placed.pod)) {
        let Some(endpoint) = endpoint(placed, spec) else { continue };
        let ports: Vec<_> =
            spec.ports.iter().flatten().filter_map(|port| resolve(port, &placed.pod)).collect();
        by_ports.entry(ports).or_default().push(endpoint);
    }
    let numbered = by_ports.into_iter().enumerate();
    numbered
        .map(|(i, (ports, endpoints))| EndpointSlice {
            namespace: Arc::clone(namespace),
            // A dot, so that it is no name that anybody would give a slice of his own.
            name: format!("{name}.derived-{i}").into(),
            service: Some(Arc::clone(name)),
            ports: ports
                .into_iter()
                .map(|(protocol, port, name)| SlicePort { name: name.into(), protocol, port })
                .collect(),
            endpoints,
        })
        .collect()
}

fn endpoint(placed: &Placed, spec: &ServiceSpec) -> Option<SliceEndpoint> {
    let pod = &placed.pod;
    let ip = pod.ip.filter(|_| !matches!(pod.phase, Phase::Succeeded | Phase::Failed))?;
    let serving = placed.ready && pod.phase == Phase::Running;
    let published = spec.publish_not_ready_addresses == Some(true);
    Some(SliceEndpoint {
        ip,
        ready: published || (serving && !pod.terminating),
        serving,
        terminating: pod.terminating,
        node: pod.node.clone(),
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    })
}

/// The number of a service's port on a pod; none when the pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<(Protocol, u16, String)> {
    let protocol: Protocol = port.protocol.as_deref().unwrap_or("TCP").parse().ok()?;
    let number = match port.target_port.as_ref() {
        None => u16::try_from(port.port).ok()?,
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok()?,
        Some(IntOrString::String(name)) => {
            let named = |p: &&sluice_policy::ContainerPort| {
                p.protocol == protocol && p.name.as_deref() == Some(name.as_str())
            };
            pod.ports.iter().find(named)?.port
        }
    };
    Some((protocol, number, port.name.clone().unwrap_or_default()))
}
