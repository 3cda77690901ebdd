//! The control plane of a node: follows a cluster's objects and tells the dataplane what they come to.
//!
//! ```text
//!  API server ──Cluster─────┐
//!  manifests ──Directory──> changes ──World──> policy, services ─┐
//!                                                                ├─ Model ──generations──> state socket of sluiced
//!  inventory ──ENIs, NAT, places for pods──> paths of pods ──────┘
//! ```
//!
//! A pod's path and its policy are in one generation: there is no moment in which a pod has the one without the other.
#![forbid(unsafe_code)]

mod agent;
mod allocations;
pub mod cli;
pub mod cni;
mod daemon;
pub mod environment;
mod inventory;
mod model;
pub mod node;
mod objects;
mod settings;
mod standing;
pub mod vpc_cni;
mod waiting;
mod web;

pub use agent::{Agent, Attached, Event, NotAttached};
pub use inventory::{Cluster, Inventory, InventoryError, OtherNode};
pub use model::Model;
pub use settings::{Mode, Settings};
pub use standing::NodeNews;
pub use web::{Bind, Snapshot};
