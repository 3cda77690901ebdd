//! How large what a daemon has is: what the control plane told it, and what it set aside for packets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much the state in force says about policy and services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// Addresses with an identity.
    pub addresses: u64,
    /// Identities.
    pub identities: u64,
    /// Sets of rules.
    pub rules: u64,
    /// Pods of this node that a policy isolates.
    pub isolated_pods: u64,
    /// Services, one for each port and each set of endpoints.
    pub services: u64,
    /// Their frontends.
    pub frontends: u64,
    /// Their endpoints.
    pub endpoints: u64,
}

impl Extent {
    /// Every number by name, with what it counts.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, &'static str, u64); 7] {
        [
            ("addresses", "Addresses with an identity", self.addresses),
            ("identities", "Identities", self.identities),
            ("rules", "Sets of policy rules", self.rules),
            ("isolated_pods", "Pods of this node that a policy isolates", self.isolated_pods),
            ("services", "Services, one for each port and set of endpoints", self.services),
            ("frontends", "Frontends of services", self.frontends),
            ("endpoints", "Endpoints of services", self.endpoints),
        ]
    }
}

/// What became of the connections that the kernel tracked when a daemon took the first pods over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Flows made of them.
    pub taken: u64,
    /// Those that never pass the engine: the node's own, with a port that is none of ours.
    pub elsewhere: u64,
    /// Entries that the engine cannot follow: of another conntrack zone, or of a kind that is no connection.
    pub unreadable: u64,
    /// Those of pods that were not taken over, by reason; reasons without one are left out.
    pub left: BTreeMap<String, u64>,
}

/// Memory that a daemon sets aside at its start, whatever it then holds. Everything else grows with the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes of the flow table.
    pub flow_table: u64,
    /// Bytes of the UMEM that the AF_XDP sockets share; 0 without AF_XDP.
    pub umem: u64,
}
