//! Packets as bytes: read once into [`Parsed`], then changed in place.
//!
//! Everything here works on the first buffer of a frame, which holds all headers. A packet that [`parse()`] accepted is
//! long enough for every later access at the offsets that [`Parsed`] names, so nothing after it has to ask again, and a
//! frame that is nevertheless shorter (a caller's mistake) is left alone instead of panicking.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod icmp;
mod mss;
mod parse;
mod report;
mod rewrite;
pub(crate) mod sctp;
mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod verify;

#[cfg(test)]
mod icmp_tests;
#[cfg(test)]
mod tests;

pub use mss::{TcpOptions, clamp_mss, mss_for, tcp_options};
pub(crate) use parse::parse_into;
pub use parse::{ETHERNET_LEN, Kind, Parsed, parse, proto, usable_source};
pub use report::{Report, may_report, report};
pub use rewrite::{Rewrite, Ttl, apply, set_ethernet, set_ip_id};
pub use tcp::{TcpFlags, TcpHeader};
pub use verify::{L4Checksum, l4_checksum, l4_sum};
