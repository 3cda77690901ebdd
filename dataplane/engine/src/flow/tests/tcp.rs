//! Class C of the NAT cases, as far as the flow table decides them.

use crate::flow::Dir::{Forward, Reply};
use crate::flow::TcpVerdict::{Accepted, Implausible, Reopened, Unsolicited};
use crate::flow::*;

const SECOND: u64 = 1_000_000_000;
const FIN: u8 = TcpSegment::FIN;
const SYN: u8 = TcpSegment::SYN;
const RST: u8 = TcpSegment::RST;
const ACK: u8 = TcpSegment::ACK;

struct World {
    table: FlowTable,
    local: Local,
    id: FlowId,
    now: u64,
}

fn segment(flags: u8, seq: u32, ack: u32) -> TcpSegment {
    TcpSegment { flags, seq, ack, window: 1000, payload_len: 0, wscale: None }
}

impl World {
    /// A flow that was opened by a SYN with sequence number 100.
    fn new() -> Self {
        let table = FlowTable::new(16, 1, 1);
        let mut local = table.local(0).unwrap();
        let now = 1000 * SECOND;
        local.begin_step(&table, now, &TimeoutsNs::default());
        let syn = segment(SYN, 100, 0);
        let new = NewFlow {
            original: FlowKey::new(1, 2, 40_000, 80, 6),
            translated: FlowKey::new(9, 2, 5000, 80, 6),
            origin: Origin::Pod,
            start: Start::Tcp(syn),
            egress: [0, 0],
            policy_generation: 0,
        };
        let id = local.insert(&table, &new, now).unwrap();
        let world = Self { table, local, id, now };
        assert_eq!(world.send(Forward, syn), Accepted);
        world
    }

    /// The handshake done: the client has sent up to 101, the server (500) up to 501.
    fn established() -> Self {
        let world = Self::new();
        world.send(Reply, segment(SYN | ACK, 500, 101));
        world.send(Forward, segment(ACK, 101, 501));
        assert_eq!(world.phase(), Phase::Established);
        world
    }

    fn send(&self, dir: Dir, segment: TcpSegment) -> TcpVerdict {
        let verdict = self.table.tcp(self.id, dir, self.now, &segment);
        if verdict != Unsolicited {
            self.table.touch(self.id, dir, self.now, 40);
        }
        verdict
    }

    fn phase(&self) -> Phase {
        self.table.flow(self.id).phase()
    }

    fn found(&self) -> bool {
        let key = self.table.flow(self.id).original();
        self.table.lookup(&key, self.table.hash(&key), self.now).is_some()
    }
}

#[test]
fn c3_a_repeated_synack_changes_nothing() {
    let world = World::new();
    for _ in 0..2 {
        assert_eq!(world.send(Reply, segment(SYN | ACK, 500, 101)), Accepted);
        assert_eq!(world.phase(), Phase::SynReceived);
    }
    world.send(Forward, segment(ACK, 101, 501));
    assert_eq!(world.phase(), Phase::Established);
    assert_eq!(world.table.live(), 1);
}

#[test]
fn c4_simultaneous_open() {
    let world = World::new();
    world.send(Reply, segment(SYN, 500, 0));
    assert_eq!(world.phase(), Phase::SynSent2);
    world.send(Forward, segment(SYN | ACK, 100, 501));
    assert_eq!(world.phase(), Phase::SynReceived);
    world.send(Reply, segment(SYN | ACK, 500, 101));
    assert_eq!(world.phase(), Phase::Established);
}

#[test]
fn a_synack_for_another_syn_opens_nothing() {
    let world = World::new();
    world.send(Reply, segment(SYN | ACK, 500, 7_000_000));
    assert_eq!(world.phase(), Phase::SynSent);
}

/// C5 and C6: closed in order from either end.
#[test]
fn c6_close_from_either_end() {
    for (first, seq, ack) in [(Forward, 101, 501), (Reply, 501, 101)] {
        let world = World::established();
        let second = first.opposite();
        world.send(first, segment(FIN | ACK, seq, ack));
        assert_eq!(world.phase(), Phase::FinWait);
        world.send(second, segment(ACK, ack, seq + 1));
        assert_eq!(world.phase(), Phase::CloseWait);
        world.send(second, segment(FIN | ACK, ack, seq + 1));
        assert_eq!(world.phase(), Phase::LastAck);
        world.send(first, segment(ACK, seq + 1, ack + 1));
        assert_eq!(world.phase(), Phase::TimeWait);
    }
}

#[test]
fn c7_close_from_both_ends_at_once() {
    let world = World::established();
    world.send(Forward, segment(FIN | ACK, 101, 501));
    world.send(Reply, segment(FIN | ACK, 501, 101));
    assert_eq!(world.phase(), Phase::LastAck);
    world.send(Forward, segment(ACK, 102, 502));
    assert_eq!(world.phase(), Phase::LastAck);
    world.send(Reply, segment(ACK, 502, 102));
    assert_eq!(world.phase(), Phase::TimeWait);
}

#[test]
fn c10_reopens_after_two_fins_and_counts_anew() {
    let world = World::established();
    world.send(Forward, segment(FIN | ACK, 101, 501));
    world.send(Reply, segment(FIN | ACK, 501, 102));
    assert_eq!(world.send(Forward, segment(SYN, 90_000, 0)), Reopened);
    assert_eq!(world.phase(), Phase::SynSent);
    let record = world.table.flows(world.now).next().unwrap();
    assert_eq!((record.forward.packets, record.reply.packets, record.replied), (1, 0, false));
    world.send(Reply, segment(SYN | ACK, 7000, 90_001));
    world.send(Forward, segment(ACK, 90_001, 7001));
    assert_eq!(world.phase(), Phase::Established);
}

#[test]
fn c11_a_reset_flow_is_gone_after_its_time_and_c12_carries_data_until_then() {
    let mut world = World::established();
    assert_eq!(world.send(Forward, segment(RST, 101, 0)), Accepted);
    assert_eq!(world.phase(), Phase::Close);
    world.now += 9 * SECOND;
    assert!(world.found());
    assert_eq!(world.send(Reply, segment(ACK, 501, 101)), Accepted);
    assert_eq!(world.phase(), Phase::Close);
    world.now += 10 * SECOND - 1;
    assert!(world.found());
    world.now += 1;
    assert!(!world.found());
    world.now += SECOND;
    assert_eq!(world.local.begin_step(&world.table, world.now, &TimeoutsNs::default()).evicted, 0);
}

#[test]
fn c13_what_its_receiver_would_not_believe_closes_nothing() {
    // The client has acknowledged 501 and offered 1000 bytes.
    for seq in [500, 501 + 1001, 0x8000_0000, 0] {
        let world = World::established();
        assert_eq!(world.send(Reply, segment(RST, seq, 0)), Implausible, "RST {seq}");
        assert_eq!(world.phase(), Phase::Established);
    }
    for seq in [500, 501 + 1001, 0x8000_0000] {
        let world = World::established();
        assert_eq!(world.send(Reply, segment(FIN | ACK, seq, 101)), Implausible, "FIN {seq}");
        assert_eq!(world.phase(), Phase::Established);
    }
    for seq in [501, 501 + 1000] {
        let world = World::established();
        assert_eq!(world.send(Reply, segment(RST, seq, 0)), Accepted);
        assert_eq!(world.phase(), Phase::Close);
    }
}

#[test]
fn a_refused_connection_closes_only_with_the_right_acknowledgement() {
    let world = World::new();
    assert_eq!(world.send(Reply, segment(RST | ACK, 0, 999_999)), Implausible);
    assert_eq!(world.send(Reply, segment(RST, 0, 0)), Implausible);
    assert_eq!(world.phase(), Phase::SynSent);
    assert_eq!(world.send(Reply, segment(RST | ACK, 0, 101)), Accepted);
    assert_eq!(world.phase(), Phase::Close);
}

#[test]
fn a_forged_acknowledgement_does_not_shield_from_an_honest_reset() {
    let world = World::established();
    world.send(Reply, TcpSegment { payload_len: 1, ..segment(ACK, 501, 101 + 0x1000_0000) });
    assert_eq!(world.send(Forward, segment(RST, 101, 0)), Accepted);
    assert_eq!(world.phase(), Phase::Close);
}

#[test]
fn windows_are_scaled_when_both_ends_offer_it() {
    for (ours, reaches) in [(Some(7), true), (None, false)] {
        let world = World::new();
        world.send(Forward, TcpSegment { wscale: Some(7), ..segment(SYN, 100, 0) });
        world.send(Reply, TcpSegment { wscale: ours, ..segment(SYN | ACK, 500, 101) });
        world.send(Forward, segment(ACK, 101, 501));
        let verdict = world.send(Reply, segment(RST, 501 + 100_000, 0));
        assert_eq!(verdict == Accepted, reaches);
    }
}

#[test]
fn c14_a_syn_after_a_reset_opens_anew_from_the_openers_side_only() {
    let world = World::established();
    world.send(Reply, segment(RST, 501, 0));
    assert_eq!(world.send(Reply, segment(SYN, 9, 0)), Unsolicited);
    assert_eq!(world.phase(), Phase::Close);
    assert_eq!(world.send(Forward, segment(SYN, 9, 0)), Reopened);
    assert_eq!(world.phase(), Phase::SynSent);
}
