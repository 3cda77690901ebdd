//! `sluice-bench forwarding`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use sluice_bench::forwarding::lab::{Dataplane, sluice_command};
use sluice_bench::forwarding::plan::Plan;
use sluice_bench::forwarding::report::Report;
use sluice_bench::forwarding::run::{Place, run as measure};
use sluice_bench::forwarding::{plot, report};
use sluice_bench::host::Host;
use sluice_bench::load::frame::Checksums;
use sluice_bench::progress::Progress;

use super::{Output, deliver, make_room};

/// Measures what a node's whole path costs, in a lab of network namespaces, and what the kernel's own would.
///
/// Each round brings every dataplane up in turn and takes: CPU nanoseconds per packet at one fixed rate (every task's
/// schedstat, what the generator alone costs taken off), loss and delivered rate under overload, UDP round trips, TCP
/// both ways. Needs root, veth, Linux 6.6 or later, and the commands `sluice` (with `sluiced` beside it), `ip`, `nft`
/// and `iptables`. Close what else runs on the machine: the report says how busy it was.
#[derive(Args)]
#[command(after_help = "Examples:
  sluice-bench forwarding --quick
  sluice-bench forwarding --json out.json --plot out.svg
  sluice-bench forwarding --dataplanes nft,sluice --rounds 9 --lengths 64 --flows 1000
  sluice-bench forwarding --lab-arg=--sluiced-arg=--eni-port=tap")]
pub(crate) struct Arguments {
    /// The main figures only, in at most 90 seconds (a full run takes at most 10 minutes)
    #[arg(long)]
    quick: bool,
    /// Who is measured, by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    dataplanes: Vec<Dataplane>,
    /// Times that each is measured [default: 5, or 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Lengths of frames in bytes, Ethernet header included [default: 64,1400]
    #[arg(long, value_delimiter = ',', value_name = "BYTES,...")]
    lengths: Vec<usize>,
    /// Numbers of flows [default: 1,1000,100000, or 1000 with --quick]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    flows: Vec<u32>,
    /// Packets per second at which CPU time is measured; every dataplane must carry it without loss [default: 180000]
    #[arg(long)]
    rate: Option<f64>,
    /// What the pod's UDP checksum fields hold: `partial`, as its own sockets would leave them to hardware, or `full`
    #[arg(long, value_enum, default_value = "partial")]
    checksums: Checksums,
    /// Length of each window in milliseconds [default: 500, or 300 with --quick]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(50..=60_000))]
    window: Option<u64>,
    /// No round begins that would end after this many seconds [default: 570, or 80 with --quick]
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// The `sluice` command [default: beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    sluice: Option<PathBuf>,
    /// A further argument for `sluice lab up`, may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    lab_arg: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Writes every window as JSON
    #[arg(long, value_name = "FILE", default_value = "bench/out/forwarding.json")]
    json: PathBuf,
    /// Writes the plot, an SVG
    #[arg(long, value_name = "FILE", default_value = "bench/out/forwarding.svg")]
    plot: PathBuf,
}

impl Arguments {
    fn plan(&self) -> Result<Plan> {
        let base = if self.quick { Plan::quick() } else { Plan::full() };
        let or = |given: &[u32], default: Vec<u32>| if given.is_empty() { default } else { given.to_vec() };
        let plan = Plan {
            dataplanes: if self.dataplanes.is_empty() { base.dataplanes } else { self.dataplanes.clone() },
            rounds: self.rounds.unwrap_or(base.rounds),
            lengths: if self.lengths.is_empty() { base.lengths } else { self.lengths.clone() },
            flows: or(&self.flows, base.flows),
            rate: self.rate.unwrap_or(base.rate),
            checksums: self.checksums,
            window: self.window.map_or(base.window, Duration::from_millis),
            deadline: self.deadline.map_or(base.deadline, Duration::from_secs),
            ..base
        };
        for length in &plan.lengths {
            ensure!((60..=1514).contains(length), "--lengths: {length} is not between 60 and 1514 bytes");
        }
        for flows in &plan.flows {
            ensure!((1..=1_000_000).contains(flows), "--flows: {flows} is not between 1 and 1000000");
        }
        ensure!(
            plan.rate >= 1000.0,
            "--rate: {} packets per second are too few to measure: at least 1000",
            plan.rate
        );
        Ok(plan)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let plan = arguments.plan()?;
    ensure!(nix::unistd::geteuid().is_root(), "the lab and the generators need root: run it with sudo");
    let place = Place {
        command: sluice_command(arguments.sluice.as_deref()),
        name: format!("slb{}", std::process::id()),
        arguments: arguments.lab_arg.clone(),
    };
    let progress = Progress::new(plan.steps())?;
    progress.say(&format!(
        "{} dataplanes, {} rounds, about {} s; Ctrl-C cleans up",
        plan.dataplanes.len(),
        plan.rounds,
        plan.estimate().as_secs()
    ));
    let measured = measure(&plan, &place, &progress)?;
    let report = Report::new(&plan, measured, Host::this());
    make_room(&arguments.plot)?;
    plot::write(&report, &arguments.plot)?;
    deliver(&report, arguments.output, report::Report::table, Some(&arguments.json))?;
    eprintln!(
        "{} rounds in {:.0} s: {}, {}",
        report.rounds,
        report.seconds,
        arguments.json.display(),
        arguments.plot.display()
    );
    Ok(())
}
