//! The engine's side: the same node as a snapshot.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::{HostFacts, HostLink, Snapshot};
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::{Setup, Worker};
use sluice_engine::{Ingress, Offload, Packet, Verdict};
use sluice_state::{Mac, State};

use crate::outcome::{Seen, Side};
use crate::{ENI_MAC, ENI_MTU, HOST_MAC};

const STATE: &str = r#"
version = 1
[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
gateway_mac = "02:00:00:00:00:04"
[[pod]]
namespace = "default"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "pod0"
mac = "02:00:00:00:00:01"
[nat]
vpc_cidrs = ["10.0.0.0/16", "100.64.0.0/16"]
"#;

const POD: u32 = 10;
const ENI: u32 = 2;

pub(crate) struct Engine {
    worker: Worker<Vec<u8>>,
    snapshot: Snapshot,
    now: u64,
}

impl Engine {
    pub(crate) fn new() -> Result<Self> {
        let state = State::from_toml(STATE)?;
        let link =
            |name: &str, ifindex, mac, mtu| HostLink { name: name.into(), ifindex, mac: Mac(mac), mtu };
        let set = state.snat_ports.set();
        let host = HostFacts {
            enis: vec![link("eni0", ENI, ENI_MAC, ENI_MTU)],
            links: vec![link("pod0", POD, HOST_MAC, 1500)],
            neighbours: Vec::new(),
            local: Vec::new(),
            tcp: set.clone(),
            udp: set.clone(),
            icmp: set,
        };
        let (snapshot, _) = Snapshot::compile(&state, &host, 1).map_err(|e| anyhow!("{e:?}"))?;
        let setup = Setup { id: 0, workers: 1, seed: 3, fragments: 64, fragment_timeout: 30_000_000_000 };
        let worker = Worker::new(setup, Arc::new(FlowTable::new(1024, 1, 3)))?;
        Ok(Self { worker, snapshot, now: 1_000_000_000 })
    }

    /// Puts one frame in and gives everything that comes of it.
    pub(crate) fn inject(&mut self, from: Side, frame: &[u8]) -> Result<Vec<Seen>> {
        self.now += 1_000_000;
        let ingress = match from {
            Side::Pod => Ingress::Pod(POD),
            Side::Wire => Ingress::Eni(ENI),
        };
        let mut input = vec![Packet { frame: frame.to_vec(), ingress, offload: Offload::default() }];
        let mut out = Vec::new();
        self.worker.step(self.now, &self.snapshot, &mut input, &mut out, &mut NoTrace);
        let totals = self.worker.counters().totals();
        ensure!(totals.conserved(), "{totals:?}");
        let seen = out.into_iter().filter_map(|o| match o.verdict {
            Verdict::Pod { .. } => Some(Seen::Frame(Side::Pod, o.frame)),
            Verdict::Eni { .. } => Some(Seen::Frame(Side::Wire, o.frame)),
            Verdict::KernelPod { .. } | Verdict::KernelEni { .. } => Some(Seen::Host),
            Verdict::Drop(_) | Verdict::Handoff { .. } => None,
        });
        Ok(seen.collect())
    }
}
