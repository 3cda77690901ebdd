//! `sluice ports`: the port contract between Sluice and the host.

use anyhow::{Result, bail};
use clap::Args;
use sluice_state::PortRange;
use sluice_state::query::{Answer, PortContract, Query};

use crate::output::{Format, print, print_json, table};
use crate::query::Daemon;

/// `sluice ports`.
#[derive(Debug, Args)]
pub struct PortsArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Asks and prints.
///
/// # Errors
/// No daemon answers.
pub(crate) fn run(args: &PortsArgs) -> Result<()> {
    let Answer::Ports(ports) = args.daemon.ask(&Query::Ports)? else {
        bail!("the daemon answered another question")
    };
    match args.output {
        Format::Json => print_json(&ports),
        Format::Table => print(&text(&ports)),
    }
}

fn text(ports: &PortContract) -> String {
    let mut rows = Vec::new();
    let address = ports.address.map_or("no primary ENI".into(), |a| a.to_string());
    rows.push(vec!["address".to_owned(), address]);
    for (name, used) in [("tcp", &ports.tcp), ("udp", &ports.udp), ("icmp ids", &ports.icmp)] {
        rows.push(vec![format!("Sluice uses, {name}"), format!("{} ({} ports)", ranges(used), count(used))]);
    }
    rows.push(vec!["given by the state".to_owned(), ranges(&ports.configured)]);
    rows.push(vec!["taken out by the state".to_owned(), ranges(&ports.excluded)]);
    rows.push(vec!["NodePort range, never used".to_owned(), ports.node_ports.to_string()]);
    for (holder, held) in
        [("held by processes of the node", &ports.listeners), ("held by services", &ports.services)]
    {
        let held: Vec<_> = held.iter().map(|l| format!("{}/{}", l.port, l.protocol)).collect();
        rows.push(vec![holder.to_owned(), or_none(held.join(", "))]);
    }
    let ephemeral = ports.ephemeral.map_or("unknown".into(), |r| r.to_string());
    rows.push(vec!["the host's ephemeral ports".to_owned(), ephemeral]);
    rows.push(vec!["reserved from the host's sockets".to_owned(), ranges(&ports.reserved)]);
    let mut out = table(&[], rows);
    for finding in &ports.findings {
        out.push_str(&format!("\nconflict: {}: {}", finding.subject, finding.what));
        if !finding.remedy.is_empty() {
            out.push_str(&format!(" ({})", finding.remedy));
        }
    }
    out
}

fn ranges(ranges: &[PortRange]) -> String {
    or_none(ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".into() } else { text }
}

fn count(ranges: &[PortRange]) -> u32 {
    ranges.iter().map(|r| u32::from(r.last) - u32::from(r.first) + 1).sum()
}
