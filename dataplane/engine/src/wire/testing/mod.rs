//! Frames for tests, made and checked by etherparse and not by the code under test.
//!
//! ```
//! use sluice_engine::testing::{tcp, udp, verify};
//! let query = udp("10.0.1.10:40000", "203.0.113.9:53").payload(b"who?").ttl(3).build();
//! let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").seq(1000).mss(8961).build();
//! verify(&query).unwrap();
//! verify(&syn).unwrap();
//! ```
//!
//! Everything here panics on a mistake of the test that calls it.

mod build;
mod check;
mod exercise;

pub use build::{FrameBuilder, echo_reply, echo_request, icmp, icmp_error, raw, sctp, tcp, udp};
pub use check::{fragments, read, reassemble, show, verify};
pub use exercise::{exercise_fragments, exercise_frame};
