//! One connection explained: both halves, each with the policies that isolate the pod and the rules that let it pass.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use sluice_policy::{Decision, End, Half, Probe};
use sluice_state::Protocol;

use super::load::{Cluster, Reading};
use crate::output::{self, Format};

/// `sluice policy why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Who opens the connection: NAMESPACE/POD, ip:A.B.C.D or node:NAME
    #[arg(long, value_name = "END")]
    from: End,
    /// Whom it is for, after any service has chosen an endpoint
    #[arg(long, value_name = "END")]
    to: End,
    /// Destination port, TCP where nothing else is said: 80, 53/UDP; or ICMP
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = port)]
    port: Port,
    /// The manifests' directory
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// A port of a protocol; none for one that has no ports.
type Port = (Option<Protocol>, u16);

#[derive(Serialize)]
struct Printed<'a> {
    from: String,
    to: String,
    port: String,
    allowed: bool,
    egress: PrintedHalf<'a>,
    ingress: PrintedHalf<'a>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct PrintedHalf<'a> {
    isolated: bool,
    allowed: bool,
    policies: &'a [String],
    rules: &'a [String],
}

impl<'a> From<&'a Half> for PrintedHalf<'a> {
    fn from(half: &'a Half) -> Self {
        Self { isolated: half.isolated, allowed: half.allowed, policies: &half.policies, rules: &half.rules }
    }
}

pub(super) fn print(cluster: &Cluster, args: &WhyArgs) -> Result<()> {
    let (protocol, number) = args.port;
    let probe = Probe { from: args.from.clone(), to: args.to.clone(), protocol, port: number };
    let decision = cluster.explain().decide(&probe);
    if decision.egress == Half::default() && decision.ingress == Half::default() {
        bail!("{}{}", decision.notes.join("; "), cluster.known_pods(&[&args.from, &args.to]));
    }
    let port = protocol.map_or_else(|| "ICMP".to_owned(), |protocol| format!("{number}/{protocol}"));
    match args.output {
        Format::Json => output::print_json(&Printed {
            from: args.from.to_string(),
            to: args.to.to_string(),
            port,
            allowed: decision.allowed(),
            egress: (&decision.egress).into(),
            ingress: (&decision.ingress).into(),
            notes: &decision.notes,
        }),
        Format::Table => output::print(&text(args, &port, &decision)),
    }
}

fn text(args: &WhyArgs, port: &str, decision: &Decision) -> String {
    let verdict = |allowed| if allowed { "ALLOWED" } else { "DENIED" };
    let mut lines = vec![format!("{} -> {} {port}: {}", args.from, args.to, verdict(decision.allowed()))];
    let halves = [
        ("egress", "what it sends", &args.from, &decision.egress),
        ("ingress", "what it takes", &args.to, &decision.ingress),
    ];
    for (name, what, end, half) in halves {
        lines.push(format!("  {name} of {end}: {}", verdict(half.allowed).to_lowercase()));
        if half.policies.is_empty() {
            if !half.isolated {
                lines.push(format!("    nothing isolates {what}"));
            }
            continue;
        }
        lines.push(format!("    isolated by {}", half.policies.join(", ")));
        match half.rules.as_slice() {
            [] => lines.push("    none of their rules allows it".into()),
            rules => lines.extend(rules.iter().map(|rule| format!("    allowed by {rule}"))),
        }
    }
    lines.extend(decision.notes.iter().map(|note| format!("  {note}")));
    lines.join("\n")
}

fn port(text: &str) -> Result<Port, String> {
    if text.eq_ignore_ascii_case("icmp") {
        return Ok((None, 0));
    }
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let number = number.parse::<u16>().ok().filter(|n| *n > 0);
    let number =
        number.ok_or_else(|| format!("`{text}` is no port: 1 to 65535, as 80, 80/TCP, 53/UDP; or ICMP"))?;
    Ok((Some(protocol.parse()?), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_tcps_where_nothing_else_is_said() {
        assert_eq!(port("80"), Ok((Some(Protocol::Tcp), 80)));
        assert_eq!(port("53/udp"), Ok((Some(Protocol::Udp), 53)));
        assert_eq!(port("ICMP"), Ok((None, 0)));
        for wrong in ["", "0", "65536/TCP", "http", "80/", "80/GRE"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
