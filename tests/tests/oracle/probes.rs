//! The probes: what is sent, and from where. A reply is addressed to the port that the system under test chose.

mod icmp;
mod tcp;

use sluice_engine::testing::{FrameBuilder, fragments, raw, tcp as segment, udp};

use crate::outcome::Side;

pub(crate) const A: &str = "10.0.1.10";
pub(crate) const N: &str = "10.0.9.5";
pub(crate) const X: &str = "203.0.113.9";
pub(crate) const Y: &str = "198.51.100.7";
pub(crate) const V: &str = "10.0.77.7";

/// One conversation.
pub(crate) struct Probe {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
}

/// One frame of it.
pub(crate) struct Step {
    pub(crate) from: Side,
    /// The frame, given the port that was chosen.
    pub(crate) frame: Box<dyn Fn(u16) -> Vec<u8>>,
    /// More pieces of the same datagram follow.
    pub(crate) more: bool,
}

pub(crate) fn probe(name: &'static str, steps: Vec<Step>) -> Probe {
    Probe { name, steps }
}

/// The pod sends.
pub(crate) fn pod(builder: FrameBuilder) -> Step {
    Step { from: Side::Pod, frame: Box::new(move |_| builder.build()), more: false }
}

/// Something comes from the wire.
pub(crate) fn wire(frame: impl Fn(u16) -> FrameBuilder + 'static) -> Step {
    Step { from: Side::Wire, frame: Box::new(move |port| frame(port).build()), more: false }
}

/// The node's address with a port.
pub(crate) fn node(port: u16) -> String {
    format!("{N}:{port}")
}

/// A datagram in pieces, in the given order.
fn cut(
    from: Side,
    size: usize,
    order: &[usize],
    frame: impl Fn(u16) -> FrameBuilder + Clone + 'static,
) -> Vec<Step> {
    let last = order.len() - 1;
    let step = |(i, piece): (usize, &usize)| {
        let (frame, piece) = (frame.clone(), *piece);
        let frame = Box::new(move |port| fragments(&frame(port).build(), size).swap_remove(piece));
        Step { from, frame, more: i < last }
    };
    order.iter().enumerate().map(step).collect()
}

fn query() -> FrameBuilder {
    udp("10.0.1.10:40000", "203.0.113.9:53").payload(b"query")
}

fn answer(port: u16) -> FrameBuilder {
    udp("203.0.113.9:53", &node(port)).payload(b"answer")
}

pub(crate) fn all() -> Vec<Probe> {
    let mut all = datagrams();
    all.extend(pieces());
    all.extend(odd());
    all.extend(tcp::probes());
    all.extend(icmp::probes());
    all
}

fn datagrams() -> Vec<Probe> {
    let inside = || udp("10.0.1.10:40000", "10.0.77.7:53");
    vec![
        probe("udp-out-and-back", vec![pod(query()), wire(answer), pod(query()), wire(answer)]),
        probe("udp-inside-the-vpc", vec![pod(inside()), wire(|_| udp("10.0.77.7:53", "10.0.1.10:40000"))]),
        probe("udp-second-vpc-cidr", vec![pod(udp("10.0.1.10:40000", "100.64.3.3:53"))]),
        probe(
            "udp-from-outside-and-reply",
            vec![
                wire(|_| udp("203.0.113.9:4000", "10.0.1.10:53")),
                pod(udp("10.0.1.10:53", "203.0.113.9:4000")),
            ],
        ),
        probe(
            "udp-answer-from-another-port",
            vec![
                pod(query()),
                wire(|port| udp("203.0.113.9:54", &node(port))),
                wire(|port| udp("198.51.100.7:53", &node(port))),
            ],
        ),
        probe("udp-unsolicited", vec![wire(|_| udp("203.0.113.9:53", "10.0.9.5:2000"))]),
        probe(
            "udp-no-checksum",
            vec![pod(query().no_l4_checksum()), wire(|port| answer(port).no_l4_checksum())],
        ),
        probe("udp-bad-checksum-opens", vec![pod(query().bad_l4_checksum())]),
        probe(
            "udp-bad-checksum-in-a-flow",
            vec![pod(query()), pod(query().bad_l4_checksum()), wire(|port| answer(port).bad_l4_checksum())],
        ),
        probe("udp-port-zero", vec![pod(udp("10.0.1.10:0", "203.0.113.9:53"))]),
        probe("udp-empty", vec![pod(udp("10.0.1.10:40000", "203.0.113.9:53"))]),
        probe("udp-length-below-the-packets", vec![pod(query().udp_len(10))]),
        probe("udp-length-beyond-the-packet", vec![pod(query().udp_len(100))]),
        probe("udp-length-below-its-header", vec![pod(query().udp_len(7))]),
        probe("udp-to-the-node", vec![pod(udp("10.0.1.10:40000", "10.0.9.5:53"))]),
        probe("udp-to-itself", vec![pod(udp("10.0.1.10:40000", "10.0.1.10:53"))]),
        probe("udp-multicast", vec![pod(udp("10.0.1.10:5353", "224.0.0.251:5353"))]),
        probe("udp-broadcast", vec![pod(udp("10.0.1.10:68", "255.255.255.255:67"))]),
    ]
}

fn pieces() -> Vec<Probe> {
    // Each with an identification of its own: what the kernel did not put together waits there for half a minute.
    let large = |id| move |_| udp("10.0.1.10:40000", "203.0.113.9:53").payload(&[5; 4000]).id(id);
    let out = |id, order: &[usize]| cut(Side::Pod, 1376, order, large(id));
    let both = |id, order: &[usize]| {
        let reply = move |port| udp("203.0.113.9:53", &node(port)).payload(&[6; 3000]).id(id);
        let mut steps = vec![pod(query())];
        steps.extend(cut(Side::Wire, 1376, order, reply));
        steps
    };
    let to_node = || {
        cut(Side::Wire, 1376, &[0, 1, 2], |_| {
            udp("203.0.113.9:53", "10.0.9.5:45000").payload(&[5; 3000]).id(5)
        })
    };
    let tiny = |_| segment("10.0.1.10:40000", "203.0.113.9:80").flags("S").payload(&[1; 64]).id(9);
    let mut twice = out(80, &[0, 1]);
    twice.extend(out(80, &[1, 2]));
    twice.iter_mut().take(3).for_each(|step| step.more = true);
    vec![
        probe("fragments-in-order", out(70, &[0, 1, 2])),
        probe("fragments-backwards", out(71, &[2, 1, 0])),
        probe("fragments-of-a-reply", both(72, &[0, 1, 2])),
        probe("fragments-of-a-reply-backwards", both(73, &[2, 1, 0])),
        probe("fragments-to-the-node", to_node()),
        probe("fragments-without-the-last", out(74, &[0, 1])),
        probe("fragments-without-the-first", out(75, &[1, 2])),
        probe("fragments-one-twice", twice),
        probe("fragments-tiny-tcp", cut(Side::Pod, 16, &[0, 1, 2, 3, 4, 5], tiny)),
        probe(
            "fragments-of-an-echo",
            cut(Side::Pod, 1376, &[0, 1], |_| {
                sluice_engine::testing::echo_request(A, X, 7, 1).payload(&[3; 2000]).id(4)
            }),
        ),
    ]
}

fn odd() -> Vec<Probe> {
    let spoofed = |_| udp("10.0.1.10:40000", "10.0.9.5:2000");
    vec![
        probe("ip-bad-checksum", vec![pod(query().bad_ip_checksum()), wire(|p| answer(p).bad_ip_checksum())]),
        probe("ip-padding", vec![pod(query().padding(18)), wire(|port| answer(port).padding(7))]),
        probe(
            "ip-tos-and-id",
            vec![pod(query().tos(0xB9).id(0x1234)), wire(|port| answer(port).tos(3).id(9))],
        ),
        probe(
            "ip-dont-fragment-kept",
            vec![pod(query().dont_fragment()), wire(|port| answer(port).dont_fragment())],
        ),
        probe("ip-reserved-flag", vec![pod(query().fragment_field(0))]),
        probe("ip-options-nop", vec![pod(query().ip_options(&[1, 1, 1, 1]))]),
        probe("ip-options-router-alert", vec![pod(query().ip_options(&[148, 4, 0, 0]))]),
        probe("ip-options-record-route", vec![pod(query().ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]))]),
        probe("ip-options-source-route", vec![pod(query().ip_options(&[131, 7, 4, 10, 0, 9, 5, 0]))]),
        probe("ttl-two", vec![pod(query().ttl(2)), wire(|port| answer(port).ttl(2))]),
        probe("ttl-one-from-the-pod", vec![pod(query().ttl(1))]),
        probe("ttl-one-inside-the-vpc", vec![pod(udp("10.0.1.10:40000", "10.0.77.7:53").ttl(1))]),
        probe("ttl-one-to-the-pod", vec![wire(|_| udp("10.0.77.7:53", "10.0.1.10:40000").ttl(1))]),
        probe("ttl-one-of-a-reply", vec![pod(query()), wire(|port| answer(port).ttl(1))]),
        probe("ttl-zero", vec![pod(query().ttl(0))]),
        probe("too-large-not-to-be-cut", vec![pod(query().payload(&[1; 1400]).dont_fragment())]),
        probe("too-large-to-be-cut", vec![pod(query().payload(&[1; 1400]))]),
        probe("gre-outside", vec![pod(raw(A, X, 47).payload(&[0, 0, 8, 0, 1, 2, 3, 4]))]),
        probe("gre-inside-the-vpc", vec![pod(raw(A, V, 47).payload(&[0, 0, 8, 0, 1, 2, 3, 4]))]),
        probe("esp-outside", vec![pod(raw(A, X, 50).payload(&[9; 40]))]),
        probe("unknown-protocol-outside", vec![pod(raw(A, X, 253).payload(&[9; 40]))]),
        probe("spoof-from-the-pod", vec![pod(udp("10.0.1.99:40000", "203.0.113.9:53"))]),
        probe("spoof-a-pod-from-the-wire", vec![wire(spoofed)]),
        probe("spoof-the-node-from-the-wire", vec![wire(|_| udp("10.0.9.5:40000", "10.0.1.10:53"))]),
        probe("martian-loopback", vec![wire(|_| udp("127.0.0.1:1", "10.0.1.10:53"))]),
        probe("martian-zero", vec![wire(|_| udp("0.0.0.0:1", "10.0.1.10:53"))]),
        probe("martian-multicast", vec![wire(|_| udp("224.0.0.1:1", "10.0.1.10:53"))]),
        probe("martian-broadcast", vec![wire(|_| udp("255.255.255.255:1", "10.0.1.10:53"))]),
        probe("to-nobody-from-the-wire", vec![wire(|_| udp("203.0.113.9:53", "10.0.200.1:53"))]),
    ]
}
