//! One node around a case's cluster: its control plane, and a real snapshot and a real worker behind it.
//!
//! ```text
//!  cluster ── what changed ──> World ── ops ──> State::apply ──> Snapshot::compile_after
//!                       local pods ── ops ──┘                           │
//!  probe ── packet ──────────────────────────────────────> Worker::step ┴──> verdict
//! ```

use std::sync::Arc;

use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::{HostFacts, HostLink, Snapshot};
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::{Output, Setup, Worker};
use sluice_engine::{Ingress, Offload, Packet};
use sluice_state::{Mac, PortSet, State};

use super::control::{Control, Pace, interface, list, mac};
use crate::networkpolicy::{Cluster, Party};

/// Interface index of the node's one ENI.
pub(crate) const ENI: u32 = 2;

/// Interface index of the first pod.
const FIRST_POD: u32 = 10;

/// The node that a case plays on.
pub struct Plane {
    control: Control,
    host: HostFacts,
    snapshot: Snapshot,
    worker: Worker<Vec<u8>>,
    table: Arc<FlowTable>,
    now: u64,
}

impl Plane {
    /// An empty cluster on the node of this name, with room for so many connections.
    ///
    /// # Errors
    /// The cluster has no such node, or the product refuses an empty state.
    pub fn new(cluster: &Cluster, node: &str, connections: usize) -> Result<Self, String> {
        let place = cluster.nodes.iter().find(|n| n.name == node).ok_or(format!("no node {node}"))?;
        let control = Control::new(node, place.ip)?;
        let ports = control.state().snat_ports.set();
        let host = HostFacts {
            enis: vec![link("eni0".into(), ENI, [2, 0, 0, 0, 0, 1])],
            local: vec![place.ip],
            tcp: ports.clone(),
            udp: ports,
            icmp: PortSet::default(),
            ..HostFacts::default()
        };
        let snapshot = compile(control.state(), &host, None)?;
        let capacity = u32::try_from(connections.max(512) * 2).unwrap_or(u32::MAX).next_power_of_two();
        let table = Arc::new(FlowTable::new(capacity, 1, 3));
        let setup = Setup { id: 0, workers: 1, seed: 5, fragments: 16, fragment_timeout: 1_000_000_000 };
        let worker = Worker::new(setup, Arc::clone(&table)).map_err(|e| e.to_string())?;
        Ok(Self { control, host, snapshot, worker, table, now: 1_000_000_000 })
    }

    /// Brings what differs from the cluster in force into force.
    ///
    /// # Errors
    /// The product refuses an object or what it compiled itself.
    pub fn follow(&mut self, cluster: &Cluster, pace: Pace) -> Result<(), String> {
        let Self { control, host, snapshot, .. } = self;
        // Room for the pods that are to come: which number each gets is the control plane's to say.
        let needed = control.births() as usize + cluster.pods.len();
        for number in (0u32..).take(needed).skip(host.links.len()) {
            host.links.push(link(interface(number), FIRST_POD + number, mac(4, number)));
        }
        control.follow(cluster, pace, |state| {
            *snapshot = compile(state, host, Some(snapshot))?;
            Ok(())
        })
    }

    /// The control plane.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Puts a packet in, and gives the one that comes out.
    ///
    /// # Errors
    /// Not exactly one packet came out.
    pub(crate) fn send(&mut self, ingress: Ingress, frame: Vec<u8>) -> Result<Output<Vec<u8>>, String> {
        self.now += 1_000;
        let mut out = Vec::with_capacity(1);
        let mut input = vec![Packet { frame, ingress, offload: Offload::default() }];
        self.worker.step(self.now, &self.snapshot, &mut input, &mut out, &mut NoTrace);
        match out.pop() {
            Some(output) if out.is_empty() => Ok(output),
            last => Err(format!("{} packets came out of one", out.len() + usize::from(last.is_some()))),
        }
    }

    /// Flows in the table.
    pub(crate) fn flows(&self) -> u32 {
        self.table.live()
    }

    /// Whether every packet that went in came out or was dropped by name.
    pub(crate) fn conserves(&self) -> bool {
        self.worker.counters().totals().conserved()
    }

    /// Index of the interface of a pod of this node.
    pub(crate) fn interface(&self, party: Party<'_>) -> Option<u32> {
        let pod = party.pod.filter(|pod| pod.node == self.control.node())?;
        self.control.number(pod).map(|number| FIRST_POD + number)
    }

    /// Whether an end of a probe is a process of this node.
    pub(crate) fn is_this_node(&self, party: Party<'_>) -> bool {
        party.node.is_some_and(|n| n.name == self.control.node())
    }
}

fn link(name: String, ifindex: u32, mac: [u8; 6]) -> HostLink {
    HostLink { name, ifindex, mac: Mac(mac), mtu: 1500 }
}

fn compile(state: &State, host: &HostFacts, previous: Option<&Snapshot>) -> Result<Snapshot, String> {
    let generation = previous.map_or(0, |p| p.generation + 1);
    let compiled = Snapshot::compile_after(state, host, generation, previous);
    compiled.map(|(snapshot, _)| snapshot).map_err(|wrong| list(&wrong))
}
