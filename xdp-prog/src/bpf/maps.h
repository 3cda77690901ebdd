/* SPDX-License-Identifier: Apache-2.0 */
/* The maps, shared by all programs and pinned by name. */
#ifndef SLUICE_MAPS_H
#define SLUICE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "sluice.h"

enum counter {
#define COUNTER(name, meaning) name,
#include "counters.h"
#undef COUNTER
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

/* CLOCK_MONOTONIC in ns until which the engine is taken to be alive; 0: no heartbeat is kept. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

/* Interface index -> what it is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLUICE_MAX_LINKS);
	__type(key, __u32);
	__type(value, struct link);
} links SEC(".maps");

/* Pod address -> interface index of its host veth. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLUICE_MAX_PODS);
	__type(key, __be32);
	__type(value, __u32);
} pods SEC(".maps");

/* Addresses of the node itself. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLUICE_MAX_LOCAL_ADDRS);
	__type(key, __be32);
	__type(value, __u32);
} local_addrs SEC(".maps");

/* Services on the node's own addresses, for pods. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLUICE_MAX_FRONTENDS);
	__type(key, struct endpoint);
	__type(value, __u32);
} frontends SEC(".maps");

/* Services' endpoints that are processes of the node itself. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLUICE_MAX_NODE_ENDPOINTS);
	__type(key, struct endpoint);
	__type(value, __u32);
} node_endpoints SEC(".maps");

/* Our ports on the SNAT address: one bitmap per protocol, replaced whole, so that nobody reads half an update of a word. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct port_set);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, SLUICE_MAX_SLOTS * SLUICE_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);
	if (value)
		*value += 1;
}

/* Null before user space has written it once: then nothing is ours yet. */
static __always_inline struct config *configuration(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline int is_our_port(__u32 space, __u16 value)
{
	struct port_set *set = bpf_map_lookup_elem(&ports, &space);
	if (!set)
		return 0;
	return (set->words[value / 64] >> (value % 64)) & 1;
}

static __always_inline int is_pod(__be32 address)
{
	return bpf_map_lookup_elem(&pods, &address) != 0;
}

static __always_inline int is_local(__be32 address)
{
	return bpf_map_lookup_elem(&local_addrs, &address) != 0;
}

/* By its own address first: most are NodePorts, but both lookups miss for what is the kernel's. */
static __always_inline int is_frontend(__be32 address, __u8 protocol, __be16 port)
{
	struct endpoint key = { .address = address, .port = port, .protocol = protocol };

	if (bpf_map_lookup_elem(&frontends, &key))
		return 1;
	key.address = 0;
	return bpf_map_lookup_elem(&frontends, &key) != 0;
}

static __always_inline int is_node_endpoint(__be32 address, __u8 protocol, __be16 port)
{
	struct endpoint key = { .address = address, .port = port, .protocol = protocol };

	return bpf_map_lookup_elem(&node_endpoints, &key) != 0;
}

#endif
