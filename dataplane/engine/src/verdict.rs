//! Every way in which a packet can end.
//!
//! [`Drop`] is the metric's label, the trace's text and the table in the documentation. A packet never ends without a name.

use std::fmt;

/// What happens to a packet. The Ethernet header is already written for the way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver to the pod behind this host-side veth.
    Pod {
        /// Index of the host's end of the veth.
        ifindex: u32,
    },
    /// Transmit by this ENI.
    Eni {
        /// Interface index of the ENI.
        ifindex: u32,
    },
    /// Give to the kernel as if it had just arrived on this pod's host-side veth.
    KernelPod {
        /// Index of the host's end of the veth.
        ifindex: u32,
    },
    /// Give to the kernel as if it had just arrived on this ENI.
    KernelEni {
        /// Interface index of the ENI.
        ifindex: u32,
    },
    /// Another worker's: the fragments of one datagram meet at one worker.
    Handoff {
        /// Its number.
        worker: u16,
    },
    /// Dropped, with the reason.
    Drop(Drop),
}

macro_rules! drops {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)*) => {
        /// Why a packet was dropped. Exhaustive: there is no other way to lose one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Drop {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Drop {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in metrics, traces and documentation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn explain(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)*
                }
            }
        }
    };
}

drops! {
    /// Shorter than its headers, or than the length that its IP header gives.
    Truncated = "truncated";
    /// Not IPv4: VLAN-tagged, or IPv6 other than link-local, from a pod.
    NotIpv4 = "not_ipv4";
    /// The IP header is malformed: version, header length, total length, or a source that no host may use.
    BadIpHeader = "bad_ip_header";
    /// It asks to be routed by a list of its own (RFC 7126 §4.3 and §4.4: drop by default), past what was judged.
    SourceRoute = "source_route";
    /// The IP header's checksum is wrong.
    BadIpChecksum = "bad_ip_checksum";
    /// The L4 checksum is wrong and the packet would have opened a flow.
    BadL4Checksum = "bad_l4_checksum";
    /// A combination of TCP flags that no stack sends: none, SYN+FIN, SYN+RST, FIN without ACK.
    TcpFlags = "tcp_flags";
    /// The source address is not the pod's; from the wire, it is a local pod's, the node's, or one of the service range.
    Spoof = "spoof";
    /// The interface it came from belongs to no pod and no ENI of the state in force.
    UnknownInterface = "unknown_interface";
    /// A protocol without ports that would need translation; SCTP whose source would, or a fragment of it whose ports would.
    UnsupportedProtocol = "unsupported_protocol";
    /// An ICMP type that is neither echo nor an error, or a redirect of a translated flow.
    IcmpType = "icmp_type";
    /// An ICMP error that quotes an ICMP error.
    IcmpNested = "icmp_nested";
    /// An ICMP error that quotes no flow of ours.
    IcmpUnknownFlow = "icmp_unknown_flow";
    /// An ICMP error whose quotation is too short or malformed.
    IcmpQuote = "icmp_quote";
    /// It is in the middle of a connection that no flow is known for, and would need translation.
    NoFlow = "no_flow";
    /// It came from the wire for an address that is neither a pod's nor the node's.
    NotOurs = "not_ours";
    /// Its TTL was used up; a time-exceeded was sent where the rules allow it.
    TtlExceeded = "ttl_exceeded";
    /// Larger than the way out carries and not to be fragmented; a frag-needed was sent where the rules allow it.
    FragNeeded = "frag_needed";
    /// No ENI owns the source address.
    NoEgress = "no_egress";
    /// The next hop's Ethernet address did not become known in time.
    NeighbourUnresolved = "neighbour_unresolved";
    /// Too many packets wait for an Ethernet address.
    NeighbourQueueFull = "neighbour_queue_full";
    /// The first fragment is shorter than the L4 header (RFC 1858).
    FragmentTiny = "fragment_tiny";
    /// The fragment overlaps one that passed before.
    FragmentOverlap = "fragment_overlap";
    /// The first fragment did not come in time.
    FragmentTimeout = "fragment_timeout";
    /// Too many fragments wait for their first one.
    FragmentQueueFull = "fragment_queue_full";
    /// The flow table is full.
    TableFull = "table_full";
    /// Two workers inserted the same flow at once and this one gave way too often.
    TableContended = "table_contended";
    /// Every port of the set is taken for this destination.
    PortsExhausted = "ports_exhausted";
    /// A policy isolates the sender, and no rule allows what it sends.
    PolicyEgress = "policy_egress";
    /// A policy isolates the receiver, and no rule allows what it is sent.
    PolicyIngress = "policy_ingress";
    /// As `policy_ingress`, from an address of the VPC that no pod is known for (yet): its identity would have decided.
    PolicyUnknownPeer = "policy_unknown_peer";
    /// An address or port of the service range that is no service; a port unreachable was sent where the rules allow it.
    ServiceUnknown = "service_unknown";
    /// The service has no endpoint; a port unreachable was sent where the rules allow it.
    ServiceNoEndpoints = "service_no_endpoints";
    /// The service has endpoints, but none that its traffic policy allows this node.
    ServiceNoLocalEndpoints = "service_no_local_endpoints";
    /// The pod is not in the service's `loadBalancerSourceRanges`.
    ServiceSourceRange = "service_source_range";
    /// The flow was allowed once, and a changed policy revoked it.
    Revoked = "revoked";
    /// The pod's interface is not there (yet, or any more).
    PodUnreachable = "pod_unreachable";
    /// The pod whose address it is sent to is behind the sender's own interface.
    Hairpin = "hairpin";
    /// The transmit ring of the way out was full.
    TxFull = "tx_full";
    /// The kernel refused the frame on the way out.
    TxError = "tx_error";
    /// No frame of the pool was free to carry it.
    NoFrame = "no_frame";
    /// The worker that it was handed to had no room.
    HandoffFull = "handoff_full";
    /// The dataplane was shutting down.
    Shutdown = "shutdown";
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
