//! The agent on the lab's node: it is told what a CNI plugin and EC2 would tell it (the inventory), follows a directory of
//! manifests, and feeds a daemon that has no state of its own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;

use super::dataplane::{beside, report, spawn, tail};
use super::options::Options;
use super::progress::Progress;
use super::record::{Paths, Process, Record};
use super::topology::Topology;
use crate::netns::Netns;

/// How long the first generation may take.
const START: Duration = Duration::from_secs(20);

/// The lab's service range, one of the two that EKS gives a cluster; the lab's VPC is elsewhere.
const SERVICE_CIDR: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 100, 0, 0), 16);

/// Writes the inventory and starts the agent in the node's namespace.
///
/// # Errors
/// There is no agent, or it does not start.
pub(crate) fn start(plan: &Topology, options: &Options, paths: &Paths, manifests: &Path) -> Result<Process> {
    let inventory = paths.inventory();
    std::fs::write(&inventory, text(plan, options)?)
        .with_context(|| format!("cannot write {}", inventory.display()))?;
    let log = paths.log("agent");
    let file = std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut command = command(options, paths, manifests)?;
    command.arg("--state-socket").arg(paths.run().join("state.sock"));
    if options.spare_addresses > 0 {
        command.arg("--cni-socket").arg(paths.cni_socket()).arg("--cni-conf-dir").arg(paths.net_d());
    }
    let child = Netns::open(&plan.node)?.within(|| spawn(&mut command, file))?;
    Process::new("agent", child.id()).with_context(|| format!("sluice-agent is gone:\n{}", tail(&log)))
}

/// The agent on this lab's inventory and these manifests.
///
/// # Errors
/// There is no agent.
pub(crate) fn command(options: &Options, paths: &Paths, manifests: &Path) -> Result<Command> {
    let binary = options.agent.clone().map_or_else(|| beside("sluice-agent", "--agent"), Ok)?;
    let mut command = Command::new(binary);
    command.arg("--manifests").arg(manifests).arg("--inventory").arg(paths.inventory());
    command.args(&options.agent_arg);
    Ok(command)
}

/// Waits until the daemon has the agent's first generation.
///
/// # Errors
/// It does not come; the message ends with the tail of the agent's log.
pub(crate) fn wait(record: &Record, paths: &Paths, progress: &Progress) -> Result<()> {
    let deadline = Instant::now() + START;
    let agent = record.processes.iter().find(|p| p.name == "agent");
    loop {
        if report(&paths.run()).is_ok_and(|report| report.generation > 0) {
            return Ok(());
        }
        let alive = agent.is_some_and(Process::is_alive);
        if !alive || Instant::now() >= deadline {
            let what = if alive { "has sent no generation that the daemon took" } else { "has ended" };
            let log = paths.log("agent");
            bail!("sluice-agent {what}; the end of {}:\n{}", log.display(), tail(&log));
        }
        progress.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The inventory: the daemon's state without what the manifests say, and the cluster. A pod is a place for any pod.
fn text(plan: &Topology, options: &Options) -> Result<String> {
    let mut table = toml::Table::try_from(plan.state(options)).context("the inventory is no TOML")?;
    for key in ["policy", "services"] {
        table.remove(key);
    }
    for pod in table.get_mut("pod").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        if let Some(pod) = pod.as_table_mut() {
            pod.remove("namespace");
            pod.remove("name");
        }
    }
    for eni in table.get_mut("eni").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        let Some(eni) = eni.as_table_mut() else { continue };
        let planned = plan.enis.iter().find(|planned| eni["name"].as_str() == Some(&planned.name));
        let spare: Vec<_> = planned.into_iter().flat_map(|planned| &planned.spare).collect();
        if !spare.is_empty() {
            let spare: Vec<_> = spare.into_iter().map(ToString::to_string).collect();
            eni.insert("pod_addresses".into(), spare.into());
        }
    }
    let mut cluster = toml::Table::new();
    cluster.insert("service_cidrs".into(), vec![SERVICE_CIDR.to_string()].into());
    table.insert("cluster".into(), cluster.into());
    toml::to_string(&table).context("cannot write the inventory as TOML")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_inventory_has_places_and_no_names() {
        let Line { options } = Line::parse_from(["lab", "--pods", "6"]);
        let plan = Topology::plan("lab", &options);
        let inventory: toml::Table = toml::from_str(&text(&plan, &options).unwrap()).unwrap();
        let places = inventory["pod"].as_array().unwrap();
        assert_eq!(places.len(), 6);
        for (place, pod) in places.iter().zip(&plan.pods) {
            assert_eq!(place["ip"].as_str(), Some(pod.address.to_string().as_str()));
            assert!(place.get("name").is_none() && place.get("namespace").is_none());
        }
        assert_eq!(inventory["cluster"]["service_cidrs"][0].as_str(), Some("10.100.0.0/16"));
        assert!(!inventory.contains_key("policy") && !inventory.contains_key("services"));
        assert!(inventory["eni"][0].get("pod_addresses").is_none());
        let Line { options } = Line::parse_from(["lab", "--pods", "0", "--spare-addresses", "3"]);
        let plan = Topology::plan("lab", &options);
        let inventory: toml::Table = toml::from_str(&text(&plan, &options).unwrap()).unwrap();
        assert_eq!(inventory["eni"][1]["pod_addresses"].as_array().unwrap().len(), 3);
    }
}
