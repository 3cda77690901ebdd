//! The dataplane process `sluiced`: threads, publishing, sockets, metrics.
//!
//! ```text
//!  state file, state.sock --> publish -----> snapshot (arc-swap), BPF maps, tc programs
//!  rtnetlink, /proc ------>     |                 |
//!                               v                 v
//!                        generation acknowledged by every worker
//!  worker 0..N-1, pinned:  trunk queue + AF_XDP sockets -> engine step -> the same
//!                               |
//!  query.sock <-- report, stats, flows, ports, pods, capture, metrics
//! ```
//!
//! Everything that decides about a packet is in `sluice-engine`, everything that touches a device in `sluice-io` and
//! `sluice-bpf`. What is here connects them, and tells people what it got.
#![deny(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod clock;
mod conntrack;
pub mod control;
pub mod expedite;
pub mod host;
pub mod lock;
pub mod plane;
pub mod ports;
pub mod privilege;
pub mod push;
pub mod query;
pub mod report;
pub mod settings;
pub mod socket;
pub mod sys;
pub mod view;
pub mod worker;
