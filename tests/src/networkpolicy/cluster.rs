//! The objects of a cluster as a case gives them, and what changes them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Deserializer};
use sluice_state::Protocol;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A namespace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, exactly these: nothing is added.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: Labels,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether the engine under test runs on it; exactly one is local.
    pub local: bool,
}

/// Phase of a pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Phase {
    /// Accepted, not yet running.
    Pending,
    /// Running.
    #[default]
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
}

impl Phase {
    /// A pod that has ended owns no address any more.
    #[must_use]
    pub const fn finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A port that a container of a pod declares.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPort {
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its protocol.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: Labels,
    /// Its address; absent for one that has none yet and for one on the host's network.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// The node that it runs on.
    pub node: String,
    /// Whether it lives in its node's network namespace.
    #[serde(default, rename = "hostNetwork")]
    pub host_network: bool,
    /// Phase of its life.
    #[serde(default)]
    pub phase: Phase,
    /// The ports of all its containers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<ContainerPort>,
}

/// One end of a probe, as a case writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Endpoint {
    /// `pod:NAMESPACE/NAME`.
    Pod(String, String),
    /// `ip:A.B.C.D`.
    Ip(Ipv4Addr),
    /// `node:NAME`: a process in the node's network namespace.
    Node(String),
}

/// One new connection, or its first datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Who opens it.
    pub from: Endpoint,
    /// To whom.
    pub to: Endpoint,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its destination port.
    pub port: u16,
}

/// One change to a cluster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mutation {
    /// Creates a policy or replaces the one of its namespace and name.
    ApplyPolicy {
        /// The policy.
        #[serde(deserialize_with = "super::case::policy")]
        policy: Box<NetworkPolicy>,
    },
    /// Deletes a policy.
    DeletePolicy {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Creates a namespace.
    CreateNamespace {
        /// Its name.
        namespace: String,
        /// Its labels.
        #[serde(default, deserialize_with = "null_is_default")]
        labels: Labels,
    },
    /// Deletes a namespace with its pods and policies.
    DeleteNamespace {
        /// Its name.
        namespace: String,
    },
    /// Replaces the labels of a namespace.
    SetNamespaceLabels {
        /// Its name.
        namespace: String,
        /// The labels.
        #[serde(default, deserialize_with = "null_is_default")]
        labels: Labels,
    },
    /// Creates a pod.
    CreatePod {
        /// The pod.
        pod: Pod,
    },
    /// Deletes a pod.
    DeletePod {
        /// `namespace/name`.
        pod: String,
    },
    /// Replaces the labels of a pod.
    SetPodLabels {
        /// `namespace/name`.
        pod: String,
        /// The labels.
        #[serde(default, deserialize_with = "null_is_default")]
        labels: Labels,
    },
    /// Gives a pod another address, or none.
    SetPodIp {
        /// `namespace/name`.
        pod: String,
        /// The address.
        ip: Option<Ipv4Addr>,
    },
    /// Moves a pod to another phase of its life.
    SetPodPhase {
        /// `namespace/name`.
        pod: String,
        /// The phase.
        phase: Phase,
    },
}

/// The objects of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cluster {
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Its pods, the oldest first.
    pub pods: Vec<Pod>,
    /// Its policies.
    pub policies: Vec<NetworkPolicy>,
}

/// An end of a probe, found in a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Party<'c> {
    /// The pod that it is; none for a pod on the host's network, which policies do not know.
    pub pod: Option<&'c Pod>,
    /// The node in whose network namespace it is; none for a pod of its own network and for what is outside.
    pub node: Option<&'c Node>,
    /// Its address; none for a pod that has none yet.
    pub ip: Option<Ipv4Addr>,
}

/// A case asks for what the cluster does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplayable(pub String);

impl std::error::Error for Unplayable {}

impl fmt::Display for Unplayable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Cluster {
    /// Changes the cluster.
    ///
    /// # Errors
    /// The object that the mutation names is not there, or one to be created is.
    pub fn apply(&mut self, mutation: &Mutation) -> Result<(), Unplayable> {
        match mutation {
            Mutation::ApplyPolicy { policy } => {
                match self.policies.iter_mut().find(|p| key(p) == key(policy)) {
                    Some(slot) => slot.clone_from(policy),
                    None => self.policies.push((**policy).clone()),
                }
            }
            Mutation::DeletePolicy { namespace, name } => {
                let at = self.policies.iter().position(|p| key(p) == (namespace, name));
                let at = at.ok_or_else(|| Unplayable(format!("there is no policy {namespace}/{name}")))?;
                self.policies.remove(at);
            }
            Mutation::CreateNamespace { namespace, labels } => {
                if self.namespace(namespace).is_some() {
                    return Err(Unplayable(format!("there is a namespace {namespace} already")));
                }
                self.namespaces.push(Namespace { name: namespace.clone(), labels: labels.clone() });
            }
            Mutation::DeleteNamespace { namespace } => {
                let at = self.namespaces.iter().position(|n| n.name == *namespace);
                let at = at.ok_or_else(|| Unplayable(format!("there is no namespace {namespace}")))?;
                self.namespaces.remove(at);
                self.pods.retain(|p| p.namespace != *namespace);
                self.policies.retain(|p| key(p).0 != namespace);
            }
            Mutation::SetNamespaceLabels { namespace, labels } => {
                let found = self.namespaces.iter_mut().find(|n| n.name == *namespace);
                let found = found.ok_or_else(|| Unplayable(format!("there is no namespace {namespace}")))?;
                found.labels.clone_from(labels);
            }
            Mutation::CreatePod { pod } => {
                if self.position(&format!("{}/{}", pod.namespace, pod.name)).is_ok() {
                    return Err(Unplayable(format!("there is a pod {}/{} already", pod.namespace, pod.name)));
                }
                self.pods.push(pod.clone());
            }
            Mutation::DeletePod { pod } => {
                let at = self.position(pod)?;
                self.pods.remove(at);
            }
            Mutation::SetPodLabels { pod, labels } => {
                let at = self.position(pod)?;
                self.pods[at].labels.clone_from(labels);
            }
            Mutation::SetPodIp { pod, ip } => {
                let at = self.position(pod)?;
                self.pods[at].ip = *ip;
            }
            Mutation::SetPodPhase { pod, phase } => {
                let at = self.position(pod)?;
                self.pods[at].phase = *phase;
            }
        }
        Ok(())
    }

    /// Finds an end of a probe. The address of a live pod is that pod, the newest running one if there are two.
    ///
    /// # Errors
    /// There is no such pod or node, or the pod has ended.
    pub fn party(&self, endpoint: &Endpoint) -> Result<Party<'_>, Unplayable> {
        match endpoint {
            Endpoint::Pod(namespace, name) => {
                let pod = &self.pods[self.position(&format!("{namespace}/{name}"))?];
                if pod.phase.finished() {
                    return Err(Unplayable(format!("{endpoint} has ended: it owns no address")));
                }
                self.of_pod(pod)
            }
            Endpoint::Node(name) => {
                let node = self.node(name)?;
                Ok(Party { pod: None, node: Some(node), ip: Some(node.ip) })
            }
            Endpoint::Ip(ip) => {
                let claims = self.pods.iter().enumerate().filter(|(_, p)| p.live_ip() == Some(*ip));
                let owner = claims.max_by_key(|(age, p)| (p.phase == Phase::Running, *age)).map(|(_, p)| p);
                match owner {
                    Some(pod) => self.of_pod(pod),
                    None => {
                        Ok(Party { pod: None, node: self.nodes.iter().find(|n| n.ip == *ip), ip: Some(*ip) })
                    }
                }
            }
        }
    }

    /// The node on which the engine runs.
    #[must_use]
    pub fn local_node(&self) -> Option<&Node> {
        self.nodes.iter().find(|n| n.local)
    }

    /// A namespace by its name.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.iter().find(|n| n.name == name)
    }

    fn of_pod<'c>(&'c self, pod: &'c Pod) -> Result<Party<'c>, Unplayable> {
        if pod.host_network {
            let node = self.node(&pod.node)?;
            return Ok(Party { pod: None, node: Some(node), ip: Some(node.ip) });
        }
        Ok(Party { pod: Some(pod), node: None, ip: pod.ip })
    }

    fn node(&self, name: &str) -> Result<&Node, Unplayable> {
        let found = self.nodes.iter().find(|n| n.name == name);
        found.ok_or_else(|| Unplayable(format!("there is no node {name}")))
    }

    fn position(&self, pod: &str) -> Result<usize, Unplayable> {
        let wanted = pod.split_once('/');
        let found = self.pods.iter().position(|p| wanted == Some((&p.namespace, &p.name)));
        found.ok_or_else(|| Unplayable(format!("there is no pod `{pod}` (namespace/name)")))
    }
}

impl Pod {
    /// Its own address, while it owns it.
    #[must_use]
    pub fn live_ip(&self) -> Option<Ipv4Addr> {
        self.ip.filter(|_| !self.host_network && !self.phase.finished())
    }
}

/// Namespace and name of a policy.
pub(crate) fn key(policy: &NetworkPolicy) -> (&str, &str) {
    let meta = &policy.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn tcp() -> Protocol {
    Protocol::Tcp
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(de: D) -> Result<T, D::Error> {
    Option::deserialize(de).map(Option::unwrap_or_default)
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no endpoint: pod:NAMESPACE/NAME, ip:A.B.C.D (IPv4 only) or node:NAME");
        match text.split_once(':').ok_or_else(wrong)? {
            ("pod", pod) => match pod.split_once('/') {
                Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                    Ok(Self::Pod(namespace.to_owned(), name.to_owned()))
                }
                _ => Err(wrong()),
            },
            ("ip", ip) => ip.parse().map(Self::Ip).map_err(|_| wrong()),
            ("node", name) if !name.is_empty() => Ok(Self::Node(name.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(namespace, name) => write!(f, "pod:{namespace}/{name}"),
            Self::Ip(ip) => write!(f, "ip:{ip}"),
            Self::Node(name) => write!(f, "node:{name}"),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}/{}", self.from, self.to, self.port, self.protocol)
    }
}
