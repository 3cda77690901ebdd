//! The packet path of Sluice as a pure state machine.
//!
//! A [`worker::Worker`] takes a batch of packets, the time and a [`snapshot::Snapshot`], and gives every packet back with
//! a [`verdict::Verdict`]. Nothing here opens a socket, reads a clock, draws entropy from the system, logs or allocates
//! per packet: all of that are arguments, so that every behaviour, every timeout included, is a plain deterministic test.
//!
//! ```text
//! packets in -> parse all -> hash all, prefetch -> match -> (new: service, policy, NAT, insert) -> rewrite -> out
//!                 wire/         flow/               flow/     service/ policy/ nat/                wire/
//! ```

pub mod counters;
pub mod flow;
pub mod frag;
pub mod frame;
mod map;
pub mod nat;
pub mod policy;
pub mod random;
pub mod service;
pub mod snapshot;
pub mod trace;
pub mod verdict;
pub mod wire;
pub mod worker;

pub use frame::{Frame, GsoKind, Ingress, Offload, Packet};
pub use verdict::{Drop, Verdict};
#[cfg(any(test, feature = "testing"))]
pub use wire::testing;
