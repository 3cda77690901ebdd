//! What a `NetworkPolicy` means, told a second time.
//!
//! The product compiles policies into numbers and intervals; here they are read as the API's documentation words them,
//! one probe at a time, by the slowest and plainest way ([`evaluate`]). The two share no code, so that a misreading has
//! to be made twice to go unseen. [`case`] reads cases of the format that `cases/networkpolicy` has, [`Cluster`] is what
//! their steps change, [`random`] makes clusters that nobody thought of.

pub mod case;
mod cluster;
mod naive;

pub mod random;

pub use cluster::{
    Cluster, ContainerPort, Endpoint, Labels, Mutation, Namespace, Node, Party, Phase, Pod, Probe, Unplayable,
};
pub use naive::{Halves, evaluate, selects};

pub(crate) use cluster::key;
