//! Random packets that a node may see, honest and not, for simulations.

use sluice_engine::Ingress;
use sluice_engine::random::Random;
use sluice_engine::testing::{FrameBuilder, echo_reply, echo_request, icmp_error, raw, sctp, tcp, udp};
use sluice_state::{Frontend, Protocol, State};

use crate::j_services::{put, service};
use crate::world::{HOST0, Input, POD_A, POD_B, POD_C, WIRE0, WIRE1};

/// Endpoints of every kind: pods, the node, elsewhere in the VPC, outside.
const ENDPOINTS: [&str; 6] =
    ["10.0.1.10:53", "10.0.1.11:80", "10.0.2.20:443", "10.0.9.5:443", "10.0.77.7:53", "203.0.113.9:80"];

/// Gives a node services, or other endpoints to those that it has: two cluster IPs on every port that [`packet`] uses, the
/// same on a node port, with and without affinity.
pub(crate) fn serve(state: &mut State, random: &mut Random) {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for (frontend, sticky) in
            [("10.96.0.10:53", false), ("10.96.0.10:80", true), ("10.96.0.11:443", true)]
        {
            let draw = random.next_u64() as usize;
            let endpoints = &ENDPOINTS[draw % 6..draw % 6 + draw / 6 % (7 - draw % 6)];
            let mut service = service(protocol, frontend, endpoints);
            service.affinity = sticky.then_some(30);
            if frontend == "10.96.0.10:53" {
                let port = 443;
                service.frontends.push(Frontend { address: None, port, sources: None, over_local: true });
            }
            put(state, service);
        }
    }
}

fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.next_u64() as usize % of.len()]
}

/// One packet of a few hosts, few ports and all protocols, so that they meet each other's flows often.
pub(crate) fn packet(random: &mut Random) -> (Ingress, Input) {
    let pods = [(POD_A, "10.0.1.10"), (POD_B, "10.0.1.11"), (POD_C, "10.0.2.20")];
    let (pod, ip) = pick(random, &pods);
    let near_port = pick(random, &[1000, 2000, 3000, 40_000]);
    let far_port = pick(random, &[53, 80, 443]);
    let hosts =
        ["203.0.113.9", "198.51.100.7", "10.0.77.7", "10.0.1.11", "10.0.9.5", "10.96.0.10", "10.96.0.11"];
    let far = pick(random, &hosts);
    let mapped = 1024 + random.next_u32() as u16 % 64;
    let (ingress, src, sport, dst, dport) = match random.next_u32() % 9 {
        0..4 => (pod, ip, near_port, far, far_port),
        4 => (pick(random, &[WIRE0, WIRE1]), far, far_port, ip, near_port),
        5 => (WIRE0, far, far_port, "10.0.9.5", mapped),
        6 => (Ingress::FromNode(pod.ifindex()), "10.0.9.5", far_port, ip, near_port),
        7 => (HOST0, "10.0.9.5", mapped, far, far_port),
        _ => match pod {
            Ingress::Pod(ifindex) => (Ingress::ToPod(ifindex), far, far_port, ip, near_port),
            other => (other, ip, near_port, far, far_port),
        },
    };
    let (from, to) = (format!("{src}:{sport}"), format!("{dst}:{dport}"));
    let builder = l4(random, &from, &to, src, dst, sport);
    let builder = if random.next_u32().is_multiple_of(16) { builder.ttl(1) } else { builder };
    (ingress, builder.into())
}

fn l4(random: &mut Random, from: &str, to: &str, src: &str, dst: &str, sport: u16) -> FrameBuilder {
    let payload = vec![random.next_u32() as u8; random.next_u64() as usize % 100];
    match random.next_u32() % 16 {
        0..5 => udp(from, to).payload(&payload),
        5..11 => {
            let flags = pick(random, &["S", "SA", "A", "PA", "FA", "R", "RA", "SF", ""]);
            tcp(from, to).flags(flags).seq(random.next_u32() % 4096).payload(&payload)
        }
        11 => echo_request(src, dst, sport, 1),
        12 => echo_reply(src, dst, sport, 1),
        13 => icmp_error(3, 3, src, dst, &udp(to, from).payload(&payload).build()),
        14 => udp(from, to)
            .payload(&[7; 64])
            .id(random.next_u32() as u16 % 4)
            .fragment_field(pick(random, &[0x2000, 0x2000 | 9, 18, 27, 0x2000 | 4])),
        _ if random.next_u32().is_multiple_of(2) => {
            sctp(from, to, random.next_u32() as u8 % 16).payload(&payload)
        }
        _ => raw(src, dst, pick(random, &[47, 50, 132])).payload(&payload),
    }
}
