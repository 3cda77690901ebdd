//! Every branch of the XDP program takes the verdict that it should and moves exactly one counter: by
//! `BPF_PROG_TEST_RUN`, without an interface of ours.

mod common;

use common::XdpSocket;
use common::bench::*;
use common::frames::Ip;
use sluice_bpf::{Link, LinkKind, Program};

/// What `struct xdp_md` says of a frame on `lo`.
fn xdp_md(linear: usize, queue: u32) -> Vec<u8> {
    let words = [0, linear as u32, 0, LO, queue, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn xdp_follows_the_wires_rules() {
    for frags in [false, true] {
        let bench = Bench::eni(frags);
        let socket = XdpSocket::new();
        bench.programs.set_xsk(0, 0, socket.fd()).expect("a socket");
        for (frame, rule) in wire_rules() {
            let verdict = if rule.starts_with("pass") { XDP_PASS } else { XDP_REDIRECT };
            let run = bench.expect(Program::EniXdp, &frame, verdict, &format!("xdp_{rule}"));
            assert_eq!(run.frame, frame, "XDP writes nothing");
        }
    }
}

#[test]
fn xdp_leaves_what_is_cut_short_to_the_kernel() {
    for frags in [false, true] {
        let bench = Bench::eni(frags);
        let socket = XdpSocket::new();
        bench.programs.set_xsk(0, 0, socket.fd()).expect("a socket");
        for (ip, enough, rule) in cut_short() {
            let frame = ip.frame();
            for length in 14..=frame.len() {
                let (verdict, rule) =
                    if length < enough { (XDP_PASS, "pass_truncated") } else { (XDP_REDIRECT, rule) };
                bench.expect(Program::EniXdp, &frame[..length], verdict, &format!("xdp_{rule}"));
            }
        }
    }
}

#[test]
fn frags_are_read_beyond_a_short_first_buffer() {
    let bench = Bench::eni(true);
    let socket = XdpSocket::new();
    bench.programs.set_xsk(0, 0, socket.fd()).expect("a socket");
    for (ip, _, rule) in cut_short() {
        let frame = ip.frame();
        for linear in 14..=frame.len() {
            let context = xdp_md(linear, 0);
            bench.expect_in(Program::EniXdp, &frame, &context, XDP_REDIRECT, &format!("xdp_{rule}"));
        }
    }
    let mut jumbo = tcp(POD, 1);
    jumbo.payload.resize(8900, 0);
    bench.expect(Program::EniXdp, &jumbo.frame(), XDP_REDIRECT, "xdp_redirect_pod");
}

#[test]
fn what_is_ours_without_a_socket_is_dropped_unless_the_operator_chose_otherwise() {
    for frags in [false, true] {
        let bench = Bench::eni(frags);
        let ours = [tcp(NAT, 1024), tcp(POD, 1)];
        let perhaps_the_nodes = [ping(NAT, 0, 64), ping(NAT, 11, 0), udp(NAT, 1).fragment(0x2000)];
        let xdp = |frame: &Ip, verdict, counter| {
            bench.expect(Program::EniXdp, &frame.frame(), verdict, counter);
        };
        let none = |verdict, counter| ours.iter().for_each(|frame| xdp(frame, verdict, counter));
        let socket = XdpSocket::new();

        none(XDP_DROP, "xdp_drop_no_socket");
        perhaps_the_nodes.iter().for_each(|frame| xdp(frame, XDP_PASS, "xdp_pass_no_socket"));
        bench.configure(7, true);
        none(XDP_PASS, "xdp_pass_no_socket");
        bench.configure(7, false);

        // Another slot's and another queue's socket are not this one's.
        bench.programs.set_xsk(1, 0, socket.fd()).expect("a socket");
        bench.programs.set_xsk(0, 1, socket.fd()).expect("a socket");
        none(XDP_DROP, "xdp_drop_no_socket");
        bench.programs.set_xsk(0, 0, socket.fd()).expect("a socket");
        xdp(&ours[0], XDP_REDIRECT, "xdp_redirect_port");
        // The slot is the interface's.
        let link = Link { kind: LinkKind::Eni { slot: 2 }, mac: MAC, peer_mac: PEER, ip: NAT };
        bench.programs.upsert_link(LO, &link).expect("a link");
        none(XDP_DROP, "xdp_drop_no_socket");
        bench.programs.set_xsk(2, 0, socket.fd()).expect("a socket");
        xdp(&ours[0], XDP_REDIRECT, "xdp_redirect_port");
        bench.programs.clear_xsk(2, 0).expect("cleared");
        bench.programs.clear_xsk(2, 0).expect("cleared twice is no error");
        none(XDP_DROP, "xdp_drop_no_socket");

        // An interface that is no ENI, or not known, has no socket.
        bench.programs.set_xsk(2, 0, socket.fd()).expect("a socket");
        bench.programs.upsert_link(LO, &Link { kind: LinkKind::Pod, ..link }).expect("a link");
        none(XDP_DROP, "xdp_drop_no_socket");
        bench.programs.remove_link(LO).expect("removed");
        none(XDP_DROP, "xdp_drop_no_socket");

        // A socket that is closed leaves the map by itself.
        bench.programs.upsert_link(LO, &link).expect("a link");
        xdp(&ours[0], XDP_REDIRECT, "xdp_redirect_port");
        drop(socket);
        none(XDP_DROP, "xdp_drop_no_socket");
    }
}

#[test]
fn what_the_engine_hands_back_passes_xdp_by_its_source() {
    let bench = Bench::eni(false);
    let mut frame = tcp(NAT, 1024).frame();
    frame[6..12].copy_from_slice(&bench.programs.handback_mac().expect("an address"));
    bench.expect(Program::EniXdp, &frame, XDP_PASS, "xdp_pass_handback");
    frame[11] ^= 1;
    bench.expect(Program::EniXdp, &frame, XDP_DROP, "xdp_drop_no_socket");
}

#[test]
fn socket_slots_beyond_the_map_are_refused() {
    let bench = Bench::eni(false);
    let socket = XdpSocket::new();
    for (slot, queue, wanted) in [(64, 0, "ENI slot 64"), (0, 64, "queue 64")] {
        let error = bench.programs.set_xsk(slot, queue, socket.fd()).expect_err("refused").to_string();
        assert!(error.contains(wanted) && error.contains("63"), "{error}");
    }
    bench.programs.set_xsk(63, 63, socket.fd()).expect("the last one");
}
