//! `sluice-bench engine`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use sluice_bench::host::Host;
use sluice_bench::memory::report::Report;
use sluice_bench::memory::run::{Settings, cell, costs, open};
use sluice_bench::memory::scaling;
use sluice_bench::memory::stream::{Order, Stream};
use sluice_bench::progress::Progress;

use super::{Output, deliver};

/// Measures the engine in memory: CPU nanoseconds per packet, new flows, expiry, checksum, parse.
///
/// No root, no network. The minimal loop beside it is the yardstick: its ratio is what to compare between machines.
/// Takes about half a minute in a release build.
#[derive(Args)]
#[command(after_help = "Examples:
  sluice-bench engine
  sluice-bench engine --output json
  sluice-bench engine --threads 4
  valgrind --tool=callgrind sluice-bench engine --flows 1000 --packets 1000000 --no-timing")]
pub(crate) struct Arguments {
    /// Numbers of flows, by commas
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_value = "1000,100000,1000000")]
    flows: Vec<u32>,
    /// Packets of one pass
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(512..))]
    packets: u64,
    /// Passes of engine and yardstick in turn
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of frames in bytes
    #[arg(long, default_value_t = 64, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(60..=1514))]
    length: u16,
    /// Workers on one shared table: measures 1, 2, 4, ... up to this many, on 100,000 flows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Only carries the packets, shuffled, and looks at no clock: for tools that count instructions
    #[arg(long)]
    no_timing: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Also writes the JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for flows in &arguments.flows {
        ensure!((1..=8_000_000).contains(flows), "--flows: {flows} is not between 1 and 8000000");
    }
    let settings = Settings {
        flows: arguments.flows.clone(),
        packets: arguments.packets,
        rounds: arguments.rounds,
        length: usize::from(arguments.length),
    };
    if arguments.no_timing {
        return count_only(&settings);
    }
    let orders = [Order::InOrder, Order::Shuffled];
    // In order first, as the design's table has it; with few flows order is nothing.
    let cells: Vec<_> = orders
        .iter()
        .flat_map(|order| settings.flows.iter().map(move |flows| (*flows, *order)))
        .filter(|(flows, order)| *order == Order::InOrder || *flows > 1000)
        .collect();
    let threads: Vec<u16> = match arguments.threads {
        Some(most) => (0..).map(|i| 1 << i).take_while(|n| *n < most).chain([most]).collect(),
        None => Vec::new(),
    };
    let progress = Progress::new((cells.len() + 1 + threads.len()) as u64)?;
    let mut measured = Vec::new();
    for (flows, order) in cells {
        progress.step("packets of known flows", &format!("{flows} flows, {order:?}"))?;
        measured.push(cell(&settings, flows, order)?);
    }
    progress.step("new flows, expiry, checksum, parse", "")?;
    let costs = costs(&settings)?;
    let mut scales = Vec::new();
    for threads in threads {
        progress.step("several workers", &format!("{threads}"))?;
        scales.push(scaling::measure(threads, 100_000, settings.packets, settings.length)?);
    }
    progress.finish();
    let report = Report::new(Host::this(), settings, measured, costs, scales);
    deliver(&report, arguments.output, Report::table, arguments.json.as_deref())
}

fn count_only(settings: &Settings) -> Result<()> {
    for flows in &settings.flows {
        let mut engine = open(*flows, settings.length)?;
        let mut stream = Stream::new(0..*flows, Order::Shuffled, settings.length);
        let lost = stream.run(&mut engine, settings.packets);
        ensure!(lost == 0, "{lost} packets of {flows} known flows were not forwarded");
        let carried = settings.packets.div_ceil(Stream::chunk()) * Stream::chunk();
        println!("{flows} flows opened, {carried} packets carried");
    }
    Ok(())
}
