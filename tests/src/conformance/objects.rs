//! A case's objects as the API server would serve them, so that the product's own reading of them is tested, too.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Namespace, Node, NodeAddress, NodeStatus, Pod, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use sluice_policy::{Object, Refusal};

use crate::networkpolicy as case;

/// When the first pod of a case was created, in seconds since 1970.
const BIRTH: i64 = 1_750_000_000;

/// A namespace.
pub(crate) fn namespace(from: &case::Namespace) -> Result<Object, Vec<Refusal>> {
    let metadata = ObjectMeta {
        name: Some(from.name.clone()),
        labels: Some(from.labels.clone()),
        ..ObjectMeta::default()
    };
    sluice_policy::Namespace::try_from(&Namespace { metadata, ..Namespace::default() }).map(Object::Namespace)
}

/// A node.
pub(crate) fn node(from: &case::Node) -> Result<Object, Vec<Refusal>> {
    let address = NodeAddress { address: from.ip.to_string(), type_: "InternalIP".into() };
    let node = Node {
        metadata: ObjectMeta { name: Some(from.name.clone()), ..ObjectMeta::default() },
        status: Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() }),
        ..Node::default()
    };
    sluice_policy::Node::try_from(&node).map(Object::Node)
}

/// A pod, the `number`th that was created. `host` is its node's address, which a pod on the host's network has.
pub(crate) fn pod(from: &case::Pod, number: u32, host: Option<Ipv4Addr>) -> Result<Object, Vec<Refusal>> {
    let ip = if from.host_network { host } else { from.ip };
    let phase = match from.phase {
        case::Phase::Pending => "Pending",
        case::Phase::Running => "Running",
        case::Phase::Succeeded => "Succeeded",
        case::Phase::Failed => "Failed",
    };
    // Two ports of one name are two containers': within one the API server refuses them.
    let containers = from.ports.iter().enumerate().map(|(i, port)| Container {
        name: format!("c{i}"),
        ports: Some(vec![ContainerPort {
            name: port.name.clone(),
            protocol: Some(port.protocol.to_string()),
            container_port: i32::from(port.port),
            ..ContainerPort::default()
        }]),
        ..Container::default()
    });
    let pod = Pod {
        metadata: ObjectMeta {
            namespace: Some(from.namespace.clone()),
            name: Some(from.name.clone()),
            uid: Some(format!("00000000-0000-0000-0000-{number:012}")),
            labels: Some(from.labels.clone()),
            creation_timestamp: Timestamp::from_second(BIRTH + i64::from(number)).ok().map(Time),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(from.node.clone()),
            host_network: from.host_network.then_some(true),
            containers: containers.collect(),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.into()),
            pod_ip: ip.map(|ip| ip.to_string()),
            pod_ips: ip.map(|ip| vec![PodIP { ip: ip.to_string() }]),
            ..PodStatus::default()
        }),
    };
    sluice_policy::Pod::try_from(&pod).map(|pod| Object::Pod(pod.into()))
}
