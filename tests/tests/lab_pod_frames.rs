//! What a pod may put on its veth, and what is dropped there by name: anti-spoofing and the side doors around policy.

use std::net::Ipv4Addr;

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, VlanId};
use sluice_tests::lab::{ETHERTYPE_ARP, Lab, NODE, Sender, eventually, mac};

const BROADCAST: [u8; 6] = [0xff; 6];

struct Pod {
    sender: Sender,
    mac: [u8; 6],
    gateway: [u8; 6],
    address: Ipv4Addr,
}

impl Pod {
    fn of(lab: &Lab, name: &str) -> Self {
        let text = |field: &str| lab.member(name)[field].as_str().unwrap().to_owned();
        Self {
            sender: Sender::open(&lab.namespace(name), "eth0"),
            mac: mac(&text("mac")),
            gateway: mac(&text("gateway_mac")),
            address: lab.address(name),
        }
    }

    /// A UDP frame with any source.
    fn udp(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let packet = PacketBuilder::ethernet2(self.mac, self.gateway).ipv4(from.octets(), to.octets(), 64);
        written(packet.udp(5000, 9), b"a pod's own words")
    }
}

fn written(packet: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn a_pods_arp_is_answered_by_the_kernel() {
    let lab = Lab::up("a", &[]);
    let pod = Pod::of(&lab, "pod-a");
    let inside = lab.sniff_in("pod-a");
    let before = lab.stats();
    let zero = [0; 6];
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &pod.mac,
        &pod.address.octets(),
        &zero,
        &NODE.octets(),
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(pod.mac, BROADCAST).arp(arp.unwrap()).write(&mut frame).unwrap();
    pod.sender.send(&frame);
    eventually("the pod gets an ARP reply", || {
        inside.all().iter().any(|p| p.ethertype == ETHERTYPE_ARP && !p.outgoing && p.bytes[20..22] == [0, 2])
    });
    let delta = lab.since(&before);
    delta.assert(&[("bpf.from_pod_pass_arp", 1), ("engine.in", 0)]);
    delta.assert_drops(&[]);
}

#[test]
fn vlan_ipv6_and_spoofed_sources_are_dropped_by_name() {
    let lab = Lab::up("b", &[]);
    let pod = Pod::of(&lab, "pod-c");
    let (outside, inside, kernel) = (lab.sniff(), lab.sniff_in("pod-d"), lab.host_interface("pod-c"));
    lab.nft(&format!(
        "table ip seen {{ chain pre {{ type filter hook prerouting priority raw; iifname \"{kernel}\" counter; }} }}"
    ));
    let host = lab.address("host-x");

    let before = lab.stats();
    let others =
        [lab.address("pod-d"), lab.address("pod-a"), NODE, Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::LOCALHOST];
    for source in others {
        // To the outside, to a pod beside, and to the node: nowhere does a forged source pass.
        for to in [host, lab.address("pod-d"), NODE] {
            pod.sender.send(&pod.udp(source, to));
        }
    }
    lab.since(&before).assert_drops(&[("bpf.from_pod_drop_spoof", 15)]);

    let before = lab.stats();
    let tagged = PacketBuilder::ethernet2(pod.mac, pod.gateway).single_vlan(VlanId::try_new(7).unwrap());
    pod.sender.send(&written(tagged.ipv4(pod.address.octets(), host.octets(), 64).udp(5000, 9), b"tagged"));
    lab.since(&before).assert_drops(&[("bpf.from_pod_drop_vlan", 1)]);

    let before = lab.stats();
    let [local, global] =
        ["fe80::a", "2001:db8::a"].map(|a| a.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let far = "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let six = |from, to| PacketBuilder::ethernet2(pod.mac, pod.gateway).ipv6(from, to, 64);
    pod.sender.send(&written(six(global, far).udp(5000, 9), b"six"));
    pod.sender.send(&written(six(local, local).udp(5000, 9), b"neighbour"));
    let delta = lab.since(&before);
    delta.assert(&[("bpf.from_pod_pass_link_local", 1)]);
    delta.assert_drops(&[("bpf.from_pod_drop_not_ipv4", 1)]);

    let own = |p: &sluice_tests::lab::Seen| p.dport == 9;
    assert!(!outside.all().iter().any(own), "something left the node: {:?}", outside.all());
    assert!(!inside.all().iter().any(own), "something reached the pod beside: {:?}", inside.all());
    assert!(lab.sh("node", "nft list table ip seen").contains("packets 0 "), "the kernel saw something");

    let _listens = lab.within("pod-d", || std::net::UdpSocket::bind("0.0.0.0:9").unwrap());
    // The same sender with its own address does reach all three: the test could have seen the others.
    let before = lab.stats();
    pod.sender.send(&pod.udp(pod.address, host));
    pod.sender.send(&pod.udp(pod.address, lab.address("pod-d")));
    pod.sender.send(&pod.udp(pod.address, NODE));
    eventually("what is not forged arrives", || {
        outside.all().iter().any(|p| p.left_the_node() && own(p) && p.src == NODE)
            && inside.all().iter().any(|p| own(p) && p.src == pod.address)
    });
    let delta = lab.since(&before);
    delta.assert(&[("bpf.from_pod_redirect", 2), ("bpf.from_pod_pass_local", 1)]);
    assert!(lab.sh("node", "nft list table ip seen").contains("packets 1 "), "the kernel saw its own");
}

#[test]
fn multicast_and_broadcast_of_pods_go_to_the_kernel() {
    let lab = Lab::up("c", &[]);
    let pod = Pod::of(&lab, "pod-a");
    let outside = lab.sniff();
    let interface = lab.host_interface("pod-a");
    lab.nft(&format!(
        "table ip seen {{ chain pre {{ type filter hook prerouting priority raw; iifname \"{interface}\" \
         ip daddr {{ 224.0.0.251, 255.255.255.255 }} counter; }} }}"
    ));
    let before = lab.stats();
    for to in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::BROADCAST] {
        pod.sender.send(&pod.udp(pod.address, to));
    }
    let delta = lab.since(&before);
    delta.assert(&[("bpf.from_pod_pass_multicast", 2), ("bpf.from_pod_redirect", 0), ("engine.in", 0)]);
    delta.assert_drops(&[]);
    assert!(lab.sh("node", "nft list table ip seen").contains("packets 2 "), "the kernel got both");
    assert!(!outside.all().iter().any(|p| p.dport == 9), "nothing of it leaves");
}
