//! What the command line and the environment decide. Names and defaults are the VPC CNI's where it has them.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use sluice_policy::EnforcingMode;
use sluice_state::{MasqueradedNodeTraffic, OnPolicyChange};

use crate::environment::Environment;
use crate::inventory::{Inventory, InventoryError};

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
#[derive(Debug, Clone, Default, Args)]
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
    /// What the environment decides.
    #[arg(skip)]
    pub environment: Environment,
}

impl Settings {
    /// The mode, by flag or environment.
    #[must_use]
    pub fn mode(&self) -> EnforcingMode {
        match self.enforcing_mode {
            Some(Mode::Standard) => EnforcingMode::Standard,
            Some(Mode::Strict) => EnforcingMode::Strict,
            None => self.environment.enforcing_mode.unwrap_or(EnforcingMode::Standard),
        }
    }

    /// The inventory of a file, with what the environment says over it.
    ///
    /// # Errors
    /// As [`Inventory::from_file`]; the environment may have made a good file one that contradicts itself.
    pub fn inventory(&self, path: &Path) -> Result<Inventory, InventoryError> {
        let mut inventory = Inventory::from_file(path)?;
        self.environment.translate(&mut inventory.state.nat);
        inventory.state.check().map_err(|error| InventoryError::of(path, error))?;
        Ok(inventory)
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
