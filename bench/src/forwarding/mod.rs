//! The node's whole path beside the kernel's: kernel forwarding, nft masquerade, VPC-CNI-shaped iptables and Sluice in the
//! same lab, in turn, several rounds.

pub mod bed;
pub mod lab;
pub mod plan;
pub mod plot;
pub mod report;
pub mod run;
pub mod summary;
