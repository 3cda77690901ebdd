//! C. TCP: opening, closing, resetting, and what is no TCP at all.

use sluice_engine::Drop;
use sluice_engine::counters::Event::{
    self, FlowsOpened, FlowsReopened, ImplausibleClose, MssClamped, PortsTaken,
};
use sluice_engine::flow::Phase;
use sluice_engine::testing::{FrameBuilder, read, tcp};
use sluice_engine::wire::tcp_options;

use crate::world::*;

/// Sequence numbers that pod and peer begin with.
const POD_SEQ: u32 = 1000;
const PEER_SEQ: u32 = 5000;

/// A translated connection of pod A to X, port 80.
struct Connection {
    w: World,
    port: u16,
}

impl Connection {
    /// After the pod's SYN.
    fn syn() -> Self {
        let mut w = World::new();
        let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").seq(POD_SEQ).ack(0).mss(1460);
        let out = w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken]);
        let port = read(&out).key.sport();
        Self { w, port }
    }

    /// After the handshake.
    fn established() -> Self {
        let mut c = Self::syn();
        c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
        c.out("A", POD_SEQ + 1, PEER_SEQ + 1, &[]);
        assert_eq!(c.phase(), Phase::Established);
        c
    }

    /// The pod sends.
    fn out(&mut self, flags: &str, seq: u32, ack: u32, events: &[Event]) {
        let frame = tcp("10.0.1.10:40000", "203.0.113.9:80").flags(flags).seq(seq).ack(ack);
        self.out_frame(frame, events);
    }

    fn out_frame(&mut self, frame: FrameBuilder, events: &[Event]) {
        let out = self.w.pass(POD_A, frame, ENI0, events);
        assert_eq!((read(&out).key.src(), read(&out).key.sport()), (address(N), self.port));
    }

    /// The peer sends.
    fn back(&mut self, flags: &str, seq: u32, ack: u32, events: &[Event]) {
        let frame = self.of_peer(flags).seq(seq).ack(ack);
        let back = self.w.pass(WIRE0, frame, TO_A, events);
        assert_eq!((read(&back).key.dst(), read(&back).key.dport()), (address(A), 40_000));
    }

    fn of_peer(&self, flags: &str) -> FrameBuilder {
        tcp("203.0.113.9:80", &format!("10.0.9.5:{}", self.port)).flags(flags)
    }

    fn phase(&self) -> Phase {
        self.w.flow().phase
    }

    /// Gone after its timeout and not before.
    fn ends_after(mut self, seconds: u64) {
        self.w.advance(seconds * SECOND - 1);
        assert_eq!(self.w.flows().len(), 1);
        self.w.advance(1);
        assert!(self.w.flows().is_empty());
    }
}

#[test]
fn c03_synack_retransmitted() {
    let mut c = Connection::syn();
    c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
    c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::SynReceived);
    c.out("A", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Established);
    c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Established);
}

#[test]
fn c04_simultaneous_open() {
    let mut c = Connection::syn();
    c.back("S", PEER_SEQ, 0, &[]);
    assert_eq!(c.phase(), Phase::SynSent2);
    c.out("SA", POD_SEQ, PEER_SEQ + 1, &[]);
    c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Established);
}

#[test]
fn c05_close_from_inside() {
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::FinWait);
    c.back("A", PEER_SEQ + 1, POD_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::CloseWait);
    // The other half still talks.
    let data = c.of_peer("PA").seq(PEER_SEQ + 1).ack(POD_SEQ + 2).payload(&[1; 100]);
    c.w.pass(WIRE0, data, TO_A, &[]);
    c.out("A", POD_SEQ + 2, PEER_SEQ + 101, &[]);
    c.back("FA", PEER_SEQ + 101, POD_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::LastAck);
    c.out("A", POD_SEQ + 2, PEER_SEQ + 102, &[]);
    assert_eq!(c.phase(), Phase::TimeWait);
    c.ends_after(120);
}

#[test]
fn c06_close_from_outside() {
    let mut c = Connection::established();
    c.back("FA", PEER_SEQ + 1, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::FinWait);
    c.out("A", POD_SEQ + 1, PEER_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::CloseWait);
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::LastAck);
    c.back("A", PEER_SEQ + 2, POD_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::TimeWait);
    c.ends_after(120);
}

#[test]
fn c07_both_close_at_once() {
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.back("FA", PEER_SEQ + 1, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::LastAck);
    c.out("A", POD_SEQ + 2, PEER_SEQ + 2, &[]);
    c.back("A", PEER_SEQ + 2, POD_SEQ + 2, &[]);
    assert_eq!(c.phase(), Phase::TimeWait);
    c.ends_after(120);
}

#[test]
fn c10_reopened_after_both_have_closed() {
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.back("FA", PEER_SEQ + 1, POD_SEQ + 2, &[]);
    c.out("A", POD_SEQ + 2, PEER_SEQ + 2, &[]);
    c.w.advance(5 * SECOND);
    c.out("S", 90_000, 0, &[FlowsReopened]);
    let flow = c.w.flow();
    assert_eq!((flow.phase, flow.age), (Phase::SynSent, 0));
    assert_eq!((flow.forward.packets, flow.reply.packets), (1, 0), "the meters start over");
    c.back("SA", 70_000, 90_001, &[]);
    c.out("A", 90_001, 70_001, &[]);
    assert_eq!(c.phase(), Phase::Established);
}

#[test]
fn c11_reset_closes_to_transitory() {
    let mut c = Connection::established();
    c.out("R", POD_SEQ + 1, 0, &[]);
    assert_eq!(c.phase(), Phase::Close);
    c.w.advance(10 * SECOND);
    assert!(c.w.flows().is_empty(), "gone after the transitory timeout");
    let data = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("PA").seq(POD_SEQ + 1).payload(b"late");
    let mut step = c.w.step(vec![(POD_A, data.into())]);
    assert_eq!(step.only().verdict, sluice_engine::Verdict::Drop(Drop::NoFlow));
    let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").seq(77);
    let mut step = c.w.step(vec![(POD_A, syn.into())]);
    assert_eq!(step.only().verdict, ENI0);
    assert_eq!(step.moved["flows_opened"], 1);
}

#[test]
fn c11_reset_from_the_peer() {
    let mut c = Connection::established();
    c.back("RA", PEER_SEQ + 1, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Close);
    c.ends_after(10);
}

#[test]
fn c12_data_after_reset_use_the_same_mapping_and_revive_nothing() {
    let mut c = Connection::established();
    c.out("R", POD_SEQ + 1, 0, &[]);
    c.w.advance(5 * SECOND);
    c.out("PA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.back("A", PEER_SEQ + 1, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Close);
    c.ends_after(10);
}

#[test]
fn c13_reset_far_from_the_window_closes_nothing() {
    let mut c = Connection::established();
    for seq in [PEER_SEQ.wrapping_sub(100_000), PEER_SEQ + 0x4000_0000, PEER_SEQ + 0x8000_0000] {
        c.back("R", seq, 0, &[ImplausibleClose]);
        c.back("FA", seq, POD_SEQ + 1, &[ImplausibleClose]);
        assert_eq!(c.phase(), Phase::Established);
    }
    c.back("R", PEER_SEQ + 1, 0, &[]);
    assert_eq!(c.phase(), Phase::Close);
}

#[test]
fn c13_a_blind_reset_of_an_unanswered_syn_closes_nothing() {
    let mut c = Connection::syn();
    c.back("RA", 0, POD_SEQ + 0x10_0000, &[ImplausibleClose]);
    assert_eq!(c.phase(), Phase::SynSent);
    c.back("RA", 0, POD_SEQ + 1, &[]);
    assert_eq!(c.phase(), Phase::Close, "connection refused");
}

#[test]
fn c14_syn_after_reset_opens_anew() {
    let mut c = Connection::established();
    c.out("R", POD_SEQ + 1, 0, &[]);
    c.out("S", 90_000, 0, &[FlowsReopened]);
    assert_eq!(c.phase(), Phase::SynSent);
    assert_eq!(c.w.flow().forward.packets, 1);
}

#[test]
fn c17_midstream_from_the_wire_without_a_flow_goes_to_the_kernel() {
    let mut w = World::new();
    for flags in ["A", "PA", "SA", "S", "R", "RA", "FA"] {
        for port in [1024, 29_999, 30_000, 40_000, 65_535] {
            let frame = tcp("203.0.113.9:80", &format!("10.0.9.5:{port}")).flags(flags).payload(b"x").build();
            let out = w.pass(WIRE0, frame.clone(), KERNEL0, &[]);
            assert_eq!(out[14..], frame[14..], "untouched");
        }
    }
    assert!(w.flows().is_empty());
}

#[test]
fn c18_midstream_from_a_pod_without_a_flow() {
    let mut w = World::new();
    // Its port is lost: never sent on with the pod's address.
    for flags in ["A", "PA", "SA", "R", "RA", "FA"] {
        w.dropped(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags(flags), Drop::NoFlow, &[]);
    }
    assert!(w.flows().is_empty());
    // Where nothing is translated nothing is lost, and it is picked up.
    w.pass(POD_A, tcp("10.0.1.10:40000", "10.0.77.7:80").flags("PA").payload(b"x"), ENI0, &[FlowsOpened]);
    assert_eq!(w.flow().phase, Phase::Established);
    w.pass(WIRE0, tcp("10.0.77.7:80", "10.0.1.10:40000").flags("A"), TO_A, &[]);
    // A reset makes nothing.
    w.pass(POD_A, tcp("10.0.1.10:40001", "10.0.77.7:80").flags("R"), ENI0, &[]);
    w.pass(WIRE0, tcp("10.0.77.7:80", "10.0.1.10:40002").flags("RA"), TO_A, &[]);
    assert_eq!(w.flows().len(), 1);
}

#[test]
fn c20_flags_that_no_stack_sends() {
    let mut w = World::new();
    for flags in ["", "SF", "SFA", "SR", "F", "FPU", "FSRPAU", "P", "U", "RF", "SRA"] {
        let build = |from, to| tcp(from, to).flags(flags);
        w.dropped(POD_A, build("10.0.1.10:40000", "203.0.113.9:80"), Drop::TcpFlags, &[]);
        w.dropped(POD_A, build("10.0.1.10:40000", "10.0.77.7:80"), Drop::TcpFlags, &[]);
        w.dropped(WIRE0, build("203.0.113.9:80", "10.0.9.5:2000"), Drop::TcpFlags, &[]);
    }
    assert!(w.flows().is_empty());
    // The same in an established connection.
    let mut c = Connection::established();
    c.w.dropped(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags("SF"), Drop::TcpFlags, &[]);
    assert_eq!(c.phase(), Phase::Established);
}

#[test]
fn c21_closed_while_another_worker_is_about_to_use_it() {
    let mut w = World::sized(Size { workers: 2, ..Size::default() }, |_, _| {});
    let out = w.pass(
        POD_A,
        tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").seq(POD_SEQ),
        ENI0,
        &[FlowsOpened, PortsTaken],
    );
    let port = read(&out).key.sport();
    w.at = 1;
    let peer = |flags| tcp("203.0.113.9:80", &format!("10.0.9.5:{port}")).flags(flags);
    w.pass(WIRE0, peer("SA").seq(PEER_SEQ).ack(POD_SEQ + 1), TO_A, &[]);
    w.at = 0;
    w.pass(POD_A, tcp("10.0.1.10:40000", "203.0.113.9:80").flags("R").seq(POD_SEQ + 1), ENI0, &[]);
    w.advance(10 * SECOND);
    // Worker 0 clears it away; worker 1 has not stepped since, so that the slot is not used again yet.
    w.idle();
    w.at = 1;
    let out = w.pass(WIRE0, peer("A").seq(PEER_SEQ + 1), KERNEL0, &[]);
    assert_eq!(read(&out).key.dport(), port, "no stale translation");
}

#[test]
fn c23_options_of_odd_lengths_stay() {
    let odd = [
        &[1, 3, 3, 7][..],
        &[4, 2, 1, 1, 1],
        &[5, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1],
        &[254, 5, 1, 2, 3, 1],
        &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
        // A length that leads out of the header, and one of zero.
        &[253, 200],
        &[253, 0, 0],
    ];
    for options in odd {
        let mut c = Connection::established();
        for payload in [0, 1, 2, 3, 1400] {
            let data = tcp("10.0.1.10:40000", "203.0.113.9:80")
                .flags("PA")
                .seq(POD_SEQ + 1)
                .ack(PEER_SEQ + 1)
                .tcp_options(options)
                .payload(&vec![0xAB; payload]);
            // That nothing but addresses and sums has changed is checked for every packet.
            c.out_frame(data, &[]);
        }
    }
}

#[test]
fn c25_mss_is_lowered_to_what_the_eni_carries() {
    let small = |_: &mut sluice_state::State, host: &mut sluice_engine::snapshot::HostFacts| {
        host.links.iter_mut().for_each(|link| link.mtu = 9001);
    };
    let mss = |frame: &[u8]| tcp_options(frame, &read(frame)).mss;
    let mut w = World::with(small);
    let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").mss(8961).window_scale(7);
    let out = w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken, MssClamped]);
    assert_eq!(mss(&out), Some(1460));
    assert_eq!(tcp_options(&out, &read(&out)).window_scale, Some(7));
    let port = read(&out).key.sport();
    let back = tcp("203.0.113.9:80", &format!("10.0.9.5:{port}")).flags("SA").mss(8961);
    assert_eq!(mss(&w.pass(WIRE0, back, TO_A, &[MssClamped])), Some(1460));
    // Never raised, none made up.
    for (from, given) in [("10.0.1.10:40001", Some(1400)), ("10.0.1.10:40002", None)] {
        let syn = tcp(from, "203.0.113.9:80").flags("S");
        let syn = if let Some(mss) = given { syn.mss(mss) } else { syn };
        let out = w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken]);
        assert_eq!(mss(&out), given);
    }
    // Between pods nothing is smaller.
    let syn = tcp("10.0.1.10:40000", "10.0.1.11:80").flags("S").mss(8961);
    assert_eq!(mss(&w.pass(POD_A, syn, TO_B, &[FlowsOpened])), Some(8961));
    // Nor through an ENI of the same size.
    let mut w = World::new();
    let syn = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").mss(8961);
    assert_eq!(mss(&w.pass(POD_A, syn, ENI0, &[FlowsOpened, PortsTaken])), Some(8961));
}

#[test]
fn c26_timeouts_of_every_state() {
    Connection::syn().ends_after(30);
    let mut c = Connection::syn();
    c.back("SA", PEER_SEQ, POD_SEQ + 1, &[]);
    c.ends_after(60);
    Connection::established().ends_after(432_000);
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.ends_after(120);
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.back("A", PEER_SEQ + 1, POD_SEQ + 2, &[]);
    c.ends_after(60);
    let mut c = Connection::established();
    c.out("FA", POD_SEQ + 1, PEER_SEQ + 1, &[]);
    c.back("FA", PEER_SEQ + 1, POD_SEQ + 2, &[]);
    c.ends_after(30);
}
