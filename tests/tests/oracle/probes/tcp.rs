//! TCP: opening, closing, resetting, and segments that belong to nothing.

use sluice_engine::testing::{FrameBuilder, tcp};

use super::{Probe, Step, node, pod, probe, wire};

/// The pod's segment: flags, sequence, acknowledgement.
fn out(flags: &str, seq: u32, ack: u32) -> FrameBuilder {
    tcp("10.0.1.10:40000", "203.0.113.9:80").flags(flags).seq(seq).ack(ack)
}

/// The peer's.
fn back(flags: &'static str, seq: u32, ack: u32) -> Step {
    wire(move |port| tcp("203.0.113.9:80", &node(port)).flags(flags).seq(seq).ack(ack))
}

fn opened(more: Vec<Step>) -> Vec<Step> {
    let mut steps = vec![pod(out("S", 1000, 0)), back("SA", 5000, 1001), pod(out("A", 1001, 5001))];
    steps.extend(more);
    steps
}

pub(super) fn probes() -> Vec<Probe> {
    let mut all = whole();
    all.extend(resets());
    all.extend(strays());
    all
}

fn whole() -> Vec<Probe> {
    let data = || out("PA", 1001, 5001).payload(b"GET / HTTP/1.0\r\n\r\n");
    let options: [&[u8]; 4] =
        [&[1, 3, 3, 7], &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0], &[253, 200], &[254, 5, 1, 2, 3]];
    let with_options = options.iter().map(|o| pod(out("S", 1000, 0).tcp_options(o))).collect();
    vec![
        probe(
            "tcp-whole-connection-closed-by-the-pod",
            opened(vec![
                pod(data()),
                back("PA", 5001, 1019),
                pod(out("FA", 1019, 5001)),
                back("A", 5001, 1020),
                back("FA", 5001, 1020),
                pod(out("A", 1020, 5002)),
            ]),
        ),
        probe(
            "tcp-closed-by-the-peer",
            opened(vec![
                back("FA", 5001, 1001),
                pod(out("A", 1001, 5002)),
                pod(out("FA", 1001, 5002)),
                back("A", 5002, 1002),
            ]),
        ),
        probe(
            "tcp-closed-by-both",
            opened(vec![
                pod(out("FA", 1001, 5001)),
                back("FA", 5001, 1001),
                pod(out("A", 1002, 5002)),
                back("A", 5002, 1002),
            ]),
        ),
        probe(
            "tcp-simultaneous-open",
            vec![
                pod(out("S", 1000, 0)),
                back("S", 5000, 0),
                pod(out("SA", 1000, 5001)),
                back("SA", 5000, 1001),
            ],
        ),
        probe(
            "tcp-syn-again",
            vec![
                pod(out("S", 1000, 0)),
                pod(out("S", 1000, 0)),
                back("SA", 5000, 1001),
                back("SA", 5000, 1001),
            ],
        ),
        probe("tcp-syn-with-data", vec![pod(out("S", 1000, 0).payload(b"fast open"))]),
        probe("tcp-ecn", vec![pod(out("SEC", 1000, 0)), back("SAE", 5000, 1001), pod(out("AC", 1001, 5001))]),
        probe("tcp-urgent", opened(vec![pod(out("PAU", 1001, 5001).payload(b"!"))])),
        probe("tcp-options-of-all-lengths", with_options),
        probe("tcp-mss-that-fits", vec![pod(out("S", 1000, 0).mss(1360))]),
        probe("tcp-mss-too-large-for-the-eni", vec![pod(out("S", 1000, 0).mss(1460))]),
        probe(
            "tcp-inside-the-vpc",
            vec![
                pod(tcp("10.0.1.10:40000", "10.0.77.7:80").flags("S")),
                wire(|_| tcp("10.0.77.7:80", "10.0.1.10:40000").flags("SA").ack(1001)),
            ],
        ),
        probe(
            "tcp-from-outside-to-the-pod",
            vec![
                wire(|_| tcp("203.0.113.9:5000", "10.0.1.10:80").flags("S")),
                pod(tcp("10.0.1.10:80", "203.0.113.9:5000").flags("SA").seq(7).ack(1001)),
                wire(|_| tcp("203.0.113.9:5000", "10.0.1.10:80").flags("A").seq(1001).ack(8)),
            ],
        ),
        probe("tcp-segment-with-bad-checksum", opened(vec![pod(data().bad_l4_checksum())])),
        probe(
            "tcp-zero-window-probe",
            opened(vec![pod(out("A", 1000, 5001).payload(b"x")), back("A", 5001, 1001)]),
        ),
        probe("tcp-keepalive", opened(vec![pod(out("A", 1000, 5001)), back("A", 5001, 1001)])),
    ]
}

fn resets() -> Vec<Probe> {
    vec![
        probe("tcp-refused", vec![pod(out("S", 1000, 0)), back("RA", 0, 1001)]),
        probe("tcp-reset-by-the-pod", opened(vec![pod(out("R", 1001, 0))])),
        probe("tcp-reset-by-the-peer", opened(vec![back("RA", 5001, 1001)])),
        probe(
            "tcp-data-after-a-reset",
            opened(vec![pod(out("R", 1001, 0)), pod(out("PA", 1001, 5001).payload(b"late"))]),
        ),
        probe(
            "tcp-syn-after-a-reset",
            opened(vec![pod(out("R", 1001, 0)), pod(out("S", 90_000, 0)), back("SA", 7000, 90_001)]),
        ),
        probe(
            "tcp-syn-after-close",
            opened(vec![
                pod(out("FA", 1001, 5001)),
                back("FA", 5001, 1002),
                pod(out("A", 1002, 5002)),
                pod(out("S", 90_000, 0)),
            ]),
        ),
        probe("tcp-reset-far-from-the-window", opened(vec![back("R", 0x4000_0000, 0)])),
        probe("tcp-data-far-from-the-window", opened(vec![back("PA", 0x4000_0000, 1001)])),
        probe("tcp-blind-reset-of-a-syn", vec![pod(out("S", 1000, 0)), back("RA", 0, 0x10_0000)]),
    ]
}

fn strays() -> Vec<Probe> {
    let alone = |flags: &str| vec![pod(out(flags, 1000, 5001))];
    vec![
        probe("tcp-syn-without-flow-from-the-wire", vec![back("S", 5000, 0)]),
        probe("tcp-ack-without-flow-from-the-wire", vec![back("A", 5000, 1001)]),
        probe("tcp-ack-without-flow", alone("A")),
        probe("tcp-synack-without-flow", alone("SA")),
        probe("tcp-fin-without-flow", alone("FA")),
        probe("tcp-reset-without-flow", alone("R")),
        probe("tcp-reset-ack-without-flow", alone("RA")),
        probe(
            "tcp-ack-without-flow-inside-the-vpc",
            vec![pod(tcp("10.0.1.10:40000", "10.0.77.7:80").flags("A"))],
        ),
        probe("tcp-syn-fin", alone("SF")),
        probe("tcp-syn-reset", alone("SR")),
        probe("tcp-null", alone("")),
        probe("tcp-xmas", alone("FPU")),
        probe("tcp-fin-alone", alone("F")),
        probe("tcp-syn-with-bad-checksum", vec![pod(out("S", 1000, 0).bad_l4_checksum())]),
    ]
}
