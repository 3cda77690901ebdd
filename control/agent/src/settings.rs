//! What the command line and the environment decide. Names and defaults are the VPC CNI's where it has them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use sluice_policy::EnforcingMode;
use sluice_state::{MasqueradedNodeTraffic, OnPolicyChange};

/// Where the VPC CNI says how pods that no policy selects are treated.
pub(crate) const MODE_VARIABLE: &str = "NETWORK_POLICY_ENFORCING_MODE";

/// What becomes of a pod that no policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// It is allowed everything.
    Standard,
    /// It is denied both ways, but for its own node.
    Strict,
}

/// What becomes of live flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnChange {
    /// They are judged again at their next packet.
    #[default]
    Recheck,
    /// They live on.
    Keep,
}

/// How masqueraded traffic is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Masqueraded {
    /// It is allowed.
    #[default]
    Allow,
    /// It is judged as the node's address.
    Policy,
}

/// How objects become generations.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// What becomes of a pod that no policy selects: nothing (standard), or it is denied both ways but for its own node
    /// (strict) [default: NETWORK_POLICY_ENFORCING_MODE, then standard]
    #[arg(long, value_name = "MODE", value_enum)]
    pub enforcing_mode: Option<Mode>,
    /// What becomes of live flows when policy changes: judged again at their next packet, or kept
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub on_policy_change: OnChange,
    /// How traffic is judged that the kernel has masqueraded to the node's address (a NodePort): allowed as the VPC CNI has
    /// it, or by policy as that address
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub masqueraded_node_traffic: Masqueraded,
    /// The cluster's service ranges, by commas, in place of the inventory's
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub service_cidrs: Vec<Ipv4Net>,
    /// Where addresses and node ports that were given out are kept over a restart [default: INVENTORY.allocations.json]
    #[arg(long, value_name = "FILE")]
    pub allocations: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enforcing_mode: None,
            on_policy_change: OnChange::default(),
            masqueraded_node_traffic: Masqueraded::default(),
            service_cidrs: Vec::new(),
            allocations: None,
        }
    }
}

impl Settings {
    /// The mode, by flag or environment.
    ///
    /// # Errors
    /// The environment names a mode that there is not.
    pub fn mode(&self) -> Result<EnforcingMode, String> {
        match self.enforcing_mode {
            Some(Mode::Standard) => Ok(EnforcingMode::Standard),
            Some(Mode::Strict) => Ok(EnforcingMode::Strict),
            None => match std::env::var(MODE_VARIABLE) {
                Ok(text) if !text.is_empty() => {
                    text.parse().map_err(|e: String| format!("{MODE_VARIABLE}: {e}"))
                }
                _ => Ok(EnforcingMode::Standard),
            },
        }
    }

    /// Where what was given out is kept.
    pub(crate) fn allocations_of(&self, inventory: &Path) -> PathBuf {
        self.allocations.clone().unwrap_or_else(|| {
            let mut name = inventory.as_os_str().to_owned();
            name.push(".allocations.json");
            name.into()
        })
    }

    pub(crate) fn on_change(&self) -> OnPolicyChange {
        match self.on_policy_change {
            OnChange::Recheck => OnPolicyChange::Recheck,
            OnChange::Keep => OnPolicyChange::Keep,
        }
    }

    pub(crate) fn masqueraded(&self) -> MasqueradedNodeTraffic {
        match self.masqueraded_node_traffic {
            Masqueraded::Allow => MasqueradedNodeTraffic::Allow,
            Masqueraded::Policy => MasqueradedNodeTraffic::Policy,
        }
    }
}
