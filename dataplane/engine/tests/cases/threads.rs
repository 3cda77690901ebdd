//! Several workers on several threads, for real: one table, no lock, and not one port given out twice or left over.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Barrier};

use sluice_engine::flow::FlowTable;
use sluice_engine::snapshot::Snapshot;
use sluice_engine::testing::{read, udp};
use sluice_engine::trace::NoTrace;
use sluice_engine::worker::{Setup, Worker};
use sluice_engine::{Ingress, Offload, Packet, Verdict};
use sluice_state::{PortSet, RandomizeSnat};

use crate::world::*;

const THREADS: u16 = 4;

/// Sends datagrams of many source ports of pod A through one worker; the source ports that they left with.
fn send(
    worker: &mut Worker<Vec<u8>>,
    snapshot: &Snapshot,
    now: u64,
    sports: impl Iterator<Item = u16>,
) -> BTreeMap<u16, u16> {
    let mut given = BTreeMap::new();
    let sports: Vec<_> = sports.collect();
    for batch in sports.chunks(32) {
        let packet = |sport: &u16| Packet {
            frame: udp(&format!("10.0.1.10:{sport}"), "203.0.113.9:53").build(),
            ingress: Ingress::Pod(10),
            offload: Offload::default(),
        };
        let mut input: Vec<_> = batch.iter().map(packet).collect();
        let mut out = Vec::new();
        worker.step(now, snapshot, &mut input, &mut out, &mut NoTrace);
        for (sport, out) in batch.iter().zip(&out) {
            if matches!(out.verdict, Verdict::Eni { .. }) {
                given.insert(*sport, read(&out.frame).key.sport());
            }
        }
    }
    given
}

fn workers(flows: u32) -> (Arc<FlowTable>, Vec<Worker<Vec<u8>>>) {
    let table = Arc::new(FlowTable::new(flows, usize::from(THREADS), 9));
    let setup = |id| Setup { id, workers: THREADS, seed: 9, fragments: 64, fragment_timeout: 30 * SECOND };
    let workers = (0..THREADS).map(|id| Worker::new(setup(id), Arc::clone(&table)).unwrap()).collect();
    (table, workers)
}

/// A destination is filled to its last port by all workers at once.
#[test]
fn one_destination_to_its_last_port() {
    for mode in [RandomizeSnat::Prng, RandomizeSnat::HashRandom, RandomizeSnat::None] {
        let world = World::with(|state, host| {
            state.nat.randomize = mode;
            host.udp = PortSet::default();
            (2000..2600).for_each(|port| host.udp.insert(port));
        });
        let (table, workers) = workers(4096);
        let (snapshot, barrier) = (&world.snapshot, &Barrier::new(usize::from(THREADS)));
        let mut given = BTreeMap::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0u16..)
                .zip(workers)
                .map(|(id, mut worker)| {
                    scope.spawn(move || {
                        let sports = |round: u16| (0..200).map(move |i| 10_000 + id * 5000 + round * 200 + i);
                        barrier.wait();
                        let mut given = send(&mut worker, snapshot, SECOND, sports(0));
                        // Who was refused while others were still at it asks again, a little later.
                        barrier.wait();
                        for round in 1..4 {
                            let now = SECOND + u64::from(round) * 20_000_000;
                            given.extend(send(&mut worker, snapshot, now, sports(round)));
                            worker.sleep();
                            barrier.wait();
                        }
                        given
                    })
                })
                .collect();
            for thread in threads {
                given.extend(thread.join().unwrap());
            }
        });
        let ports: HashSet<_> = given.values().copied().collect();
        assert_eq!(ports.len(), given.len(), "{mode:?}: a port was given out twice");
        assert_eq!(ports, world.host.udp.iter().collect(), "{mode:?}: and none is left over");
        assert_eq!(table.live(), 600);
    }
}

/// One connection's packets come to all workers at once: one flow, one port.
#[test]
fn one_flow_opened_by_all_workers_at_once() {
    let world = World::new();
    let (table, workers) = workers(4096);
    let (snapshot, barrier) = (&world.snapshot, &Barrier::new(usize::from(THREADS)));
    let seen: Vec<_> = std::thread::scope(|scope| {
        let spawn = |mut worker: Worker<Vec<u8>>| {
            scope.spawn(move || {
                let mut given = BTreeMap::new();
                for round in 0..50 {
                    barrier.wait();
                    given.extend(send(
                        &mut worker,
                        snapshot,
                        SECOND,
                        (0..20).map(|i| 10_000 + round * 20 + i),
                    ));
                }
                assert!(worker.counters().totals().conserved());
                given
            })
        };
        let threads: Vec<_> = workers.into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(table.live(), 1000);
    // Every worker translated every packet that it did not drop as contended, and all agree.
    let mut agreed = BTreeMap::new();
    for (sport, port) in seen.iter().flatten() {
        assert_eq!(*agreed.entry(*sport).or_insert(*port), *port, "pod's port {sport}");
    }
    assert_eq!(agreed.len(), 1000);
    let answered: usize = seen.iter().map(BTreeMap::len).sum();
    assert!(answered >= 3900, "{answered} of 4000 packets went out");
}
