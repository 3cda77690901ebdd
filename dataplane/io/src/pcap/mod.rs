//! Capture files: a pcapng writer, a reader of pcap and pcapng, and both as a port.
//!
//! The writer is our own because nothing else writes what makes our captures worth having: several interfaces, nanoseconds,
//! and comments on each packet. Reading foreign files is left to `pcap-parser`.

mod port;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use port::PcapPort;
pub use reader::{PcapError, PcapReader, Recorded};
pub use writer::{Direction, PcapngWriter, Record};
