//! Every branch of every tc program takes the verdict that it should, moves exactly one counter, and writes the tag that it
//! should and nothing else: by `BPF_PROG_TEST_RUN`, without an interface of ours.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::bench::*;
use common::frames::{ICMP, Ip, SOURCE, TCP, UDP, arp, ethernet, icmp, ipv6, ports};
use sluice_bpf::{Config, DryRun, Link, LinkKind, Program};

/// `BPF_PROG_TEST_RUN` gives tc programs no IPv4 frame shorter than this (since Linux 6.18); `namespaces.rs` has those.
const SHORTEST: usize = 34;

/// A program, a frame that it diverts, with which context, and the counter: prefix and rest.
type Diversion<'a> = (Program, Vec<u8>, &'a [u8], &'a str, &'a str);

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
fn what_the_engine_sent_passes_once_and_loses_its_mark() {
    let bench = Bench::pod();
    let mark = bench.programs.mark().expect("a mark");
    assert_ne!(mark, 0);
    let mut frame = tcp(NAT, 1024).frame();
    frame[6..12].copy_from_slice(&bench.programs.handback_mac().expect("an address"));
    bench.expect(Program::EniIngress, &frame, NEXT, "eni_in_pass_handback");

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
    let cases: [Diversion; 3] = [
        (Program::FromPod, Ip::new(POD, OUTSIDE, TCP, ports(TCP, 1, 2)).frame(), &[], "from_pod", "redirect"),
        (
            Program::ToPod,
            Ip::new(OUTSIDE, POD, TCP, ports(TCP, 1, 2)).frame(),
            &forwarded,
            "to_pod",
            "redirect",
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
fn what_may_be_the_nodes_own_does_not_need_a_living_engine() {
    let bench = Bench::pod();
    let own = [
        (
            Program::EniEgress,
            Ip::new(NAT, OUTSIDE, TCP, ports(TCP, 64, 2)).frame(),
            "eni_out",
            "redirect_port",
        ),
        (Program::EniIngress, ping(NAT, 0, 64).frame(), "eni_in", "redirect_icmp_reply"),
        (Program::EniIngress, ping(NAT, 11, 0).frame(), "eni_in", "redirect_icmp_error"),
        (Program::EniIngress, tcp(NAT, 64).fragment(0x2000).frame(), "eni_in", "redirect_fragment"),
    ];
    let expect = |verdict, outcome: Option<&str>| {
        for (program, frame, prefix, taken) in &own {
            bench.expect_in(*program, frame, &[], verdict, &format!("{prefix}_{}", outcome.unwrap_or(taken)));
        }
    };
    bench.configure(0, false);
    expect(NEXT, Some("pass_no_trunk"));
    bench.configure(7, false);
    expect(REDIRECT, None); // no heartbeat was ever given
    bench.programs.keep_alive(Duration::from_secs(60)).expect("a heartbeat");
    expect(REDIRECT, None);
    bench.programs.keep_alive(Duration::ZERO).expect("a heartbeat");
    expect(NEXT, Some("pass_no_trunk"));
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
