//! D. UDP, and how long things live.

use sluice_engine::counters::Event::{FlowsOpened, PortsTaken};
use sluice_engine::flow::Phase;
use sluice_engine::testing::{read, udp, verify};
use sluice_state::{Preset, Seconds};

use crate::world::*;

#[test]
fn d01_one_way_is_short() {
    for (preset, seconds) in [(Preset::Linux, 30), (Preset::Rfc, 120)] {
        let mut w = World::with(|state, _| state.timeouts.preset = preset);
        // The table takes the timeouts over when a step begins.
        w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
        assert_eq!(w.flow().phase, Phase::UdpOneWay);
        w.advance(seconds * SECOND - 1);
        assert_eq!(w.flows().len(), 1);
        w.advance(1);
        assert!(w.flows().is_empty());
    }
}

#[test]
fn d02_two_way_is_long() {
    for (preset, seconds) in [(Preset::Linux, 120), (Preset::Rfc, 300)] {
        let mut w = World::with(|state, _| state.timeouts.preset = preset);
        let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
        w.pass(WIRE0, udp("203.0.113.9:5000", &format!("10.0.9.5:{port}")), TO_A, &[]);
        assert_eq!(w.flow().phase, Phase::UdpTwoWay);
        w.advance(seconds * SECOND - 1);
        assert_eq!(w.flows().len(), 1);
        w.advance(1);
        assert!(w.flows().is_empty());
    }
}

#[test]
fn d03_packets_from_outside_refresh() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
    for _ in 0..5 {
        w.advance(29 * SECOND);
        w.pass(WIRE0, udp("203.0.113.9:5000", &format!("10.0.9.5:{port}")), TO_A, &[]);
    }
    for _ in 0..5 {
        w.advance(119 * SECOND);
        w.pass(WIRE0, udp("203.0.113.9:5000", &format!("10.0.9.5:{port}")), TO_A, &[]);
    }
    // From another port of the peer it is not the flow's: endpoint-dependent filtering.
    w.pass(WIRE0, udp("203.0.113.9:5001", &format!("10.0.9.5:{port}")), KERNEL0, &[]);
    assert_eq!(w.flow().reply.packets, 10);
}

#[test]
fn d03_refresh_from_outside_can_be_switched_off() {
    let mut w = World::new();
    w.snapshot.timeouts = w.snapshot.timeouts.clone().with_inbound_refresh(false);
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
    let reply = udp("203.0.113.9:5000", &format!("10.0.9.5:{port}"));
    w.pass(WIRE0, reply.clone(), TO_A, &[]);
    w.advance(60 * SECOND);
    w.pass(WIRE0, reply, TO_A, &[]);
    w.advance(60 * SECOND);
    assert!(w.flows().is_empty());
}

#[test]
fn d05_no_checksum_stays_none_both_ways() {
    let mut w = World::new();
    let sum = |frame: &[u8]| [frame[40], frame[41]];
    let query = udp("10.0.1.10:40000", "203.0.113.9:53").payload(b"q").no_l4_checksum();
    let out = w.pass(POD_A, query, ENI0, &[FlowsOpened, PortsTaken]);
    assert_eq!(sum(&out), [0, 0]);
    let to = format!("10.0.9.5:{}", read(&out).key.sport());
    let back = w.pass(WIRE0, udp("203.0.113.9:53", &to).payload(b"a").no_l4_checksum(), TO_A, &[]);
    assert_eq!(sum(&back), [0, 0]);
}

#[test]
fn d06_a_checksum_that_comes_to_zero_is_sent_as_ones() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    // Of all payloads of two bytes one makes the translated sum zero, which is written 0xFFFF.
    let mut seen = 0;
    for word in 0..=u16::MAX {
        let translated =
            udp(&format!("10.0.9.5:{port}"), "203.0.113.9:53").payload(&word.to_be_bytes()).build();
        if translated[40..42] != [0xFF, 0xFF] {
            continue;
        }
        seen += 1;
        let query = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&word.to_be_bytes());
        let out = w.pass(POD_A, query, ENI0, &[]);
        assert_eq!(out[40..42], [0xFF, 0xFF]);
        assert_eq!(verify(&out), Ok(()));
    }
    assert!(seen > 0);
}

#[test]
fn d08_ten_thousand_flows_due_at_once() {
    let mut w = World::sized(Size { flows: 16_384, ..Size::default() }, |_, _| {});
    for batch in 0..(10_000 / 50) {
        let packets = (0..50u32).map(|i| {
            let n = batch * 50 + i;
            let to = format!("203.0.113.9:{}", 1 + n % 50_000);
            (POD_A, udp("10.0.1.10:40000", &to).into())
        });
        w.step(packets.collect());
    }
    assert_eq!(w.table.live(), 10_000);
    w.advance(30 * SECOND);
    // Nobody finds them any more, however long the clearing takes.
    assert!(w.flows().is_empty());
    let mut steps = 0;
    let deadline = w.now + 2 * SECOND;
    while w.table.live() > 0 {
        let cleared = w.idle().moved.get("flows_expired").copied().unwrap_or(0);
        assert!(cleared <= 256, "{cleared} in one step");
        steps += 1;
        assert!(steps < 1000, "{} flows are left after {steps} steps", w.table.live());
        w.now = (w.now + SECOND / 100).min(deadline);
    }
    assert_eq!(w.totals().event(sluice_engine::counters::Event::FlowsExpired), 10_000);
}

#[test]
fn d10_shortened_timeouts_hold_for_flows_that_are_there() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
    w.pass(WIRE0, udp("203.0.113.9:5000", &format!("10.0.9.5:{port}")), TO_A, &[]);
    w.advance(50 * SECOND);
    w.reload(|state, _| state.timeouts.udp_two_way = Some(Seconds(40)));
    // At the next packet it is another flow.
    let mut step = w.step(vec![(POD_A, udp("10.0.1.10:40000", "203.0.113.9:5000").into())]);
    assert_eq!(step.only().verdict, ENI0);
    assert_eq!(step.moved["flows_opened"], 1);
    assert_eq!(w.flow().forward.packets, 1);
}

#[test]
fn d10_lengthened_timeouts_hold_too() {
    let mut w = World::new();
    w.udp_out("10.0.1.10:40000", "203.0.113.9:5000");
    w.reload(|state, _| state.timeouts.udp_one_way = Some(Seconds(100)));
    w.idle();
    w.advance(99 * SECOND);
    w.pass(POD_A, udp("10.0.1.10:40000", "203.0.113.9:5000"), ENI0, &[]);
}
