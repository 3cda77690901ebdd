//! The lab that the harness runs in: brought up and down by the `sluice` command, never built here.
//!
//! The command's JSON is read for names and addresses only, so a lab may grow without this having to follow.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What forwards the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dataplane {
    /// The kernel's forwarding, nothing translated.
    Kernel,
    /// nftables' `masquerade`.
    Nft,
    /// The rules that VPC CNI leaves, in iptables.
    Iptables,
    /// Sluice.
    Sluice,
}

impl Dataplane {
    /// Its name on the command line of `sluice lab`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Sluice => "sluice",
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forwarding, no NAT",
            Self::Nft => "nft masquerade",
            Self::Iptables => "VPC-CNI-shaped iptables",
            Self::Sluice => "Sluice",
        }
    }

    /// Whether a packet to an outside host leaves with the node's address.
    #[must_use]
    pub fn translates(self) -> bool {
        self != Self::Kernel
    }
}

/// Who is where, as `sluice lab status --output json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Topology {
    /// The node.
    pub node: Node,
    /// The far end of the ENIs.
    pub fabric: Fabric,
    /// The pods.
    pub pods: Vec<Pod>,
    /// Hosts beyond the fabric.
    pub hosts: Vec<Host>,
    processes: Vec<Process>,
}

/// The node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// Its namespace.
    pub namespace: String,
    /// Its ENIs.
    pub enis: Vec<Eni>,
    /// The node's end of each pod's veth, by the pod's name.
    pub pod_interfaces: BTreeMap<String, Interface>,
}

/// The fabric.
#[derive(Debug, Clone, Deserialize)]
pub struct Fabric {
    /// Its namespace.
    pub namespace: String,
}

/// An interface.
#[derive(Debug, Clone, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// An ENI; its interface has one name at both ends.
#[derive(Debug, Clone, Deserialize)]
pub struct Eni {
    /// Name of the interface.
    pub name: String,
    /// The primary one.
    pub primary: bool,
    /// Primary address.
    pub address: Ipv4Addr,
    /// Ethernet address of the node's end.
    pub mac: Mac,
    /// Ethernet address of the fabric's end.
    pub gateway_mac: Mac,
}

/// A pod; its own interface is `eth0`.
#[derive(Debug, Clone, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The ENI that owns the address.
    pub eni: String,
    /// Ethernet address of its own end.
    pub mac: Mac,
    /// Ethernet address of the node's end.
    pub gateway_mac: Mac,
}

/// A host.
#[derive(Debug, Clone, Deserialize)]
pub struct Host {
    /// What it stands for.
    pub role: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

#[derive(Debug, Clone, Deserialize)]
struct Process {
    name: String,
    pid: u32,
}

/// An Ethernet address.
pub type Mac = sluice_state::Mac;

impl Topology {
    /// Name of the node's end of a pod's veth.
    #[must_use]
    pub fn host_interface(&self, pod: &Pod) -> Option<&str> {
        self.node.pod_interfaces.values().find(|i| i.mac == pod.gateway_mac).map(|i| i.name.as_str())
    }
}

/// A lab that is up. It goes down when this is dropped.
#[derive(Debug)]
pub struct Lab {
    command: PathBuf,
    name: String,
    arguments: Vec<String>,
    /// Who is where.
    pub topology: Topology,
    /// What forwards at the moment.
    pub dataplane: Dataplane,
}

/// The `sluice` command: the one given, or the one beside this program, or the first in PATH.
#[must_use]
pub fn sluice_command(given: Option<&Path>) -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("sluice")).filter(|p| p.is_file());
    given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| "sluice".into())
}

impl Lab {
    /// Brings a lab up.
    ///
    /// # Errors
    /// The command fails; its own words are in the error.
    pub fn up(command: &Path, name: &str, dataplane: Dataplane, arguments: &[String]) -> Result<Self> {
        let topology = up(command, name, dataplane, arguments)?;
        Ok(Self {
            command: command.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_vec(),
            topology,
            dataplane,
        })
    }

    /// Puts another dataplane in force.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn switch(&mut self, dataplane: Dataplane) -> Result<()> {
        if dataplane != self.dataplane {
            down(&self.command, &self.name)?;
            self.topology = up(&self.command, &self.name, dataplane, &self.arguments)?;
            self.dataplane = dataplane;
        }
        Ok(())
    }

    /// The user-space dataplane's processes, if there are any.
    #[must_use]
    pub fn daemons(&self) -> Vec<u32> {
        self.topology.processes.iter().filter(|p| p.name == "sluiced").map(|p| p.pid).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(e) = down(&self.command, &self.name) {
            eprintln!("the lab `{}` may not be gone: {e:#}", self.name);
        }
    }
}

fn up(command: &Path, name: &str, dataplane: Dataplane, arguments: &[String]) -> Result<Topology> {
    let mut line = vec!["lab", "up", "--name", name, "--dataplane", dataplane.name()];
    line.extend(arguments.iter().map(String::as_str));
    run(command, &line)?;
    status(command, name).inspect_err(|_| {
        down(command, name).ok();
    })
}

fn status(command: &Path, name: &str) -> Result<Topology> {
    let text = run(command, &["lab", "status", "--name", name, "--output", "json"])?;
    // By way of a value, which is lenient about a name that is given twice.
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("`sluice lab status --output json` gave no JSON: {text}"))?;
    serde_json::from_value(value)
        .with_context(|| format!("`sluice lab status --output json` lacks a name or an address: {text}"))
}

fn down(command: &Path, name: &str) -> Result<()> {
    run(command, &["lab", "down", "--name", name]).map(drop)
}

fn run(command: &Path, line: &[&str]) -> Result<String> {
    let shown = || format!("`{} {}`", command.display(), line.join(" "));
    // An agent in the lab gives freed addresses out again at once: a bench adds and deletes pods all the time.
    let output =
        Command::new(command).args(line).env("IP_COOLDOWN_PERIOD", "0").output().with_context(|| {
            format!("cannot run {}: build it (`cargo build -p sluice`) or name it by --sluice", shown())
        })?;
    if !output.status.success() {
        bail!("{} failed ({}):\n{}", shown(), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
