//! Tests that reach over several crates: the direction of dependencies, the cases, the kernel as an oracle, and the lab.
//!
//! What the tests share is here; the tests themselves are in `tests/`.
#![forbid(unsafe_code)]

pub mod browser;
pub mod cluster;
pub mod conformance;
pub mod fakes;
pub mod kube_proxy;
pub mod lab;
pub mod networkpolicy;
pub mod node;
