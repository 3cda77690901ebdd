//! What EC2, IMDS and CNI ADD would tell of this node, from a file: its ENIs, what is translated, the places for pods, and
//! the cluster around it.
//!
//! The file is a state as the daemon takes it (`docs/state.md`) without policy and services, and a `[cluster]` table. A
//! `[[pod]]` is a place: with `namespace` and `name` it is kept for that pod, without them any pod may take it. An ENI's
//! `pod_addresses` go to pods that a container runtime adds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::Deserialize;
use sluice_kube::manifests::{NodePlace, Placement, Slot};
use sluice_state::{Invalid, Pod, Policy, PortRange, Services, State, StateError};

/// The range of cluster IPs where the inventory names none, one of the two that EKS gives a cluster.
const SERVICE_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 20, 0, 0), 16);

/// An inventory.
#[derive(Debug, Clone, PartialEq)]
pub struct Inventory {
    /// The state without pods, policy and services.
    pub state: State,
    /// The places for pods.
    pub places: Vec<Pod>,
    /// Addresses for pods that a container runtime adds, by the ENI that has them.
    pub addresses: BTreeMap<String, PodAddresses>,
    /// The cluster around the node.
    pub cluster: Cluster,
}

/// An ENI's addresses for pods, as EC2 gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodAddresses {
    /// Secondary addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Delegated prefixes, /28.
    pub prefixes: Vec<Ipv4Net>,
}

/// The cluster around the node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The ranges of cluster IPs; given out from the first.
    pub service_cidrs: Vec<Ipv4Net>,
    /// The range of node ports.
    pub node_ports: PortRange,
    /// This node's zone.
    pub zone: Option<String>,
    /// This node's labels.
    pub labels: BTreeMap<String, String>,
    /// This node's addresses; absent: the primary ENI's.
    pub addresses: Vec<Ipv4Addr>,
    /// The other nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<OtherNode>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            service_cidrs: vec![SERVICE_CIDR],
            node_ports: PortRange { first: 30_000, last: 32_767 },
            zone: None,
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherNode {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its pods' addresses come from.
    pub pod_cidr: Option<Ipv4Net>,
}

/// Why an inventory is refused.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is no TOML, or a key is unknown or of the wrong kind.
    #[error("{} does not parse: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// It contradicts itself.
    #[error("{} is refused, {} finding(s):\n  {}", path.display(), findings.len(), list(findings))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All findings.
        findings: Vec<Invalid>,
    },
}

impl InventoryError {
    /// What is wrong with the inventory of a file.
    pub(crate) fn of(path: &Path, error: StateError) -> Self {
        let path = path.to_owned();
        match error {
            StateError::Invalid(findings) => Self::Invalid { path, findings },
            other => Self::Syntax { path, reason: other.to_string() },
        }
    }
}

fn list(findings: &[Invalid]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

impl Inventory {
    /// Reads an inventory.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be; all findings, not only the first.
    pub fn from_file(path: &Path) -> Result<Self, InventoryError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| InventoryError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|error| InventoryError::of(path, error))
    }

    /// Reads an inventory from TOML text.
    ///
    /// # Errors
    /// As [`Inventory::from_file`].
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let syntax = |e: toml::de::Error| StateError::Syntax(e.to_string());
        let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let cluster: Cluster = match table.remove("cluster") {
            Some(cluster) => cluster
                .try_into()
                .map_err(|e: toml::de::Error| StateError::Syntax(format!("[cluster]: {}", e.message())))?,
            None => Cluster::default(),
        };
        let addresses = pod_addresses(&mut table)?;
        for pod in table.get_mut("pod").and_then(toml::Value::as_array_mut).into_iter().flatten() {
            if let Some(pod) = pod.as_table_mut() {
                for key in ["namespace", "name"] {
                    pod.entry(key).or_insert_with(|| String::new().into());
                }
            }
        }
        let mut state: State =
            table.try_into().map_err(|e: toml::de::Error| StateError::Syntax(e.to_string()))?;
        let mut findings = Vec::new();
        if state.policy != Policy::default() || state.services != Services::default() {
            findings.push(invalid(
                "policy, services",
                "",
                "come from the manifests and the command line: leave them out",
            ));
        }
        state.policy = Policy::default();
        state.services = Services { cidrs: cluster.service_cidrs.clone(), ..Services::default() };
        match state.check() {
            Err(StateError::Invalid(found)) => findings.extend(found),
            other => other?,
        }
        check(&state, &cluster, &mut findings);
        check_addresses(&state, &addresses, &mut findings);
        if !findings.is_empty() {
            return Err(StateError::Invalid(findings));
        }
        let places = std::mem::take(&mut state.pods);
        state.services = Services::default();
        let addresses = addresses.into_iter().map(|(eni, list)| (eni, of_list(&list))).collect();
        Ok(Self { state, places, addresses, cluster })
    }

    /// Where pods and services go.
    #[must_use]
    pub fn placement(&self) -> Placement {
        let cluster = &self.cluster;
        let own = self.state.primary_eni().map(|eni| eni.address);
        let addresses =
            if cluster.addresses.is_empty() { own.into_iter().collect() } else { cluster.addresses.clone() };
        let here = NodePlace {
            name: self.state.node.name.clone(),
            addresses,
            zone: cluster.zone.clone(),
            labels: cluster.labels.clone(),
            pod_cidr: None,
        };
        let others = cluster.nodes.iter().map(|node| NodePlace {
            name: node.name.clone(),
            addresses: node.address.into_iter().collect(),
            zone: node.zone.clone(),
            labels: node.labels.clone(),
            pod_cidr: node.pod_cidr,
        });
        let slots = self.places.iter().map(|pod| Slot {
            ip: pod.ip,
            pod: (!pod.name.is_empty()).then(|| (pod.namespace.clone(), pod.name.clone())),
        });
        Placement {
            node: self.state.node.name.clone(),
            nodes: std::iter::once(here).chain(others).collect(),
            slots: Some(slots.collect()),
            service_cidrs: cluster.service_cidrs.clone(),
            node_ports: cluster.node_ports.first..=cluster.node_ports.last,
            elsewhere: None,
        }
    }
}

fn invalid(field: impl Into<String>, value: impl std::fmt::Display, reason: impl Into<String>) -> Invalid {
    Invalid { field: field.into(), value: value.to_string(), reason: reason.into() }
}

fn check(state: &State, cluster: &Cluster, findings: &mut Vec<Invalid>) {
    if state.node.name.is_empty() {
        let reason = "is no name: say which node of the manifests this is";
        findings.push(invalid("node.name", "", reason));
    }
    let mut pods = BTreeMap::new();
    for (i, pod) in state.pods.iter().enumerate() {
        if pod.name.is_empty() != pod.namespace.is_empty() {
            let reason = "give both namespace and name to keep a place for a pod, or none for a free one";
            findings.push(invalid(format!("pod[{i}]"), format!("{}/{}", pod.namespace, pod.name), reason));
        } else if !pod.name.is_empty()
            && let Some(other) = pods.insert((&pod.namespace, &pod.name), i)
        {
            let name = format!("{}/{}", pod.namespace, pod.name);
            findings.push(invalid(format!("pod[{i}]"), name, format!("has a place already: pod[{other}]")));
        }
    }
    if cluster.service_cidrs.is_empty() {
        findings.push(invalid(
            "cluster.service_cidrs",
            "[]",
            "gives services no addresses: name a range, or leave it out",
        ));
    }
    let mut names = BTreeSet::from([&state.node.name]);
    for (i, node) in cluster.nodes.iter().enumerate() {
        if node.name.is_empty() || !names.insert(&node.name) {
            let reason = "is no name, or another node's: names are unique, this node's is `node.name`";
            findings.push(invalid(format!("cluster.node[{i}].name"), &node.name, reason));
        }
        let Some(cidr) = node.pod_cidr else { continue };
        let field = || format!("cluster.node[{i}].pod_cidr");
        if cidr.addr() != cidr.network() {
            findings.push(invalid(field(), cidr, format!("has host bits set: write {}", cidr.trunc())));
        }
        let rival =
            cluster.nodes[..i].iter().filter_map(|other| other.pod_cidr).find(|other| overlap(other, &cidr));
        if let Some(rival) = rival {
            findings.push(invalid(field(), cidr, format!("overlaps another node's {rival}")));
        }
        if let Some(pod) = state.pods.iter().find(|pod| cidr.contains(&pod.ip)) {
            findings.push(invalid(field(), cidr, format!("holds {}, a pod's address on this node", pod.ip)));
        }
    }
}

/// Takes `pod_addresses` out of every ENI's table.
fn pod_addresses(table: &mut toml::Table) -> Result<BTreeMap<String, Vec<Ipv4Net>>, StateError> {
    let mut all = BTreeMap::new();
    for eni in table.get_mut("eni").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        let Some(eni) = eni.as_table_mut() else { continue };
        let Some(value) = eni.remove("pod_addresses") else { continue };
        let name = eni.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
        let wrong = |text: &str| {
            StateError::Syntax(format!(
                "eni {name}: pod_addresses: `{text}` is neither an address nor a prefix: as in \
                 [\"10.0.9.20\", \"10.0.9.64/28\"]"
            ))
        };
        let list = value.as_array().ok_or_else(|| wrong(&value.to_string()))?;
        let parse = |item: &toml::Value| {
            let text = item.as_str().ok_or_else(|| wrong(&item.to_string()))?;
            let address = text.parse::<Ipv4Addr>().map(Ipv4Net::from);
            address.or_else(|_| text.parse::<Ipv4Net>()).map_err(|_| wrong(text))
        };
        all.insert(name.clone(), list.iter().map(parse).collect::<Result<_, _>>()?);
    }
    Ok(all)
}

fn of_list(list: &[Ipv4Net]) -> PodAddresses {
    let (singles, prefixes): (Vec<Ipv4Net>, Vec<Ipv4Net>) =
        list.iter().partition(|net| net.prefix_len() == 32);
    PodAddresses { addresses: singles.iter().map(Ipv4Net::addr).collect(), prefixes }
}

fn check_addresses(state: &State, addresses: &BTreeMap<String, Vec<Ipv4Net>>, findings: &mut Vec<Invalid>) {
    let mut seen: Vec<Ipv4Net> = state.pods.iter().map(|pod| pod.ip.into()).collect();
    seen.extend(state.enis.iter().map(|eni| Ipv4Net::from(eni.address)));
    for (eni, list) in addresses {
        for net in list {
            let field = format!("eni {eni}.pod_addresses");
            if !matches!(net.prefix_len(), 28 | 32) {
                let reason = "is no prefix that EC2 delegates: a /28, or single addresses";
                findings.push(invalid(field, net, reason));
            } else if net.addr() != net.network() {
                findings.push(invalid(field, net, format!("has host bits set: write {}", net.trunc())));
            } else if let Some(other) = seen.iter().find(|other| overlap(other, net)) {
                let reason = format!("overlaps {other}, which an ENI, a [[pod]] or another entry has");
                findings.push(invalid(field, net, reason));
            } else {
                seen.push(*net);
            }
        }
    }
}

fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}
