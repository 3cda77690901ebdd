//! A directory of manifests as the cluster that it makes, with the place of every policy.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use sluice_kube::manifests::{
    Allocations, Directory, Finding, Key, Kind, NODE_PORTS, NodePlace, Placement, Severity,
};
use sluice_policy::{Change, End, EnforcingMode, Namespace, Node, Object, Phase, Pod, Settings, World};
use sluice_state::{MasqueradedNodeTraffic, OnPolicyChange, Policy};

/// The node of pods of which no manifest says where they run.
const NODE: &str = "node";

/// Pods that an error names.
const SHOWN: usize = 8;

/// How a directory is read.
#[derive(Debug, Clone, Args)]
pub struct Reading {
    /// Where pods get addresses from whose manifest gives none; matters to ipBlocks only
    #[arg(long, value_name = "CIDR", default_value = "10.0.0.0/16")]
    pub pod_cidr: Ipv4Net,
    /// What a pod may that no policy selects: everything, or nothing
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
}

/// `NETWORK_POLICY_ENFORCING_MODE` of the VPC CNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Mode {
    /// A pod that no policy selects may do everything
    #[default]
    Standard,
    /// A pod that no policy selects may do nothing
    Strict,
}

/// A policy and where it is written.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) policy: Box<NetworkPolicy>,
    pub(super) file: Option<Arc<Path>>,
    pub(super) line: usize,
}

/// What a directory comes to.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) policies: Vec<Placed>,
    /// What is wrong with the manifests themselves.
    pub(super) findings: Vec<Finding>,
    namespaces: Vec<Namespace>,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    mode: EnforcingMode,
}

/// Reads a directory.
///
/// # Errors
/// There is no such directory, or it says nothing at all.
pub(super) fn load(directory: &Path, reading: &Reading) -> Result<Cluster> {
    let meta = std::fs::metadata(directory);
    let meta = meta.with_context(|| format!("cannot read the manifests in {}", directory.display()))?;
    if !meta.is_dir() {
        bail!("{} is no directory: name the one that the manifests are in", directory.display());
    }
    let placement = Placement {
        node: NODE.into(),
        nodes: vec![NodePlace {
            name: NODE.into(),
            pod_cidr: Some(reading.pod_cidr),
            ..NodePlace::default()
        }],
        slots: None,
        // Which range the cluster has is not said in manifests, and no address of a service matters here.
        service_cidrs: vec![Ipv4Net::default()],
        node_ports: NODE_PORTS,
        // From the same range they could be given out twice: they get theirs when all others have one.
        elsewhere: None,
    };
    let mut source = Directory::new(PathBuf::from(directory), &placement, &Allocations::default());
    let batch = source.scan();
    let mut cluster = Cluster {
        policies: Vec::new(),
        findings: source.findings(),
        namespaces: Vec::new(),
        nodes: Vec::new(),
        pods: Vec::new(),
        mode: match reading.mode {
            Mode::Standard => EnforcingMode::Standard,
            Mode::Strict => EnforcingMode::Strict,
        },
    };
    for change in batch.changes {
        let Change::Upsert(object) = change else { continue };
        match object {
            Object::Namespace(namespace) => cluster.namespaces.push(namespace),
            Object::Node(node) => cluster.nodes.push(node),
            Object::Pod(pod) => cluster.pods.push(Arc::unwrap_or_clone(pod)),
            Object::NetworkPolicy(policy) => {
                let key = Key {
                    kind: Kind::NetworkPolicy,
                    namespace: policy.metadata.namespace.as_deref().unwrap_or("default").into(),
                    name: policy.metadata.name.as_deref().unwrap_or_default().into(),
                };
                let (file, line) = source.place(&key).unzip();
                cluster.policies.push(Placed { policy, file, line: line.unwrap_or(0) });
            }
            Object::Service(_) | Object::EndpointSlice(_) => {}
        }
    }
    if cluster.policies.is_empty() && cluster.pods.is_empty() && cluster.findings.is_empty() {
        bail!("{} has neither pods nor policies: are the manifests elsewhere?", directory.display());
    }
    cluster.place_the_rest(reading.pod_cidr);
    Ok(cluster)
}

impl Cluster {
    /// The namespaces.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter()
    }

    /// Every pod that has not ended, those on their node's network among them.
    pub(super) fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| !matches!(pod.phase, Phase::Succeeded | Phase::Failed))
    }

    /// Every pod with an address of its own.
    pub(super) fn pods(&self) -> impl Iterator<Item = (&Pod, Ipv4Addr)> {
        self.all_pods().filter(|pod| !pod.host_network).filter_map(|pod| pod.ip.map(|ip| (pod, ip)))
    }

    /// Every address of the cluster.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let nodes = self.nodes.iter().flat_map(|node| node.addresses.iter().copied());
        self.pods().map(|(_, ip)| ip).chain(nodes)
    }

    /// The policy of a node that has all pods of the cluster.
    pub(super) fn compile_together(&self) -> Policy {
        let pods = self.pods().map(|(pod, _)| Pod { node: Some(NODE.into()), ..pod.clone() });
        let mut world = self.world(NODE, pods);
        world.update();
        world.policy()
    }

    /// The compiler with everything, as the node of one of the pods sees it.
    pub(super) fn explain(&self) -> World {
        self.world(NODE, self.pods.iter().cloned())
    }

    /// The pods that may have been meant, for who named one that is not there.
    pub(super) fn known_pods(&self, ends: &[&End]) -> String {
        let named: BTreeSet<&str> = (ends.iter())
            .filter_map(|end| match end {
                End::Pod { namespace, .. } => Some(&**namespace),
                End::Address(_) | End::Node(_) => None,
            })
            .collect();
        let inside = |pod: &&Pod| named.contains(&*pod.namespace);
        let names: BTreeSet<String> =
            self.all_pods().filter(inside).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        if names.is_empty() {
            return String::new();
        }
        let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        format!("; there are {}{more}", shown.join(", "))
    }

    fn world(&self, node: &str, pods: impl Iterator<Item = Pod>) -> World {
        let mut world = World::new(Settings {
            node: node.into(),
            mode: self.mode,
            on_change: OnPolicyChange::default(),
            masqueraded_node_traffic: MasqueradedNodeTraffic::default(),
            service_cidrs: Vec::new(),
        });
        let objects = self
            .namespaces
            .iter()
            .cloned()
            .map(Object::Namespace)
            .chain(self.nodes.iter().cloned().map(Object::Node))
            .chain(pods.map(|pod| Object::Pod(pod.into())))
            .chain(self.policies.iter().map(|placed| Object::NetworkPolicy(placed.policy.clone())));
        for object in objects {
            // What is refused was refused when it was read, and is among the findings.
            let _ = world.apply(Change::Upsert(object));
        }
        world
    }

    /// Pods of other nodes may have come without an address. Any will do that is nobody's.
    fn place_the_rest(&mut self, cidr: Ipv4Net) {
        let taken: BTreeSet<Ipv4Addr> = self.addresses().collect();
        let mut free = cidr.hosts().filter(|ip| !taken.contains(ip));
        let mut without = 0;
        for pod in self.pods.iter_mut().filter(|pod| pod.ip.is_none() && !pod.host_network) {
            match free.next() {
                Some(ip) => pod.ip = Some(ip),
                None => without += 1,
            }
        }
        if without > 0 {
            self.findings.push(Finding::new(
                Severity::Error,
                format!("{without} pods have no address: {cidr} is too small, name a wider --pod-cidr"),
            ));
        }
    }
}
