//! Kubernetes objects compiled into the dataplane's state: who may speak to whom, and where services lead.
//!
//! ```text
//!  Change ──> World ──update()──> ops of a generation + findings
//!               │
//!               ├─ classes: pods of equal namespace, labels and named ports ──> identity (a set of selectors)
//!               ├─ policies: parsed once, their peers interned as selectors
//!               ├─ rules: one for each set of policies that selects local pods
//!               └─ services: one for each port and each set of endpoints
//! ```
//!
//! Nothing here does I/O or knows the time, so that whatever a cluster may show a node is a plain test. What a change
//! costs depends on what it touches, never on the size of the cluster.
#![forbid(unsafe_code)]

mod admission;
mod model;
mod numbers;
mod pool;
mod selector;
mod spec;
mod world;

pub use admission::{Refusal, RefusalKind, admit, admit_new, policy_from_json, unknown_fields};
pub use model::{
    Change, ContainerPort, EndpointSlice, Kind, Labels, Namespace, Node, Object, ObjectId, Phase, Pod,
    Service, ServicePort, SliceEndpoint, SlicePort,
};
pub use pool::{LabelPool, Pool};
pub use world::{Decision, End, EnforcingMode, Finding, Half, Probe, Settings, Update, World};
