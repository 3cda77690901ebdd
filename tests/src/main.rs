//! `sluice-tests`: cases that others wrote, played against the product.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::conformance;

/// What `--help` ends with.
const EXIT_CODES: &str = "Exit codes: 0 everything came out as the cases say, 1 something did not, 2 wrong command line or no case file.";

#[derive(Debug, Parser)]
#[command(name = "sluice-tests", version, about = "Play case files against the product", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play NetworkPolicy cases through the real compiler and the real engine
    ///
    /// Each case is played three ways (all objects at once, every change by a generation of its own, policies in reverse), on
    /// each of its nodes. A probe is one new connection and its answer. Lines with `admission` are objects that are to be taken
    /// or refused.
    #[command(after_long_help = "Example: sluice-tests conformance corpus.jsonl --filter edge/")]
    Conformance {
        /// Cases, one JSON object a line
        file: PathBuf,
        /// Play those alone whose id contains this
        #[arg(long, value_name = "ID", default_value = "")]
        filter: String,
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let Command::Conformance { file, filter, output } = Cli::parse().command;
    let report = match conformance::run(&file, &filter) {
        Ok(report) => report,
        Err(e) => {
            eprintln!("sluice-tests: {e}");
            return ExitCode::from(2);
        }
    };
    if report.cases == 0 {
        eprintln!("sluice-tests: {}: no case whose id contains `{filter}`", file.display());
        return ExitCode::from(2);
    }
    match output {
        Format::Text => println!("{report}"),
        Format::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("sluice-tests: {e}"),
        },
    }
    if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
