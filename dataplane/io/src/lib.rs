//! Where packets enter and leave: ports behind one trait, and the memory that packets live in.
//!
//! The engine is pure and moves frames by value; this crate owns what is behind them. An [`IoFrame`] is a chunk of UMEM, a
//! pooled buffer of the trunk or plain heap memory, and dropping it wherever that happens puts the memory back where it
//! came from. A [`Port`] takes frames from a source and sends frames with the engine's verdict:
//!
//! ```text
//!  xsk      AF_XDP on an ENI's queue; cuts super-packets, completes checksums on the way out
//!  trunk    the TAP that carries pods' packets, super-packets whole; coalesces TCP towards pods
//!  pcap     reads and writes capture files          sim     two ports in memory, back to back
//!  fault    any port with losses, duplicates, delays and corruption by a seeded plan
//! ```
#![deny(unsafe_code)]

pub mod fault;
pub mod frame;
pub mod pcap;
pub mod poll;
pub mod port;
pub mod segment;
pub mod sim;
mod sys;
pub mod trunk;
pub mod xsk;

pub use frame::IoFrame;
pub use port::{Port, PortStats};
