//! I. A full table, several workers, a changed number of them, and a trace that tells the truth.

use std::sync::Arc;

use sluice_engine::counters::Event::{FlowsEvicted, FlowsExpired, FlowsOpened, PortsTaken};
use sluice_engine::flow::Phase;
use sluice_engine::testing::{echo_request, read, tcp, udp};
use sluice_engine::worker::{Setup, Worker};
use sluice_engine::{Drop, Verdict};
use sluice_state::{PortSet, RandomizeSnat};

use crate::world::*;

const CAPACITY: u32 = 1024;

fn small() -> World {
    World::sized(Size { flows: CAPACITY, ..Size::default() }, |_, _| {})
}

/// Fills the table with one-way UDP flows.
fn fill_with_udp(w: &mut World) {
    for i in 0..CAPACITY {
        w.udp_out("10.0.1.10:40000", &format!("203.0.113.9:{}", 1 + i));
    }
    assert_eq!(w.table.live(), CAPACITY);
}

#[test]
fn i01_full_of_expired_flows_takes_new_ones() {
    let mut w = small();
    fill_with_udp(&mut w);
    w.advance(30 * SECOND);
    for i in 0..CAPACITY {
        let step = w.step(vec![(POD_A, echo_request(A, X, i as u16, 1).into())]);
        assert_eq!(step.outs[0].verdict, ENI0, "flow {i}: {:?}", step.moved);
        assert!(!step.moved.contains_key("flows_evicted"), "none alive is given up");
    }
    w.idle();
    assert_eq!(w.totals().event(FlowsExpired), u64::from(CAPACITY));
    assert_eq!(w.totals().event(FlowsEvicted), 0);
}

#[test]
fn i01_full_of_half_open_flows_gives_some_up() {
    let mut w = small();
    for i in 0..CAPACITY {
        let syn = tcp("10.0.1.10:40000", &format!("203.0.113.9:{}", 1 + i)).flags("S");
        w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken]);
    }
    // A whole batch at once, again and again.
    for batch in 0..10 {
        let packets = (0..64).map(|i| {
            let to = format!("203.0.113.9:{}", 1 + batch * 64 + i);
            (POD_A, udp("10.0.1.10:40000", &to).into())
        });
        let step = w.step(packets.collect());
        assert!(step.outs.iter().all(|o| o.verdict == ENI0), "{:?}", step.moved);
        assert!(w.table.live() <= CAPACITY);
    }
    w.idle();
    assert_eq!(w.totals().event(FlowsEvicted), 640);
}

#[test]
fn i01_full_of_established_flows_refuses_by_name() {
    let mut w = small();
    for i in 0..CAPACITY {
        let far = format!("10.0.77.7:{}", 1 + i);
        w.pass(POD_A, tcp("10.0.1.10:40000", &far).flags("A"), ENI0, &[FlowsOpened]);
    }
    assert!(w.flows().iter().all(|f| f.phase == Phase::Established));
    for i in 0..50 {
        w.dropped(POD_A, udp("10.0.1.10:40000", &format!("203.0.113.9:{}", 1 + i)), Drop::TableFull, &[]);
        w.dropped(POD_A, udp("10.0.1.10:40000", &format!("10.0.77.7:{}", 1 + i)), Drop::TableFull, &[]);
    }
    // They all still are, and one that ends makes room for one.
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.0.77.7:1").flags("A"), ENI0, &[]);
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.0.77.7:1").flags("R"), ENI0, &[]);
    w.idle();
    let mut verdicts = Vec::new();
    for _ in 0..=CAPACITY / 64 {
        let frame = udp("10.0.1.10:40000", "203.0.113.9:53");
        verdicts.push(w.step(vec![(POD_A, frame.into())]).only().verdict);
    }
    assert!(verdicts.contains(&ENI0), "the clock's hand meets the closed one: {verdicts:?}");
    assert_eq!(w.table.live(), CAPACITY);
}

#[test]
fn i03_a_pair_is_inserted_as_a_whole_or_not_at_all() {
    let one = || {
        let mut set = PortSet::default();
        set.insert(2000);
        set
    };
    let mut w = World::with(|state, host| {
        state.nat.randomize = RandomizeSnat::None;
        host.udp = one();
    });
    // The host holds the reply key of the only port.
    w.pass(HOST0, udp("10.0.9.5:2000", "203.0.113.9:53"), ENI0, &[FlowsOpened]);
    for _ in 0..3 {
        let mut step = w.step(vec![(POD_A, udp("10.0.1.10:2000", "203.0.113.9:53").into())]);
        assert_eq!(step.only().verdict, Verdict::Drop(Drop::PortsExhausted));
        assert_eq!(w.flows().len(), 1, "nothing of the refused one is left");
        w.advance(SECOND);
    }
    // Not even its forward half, which would send without a way back.
    let key = sluice_engine::flow::FlowKey::new(address(A), address(X), 2000, 53, 17);
    assert_eq!(w.table.lookup(&key, w.table.hash(&key), w.now), None);
    w.advance(30 * SECOND);
    w.idle();
    assert_eq!(w.udp_out("10.0.1.10:2000", "203.0.113.9:53"), 2000, "the port came back");
}

#[test]
fn i08_packets_of_a_flow_on_other_workers() {
    let mut w = World::sized(Size { workers: 4, ..Size::default() }, |_, _| {});
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    for round in 0..8 {
        w.at = round % 4;
        let out = w.pass(POD_A, udp("10.0.1.10:40000", "203.0.113.9:53"), ENI0, &[]);
        assert_eq!(read(&out).key.sport(), port);
        w.at = (round + 1) % 4;
        w.pass(WIRE0, udp("203.0.113.9:53", &format!("10.0.9.5:{port}")), TO_A, &[]);
    }
    let flow = w.flow();
    assert_eq!((flow.forward.packets, flow.reply.packets), (9, 8), "each translated once");
}

#[test]
fn i09_the_number_of_workers_changes() {
    let mut w = World::sized(Size { workers: 4, ..Size::default() }, |_, _| {});
    let mut ports = Vec::new();
    for i in 0..400 {
        w.at = i % 4;
        ports.push(w.udp_out(&format!("10.0.1.10:{}", 1000 + i), "203.0.113.9:53"));
    }
    for workers in [2, 1, 3, 4] {
        let mut parts = w.workers.drain(..).map(Worker::retire).collect::<Vec<_>>();
        let parts = w.table.adopt(&mut parts, usize::from(workers)).unwrap();
        let setup = |id| Setup { id, workers, seed: 7, fragments: 64, fragment_timeout: 30 * SECOND };
        w.workers = (0u16..)
            .zip(parts)
            .map(|(id, part)| Worker::resume(setup(id), Arc::clone(&w.table), part))
            .collect();
        assert_eq!(w.table.live(), 400);
        for (i, port) in ports.iter().enumerate() {
            w.at = i % usize::from(workers);
            let out = w.pass(POD_A, udp(&format!("10.0.1.10:{}", 1000 + i), "203.0.113.9:53"), ENI0, &[]);
            assert_eq!(read(&out).key.sport(), *port);
        }
    }
    // The orphaned flows age, too.
    w.advance(31 * SECOND);
    for _ in 0..40 {
        for at in 0..4 {
            w.at = at;
            w.idle();
        }
        w.advance(SECOND);
    }
    assert_eq!(w.table.live(), 0);
}

#[test]
fn i11_a_trace_replays_to_the_same_verdicts() {
    let mut w = World::new();
    let mut random = sluice_engine::random::Random::new(11);
    for _ in 0..2000 {
        let packet = crate::traffic::packet(&mut random);
        w.step(vec![packet]);
        w.advance(random.next_u64() % (SECOND / 10));
    }
    // Offline: a node of the same state and seed, the packets and times of the trace.
    let mut replayed = World::new();
    for came in &w.trace.came {
        replayed.now = came.now;
        let input = Input { frame: came.bytes.clone(), offload: sluice_engine::Offload::default() };
        replayed.step(vec![(came.ingress, input)]);
    }
    let lines = |w: &World| {
        w.trace.went.iter().map(|w| (w.note.verdict, w.slot, w.bytes.clone())).collect::<Vec<_>>()
    };
    assert_eq!(lines(&w), lines(&replayed));
    assert_eq!(w.totals(), replayed.totals());
}
