//! The rows of the demo: every row of VPC CNI's behaviour that involves no service, with what the peer must
//! see and which ENI must be used. Pure: what is expected follows from the addresses and EXTERNALSNAT alone.

use std::net::Ipv4Addr;

use super::probe::Probe;
use crate::lab::{Dataplane, Options, Topology};

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Who begins, by name.
    pub(crate) from: String,
    /// The namespace to begin in.
    pub(crate) namespace: String,
    /// The address that the socket is bound to, when the row is about that.
    pub(crate) bind: Option<Ipv4Addr>,
    /// Whom it goes to, by name.
    pub(crate) to: String,
    /// The address that it goes to.
    pub(crate) address: Ipv4Addr,
    /// What is exchanged.
    pub(crate) probe: Probe,
    /// Whose source and ENI is looked at.
    pub(crate) judged: Judged,
    /// The source that must be seen.
    pub(crate) source: Ipv4Addr,
    /// The way that must be taken.
    pub(crate) way: Way,
    /// EC2 drops it: the exchange must fail, what was seen on the wire is judged.
    pub(crate) dropped: bool,
    /// What the row stands for, when its names do not say it.
    pub(crate) note: &'static str,
}

/// Which direction of the exchange a row judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    /// What is sent: its peer is the far side.
    Request,
    /// What comes back to a client that connected in: its peer is the client, whose address this is.
    Reply(Ipv4Addr),
}

/// How a packet leaves the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By this ENI.
    Eni(String),
    /// Not at all.
    Local,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Eni(name) => f.write_str(name),
            Self::Local => f.write_str("never leaves"),
        }
    }
}

/// All rows for a lab.
pub(crate) fn rows(plan: &Topology, options: &Options) -> Vec<Row> {
    let b = Builder { plan, options };
    let mut rows = Vec::new();
    for pod in ["pod-a", "pod-c"] {
        for probe in [Probe::Tcp, Probe::Udp(100), Probe::Ping, Probe::Udp(4000)] {
            rows.extend(b.pod_out(pod, "host-x", probe));
        }
        rows.extend(b.pod_out(pod, "imds", Probe::Http));
        for mtu_probe in [Probe::PathMtuUdp, Probe::PathMtuTcp] {
            rows.extend(b.pod_out(pod, "host-y", mtu_probe(options.path_mtu)));
        }
        for host in ["host-v", "host-w"] {
            for probe in [Probe::Tcp, Probe::Udp(4000), Probe::Ping] {
                rows.extend(b.pod_out(pod, host, probe));
            }
        }
    }
    for (from, to) in [("pod-a", "pod-b"), ("pod-a", "pod-c"), ("pod-c", "pod-a"), ("pod-c", "pod-d")] {
        for probe in [Probe::Tcp, Probe::Udp(4000)] {
            rows.extend(b.pod_to_pod(from, to, probe));
        }
    }
    for pod in ["pod-a", "pod-c"] {
        for eni in &plan.enis {
            rows.extend(b.pod_to_node(pod, eni.address, Probe::Tcp));
            rows.extend(b.pod_to_node(pod, eni.address, Probe::Udp(100)));
        }
        rows.extend(b.node_to_pod(pod, Probe::Tcp));
        rows.extend(b.node_to_pod(pod, Probe::Udp(100)));
    }
    for probe in [Probe::Tcp, Probe::Udp(100), Probe::Ping] {
        rows.extend(b.node_out(None, probe));
    }
    rows.extend(plan.enis.get(1).and_then(|eni| b.node_out(Some(eni.address), Probe::Tcp)));
    for pod in ["pod-a", "pod-c"] {
        for host in ["host-x", "host-v"] {
            for probe in [Probe::Tcp, Probe::Udp(100), Probe::Udp(4000), Probe::Ping] {
                rows.extend(b.inward(host, pod, probe));
            }
        }
    }
    rows
}

struct Builder<'a> {
    plan: &'a Topology,
    options: &'a Options,
}

impl Builder<'_> {
    fn pod(&self, name: &str) -> Option<&crate::lab::PodLink> {
        self.plan.pods.iter().find(|p| p.name == name)
    }

    fn host(&self, name: &str) -> Option<&crate::lab::HostLink> {
        self.plan.hosts.iter().find(|h| h.name == name)
    }

    /// The node's primary address.
    fn node(&self) -> Ipv4Addr {
        self.plan.enis[0].address
    }

    fn translates(&self, to: Ipv4Addr) -> bool {
        self.options.dataplane != Dataplane::Kernel && self.options.nat().translates(to)
    }

    fn pod_out(&self, pod: &str, host: &str, probe: Probe) -> Option<Row> {
        let (pod, host) = (self.pod(pod)?, self.host(host)?);
        let translated = self.translates(host.address);
        Some(Row {
            from: pod.name.clone(),
            namespace: pod.namespace.clone(),
            bind: None,
            to: host.name.clone(),
            address: host.address,
            probe,
            judged: Judged::Request,
            source: if translated { self.node() } else { pod.address },
            way: Way::Eni(if translated { self.plan.enis[0].name.clone() } else { pod.eni.clone() }),
            dropped: false,
            note: match probe {
                Probe::Udp(4000) => "in fragments",
                Probe::PathMtuUdp(_) | Probe::PathMtuTcp(_) => "the frag-needed reaches the pod",
                _ => "",
            },
        })
    }

    fn pod_to_pod(&self, from: &str, to: &str, probe: Probe) -> Option<Row> {
        let (from, to) = (self.pod(from)?, self.pod(to)?);
        Some(self.local(&from.name, &from.namespace, from.address, &to.name, to.address, probe, "same node"))
    }

    fn pod_to_node(&self, pod: &str, address: Ipv4Addr, probe: Probe) -> Option<Row> {
        let pod = self.pod(pod)?;
        let to = format!("node {address}");
        Some(self.local(&pod.name, &pod.namespace, pod.address, &to, address, probe, "the node's own"))
    }

    fn node_to_pod(&self, pod: &str, probe: Probe) -> Option<Row> {
        let pod = self.pod(pod)?;
        Some(self.local(
            "node",
            &self.plan.node,
            self.node(),
            &pod.name,
            pod.address,
            probe,
            "as a kubelet probe",
        ))
    }

    #[allow(clippy::too_many_arguments, reason = "two ends and what goes between them")]
    fn local(
        &self,
        from: &str,
        namespace: &str,
        source: Ipv4Addr,
        to: &str,
        address: Ipv4Addr,
        probe: Probe,
        note: &'static str,
    ) -> Row {
        Row {
            from: from.to_owned(),
            namespace: namespace.to_owned(),
            bind: None,
            to: to.to_owned(),
            address,
            probe,
            judged: Judged::Request,
            source,
            way: Way::Local,
            dropped: false,
            note,
        }
    }

    fn node_out(&self, bind: Option<Ipv4Addr>, probe: Probe) -> Option<Row> {
        let host = self.host("host-x")?;
        let eni = self.plan.enis.iter().find(|e| Some(e.address) == bind).unwrap_or(&self.plan.enis[0]);
        // VPC CNI's rules give a connection that is bound to another ENI's address the primary address, on that other ENI:
        // EC2 drops it. Sluice leaves the node's own connections alone, and they work.
        let defect = self.options.dataplane == Dataplane::Iptables && self.translates(host.address);
        Some(Row {
            from: bind.map_or_else(|| "node".into(), |address| format!("node {address}")),
            namespace: self.plan.node.clone(),
            bind,
            to: host.name.clone(),
            address: host.address,
            probe,
            judged: Judged::Request,
            source: if defect { self.node() } else { eni.address },
            way: Way::Eni(eni.name.clone()),
            dropped: defect && bind.is_some(),
            note: match bind {
                None => "the node's own",
                Some(_) if defect => "EC2 drops it: not this ENI's address",
                Some(_) if self.translates(host.address) => {
                    "VPC CNI sends the primary address, which EC2 drops"
                }
                Some(_) => "bound to its address",
            },
        })
    }

    fn inward(&self, host: &str, pod: &str, probe: Probe) -> Option<Row> {
        let (host, pod) = (self.host(host)?, self.pod(pod)?);
        Some(Row {
            from: host.name.clone(),
            namespace: host.namespace.clone(),
            bind: None,
            to: pod.name.clone(),
            address: pod.address,
            probe,
            judged: Judged::Reply(host.address),
            source: pod.address,
            way: Way::Eni(pod.eni.clone()),
            dropped: false,
            note: "connected in: its reply",
        })
    }
}
