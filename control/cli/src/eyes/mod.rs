//! First eyes on a running daemon: what it counts, which flows it holds, which ports it uses, and its packets.

mod capture;
pub mod filter;
mod flows;
mod node;
mod ports;
mod sink;
mod stats;

pub use capture::CaptureArgs;
pub use flows::FlowsArgs;
pub use node::NodeArgs;
pub use ports::PortsArgs;
pub use stats::StatsArgs;

pub(crate) use capture::run as capture;
pub(crate) use flows::run as flows;
pub(crate) use node::{enis, leases, pods};
pub(crate) use ports::run as ports;
pub(crate) use stats::run as stats;

/// Name of an IP protocol, its number when it has none here.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

/// Number of an IP protocol from its name or number.
///
/// # Errors
/// It is neither; the message says what would be.
pub(crate) fn protocol_number(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "gre" => Ok(47),
        "esp" => Ok(50),
        "sctp" => Ok(132),
        other => other.parse().map_err(|_| {
            format!("`{text}` is no IP protocol: icmp, tcp, udp, sctp, gre, esp or a number from 0 to 255")
        }),
    }
}
