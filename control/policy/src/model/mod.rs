//! The objects of a cluster, as slim as policy and services need them: a node sees every pod of the cluster, a hundred
//! thousand of them, and has other work for its memory. Equal strings, labels and ports are kept once by the
//! [`World`](crate::World).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use sluice_state::Protocol;

pub(crate) mod convert;

/// Labels by key.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid: a pod may come back under its name as another.
    pub uid: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its first IPv4 address; of a host network pod, its node's.
    pub ip: Option<Ipv4Addr>,
    /// The node that it is bound to.
    pub node: Option<Arc<str>>,
    /// It uses the node's network: it has no address of its own, and no policy is about it.
    pub host_network: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// It is being deleted. It takes part until it is gone or finished.
    pub terminating: bool,
    /// When it was created, in seconds of Unix time.
    pub created: Option<i64>,
    /// The ports of its containers, sidecars among them.
    pub ports: Arc<[ContainerPort]>,
}

impl Pod {
    /// It owns its address: it has one that is not its node's, and has not finished. A terminating pod does.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        let finished = matches!(self.phase, Phase::Succeeded | Phase::Failed);
        self.ip.filter(|_| !self.host_network && !finished)
    }
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Not all containers have been started.
    #[default]
    Pending,
    /// At least one container runs.
    Running,
    /// All ended well; its address is free.
    Succeeded,
    /// All ended, not all well; its address is free.
    Failed,
    /// The node does not answer; the pod may still run.
    Unknown,
}

/// A port of a pod's container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Its name, which policies and services may use.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// The port of the node that leads to it.
    pub host_port: Option<u16>,
    /// The address of the node that does; absent: every one.
    pub host_ip: Option<Ipv4Addr>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels. The [`World`](crate::World) adds `kubernetes.io/metadata.name`, as the API server does.
    pub labels: Labels,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Option<Arc<str>>,
    /// Its labels.
    pub labels: Labels,
}

/// A v1 Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// When it was created, in seconds of Unix time: of two services with one address, the older has it.
    pub created: Option<i64>,
    /// Its IPv4 cluster IPs; none if it is headless, an `ExternalName`, or has not got one.
    pub cluster_ips: Vec<Ipv4Addr>,
    /// Addresses outside of the cluster's ranges that lead to it.
    pub external_ips: Vec<Ipv4Addr>,
    /// Addresses of its load balancer that are the nodes' to intercept: `ipMode` is VIP, and it is no host name.
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Who may use those; empty: everybody.
    pub source_ranges: Vec<Ipv4Net>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`: its cluster IPs lead to this node's endpoints only.
    pub internal_local: bool,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty if it has none; the ports of endpoint slices bear it, too.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// The port of every node that leads to it.
    pub node_port: Option<u16>,
}

/// A discovery.k8s.io/v1 `EndpointSlice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The service that it is for (`kubernetes.io/service-name`).
    pub service: Option<Arc<str>>,
    /// Its ports; empty for a slice of IPv6 addresses or host names.
    pub ports: Vec<SlicePort>,
    /// Its endpoints; empty for a slice of IPv6 addresses or host names.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an endpoint slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service's port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// An endpoint of an endpoint slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address. Slices may list more of them, which are the same endpoint: the first is used, as kube-proxy does.
    pub ip: Ipv4Addr,
    /// It takes new connections; absent in the slice means true.
    pub ready: bool,
    /// It serves, be it terminating or not; absent in the slice means true.
    pub serving: bool,
    /// It is terminating.
    pub terminating: bool,
    /// The node that it is on.
    pub node: Option<Arc<str>>,
    /// The zones that should use it.
    pub for_zones: Vec<Arc<str>>,
    /// The nodes that should use it.
    pub for_nodes: Vec<Arc<str>>,
}

/// An object of any kind that matters here.
#[derive(Debug, Clone)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod, which others may hold, too: there are many.
    Pod(Arc<Pod>),
    /// A policy, as it was written or stored.
    NetworkPolicy(Box<NetworkPolicy>),
    /// A service.
    Service(Service),
    /// An endpoint slice.
    EndpointSlice(EndpointSlice),
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        let none: Arc<str> = Arc::from("");
        let (kind, namespace, name) = match self {
            Self::Namespace(x) => (Kind::Namespace, none, x.name.clone()),
            Self::Node(x) => (Kind::Node, none, x.name.clone()),
            Self::Pod(x) => (Kind::Pod, x.namespace.clone(), x.name.clone()),
            Self::NetworkPolicy(x) => {
                let meta = &x.metadata;
                let name = meta.name.as_deref().unwrap_or_default();
                (Kind::NetworkPolicy, convert::namespace(meta), name.into())
            }
            Self::Service(x) => (Kind::Service, x.namespace.clone(), x.name.clone()),
            Self::EndpointSlice(x) => (Kind::EndpointSlice, x.namespace.clone(), x.name.clone()),
        };
        ObjectId { kind, namespace, name }
    }
}

/// The kinds of objects that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Namespace.
    Namespace,
    /// v1 Node.
    Node,
    /// v1 Pod.
    Pod,
    /// networking.k8s.io/v1 `NetworkPolicy`.
    NetworkPolicy,
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 `EndpointSlice`.
    EndpointSlice,
}

impl Kind {
    /// Its name, as Kubernetes spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a cluster's own objects.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What became of an object.
#[derive(Debug, Clone)]
pub enum Change {
    /// It is new or has changed.
    Upsert(Object),
    /// It is gone; unknown is no error.
    Delete(ObjectId),
}
