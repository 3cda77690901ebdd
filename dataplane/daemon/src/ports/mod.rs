//! The port contract with the host: which source ports on the node's address are Sluice's, and which are not after all.
//!
//! The address that pods' connections are translated to is also the node's own, so every port of it has one owner. The
//! state says which ranges are Sluice's; what a process of the node holds inside them, and the NodePort range, are taken
//! out, for each protocol apart. The host's ephemeral ports must lie outside, which is the operator's to set: here it is
//! only checked and reported.

mod sockets;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::{fs, io};

use sluice_state::query::{Finding, Listener, PortContract};
use sluice_state::{Invalid, PortRange, PortSet, SnatPorts};

pub use sockets::{Protocol, Socket};

/// Kubernetes' default range of NodePorts.
pub const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

/// What the host says of its own ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPorts {
    /// Every bound socket of this network namespace.
    pub sockets: Vec<Socket>,
    /// `net.ipv4.ip_local_port_range`.
    pub ephemeral: Option<PortRange>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<PortRange>,
}

impl HostPorts {
    /// Reads them from `/proc` of this thread's network namespace.
    ///
    /// # Errors
    /// The lists of sockets cannot be read. A sysctl that cannot be read is only absent.
    pub fn read() -> io::Result<Self> {
        let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
        Ok(Self {
            sockets: sockets::read()?,
            ephemeral: sysctl("ip_local_port_range").and_then(|text| ephemeral(&text)),
            reserved: sysctl("ip_local_reserved_ports").map(|text| reserved(&text)).unwrap_or_default(),
        })
    }
}

/// Two numbers, white space between them.
fn ephemeral(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else { return None };
    (first <= last).then_some(PortRange { first, last })
}

/// `FIRST-LAST` and single ports, commas between them.
fn reserved(text: &str) -> Vec<PortRange> {
    text.trim().split(',').filter_map(|part| part.parse().ok()).collect()
}

/// The sets in force, and the report on how they came about.
#[derive(Debug, Clone)]
pub struct Contract {
    /// Source ports for TCP.
    pub tcp: PortSet,
    /// Source ports for UDP.
    pub udp: PortSet,
    /// Identifiers for ICMP echo.
    pub icmp: PortSet,
    /// The same for people.
    pub report: PortContract,
}

impl Contract {
    /// Works out what is Sluice's on `address`, where `services` have ports of theirs: NodePorts, host ports, external
    /// addresses that are the node's.
    #[must_use]
    pub fn new(
        address: Option<Ipv4Addr>,
        configured: &SnatPorts,
        node_ports: PortRange,
        services: &[Socket],
        host: &HostPorts,
        now_ns: u64,
    ) -> Self {
        let wanted = configured.set();
        let mut base = wanted.clone();
        base.remove_range(node_ports);
        let (mut tcp, mut udp, icmp) = (base.clone(), base.clone(), base.clone());
        let mut take = |sockets: &[Socket]| {
            let mut taken = BTreeSet::new();
            for socket in sockets.iter().filter(|s| base.contains(s.port) && s.concerns(address)) {
                match socket.protocol {
                    Protocol::Tcp => tcp.remove(socket.port),
                    Protocol::Udp => udp.remove(socket.port),
                }
                taken.insert(Listener { protocol: socket.protocol.name().into(), port: socket.port });
            }
            taken.into_iter().collect()
        };
        let (listeners, services) = (take(&host.sockets), take(services));
        let mut report = PortContract {
            address,
            configured: configured.ranges.clone(),
            excluded: configured.exclude.clone(),
            node_ports,
            listeners,
            services,
            tcp: tcp.ranges(),
            udp: udp.ranges(),
            icmp: icmp.ranges(),
            ephemeral: host.ephemeral,
            reserved: host.reserved.clone(),
            checked_ns: now_ns,
            findings: Vec::new(),
        };
        report.findings = findings(&wanted, &base, &report);
        Self { tcp, udp, icmp, report }
    }

    /// Whether another contract gives out the same ports.
    #[must_use]
    pub fn same_ports(&self, other: &Self) -> bool {
        (&self.tcp, &self.udp, &self.icmp) == (&other.tcp, &other.udp, &other.icmp)
    }

    /// The ports that are given out: TCP, UDP, ICMP identifiers.
    #[must_use]
    pub fn sets(&self) -> [PortSet; 3] {
        [self.tcp.clone(), self.udp.clone(), self.icmp.clone()]
    }
}

/// What either of two triples of sets has.
#[must_use]
pub fn union(mut ports: [PortSet; 3], others: &[PortSet; 3]) -> [PortSet; 3] {
    for (set, other) in ports.iter_mut().zip(others) {
        other.ranges().into_iter().for_each(|range| set.insert_range(range));
    }
    ports
}

/// Why a configuration can leave no port on any host: the NodePorts take all of it.
///
/// What processes of the node hold is not judged here: that changes, and is a finding of the report.
#[must_use]
pub fn nothing_left(configured: &SnatPorts, node_ports: PortRange) -> Option<Invalid> {
    let mut left = configured.set();
    left.remove_range(node_ports);
    left.is_empty().then(|| Invalid {
        field: "snat_ports.ranges".into(),
        value: configured.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        reason: format!(
            "leaves no port for SNAT, as NodePorts {node_ports} are never used: widen it, or name the cluster's range by \
             --node-ports"
        ),
    })
}

fn findings(wanted: &PortSet, base: &PortSet, report: &PortContract) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |what: String, remedy: String| {
        findings.push(Finding { subject: "ports".into(), what, remedy });
    };
    let inside = |range: &PortRange| (range.first..=range.last).filter(|port| wanted.contains(*port)).count();
    let nodes = inside(&report.node_ports);
    if nodes > 0 {
        add(
            format!(
                "{nodes} ports of snat_ports lie in the NodePort range {} and are not used",
                report.node_ports
            ),
            "take them out of snat_ports, or name the cluster's range by --node-ports".into(),
        );
    }
    if let Some(range) = report.ephemeral {
        let shared = (range.first..=range.last).filter(|port| base.contains(*port)).count();
        let unreserved = (range.first..=range.last)
            .filter(|port| base.contains(*port))
            .filter(|port| !report.reserved.iter().any(|r| (r.first..=r.last).contains(port)))
            .count();
        if shared > 0 {
            let ranges = base.ranges().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            add(
                format!(
                    "{shared} ports of Sluice lie in the host's ephemeral range {range} (net.ipv4.ip_local_port_range), \
                     {unreserved} of them not reserved: the host's own connections can take them and are then moved to another port"
                ),
                format!(
                    "sysctl -w net.ipv4.ip_local_reserved_ports={ranges}, or move net.ipv4.ip_local_port_range"
                ),
            );
        }
    }
    for (protocol, ranges) in [("TCP", &report.tcp), ("UDP", &report.udp)] {
        if ranges.is_empty() {
            add(
                format!(
                    "no {protocol} port is left for SNAT: processes of the node and services hold every one"
                ),
                "widen snat_ports.ranges, or stop what listens there".into(),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);

    fn socket(protocol: Protocol, address: [u8; 4], port: u16) -> Socket {
        Socket { protocol, address: Some(Ipv4Addr::from(address)), port }
    }

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    fn contract(configured: &SnatPorts, host: &HostPorts) -> Contract {
        Contract::new(Some(NODE), configured, NODE_PORTS, &[], host, 0)
    }

    #[test]
    fn what_a_process_holds_is_taken_out_for_its_protocol_only() {
        let host = HostPorts {
            sockets: vec![
                socket(Protocol::Tcp, [0, 0, 0, 0], 10_250),
                socket(Protocol::Udp, [10, 0, 9, 5], 5_353),
                socket(Protocol::Tcp, [127, 0, 0, 1], 9_099),
                socket(Protocol::Tcp, [10, 0, 9, 77], 9_100),
                socket(Protocol::Tcp, [0, 0, 0, 0], 22),
            ],
            ..HostPorts::default()
        };
        let contract = contract(&SnatPorts::default(), &host);
        assert!(
            !contract.tcp.contains(10_250) && contract.udp.contains(10_250) && contract.icmp.contains(10_250)
        );
        assert!(!contract.udp.contains(5_353) && contract.tcp.contains(5_353));
        assert!(
            contract.tcp.contains(9_099) && contract.tcp.contains(9_100),
            "another address's ports are free"
        );
        assert_eq!(contract.tcp.len(), SnatPorts::default().set().len() - 1);
        assert_eq!(contract.report.listeners.len(), 2);
        assert!(contract.report.findings.is_empty());
    }

    #[test]
    fn what_a_service_has_on_the_nodes_address_is_taken_out_and_told_apart() {
        let services = [
            socket(Protocol::Tcp, [0, 0, 0, 0], 8_080),
            socket(Protocol::Udp, [10, 0, 9, 5], 5_353),
            socket(Protocol::Tcp, [10, 0, 9, 77], 9_100),
            socket(Protocol::Tcp, [0, 0, 0, 0], 30_080),
        ];
        let host =
            HostPorts { sockets: vec![socket(Protocol::Tcp, [0, 0, 0, 0], 8_080)], ..HostPorts::default() };
        let contract = Contract::new(Some(NODE), &SnatPorts::default(), NODE_PORTS, &services, &host, 0);
        assert!(!contract.tcp.contains(8_080) && contract.udp.contains(8_080));
        assert!(!contract.udp.contains(5_353) && contract.tcp.contains(5_353));
        assert!(contract.tcp.contains(9_100), "on another address it is free");
        let taken: Vec<_> = contract.report.services.iter().map(|l| (l.protocol.as_str(), l.port)).collect();
        assert_eq!(taken, [("tcp", 8_080), ("udp", 5_353)]);
        assert_eq!(contract.report.listeners.len(), 1);
    }

    #[test]
    fn node_ports_are_never_used_and_said_so() {
        let configured = SnatPorts { ranges: vec![range("29000-33000")], exclude: vec![] };
        let contract = contract(&configured, &HostPorts::default());
        assert_eq!(contract.report.tcp, [range("29000-29999"), range("32768-33000")]);
        let text = &contract.report.findings[0].what;
        assert!(text.contains("2768 ports") && text.contains("30000-32767"), "{text}");
    }

    #[test]
    fn ranges_that_are_node_ports_only_are_refused() {
        let ports = |text: &str| SnatPorts { ranges: vec![range(text)], exclude: vec![] };
        let refused = nothing_left(&ports("30500-30599"), NODE_PORTS).unwrap().to_string();
        assert!(refused.contains("30500-30599") && refused.contains("--node-ports"), "{refused}");
        assert_eq!(nothing_left(&ports("30500-32768"), NODE_PORTS), None);
    }

    #[test]
    fn an_overlap_with_the_ephemeral_range_names_the_sysctl_to_set() {
        let host = HostPorts {
            ephemeral: ephemeral("32768\t60999\n"),
            reserved: reserved("40000-40009,50000\n"),
            ..HostPorts::default()
        };
        assert!(contract(&SnatPorts::default(), &host).report.findings.is_empty());
        let configured = SnatPorts { ranges: vec![range("40000-40019")], exclude: vec![] };
        let finding = &contract(&configured, &host).report.findings[0];
        assert!(
            finding.what.contains("20 ports") && finding.what.contains("10 of them not reserved"),
            "{finding:?}"
        );
        assert!(finding.remedy.contains("ip_local_reserved_ports=40000-40019"), "{finding:?}");
    }

    #[test]
    fn nothing_left_is_a_finding_of_that_protocol() {
        let configured = SnatPorts { ranges: vec![range("5000")], exclude: vec![] };
        let host =
            HostPorts { sockets: vec![socket(Protocol::Udp, [0, 0, 0, 0], 5000)], ..HostPorts::default() };
        let contract = contract(&configured, &host);
        assert_eq!(contract.report.findings.len(), 1);
        assert!(contract.report.findings[0].what.contains("no UDP port"));
    }

    #[test]
    fn between_two_contracts_both_are_in_force() {
        let one =
            contract(&SnatPorts { ranges: vec![range("2000-2009")], exclude: vec![] }, &HostPorts::default());
        let two =
            contract(&SnatPorts { ranges: vec![range("2005-2019")], exclude: vec![] }, &HostPorts::default());
        assert_eq!(union(one.sets(), &two.sets())[0].ranges(), [range("2000-2019")]);
        assert!(!one.same_ports(&two) && one.same_ports(&one.clone()));
    }

    #[test]
    fn what_the_kernel_does_not_write_is_not_read() {
        assert_eq!(ephemeral("60999 32768"), None);
        assert_eq!(ephemeral(""), None);
        assert!(reserved("\n").is_empty());
    }
}
