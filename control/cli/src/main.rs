//! The binary: everything is in the library, so that tests and the documentation reach it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice::run(std::env::args_os())
}
