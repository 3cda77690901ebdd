//! At the agent's start: the pods that the VPC CNI has left on this node, for the pool and the daemon.

use std::collections::BTreeSet;
use std::path::Path;

use super::host::Host;
use super::ipam::{Leases, LeasesError};
use super::plan::{Left, Plan, Taken, plan};

/// Why the agent does not begin on a node that was the VPC CNI's.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Its leases cannot be had.
    #[error(transparent)]
    Leases(#[from] LeasesError),
    /// A pod goes on with an address that nobody could keep from others.
    #[error(
        "pods of the VPC CNI cannot be taken over, and their addresses would go to other pods: {}",
        .0.iter().map(|left| format!("{}: {}", left.what, left.why)).collect::<Vec<_>>().join("; ")
    )]
    Left(Vec<Left>),
}

/// The pods of the VPC CNI's leases that are there: nothing where there are no leases.
pub(crate) fn import(leases: &Path, host: &Host, prefix: &str) -> Result<Vec<Taken>, ImportError> {
    let Some(Leases { allocations, refused }) = Leases::read(leases)? else { return Ok(Vec::new()) };
    let Plan { taken, mut left, .. } = plan(&allocations, &refused, &[], host, prefix, &BTreeSet::new());
    left.retain(|left| left.address.is_some());
    if left.is_empty() { Ok(taken) } else { Err(ImportError::Left(left)) }
}
