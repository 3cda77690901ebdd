//! The agent's process. Everything is in the library, so that tests can use it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice_agent::cli::main()
}
