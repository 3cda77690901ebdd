//! The kernel's side: a node in a namespace that forwards and masquerades, a pod and the wire in namespaces beside it.
//!
//! ```text
//!  pod namespace            node namespace                       wire namespace
//!  eth0 <--- veth ---> pod0   nft masquerade   eni0 <--- veth ---> wire
//!  packet socket              ip_forward                          packet socket
//! ```
//!
//! Nothing in the outer two namespaces has an address: what arrives there is only looked at. Everything runs on one CPU,
//! where the kernel takes packets in the order in which they were sent, so that a marker that is sent after a packet
//! arrives after everything that the packet caused.

use anyhow::{Context, Result, ensure};
use sluice_engine::testing::udp;

use crate::outcome::{Seen, Side};
use crate::sys::{Namespaces, PacketSocket};
use crate::{ENI_MAC, ENI_MTU, GATEWAY_MAC, HOST_MAC, POD_MAC, address_frame};

const RULES: &str = "
table ip oracle {
    counter host { }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname eni0 ip daddr { 10.0.0.0/16, 100.64.0.0/16 } return
        oifname eni0 masquerade
    }
    chain input {
        type filter hook input priority filter;
        counter name host drop
    }
}
";

/// The port that markers go to; no probe uses it.
const MARKER: u16 = 9;

pub(crate) struct Kernel {
    namespaces: Namespaces,
    pod: PacketSocket,
    wire: PacketSocket,
    host: u64,
}

impl Kernel {
    pub(crate) fn new() -> Result<Self> {
        let namespaces = Namespaces::new(&["pod", "node", "wire"])?;
        let (pod, node, wire) = (namespaces.name("pod"), namespaces.name("node"), namespaces.name("wire"));
        let lines = [
            (
                "pod",
                format!(
                    "ip link add eth0 address {} type veth peer name pod0 address {} netns {node}",
                    mac(POD_MAC),
                    mac(HOST_MAC)
                ),
            ),
            (
                "wire",
                format!(
                    "ip link add wire address {} type veth peer name eni0 address {} netns {node}",
                    mac(GATEWAY_MAC),
                    mac(ENI_MAC)
                ),
            ),
        ];
        for (at, line) in &lines {
            namespaces.exec(at, line)?;
        }
        for at in ["pod", "node", "wire"] {
            for setting in ["all.disable_ipv6", "default.disable_ipv6"] {
                namespaces.exec(at, &format!("sysctl -qw net.ipv6.conf.{setting}=1"))?;
            }
        }
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.pod0.rp_filter=0",
            "net.ipv4.conf.eni0.rp_filter=0",
            "net.ipv4.conf.all.send_redirects=0",
            "net.ipv4.conf.pod0.send_redirects=0",
            "net.ipv4.conf.eni0.send_redirects=0",
            "net.ipv4.icmp_ratelimit=0",
        ] {
            namespaces.exec("node", &format!("sysctl -qw {setting}"))?;
        }
        for (at, line) in [
            ("pod", "ip link set eth0 up".to_owned()),
            ("wire", "ip link set wire up".to_owned()),
            ("node", "ip link set lo up".to_owned()),
            ("node", "ip link set pod0 up".to_owned()),
            ("node", format!("ip link set eni0 mtu {ENI_MTU} up")),
            ("node", "ip address add 10.0.9.5/24 dev eni0".to_owned()),
            ("node", "ip route add 10.0.1.10/32 dev pod0".to_owned()),
            ("node", "ip route add default via 10.0.9.1".to_owned()),
            ("node", format!("ip neigh add 10.0.1.10 lladdr {} dev pod0 nud permanent", mac(POD_MAC))),
            ("node", format!("ip neigh add 10.0.9.1 lladdr {} dev eni0 nud permanent", mac(GATEWAY_MAC))),
        ] {
            namespaces.exec(at, &line)?;
        }
        let rules = tempfile::NamedTempFile::new().context("a temporary file")?;
        std::fs::write(&rules, RULES).context("nft rules")?;
        namespaces.exec("node", &format!("nft -f {}", rules.path().display()))?;
        let (pod_socket, wire_socket) =
            (namespaces.packet_socket("pod", "eth0")?, namespaces.packet_socket("wire", "wire")?);
        ensure!(pod != wire, "two namespaces");
        Ok(Self { namespaces, pod: pod_socket, wire: wire_socket, host: 0 })
    }

    /// Forgets every connection.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.namespaces.exec("node", "conntrack -F").map(drop)
    }

    /// Puts one frame in and waits for everything that comes of it.
    pub(crate) fn inject(&mut self, from: Side, frame: &[u8]) -> Result<Vec<Seen>> {
        match from {
            Side::Pod => self.pod.send(frame)?,
            Side::Wire => self.wire.send(frame)?,
        }
        // One marker each way, after the frame: what comes before them came of it.
        let out = address_frame(Side::Pod, udp("10.0.1.10:9", "10.0.77.7:9").build());
        let back = address_frame(Side::Wire, udp("10.0.77.7:9", "10.0.1.10:9").build());
        self.pod.send(&out)?;
        self.wire.send(&back)?;
        let mut seen = Vec::new();
        let marker = |frame: &[u8]| {
            let ports = frame.get(34..38);
            frame.get(23) == Some(&17) && ports == Some(&[0, MARKER as u8, 0, MARKER as u8][..])
        };
        seen.extend(
            self.wire.until(marker).context("on the wire")?.into_iter().map(|f| Seen::Frame(Side::Wire, f)),
        );
        seen.extend(
            self.pod.until(marker).context("in the pod")?.into_iter().map(|f| Seen::Frame(Side::Pod, f)),
        );
        let host = self.host_packets()?;
        if host > self.host {
            seen.push(Seen::Host);
        }
        self.host = host;
        Ok(seen)
    }

    /// Packets that the node's own stack was given so far.
    fn host_packets(&self) -> Result<u64> {
        let listing = self.namespaces.exec("node", "nft list counter ip oracle host")?;
        let words: Vec<_> = listing.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "packets").context("a counter has packets")?;
        words.get(at + 1).and_then(|w| w.parse().ok()).with_context(|| listing.clone())
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}
