//! What travels over the query socket: read-only questions to the daemon and its answers.
//!
//! A client opens with [`crate::push::Hello`] and is answered with [`Answer::Hello`]. Each [`Query`] has one [`Answer`] of the
//! same name, except [`Query::Capture`], which is answered by [`Answer::Capturing`] and then by [`Answer::Record`]s and
//! [`Answer::CaptureStatus`] until either side closes. [`Client`] speaks it.

mod capture;
mod extent;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::framing::{FramingError, MAX_MESSAGE, read_message, write_message};
use crate::push::Hello;
use crate::{Mac, PortRange};

pub use capture::{CaptureFilter, CaptureRecord, Point};
pub use extent::{Extent, Imported, Memory};

/// The version of the query socket's protocol.
pub const QUERY_VERSION: u32 = 1;
/// Rows that one answer to [`Query::Flows`] carries at most.
pub const MAX_FLOWS: u32 = 20_000;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// How the daemon started: ENIs, modes, queues, ports, what is degraded.
    Report,
    /// Every counter there is.
    Stats,
    /// The flows that a filter lets through.
    Flows(FlowFilter),
    /// The port contract with the host.
    Ports,
    /// The pods of the state in force and whether their interfaces are there.
    Pods,
    /// Every counter in Prometheus' text format.
    Metrics,
    /// Packets as they pass, until the connection is closed.
    Capture(CaptureFilter),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The answer to the client's hello.
    Hello {
        /// The daemon's version of the protocol.
        version: u32,
        /// The daemon's own version.
        daemon: String,
        /// The daemon's process id.
        pid: u32,
    },
    /// To [`Query::Report`].
    Report(Box<Report>),
    /// To [`Query::Stats`].
    Stats(Box<Stats>),
    /// To [`Query::Flows`].
    Flows(Flows),
    /// To [`Query::Ports`].
    Ports(Box<PortContract>),
    /// To [`Query::Pods`].
    Pods(Vec<PodStatus>),
    /// To [`Query::Metrics`].
    Metrics(String),
    /// To [`Query::Capture`]: it runs.
    Capturing {
        /// The points that there are now, in a fixed order: every pod, every ENI, then `drop`. More may come with a new
        /// generation.
        points: Vec<Point>,
    },
    /// One captured packet.
    Record(Box<CaptureRecord>),
    /// About once a second while a capture runs.
    CaptureStatus {
        /// Records sent so far.
        sent: u64,
        /// Records that were lost because a queue was full: workers never wait.
        lost: u64,
    },
    /// The question was refused, with the reason and the way out.
    Refused(String),
}

/// Which flows to list. Empty lists let everything through; all that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// `namespace/name` or `name` of a pod at either end.
    pub pod: Option<String>,
    /// Either address of either side of the translation lies in here.
    pub net: Option<Ipv4Net>,
    /// Either port of either side of the translation is this one (for ICMP: the identifier).
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Only flows that are (true) or are not (false) translated.
    pub translated: Option<bool>,
    /// Rows at most; absent or above [`MAX_FLOWS`]: [`MAX_FLOWS`].
    pub limit: Option<u32>,
}

/// The flow table, filtered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The rows, in the table's own order.
    pub rows: Vec<FlowRow>,
    /// Flows that match; above the number of rows when the limit cut them.
    pub matched: u64,
    /// Flows in the table.
    pub live: u32,
    /// Flows that fit.
    pub capacity: u32,
}

/// A source and a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// Source port, or the ICMP identifier.
    pub sport: u16,
    /// Destination port, or the ICMP identifier.
    pub dport: u16,
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Its number in the table.
    pub id: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// As its originator sends it.
    pub original: Tuple,
    /// As the other side sees it; equal to `original` when nothing is translated.
    pub translated: Tuple,
    /// Who opened it: `pod`, `wire`, `kernel` or `host`.
    pub origin: String,
    /// State: a TCP state, or `one_way` and `two_way`.
    pub state: String,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Packets from the originator and back.
    pub packets: [u64; 2],
    /// Bytes from the originator and back.
    pub bytes: [u64; 2],
    /// `namespace/name` of the pods at its ends, the originator's side first.
    pub pods: [Option<String>; 2],
}

/// Something that is not as it should be, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: an ENI's name, `ports`, `kernel`.
    pub subject: String,
    /// What was found and what it costs.
    pub what: String,
    /// What would change it; empty when nothing would.
    pub remedy: String,
}

/// How the daemon started and what it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The daemon's version.
    pub daemon: String,
    /// Its process id.
    pub pid: u32,
    /// The node's name, as the state gives it.
    pub node: String,
    /// The kernel's release.
    pub kernel: String,
    /// Nanoseconds since 1970 when it started.
    pub started_ns: u64,
    /// Milliseconds from its start until every worker ran.
    pub startup_ms: u64,
    /// Number of the generation in force.
    pub generation: u64,
    /// How the tc programs are bound: `tcx` or `clsact`.
    pub tc: String,
    /// What tc and XDP do with pods' traffic while no daemon runs: `drop` or `kernel`.
    pub on_failure: String,
    /// The source address of what is translated.
    pub snat_address: Option<Ipv4Addr>,
    /// The trunk.
    pub trunk: TrunkReport,
    /// The workers.
    pub workers: Vec<WorkerReport>,
    /// The ENIs.
    pub enis: Vec<EniReport>,
    /// The port contract.
    pub ports: PortContract,
    /// How much the state in force says about policy and services.
    pub extent: Extent,
    /// Connections that were the kernel's before; absent when none was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
    /// Memory that was set aside at the start.
    pub memory: Memory,
    /// Everything that is degraded, worst first.
    pub findings: Vec<Finding>,
}

/// The trunk between tc and the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrunkReport {
    /// Name of the interface.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// Its queues, one for each worker.
    pub queues: u16,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its number.
    pub id: u16,
    /// The CPU that it is pinned to.
    pub cpu: u32,
    /// Its queues as `eni:queue`; besides these each has the trunk's queue of its number.
    pub queues: Vec<String>,
}

/// One ENI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniReport {
    /// Its interface's name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// It is the primary ENI.
    pub primary: bool,
    /// The kernel driver, `unknown` when it does not say.
    pub driver: String,
    /// The driver's version as it gives it; empty when it does not.
    pub driver_version: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
    /// Receive queues that the hardware has, where the driver says.
    pub max_queues: Option<u32>,
    /// How its packets are taken: `xdp zero-copy`, `xdp native`, `xdp generic` or `tap`.
    pub mode: String,
    /// What was tried before, with the reason why it failed.
    pub tried: Vec<Attempt>,
    /// Offloads by name, true when on.
    pub offloads: BTreeMap<String, bool>,
}

/// A mode that an ENI could not be had in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The mode, as in [`EniReport::mode`].
    pub mode: String,
    /// Why it failed.
    pub reason: String,
}

/// The port contract with the host: who may use which source port on the node's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortContract {
    /// The address.
    pub address: Option<Ipv4Addr>,
    /// The ranges that the state gives to Sluice.
    pub configured: Vec<PortRange>,
    /// The ranges that the state takes out of these.
    pub excluded: Vec<PortRange>,
    /// The NodePort range, never used whatever the state says.
    pub node_ports: PortRange,
    /// Ports inside the configured ranges that a process of the node holds; they are taken out.
    pub listeners: Vec<Listener>,
    /// Ports inside the configured ranges that a service has on the node's address: host ports, NodePorts outside of their
    /// range, external addresses that are the node's; they are taken out.
    pub services: Vec<Listener>,
    /// What Sluice uses now for TCP.
    pub tcp: Vec<PortRange>,
    /// What Sluice uses now for UDP.
    pub udp: Vec<PortRange>,
    /// The identifiers that Sluice uses now for ICMP echo.
    pub icmp: Vec<PortRange>,
    /// The kernel's `ip_local_port_range`: the host's ephemeral ports.
    pub ephemeral: Option<PortRange>,
    /// The kernel's `ip_local_reserved_ports`.
    pub reserved: Vec<PortRange>,
    /// Nanoseconds since 1970 when the host was last looked at.
    pub checked_ns: u64,
    /// Conflicts, with remedies.
    pub findings: Vec<Finding>,
}

/// A port that a process of the node or a service holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
}

/// A pod of the state in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Name of the ENI that owns the address.
    pub eni: String,
    /// Name of the host's end of its veth.
    pub interface: String,
    /// Index of that, when it is there.
    pub ifindex: Option<u32>,
    /// The tc programs are on it: its packets go through the engine.
    pub attached: bool,
    /// What is wrong; empty when nothing is.
    pub problem: String,
}

/// Every counter there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Nanoseconds since 1970 when they were read.
    pub time_ns: u64,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Number of the generation in force.
    pub generation: u64,
    /// Counters of the engine and of the worker loops, summed over the workers.
    pub total: BTreeMap<String, u64>,
    /// Drops of the engine by reason, summed over the workers; every reason is there, those at zero too.
    pub drops: BTreeMap<String, u64>,
    /// Verdicts of the BPF programs, summed over CPUs.
    pub bpf: BTreeMap<String, u64>,
    /// The ports of the workers: AF_XDP statistics, the trunk's.
    pub ports: Vec<PortCounters>,
    /// The same for each worker.
    pub workers: Vec<WorkerCounters>,
    /// Flows in the table.
    pub flows: u32,
    /// Flows that fit.
    pub flow_capacity: u32,
    /// How much the state in force says about policy and services.
    pub extent: Extent,
    /// Memory that was set aside at the start.
    pub memory: Memory,
    /// Whether every packet is accounted for.
    pub conservation: Conservation,
}

/// One worker's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounters {
    /// Its number.
    pub id: u16,
    /// Its counters by name.
    pub counters: BTreeMap<String, u64>,
    /// Its drops by reason.
    pub drops: BTreeMap<String, u64>,
}

/// One port's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortCounters {
    /// The worker that owns it.
    pub worker: u16,
    /// `eni:queue`, or `trunk:queue`.
    pub port: String,
    /// Its counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// In = out + dropped + held, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conservation {
    /// Packets that entered the engine, those that it made itself included.
    pub packets_in: u64,
    /// Packets that left it.
    pub packets_out: u64,
    /// Packets that it dropped, by whatever reason.
    pub dropped: u64,
    /// Packets that wait inside: for an Ethernet address, for a first fragment, between two workers.
    pub held: u64,
    /// The two sides are equal. Read while packets move it may be off by a batch.
    pub balanced: bool,
}

/// A connection to the query socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// The daemon's version.
    pub daemon: String,
    /// The daemon's process id.
    pub pid: u32,
}

impl Client {
    /// Connects and shakes hands. `timeout` bounds every later read and write.
    ///
    /// # Errors
    /// Nothing listens there, the daemon speaks another version, or it does not answer in time.
    pub fn connect(path: &Path, client: &str, timeout: Duration) -> Result<Self, FramingError> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        write_message(&mut stream, &Hello { version: QUERY_VERSION, client: client.to_owned() })?;
        match read_message(&mut stream, MAX_MESSAGE)? {
            Answer::Hello { daemon, pid, .. } => Ok(Self { stream, daemon, pid }),
            Answer::Refused(reason) => Err(std::io::Error::other(reason).into()),
            other => Err(std::io::Error::other(format!("unexpected answer to the hello: {other:?}")).into()),
        }
    }

    /// Asks one question and waits for its answer; for a capture the further ones come by [`Client::next_answer`].
    ///
    /// # Errors
    /// The connection failed, or the daemon did not answer in time.
    pub fn ask(&mut self, query: &Query) -> Result<Answer, FramingError> {
        write_message(&mut self.stream, query)?;
        self.next_answer()
    }

    /// The next message of a capture.
    ///
    /// # Errors
    /// The connection failed, or nothing came in time ([`Answer::CaptureStatus`] comes every second).
    pub fn next_answer(&mut self) -> Result<Answer, FramingError> {
        read_message(&mut self.stream, MAX_MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_short_names_and_unknown_filters_are_refused() {
        assert_eq!(serde_json::to_string(&Query::Report).unwrap(), "\"report\"");
        let flows: Query = serde_json::from_str(r#"{"flows":{"port":80}}"#).unwrap();
        assert_eq!(flows, Query::Flows(FlowFilter { port: Some(80), ..FlowFilter::default() }));
        assert!(serde_json::from_str::<Query>(r#"{"flows":{"prot":80}}"#).is_err());
    }
}
