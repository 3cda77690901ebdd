//! Where Sluice differs from the kernel, and why. The list is exact: what is not here must be the same, what is here must
//! differ.

const LEAK: &str = "the kernel leaks: conntrack calls it invalid, and what is invalid is forwarded without translation. Nothing leaves with a pod's address that must not";
const FLAGS: &str = "the kernel leaks flags that no stack sends, untranslated; dropped by name";
const NO_PORTS: &str = "address-only translation lets one pod talk to one peer and leaks another's replies; dropped by name (ADR 004)";
const ICMP_TYPE: &str = "no pod needs other ICMP queries; dropped by name (ADR 004)";
const MALFORMED: &str = "the kernel leaks a datagram whose length cannot be, untranslated; dropped by name";
const NO_WINDOWS: &str = "no window tracking: the segment is translated and the pod's own TCP judges it; it changes no state. The kernel hands the pod's packet to the node";
const WRONG_SUM: &str = "an incremental update keeps it wrong, and it goes where it belongs; the kernel leaks it untranslated, or gives it to the node";

/// Probe and reason.
pub(crate) const ALL: &[(&str, &str)] = &[
    ("udp-bad-checksum-opens", LEAK),
    ("udp-bad-checksum-in-a-flow", WRONG_SUM),
    (
        "udp-length-below-the-packets",
        "UDP's own length says what is summed (RFC 768); the kernel's conntrack sums the rest of the packet, too, and leaks it as invalid",
    ),
    ("udp-length-beyond-the-packet", MALFORMED),
    ("udp-length-below-its-header", MALFORMED),
    (
        "udp-to-itself",
        "a pod that reaches itself by its own address does so inside its namespace; from the veth it is a mistake",
    ),
    (
        "fragments-without-the-last",
        "shallow reassembly: a fragment passes when its first one has passed. The kernel puts datagrams together first",
    ),
    (
        "fragments-tiny-tcp",
        "a first fragment without its whole TCP header is dropped (RFC 1858); the kernel puts it together",
    ),
    (
        "ip-options-record-route",
        "options are carried, not acted upon: the node does not write itself into the packet",
    ),
    ("gre-outside", NO_PORTS),
    ("esp-outside", NO_PORTS),
    ("unknown-protocol-outside", NO_PORTS),
    (
        "spoof-from-the-pod",
        "a pod sends from its own address only; the kernel asks that of reverse path filters, which VPC CNI sets loose",
    ),
    (
        "spoof-a-pod-from-the-wire",
        "a pod of this node is not out there, whatever a loose reverse path filter lets pass",
    ),
    (
        "to-nobody-from-the-wire",
        "the node is no router for others; the kernel forwards it back where it came from",
    ),
    (
        "tcp-mss-too-large-for-the-eni",
        "lowered to what the ENI carries: a peer would send what the ENI drops, and a VPC sends no ICMP about it",
    ),
    ("tcp-segment-with-bad-checksum", WRONG_SUM),
    ("tcp-reset-far-from-the-window", NO_WINDOWS),
    ("tcp-data-far-from-the-window", NO_WINDOWS),
    ("tcp-blind-reset-of-a-syn", NO_WINDOWS),
    (
        "tcp-ack-without-flow",
        "the port that its peer knows is lost, so that another one cannot help it; the kernel picks the connection up with a new one (ADR 004)",
    ),
    ("tcp-synack-without-flow", LEAK),
    ("tcp-fin-without-flow", LEAK),
    ("tcp-reset-without-flow", LEAK),
    ("tcp-reset-ack-without-flow", LEAK),
    ("tcp-syn-fin", FLAGS),
    ("tcp-syn-reset", FLAGS),
    ("tcp-null", FLAGS),
    ("tcp-xmas", FLAGS),
    ("tcp-fin-alone", FLAGS),
    ("tcp-syn-with-bad-checksum", LEAK),
    ("echo-bad-checksum", LEAK),
    ("echo-reply-without-request", LEAK),
    ("timestamp", ICMP_TYPE),
    ("timestamp-inside-the-vpc", ICMP_TYPE),
    ("address-mask", ICMP_TYPE),
    (
        "router-solicitation",
        "an ICMP type that is neither echo nor an error is dropped by name; the kernel leaks it untranslated",
    ),
    (
        "icmp-type-unknown",
        "an ICMP type that is neither echo nor an error is dropped by name; the kernel leaks it untranslated",
    ),
    ("error-bad-checksum", WRONG_SUM),
    (
        "error-about-nothing-on-our-port",
        "the port is Sluice's and no flow has it: nobody on the node can want it",
    ),
    ("error-about-nothing-to-the-pod", "an error must belong to a flow; the kernel delivers it as invalid"),
    ("error-of-the-pod-about-nothing", LEAK),
];

/// Why a probe differs, when it may.
pub(crate) fn reason(probe: &str) -> Option<&'static str> {
    ALL.iter().find(|(name, _)| *name == probe).map(|(_, reason)| *reason)
}
