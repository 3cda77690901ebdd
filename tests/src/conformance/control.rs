//! One node's control plane around a case's cluster: what changes goes into the real compiler object by object, and what
//! it says comes back as generations of the state, with the node's own pods as an agent would add them.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sluice_policy::{Change, EnforcingMode, Kind, Object, ObjectId, Refusal, Settings, World};
use sluice_state::{Eni, Generation, Mac, MasqueradedNodeTraffic, Nat, OnPolicyChange, Op, State};

use super::objects;
use crate::networkpolicy::{Cluster, Phase, Pod, key};

/// How changes become generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All of them one.
    AtOnce,
    /// Each one of its own.
    OneByOne,
}

/// The control plane of one node.
pub struct Control {
    world: World,
    state: State,
    node: String,
    cluster: Cluster,
    generation: u64,
    /// The number of each pod of the cluster, in order of creation.
    born: HashMap<(String, String), u32>,
    births: u32,
}

impl Control {
    /// An empty cluster, seen from the node of this name and address.
    ///
    /// # Errors
    /// The state refuses the address.
    pub fn new(node: &str, address: Ipv4Addr) -> Result<Self, String> {
        let settings = Settings {
            node: node.into(),
            mode: EnforcingMode::Standard,
            on_change: OnPolicyChange::Recheck,
            masqueraded_node_traffic: MasqueradedNodeTraffic::Allow,
            service_cidrs: Vec::new(),
        };
        let state = State {
            enis: vec![eni(address)?],
            // Translation is not what is tested: it would only keep a protocol without it from leaving.
            nat: Nat { external_snat: true, ..Nat::default() },
            ..State::default()
        };
        state.check().map_err(|e| e.to_string())?;
        Ok(Self {
            world: World::new(settings),
            state,
            node: node.to_owned(),
            cluster: Cluster::default(),
            generation: 0,
            born: HashMap::new(),
            births: 0,
        })
    }

    /// Brings what differs from the cluster in force into force; `published` is told every state on the way.
    ///
    /// # Errors
    /// The product refuses an object or what it compiled itself, or `published` fails.
    pub fn follow(
        &mut self,
        cluster: &Cluster,
        pace: Pace,
        mut published: impl FnMut(&State) -> Result<(), String>,
    ) -> Result<(), String> {
        let changes = self.changes(cluster)?;
        self.cluster = cluster.clone();
        for change in changes {
            self.world.apply(change).map_err(|refusals| refused(&refusals))?;
            if pace == Pace::OneByOne {
                self.publish()?;
                published(&self.state)?;
            }
        }
        if pace == Pace::AtOnce {
            self.publish()?;
            published(&self.state)?;
        }
        Ok(())
    }

    /// The state in force.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The compiler.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The number of a pod of the cluster.
    pub(crate) fn number(&self, pod: &Pod) -> Option<u32> {
        self.born.get(&(pod.namespace.clone(), pod.name.clone())).copied()
    }

    /// How many pods there were so far.
    pub(crate) fn births(&self) -> u32 {
        self.births
    }

    /// An address that is isolated here although it is no pod's of this node.
    #[must_use]
    pub fn meddles(&self) -> Option<Ipv4Addr> {
        let local = |ip| self.state.pods.iter().any(|pod| pod.ip == ip);
        self.state.policy.pods.iter().map(|pod| pod.ip).find(|ip| !local(*ip))
    }

    /// What leads from the cluster that is in force to this one. What goes, goes first.
    fn changes(&mut self, next: &Cluster) -> Result<Vec<Change>, String> {
        let before = std::mem::take(&mut self.cluster);
        let mut changes = Vec::new();
        for (namespace, name) in before.policies.iter().map(key) {
            if !next.policies.iter().any(|p| key(p) == (namespace, name)) {
                changes.push(delete(Kind::NetworkPolicy, namespace, name));
            }
        }
        for pod in &before.pods {
            if same_pod(&next.pods, pod).is_none() {
                self.born.remove(&(pod.namespace.clone(), pod.name.clone()));
                changes.push(delete(Kind::Pod, &pod.namespace, &pod.name));
            }
        }
        for gone in before.namespaces.iter().filter(|n| next.namespace(&n.name).is_none()) {
            changes.push(delete(Kind::Namespace, "", &gone.name));
        }
        let mut upsert = |object: Result<Object, Vec<Refusal>>| {
            object.map(|object| changes.push(Change::Upsert(object))).map_err(|refusals| refused(&refusals))
        };
        for namespace in next.namespaces.iter().filter(|n| !before.namespaces.contains(n)) {
            upsert(objects::namespace(namespace))?;
        }
        for node in next.nodes.iter().filter(|n| !before.nodes.contains(n)) {
            upsert(objects::node(node))?;
        }
        for pod in next.pods.iter().filter(|p| same_pod(&before.pods, p) != Some(p)) {
            let host = next.nodes.iter().find(|n| n.name == pod.node).map(|n| n.ip);
            let births = &mut self.births;
            let number = *self.born.entry((pod.namespace.clone(), pod.name.clone())).or_insert_with(|| {
                *births += 1;
                *births - 1
            });
            upsert(objects::pod(pod, number, host))?;
        }
        for policy in next.policies.iter().filter(|p| !before.policies.contains(p)) {
            upsert(Ok(Object::NetworkPolicy(Box::new(policy.clone()))))?;
        }
        Ok(changes)
    }

    /// Publishes what the compiler says and which pods this node has, as an agent would.
    fn publish(&mut self) -> Result<(), String> {
        let mut ops = self.world.update().ops;
        let mut wanted = Vec::new();
        let mut own: Vec<&Pod> = self.cluster.pods.iter().filter(|pod| pod.node == self.node).collect();
        own.sort_by_key(|pod| pod.phase == Phase::Running);
        for pod in own {
            if let (Some(ip), Some(number)) = (pod.live_ip(), self.number(pod)) {
                // Of two pods with one address the newest running one is behind it.
                wanted.retain(|other: &sluice_state::Pod| other.ip != ip);
                wanted.push(sluice_state::Pod {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    ip,
                    eni: "eni0".into(),
                    interface: interface(number),
                    mac: Mac(mac(2, number)),
                });
            }
        }
        let gone = self.state.pods.iter().filter(|pod| !wanted.iter().any(|w| w.ip == pod.ip));
        ops.extend(gone.map(|pod| Op::DeletePod(pod.ip)));
        ops.extend(wanted.into_iter().filter(|pod| !self.state.pods.contains(pod)).map(Op::UpsertPod));
        self.generation += 1;
        let generation = Generation { number: self.generation, ops };
        self.state =
            self.state.apply(&generation).map_err(|e| format!("what was compiled is refused: {e}"))?;
        Ok(())
    }
}

/// The ENI of a node of this address. Its subnet is as small as one can be, so that everything else is behind its gateway.
fn eni(address: Ipv4Addr) -> Result<Eni, String> {
    let subnet = Ipv4Net::new(address, 31).map_err(|e| e.to_string())?.trunc();
    Ok(Eni {
        name: "eni0".into(),
        primary: true,
        address,
        subnet,
        gateway: Ipv4Addr::from_bits(address.to_bits() ^ 1),
        gateway_mac: Some(Mac([2, 0, 0, 0, 0, 2])),
    })
}

pub(super) fn interface(number: u32) -> String {
    format!("pod{number}")
}

pub(super) fn mac(kind: u8, number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [2, kind, a, b, c, d]
}

fn same_pod<'c>(pods: &'c [Pod], pod: &Pod) -> Option<&'c Pod> {
    pods.iter().find(|p| p.namespace == pod.namespace && p.name == pod.name)
}

fn delete(kind: Kind, namespace: &str, name: &str) -> Change {
    Change::Delete(ObjectId { kind, namespace: namespace.into(), name: name.into() })
}

fn refused(refusals: &[Refusal]) -> String {
    format!("refused: {}", list(refusals))
}

pub(super) fn list<T: std::fmt::Display>(findings: &[T]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
