//! The plain types that the control plane and the dataplane exchange.
//!
//! One [`State`] says everything the dataplane of a node must know: its ENIs, its pods, what is translated and with
//! which ports, and the limits. The same types travel as numbered [`Generation`]s over the state socket and, as a TOML
//! or JSON file, run the daemon alone. There is no logic here beyond parsing, checking and applying: a [`State`] that
//! [`State::check`] accepts is one that the engine can compile.
#![forbid(unsafe_code)]

pub mod framing;
mod generation;
mod mac;
mod nat;
mod node;
mod policy;
mod ports;
pub mod push;
pub mod query;
mod service;
mod shared;
mod timeouts;
mod validate;

pub use generation::{Generation, Op};
pub use mac::Mac;
pub use nat::{Nat, RandomizeSnat};
pub use node::{Eni, Limits, Node, OnFailure, Pod};
pub use policy::{
    Addresses, Identity, MasqueradedNodeTraffic, OnPolicyChange, Peer, PodPolicy, Policy, PortMatch,
    Protocol, Rule, Rules,
};
pub use ports::{PortRange, PortSet, SnatPorts};
pub use service::{Endpoint, Frontend, Service, Services, WithoutEndpoints};
pub use shared::Shared;
pub use timeouts::{Preset, Seconds, Timeouts};
pub use validate::{Invalid, StateError};

use serde::{Deserialize, Serialize};

/// The version of this format. A daemon refuses a state of another version by name.
pub const VERSION: u32 = 1;

/// Everything the dataplane of one node must know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// The node itself.
    #[serde(default)]
    pub node: Node,
    /// The node's ENIs; exactly one is primary.
    #[serde(default, rename = "eni")]
    pub enis: Vec<Eni>,
    /// The pods of this node.
    #[serde(default, rename = "pod")]
    pub pods: Vec<Pod>,
    /// Source address translation.
    #[serde(default)]
    pub nat: Nat,
    /// The ports and ICMP identifiers that Sluice may use as a source on the node's address.
    #[serde(default)]
    pub snat_ports: SnatPorts,
    /// How long idle flows live.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Sizes of the tables.
    #[serde(default)]
    pub limits: Limits,
    /// Who may speak to whom.
    #[serde(default)]
    pub policy: Policy,
    /// Services that pods use.
    #[serde(default)]
    pub services: Services,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: VERSION,
            node: Node::default(),
            enis: Vec::new(),
            pods: Vec::new(),
            nat: Nat::default(),
            snat_ports: SnatPorts::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            policy: Policy::default(),
            services: Services::default(),
        }
    }
}

impl State {
    /// Reads a state from TOML text and checks it.
    ///
    /// # Errors
    /// The text is not TOML, has an unknown or duplicate key, or fails [`State::check`].
    pub fn from_toml(text: &str) -> Result<Self, StateError> {
        let state: Self = toml::from_str(text).map_err(|e| StateError::Syntax(e.to_string()))?;
        state.check().map(|()| state)
    }

    /// Reads a state from JSON text and checks it.
    ///
    /// # Errors
    /// The text is not JSON, has an unknown or duplicate key, or fails [`State::check`].
    pub fn from_json(text: &str) -> Result<Self, StateError> {
        let state: Self = serde_json::from_str(text).map_err(|e| StateError::Syntax(e.to_string()))?;
        state.check().map(|()| state)
    }

    /// Reads a state from a file, JSON when its name ends in `.json` and TOML otherwise, and checks it.
    ///
    /// # Errors
    /// The file cannot be read, or its text is refused as by [`State::from_toml`].
    pub fn from_file(path: &std::path::Path) -> Result<Self, StateError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| StateError::Read { path: path.to_owned(), source })?;
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            Self::from_json(&text)
        } else {
            Self::from_toml(&text)
        }
    }

    /// The ENI whose primary address is the node's SNAT address.
    #[must_use]
    pub fn primary_eni(&self) -> Option<&Eni> {
        self.enis.iter().find(|e| e.primary)
    }
}

#[cfg(test)]
mod changes_tests;
#[cfg(test)]
mod tests;
