//! ICMP: echo, other queries, and errors both ways.

use sluice_engine::testing::{echo_reply, echo_request, icmp, icmp_error, tcp, udp};

use super::{A, N, Probe, Step, V, X, Y, answer, node, pod, probe, query, wire};

/// A router's message about the translated query, quoting `quote` bytes.
fn about_query(kind: u8, code: u8, quote: usize) -> Step {
    wire(move |port| {
        let sent = udp(&node(port), "203.0.113.9:53").payload(b"query").ttl(60).build();
        icmp_error(kind, code, Y, N, &sent).quote(quote)
    })
}

pub(super) fn probes() -> Vec<Probe> {
    let mut all = queries();
    all.extend(errors_in());
    all.extend(errors_out());
    all
}

fn queries() -> Vec<Probe> {
    let ping = |id| pod(echo_request(A, X, id, 1));
    let pong = || wire(|id| echo_reply(X, N, id, 1));
    vec![
        probe("echo-out-and-back", vec![ping(7), pong(), ping(7), pong()]),
        probe("echo-with-trailer", vec![ping(7), wire(|id| echo_reply(X, N, id, 1).padding(18))]),
        probe("echo-with-odd-payload", vec![pod(echo_request(A, X, 7, 1).payload(&[1; 33]))]),
        probe("echo-bad-checksum", vec![pod(echo_request(A, X, 7, 1).bad_l4_checksum())]),
        probe("echo-inside-the-vpc", vec![pod(echo_request(A, V, 7, 1)), wire(|_| echo_reply(V, A, 7, 1))]),
        probe("echo-to-the-node", vec![pod(echo_request(A, N, 7, 1)), wire(|_| echo_request(X, N, 2000, 1))]),
        probe(
            "echo-from-outside-to-the-pod",
            vec![wire(|_| echo_request(X, A, 7, 1)), pod(echo_reply(A, X, 7, 1))],
        ),
        probe("echo-reply-without-request", vec![pod(echo_reply(A, X, 7, 1))]),
        probe("echo-reply-without-request-from-the-wire", vec![wire(|_| echo_reply(X, N, 2000, 1))]),
        probe(
            "timestamp",
            vec![
                pod(icmp(A, X, 13, 0, 7 << 16).payload(&[0; 12])),
                wire(|id| icmp(X, N, 14, 0, u32::from(id) << 16).payload(&[0; 12])),
            ],
        ),
        probe("timestamp-inside-the-vpc", vec![pod(icmp(A, V, 13, 0, 7 << 16).payload(&[0; 12]))]),
        probe("address-mask", vec![pod(icmp(A, X, 17, 0, 7 << 16).payload(&[0; 4]))]),
        probe("router-solicitation", vec![pod(icmp(A, X, 10, 0, 0))]),
        probe("icmp-type-unknown", vec![pod(icmp(A, X, 42, 0, 0))]),
    ]
}

fn errors_in() -> Vec<Probe> {
    let after_query = |steps: Vec<Step>| {
        let mut all = vec![pod(query())];
        all.extend(steps);
        all
    };
    vec![
        probe("error-port-unreachable", after_query(vec![about_query(3, 3, 28), about_query(3, 3, 1000)])),
        probe("error-host-unreachable", after_query(vec![about_query(3, 1, 28)])),
        probe("error-time-exceeded", after_query(vec![about_query(11, 0, 28)])),
        probe("error-parameter-problem", after_query(vec![about_query(12, 0, 28)])),
        probe("error-source-quench", after_query(vec![about_query(4, 0, 28)])),
        probe("error-redirect", after_query(vec![about_query(5, 1, 28)])),
        probe(
            "error-quotation-short",
            after_query(vec![about_query(3, 3, 27), about_query(3, 3, 20), about_query(3, 3, 8)]),
        ),
        probe(
            "error-frag-needed",
            after_query(vec![wire(|port| {
                let sent = udp(&node(port), "203.0.113.9:53").payload(b"query").build();
                icmp_error(3, 4, Y, N, &sent).mtu(1300)
            })]),
        ),
        probe(
            "error-from-the-destination",
            after_query(vec![wire(|port| {
                let sent = udp(&node(port), "203.0.113.9:53").payload(b"query").build();
                icmp_error(3, 3, X, N, &sent)
            })]),
        ),
        probe(
            "error-quoting-options",
            after_query(vec![wire(|port| {
                let sent = udp(&node(port), "203.0.113.9:53").payload(b"query").ip_options(&[1; 12]).build();
                icmp_error(3, 3, Y, N, &sent)
            })]),
        ),
        probe(
            "error-bad-checksum",
            after_query(vec![wire(|port| {
                let sent = udp(&node(port), "203.0.113.9:53").payload(b"query").build();
                icmp_error(3, 3, Y, N, &sent).bad_l4_checksum()
            })]),
        ),
        probe(
            "error-about-tcp",
            vec![
                pod(tcp("10.0.1.10:40000", "203.0.113.9:80").flags("S")),
                wire(|port| {
                    let sent = tcp(&node(port), "203.0.113.9:80").flags("S").build();
                    icmp_error(3, 1, Y, N, &sent).quote(1000)
                }),
            ],
        ),
        probe(
            "error-about-echo",
            vec![
                pod(echo_request(A, X, 7, 1)),
                wire(|id| icmp_error(11, 0, Y, N, &echo_request(N, X, id, 1).build()).quote(1000)),
            ],
        ),
        probe(
            "error-inside-the-vpc",
            vec![
                pod(udp("10.0.1.10:40000", "10.0.77.7:53")),
                wire(|_| icmp_error(3, 3, V, A, &udp("10.0.1.10:40000", "10.0.77.7:53").build())),
            ],
        ),
        probe(
            "error-about-nothing-on-our-port",
            vec![wire(|_| icmp_error(3, 3, Y, N, &udp("10.0.9.5:2000", "203.0.113.9:53").build()))],
        ),
        probe(
            "error-about-nothing-on-the-hosts-port",
            vec![wire(|_| icmp_error(3, 3, Y, N, &udp("10.0.9.5:45000", "203.0.113.9:53").build()))],
        ),
        probe(
            "error-about-nothing-to-the-pod",
            vec![wire(|_| icmp_error(3, 3, Y, A, &udp("10.0.1.10:1", "10.0.77.7:53").build()))],
        ),
        probe(
            "error-about-what-the-node-did-not-send",
            after_query(vec![wire(|_| {
                icmp_error(3, 3, Y, N, &udp("10.0.1.10:40000", "203.0.113.9:53").build())
            })]),
        ),
        probe(
            "error-about-an-error",
            after_query(vec![wire(|port| {
                let error = icmp_error(3, 3, N, X, &answer(port).build()).build();
                icmp_error(11, 0, Y, N, &error).quote(1000)
            })]),
        ),
    ]
}

fn errors_out() -> Vec<Probe> {
    let received = || udp("203.0.113.9:53", "10.0.1.10:40000").payload(b"answer").ttl(63).build();
    vec![
        probe(
            "error-of-the-pod-about-a-reply",
            vec![
                pod(query()),
                wire(answer),
                pod(icmp_error(3, 3, A, X, &received())),
                pod(icmp_error(3, 3, A, X, &received()).quote(1000)),
            ],
        ),
        probe("error-of-the-pod-about-nothing", vec![pod(icmp_error(3, 3, A, X, &received()))]),
        probe(
            "error-of-the-pod-inside-the-vpc",
            vec![
                wire(|_| udp("10.0.77.7:53", "10.0.1.10:40000")),
                pod(icmp_error(3, 3, A, V, &udp("10.0.77.7:53", "10.0.1.10:40000").build())),
            ],
        ),
        probe(
            "error-of-the-pod-to-a-client-outside",
            vec![
                wire(|_| udp("203.0.113.9:53", "10.0.1.10:40000").payload(b"answer")),
                pod(icmp_error(3, 3, A, X, &received())),
            ],
        ),
    ]
}
