//! What a state must fulfil before the engine sees it. Every finding names the field, the value and what would be valid.

use std::collections::HashMap;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Op, State, VERSION};

mod reach;

/// One thing that is wrong with a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: `{value}` {reason}")]
pub struct Invalid {
    /// Path of the field, `pod[3].eni`.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// Why it is refused and what would be valid.
    pub reason: String,
}

/// Why a state is refused. The last good one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The text does not parse: syntax, an unknown or duplicate key, a value of the wrong kind.
    #[error("the state does not parse: {0}")]
    Syntax(String),
    /// It parses but contradicts itself. All findings, not only the first.
    #[error("the state is refused, {} finding(s):\n  {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Invalid(Vec<Invalid>),
}

impl State {
    /// Checks everything that can be checked without the machine.
    ///
    /// # Errors
    /// [`StateError::Invalid`] with every finding.
    pub fn check(&self) -> Result<(), StateError> {
        let mut findings = Findings(Vec::new());
        self.check_node(&mut findings);
        reach::check_policy(&self.policy, &mut findings);
        reach::check_services(&self.services, &mut findings);
        if findings.0.is_empty() { Ok(()) } else { Err(StateError::Invalid(findings.0)) }
    }

    /// As [`State::check`], for a state that was right before these changes brought it here: only what they can have made
    /// wrong is looked at.
    pub(crate) fn check_after(&self, ops: &[Op]) -> Result<(), StateError> {
        let any = |which: fn(&Op) -> bool| ops.iter().any(which);
        if any(|op| matches!(op, Op::Replace(_))) {
            return self.check();
        }
        let mut findings = Findings(Vec::new());
        if any(Op::is_of_node) {
            self.check_node(&mut findings);
        }
        if any(|op| matches!(op, Op::Policy(_) | Op::Services(_))) {
            reach::check_policy(&self.policy, &mut findings);
            reach::check_services(&self.services, &mut findings);
        } else {
            reach::check_changes(&self.policy, &self.services, ops, &mut findings);
        }
        if findings.0.is_empty() { Ok(()) } else { Err(StateError::Invalid(findings.0)) }
    }

    /// Everything but policy and services.
    fn check_node(&self, findings: &mut Findings) {
        if self.version != VERSION {
            findings.add("version", self.version, format!("is not a version this build reads: {VERSION}"));
        }
        self.check_enis(findings);
        self.check_pods(findings);
        self.check_nat(findings);
        if self.snat_ports.set().is_empty() {
            let ranges = self.snat_ports.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            findings.add(
                "snat_ports",
                ranges,
                "leaves no port for SNAT: keep at least one outside `exclude`",
            );
        }
        if self.snat_ports.ranges.iter().any(|r| r.first < 1024) {
            findings.add(
                "snat_ports.ranges",
                "below 1024",
                "would take ports of the node's services: start at 1024",
            );
        }
        for (name, value) in self.timeouts.all() {
            if value.0 == 0 || value.0 > 10_000_000 {
                findings.add(format!("timeouts.{name}"), value.0, "is out of range: 1 to 10000000 seconds");
            }
        }
        if !(1024..=16_777_216).contains(&self.limits.flows) {
            findings.add("limits.flows", self.limits.flows, "is out of range: 1024 to 16777216");
        }
        if !(16..=1_048_576).contains(&self.limits.fragments) {
            findings.add("limits.fragments", self.limits.fragments, "is out of range: 16 to 1048576");
        }
    }

    fn check_enis(&self, findings: &mut Findings) {
        let mut names = HashMap::new();
        let mut addresses = HashMap::new();
        for (i, eni) in self.enis.iter().enumerate() {
            let field = |name: &str| format!("eni[{i}].{name}");
            interface_name(findings, field("name"), &eni.name);
            if let Some(other) = names.insert(&eni.name, i) {
                findings.add(
                    field("name"),
                    &eni.name,
                    format!("is also the name of eni[{other}]: names are unique"),
                );
            }
            if let Some(other) = addresses.insert(eni.address, i) {
                findings.add(field("address"), eni.address, format!("is also the address of eni[{other}]"));
            }
            for (name, address) in [("address", eni.address), ("gateway", eni.gateway)] {
                if !eni.subnet.contains(&address) {
                    findings.add(field(name), address, format!("is outside the ENI's subnet {}", eni.subnet));
                }
            }
            if eni.gateway == eni.address {
                findings.add(field("gateway"), eni.gateway, "is the ENI's own address");
            }
        }
        let primaries = self.enis.iter().filter(|e| e.primary).count();
        if !self.enis.is_empty() && primaries != 1 {
            findings.add("eni.primary", primaries, "ENIs are primary: exactly one must be");
        }
    }

    fn check_pods(&self, findings: &mut Findings) {
        let mut ips = HashMap::new();
        let mut interfaces = HashMap::new();
        for (i, pod) in self.pods.iter().enumerate() {
            let field = |name: &str| format!("pod[{i}].{name}");
            interface_name(findings, field("interface"), &pod.interface);
            if !self.enis.iter().any(|e| e.name == pod.eni) {
                let known = self.enis.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
                findings.add(field("eni"), &pod.eni, format!("is no ENI of this node: one of [{known}]"));
            }
            if let Some(other) = ips.insert(pod.ip, i) {
                findings.add(
                    field("ip"),
                    pod.ip,
                    format!("is also the address of pod[{other}]: addresses are unique"),
                );
            }
            if let Some(other) = interfaces.insert(&pod.interface, i) {
                findings.add(
                    field("interface"),
                    &pod.interface,
                    format!("is also the interface of pod[{other}]"),
                );
            }
            if self.enis.iter().any(|e| e.address == pod.ip) {
                findings.add(
                    field("ip"),
                    pod.ip,
                    "is an ENI's primary address: a pod has a secondary address",
                );
            }
            if self.enis.iter().any(|e| e.name == pod.interface) {
                findings.add(
                    field("interface"),
                    &pod.interface,
                    "is an ENI: name the host's end of the pod's veth",
                );
            }
            if pod.ip.is_unspecified()
                || pod.ip.is_loopback()
                || pod.ip.is_multicast()
                || pod.ip.is_broadcast()
            {
                findings.add(field("ip"), pod.ip, "is no unicast address");
            }
        }
    }

    fn check_nat(&self, findings: &mut Findings) {
        for (name, cidrs) in [("vpc_cidrs", &self.nat.vpc_cidrs), ("exclude_cidrs", &self.nat.exclude_cidrs)]
        {
            for (i, cidr) in cidrs.iter().enumerate() {
                if cidr.addr() != cidr.network() {
                    let reason = format!("has host bits set: write {}", cidr.trunc());
                    findings.add(format!("nat.{name}[{i}]"), cidr, reason);
                }
                if let Some(j) = cidrs[..i].iter().position(|other| overlap(cidr, other)) {
                    let reason = format!("overlaps nat.{name}[{j}] = {}: keep the wider one", cidrs[j]);
                    findings.add(format!("nat.{name}[{i}]"), cidr, reason);
                }
            }
        }
        if !self.enis.is_empty() && self.nat.vpc_cidrs.is_empty() && !self.nat.external_snat {
            findings.add(
                "nat.vpc_cidrs",
                "[]",
                "is empty: name the VPC's CIDRs, or set nat.external_snat = true",
            );
        }
    }
}

fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

/// Linux' rules for the name of an interface (`dev_valid_name`): 1 to 15 bytes, no slash, no white space, not a dot.
fn interface_name(findings: &mut Findings, field: String, name: &str) {
    let valid = (1..=15).contains(&name.len())
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        && name != "."
        && name != "..";
    if !valid {
        findings.add(field, name, "is no interface name: 1 to 15 bytes without slash, colon or white space");
    }
}

struct Findings(Vec<Invalid>);

impl Findings {
    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and literals as they stand")]
    fn add(&mut self, field: impl Into<String>, value: impl ToString, reason: impl Into<String>) {
        self.0.push(Invalid { field: field.into(), value: value.to_string(), reason: reason.into() });
    }
}
