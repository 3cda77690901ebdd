//! Kubernetes objects, from an API server ([`cluster`], behind the feature of that name) or from a directory of manifests.
//!
//! A node's control plane needs the cluster's objects, and need not have a cluster: a directory of ordinary manifests says the same. Here
//! it is read as the API server would take it (defaults filled in, bad objects refused one by one), the controllers'
//! part is done (workloads become pods, services get addresses and endpoint slices), and what changes in a file
//! becomes [`sluice_policy::Change`]s.
#![forbid(unsafe_code)]

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod manifests;
