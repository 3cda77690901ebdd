//! Objects as they are decoded: only what is used, straight from the wire. A pod of 8 kB becomes some hundred bytes; what
//! is skipped is never allocated.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::Metadata as _;
use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer};

/// The part of `metadata` that is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

fn slim_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let meta = SlimMeta::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        labels: meta.labels,
        creation_timestamp: meta.creation_timestamp,
        deletion_timestamp: meta.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

/// A pod, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct SlimPod {
    #[serde(default, deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<SlimPodSpec>,
    #[serde(default)]
    status: Option<SlimPodStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimPodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    #[serde(default)]
    containers: Vec<SlimContainer>,
    init_containers: Option<Vec<SlimContainer>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimContainer {
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
}

impl SlimPod {
    /// As the API's type has it, so that there is one conversion of pods.
    pub(super) fn whole(self) -> core::Pod {
        let container = |slim: SlimContainer| core::Container {
            ports: slim.ports,
            restart_policy: slim.restart_policy,
            ..core::Container::default()
        };
        let spec = self.spec.map(|spec| core::PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.into_iter().map(container).collect(),
            init_containers: spec.init_containers.map(|all| all.into_iter().map(container).collect()),
            ..core::PodSpec::default()
        });
        let status = self.status.map(|status| core::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..core::PodStatus::default()
        });
        core::Pod { metadata: self.metadata, spec, status }
    }
}

/// A node, as far as it is used. What it has cached of images is most of it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct SlimNode {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<SlimNodeSpec>,
    #[serde(default)]
    status: Option<SlimNodeStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimNodeSpec {
    unschedulable: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimNodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

/// What of this node decides about its interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// It is cordoned.
    pub unschedulable: bool,
    /// It is being deleted.
    pub terminating: bool,
}

impl SlimNode {
    pub(super) fn facts(&self) -> NodeFacts {
        NodeFacts {
            labels: self.metadata.labels.clone().unwrap_or_default(),
            annotations: self.metadata.annotations.clone().unwrap_or_default(),
            unschedulable: self.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
            terminating: self.metadata.deletion_timestamp.is_some(),
        }
    }

    pub(super) fn whole(self) -> core::Node {
        let status = self
            .status
            .map(|status| core::NodeStatus { addresses: status.addresses, ..core::NodeStatus::default() });
        core::Node { metadata: self.metadata, spec: None, status }
    }
}

/// An `ENIConfig` (`crd.k8s.amazonaws.com/v1alpha1`), as the VPC CNI defines it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EniConfig {
    #[serde(default, deserialize_with = "slim_meta")]
    metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: EniConfigSpec,
}

/// Where an ENIConfig puts interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EniConfigSpec {
    /// A subnet's id.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Ids of security groups; absent or empty: the primary ENI's.
    #[serde(default)]
    pub security_groups: Option<Vec<String>>,
}

impl EniConfig {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

macro_rules! resource {
    ($slim:ty, $scope:ty, $group:expr, $version:expr, $kind:expr, $plural:expr) => {
        impl Resource for $slim {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(SlimPod, NamespaceResourceScope, core::Pod::GROUP, core::Pod::VERSION, core::Pod::KIND, "pods");
resource!(SlimNode, ClusterResourceScope, core::Node::GROUP, core::Node::VERSION, core::Node::KIND, "nodes");
resource!(EniConfig, ClusterResourceScope, "crd.k8s.amazonaws.com", "v1alpha1", "ENIConfig", "eniconfigs");

/// The name of a namespace whose metadata alone was listed.
pub(super) fn namespace(metadata: ObjectMeta) -> core::Namespace {
    let mut namespace = core::Namespace::default();
    *namespace.metadata_mut() = metadata;
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_decoded_to_what_the_whole_one_comes_to() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","uid":"u","resourceVersion":"7",
            "labels":{"app":"web"},"annotations":{"big":"x"},"managedFields":[{"manager":"m"}],"creationTimestamp":"2026-01-02T03:04:05Z"},
            "spec":{"nodeName":"here","volumes":[{"name":"v"}],"containers":[{"name":"c","image":"i","env":[{"name":"E","value":"1"}],
              "ports":[{"name":"web","containerPort":8080}]}],
              "initContainers":[{"name":"s","restartPolicy":"Always","ports":[{"containerPort":9090}]},{"name":"i","ports":[{"containerPort":1}]}]},
            "status":{"phase":"Running","podIP":"10.0.0.7","podIPs":[{"ip":"10.0.0.7"}],"conditions":[{"type":"Ready","status":"True"}]}}"#;
        let slim: SlimPod = serde_json::from_str(text).unwrap();
        let whole: core::Pod = serde_json::from_str(text).unwrap();
        let read = |pod: &core::Pod| sluice_policy::Pod::try_from(pod).unwrap();
        assert_eq!(read(&slim.whole()), read(&whole));
    }

    #[test]
    fn a_node_tells_what_decides_about_its_interfaces() {
        let text = r#"{"metadata":{"name":"a","labels":{"z":"1"},"annotations":{"k":"v"}},"spec":{"unschedulable":true},
            "status":{"addresses":[{"type":"InternalIP","address":"10.0.9.5"}],"images":[{"names":["x"]}]}}"#;
        let node: SlimNode = serde_json::from_str(text).unwrap();
        let facts = node.facts();
        assert!(facts.unschedulable && !facts.terminating && facts.annotations["k"] == "v");
        let read = sluice_policy::Node::try_from(&node.whole()).unwrap();
        assert_eq!(read.addresses.len(), 1);
        let config = r#"{"metadata":{"name":"a"},"spec":{"subnet":"subnet-1","securityGroups":["sg-1"]}}"#;
        let config: EniConfig = serde_json::from_str(config).unwrap();
        assert_eq!((config.name(), config.spec.subnet.as_deref()), ("a", Some("subnet-1")));
    }
}
