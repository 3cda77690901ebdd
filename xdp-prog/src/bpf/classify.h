/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose packet is it? One set of rules for XDP and tc, so that --eni-port=tap cannot differ from AF_XDP.
 *
 * Headers are read in place where the frame is linear and through a helper where it is not (a socket buffer's payload
 * may begin anywhere in its pages, an xdp.frags frame may have a short first buffer). Nothing here writes.
 */
#ifndef SLUICE_CLASSIFY_H
#define SLUICE_CLASSIFY_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

/* linux/icmp.h would pull in the C library. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

enum layer { LAYER_XDP, LAYER_XDP_FRAGS, LAYER_SKB };

struct view {
	void *ctx;
	void *data;
	void *end;
	enum layer layer;       /* always a constant: the branches on it fold away */
};

static __always_inline long load_far(struct view *view, __u32 offset, void *to, __u32 bytes)
{
	if (view->layer == LAYER_SKB)
		return bpf_skb_load_bytes(view->ctx, offset, to, bytes);
	if (view->layer == LAYER_XDP_FRAGS)
		return bpf_xdp_load_bytes(view->ctx, offset, to, bytes);
	return -1;
}

/* Copies *to from `offset` (at most 14 + 60). Not 0: the frame ends before. The typed copy keeps the loads wide. */
#define READ(view, offset, to) ({                                           \
	typeof(to) at = (view)->data + (offset);                             \
	long failed = 0;                                                     \
	if ((void *)(at + 1) <= (view)->end)                                 \
		*(to) = *at;                                                  \
	else                                                                 \
		failed = load_far((view), (offset), (to), sizeof(*(to)));     \
	failed;                                                              \
})

struct ports_at {
	__be16 source;
	__be16 dest;
};

struct icmp_at {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id;
	__be16 sequence;
};

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

static __always_inline int is_fragment(const struct iphdr *ip)
{
	return (ip->frag_off & bpf_htons(0x3fff)) != 0; /* more fragments, or an offset */
}

static __always_inline int is_valid(const struct iphdr *ip)
{
	return ip->version == 4 && ip->ihl >= 5;
}

/* Behind the options, where there are some. */
static __always_inline __u32 l4_offset(const struct iphdr *ip)
{
	return ETH_HLEN + ip->ihl * 4;
}

/*
 * Errors that quote a packet of ours (RFC 5508 section 4). A redirect (type 5) quotes one too, but is about the
 * kernel's routes: it stays the kernel's.
 */
static __always_inline int is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

enum wire_class {
	WIRE_NOT_IPV4,
	WIRE_TRUNCATED,
	WIRE_MALFORMED,
	WIRE_HANDBACK,
	WIRE_OTHER_ADDRESS,
	WIRE_HOST_PORT,
	WIRE_HOST_ICMP,
	WIRE_POD,               /* from here on ours */
	WIRE_PORT,
	WIRE_ICMP_REPLY,
	WIRE_ICMP_ERROR,
	WIRE_FRAGMENT,
};

_Static_assert(xdp_redirect_fragment - xdp_pass_not_ipv4 == WIRE_FRAGMENT, "counters.h: xdp_ rows");
_Static_assert(xdp_redirect_pod - xdp_pass_not_ipv4 == WIRE_POD, "counters.h: xdp_ rows");
_Static_assert(eni_in_redirect_fragment - eni_in_pass_not_ipv4 == WIRE_FRAGMENT, "counters.h: eni_in_ rows");
_Static_assert(eni_in_redirect_pod - eni_in_pass_not_ipv4 == WIRE_POD, "counters.h: eni_in_ rows");

/*
 * A frame that came in on an ENI. Every fragment to the SNAT address is ours: only the first one names a port, and the
 * engine hands a datagram that is not ours back whole and in order. A frame too short to tell is the kernel's: no
 * packet of ours is lost by that, because the engine could not place it either.
 */
static __always_inline enum wire_class classify_wire(struct view *view, const struct config *config)
{
	struct ethhdr eth;
	struct iphdr ip;

	if (READ(view, 0, &eth))
		return WIRE_TRUNCATED;
	if (same_mac(eth.h_source, config->handback_mac))
		return WIRE_HANDBACK;
	if (eth.h_proto != bpf_htons(ETH_P_IP))
		return WIRE_NOT_IPV4;
	if (READ(view, ETH_HLEN, &ip))
		return WIRE_TRUNCATED;
	if (!is_valid(&ip))
		return WIRE_MALFORMED;
	if (is_pod(ip.daddr))
		return WIRE_POD;
	if (ip.daddr != config->nat_ip || !config->nat_ip)
		return WIRE_OTHER_ADDRESS;
	if (is_fragment(&ip))
		return WIRE_FRAGMENT;

	if (ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP) {
		struct ports_at l4;

		if (READ(view, l4_offset(&ip), &l4))
			return WIRE_TRUNCATED;
		return is_our_port(ip.protocol == IPPROTO_TCP ? SLUICE_PORTS_TCP : SLUICE_PORTS_UDP,
				   bpf_ntohs(l4.dest)) ? WIRE_PORT : WIRE_HOST_PORT;
	}
	if (ip.protocol == IPPROTO_ICMP) {
		struct icmp_at l4;

		if (READ(view, l4_offset(&ip), &l4))
			return WIRE_TRUNCATED;
		if (is_icmp_error(l4.type))
			return WIRE_ICMP_ERROR;
		/* An identifier of ours in a request is the remote's choice and means nothing. */
		if (l4.type == ICMP_ECHOREPLY && is_our_port(SLUICE_PORTS_ICMP, bpf_ntohs(l4.id)))
			return WIRE_ICMP_REPLY;
		return WIRE_HOST_ICMP;
	}
	return WIRE_HOST_PORT;
}

enum sent_class {
	SENT_NOT_IPV4 = eni_out_pass_not_ipv4,
	SENT_TRUNCATED = eni_out_pass_truncated,
	SENT_MALFORMED = eni_out_pass_malformed,
	SENT_OTHER_ADDRESS = eni_out_pass_other_address,
	SENT_PORT_NOT_OURS = eni_out_pass_port,
	SENT_ICMP_NOT_OURS = eni_out_pass_icmp,
	SENT_PORT = eni_out_redirect_port,
	SENT_ICMP_REQUEST = eni_out_redirect_icmp_request,
	SENT_FRAGMENT = eni_out_redirect_fragment,
};

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline int is_first_fragment(const struct iphdr *ip)
{
	return (ip->frag_off & bpf_htons(0x1fff)) == 0;
}

enum local_class {
	LOCAL_KERNEL = from_pod_pass_local,
	LOCAL_FRONTEND = from_pod_redirect_frontend,
	LOCAL_HAIRPIN = from_pod_redirect_hairpin,
	LOCAL_ICMP_ERROR = from_pod_redirect_icmp_error,
	LOCAL_FRAGMENT = from_pod_redirect_fragment,
};

/*
 * A pod's packet to an address of the node. A service there is the engine's, so that nobody reaches a pod around policy
 * through the node's own NodePort. To the SNAT address may come what answers a pod that reached itself through a service,
 * whose source was a mapping then. Only the first fragment names a port, and it alone decides whether a datagram is let
 * past a dead engine: without it the others are worth nothing.
 */
static __always_inline enum local_class classify_local(struct view *view, const struct config *config,
						       const struct iphdr *ip)
{
	int may_be_mapping = ip->daddr == config->nat_ip && config->nat_ip;

	if (has_ports(ip->protocol) && is_first_fragment(ip)) {
		struct ports_at l4;

		if (!READ(view, l4_offset(ip), &l4)) {
			if (is_frontend(ip->daddr, ip->protocol, l4.dest))
				return LOCAL_FRONTEND;
			/* SCTP is never translated to this address: there is no set of ports for it. */
			if (may_be_mapping && !is_fragment(ip) && ip->protocol != IPPROTO_SCTP &&
			    is_our_port(ip->protocol == IPPROTO_TCP ? SLUICE_PORTS_TCP : SLUICE_PORTS_UDP,
					bpf_ntohs(l4.dest)))
				return LOCAL_HAIRPIN;
		}
	}
	if (is_fragment(ip))
		return may_be_mapping || config->flags & SLUICE_HAS_FRONTENDS ? LOCAL_FRAGMENT : LOCAL_KERNEL;
	if (ip->protocol == IPPROTO_ICMP && may_be_mapping) {
		struct icmp_at l4;

		if (READ(view, l4_offset(ip), &l4))
			return LOCAL_KERNEL;
		if (is_icmp_error(l4.type))
			return LOCAL_ICMP_ERROR;
		if (l4.type == ICMP_ECHOREPLY && is_our_port(SLUICE_PORTS_ICMP, bpf_ntohs(l4.id)))
			return LOCAL_HAIRPIN;
	}
	return LOCAL_KERNEL;
}

enum node_class {
	NODE_OWN = to_pod_pass_node,
	NODE_ENDPOINT = to_pod_redirect_node,
	NODE_ICMP_ERROR = to_pod_redirect_node_icmp_error,
	NODE_FRAGMENT = to_pod_redirect_node_fragment,
};

/*
 * What the node itself sends into a pod: an answer of a service's endpoint has the endpoint's address, not the one that
 * the pod asked, and only the engine knows that one. The same for the node's complaint that nobody listens there.
 */
static __always_inline enum node_class classify_node(struct view *view)
{
	struct iphdr ip;

	if (READ(view, ETH_HLEN, &ip) || !is_valid(&ip))
		return NODE_OWN;
	if (is_fragment(&ip))
		return is_node_endpoint(ip.saddr, 0, 0) ? NODE_FRAGMENT : NODE_OWN;
	if (has_ports(ip.protocol)) {
		struct ports_at l4;

		if (READ(view, l4_offset(&ip), &l4))
			return NODE_OWN;
		return is_node_endpoint(ip.saddr, ip.protocol, l4.source) ? NODE_ENDPOINT : NODE_OWN;
	}
	if (ip.protocol == IPPROTO_ICMP) {
		struct icmp_at l4;

		if (READ(view, l4_offset(&ip), &l4) || !is_icmp_error(l4.type))
			return NODE_OWN;
		return is_node_endpoint(ip.saddr, 0, 0) ? NODE_ICMP_ERROR : NODE_OWN;
	}
	return NODE_OWN;
}

/* A frame that the kernel sends by an ENI: ours when its source could be taken for one of our mappings. */
static __always_inline enum sent_class classify_sent(struct view *view, const struct config *config)
{
	struct iphdr ip;

	if (READ(view, ETH_HLEN, &ip))
		return SENT_TRUNCATED;
	if (!is_valid(&ip))
		return SENT_MALFORMED;
	if (ip.saddr != config->nat_ip || !config->nat_ip)
		return SENT_OTHER_ADDRESS;
	if (is_fragment(&ip))
		return SENT_FRAGMENT;

	if (ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP) {
		struct ports_at l4;

		if (READ(view, l4_offset(&ip), &l4))
			return SENT_TRUNCATED;
		return is_our_port(ip.protocol == IPPROTO_TCP ? SLUICE_PORTS_TCP : SLUICE_PORTS_UDP,
				   bpf_ntohs(l4.source)) ? SENT_PORT : SENT_PORT_NOT_OURS;
	}
	if (ip.protocol == IPPROTO_ICMP) {
		struct icmp_at l4;

		if (READ(view, l4_offset(&ip), &l4))
			return SENT_TRUNCATED;
		if (l4.type == ICMP_ECHO && is_our_port(SLUICE_PORTS_ICMP, bpf_ntohs(l4.id)))
			return SENT_ICMP_REQUEST;
		return SENT_ICMP_NOT_OURS;
	}
	return SENT_PORT_NOT_OURS;
}

enum ipv6_class { IPV6_TRUNCATED, IPV6_LINK_LOCAL, IPV6_OTHER };

static __always_inline int is_link_local(const struct in6_addr *address)
{
	return address->s6_addr[0] == 0xfe && (address->s6_addr[1] & 0xc0) == 0x80;
}

/* Neighbour discovery and the like (RFC 4861): fe80::/10 at either end, or to ff02::/16. Routers forward none of it. */
static __always_inline enum ipv6_class classify_ipv6(struct view *view)
{
	struct ipv6hdr ip;

	if (READ(view, ETH_HLEN, &ip))
		return IPV6_TRUNCATED;
	if (is_link_local(&ip.saddr) || is_link_local(&ip.daddr) ||
	    (ip.daddr.s6_addr[0] == 0xff && ip.daddr.s6_addr[1] == 0x02))
		return IPV6_LINK_LOCAL;
	return IPV6_OTHER;
}

#endif
