//! The node, its ENIs, its pods, its limits.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Mac;

/// The node itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Kubernetes' name of the node; shown, never interpreted.
    pub name: String,
    /// What XDP and tc do with traffic that is the engine's while no daemon runs.
    pub on_failure: OnFailure,
}

/// What happens to traffic of pods while no daemon takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is dropped and counted: nothing leaves untranslated or unjudged.
    #[default]
    Drop,
    /// It is left to the kernel's own routing and rules.
    Kernel,
}

/// An elastic network interface of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eni {
    /// Name of its interface in the node's network namespace.
    pub name: String,
    /// The primary ENI: its primary address is the source of everything translated.
    #[serde(default)]
    pub primary: bool,
    /// Its primary private IPv4 address.
    pub address: Ipv4Addr,
    /// Its subnet: neighbours inside are on-link.
    pub subnet: Ipv4Net,
    /// The subnet's gateway (the subnet's base address + 1 in a VPC).
    pub gateway: Ipv4Addr,
    /// The gateway's Ethernet address, where it is known without asking; otherwise the kernel's neighbour table says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_mac: Option<Mac>,
}

/// A pod of this node with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes name.
    pub name: String,
    /// Its address; unique on the node.
    pub ip: Ipv4Addr,
    /// Name of the ENI that owns the address.
    pub eni: String,
    /// Name of the host's end of the pod's veth.
    pub interface: String,
    /// The Ethernet address of the pod's end.
    pub mac: Mac,
}

/// Sizes of the tables. They are taken at start; a change needs a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Flows that can be tracked at once (1024 to 16,777,216).
    pub flows: u32,
    /// Fragments that wait for their first fragment, over all workers.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 262_144, fragments: 1024 }
    }
}
