//! `sluice-bench policy`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sluice_bench::host::Host;
use sluice_bench::memory::policy::{Figures, Settings, measure};

use super::{Output, deliver};

/// Measures how long the first packet of a flow waits for policy: the engine beside a longest-prefix trie of single bits,
/// which is what a BPF LPM map is.
///
/// No root, no network; a few seconds in a release build.
#[derive(Args)]
#[command(after_help = "Examples:
  sluice-bench policy
  sluice-bench policy --pods 30 --cidrs 100000 --output json")]
pub(crate) struct Arguments {
    /// Pods with a policy of their own
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pods: u32,
    /// CIDRs that each of them allows
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    cidrs: u32,
    /// Questions of one pass
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..))]
    lookups: u32,
    /// Passes of both in turn
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Also writes the JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    host: Host,
    settings: Settings,
    figures: Figures,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let settings = Settings {
        pods: arguments.pods,
        cidrs: arguments.cidrs,
        lookups: arguments.lookups,
        rounds: arguments.rounds,
    };
    let figures = measure(&settings)?;
    let report = Report { host: Host::this(), settings, figures };
    deliver(&report, arguments.output, table, arguments.json.as_deref())
}

fn table(report: &Report) -> String {
    let Report { settings, figures, .. } = report;
    format!(
        "{} pods, {} CIDRs each, medians of {} rounds in turn\n\
         the engine judges a flow   {:8.1} ns\n\
         a unibit trie looks up     {:8.1} ns   {:.1} times as long\n\
         compiling the policy       {:8.1} ms",
        settings.pods,
        settings.cidrs,
        settings.rounds,
        figures.engine_ns,
        figures.trie_ns,
        figures.ratio,
        figures.compile_ms
    )
}
