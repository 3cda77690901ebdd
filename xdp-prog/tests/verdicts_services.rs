//! What a pod exchanges with its own node: whose it is when services are there. By `BPF_PROG_TEST_RUN`, as `verdicts_tc.rs`.

mod common;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use common::bench::*;
use common::frames::{ICMP, Ip, TCP, UDP, arp, icmp, ipv6, ports};
use sluice_bpf::{Config, Endpoint, Program};

const SCTP: u8 = 132;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const HAIRPIN: &str = "from_pod_redirect_hairpin";
const FRONTEND: &str = "from_pod_redirect_frontend";
const FRAGMENT: &str = "from_pod_redirect_fragment";
const LOCAL: &str = "from_pod_pass_local";
const OWN: &str = "to_pod_pass_node";

fn endpoints(list: &[(Ipv4Addr, u16, u8)]) -> BTreeSet<Endpoint> {
    list.iter().map(|&(address, port, protocol)| Endpoint { address, port, protocol }).collect()
}

/// A pod's packet.
fn from(to: Ipv4Addr, protocol: u8, port: u16) -> Ip {
    Ip::new(POD, to, protocol, ports(protocol, 40_000, port))
}

/// What the node sends into the pod.
fn answer(address: Ipv4Addr, protocol: u8, port: u16) -> Ip {
    Ip::new(address, POD, protocol, ports(protocol, port, 40_000))
}

fn take(bench: &Bench, ip: &Ip, counter: &str) {
    bench.expect_tagged(Program::FromPod, &ip.frame(), &[], 0x11, counter);
}

fn leave(bench: &Bench, ip: &Ip) {
    let run = bench.expect(Program::FromPod, &ip.frame(), NEXT, LOCAL);
    assert_eq!(run.frame, ip.frame());
}

#[test]
fn a_service_on_an_address_of_the_node_is_the_engines() {
    let bench = Bench::pod();
    let services =
        endpoints(&[(ANY, 30_080, TCP), (ANY, 30_053, UDP), (NODE_LOCAL, 8080, TCP), (ANY, 31_000, SCTP)]);
    bench.programs.set_frontends(&services).expect("frontends");
    for options in [0, 40] {
        for address in [NAT, NODE_LOCAL] {
            for (protocol, port) in [(TCP, 30_080), (UDP, 30_053), (SCTP, 31_000)] {
                take(&bench, &from(address, protocol, port).options(options), FRONTEND);
            }
            for (protocol, port) in [(UDP, 30_080), (TCP, 30_053), (TCP, 31_000), (TCP, 1), (TCP, 10_250)] {
                leave(&bench, &from(address, protocol, port).options(options));
            }
        }
        take(&bench, &from(NODE_LOCAL, TCP, 8080).options(options), FRONTEND);
        leave(&bench, &from(NAT, TCP, 8080).options(options));
    }
    // Elsewhere the port means nothing to this program, and neither does a source port.
    take(&bench, &from(OUTSIDE, TCP, 30_080), "from_pod_redirect");
    leave(&bench, &Ip::new(POD, NAT, TCP, ports(TCP, 30_080, 22)));
    leave(&bench, &Ip::new(POD, NAT, ICMP, icmp(8, 1024)));

    // Only what changed is written, and what is gone is the kernel's again.
    bench.programs.set_frontends(&endpoints(&[(ANY, 30_053, UDP)])).expect("frontends");
    take(&bench, &from(NAT, UDP, 30_053), FRONTEND);
    leave(&bench, &from(NAT, TCP, 30_080));
    leave(&bench, &from(NODE_LOCAL, TCP, 8080));
}

#[test]
fn a_frame_too_short_for_its_ports_is_the_kernels() {
    let bench = Bench::pod();
    bench.programs.set_frontends(&endpoints(&[(ANY, 30_080, TCP)])).expect("frontends");
    let frame = from(NAT, TCP, 30_080).options(40).frame();
    for length in 74..14 + 60 + 4 {
        bench.expect(Program::FromPod, &frame[..length], NEXT, LOCAL);
    }
    bench.expect_tagged(Program::FromPod, &frame[..14 + 60 + 4], &[], 0x11, FRONTEND);
    let error = Ip::new(POD, NAT, ICMP, icmp(3, 0)).options(40).frame();
    bench.expect(Program::FromPod, &error[..14 + 60 + 7], NEXT, LOCAL);
}

#[test]
fn what_may_answer_a_pod_that_reached_itself_is_the_engines() {
    let bench = Bench::pod();
    for port in OURS {
        for protocol in [TCP, UDP] {
            take(&bench, &from(NAT, protocol, port), HAIRPIN);
            leave(&bench, &from(NODE_LOCAL, protocol, port));
        }
        leave(&bench, &from(NAT, SCTP, port));
        take(&bench, &Ip::new(POD, NAT, ICMP, icmp(0, port)), HAIRPIN);
        leave(&bench, &Ip::new(POD, NAT, ICMP, icmp(8, port)));
        leave(&bench, &Ip::new(POD, NODE_LOCAL, ICMP, icmp(0, port)));
    }
    for port in NOT_OURS {
        leave(&bench, &from(NAT, TCP, port));
        leave(&bench, &Ip::new(POD, NAT, ICMP, icmp(0, port)));
    }
    for kind in 0..=255 {
        let error = Ip::new(POD, NAT, ICMP, icmp(kind, 1));
        match kind {
            3 | 4 | 11 | 12 => take(&bench, &error, "from_pod_redirect_icmp_error"),
            _ => leave(&bench, &error),
        }
        leave(&bench, &Ip::new(POD, NODE_LOCAL, ICMP, icmp(kind, 1)));
    }
    leave(&bench, &Ip::new(POD, NAT, 4, vec![0x45; 40]));

    // Before there is a SNAT address there is no mapping on it.
    let nothing = Config { nat_ip: ANY, trunk_ifindex: 7, on_failure_kernel: false };
    bench.programs.set_config(&nothing).expect("configuration");
    leave(&bench, &from(NAT, TCP, 1024));
    leave(&bench, &from(NAT, UDP, 22).fragment(0x0003));
}

#[test]
fn a_fragment_is_the_engines_where_it_may_be_a_services() {
    let bench = Bench::pod();
    let fragments = |to| [0x2000, 0x2003, 0x0001].map(|field| from(to, UDP, 53).fragment(field));
    for fragment in fragments(NAT) {
        take(&bench, &fragment, FRAGMENT);
    }
    for fragment in fragments(NODE_LOCAL) {
        leave(&bench, &fragment);
    }
    bench.programs.set_frontends(&endpoints(&[(ANY, 30_053, UDP)])).expect("frontends");
    // Setting the configuration keeps what the frontends have set.
    bench.configure(7, false);
    for fragment in fragments(NAT).iter().chain(&fragments(NODE_LOCAL)) {
        take(&bench, fragment, FRAGMENT);
    }
    take(&bench, &from(NODE_LOCAL, UDP, 30_053).fragment(0x2000), FRONTEND);
    // What looks like ports in a later fragment is payload.
    take(&bench, &from(NODE_LOCAL, UDP, 30_053).fragment(0x2001), FRAGMENT);
    bench.programs.set_frontends(&BTreeSet::new()).expect("frontends");
    for fragment in fragments(NODE_LOCAL) {
        leave(&bench, &fragment);
    }
}

#[test]
fn what_the_node_answers_from_a_services_endpoint_is_the_engines() {
    let bench = Bench::pod();
    let take = |ip: &Ip, counter| bench.expect_tagged(Program::ToPod, &ip.frame(), &[], 0x15, counter);
    let pass = |frame: &[u8]| {
        let run = bench.expect(Program::ToPod, frame, NEXT, OWN);
        assert_eq!(run.frame, frame);
    };
    let serving = endpoints(&[(NAT, 6443, TCP), (NAT, 5353, UDP), (NODE_LOCAL, 3868, SCTP)]);
    bench.programs.set_node_endpoints(&serving).expect("endpoints");
    for options in [0, 40] {
        for (address, protocol, port) in [(NAT, TCP, 6443), (NAT, UDP, 5353), (NODE_LOCAL, SCTP, 3868)] {
            take(&answer(address, protocol, port).options(options), "to_pod_redirect_node");
        }
        // Probes of the kubelet, whatever port they go to, and what listens without being a service.
        pass(&Ip::new(NAT, POD, TCP, ports(TCP, 45_000, 6443)).options(options).frame());
        for (address, protocol, port) in [(NAT, UDP, 6443), (NODE_LOCAL, TCP, 6443), (NAT, TCP, 0)] {
            pass(&answer(address, protocol, port).options(options).frame());
        }
        for kind in 0..=255 {
            let message = Ip::new(NAT, POD, ICMP, icmp(kind, 1)).options(options);
            match kind {
                3 | 4 | 11 | 12 => take(&message, "to_pod_redirect_node_icmp_error"),
                _ => pass(&message.frame()),
            }
        }
    }
    for field in [0x2000, 0x2003, 0x0001] {
        take(&answer(NAT, UDP, 53).fragment(field), "to_pod_redirect_node_fragment");
        pass(&answer(OUTSIDE, UDP, 53).fragment(field).frame());
    }
    pass(&Ip::new(OUTSIDE, POD, ICMP, icmp(3, 1)).frame());
    pass(&Ip::new(NAT, POD, 4, vec![0x45; 40]).frame());
    pass(&arp());
    pass(&ipv6("2001:db8::1", "2001:db8::2"));
    let mut malformed = answer(NAT, TCP, 6443).frame();
    malformed[14] = 0x44;
    pass(&malformed);
    pass(&answer(NAT, TCP, 6443).frame()[..14 + 20 + 3]);

    // What the kernel forwards is judged as ever, whatever its source looks like.
    let mut forwarded = vec![0; 256];
    forwarded[36..40].copy_from_slice(&LO.to_ne_bytes());
    bench.expect_tagged(Program::ToPod, &answer(NAT, TCP, 6443).frame(), &forwarded, 0x12, "to_pod_redirect");

    bench.programs.set_node_endpoints(&endpoints(&[(NAT, 5353, UDP)])).expect("endpoints");
    pass(&answer(NAT, TCP, 6443).frame());
    take(&answer(NAT, UDP, 5353), "to_pod_redirect_node");
    bench.programs.set_node_endpoints(&BTreeSet::new()).expect("endpoints");
    pass(&answer(NAT, UDP, 53).fragment(0x2000).frame());
}

#[test]
fn without_an_engine_a_service_is_closed_and_the_nodes_own_is_open() {
    let bench = Bench::pod();
    bench.programs.set_frontends(&endpoints(&[(ANY, 30_080, UDP)])).expect("frontends");
    bench.programs.set_node_endpoints(&endpoints(&[(NAT, 6443, TCP)])).expect("endpoints");
    let expect = |service: (i32, &str), own: Option<i32>| {
        for frame in [from(NAT, UDP, 30_080).frame(), from(NAT, UDP, 30_080).fragment(0x2000).frame()] {
            bench.expect(Program::FromPod, &frame, service.0, service.1);
        }
        let mine = [
            (Program::FromPod, from(NAT, TCP, 1024), "from_pod_pass_local_no_trunk", HAIRPIN),
            (Program::FromPod, from(NAT, UDP, 1).fragment(1), "from_pod_pass_local_no_trunk", FRAGMENT),
            (Program::ToPod, answer(NAT, TCP, 6443), "to_pod_pass_node_no_trunk", "to_pod_redirect_node"),
        ];
        for (program, ip, passed, taken) in mine {
            let counter = if own == Some(NEXT) { passed } else { taken };
            bench.expect(program, &ip.frame(), own.unwrap_or(REDIRECT), counter);
        }
    };
    bench.configure(0, false);
    expect((SHOT, "from_pod_drop_no_trunk"), Some(NEXT));
    bench.configure(0, true);
    expect((NEXT, "from_pod_pass_no_trunk"), Some(NEXT));
    bench.configure(7, false);
    expect((REDIRECT, FRONTEND), None); // no heartbeat was ever given
    bench.programs.keep_alive(Duration::ZERO).expect("a heartbeat");
    expect((REDIRECT, FRONTEND), Some(NEXT)); // fail closed: the trunk that nobody reads drops
    bench.programs.keep_alive(Duration::from_secs(60)).expect("a heartbeat");
    expect((REDIRECT, FRONTEND), None);
}
