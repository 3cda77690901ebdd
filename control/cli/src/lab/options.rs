//! What `sluice lab up` can be told, each with the name that the VPC CNI or the daemon's state gives it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sluice_state::{Nat, PortRange, Preset, RandomizeSnat, Seconds, SnatPorts, Timeouts};

/// What forwards the pods' packets on the lab's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dataplane {
    /// `sluiced`: AF_XDP, the trunk and the engine.
    Sluice,
    /// The kernel's forwarding, nothing translated.
    Kernel,
    /// The kernel with nftables' `masquerade` on the primary ENI.
    Nft,
    /// The kernel with the rules of VPC CNI, as `iptables-restore` takes them.
    Iptables,
    /// Nothing: the node does not forward; start a daemon yourself.
    None,
}

impl std::fmt::Display for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sluice => "sluice",
            Self::Kernel => "kernel",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::None => "none",
        })
    }
}

/// The name of a lab: prefix of its namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Name {
    /// Name of the lab: prefix of its network namespaces and of its directory in /run/sluice-lab
    #[arg(long, default_value = "sluice", value_name = "PREFIX", value_parser = name)]
    pub name: String,
}

/// How the lab is laid out and what its node is told.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Options {
    /// What forwards the pods' packets
    #[arg(long, value_enum, default_value_t = Dataplane::Sluice)]
    pub dataplane: Dataplane,
    /// Number of pods (0 to 250): pod-a and pod-b on eni0, pod-c and pod-d on eni1, further ones in turn
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=250))]
    pub pods: u16,
    /// Further addresses of each ENI (0 to 200), for pods that a CNI plugin adds: the agent of --manifests then answers
    /// `sluice-cni` at DIRECTORY/cni/agent.sock and writes its configuration to DIRECTORY/net.d
    #[arg(long, default_value_t = 0, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(0..=200))]
    #[serde(default)]
    pub spare_addresses: u16,
    /// Number of ENIs (1 to 8), eni0 is the primary one
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub enis: u16,
    /// MTU of ENIs and pods (576 to 9001)
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=9001))]
    pub mtu: u16,
    /// MTU of the ENIs, when it is not --mtu
    #[arg(long, value_parser = clap::value_parser!(u16).range(576..=9001))]
    pub eni_mtu: Option<u16>,
    /// MTU of the pods, when it is not --mtu (VPC CNI: POD_MTU)
    #[arg(long, value_parser = clap::value_parser!(u16).range(576..=9001))]
    pub pod_mtu: Option<u16>,
    /// MTU of the way to host-y, for path MTU discovery
    #[arg(long, default_value_t = 1400, value_parser = clap::value_parser!(u16).range(576..=9001))]
    pub path_mtu: u16,
    /// Receive and transmit queues of each ENI (1 to 64)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,
    /// Nothing is translated (VPC CNI: AWS_VPC_K8S_CNI_EXTERNALSNAT=true)
    #[arg(long)]
    pub external_snat: bool,
    /// Further destinations that are not translated, by commas (VPC CNI: AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS)
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub exclude_snat_cidrs: Vec<Ipv4Net>,
    /// How a source port is chosen: prng, hashrandom or none (VPC CNI: AWS_VPC_K8S_CNI_RANDOMIZESNAT)
    #[arg(long, default_value = "prng", value_parser = randomize)]
    pub randomize_snat: RandomizeSnat,
    /// Timeouts: a preset (linux, rfc) and values, as in rfc,udp_one_way=5,tcp_established=600
    #[arg(long, default_value = "linux", value_name = "PRESET|NAME=SECONDS,...", value_parser = timeouts)]
    pub timeouts: Timeouts,
    /// The ports that Sluice may use as a source, by commas; a range with ! is taken out, as in 1024-29999,!8080
    #[arg(long, value_name = "RANGE,...", value_parser = snat_ports)]
    pub snat_ports: Option<SnatPorts>,
    /// The daemon's binary [default: `sluiced` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    pub sluiced: Option<PathBuf>,
    /// A further argument for `sluiced run`, may be repeated, as in --sluiced-arg=--eni-port=tap
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub sluiced_arg: Vec<String>,
    /// A directory of Kubernetes manifests: an agent follows it and tells the daemon, whose pods are the manifests' own
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// The agent's binary [default: `sluice-agent` beside this program, then in PATH]
    #[arg(long, value_name = "PATH")]
    pub agent: Option<PathBuf>,
    /// A further argument for `sluice-agent`, may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub agent_arg: Vec<String>,
}

impl Options {
    /// MTU of the ENIs in bytes.
    #[must_use]
    pub fn eni_mtu(&self) -> u16 {
        self.eni_mtu.unwrap_or(self.mtu)
    }

    /// MTU of the pods in bytes.
    #[must_use]
    pub fn pod_mtu(&self) -> u16 {
        self.pod_mtu.unwrap_or(self.mtu)
    }

    /// The state's part on translation.
    #[must_use]
    pub fn nat(&self) -> Nat {
        Nat {
            vpc_cidrs: vpc_cidrs(),
            external_snat: self.external_snat,
            exclude_cidrs: self.exclude_snat_cidrs.iter().map(Ipv4Net::trunc).collect(),
            randomize: self.randomize_snat,
        }
    }
}

/// The CIDRs of the lab's VPC.
#[must_use]
pub(crate) fn vpc_cidrs() -> Vec<Ipv4Net> {
    [Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(100, 64, 0, 0)]
        .into_iter()
        .map(|base| Ipv4Net::new_assert(base, 16))
        .collect()
}

/// Checks a lab's name: `PREFIX-host-v` stays readable, and a name is a file's name.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let valid = (1..=32).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    valid.then(|| text.to_owned()).ok_or_else(|| {
        "a lab's name is 1 to 32 of a-z, A-Z, 0-9, - and _, and begins with none of the last two".into()
    })
}

fn randomize(text: &str) -> Result<RandomizeSnat, String> {
    match text {
        "prng" => Ok(RandomizeSnat::Prng),
        "hashrandom" => Ok(RandomizeSnat::HashRandom),
        "none" => Ok(RandomizeSnat::None),
        _ => Err("one of prng, hashrandom, none".into()),
    }
}

/// Parses through the state's own TOML form, so that a name or value the daemon refuses is refused here.
fn timeouts(text: &str) -> Result<Timeouts, String> {
    let mut table = toml::Table::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            None => {
                part.parse::<Preset>()?;
                table.insert("preset".into(), part.into());
            }
            Some((key, value)) => {
                let seconds = value.trim().trim_end_matches('s').parse::<u32>();
                let seconds = seconds.map_err(|_| format!("`{value}` is not a number of seconds"))?;
                table.insert(key.trim().into(), i64::from(Seconds(seconds).0).into());
            }
        }
    }
    table.try_into().map_err(|e: toml::de::Error| e.message().to_owned())
}

fn snat_ports(text: &str) -> Result<SnatPorts, String> {
    let mut ports = SnatPorts { ranges: Vec::new(), exclude: Vec::new() };
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.strip_prefix('!') {
            Some(range) => ports.exclude.push(range.parse::<PortRange>()?),
            None => ports.ranges.push(part.parse::<PortRange>()?),
        }
    }
    if ports.ranges.is_empty() {
        ports.ranges = SnatPorts::default().ranges;
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_take_a_preset_and_values_and_refuse_unknown_names() {
        let parsed = timeouts("rfc,udp_one_way=5,tcp_established=600s").unwrap();
        assert_eq!(parsed.preset, Preset::Rfc);
        assert_eq!((parsed.udp_one_way(), parsed.tcp_established()), (Seconds(5), Seconds(600)));
        assert!(timeouts("udp_oneway=5").unwrap_err().contains("udp_oneway"));
        assert!(timeouts("solaris").unwrap_err().contains("solaris"));
        assert!(timeouts("icmp=soon").unwrap_err().contains("soon"));
    }

    #[test]
    fn port_ranges_may_be_taken_out_of_the_default() {
        let ports = snat_ports("!8080,!9000-9010").unwrap();
        assert!(!ports.set().contains(8080) && !ports.set().contains(9005) && ports.set().contains(8081));
        assert_eq!(snat_ports("2000-2003").unwrap().set().len(), 4);
        assert!(snat_ports("5-1").is_err());
    }

    #[test]
    fn a_labs_name_cannot_leave_its_directory() {
        assert!(name("sluice").is_ok() && name("slt12x").is_ok());
        for bad in ["", "-x", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
