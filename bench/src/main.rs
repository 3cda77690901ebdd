//! The command `sluice-bench`.
#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Sluice: the engine in memory, and the whole node path beside the kernel's.
///
/// Believe ratios, taken in turn within one run; a figure alone says more about the machine and its hour.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 110)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The engine in memory: nanoseconds per packet, new flows, expiry, checksum, parse
    Engine(commands::engine::Arguments),
    /// The first packet's policy: sorted intervals beside a longest-prefix trie
    Policy(commands::policy::Arguments),
    /// CNI ADD and DEL, beside the reference plugin ptp
    Cni(commands::cni::Arguments),
    /// The node's whole path in a lab: Sluice, kernel forwarding, nft and iptables in turn
    Forwarding(commands::forwarding::Arguments),
}

fn main() -> ExitCode {
    let result = match Line::parse().command {
        Command::Engine(arguments) => commands::engine::run(&arguments),
        Command::Cni(arguments) => commands::cni::run(&arguments),
        Command::Policy(arguments) => commands::policy::run(&arguments),
        Command::Forwarding(arguments) => commands::forwarding::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sluice-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
