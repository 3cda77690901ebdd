//! `sluice capture`: packets with the reason for what became of them, as lines, as JSON, or as a pcapng file for Wireshark.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use sluice_state::query::{Answer, CaptureFilter, Point, Query};

use super::filter::{Filter, View};
use super::sink::Sink;
use crate::lab::Interrupt;
use crate::output::Format;
use crate::query::Daemon;

/// `sluice capture`.
#[derive(Debug, Args)]
#[command(after_help = FILTER_HELP)]
pub struct CaptureArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Write a pcapng file (- for the standard output): one interface per point, a comment on each packet
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    write: Option<String>,
    /// Only packets from or to this pod, NAME or NAMESPACE/NAME; may be repeated
    #[arg(long, value_name = "NAME")]
    pod: Vec<String>,
    /// Only packets that were dropped
    #[arg(long)]
    drops: bool,
    /// Stop after this many packets
    #[arg(short = 'c', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Bytes of each packet at most
    #[arg(short = 's', long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=65_535))]
    snaplen: Option<u32>,
    /// How to print packets when no file is written; json prints one object a line
    #[arg(long, value_enum, default_value_t, conflicts_with = "write")]
    output: Format,
    /// Which packets, as in: tcp and (host 10.0.1.10 or dst port 80)
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

const FILTER_HELP: &str = "Filter:
  [src|dst] host ADDRESS, [src|dst] net CIDR, [src|dst] port PORT, [src|dst] portrange FIRST-LAST,
  proto PROTOCOL, tcp, udp, icmp, sctp; joined by and, or, not, ( and ).
  host, net and port also hold when they hold for the packet's flow on the other side of the
  translation: `host 10.0.1.10` shows that pod's packets on the ENI too, where they carry the
  node's address.

Points: pod:NAMESPACE/NAME, eni:NAME, drop. The daemon never waits for a capture: what it had to
leave out is counted.
It ends at Ctrl-C, after --count packets or after --duration seconds.";

/// Captures until the end that was asked for.
///
/// # Errors
/// No daemon answers, the filter is wrong, or the file cannot be written.
pub(crate) fn run(args: &CaptureArgs) -> Result<ExitCode> {
    let text = args.filter.join(" ");
    let filter = match text.trim() {
        "" => None,
        text => match text.parse::<Filter>() {
            Ok(filter) => Some(filter),
            Err(e) => {
                eprintln!("sluice: in the filter `{text}`: {e}");
                return Ok(ExitCode::from(2));
            }
        },
    };
    let interrupt = Interrupt::watch()?;
    let mut client = args.daemon.connect()?;
    let query = CaptureFilter {
        pods: args.pod.clone(),
        drops: args.drops,
        snaplen: args.snaplen,
        ..CaptureFilter::default()
    };
    let points = match client.ask(&Query::Capture(query))? {
        Answer::Capturing { points } => points,
        Answer::Refused(reason) => bail!("the daemon refuses: {reason}"),
        _ => bail!("the daemon answered another question"),
    };
    for pod in args.pod.iter().filter(|pod| !points.iter().any(|point| is_of(point, pod))) {
        let known: Vec<_> = points.iter().filter_map(pod_name).collect();
        eprintln!("no pod `{pod}` is there now, one of: {}", known.join(", "));
    }
    let mut sink = Sink::open(args.write.as_deref(), args.output, &points)?;
    let deadline = args.duration.map(|s| Instant::now() + Duration::from_secs(s));
    let (mut shown, mut lost) = (0, 0);
    while !interrupt.is_set()
        && deadline.is_none_or(|d| Instant::now() < d)
        && args.count.is_none_or(|n| shown < n)
    {
        match client.next_answer() {
            Ok(Answer::Record(record)) => {
                let view = View::new(&record.bytes, record.mapping.as_deref());
                if filter.as_ref().is_none_or(|f| f.matches(&view)) {
                    sink.take(&record, &view)?;
                    shown += 1;
                }
            }
            Ok(Answer::CaptureStatus { lost: so_far, .. }) => {
                lost = so_far;
                sink.flush()?;
            }
            Ok(Answer::Refused(reason)) => bail!("the daemon ended the capture: {reason}"),
            Ok(_) => bail!("the daemon answered another question"),
            Err(_) if interrupt.is_set() => break,
            Err(e) => {
                sink.flush()?;
                return Err(e).with_context(|| format!("the capture ended after {shown} packets"));
            }
        }
    }
    sink.flush()?;
    eprintln!("{shown} packets, {lost} lost by the daemon's queues");
    Ok(ExitCode::SUCCESS)
}

fn pod_name(point: &Point) -> Option<&str> {
    if let Point::Pod(name) = point { Some(name) } else { None }
}

/// Whether a point is the pod's of this name, with or without its namespace.
fn is_of(point: &Point, pod: &str) -> bool {
    pod_name(point)
        .is_some_and(|full| full == pod || full.split_once('/').is_some_and(|(_, name)| name == pod))
}
