//! A small node for the engine: one ENI, one pod, everything towards the outside translated.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use sluice_engine::Ingress;
use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::{HostFacts, HostLink, Snapshot};
use sluice_engine::worker::{Setup, Worker};
use sluice_state::{Mac, State};

use super::path::Engine;

/// The pod.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// The outside host.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Where the pod's packets enter.
pub const FROM_POD: Ingress = Ingress::Pod(POD_INDEX);

const ENI_INDEX: u32 = 2;
const POD_INDEX: u32 = 10;

const STATE: &str = r#"
version = 1
[[eni]]
name = "eni0"
primary = true
address = "10.0.9.5"
subnet = "10.0.9.0/24"
gateway = "10.0.9.1"
gateway_mac = "02:00:00:00:09:01"
[[pod]]
namespace = "bench"
name = "a"
ip = "10.0.1.10"
eni = "eni0"
interface = "enia"
mac = "02:00:00:00:01:0a"
[nat]
vpc_cidrs = ["10.0.0.0/16"]
"#;

/// The node's control data.
///
/// # Errors
/// The engine refuses the state: the bench and the engine are of different versions.
pub fn snapshot() -> Result<Arc<Snapshot>> {
    let state = State::from_toml(STATE).context("the bench's state")?;
    let link = |name: &str, ifindex: u32| HostLink {
        name: name.into(),
        ifindex,
        mac: Mac([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
    };
    let ports = state.snat_ports.set();
    let host = HostFacts {
        enis: vec![link("eni0", ENI_INDEX)],
        links: vec![link("enia", POD_INDEX)],
        tcp: ports.clone(),
        udp: ports.clone(),
        icmp: ports,
        ..HostFacts::default()
    };
    let (snapshot, _) = Snapshot::compile(&state, &host, 1)
        .map_err(|findings| anyhow!("the engine refuses the bench's state: {findings:?}"))?;
    Ok(Arc::new(snapshot))
}

/// `workers` workers on one table that holds at least `flows` flows.
///
/// # Errors
/// As [`snapshot`].
pub fn engines(flows: u32, workers: u16) -> Result<Vec<Engine>> {
    let snapshot = snapshot()?;
    // A tenth of room: a table that is full to the brim would measure eviction.
    let capacity = (flows + flows / 10).max(2048).next_power_of_two();
    let table = Arc::new(FlowTable::new(capacity, usize::from(workers), 0x5eed));
    (0..workers)
        .map(|id| {
            let setup = Setup {
                id,
                workers,
                seed: 0x5eed + u64::from(id),
                fragments: 64,
                fragment_timeout: 30_000_000_000,
            };
            let worker = Worker::new(setup, Arc::clone(&table))?;
            Ok(Engine::new(worker, Arc::clone(&snapshot), Arc::clone(&table)))
        })
        .collect()
}

/// One worker with a table of its own.
///
/// # Errors
/// As [`snapshot`].
pub fn engine(flows: u32) -> Result<Engine> {
    engines(flows, 1)?.pop().context("one worker was asked for")
}
