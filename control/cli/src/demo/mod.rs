//! `sluice demo`: real flows on the lab, judged by what their peers saw and by which ENI they left; then load, with every
//! packet accounted for, beside the kernel's masquerade.

mod judge;
mod load;
mod probe;
mod rows;
mod sniff;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser};
use serde::Serialize;

use crate::lab::{self, Dataplane, Interrupt, Options, Progress, Record};
use crate::netns::Netns;
use crate::output::{Format, print_json};
use crate::shell;
use judge::{Outcome, judge};
use probe::Probe;
use rows::{Row, rows};
use sniff::Sniffer;

/// `sluice demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Name of the lab that is made for it; one of this name must not be up
    #[arg(long, default_value = "sluice-demo", value_name = "PREFIX", value_parser = lab::name)]
    name: String,
    /// What forwards the pods' packets
    #[arg(long, value_enum, default_value_t = Dataplane::Sluice)]
    dataplane: Dataplane,
    /// One second of each load instead of four
    #[arg(long)]
    quick: bool,
    /// The table only
    #[arg(long, conflicts_with = "quick")]
    no_load: bool,
    /// The daemon's binary [default: `sluiced` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    sluiced: Option<std::path::PathBuf>,
    /// A further argument for `sluiced run`, may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    sluiced_arg: Vec<String>,
    /// How to print the result; progress goes to the standard error
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    dataplane: Dataplane,
    rows: Vec<Outcome>,
    load: Option<load::Loads>,
    checks: Vec<Check>,
    passed: usize,
    failed: usize,
}

/// Something besides a row that must hold.
#[derive(Debug, Clone, Serialize)]
struct Check {
    name: String,
    ok: bool,
    note: String,
}

/// Runs the demo; the exit code is 1 when anything failed.
///
/// # Errors
/// The lab could not be built, or the user interrupted.
pub fn run(demo: &Demo) -> Result<ExitCode> {
    let progress = Progress::new("demo", Interrupt::watch()?);
    let mut result = Report {
        dataplane: demo.dataplane,
        rows: Vec::new(),
        load: None,
        checks: Vec::new(),
        passed: 0,
        failed: 0,
    };
    perform(demo, &progress, &mut result)?;
    drop(progress);
    let verdicts = result.rows.iter().map(|r| r.ok).chain(result.checks.iter().map(|c| c.ok));
    let (passed, failed): (Vec<bool>, Vec<bool>) = verdicts.partition(|ok| *ok);
    (result.passed, result.failed) = (passed.len(), failed.len());
    match demo.output {
        Format::Json => print_json(&result)?,
        Format::Table => println!("demo: {} passed, {} failed", result.passed, result.failed),
    }
    Ok(if result.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn perform(demo: &Demo, progress: &Progress, result: &mut Report) -> Result<()> {
    if !demo.no_load {
        shell::require(&["iperf3"])?;
    }
    // True first, so that the lab of the second table is the one that is loaded.
    for external_snat in [true, false] {
        let options = options(demo, demo.dataplane, external_snat);
        let own = Own::up(&options, demo, progress)?;
        let record = &own.0;
        table(record, progress, result)?;
        if !external_snat && !demo.no_load {
            result.load = Some(load::run(record, demo.quick, progress, &mut result.checks)?);
        }
        result.checks.push(sources(record)?);
        own.down()?;
    }
    if let Some(ours) = &mut result.load
        && demo.dataplane != Dataplane::Nft
    {
        let own = Own::up(&options(demo, Dataplane::Nft, false), demo, progress)?;
        ours.compare(&own.0, demo.quick, progress)?;
        own.down()?;
    }
    if let Some(loads) = &result.load {
        loads.print(progress);
    }
    for check in &result.checks {
        progress.line(&format!("{}  {}: {}", mark(check.ok), check.name, check.note));
    }
    Ok(())
}

/// A lab that this demo has brought up, and takes down whatever happens. One that somebody else has up is never touched.
struct Own(Record);

impl Own {
    fn up(options: &Options, demo: &Demo, progress: &Progress) -> Result<Self> {
        lab::up(&demo.name, options, progress).map(Self)
    }

    /// Takes it down and says when something stays.
    fn down(self) -> Result<()> {
        lab::down(&self.0.topology.name).map(|_| ())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // After `down` there is nothing left and this does nothing; in the middle of an error the first error is told.
        let _ = lab::down(&self.0.topology.name);
    }
}

/// The lab's defaults, as the command line gives them.
fn options(demo: &Demo, dataplane: Dataplane, external_snat: bool) -> Options {
    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        options: Options,
    }
    let Defaults { mut options } = Defaults::parse_from(["lab"]);
    options.dataplane = dataplane;
    options.external_snat = external_snat;
    options.sluiced.clone_from(&demo.sluiced);
    options.sluiced_arg.clone_from(&demo.sluiced_arg);
    options
}

fn table(record: &Record, progress: &Progress, result: &mut Report) -> Result<()> {
    let external_snat = record.options.external_snat;
    progress.line(&format!("\nEXTERNALSNAT={external_snat}, dataplane {}", record.options.dataplane));
    let head = ["FROM", "TO", "PROTOCOL", "PEER SAW", "LEFT BY", "EXPECTED", "", "NOTE"];
    progress.line(&columns(&head.map(str::to_owned)));
    let sniffer = Sniffer::start(&record.topology.fabric)?;
    let all = rows(&record.topology, &record.options);
    for (n, row) in all.iter().enumerate() {
        progress.step_quietly(format!(
            "row {} of {}: {} to {}, {}",
            n + 1,
            all.len(),
            row.from,
            row.to,
            row.probe
        ))?;
        let outcome = play(row, record, &sniffer)?;
        progress.line(&line(&outcome));
        result.rows.push(outcome);
    }
    Ok(())
}

fn play(row: &Row, record: &Record, sniffer: &Sniffer) -> Result<Outcome> {
    if matches!(row.probe, Probe::PathMtuUdp(_) | Probe::PathMtuTcp(_)) {
        // What an earlier row taught the pod must be forgotten, or this one shows nothing.
        shell::run("ip", &["-n", &row.namespace, "route", "flush", "cache"])?;
    }
    sniffer.settle();
    let mark = sniffer.mark();
    let said = Netns::open(&row.namespace)?.within(|| Ok(row.probe.run(row.bind, row.address)))?;
    let packets = sniffer.since(mark);
    Ok(judge(row, record.options.external_snat, &said, &packets))
}

/// Nothing left the node with a source that its ENI does not own, save what the rows say EC2 would drop.
fn sources(record: &Record) -> Result<Check> {
    let drops = lab::source_check_drops(&record.topology)?;
    let expected = rows(&record.topology, &record.options).iter().any(|r| r.dropped);
    let total: u64 = drops.values().sum();
    let by: Vec<_> = drops.iter().map(|(eni, n)| format!("{eni} {n}")).collect();
    Ok(Check {
        name: format!("EC2's source check, EXTERNALSNAT={}", record.options.external_snat),
        ok: expected || total == 0,
        note: format!(
            "dropped {}{}",
            by.join(", "),
            if expected { ", as VPC CNI's rules make it" } else { "" }
        ),
    })
}

fn line(outcome: &Outcome) -> String {
    columns(&[
        outcome.from.clone(),
        outcome.to.clone(),
        outcome.protocol.clone(),
        joined(&outcome.seen),
        joined(&outcome.enis),
        format!("{} {}", outcome.expected_source, outcome.expected_way),
        mark(outcome.ok).to_owned(),
        outcome.note.clone(),
    ])
}

fn joined<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        "-".into()
    } else {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join("+")
    }
}

fn columns(cells: &[String; 8]) -> String {
    let [from, to, protocol, seen, left, expected, ok, note] = cells;
    format!("{from:<14} {to:<14} {protocol:<11} {seen:<15} {left:<10} {expected:<24} {ok:<4} {note}")
        .trim_end()
        .to_owned()
}

fn mark(ok: bool) -> &'static str {
    if ok { "OK" } else { "FAIL" }
}
