//! Every branch of every program takes the verdict that it should, moves exactly one counter, and writes the tag that it
//! should: by `BPF_PROG_TEST_RUN`, without an interface of ours.
//!
//! The programs see `lo` (index 1) as their interface.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::frames::{ICMP, Ip, SOURCE, TCP, UDP, arp, ethernet, icmp, ipv6, ports};
use common::{XdpSocket, bitmap, counters, enter_private_node, moved};
use sluice_bpf::{Config, DryRun, Link, LinkKind, Options, Program, Programs};

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// `BPF_PROG_TEST_RUN` gives tc programs no IPv4 frame shorter than this (since Linux 6.18); `namespaces.rs` has those.
const SHORTEST: usize = 34;

const LO: u32 = 1;
const NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const NODE_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
const MAC: [u8; 6] = [0x0e, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [0x0e, 0, 0, 0, 0, 2];
/// Both edges of a word and of the range, and one in the middle.
const OURS: [u16; 7] = [0, 63, 64, 1024, 29_999, 61_000, 65_535];
const NOT_OURS: [u16; 8] = [1, 62, 65, 1023, 1025, 30_000, 60_999, 65_534];

/// A program, a frame that it diverts, with which context, and the counter: prefix and rest.
type Diversion<'a> = (Program, Vec<u8>, &'a [u8], &'a str, &'a str);

struct Bench {
    programs: Programs,
}

impl Bench {
    fn new(frags: bool, kind: LinkKind) -> Self {
        enter_private_node();
        let programs = Programs::load(&Options { frags, ..Options::default() })
            .unwrap_or_else(|error| panic!("{error}"));
        let bench = Self { programs };
        bench.configure(7, false);
        let ip = if kind == LinkKind::Pod { POD } else { NAT };
        bench.programs.upsert_link(LO, &Link { kind, mac: MAC, peer_mac: PEER, ip }).expect("a link");
        bench.programs.upsert_pod(POD, LO).expect("a pod");
        bench.programs.set_local_addresses(&[NAT, NODE_LOCAL]).expect("local addresses");
        bench.programs.set_ports(&bitmap(&OURS), &bitmap(&OURS), &bitmap(&OURS)).expect("ports");
        bench
    }

    fn pod() -> Self {
        Self::new(false, LinkKind::Pod)
    }

    fn eni(frags: bool) -> Self {
        Self::new(frags, LinkKind::Eni { slot: 0 })
    }

    fn configure(&self, trunk_ifindex: u32, on_failure_kernel: bool) {
        let config = Config { nat_ip: NAT, trunk_ifindex, on_failure_kernel };
        self.programs.set_config(&config).expect("configuration");
    }

    /// Runs `program` on `frame`; exactly `counter` must move, by one.
    #[track_caller]
    fn expect_in(
        &self,
        program: Program,
        frame: &[u8],
        context: &[u8],
        verdict: i32,
        counter: &str,
    ) -> DryRun {
        let before = counters(&self.programs);
        let run = self.programs.dry_run(program, frame, context).expect("the kernel runs it");
        let moved = moved(&before, &counters(&self.programs));
        assert_eq!((run.verdict, moved), (verdict, vec![(counter, 1)]), "{program:?} on {frame:02x?}");
        run
    }

    #[track_caller]
    fn expect(&self, program: Program, frame: &[u8], verdict: i32, counter: &str) -> DryRun {
        self.expect_in(program, frame, &[], verdict, counter)
    }

    /// The frame is diverted with this tag and otherwise untouched.
    #[track_caller]
    fn expect_tagged(&self, program: Program, frame: &[u8], context: &[u8], kind: u8, counter: &str) {
        let run = self.expect_in(program, frame, context, REDIRECT, counter);
        let mut wanted = frame.to_vec();
        wanted[6..12].copy_from_slice(&[0x02, kind, 0, 0, 0, LO as u8]);
        assert_eq!(run.frame, wanted);
    }
}

/// The leading part of `struct __sk_buff`.
fn skb(mark: u32, ingress_ifindex: u32) -> Vec<u8> {
    let mut context = vec![0; 256];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context
}

fn mark_of(run: &DryRun) -> u32 {
    u32::from_ne_bytes(run.context[8..12].try_into().expect("a mark"))
}

/// What `struct xdp_md` says of a frame on `lo`.
fn xdp_md(linear: usize, queue: u32) -> Vec<u8> {
    let words = [0, linear as u32, 0, LO, queue, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn tcp(to: Ipv4Addr, port: u16) -> Ip {
    Ip::new(OUTSIDE, to, TCP, ports(TCP, 443, port))
}

fn udp(to: Ipv4Addr, port: u16) -> Ip {
    Ip::new(OUTSIDE, to, UDP, ports(UDP, 53, port))
}

fn ping(to: Ipv4Addr, kind: u8, id: u16) -> Ip {
    Ip::new(OUTSIDE, to, ICMP, icmp(kind, id))
}

/// The wire's rules, one after the other, for XDP and for tc: `(name, frame, rest of the counter's name)`.
fn wire_rules() -> Vec<(Vec<u8>, &'static str)> {
    let mut rules = vec![
        (arp(), "pass_not_ipv4"),
        (ipv6("2001:db8::1", "2001:db8::2"), "pass_not_ipv4"),
        (ipv6("fe80::1", "ff02::1"), "pass_not_ipv4"),
        (ethernet(0x88cc, &[0; 46]), "pass_not_ipv4"),
        (tcp(OUTSIDE, 1024).frame(), "pass_other_address"),
        (tcp(NODE_LOCAL, 1024).frame(), "pass_other_address"),
        (tcp(POD, 1).frame(), "redirect_pod"),
        (udp(POD, 1).options(40).frame(), "redirect_pod"),
        (ping(POD, 8, 1).frame(), "redirect_pod"),
        (Ip::new(OUTSIDE, POD, 132, vec![0; 12]).frame(), "redirect_pod"),
        (tcp(POD, 1).fragment(0x2000).frame(), "redirect_pod"),
        (Ip::new(OUTSIDE, NAT, 132, ports(UDP, 1024, 1024)).frame(), "pass_host_port"),
        (Ip::new(OUTSIDE, NAT, 4, vec![0x45; 40]).frame(), "pass_host_port"),
        // First, middle and last fragment; "do not fragment" alone is none.
        (tcp(NAT, 22).fragment(0x2000).frame(), "redirect_fragment"),
        (udp(NAT, 22).fragment(0x2003).frame(), "redirect_fragment"),
        (ping(NAT, 8, 22).fragment(0x0001).frame(), "redirect_fragment"),
        (Ip::new(OUTSIDE, NAT, 132, vec![0; 8]).fragment(0x2000).frame(), "redirect_fragment"),
        (tcp(NAT, 22).fragment(0x4000).frame(), "pass_host_port"),
        (tcp(NAT, 1024).fragment(0x4000).frame(), "redirect_port"),
    ];
    for options in [0, 4, 20, 40] {
        for port in OURS {
            rules.push((tcp(NAT, port).options(options).frame(), "redirect_port"));
            rules.push((udp(NAT, port).options(options).frame(), "redirect_port"));
            rules.push((ping(NAT, 0, port).options(options).frame(), "redirect_icmp_reply"));
            rules.push((ping(NAT, 8, port).options(options).frame(), "pass_host_icmp"));
        }
        for port in NOT_OURS {
            rules.push((tcp(NAT, port).options(options).frame(), "pass_host_port"));
            rules.push((udp(NAT, port).options(options).frame(), "pass_host_port"));
            rules.push((ping(NAT, 0, port).options(options).frame(), "pass_host_icmp"));
        }
        for kind in 0..=255 {
            let counter = match kind {
                0 => "redirect_icmp_reply",
                3 | 4 | 11 | 12 => "redirect_icmp_error",
                _ => "pass_host_icmp",
            };
            rules.push((ping(NAT, kind, 1024).options(options).frame(), counter));
        }
    }
    // A source port of ours means nothing on the way in.
    rules.push((Ip::new(OUTSIDE, NAT, TCP, ports(TCP, 1024, 22)).frame(), "pass_host_port"));
    for first in [0x44, 0x40, 0x55, 0x65, 0x05] {
        let mut frame = tcp(NAT, 1024).frame();
        frame[14] = first; // header length below 5, or another version
        rules.push((frame, "pass_malformed"));
    }
    for tag in [0x8100u16, 0x88a8] {
        let inner = [&[0, 5, 8, 0][..], &tcp(POD, 1024).packet()].concat();
        rules.push((ethernet(tag, &inner), "pass_not_ipv4"));
    }
    rules
}

/// Frames that are ours, and the length from which on that can be told.
fn cut_short() -> Vec<(Ip, usize, &'static str)> {
    vec![
        (tcp(NAT, 1024), 14 + 20 + 4, "redirect_port"),
        (tcp(NAT, 1024).options(40), 14 + 60 + 4, "redirect_port"),
        (udp(NAT, 1024).options(8), 14 + 28 + 4, "redirect_port"),
        (ping(NAT, 0, 1024), 14 + 20 + 8, "redirect_icmp_reply"),
        (ping(NAT, 3, 0).options(40), 14 + 60 + 8, "redirect_icmp_error"),
        (tcp(NAT, 1024).fragment(0x2000), 14 + 20, "redirect_fragment"),
        (tcp(POD, 1024), 14 + 20, "redirect_pod"),
    ]
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
        let ours =
            [tcp(NAT, 1024), tcp(POD, 1), ping(NAT, 0, 64), ping(NAT, 11, 0), udp(NAT, 1).fragment(0x2000)];
        let xdp = |frame: &Ip, verdict, counter| {
            bench.expect(Program::EniXdp, &frame.frame(), verdict, counter);
        };
        let none = |verdict, counter| ours.iter().for_each(|frame| xdp(frame, verdict, counter));
        let socket = XdpSocket::new();

        none(XDP_DROP, "xdp_drop_no_socket");
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
    bench.expect(Program::EniIngress, &frame, NEXT, "eni_in_pass_handback");
    frame[11] ^= 1;
    bench.expect(Program::EniXdp, &frame, XDP_DROP, "xdp_drop_no_socket");
}

#[test]
fn nothing_is_ours_before_there_is_an_address() {
    let bench = Bench::eni(false);
    let config = Config { nat_ip: Ipv4Addr::UNSPECIFIED, trunk_ifindex: 7, on_failure_kernel: false };
    bench.programs.set_config(&config).expect("configuration");
    let frame = tcp(Ipv4Addr::UNSPECIFIED, 1024).frame();
    bench.expect(Program::EniXdp, &frame, XDP_PASS, "xdp_pass_other_address");
    let sent = Ip::new(Ipv4Addr::UNSPECIFIED, OUTSIDE, UDP, ports(UDP, 1024, 67)).frame();
    bench.expect(Program::EniEgress, &sent, NEXT, "eni_out_pass_other_address");
}

#[test]
fn eni_ingress_follows_the_same_rules_and_tags() {
    let bench = Bench::eni(false);
    for (frame, rule) in wire_rules() {
        let counter = format!("eni_in_{rule}");
        if rule.starts_with("pass") {
            let run = bench.expect(Program::EniIngress, &frame, NEXT, &counter);
            assert_eq!(run.frame, frame);
        } else {
            bench.expect_tagged(Program::EniIngress, &frame, &[], 0x14, &counter);
        }
    }
    for (ip, enough, rule) in cut_short() {
        let frame = ip.frame();
        for length in SHORTEST..enough {
            bench.expect(Program::EniIngress, &frame[..length], NEXT, "eni_in_pass_truncated");
        }
        bench.expect_tagged(Program::EniIngress, &frame[..enough], &[], 0x14, &format!("eni_in_{rule}"));
    }
}

#[test]
fn eni_egress_takes_only_what_could_be_one_of_our_mappings() {
    let bench = Bench::eni(false);
    let sent = |protocol, payload| Ip::new(NAT, OUTSIDE, protocol, payload);
    let pass = |frame: &[u8], counter| {
        let run = bench.expect(Program::EniEgress, frame, NEXT, counter);
        assert_eq!(run.frame, frame);
    };
    let take = |frame: &[u8], counter| bench.expect_tagged(Program::EniEgress, frame, &[], 0x13, counter);

    for options in [0, 40] {
        for protocol in [TCP, UDP] {
            for port in OURS {
                take(
                    &sent(protocol, ports(protocol, port, 22)).options(options).frame(),
                    "eni_out_redirect_port",
                );
            }
            for port in NOT_OURS {
                pass(
                    &sent(protocol, ports(protocol, port, 1024)).options(options).frame(),
                    "eni_out_pass_port",
                );
            }
        }
        for kind in 0..=255 {
            let frame = sent(ICMP, icmp(kind, 1024)).options(options).frame();
            match kind {
                8 => take(&frame, "eni_out_redirect_icmp_request"),
                _ => pass(&frame, "eni_out_pass_icmp"),
            }
        }
        pass(&sent(ICMP, icmp(8, 1025)).options(options).frame(), "eni_out_pass_icmp");
    }
    pass(&sent(132, ports(UDP, 1024, 1024)).frame(), "eni_out_pass_port");
    for field in [0x2000, 0x2003, 0x0001] {
        take(&sent(UDP, ports(UDP, 22, 22)).fragment(field).frame(), "eni_out_redirect_fragment");
        pass(&Ip::new(POD, OUTSIDE, UDP, vec![0; 8]).fragment(field).frame(), "eni_out_pass_other_address");
    }
    pass(&Ip::new(POD, OUTSIDE, TCP, ports(TCP, 1024, 22)).frame(), "eni_out_pass_other_address");
    pass(&arp(), "eni_out_pass_not_ipv4");
    pass(&ipv6("2001:db8::1", "2001:db8::2"), "eni_out_pass_not_ipv4");
    let mut malformed = sent(TCP, ports(TCP, 1024, 22)).frame();
    malformed[14] = 0x44;
    pass(&malformed, "eni_out_pass_malformed");

    let frame = sent(TCP, ports(TCP, 1024, 22)).options(40).frame();
    for length in SHORTEST..14 + 60 + 4 {
        pass(&frame[..length], "eni_out_pass_truncated");
    }
    take(&frame[..14 + 60 + 4], "eni_out_redirect_port");
}

#[test]
fn a_pods_packets_are_the_engines_except_what_the_kernel_must_have() {
    let bench = Bench::pod();
    let from = |to, protocol| Ip::new(POD, to, protocol, ports(protocol, 40_000, 80));
    let end = |frame: &[u8], verdict, counter| {
        let run = bench.expect(Program::FromPod, frame, verdict, counter);
        assert_eq!(run.frame, frame);
    };
    let take = |frame: &[u8]| bench.expect_tagged(Program::FromPod, frame, &[], 0x11, "from_pod_redirect");

    for frame in [
        from(OUTSIDE, TCP),
        from(OUTSIDE, UDP),
        from(OUTSIDE, 132),
        from(Ipv4Addr::new(169, 254, 169, 254), TCP),
        from(OUTSIDE, TCP).options(40),
        from(OUTSIDE, TCP).fragment(0x2000),
        from(OUTSIDE, TCP).fragment(0x0003),
        from(Ipv4Addr::new(223, 255, 255, 255), UDP),
        from(Ipv4Addr::new(240, 0, 0, 1), UDP),
    ] {
        take(&frame.frame());
    }
    for to in [Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::new(239, 255, 255, 250), Ipv4Addr::BROADCAST] {
        end(&from(to, UDP).frame(), NEXT, "from_pod_pass_multicast");
    }
    for to in [NAT, NODE_LOCAL] {
        end(&from(to, UDP).frame(), NEXT, "from_pod_pass_local");
        end(&from(to, UDP).fragment(0x0003).frame(), NEXT, "from_pod_pass_local");
    }

    for source in [OUTSIDE, NAT, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 1, 11)] {
        for to in [OUTSIDE, NAT, Ipv4Addr::BROADCAST] {
            let frame = Ip::new(source, to, UDP, ports(UDP, 68, 67)).frame();
            end(&frame, SHOT, "from_pod_drop_spoof");
        }
    }

    end(&arp(), NEXT, "from_pod_pass_arp");
    for (source, destination) in [
        ("fe80::1", "ff02::2"),
        ("::", "ff02::1:ff00:1"),
        ("febf::1", "2001:db8::1"),
        ("2001:db8::1", "fe80::1"),
    ] {
        end(&ipv6(source, destination), NEXT, "from_pod_pass_link_local");
    }
    for (source, destination) in [
        ("2001:db8::1", "2001:db8::2"),
        ("fec0::1", "2001:db8::2"),
        ("2001:db8::1", "ff05::2"),
        ("::", "ff0e::1"),
    ] {
        end(&ipv6(source, destination), SHOT, "from_pod_drop_not_ipv4");
    }
    end(&ethernet(0x88cc, &[0; 46]), SHOT, "from_pod_drop_not_ipv4");
    for tag in [0x8100u16, 0x88a8] {
        let inner = [&[0, 5, 8, 0][..], &from(OUTSIDE, TCP).packet()].concat();
        end(&ethernet(tag, &inner), SHOT, "from_pod_drop_vlan");
    }

    let frame = from(OUTSIDE, TCP).frame();
    for length in SHORTEST..=frame.len() {
        take(&frame[..length]);
    }
    for first in [0x44, 0x40, 0x55, 0x65] {
        let mut frame = from(OUTSIDE, TCP).frame();
        frame[14] = first;
        end(&frame, SHOT, "from_pod_drop_malformed");
    }

    let frame = from(OUTSIDE, TCP).frame();
    bench
        .programs
        .upsert_link(LO, &Link { kind: LinkKind::Eni { slot: 0 }, mac: MAC, peer_mac: PEER, ip: POD })
        .expect("a link");
    end(&frame, SHOT, "from_pod_drop_unknown_interface");
    bench.programs.remove_link(LO).expect("removed");
    end(&frame, SHOT, "from_pod_drop_unknown_interface");
    bench.programs.remove_link(LO).expect("removed twice is no error");
}

#[test]
fn a_pods_packet_that_the_engine_handed_back_passes_once_and_loses_its_mark() {
    let bench = Bench::pod();
    let mark = bench.programs.mark().expect("a mark");
    assert_ne!(mark, 0);
    let frame = Ip::new(OUTSIDE, OUTSIDE, TCP, ports(TCP, 1, 2)).frame();
    let run = bench.expect_in(Program::FromPod, &frame, &skb(mark, 0), NEXT, "from_pod_pass_handback");
    assert_eq!((mark_of(&run), run.frame), (0, frame.clone()));
    bench.expect_in(Program::FromPod, &frame, &skb(mark ^ 1, 0), SHOT, "from_pod_drop_spoof");

    let sent = Ip::new(NAT, OUTSIDE, TCP, ports(TCP, 1024, 2)).frame();
    let run = bench.expect_in(Program::EniEgress, &sent, &skb(mark, 0), NEXT, "eni_out_pass_engine");
    assert_eq!((mark_of(&run), run.frame), (0, sent.clone()));
    // A mark of the node's own firewall stays.
    let other = Ip::new(POD, OUTSIDE, TCP, ports(TCP, 1024, 2)).frame();
    let run =
        bench.expect_in(Program::EniEgress, &other, &skb(0x4000, 0), NEXT, "eni_out_pass_other_address");
    assert_eq!(mark_of(&run), 0x4000);
}

#[test]
fn into_a_pod_the_nodes_own_passes_and_what_is_forwarded_is_the_engines() {
    let bench = Bench::pod();
    let frame = Ip::new(OUTSIDE, POD, TCP, ports(TCP, 443, 80)).frame();
    let forwarded = skb(0, LO);
    for any in [frame.clone(), arp(), ipv6("2001:db8::1", "2001:db8::2"), ethernet(0x88cc, &[0; 46])] {
        bench.expect_in(Program::ToPod, &any, &skb(0, 0), NEXT, "to_pod_pass_node");
    }
    bench.expect_tagged(Program::ToPod, &frame, &forwarded, 0x12, "to_pod_redirect");
    let end = |frame: &[u8], verdict, counter| {
        bench.expect_in(Program::ToPod, frame, &forwarded, verdict, counter);
    };
    // The node's own address is no excuse: only what never came in by an interface is the node's own.
    let masqueraded = Ip::new(NAT, POD, TCP, ports(TCP, 443, 80)).frame();
    bench.expect_tagged(Program::ToPod, &masqueraded, &forwarded, 0x12, "to_pod_redirect");
    end(&arp(), NEXT, "to_pod_pass_arp");
    end(&ipv6("fe80::1", "2001:db8::1"), NEXT, "to_pod_pass_link_local");
    end(&ipv6("2001:db8::1", "2001:db8::2"), SHOT, "to_pod_drop_not_ipv4");
    end(&ethernet(0x88cc, &[0; 46]), SHOT, "to_pod_drop_not_ipv4");
    for tag in [0x8100u16, 0x88a8] {
        end(&ethernet(tag, &[&[0, 5, 8, 0][..], &frame[14..]].concat()), SHOT, "to_pod_drop_vlan");
    }
}

#[test]
fn without_a_trunk_or_a_living_engine_tc_fails_closed_unless_the_operator_chose_otherwise() {
    let bench = Bench::pod();
    let forwarded = skb(0, LO);
    let cases: [Diversion; 4] = [
        (Program::FromPod, Ip::new(POD, OUTSIDE, TCP, ports(TCP, 1, 2)).frame(), &[], "from_pod", "redirect"),
        (
            Program::ToPod,
            Ip::new(OUTSIDE, POD, TCP, ports(TCP, 1, 2)).frame(),
            &forwarded,
            "to_pod",
            "redirect",
        ),
        (
            Program::EniEgress,
            Ip::new(NAT, OUTSIDE, TCP, ports(TCP, 64, 2)).frame(),
            &[],
            "eni_out",
            "redirect_port",
        ),
        (Program::EniIngress, tcp(NAT, 64).frame(), &[], "eni_in", "redirect_port"),
    ];
    let expect = |verdict, outcome: Option<&str>| {
        for (program, frame, context, prefix, taken) in &cases {
            let counter = format!("{prefix}_{}", outcome.unwrap_or(taken));
            let run = bench.expect_in(*program, frame, context, verdict, &counter);
            assert_eq!(run.frame == *frame, outcome.is_some(), "tagged only when diverted");
        }
    };
    bench.configure(0, false);
    expect(SHOT, Some("drop_no_trunk"));
    bench.configure(0, true);
    expect(NEXT, Some("pass_no_trunk"));
    bench.configure(7, true);
    expect(REDIRECT, None); // no heartbeat was ever given
    bench.programs.keep_alive(Duration::from_secs(60)).expect("a heartbeat");
    expect(REDIRECT, None);
    bench.programs.keep_alive(Duration::ZERO).expect("a heartbeat");
    expect(NEXT, Some("pass_no_trunk"));
    bench.configure(7, false);
    expect(REDIRECT, None); // fail closed asks for no heartbeat
}

#[test]
fn the_trunk_acts_on_its_tags_and_drops_everything_else() {
    let bench = Bench::pod();
    let mark = bench.programs.mark().expect("a mark");
    let handback = bench.programs.handback_mac().expect("an address");
    let tagged = |kind: u8, index: u32| {
        let mut frame = Ip::new(OUTSIDE, POD, TCP, ports(TCP, 1, 2)).frame();
        frame[6..8].copy_from_slice(&[2, kind]);
        frame[8..12].copy_from_slice(&index.to_be_bytes());
        frame
    };
    let context = skb(0, 0);
    let act = |kind, source: [u8; 6], marked, counter| {
        let frame = tagged(kind, LO);
        let run = bench.expect_in(Program::Trunk, &frame, &context, REDIRECT, counter);
        assert_eq!(run.frame[6..12], source, "the real source address is back");
        assert_eq!((&run.frame[..6], &run.frame[12..]), (&frame[..6], &frame[12..]));
        assert_eq!(mark_of(&run), marked);
    };
    let end = |frame: &[u8], counter| {
        let run = bench.expect_in(Program::Trunk, frame, &context, SHOT, counter);
        assert_eq!(run.frame, frame);
    };
    let unknown = "trunk_drop_unknown_interface";
    let link = Link { kind: LinkKind::Pod, mac: MAC, peer_mac: PEER, ip: POD };

    act(0x21, MAC, 0, "trunk_redirect_pod");
    act(0x23, PEER, mark, "trunk_redirect_kernel_pod");
    end(&tagged(0x22, LO), unknown);
    end(&tagged(0x24, LO), unknown);
    bench.programs.upsert_link(LO, &Link { kind: LinkKind::Eni { slot: 3 }, ..link }).expect("a link");
    act(0x22, MAC, mark, "trunk_redirect_eni");
    act(0x24, handback, 0, "trunk_redirect_kernel_eni");
    end(&tagged(0x21, LO), unknown);
    end(&tagged(0x23, LO), unknown);

    // The whole index counts, each byte of it.
    for index in [0, 2, LO | 1 << 8, LO | 1 << 16, LO | 1 << 24] {
        end(&tagged(0x22, index), unknown);
    }
    bench.programs.upsert_link(0x0102_0304, &link).expect("a link");
    let run =
        bench.expect_in(Program::Trunk, &tagged(0x21, 0x0102_0304), &[], REDIRECT, "trunk_redirect_pod");
    assert_eq!(run.frame[6..12], MAC);

    for kind in (0..=255).filter(|kind| !(0x21..=0x24).contains(kind)) {
        end(&tagged(kind, LO), "trunk_drop_kind");
    }
    let mut frame = tagged(0x21, LO);
    for first in [0x00, 0x03, 0x06, 0xff] {
        frame[6] = first;
        end(&frame, "trunk_drop_kind");
    }
    frame[6..12].copy_from_slice(&SOURCE);
    end(&frame, "trunk_drop_kind");
    end(&tagged(0x00, 0)[..SHORTEST], "trunk_drop_kind");
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
