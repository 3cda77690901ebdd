//! `sluice flows`: the flow table.

use anyhow::{Result, bail};
use clap::Args;
use ipnet::Ipv4Net;
use sluice_state::query::{Answer, FlowFilter, FlowRow, Flows, Query, Tuple};

use super::{protocol_name, protocol_number};
use crate::output::{Format, print, print_json, table};
use crate::query::Daemon;

/// `sluice flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Flows of this pod: NAME or NAMESPACE/NAME
    #[arg(long)]
    pod: Option<String>,
    /// Flows with an address in here, on either side of the translation
    #[arg(long, value_name = "CIDR|ADDRESS", value_parser = net)]
    net: Option<Ipv4Net>,
    /// Flows with this port (for ICMP: identifier), on either side of the translation
    #[arg(long)]
    port: Option<u16>,
    /// Flows of this protocol: tcp, udp, icmp or a number
    #[arg(long, value_parser = protocol_number)]
    proto: Option<u8>,
    /// Only translated flows
    #[arg(long, conflicts_with = "untranslated")]
    translated: bool,
    /// Only flows that are not translated
    #[arg(long)]
    untranslated: bool,
    /// Flows at most
    #[arg(long, default_value_t = 1000)]
    limit: u32,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// Asks and prints.
///
/// # Errors
/// No daemon answers.
pub(crate) fn run(args: &FlowsArgs) -> Result<()> {
    let filter = FlowFilter {
        pod: args.pod.clone(),
        net: args.net,
        port: args.port,
        protocol: args.proto,
        translated: (args.translated || args.untranslated).then_some(args.translated),
        limit: Some(args.limit),
    };
    let Answer::Flows(flows) = args.daemon.ask(&Query::Flows(filter))? else {
        bail!("the daemon answered another question")
    };
    match args.output {
        Format::Json => print_json(&flows),
        Format::Table => print(&text(&flows)),
    }
}

/// A network, or an address for the network of that one.
pub(super) fn net(text: &str) -> Result<Ipv4Net, String> {
    text.parse::<Ipv4Net>()
        .map(|net| net.trunc())
        .or_else(|_| text.parse::<std::net::Ipv4Addr>().map(Ipv4Net::from))
        .map_err(|_| format!("`{text}` is neither an IPv4 address nor a CIDR"))
}

fn text(flows: &Flows) -> String {
    let head =
        ["ID", "PROTO", "STATE", "ORIGIN", "FLOW", "SEEN OUTSIDE AS", "IDLE", "PACKETS", "BYTES", "PODS"];
    let rows = table(&head, flows.rows.iter().map(|flow| row(flow).into()));
    let cut = flows.matched.saturating_sub(flows.rows.len() as u64);
    let cut = if cut > 0 { format!(", {cut} not shown (--limit)") } else { String::new() };
    format!("{rows}\n{} match{cut}; {} of {} flows in use", flows.matched, flows.live, flows.capacity)
}

fn row(flow: &FlowRow) -> [String; 10] {
    let pods: Vec<_> = flow.pods.iter().map(|p| p.clone().unwrap_or_else(|| "-".into())).collect();
    [
        flow.id.to_string(),
        protocol_name(flow.protocol),
        flow.state.clone(),
        flow.origin.clone(),
        tuple(&flow.original),
        if flow.original == flow.translated { "-".into() } else { tuple(&flow.translated) },
        format!("{}.{} s", flow.idle_ms / 1000, flow.idle_ms % 1000 / 100),
        format!("{}/{}", flow.packets[0], flow.packets[1]),
        format!("{}/{}", flow.bytes[0], flow.bytes[1]),
        pods.join(" > "),
    ]
}

fn tuple(t: &Tuple) -> String {
    format!("{}:{} > {}:{}", t.src, t.sport, t.dst, t.dport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(net("10.0.1.10").unwrap().to_string(), "10.0.1.10/32");
        assert_eq!(net("10.0.1.10/16").unwrap().to_string(), "10.0.0.0/16");
        assert!(net("pod-a").is_err());
    }

    #[test]
    fn a_row_shows_both_sides_of_a_translation() {
        let original =
            Tuple { src: [10, 0, 1, 10].into(), dst: [203, 0, 113, 9].into(), sport: 40000, dport: 80 };
        let translated = Tuple { src: [10, 0, 9, 5].into(), sport: 2345, ..original };
        let flow = FlowRow {
            id: 7,
            protocol: 6,
            original,
            translated,
            origin: "pod".into(),
            state: "established".into(),
            idle_ms: 1250,
            packets: [3, 2],
            bytes: [180, 120],
            pods: [Some("lab/pod-a".into()), None],
        };
        let flows = Flows { rows: vec![flow], matched: 3, live: 5, capacity: 1024 };
        let shown = text(&flows);
        for part in
            ["10.0.1.10:40000 > 203.0.113.9:80", "10.0.9.5:2345 > 203.0.113.9:80", "1.2 s", "lab/pod-a > -"]
        {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
        assert!(shown.contains("2 not shown"), "{shown}");
    }
}
