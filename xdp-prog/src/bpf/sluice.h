/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the BPF programs, the crate that loads them and the user-space engine have to agree on: the tag that says where a
 * frame on the trunk comes from or goes to, the layout of every map, and the limits. build.rs reads the SLUICE_ numbers
 * out of this file for Rust (the /// line above one is its documentation there), and names the pinned maps after a hash
 * of it, so that a map of another layout is never adopted.
 */
#ifndef SLUICE_H
#define SLUICE_H

#include <linux/types.h>

/*
 * The tag stands in the Ethernet source address, which the receiving side can restore from the `links` map:
 * TAG_PREFIX, kind, then the interface index, big endian. The destination address stays real.
 */
/// First byte of a tag: a locally administered unicast address.
#define SLUICE_TAG_PREFIX 0x02
/// Kernel to engine: a pod sent it; the index is its host veth's.
#define SLUICE_TAG_FROM_POD 0x11
/// Kernel to engine: the kernel forwards it into the pod behind this host veth.
#define SLUICE_TAG_TO_POD 0x12
/// Kernel to engine: the kernel sends it by this ENI with a port or ICMP id of our set.
#define SLUICE_TAG_HOST 0x13
/// Kernel to engine: it came from the wire on this ENI (`--eni-port=tap`).
#define SLUICE_TAG_ENI 0x14
/// Kernel to engine: the node itself sends it into the pod behind this host veth, from an address and port that is a
/// service's endpoint, or as an ICMP error or fragment from such an address.
#define SLUICE_TAG_FROM_NODE 0x15
/// Engine to kernel: deliver into the pod behind this host veth.
#define SLUICE_TAG_POD 0x21
/// Engine to kernel: transmit by this ENI (`--eni-port=tap`).
#define SLUICE_TAG_ENI_OUT 0x22
/// Engine to kernel: as if it had just arrived from the pod behind this host veth.
#define SLUICE_TAG_KERNEL_POD 0x23
/// Engine to kernel: as if it had just arrived on this ENI.
#define SLUICE_TAG_KERNEL_ENI 0x24

/// `links`: the interface is a pod's host veth.
#define SLUICE_LINK_POD 1
/// `links`: the interface is an ENI.
#define SLUICE_LINK_ENI 2

/// `config.flags`: what is ours goes to the kernel when the engine is not there, instead of being dropped.
#define SLUICE_ON_FAILURE_KERNEL 1
/// `config.flags`: `frontends` is not empty, so that a fragment to any address of the node may be a service's.
#define SLUICE_HAS_FRONTENDS 2

/// `ports`: index of the bitmap of TCP ports.
#define SLUICE_PORTS_TCP 0
/// `ports`: index of the bitmap of UDP ports.
#define SLUICE_PORTS_UDP 1
/// `ports`: index of the bitmap of ICMP echo identifiers.
#define SLUICE_PORTS_ICMP 2
/// Words of one bitmap: bit `value % 64` of word `value / 64`.
#define SLUICE_PORT_WORDS 1024

/// Queues that one ENI can have in `xsks`: its key is slot * MAX_QUEUES + queue.
#define SLUICE_MAX_QUEUES 64
/// ENIs that `xsks` has room for. EC2's largest instances have 15 interfaces per network card.
#define SLUICE_MAX_SLOTS 64
/// Entries of `links`.
#define SLUICE_MAX_LINKS 4096
/// Entries of `pods`.
#define SLUICE_MAX_PODS 16384
/// Entries of `local_addrs`.
#define SLUICE_MAX_LOCAL_ADDRS 16384
/// Entries of `frontends`: every NodePort for three protocols, and as many host ports and balancers' addresses.
#define SLUICE_MAX_FRONTENDS 16384
/// Entries of `node_endpoints`.
#define SLUICE_MAX_NODE_ENDPOINTS 16384

struct config {
	__be32 nat_ip;          /* the primary ENI's primary address; 0 while nothing is configured */
	__u32 trunk_ifindex;    /* 0 while there is no trunk */
	__u32 mark;             /* random per load: lets what the engine sent pass our own programs, never leaves them */
	__u32 flags;
	__u8 handback_mac[6];   /* random per load: source address of what the engine hands back on an ENI */
	__u8 pad[2];
};

struct link {
	__u8 mac[6];            /* the interface's own */
	__u8 peer_mac[6];       /* the pod's, or the subnet gateway's */
	__be32 ip;              /* the pod's, or the ENI's primary address */
	__u16 kind;
	__u16 slot;             /* the ENI's place in xsks */
	__u32 flags;
};

/*
 * `frontends`: what of this node's addresses is a service for pods; address 0 is any of them. `node_endpoints`: which of
 * the node's own sockets serve; port and protocol 0 say that some do at this address.
 */
struct endpoint {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 pad;               /* 0 */
};

struct port_set {
	__u64 words[SLUICE_PORT_WORDS];
};

#endif
