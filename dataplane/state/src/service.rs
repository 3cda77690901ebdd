//! Services as pods of this node see them: frontends, and the endpoints that the control plane has already chosen for this
//! node (readiness, traffic policy, zone hints).

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Protocol, Shared};

/// Everything about services.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Services {
    /// The cluster's service ranges. What a pod sends there and is no service is rejected, never translated and sent out.
    pub cidrs: Vec<Ipv4Net>,
    /// The services, one for each port and each set of endpoints.
    #[serde(rename = "service")]
    pub services: Shared<Arc<Service>>,
}

/// Frontends that share one set of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What it is, unique: `namespace/name:port`, and what tells apart the frontends that have other endpoints.
    pub name: String,
    /// The protocol of frontends and endpoints.
    pub protocol: Protocol,
    /// Where pods may send to.
    #[serde(rename = "frontend")]
    pub frontends: Vec<Frontend>,
    /// Where it goes. Policy is judged on these.
    #[serde(default, rename = "endpoint")]
    pub endpoints: Vec<Endpoint>,
    /// Seconds for which a client keeps its endpoint (`ClientIP` affinity); absent: a choice for every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    /// What becomes of a connection when there is no endpoint.
    #[serde(default)]
    pub without_endpoints: WithoutEndpoints,
}

/// An address and port on which pods reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontend {
    /// The address; absent: every address of this node (a `NodePort`, a hostPort without an address).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The port.
    pub port: u16,
    /// Who may: absent means everybody (`loadBalancerSourceRanges`). Others are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Ipv4Net>>,
    /// It is a service even where the address is one of this node's own. True for node ports, host ports, external and load
    /// balancer addresses; false for a cluster IP, which node-local DNS may have taken over.
    #[serde(default)]
    pub over_local: bool,
}

/// An address and port that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// A pod's or a node's address.
    pub ip: Ipv4Addr,
    /// Its port.
    pub port: u16,
}

/// What becomes of a connection to a service that has no endpoint for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WithoutEndpoints {
    /// It is refused with an ICMP port unreachable, as kube-proxy does.
    #[default]
    Reject,
    /// It is dropped: there are endpoints, but none that the traffic policy allows.
    Drop,
}
