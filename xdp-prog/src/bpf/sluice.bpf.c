// SPDX-License-Identifier: Apache-2.0
/*
 * The programs. XDP and tc only decide whose a packet is and carry what is the engine's to it; everything that needs
 * memory of a flow is the engine's. Each path ends in exactly one counter.
 *
 * What passes returns TCX_NEXT (the value of TC_ACT_UNSPEC), not TC_ACT_OK: programs of others on the same hook still
 * run, under tcx as under clsact.
 */
#include "classify.h"

#define TCX_NEXT (-1)
#define TC_DROP 2               /* TC_ACT_SHOT = TCX_DROP */
#define PACKET_HOST 0

/* No helper used here is reserved to GPL-compatible programs, so the object may say what the files say. */
char LICENSE[] SEC("license") = "Apache-2.0";

static __always_inline int keep(__u32 counter)
{
	count(counter);
	return TCX_NEXT;
}

static __always_inline int drop(__u32 counter)
{
	count(counter);
	return TC_DROP;
}

static __always_inline struct view view_of(struct __sk_buff *skb)
{
	struct view view = {
		.ctx = skb,
		.data = (void *)(long)skb->data,
		.end = (void *)(long)skb->data_end,
		.layer = LAYER_SKB,
	};
	return view;
}

/* ---- ENI, AF_XDP ---- */

/* An interface that is no known ENI, or a queue beyond the map, has no socket. */
static __always_inline __u32 socket_of(struct xdp_md *ctx)
{
	__u32 none = SLUICE_MAX_SLOTS * SLUICE_MAX_QUEUES;
	__u32 ifindex = ctx->ingress_ifindex, queue = ctx->rx_queue_index;
	struct link *link = bpf_map_lookup_elem(&links, &ifindex);

	if (!link || link->kind != SLUICE_LINK_ENI || queue >= SLUICE_MAX_QUEUES)
		return none;
	return link->slot * SLUICE_MAX_QUEUES + queue;
}

static __always_inline int eni_xdp(struct xdp_md *ctx, enum layer layer)
{
	struct view view = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.layer = layer,
	};
	struct config *config = configuration();
	enum wire_class class;

	if (!config)
		return XDP_DROP; /* cannot be: an array's element always exists */
	class = classify_wire(&view, config);
	if (class < WIRE_POD) {
		count(xdp_pass_not_ipv4 + class);
		return XDP_PASS;
	}
	/* An empty slot answers with the flags: never XDP_PASS by default, it would leak untranslated packets. */
	if (bpf_redirect_map(&xsks, socket_of(ctx), XDP_DROP) == XDP_REDIRECT) {
		count(xdp_pass_not_ipv4 + class);
		return XDP_REDIRECT;
	}
	/* Echo replies, ICMP errors and fragments may be the node's own, which must not suffer from a dead engine. */
	if (class > WIRE_PORT || config->flags & SLUICE_ON_FAILURE_KERNEL) {
		count(xdp_pass_no_socket);
		return XDP_PASS;
	}
	count(xdp_drop_no_socket);
	return XDP_DROP;
}

SEC("xdp")
int sluice_eni_xdp(struct xdp_md *ctx)
{
	return eni_xdp(ctx, LAYER_XDP);
}

SEC("xdp.frags")
int sluice_eni_xdp_frags(struct xdp_md *ctx)
{
	return eni_xdp(ctx, LAYER_XDP_FRAGS);
}

/* ---- to the engine ---- */

/* What a program counts when it diverts: done, no trunk and dropped, no trunk and passed, no memory. */
struct divert_counters {
	__u32 done, no_trunk_drop, no_trunk_pass, no_memory;
};

/* Whether what nobody takes goes to the kernel: the operator chose so, or it may be the node's own. */
static __always_inline int is_open(const struct config *config, int own)
{
	return own || config->flags & SLUICE_ON_FAILURE_KERNEL;
}

static __always_inline int engine_is_there(const struct config *config, int own)
{
	__u32 zero = 0;
	__u64 *until;

	if (!config->trunk_ifindex)
		return 0;
	/* Fail closed needs no question: a trunk that nobody reads drops. Only the other choice has to know. */
	if (!is_open(config, own))
		return 1;
	until = bpf_map_lookup_elem(&heartbeat, &zero);
	return !until || !*until || bpf_ktime_get_ns() < *until;
}

static __always_inline long write_source(struct __sk_buff *skb, const __u8 *mac)
{
	/* Makes the header writable first when the buffer is cloned (a TCP sender keeps a clone). */
	return bpf_skb_store_bytes(skb, ETH_ALEN, mac, ETH_ALEN, 0);
}

static __always_inline int divert(struct __sk_buff *skb, const struct config *config, __u8 kind, int own,
				  struct divert_counters counter)
{
	__u32 ifindex = skb->ifindex, trunk = config->trunk_ifindex;
	__u8 tag[ETH_ALEN] = { SLUICE_TAG_PREFIX, kind, ifindex >> 24, ifindex >> 16, ifindex >> 8, ifindex };

	if (!engine_is_there(config, own))
		return is_open(config, own) ? keep(counter.no_trunk_pass) : drop(counter.no_trunk_drop);
	if (write_source(skb, tag))
		return drop(counter.no_memory);
	count(counter.done);
	return bpf_redirect(trunk, 0);
}

/* Set by the trunk's program on what the engine sends, and taken off before anybody else sees the packet. */
static __always_inline int take_mark(struct __sk_buff *skb, const struct config *config)
{
	if (!config->mark || skb->mark != config->mark)
		return 0;
	skb->mark = 0;
	return 1;
}

/* ---- pod: host veth, both ways ---- */

static __always_inline int is_multicast_or_broadcast(__be32 address)
{
	return (address & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || address == bpf_htonl(0xffffffff);
}

static __always_inline int to_this_node(struct __sk_buff *skb, struct view *view, const struct config *config,
					const struct iphdr *ip, struct divert_counters counter)
{
	enum local_class class = classify_local(view, config, ip);
	int own = class != LOCAL_FRONTEND;

	if (class == LOCAL_KERNEL)
		return keep(from_pod_pass_local);
	counter.done = class;
	if (own)
		counter.no_trunk_pass = from_pod_pass_local_no_trunk;
	return divert(skb, config, SLUICE_TAG_FROM_POD, own, counter);
}

SEC("tc")
int sluice_from_pod(struct __sk_buff *skb)
{
	struct divert_counters counter = {
		from_pod_redirect, from_pod_drop_no_trunk, from_pod_pass_no_trunk, from_pod_drop_no_memory,
	};
	struct view view = view_of(skb);
	struct config *config = configuration();
	__u32 ifindex = skb->ifindex;
	struct link *link;
	struct iphdr ip;

	if (!config)
		return TC_DROP;
	if (take_mark(skb, config))
		return keep(from_pod_pass_handback);
	if (skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) || skb->protocol == bpf_htons(ETH_P_8021AD))
		return drop(from_pod_drop_vlan);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return keep(from_pod_pass_arp);
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		switch (classify_ipv6(&view)) {
		case IPV6_LINK_LOCAL:
			return keep(from_pod_pass_link_local);
		case IPV6_TRUNCATED:
			return drop(from_pod_drop_truncated);
		default:
			return drop(from_pod_drop_not_ipv4);
		}
	}
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop(from_pod_drop_not_ipv4);

	if (READ(&view, ETH_HLEN, &ip))
		return drop(from_pod_drop_truncated);
	if (!is_valid(&ip))
		return drop(from_pod_drop_malformed);
	link = bpf_map_lookup_elem(&links, &ifindex);
	if (!link || link->kind != SLUICE_LINK_POD)
		return drop(from_pod_drop_unknown_interface);
	if (ip.saddr != link->ip)
		return drop(from_pod_drop_spoof);
	if (is_multicast_or_broadcast(ip.daddr))
		return keep(from_pod_pass_multicast);
	if (is_local(ip.daddr))
		return to_this_node(skb, &view, config, &ip, counter);
	return divert(skb, config, SLUICE_TAG_FROM_POD, 0, counter);
}

static __always_inline int from_this_node(struct __sk_buff *skb, struct view *view, const struct config *config)
{
	struct divert_counters counter = {
		0, to_pod_pass_node_no_trunk, to_pod_pass_node_no_trunk, to_pod_drop_no_memory,
	};
	enum node_class class = NODE_OWN;

	if (skb->protocol == bpf_htons(ETH_P_IP) && !skb->vlan_present)
		class = classify_node(view);
	if (class == NODE_OWN)
		return keep(to_pod_pass_node);
	counter.done = class;
	return divert(skb, config, SLUICE_TAG_FROM_NODE, 1, counter);
}

/*
 * What the engine delivers does not come by here (bpf_redirect_peer enters the pod behind this hook). What does come is
 * the node's own, which has never entered by an interface, or what the kernel forwards and policy has to see.
 */
SEC("tc")
int sluice_to_pod(struct __sk_buff *skb)
{
	struct divert_counters counter = {
		to_pod_redirect, to_pod_drop_no_trunk, to_pod_pass_no_trunk, to_pod_drop_no_memory,
	};
	struct view view = view_of(skb);
	struct config *config = configuration();

	if (!config)
		return TC_DROP;
	if (skb->ingress_ifindex == 0)
		return from_this_node(skb, &view, config);
	if (skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) || skb->protocol == bpf_htons(ETH_P_8021AD))
		return drop(to_pod_drop_vlan);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return keep(to_pod_pass_arp);
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		switch (classify_ipv6(&view)) {
		case IPV6_LINK_LOCAL:
			return keep(to_pod_pass_link_local);
		case IPV6_TRUNCATED:
			return drop(to_pod_drop_truncated);
		default:
			return drop(to_pod_drop_not_ipv4);
		}
	}
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop(to_pod_drop_not_ipv4);
	if (skb->len < ETH_HLEN + sizeof(struct iphdr))
		return drop(to_pod_drop_truncated);
	return divert(skb, config, SLUICE_TAG_TO_POD, 0, counter);
}

/* ---- ENI, tc ---- */

/* AF_XDP transmits below this hook, so what comes is the kernel's, or the engine's through the trunk. */
SEC("tc")
int sluice_eni_egress(struct __sk_buff *skb)
{
	struct divert_counters counter = {
		/* The node's own is never dropped for want of an engine. */
		0, eni_out_pass_no_trunk, eni_out_pass_no_trunk, eni_out_drop_no_memory,
	};
	struct view view = view_of(skb);
	struct config *config = configuration();
	enum sent_class class;

	if (!config)
		return TC_DROP;
	if (take_mark(skb, config))
		return keep(eni_out_pass_engine);
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return keep(eni_out_pass_not_ipv4);
	class = classify_sent(&view, config);
	if (class < SENT_PORT)
		return keep(class);
	counter.done = class;
	return divert(skb, config, SLUICE_TAG_HOST, 1, counter);
}

/* --eni-port=tap: the XDP program's rules, without AF_XDP. */
SEC("tc")
int sluice_eni_ingress(struct __sk_buff *skb)
{
	struct divert_counters counter = {
		0, eni_in_drop_no_trunk, eni_in_pass_no_trunk, eni_in_drop_no_memory,
	};
	struct view view = view_of(skb);
	struct config *config = configuration();
	enum wire_class class;

	if (!config)
		return TC_DROP;
	/* The driver has taken the tag off: the bytes look like untagged IPv4. */
	if (skb->vlan_present)
		return keep(eni_in_pass_not_ipv4);
	class = classify_wire(&view, config);
	if (class < WIRE_POD)
		return keep(eni_in_pass_not_ipv4 + class);
	counter.done = eni_in_pass_not_ipv4 + class;
	return divert(skb, config, SLUICE_TAG_ENI, class > WIRE_PORT, counter);
}

/* ---- trunk: from the engine ---- */

static __always_inline int deliver(struct __sk_buff *skb, struct link *link, __u32 ifindex)
{
	if (write_source(skb, link->mac))
		return drop(trunk_drop_no_memory);
	/*
	 * The destination is the pod's address, not the trunk's, so the packet counts as somebody else's. Linux 6.18
	 * forgets that on the way into the pod; the helper does not promise it.
	 */
	bpf_skb_change_type(skb, PACKET_HOST);
	count(trunk_redirect_pod);
	return bpf_redirect_peer(ifindex, 0);
}

/*
 * Nothing that is written to the trunk ever reaches the kernel's stack as the trunk's own: a frame that we cannot place
 * ends here.
 */
SEC("tc")
int sluice_trunk(struct __sk_buff *skb)
{
	struct view view = view_of(skb);
	struct config *config = configuration();
	__u32 ifindex, wanted;
	struct ethhdr eth;
	struct link *link;
	__u8 kind;

	if (!config)
		return TC_DROP;
	if (READ(&view, 0, &eth))
		return drop(trunk_drop_kind);
	kind = eth.h_source[1];
	ifindex = (__u32)eth.h_source[2] << 24 | (__u32)eth.h_source[3] << 16 | (__u32)eth.h_source[4] << 8 | eth.h_source[5];
	if (eth.h_source[0] != SLUICE_TAG_PREFIX || kind < SLUICE_TAG_POD || kind > SLUICE_TAG_KERNEL_ENI)
		return drop(trunk_drop_kind);
	/* Without a mark, what goes to an ENI or back to a veth would be diverted to us again, for ever. */
	if (!config->mark)
		return drop(trunk_drop_no_config);
	wanted = kind == SLUICE_TAG_POD || kind == SLUICE_TAG_KERNEL_POD ? SLUICE_LINK_POD : SLUICE_LINK_ENI;
	link = bpf_map_lookup_elem(&links, &ifindex);
	if (!link || link->kind != wanted)
		return drop(trunk_drop_unknown_interface);

	switch (kind) {
	case SLUICE_TAG_POD:
		return deliver(skb, link, ifindex);
	case SLUICE_TAG_ENI_OUT:
		if (write_source(skb, link->mac))
			return drop(trunk_drop_no_memory);
		skb->mark = config->mark;
		count(trunk_redirect_eni);
		return bpf_redirect(ifindex, 0);
	case SLUICE_TAG_KERNEL_POD:
		if (write_source(skb, link->peer_mac))
			return drop(trunk_drop_no_memory);
		skb->mark = config->mark; /* sluice_from_pod takes it off */
		count(trunk_redirect_kernel_pod);
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	default:
		/*
		 * No mark here: with AF_XDP there is no program at this ENI's ingress that would take it off, and the
		 * stack's rules would see it. Generic XDP and sluice_eni_ingress know the frame by its source instead.
		 */
		if (write_source(skb, config->handback_mac))
			return drop(trunk_drop_no_memory);
		count(trunk_redirect_kernel_eni);
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	}
}
