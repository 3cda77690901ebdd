//! `sluice lab status`: what a lab is, for people and for programs.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::record::{Paths, Record};
use super::topology::Topology;
use super::{Dataplane, record_of};
use crate::netns::Netns;
use crate::output::{Format, print_json, table};
use crate::shell;

/// What `--output json` prints.
#[derive(Debug, Serialize)]
struct Status {
    name: String,
    dataplane: Dataplane,
    /// `up`, or what is wrong with it.
    condition: String,
    directory: String,
    state_file: String,
    run_dir: String,
    bpffs: String,
    vpc_cidrs: Vec<String>,
    external_snat: bool,
    node: Node,
    fabric: Fabric,
    pods: Vec<Member>,
    hosts: Vec<Member>,
    processes: Vec<Running>,
}

#[derive(Debug, Serialize)]
struct Node {
    namespace: String,
    enis: Vec<Eni>,
    /// The host's end of each pod's veth, by the pod's name.
    pod_interfaces: BTreeMap<String, Interface>,
}

#[derive(Debug, Serialize)]
struct Eni {
    #[serde(flatten)]
    interface: Interface,
    primary: bool,
    address: String,
    subnet: String,
    gateway: String,
    gateway_mac: String,
    /// Every address that the fabric holds to be this ENI's.
    owned: Vec<String>,
    /// Packets that it sent with a source that it does not own: EC2 would drop them, the fabric does.
    source_check_drops: u64,
}

#[derive(Debug, Serialize)]
struct Fabric {
    namespace: String,
    /// Index of the fabric's end by its name: `eni0`, `host-x`.
    interfaces: BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    ifindex: Option<u32>,
    mac: String,
    mtu: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Member {
    name: String,
    role: String,
    namespace: String,
    address: String,
    gateway: String,
    gateway_mac: String,
    /// The member's own end of its veth.
    interface: String,
    ifindex: Option<u32>,
    mac: String,
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eni: Option<String>,
}

#[derive(Debug, Serialize)]
struct Running {
    name: String,
    pid: i32,
    alive: bool,
    log: String,
}

/// Prints a lab's status; the exit code is 1 when a process of it is gone.
///
/// # Errors
/// There is no such lab.
pub(crate) fn show(name: &str, format: Format) -> Result<ExitCode> {
    let record = record_of(name)?;
    let status = status(&record)?;
    match format {
        Format::Json => print_json(&status)?,
        Format::Table => print(&status),
    }
    Ok(if status.condition == "up" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status(record: &Record) -> Result<Status> {
    let plan = &record.topology;
    let paths = Paths::new(&plan.name);
    let drops = source_check_drops(plan).unwrap_or_default();
    let on_node = links(&plan.node);
    let interface = |links: &BTreeMap<String, Link>, name: &str, mac: &sluice_state::Mac| Interface {
        name: name.to_owned(),
        ifindex: links.get(name).map(|l| l.ifindex),
        mac: mac.to_string(),
        mtu: links.get(name).map(|l| l.mtu),
    };
    let enis = plan.enis.iter().map(|eni| Eni {
        interface: interface(&on_node, &eni.name, &eni.mac),
        primary: eni.primary,
        address: eni.address.to_string(),
        subnet: eni.subnet.to_string(),
        gateway: eni.gateway.to_string(),
        gateway_mac: eni.gateway_mac.to_string(),
        owned: plan.owned(eni).iter().map(ToString::to_string).collect(),
        source_check_drops: drops.get(&eni.name).copied().unwrap_or_default(),
    });
    let pods = plan.pods.iter().map(|pod| {
        let link = links(&pod.namespace).remove("eth0");
        Member {
            name: pod.name.clone(),
            role: "pod".into(),
            namespace: pod.namespace.clone(),
            address: pod.address.to_string(),
            gateway: super::topology::POD_GATEWAY.to_string(),
            gateway_mac: pod.gateway_mac.to_string(),
            interface: "eth0".into(),
            ifindex: link.as_ref().map(|l| l.ifindex),
            mac: pod.mac.to_string(),
            mtu: link.as_ref().map(|l| l.mtu),
            eni: Some(pod.eni.clone()),
        }
    });
    let hosts = plan.hosts.iter().map(|host| {
        let link = links(&host.namespace).remove("eth0");
        Member {
            name: host.name.clone(),
            role: host.role.clone(),
            namespace: host.namespace.clone(),
            address: host.address.to_string(),
            gateway: host.gateway.to_string(),
            gateway_mac: host.gateway_mac.to_string(),
            interface: "eth0".into(),
            ifindex: link.as_ref().map(|l| l.ifindex),
            mac: host.mac.to_string(),
            mtu: link.as_ref().map(|l| l.mtu),
            eni: None,
        }
    });
    let processes: Vec<_> = record
        .processes
        .iter()
        .map(|p| Running {
            name: p.name.clone(),
            pid: p.pid,
            alive: p.is_alive(),
            log: paths.log(&p.name).display().to_string(),
        })
        .collect();
    Ok(Status {
        name: plan.name.clone(),
        dataplane: record.options.dataplane,
        condition: condition(record, &processes),
        directory: paths.dir().display().to_string(),
        state_file: paths.state().display().to_string(),
        run_dir: paths.run().display().to_string(),
        bpffs: paths.bpf().display().to_string(),
        vpc_cidrs: super::options::vpc_cidrs().iter().map(ToString::to_string).collect(),
        external_snat: record.options.external_snat,
        node: Node {
            namespace: plan.node.clone(),
            enis: enis.collect(),
            pod_interfaces: plan
                .pods
                .iter()
                .map(|p| (p.name.clone(), interface(&on_node, &p.interface, &p.gateway_mac)))
                .collect(),
        },
        fabric: Fabric {
            namespace: plan.fabric.clone(),
            interfaces: links(&plan.fabric).into_iter().map(|(name, l)| (name, l.ifindex)).collect(),
        },
        pods: pods.collect(),
        hosts: hosts.collect(),
        processes,
    })
}

fn condition(record: &Record, processes: &[Running]) -> String {
    let dead: Vec<_> = processes.iter().filter(|p| !p.alive).map(|p| p.name.as_str()).collect();
    if !record.complete {
        "incomplete: `sluice lab up` was killed".into()
    } else if !dead.is_empty() {
        format!("{} not running", dead.join(", "))
    } else {
        "up".into()
    }
}

#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    ifindex: u32,
    mtu: u32,
}

/// The links of a namespace by name; empty when it is gone.
fn links(namespace: &str) -> BTreeMap<String, Link> {
    let text = shell::run("ip", &["-n", namespace, "-j", "link", "show"]).unwrap_or_default();
    let links: Vec<Link> = serde_json::from_str(&text).unwrap_or_default();
    links.into_iter().map(|l| (l.ifname.clone(), l)).collect()
}

/// What the fabric's source check dropped, by ENI, in packets.
///
/// # Errors
/// The fabric's namespace or its table is gone.
pub(crate) fn source_check_drops(plan: &Topology) -> Result<BTreeMap<String, u64>> {
    let args = ["-j", "list", "counters", "table", "ip", "fabric"];
    let text = Netns::open(&plan.fabric)?.within(|| shell::run("nft", &args))?;
    let listing: Listing = serde_json::from_str(&text).context("cannot understand `nft -j list counters`")?;
    let counters = listing.nftables.into_iter().filter_map(|item| item.counter);
    Ok(counters.filter_map(|c| Some((c.name.strip_prefix("source_check_")?.to_owned(), c.packets))).collect())
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    name: String,
    packets: u64,
}

fn print(status: &Status) {
    let Status { name, dataplane, condition, directory, .. } = status;
    println!(
        "lab {name}: {condition}, dataplane {dataplane}, EXTERNALSNAT={}, {directory}",
        status.external_snat
    );
    let head = ["NAME", "NAMESPACE", "ADDRESS", "INTERFACE", "IFINDEX", "MAC", "MTU", "GATEWAY", "WHAT"];
    let mut members = Vec::new();
    let number = |n: Option<u32>| n.map_or("gone".into(), |n| n.to_string());
    for eni in &status.node.enis {
        members.push(vec![
            "node".into(),
            status.node.namespace.clone(),
            eni.address.clone(),
            eni.interface.name.clone(),
            number(eni.interface.ifindex),
            eni.interface.mac.clone(),
            number(eni.interface.mtu),
            eni.gateway.clone(),
            format!(
                "{} ENI, source check dropped {}",
                if eni.primary { "primary" } else { "secondary" },
                eni.source_check_drops
            ),
        ]);
    }
    for member in status.pods.iter().chain(&status.hosts) {
        members.push(vec![
            member.name.clone(),
            member.namespace.clone(),
            member.address.clone(),
            member.interface.clone(),
            number(member.ifindex),
            member.mac.clone(),
            number(member.mtu),
            member.gateway.clone(),
            member.eni.as_ref().map_or_else(
                || member.role.clone(),
                |eni| {
                    let host = status.node.pod_interfaces.get(&member.name);
                    format!("pod on {eni}, veth {}", host.map_or("gone", |h| h.name.as_str()))
                },
            ),
        ]);
    }
    println!("{}", table(&head, members));
    for process in &status.processes {
        let alive = if process.alive { "runs" } else { "is gone" };
        println!("{} (pid {}) {alive}, log {}", process.name, process.pid, process.log);
    }
}
