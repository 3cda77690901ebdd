//! `sluice stats`: every counter, drops by reason, what AF_XDP and the BPF programs say, and whether the account balances.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use sluice_engine::Drop;
use sluice_state::query::{Answer, Query, Stats};

use crate::output::{Format, print, print_json, table};
use crate::query::Daemon;

/// `sluice stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Show counters that stand at zero too
    #[arg(long)]
    all: bool,
    /// Show each worker's counters beside the sums
    #[arg(long)]
    workers: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Asks and prints.
///
/// # Errors
/// No daemon answers.
pub(crate) fn run(args: &StatsArgs) -> Result<()> {
    let Answer::Stats(stats) = args.daemon.ask(&Query::Stats)? else {
        bail!("the daemon answered another question")
    };
    match args.output {
        Format::Json => print_json(&stats),
        Format::Table => print(&text(&stats, args.all, args.workers)),
    }
}

fn text(stats: &Stats, all: bool, workers: bool) -> String {
    let c = &stats.conservation;
    let mut out = format!(
        "up {} s, generation {}, {} of {} flows\n\
         account: {} in = {} out + {} dropped + {} held: {}\n",
        stats.uptime_s,
        stats.generation,
        stats.flows,
        stats.flow_capacity,
        c.packets_in,
        c.packets_out,
        c.dropped,
        c.held,
        if c.balanced { "balanced" } else { "NOT balanced (while packets move it may be off by a batch)" },
    );
    let e = &stats.extent;
    out.push_str(&format!(
        "state: {} addresses of {} identities, {} sets of rules for {} isolated pods, {} services with {} frontends and {} endpoints\n\
         memory set aside: flow table {} MiB for {} flows, UMEM {} MiB\n",
        e.addresses,
        e.identities,
        e.rules,
        e.isolated_pods,
        e.services,
        e.frontends,
        e.endpoints,
        stats.memory.flow_table >> 20,
        stats.flow_capacity,
        stats.memory.umem >> 20,
    ));
    section(&mut out, "counters", &stats.total, all);
    drops(&mut out, "drops", &stats.drops, all);
    section(&mut out, "BPF programs", &stats.bpf, all);
    for port in &stats.ports {
        section(&mut out, &format!("{} (worker {})", port.port, port.worker), &port.counters, all);
    }
    if workers {
        for worker in &stats.workers {
            section(&mut out, &format!("worker {}", worker.id), &worker.counters, all);
            drops(&mut out, &format!("drops of worker {}", worker.id), &worker.drops, all);
        }
    }
    out.trim_end().to_owned()
}

fn section(out: &mut String, title: &str, counters: &BTreeMap<String, u64>, all: bool) {
    let shown: Vec<_> = counters.iter().filter(|(_, n)| all || **n > 0).collect();
    let zero = counters.len() - shown.len();
    out.push_str(&format!("\n{title}{}\n", at_zero(zero)));
    push(out, &table(&[], shown.into_iter().map(|(name, n)| vec![format!("  {name}"), n.to_string()])));
}

fn drops(out: &mut String, title: &str, counters: &BTreeMap<String, u64>, all: bool) {
    let shown: Vec<_> = counters.iter().filter(|(_, n)| all || **n > 0).collect();
    out.push_str(&format!("\n{title}{}\n", at_zero(counters.len() - shown.len())));
    let rows = shown.into_iter().map(|(name, n)| {
        let reason = Drop::ALL.iter().find(|d| d.name() == name).map_or("", |d| d.explain());
        vec![format!("  {name}"), n.to_string(), reason.to_owned()]
    });
    push(out, &table(&[], rows));
}

fn at_zero(n: usize) -> String {
    if n == 0 { ":".into() } else { format!(" ({n} at zero):") }
}

fn push(out: &mut String, rows: &str) {
    if !rows.is_empty() {
        out.push_str(rows);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use sluice_state::query::{Conservation, Extent, Memory};

    use super::*;

    #[test]
    fn a_drop_is_explained_and_zeros_are_counted() {
        let named = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let stats = Stats {
            time_ns: 0,
            uptime_s: 3,
            generation: 1,
            total: named(&[("packets", 7)]),
            drops: named(&[("spoof", 2), ("hairpin", 0)]),
            bpf: named(&[]),
            ports: Vec::new(),
            workers: Vec::new(),
            flows: 1,
            flow_capacity: 1024,
            extent: Extent { services: 12, ..Extent::default() },
            memory: Memory { flow_table: 3 << 20, umem: 0 },
            conservation: Conservation { packets_in: 7, packets_out: 5, dropped: 2, held: 0, balanced: true },
        };
        let shown = text(&stats, false, false);
        assert!(
            shown.contains("spoof  2") && shown.contains("The source address is not the pod's"),
            "{shown}"
        );
        assert!(
            shown.contains("12 services") && shown.contains("flow table 3 MiB for 1024 flows"),
            "{shown}"
        );
        assert!(shown.contains("drops (1 at zero)") && !shown.contains("hairpin"), "{shown}");
        assert!(text(&stats, true, false).contains("hairpin"), "--all shows zeros");
    }
}
