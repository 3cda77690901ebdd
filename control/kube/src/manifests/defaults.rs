//! What the API server fills in before anybody else sees an object. Who compiles relies on it.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, Pod, PodSpec, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The label that every namespace has and nobody can take off.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Seconds of `ClientIP` affinity.
const AFFINITY: i32 = 10_800;

fn tcp(protocol: &mut Option<String>) {
    protocol.get_or_insert_with(|| "TCP".into());
}

/// A namespace's label of its own name.
pub(super) fn namespace(metadata: &mut ObjectMeta) {
    let name = metadata.name.clone().unwrap_or_default();
    metadata.labels.get_or_insert_default().insert(NAME_LABEL.into(), name);
}

/// A pod, or the pod of a template.
pub(super) fn pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for port in containers.flat_map(|c| c.ports.iter_mut().flatten()) {
        tcp(&mut port.protocol);
        if host_network && port.host_port.is_none() {
            port.host_port = Some(port.container_port);
        }
    }
}

/// A service; addresses and node ports are given out later.
pub(super) fn service(service: &mut Service) {
    let spec = service.spec.get_or_insert_default();
    let kind = spec.type_.get_or_insert_with(|| "ClusterIP".into()).clone();
    let external = kind == "NodePort" || kind == "LoadBalancer";
    for port in spec.ports.iter_mut().flatten() {
        service_port(port);
    }
    let affinity = spec.session_affinity.get_or_insert_with(|| "None".into());
    if affinity == "ClientIP" {
        let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        config.client_ip.get_or_insert_with(ClientIPConfig::default).timeout_seconds.get_or_insert(AFFINITY);
    }
    if kind != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".into());
    }
    if external || has_external_ips(spec) {
        spec.external_traffic_policy.get_or_insert_with(|| "Cluster".into());
    }
    if kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

fn has_external_ips(spec: &ServiceSpec) -> bool {
    spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty())
}

fn service_port(port: &mut ServicePort) {
    tcp(&mut port.protocol);
    let absent = match &port.target_port {
        None | Some(IntOrString::Int(0)) => true,
        Some(IntOrString::String(name)) => name.is_empty(),
        Some(IntOrString::Int(_)) => false,
    };
    if absent {
        port.target_port = Some(IntOrString::Int(port.port));
    }
}

/// An endpoint slice.
pub(super) fn slice(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        tcp(&mut port.protocol);
        port.name.get_or_insert_default();
    }
}

/// A policy: the protocol of its ports and its types. Egress is one only where there is an egress rule.
pub(super) fn policy(policy: &mut NetworkPolicy) {
    let Some(spec) = &mut policy.spec else { return };
    let ingress = spec.ingress.iter_mut().flatten().filter_map(|rule| rule.ports.as_mut());
    let egress = spec.egress.iter_mut().flatten().filter_map(|rule| rule.ports.as_mut());
    for NetworkPolicyPort { protocol, .. } in ingress.chain(egress).flatten() {
        tcp(protocol);
    }
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let mut types = vec!["Ingress".to_owned()];
        if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
            types.push("Egress".into());
        }
        spec.policy_types = Some(types);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn defaulted<T: serde::de::DeserializeOwned + serde::Serialize>(
        value: Value,
        f: impl Fn(&mut T),
    ) -> Value {
        let mut object: T = serde_json::from_value(value).unwrap();
        f(&mut object);
        serde_json::to_value(object).unwrap()
    }

    #[test]
    fn a_policy_is_of_type_egress_only_with_an_egress_rule() {
        let types = |spec: Value| {
            let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {}, "spec": spec});
            defaulted(object, policy)["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
        assert_eq!(types(json!({"podSelector": {}, "egress": []})), json!(["Ingress"]));
        assert_eq!(types(json!({"podSelector": {}, "egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"podSelector": {}, "policyTypes": ["Egress"]})), json!(["Egress"]));
    }

    #[test]
    fn a_service_has_protocol_target_port_affinity_and_policies() {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 80}, {"port": 81, "targetPort": "web"}]}});
        let spec = defaulted(value, service)["spec"].clone();
        assert_eq!(spec["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(spec["ports"][1]["targetPort"], "web");
        assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        assert_eq!(spec["internalTrafficPolicy"], "Cluster");
        assert_eq!(spec["externalTrafficPolicy"], "Cluster");
    }
}
