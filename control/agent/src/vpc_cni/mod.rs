//! Moving a node over from the VPC CNI, and back, while its pods go on.
//!
//! Two agents that own one node's addresses give them out twice, so nothing is taken while ipamd answers. Once it is gone,
//! its leases are read, held against what is really on the node, and kept; and only when the daemon has every one of those
//! pods in force does anything of the VPC CNI's go, in an order in which no packet leaves with a wrong address.
//!
//! ```text
//!  ipam.json ──┐                      ┌─► leases for the pool, paths for the daemon
//!  veths, ─────┼─► Survey ─► Plan ────┤
//!  routes,     │   (what is there)    └─► Takeover: record ─► rules 1536 ─► nat, mangle ─► rules 1024, 1535, 512 ─► ipam.json aside
//!  ip rules, ──┘                                     │
//!  iptables                                          └─► Return: ipam.json, rules 512 and 1536 as they were
//! ```
//!
//! What is left behind by a kill at any step is what the next run finds: every step is looked for before it is done.

mod cli;
mod host;
mod import;
mod ipam;
pub(crate) mod names;
mod plan;
mod presence;
mod record;
mod restore;
mod show;
mod tables;
mod takeover;

pub(crate) use cli::is_refusal;
pub use cli::{AdoptArgs, PresenceArgs, RestoreArgs, adopt, restore};
pub(crate) use host::furnish;
pub use host::{Host, HostError, Link, Rule};
pub use import::ImportError;
pub(crate) use import::import;
pub use ipam::{Allocation, Leases, LeasesError, NETWORK};
pub use names::host_interface;
pub use plan::{Left, Plan, Taken, plan};
pub use presence::{Present, refuse};
pub use record::RecordError;
pub use restore::RestoreError;
pub use tables::{Backend, TablesError};
pub use takeover::TakeoverError;

/// Where the VPC CNI keeps its leases, unless `AWS_VPC_K8S_CNI_BACKING_STORE` says otherwise (VPC CNI: the same).
pub const LEASES: &str = "/var/run/aws-node/ipam.json";

#[cfg(test)]
mod tests;
