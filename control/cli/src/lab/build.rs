//! Lays a planned lab out in the kernel: namespaces, links, addresses, routes and rules as VPC CNI leaves them, the
//! fabric that routes by owner and checks sources, and ENIs with the offloads that ENA has.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::options::Options;
use super::progress::Progress;
use super::topology::{EniLink, HostLink, POD_GATEWAY, Topology};
use crate::netns::Netns;
use crate::shell;

/// Builds everything. What exists already is an error: the caller cleans first.
///
/// # Errors
/// A command failed, or the user interrupted; what was built so far stays for the caller to clean.
pub(crate) fn build(plan: &Topology, options: &Options, progress: &Progress) -> Result<()> {
    progress.step(format!("{} network namespaces", plan.namespaces().len()))?;
    namespaces(plan)?;
    progress.step(format!("{} ENIs, {} hosts on the fabric", plan.enis.len(), plan.hosts.len()))?;
    ip(&plan.node, &eni_links(plan, options))?;
    ip(&plan.fabric, &host_links(plan, options))?;
    ip(&plan.fabric, &fabric(plan, options))?;
    Netns::open(&plan.fabric)?.within(|| shell::feed("nft", &["-f", "-"], &source_check(plan)))?;
    for host in &plan.hosts {
        ip(&host.namespace, &host_side(host, options))?;
    }
    progress.step(format!("{} pods", plan.pods.len()))?;
    ip(&plan.node, &pod_links(plan, options))?;
    for pod in &plan.pods {
        progress.check()?;
        let script = format!(
            "link set eth0 up\n\
             addr add {address}/32 dev eth0\n\
             route add {POD_GATEWAY}/32 dev eth0 scope link\n\
             route add default via {POD_GATEWAY} dev eth0 onlink\n\
             neigh replace {POD_GATEWAY} lladdr {mac} dev eth0 nud permanent\n",
            address = pod.address,
            mac = pod.gateway_mac,
        );
        ip(&pod.namespace, &script)?;
    }
    progress.step("routes and rules of the node, offloads of the ENIs")?;
    ip(&plan.node, &node_routes(plan))?;
    sysctls(plan)?;
    plan.enis.iter().try_for_each(|eni| offloads(plan, eni))
}

fn ip(namespace: &str, script: &str) -> Result<String> {
    shell::feed("ip", &["-n", namespace, "-batch", "-"], script)
}

fn namespaces(plan: &Topology) -> Result<()> {
    let names = plan.namespaces();
    let script: String = names.iter().map(|ns| format!("netns add {ns}\n")).collect();
    shell::feed("ip", &["-batch", "-"], &script)?;
    for name in &names {
        Netns::open(name)?.within(|| {
            // Before there is any link, so that none ever has an IPv6 address. A kernel without IPv6 needs nothing.
            if std::path::Path::new("/proc/sys/net/ipv6").exists() {
                sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
                sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
            }
            for family in ["all", "default"] {
                sysctl(&format!("net/ipv4/conf/{family}/rp_filter"), "0")?;
            }
            Ok(())
        })?;
        ip(name, "link set lo up\n")?;
    }
    Ok(())
}

fn eni_links(plan: &Topology, options: &Options) -> String {
    let (mtu, queues) = (options.eni_mtu(), options.queues);
    let mut script = String::new();
    for eni in &plan.enis {
        let EniLink { name, mac, gateway_mac, address, subnet, .. } = eni;
        let fabric = &plan.fabric;
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        let _ = writeln!(
            script,
            "link add {name} address {mac} mtu {mtu} {queues} type veth \
             peer name {name} address {gateway_mac} mtu {mtu} {queues} netns {fabric}"
        );
        // VPC CNI removes the connected route of secondary ENIs from the main table.
        let connected = if eni.primary { "" } else { " noprefixroute" };
        let _ = writeln!(script, "addr add {address}/{} dev {name}{connected}", subnet.prefix_len());
        let _ = writeln!(script, "link set {name} up");
    }
    script
}

fn host_links(plan: &Topology, options: &Options) -> String {
    let mtu = options.eni_mtu();
    let mut script = String::new();
    for HostLink { name, namespace, mac, gateway_mac, gateway, address, path_mtu, .. } in &plan.hosts {
        let _ = writeln!(
            script,
            "link add {name} address {gateway_mac} mtu {mtu} type veth \
             peer name eth0 address {mac} mtu {mtu} netns {namespace}\n\
             addr add {gateway}/32 dev {name}\n\
             link set {name} up\n\
             route add {address}/32 dev {name} src {gateway} mtu {path_mtu}"
        );
    }
    script
}

/// The fabric knows the owner of every address, and nothing else is reachable: silence, as in a VPC.
fn fabric(plan: &Topology, options: &Options) -> String {
    let mut script = String::new();
    for eni in &plan.enis {
        let EniLink { name, gateway, mac, .. } = eni;
        let _ = writeln!(script, "addr add {gateway}/32 dev {name}\nlink set {name} up");
        for address in plan.owned(eni) {
            let _ = writeln!(
                script,
                "route add {address}/32 dev {name} src {gateway}\n\
                 neigh replace {address} lladdr {mac} dev {name} nud permanent"
            );
        }
    }
    for cidr in options.nat().vpc_cidrs {
        let _ = writeln!(script, "route add blackhole {cidr}");
    }
    script
}

/// EC2's source/destination check: what an ENI sends must carry a source that it owns. (The other half holds by
/// construction: the fabric sends an ENI only what it owns.)
fn source_check(plan: &Topology) -> String {
    let mut script = String::from("table ip fabric {\n");
    let mut rules = String::new();
    for eni in &plan.enis {
        let name = &eni.name;
        let owned = plan.owned(eni).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let _ = writeln!(script, "  counter source_check_{name} {{\n  }}");
        let _ =
            writeln!(script, "  set own_{name} {{\n    type ipv4_addr\n    elements = {{ {owned} }}\n  }}");
        let _ = writeln!(
            rules,
            "    iifname \"{name}\" ip saddr != @own_{name} counter name \"source_check_{name}\" drop"
        );
    }
    let _ = write!(
        script,
        "  chain check {{\n    type filter hook prerouting priority raw; policy accept;\n{rules}  }}\n}}\n"
    );
    script
}

fn host_side(host: &HostLink, options: &Options) -> String {
    let HostLink { address, gateway, .. } = host;
    // Its MTU is the ENIs': only the way to it may be narrower, so that nothing but path MTU discovery tells.
    let mtu = options.eni_mtu();
    format!(
        "link set eth0 mtu {mtu} up\n\
         addr add {address}/32 dev eth0\n\
         route add {gateway}/32 dev eth0 scope link\n\
         route add default via {gateway} dev eth0 onlink\n"
    )
}

fn pod_links(plan: &Topology, options: &Options) -> String {
    let mtu = options.pod_mtu();
    let mut script = String::new();
    for pod in &plan.pods {
        let (interface, namespace) = (&pod.interface, &pod.namespace);
        let _ = writeln!(
            script,
            "link add {interface} address {gateway_mac} mtu {mtu} type veth \
             peer name eth0 address {mac} mtu {mtu} netns {namespace}\n\
             link set {interface} up\n\
             route add {address}/32 dev {interface} scope link",
            gateway_mac = pod.gateway_mac,
            mac = pod.mac,
            address = pod.address,
        );
    }
    script
}

/// VPC CNI: `pkg/networkutils`. 512 to a pod, 1024 for marked connections, 1536 from a secondary ENI's pod, and
/// 32765 from a secondary ENI's own address.
fn node_routes(plan: &Topology) -> String {
    let mut script = String::from("rule add fwmark 0x80/0x80 lookup main pref 1024\n");
    for eni in &plan.enis {
        let EniLink { name, gateway, table, address, .. } = eni;
        if eni.primary {
            let _ = writeln!(script, "route add default via {gateway} dev {name}");
            continue;
        }
        let _ = writeln!(
            script,
            "route add {gateway}/32 dev {name} scope link table {table}\n\
             route add default via {gateway} dev {name} table {table}\n\
             rule add from {address} lookup {table} pref 32765"
        );
    }
    for pod in &plan.pods {
        let _ = writeln!(script, "rule add to {} lookup main pref 512", pod.address);
        let table = plan.enis.iter().find(|e| e.name == pod.eni && !e.primary).map(|e| e.table);
        if let Some(table) = table {
            let _ = writeln!(script, "rule add from {} lookup {table} pref 1536", pod.address);
        }
    }
    script
}

fn sysctls(plan: &Topology) -> Result<()> {
    Netns::open(&plan.node)?.within(|| {
        sysctl("net/ipv4/ip_forward", "1")?;
        // VPC CNI: its init container sets loose mode on the primary ENI, and only there.
        sysctl(&format!("net/ipv4/conf/{}/rp_filter", plan.enis[0].name), "2")
    })?;
    Netns::open(&plan.fabric)?.within(|| {
        sysctl("net/ipv4/ip_forward", "1")?;
        sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        sysctl("net/ipv4/conf/default/send_redirects", "0")?;
        // Path MTU errors are what the lab is asked about: none may be swallowed by the rate limit.
        sysctl("net/ipv4/icmp_ratelimit", "0")
    })
}

/// Writes a sysctl of the calling thread's network namespace.
fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{key}");
    std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// What ENA has: checksums and scatter-gather, no TSO, GRO. The fabric's end stands for another machine: its NAPI gets a
/// thread of its own, or its TCP would run inside the node's transmit call, and it completes its checksums, as every frame on a
/// wire has them: XDP sees a veth's frames without the promise that they are partial.
fn offloads(plan: &Topology, eni: &EniLink) -> Result<()> {
    let name = eni.name.as_str();
    let set = ["-K", name, "tx", "on", "sg", "on", "tso", "off", "tx-udp-segmentation", "off", "gro", "on"];
    Netns::open(&plan.node)?.within(|| shell::run("ethtool", &set))?;
    Netns::open(&plan.fabric)?.within(|| shell::run("ethtool", &["-K", name, "gro", "on", "tx", "off"]))?;
    // sysfs shows the namespace it was mounted in: `ip netns exec` mounts the right one. Kernels below 5.12 have no such
    // file, and are only slower to measure on.
    let threaded =
        format!("! test -e /sys/class/net/{name}/threaded || echo 1 > /sys/class/net/{name}/threaded");
    shell::run("ip", &["netns", "exec", &plan.fabric, "sh", "-c", &threaded])?;
    Ok(())
}
