//! A loaded object whose programs take `lo` (index 1) for their interface, and the rules of the wire as frames.

use std::net::Ipv4Addr;

use sluice_bpf::{Config, DryRun, Link, LinkKind, Options, Program, Programs};

use super::frames::{ICMP, Ip, TCP, UDP, arp, ethernet, icmp, ipv6, ports};
use super::{bitmap, counters, enter_private_node, moved};

pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;
pub const XDP_REDIRECT: i32 = 4;
pub const NEXT: i32 = -1;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const LO: u32 = 1;
pub const NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const NODE_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
pub const MAC: [u8; 6] = [0x0e, 0, 0, 0, 0, 1];
pub const PEER: [u8; 6] = [0x0e, 0, 0, 0, 0, 2];
/// Both edges of a word and of the range, and one in the middle.
pub const OURS: [u16; 7] = [0, 63, 64, 1024, 29_999, 61_000, 65_535];
pub const NOT_OURS: [u16; 8] = [1, 62, 65, 1023, 1025, 30_000, 60_999, 65_534];

pub struct Bench {
    pub programs: Programs,
}

impl Bench {
    pub fn new(frags: bool, kind: LinkKind) -> Self {
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

    pub fn pod() -> Self {
        Self::new(false, LinkKind::Pod)
    }

    pub fn eni(frags: bool) -> Self {
        Self::new(frags, LinkKind::Eni { slot: 0 })
    }

    pub fn configure(&self, trunk_ifindex: u32, on_failure_kernel: bool) {
        let config = Config { nat_ip: NAT, trunk_ifindex, on_failure_kernel };
        self.programs.set_config(&config).expect("configuration");
    }

    /// Runs `program` on `frame`; exactly `counter` must move, by one.
    #[track_caller]
    pub fn expect_in(
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
    pub fn expect(&self, program: Program, frame: &[u8], verdict: i32, counter: &str) -> DryRun {
        self.expect_in(program, frame, &[], verdict, counter)
    }

    /// The frame is diverted with this tag and otherwise untouched.
    #[track_caller]
    pub fn expect_tagged(&self, program: Program, frame: &[u8], context: &[u8], kind: u8, counter: &str) {
        let run = self.expect_in(program, frame, context, REDIRECT, counter);
        let mut wanted = frame.to_vec();
        wanted[6..12].copy_from_slice(&[0x02, kind, 0, 0, 0, LO as u8]);
        assert_eq!(run.frame, wanted);
    }
}

pub fn tcp(to: Ipv4Addr, port: u16) -> Ip {
    Ip::new(OUTSIDE, to, TCP, ports(TCP, 443, port))
}

pub fn udp(to: Ipv4Addr, port: u16) -> Ip {
    Ip::new(OUTSIDE, to, UDP, ports(UDP, 53, port))
}

pub fn ping(to: Ipv4Addr, kind: u8, id: u16) -> Ip {
    Ip::new(OUTSIDE, to, ICMP, icmp(kind, id))
}

/// The wire's rules, one after the other, for XDP and for tc: `(name, frame, rest of the counter's name)`.
pub fn wire_rules() -> Vec<(Vec<u8>, &'static str)> {
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
pub fn cut_short() -> Vec<(Ip, usize, &'static str)> {
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
