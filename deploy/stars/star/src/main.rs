//! `star`, the workload of the Stars demo: a small program that answers HTTP, asks its peers by service name once
//! a second, and says which of them answered.
//!
//! It needs no libc resolver and no file but `/etc/resolv.conf`, so that it links statically and fills an image alone.
//! The same binary is the demo's three workloads, the management UI's collector, and the DNS stand-in of the lab.
#![forbid(unsafe_code)]

mod args;
mod dns;
mod http;
mod name;
mod probe;
mod serve;

use std::io::Write as _;
use std::process::ExitCode;

use args::Command;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(reason) => {
            say(&format!("star: {reason}\n{}", args::USAGE));
            return ExitCode::from(2);
        }
    };
    let ended = match command {
        Command::Serve(settings) => serve::run(&settings),
        Command::Dns(settings) => dns::run(&settings),
        Command::Help => {
            // A reader that has gone away wants no help.
            let _ = writeln!(std::io::stdout(), "{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("star: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a line to the standard error; where that is closed, the exit code says it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
