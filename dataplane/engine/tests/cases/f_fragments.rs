//! F. Fragments: judged by their first one, never put together, never mixed up.

use std::collections::HashSet;

use sluice_engine::counters::Event::{self, FlowsOpened, HandedOver, PortsTaken, ToEni, ToPod};
use sluice_engine::testing::{fragments, icmp_error, read, reassemble, show, tcp, udp, verify};
use sluice_engine::wire::Kind;
use sluice_engine::{Drop, Ingress, Verdict};

use crate::world::*;

/// A 4,000-byte datagram of pod A to X, in three pieces.
fn pieces(id: u16) -> Vec<Vec<u8>> {
    let whole = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[5; 4000]).id(id).build();
    fragments(&whole, 1480)
}

fn sent_from(frames: &[Vec<u8>]) -> (u32, u16) {
    let sources: HashSet<_> = frames.iter().map(|f| (read(f).key.src(), read(f).id)).collect();
    assert_eq!(
        sources.len(),
        1,
        "one source and one identification: {:?}",
        frames.iter().map(|f| show(f)).collect::<Vec<_>>()
    );
    sources.into_iter().next().unwrap()
}

#[test]
fn f01_in_order() {
    let mut w = World::new();
    let mut sent = Vec::new();
    for (i, piece) in pieces(77).into_iter().enumerate() {
        let events: &[_] = if i == 0 { &[FlowsOpened, PortsTaken] } else { &[] };
        sent.push(w.pass(POD_A, piece, ENI0, events));
    }
    assert_eq!(sent_from(&sent).0, address(N));
    assert_eq!(verify(&reassemble(&sent).unwrap()), Ok(()));
    assert_eq!(w.totals().held, 0);
    // The reply in pieces.
    let port = read(&sent[0]).key.sport();
    let reply = udp("203.0.113.9:53", &format!("10.0.9.5:{port}")).payload(&[6; 4000]).id(3).build();
    let back: Vec<_> =
        fragments(&reply, 1480).into_iter().map(|piece| w.pass(WIRE0, piece, TO_A, &[])).collect();
    assert_eq!(sent_from(&back), (address(X), 3), "nothing of a reply's source is ours to change");
    let whole = reassemble(&back).unwrap();
    assert_eq!(verify(&whole), Ok(()));
    assert_eq!(read(&whole).key.dport(), 40_000);
}

#[test]
fn f02_out_of_order_the_rest_waits_for_the_first() {
    let mut w = World::new();
    let p = pieces(77);
    w.held(POD_A, p[2].clone(), &[]);
    w.held(POD_A, p[1].clone(), &[]);
    let mut step = w.step(vec![(POD_A, p[0].clone().into())]);
    assert_eq!(
        step.outs.iter().map(|o| read(&o.frame).fragment_offset()).collect::<Vec<_>>(),
        [0, 2960, 1480]
    );
    assert!(step.outs.iter().all(|o| o.verdict == ENI0));
    assert_eq!((step.moved["held"], step.moved["to_eni"]), (-2, 3));
    let sent: Vec<_> = step.outs.drain(..).map(|o| o.frame).collect();
    assert_eq!(sent_from(&sent).0, address(N));
    assert_eq!(verify(&reassemble(&sent).unwrap()), Ok(()));
}

#[test]
fn f03_the_first_never_comes() {
    let mut w = World::new();
    let p = pieces(77);
    w.held(POD_A, p[1].clone(), &[]);
    w.advance(30 * SECOND);
    let mut step = w.idle();
    let out = step.only();
    assert_eq!((out.verdict, out.frame), (Verdict::Drop(Drop::FragmentTimeout), p[1].clone()));
    // A later one does not wait longer because another one came.
    w.held(POD_A, p[1].clone(), &[]);
    w.advance(20 * SECOND);
    w.held(POD_A, p[2].clone(), &[]);
    w.advance(10 * SECOND);
    assert_eq!(w.idle().moved["fragment_timeout"], 2);
}

#[test]
fn f04_overlap() {
    for (second, third) in [(1480, 1472), (1480, 1480), (2960, 1488)] {
        let mut w = World::new();
        let p = pieces(77);
        w.pass(POD_A, p[0].clone(), ENI0, &[FlowsOpened, PortsTaken]);
        let piece = |offset: u16| {
            udp("10.0.1.10:0", "203.0.113.9:0")
                .payload(&[9; 1472])
                .id(77)
                .fragment_field(0x2000 | (offset / 8))
                .build()
        };
        w.pass(POD_A, piece(second), ENI0, &[]);
        w.dropped(POD_A, piece(third), Drop::FragmentOverlap, &[]);
    }
    // A second first fragment, which could replace the ports that were judged.
    let mut w = World::new();
    let p = pieces(77);
    w.pass(POD_A, p[0].clone(), ENI0, &[FlowsOpened, PortsTaken]);
    let mut step = w.step(vec![(POD_A, p[0].clone().into())]);
    assert_eq!(step.only().verdict, Verdict::Drop(Drop::FragmentOverlap));
}

#[test]
fn f05_tiny_first() {
    let mut w = World::new();
    let whole = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").payload(&[1; 64]).build();
    for size in [8, 16] {
        let p = fragments(&whole, size);
        w.dropped(POD_A, p[0].clone(), Drop::FragmentTiny, &[]);
    }
    // The second at offset 8 could overwrite the flags (RFC 1858).
    w.dropped(POD_A, fragments(&whole, 8)[1].clone(), Drop::FragmentTiny, &[]);
    let whole = tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S").tcp_options(&[1; 20]).payload(&[1; 64]);
    w.dropped(POD_A, fragments(&whole.build(), 24)[0].clone(), Drop::FragmentTiny, &[]);
    assert!(w.flows().is_empty());
}

#[test]
fn f06_what_follows_a_dropped_first_is_dropped() {
    let mut w = World::new();
    let spoofed = udp("10.0.1.99:40000", "203.0.113.9:53").payload(&[5; 4000]).id(7).build();
    for piece in fragments(&spoofed, 1480) {
        w.dropped(POD_A, piece, Drop::Spoof, &[]);
    }
    // Not ours: the kernel's, whole and in order.
    let host = udp("203.0.113.9:53", "10.0.9.5:45000").payload(&[5; 4000]).id(7).build();
    let p = fragments(&host, 1480);
    w.held(WIRE0, p[1].clone(), &[]);
    let step = w.step(vec![(WIRE0, p[0].clone().into()), (WIRE0, p[2].clone().into())]);
    assert!(step.outs.iter().all(|o| o.verdict == KERNEL0
        && o.frame[14..] == p[usize::from(read(&o.frame).fragment_offset()) / 1480][14..]));
    assert_eq!(step.outs.len(), 3);
}

#[test]
fn f07_fragments_on_two_workers() {
    let mut handed = 0;
    for id in 0..20 {
        let mut w = World::sized(Size { workers: 2, ..Size::default() }, |_, _| {});
        let mut sent = Vec::new();
        for (i, piece) in pieces(id).into_iter().enumerate() {
            // As the queues have it: the first here, the others there.
            w.at = usize::from(i > 0);
            let mut out = w.step(vec![(POD_A, piece.into())]).only();
            if let Verdict::Handoff { worker } = out.verdict {
                handed += 1;
                w.at = usize::from(worker);
                let packet = Input { frame: out.frame, offload: out.offload };
                out = w.step(vec![(out.ingress, packet)]).only();
            }
            assert_eq!(out.verdict, ENI0);
            sent.push(out.frame);
        }
        assert_eq!(sent_from(&sent).0, address(N));
        assert_eq!(verify(&reassemble(&sent).unwrap()), Ok(()));
        assert_eq!(w.totals().event(ToEni), 3);
    }
    assert!((20..=40).contains(&handed), "{handed} of 60 were handed over");
}

#[test]
fn f07_a_handoff_changes_and_counts_nothing_else() {
    let mut w = World::sized(Size { workers: 2, ..Size::default() }, |_, _| {});
    let piece = pieces(1).swap_remove(0);
    let owner = (0..2)
        .find(|at| {
            w.at = *at;
            let out = w.step(vec![(POD_A, piece.clone().into())]).only();
            out.verdict == ENI0
        })
        .unwrap();
    w.at = 1 - owner;
    let out = w.pass(POD_A, piece.clone(), Verdict::Handoff { worker: owner as u16 }, &[]);
    assert_eq!(out, piece);
    assert!(w.totals().event(HandedOver) >= 1);
}

#[test]
fn f08_two_pods_with_one_identification() {
    let mut w = World::new();
    let b = udp("10.0.1.11:40000", "203.0.113.9:53").payload(&[5; 4000]).id(77).build();
    let mut of_a = Vec::new();
    let mut of_b = Vec::new();
    for (a, b) in pieces(77).into_iter().zip(fragments(&b, 1480)) {
        of_a.push(w.step(vec![(POD_A, a.into())]).only().frame);
        of_b.push(w.step(vec![(POD_B, b.into())]).only().frame);
    }
    assert_ne!(sent_from(&of_a), sent_from(&of_b), "the host would put them together");
    assert_eq!(verify(&reassemble(&of_a).unwrap()), Ok(()));
    assert_eq!(verify(&reassemble(&of_b).unwrap()), Ok(()));
}

#[test]
fn f09_bounded_in_number() {
    let mut w = World::sized(Size { fragments: 64, ..Size::default() }, |_, _| {});
    for id in 0..64 {
        w.held(POD_A, pieces(id).swap_remove(1), &[]);
    }
    w.dropped(POD_A, pieces(64).swap_remove(1), Drop::FragmentQueueFull, &[]);
    // Whole packets and datagrams in order pass.
    w.udp_out("10.0.1.10:1", "203.0.113.9:53");
    for (i, piece) in pieces(70).into_iter().enumerate() {
        let events: &[_] = if i == 0 { &[FlowsOpened, PortsTaken] } else { &[] };
        w.pass(POD_A, piece, ENI0, events);
    }
}

#[test]
fn f10_untranslated_fragments_keep_their_identification() {
    let mut w = World::new();
    let whole = udp("10.0.2.20:4000", "10.0.77.7:53").payload(&[5; 4000]).id(99).build();
    let sent: Vec<_> = fragments(&whole, 1480)
        .into_iter()
        .enumerate()
        .map(|(i, piece)| w.pass(POD_C, piece, ENI1, if i == 0 { &[FlowsOpened] } else { &[] }))
        .collect();
    assert_eq!(sent_from(&sent), (address(C), 99));
}

#[test]
fn f11_a_fragmented_icmp_error_keeps_its_router() {
    let mut w = World::new();
    let port = w.udp_out("10.0.1.10:40000", "203.0.113.9:53");
    let offending = udp(&format!("10.0.9.5:{port}"), "203.0.113.9:53").payload(&[5; 500]).build();
    let error = icmp_error(3, 4, Y, N, &offending).quote(528).id(5).build();
    let back: Vec<_> =
        fragments(&error, 256).into_iter().map(|piece| w.pass(WIRE0, piece, TO_A, &[])).collect();
    assert!(back.len() > 1);
    let whole = reassemble(&back).unwrap();
    assert_eq!(verify(&whole), Ok(()));
    assert_eq!(show(&whole), "198.51.100.7>10.0.1.10 icmp 3/4 ttl 63 len 528");
}

#[test]
fn f12_an_fragmented_reply_to_two_pods_datagrams_finds_each() {
    let mut w = World::new();
    let (a, b) =
        (w.udp_out("10.0.1.10:40000", "203.0.113.9:53"), w.udp_out("10.0.1.11:40000", "203.0.113.9:53"));
    let reply = |port: u16, id: u16| {
        let whole = udp("203.0.113.9:53", &format!("10.0.9.5:{port}")).payload(&[6; 3000]).id(id).build();
        fragments(&whole, 1480)
    };
    for (of_a, of_b) in reply(a, 1).into_iter().zip(reply(b, 2)) {
        w.pass(WIRE0, of_a, TO_A, &[]);
        w.pass(WIRE0, of_b, TO_B, &[]);
    }
}

#[test]
fn f13_ttl_of_a_later_fragment() {
    let mut w = World::new();
    let p = pieces(1);
    w.pass(POD_A, p[0].clone(), ENI0, &[FlowsOpened, PortsTaken]);
    let whole = udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[5; 4000]).id(1).ttl(1).build();
    w.dropped(POD_A, fragments(&whole, 1480).swap_remove(1), Drop::TtlExceeded, &[]);
}

#[test]
fn f14_malformed_fragments() {
    let mut w = World::new();
    let piece = |field: u16, len: usize| {
        udp("10.0.1.10:1", "203.0.113.9:2").payload(&vec![0; len]).fragment_field(field).build()
    };
    // Not whole units of eight before the end; beyond 65,535 bytes.
    w.dropped(POD_A, piece(0x2000 | 10, 9), Drop::BadIpHeader, &[]);
    w.dropped(POD_A, piece(0x1FFF, 100), Drop::BadIpHeader, &[]);
    assert_eq!(read(&piece(0x2000 | 10, 8)).kind, Kind::LaterFragment);
}

#[test]
fn f15_shutdown_gives_every_fragment_back() {
    let mut w = World::new();
    for id in 0..10 {
        w.held(POD_A, pieces(id).swap_remove(2), &[]);
    }
    let mut out = Vec::new();
    w.workers[0].drain(w.now, &mut out, &mut sluice_engine::trace::NoTrace);
    assert_eq!(out.len(), 10);
    assert!(out.iter().all(|o| o.verdict == Verdict::Drop(Drop::Shutdown)));
    assert!(w.totals().conserved());
    assert_eq!((w.totals().held, w.totals().event(Event::In)), (0, 10));
}

#[test]
fn f16_between_pods_and_from_the_kernel() {
    let mut w = World::new();
    let whole = udp("10.0.1.10:4000", "10.0.2.20:53").payload(&[5; 3000]).id(1).build();
    for (i, piece) in fragments(&whole, 1480).into_iter().enumerate() {
        w.pass(POD_A, piece, TO_C, if i == 0 { &[FlowsOpened] } else { &[] });
    }
    let whole = udp("203.0.113.9:4000", "10.0.2.20:53").payload(&[5; 3000]).id(2).build();
    for (i, piece) in fragments(&whole, 1480).into_iter().enumerate() {
        w.pass(Ingress::ToPod(12), piece, TO_C, if i == 0 { &[FlowsOpened] } else { &[] });
    }
    let reply = udp("10.0.2.20:53", "203.0.113.9:4000").payload(&[5; 3000]).id(3).build();
    for piece in fragments(&reply, 1480) {
        w.pass(POD_C, piece, Verdict::KernelPod { ifindex: 12 }, &[]);
    }
    assert_eq!(w.totals().event(ToPod), 6);
}
