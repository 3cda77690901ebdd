//! The programs on real interfaces: a node with a pod, an ENI and a trunk, each packet followed from a socket to where it
//! must arrive. Every test runs under tcx and under clsact, which this kernel would not choose by itself.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use common::frames::{Ip, UDP, ethernet, ipv6, ports};
use common::{Namespace, bitmap, counters, enter_private_node, ifindex, ip, moved, sys};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sluice_bpf::{Config, Link, LinkKind, Options, Programs, Role, TcHook, XdpMode};

const NAT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OUR_PORT: u16 = 2000;
const HOST_PORT: u16 = 40_000;

const VETH_MAC: [u8; 6] = [0x0e, 0, 0, 0, 1, 1];
const POD_MAC: [u8; 6] = [0x0e, 0, 0, 0, 1, 2];
const ENI_MAC: [u8; 6] = [0x0e, 0, 0, 0, 2, 1];
const GATEWAY_MAC: [u8; 6] = [0x0e, 0, 0, 0, 2, 2];

/// A node with one pod (`h0`), one ENI (`e0`) and a trunk (`t0`); the pod's and the wire's ends are elsewhere.
struct Node {
    programs: Programs,
    pod: Namespace,
    wire: Namespace,
    trunk: File,
    veth: u32,
    eni: u32,
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

impl Node {
    fn new(options: &Options) -> Self {
        enter_private_node();
        let (pod, wire) = (Namespace::new(), Namespace::new());
        let trunk = sys::tap("t0").expect("a TAP");
        ip("link set t0 up");

        ip(&format!("link add h0 address {} type veth peer name p0 address {}", mac(VETH_MAC), mac(POD_MAC)));
        ip(&format!("link set p0 netns {}", pod.path()));
        ip(&format!(
            "link add e0 address {} type veth peer name w0 address {}",
            mac(ENI_MAC),
            mac(GATEWAY_MAC)
        ));
        ip(&format!("link set w0 netns {}", wire.path()));
        ip("link set h0 up");
        ip("link set e0 up");
        pod.run(|| {
            ip("link set p0 up");
            ip(&format!("addr add {POD}/32 dev p0"));
            ip("route add 169.254.1.1 dev p0 scope link");
            ip("route add default via 169.254.1.1");
            ip(&format!("neigh add 169.254.1.1 lladdr {} dev p0 nud permanent", mac(VETH_MAC)));
        });
        wire.run(|| {
            ip("link set w0 up");
            ip(&format!("addr add {GATEWAY}/24 dev w0"));
            ip(&format!("addr add {OUTSIDE}/32 dev w0"));
            ip(&format!("neigh add {NAT} lladdr {} dev w0 nud permanent", mac(ENI_MAC)));
            ip(&format!("route add {POD} via {NAT}"));
        });
        ip(&format!("addr add {NAT}/24 dev e0"));
        ip(&format!("neigh add {GATEWAY} lladdr {} dev e0 nud permanent", mac(GATEWAY_MAC)));
        ip(&format!("route add default via {GATEWAY}"));
        ip(&format!("route add {POD} dev h0"));
        ip(&format!("neigh add {POD} lladdr {} dev h0 nud permanent", mac(POD_MAC)));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");

        let programs = Programs::load(options).unwrap_or_else(|error| panic!("{error}"));
        let (veth, eni) = (ifindex("h0"), ifindex("e0"));
        configure(&programs, veth, eni);
        let mut node = Self { programs, pod, wire, trunk, veth, eni };
        node.attach();
        node
    }

    fn attach(&mut self) {
        self.programs.attach_trunk(ifindex("t0")).expect("the trunk");
        self.programs.attach_pod(self.veth).expect("the pod");
        self.programs.attach_eni_egress(self.eni).expect("the ENI");
    }

    /// Runs `action`; exactly these counters must move, by one each.
    #[track_caller]
    fn expect<T>(&mut self, wanted: &[&str], action: impl FnOnce(&mut Self) -> T) -> T {
        let before = counters(&self.programs);
        let result = action(self);
        let moved = moved(&before, &counters(&self.programs));
        let mut wanted: Vec<_> = wanted.iter().map(|&name| (name, 1)).collect();
        wanted.sort_unstable();
        assert_eq!(moved, wanted);
        result
    }

    /// The next frame on the trunk that carries a tag of ours; none within a second.
    fn next_on_trunk(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = [PollFd::new(self.trunk.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(1000u16)).expect("poll") == 0 {
                return None;
            }
            let length = self.trunk.read(&mut buffer).expect("a frame");
            if buffer[6] == 2 && (0x11..=0x14).contains(&buffer[7]) && buffer[12..14] == [8, 0] {
                return Some(buffer[..length].to_vec());
            }
        }
    }

    fn send_on_trunk(&mut self, kind: u8, index: u32, destination: [u8; 6], frame: &[u8]) {
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&destination);
        frame[6..8].copy_from_slice(&[2, kind]);
        frame[8..12].copy_from_slice(&index.to_be_bytes());
        self.trunk.write_all(&frame).expect("written");
    }
}

fn configure(programs: &Programs, veth: u32, eni: u32) {
    let config = Config { nat_ip: NAT, trunk_ifindex: ifindex("t0"), on_failure_kernel: false };
    programs.set_config(&config).expect("configuration");
    let ours = bitmap(&[OUR_PORT]);
    programs.set_ports(&ours, &ours, &ours).expect("ports");
    programs.set_local_addresses(&[NAT, Ipv4Addr::LOCALHOST]).expect("local addresses");
    programs.upsert_pod(POD, veth).expect("a pod");
    let pod = Link { kind: LinkKind::Pod, mac: VETH_MAC, peer_mac: POD_MAC, ip: POD };
    programs.upsert_link(veth, &pod).expect("a link");
    let eni_link = Link { kind: LinkKind::Eni { slot: 0 }, mac: ENI_MAC, peer_mac: GATEWAY_MAC, ip: NAT };
    programs.upsert_link(eni, &eni_link).expect("a link");
}

/// A datagram with a UDP checksum of zero, which is none.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    Ip::new(from.0, to.0, UDP, ports(UDP, from.1, to.1)).frame()
}

fn bound(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time limit");
    socket
}

/// The datagram that arrives, and from where; none within a second.
fn arrived(socket: &UdpSocket) -> Option<(Vec<u8>, String)> {
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    Some((buffer[..length].to_vec(), from.to_string()))
}

fn wanted(from: (Ipv4Addr, u16), payload: &[u8]) -> Option<(Vec<u8>, String)> {
    Some((payload.to_vec(), format!("{}:{}", from.0, from.1)))
}

fn both_hooks() -> [(Options, TcHook); 2] {
    let clsact = Options { force_clsact: true, ..Options::default() };
    [(Options::default(), TcHook::Tcx), (clsact, TcHook::Clsact)]
}

#[track_caller]
fn assert_tagged(
    frame: Option<Vec<u8>>,
    kind: u8,
    index: u32,
    destination: [u8; 6],
    packet: (Ipv4Addr, Ipv4Addr),
) {
    let frame = frame.expect("a frame on the trunk");
    let mut tag = vec![2, kind];
    tag.extend(index.to_be_bytes());
    assert_eq!((&frame[..6], &frame[6..12]), (&destination[..], &tag[..]));
    assert_eq!((&frame[26..30], &frame[30..34]), (&packet.0.octets()[..], &packet.1.octets()[..]));
    assert_eq!(frame[42..], *b"payload!");
}

#[test]
fn a_pods_packet_arrives_on_the_trunk_with_its_tag() {
    for (options, hook) in both_hooks() {
        let mut node = Node::new(&options);
        assert_eq!(node.programs.hook(node.veth, Role::FromPod), Some(hook));
        let veth = node.veth;
        let frame = node.expect(&["from_pod_redirect"], |node| {
            node.pod.run(|| bound(POD, 5000).send_to(b"payload!", (OUTSIDE, 53)).expect("sent"));
            node.next_on_trunk()
        });
        assert_tagged(frame, 0x11, veth, VETH_MAC, (POD, OUTSIDE));
    }
}

#[test]
fn a_pods_packet_to_the_node_is_the_kernels_and_so_is_the_answer() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        let server = bound(NAT, HOST_PORT);
        node.expect(&["from_pod_pass_local", "to_pod_pass_node"], |node| {
            node.pod.run(|| {
                let client = bound(POD, 5000);
                client.send_to(b"question", (NAT, HOST_PORT)).expect("sent");
                assert_eq!(arrived(&server), wanted((POD, 5000), b"question"));
                server.send_to(b"answer", (POD, 5000)).expect("sent");
                assert_eq!(arrived(&client), wanted((NAT, HOST_PORT), b"answer"));
            });
        });
    }
}

#[test]
fn the_engine_delivers_into_the_pod() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        node.expect(&["trunk_redirect_pod"], |node| {
            let socket = node.pod.run(|| bound(POD, 5000));
            let frame = datagram((OUTSIDE, 53), (POD, 5000));
            node.send_on_trunk(0x21, node.veth, POD_MAC, &frame);
            assert_eq!(arrived(&socket), wanted((OUTSIDE, 53), b"payload!"));
        });
    }
}

#[test]
fn what_the_engine_hands_back_on_the_veth_reaches_the_stack_without_a_mark() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        // Whatever still has a mark, whichever it is, is dropped before the socket and would be missed.
        nft("add table ip t");
        nft("add chain ip t in { type filter hook prerouting priority -300; }");
        nft("add rule ip t in meta mark != 0 drop");
        nft("add rule ip t in iifname h0 udp dport 40000 counter");
        node.expect(&["trunk_redirect_kernel_pod", "from_pod_pass_handback"], |node| {
            let socket = bound(NAT, HOST_PORT);
            let frame = datagram((POD, 5000), (NAT, HOST_PORT));
            node.send_on_trunk(0x23, node.veth, VETH_MAC, &frame);
            assert_eq!(arrived(&socket), wanted((POD, 5000), b"payload!"));
        });
        let rules = nft("list table ip t");
        assert!(rules.contains("packets 1"), "it came in by the pod's veth: {rules}");
    }
}

fn nft(words: &str) -> String {
    let output = Command::new("nft").arg(words).output().expect("nft is installed");
    assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_the_kernel_forwards_into_a_pod_goes_to_the_engine() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        let veth = node.veth;
        let frame = node.expect(&["to_pod_redirect"], |node| {
            node.wire.run(|| bound(OUTSIDE, 53).send_to(b"payload!", (POD, 5000)).expect("sent"));
            node.next_on_trunk()
        });
        assert_tagged(frame, 0x12, veth, POD_MAC, (OUTSIDE, POD));
    }
}

#[test]
fn only_our_ports_of_the_host_are_diverted() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        let eni = node.eni;
        let outside = node.wire.run(|| bound(OUTSIDE, 53));
        node.expect(&["eni_out_pass_port"], |_| {
            bound(NAT, HOST_PORT).send_to(b"payload!", (OUTSIDE, 53)).expect("sent");
            assert_eq!(arrived(&outside), wanted((NAT, HOST_PORT), b"payload!"));
        });
        let frame = node.expect(&["eni_out_redirect_port"], |node| {
            bound(NAT, OUR_PORT).send_to(b"payload!", (OUTSIDE, 53)).expect("sent");
            node.next_on_trunk()
        });
        assert_tagged(frame.clone(), 0x13, eni, GATEWAY_MAC, (NAT, OUTSIDE));
        // The engine sends it on: the mark lets it pass the program that has just diverted it.
        let frame = frame.expect("a frame");
        node.expect(&["trunk_redirect_eni", "eni_out_pass_engine"], |node| {
            node.send_on_trunk(0x22, eni, GATEWAY_MAC, &frame);
            assert_eq!(arrived(&outside), wanted((NAT, OUR_PORT), b"payload!"));
        });
    }
}

#[test]
fn what_the_engine_hands_back_on_an_eni_reaches_the_stack_whatever_is_attached_there() {
    for ingress in ["none", "native", "generic", "tap"] {
        let mut node = Node::new(&Options::default());
        let eni = node.eni;
        let mut wanted_counters = vec!["trunk_redirect_kernel_eni"];
        match ingress {
            "native" => node.programs.attach_xdp(eni, XdpMode::Native).expect("native XDP"),
            "generic" => node.programs.attach_xdp(eni, XdpMode::Generic).expect("generic XDP"),
            "tap" => {
                node.programs.attach_eni_ingress(eni).expect("tc ingress");
                wanted_counters.push("eni_in_pass_handback");
            }
            _ => {}
        }
        nft("add table ip t");
        nft("add chain ip t in { type filter hook prerouting priority -300; }");
        nft("add rule ip t in meta mark != 0 drop");
        // A port of ours: fail closed would drop it if the programs took it for a packet from the wire.
        let socket = bound(NAT, OUR_PORT);
        let before = counters(&node.programs);
        node.send_on_trunk(0x24, eni, ENI_MAC, &datagram((OUTSIDE, 53), (NAT, OUR_PORT)));
        assert_eq!(arrived(&socket), wanted((OUTSIDE, 53), b"payload!"), "{ingress}");
        let mut moved = moved(&before, &counters(&node.programs));
        // Generic XDP leaves redirected frames alone on some kernels and sees them on others.
        moved.retain(|(name, _)| *name != "xdp_pass_handback");
        wanted_counters.sort_unstable();
        assert_eq!(moved, wanted_counters.iter().map(|&name| (name, 1)).collect::<Vec<_>>(), "{ingress}");
    }
}

#[test]
fn from_the_wire_ours_is_dropped_without_a_socket_and_the_nodes_own_passes() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        for frags in [false, true] {
            let mut node = Node::new(&Options { frags, ..Options::default() });
            let eni = node.eni;
            node.programs.attach_xdp(eni, mode).expect("XDP");
            let (ours, host) = (bound(NAT, OUR_PORT), bound(NAT, HOST_PORT));
            let outside = node.wire.run(|| bound(OUTSIDE, 53));
            node.expect(&["xdp_pass_host_port"], |_| {
                outside.send_to(b"host", (NAT, HOST_PORT)).expect("sent");
                assert_eq!(arrived(&host), wanted((OUTSIDE, 53), b"host"));
            });
            node.expect(&["xdp_drop_no_socket"], |_| {
                outside.send_to(b"ours", (NAT, OUR_PORT)).expect("sent");
                assert_eq!(arrived(&ours), None);
            });
            node.programs.detach(eni).expect("detached");
            outside.send_to(b"off", (NAT, OUR_PORT)).expect("sent");
            assert_eq!(arrived(&ours), wanted((OUTSIDE, 53), b"off"));
        }
    }
}

#[test]
fn from_the_wire_the_trunk_carries_what_is_ours_with_eni_port_tap() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        let eni = node.eni;
        node.programs.attach_eni_ingress(eni).expect("tc ingress");
        let outside = node.wire.run(|| bound(OUTSIDE, 53));
        let frame = node.expect(&["eni_in_redirect_port"], |node| {
            outside.send_to(b"payload!", (NAT, OUR_PORT)).expect("sent");
            node.next_on_trunk()
        });
        assert_tagged(frame, 0x14, eni, ENI_MAC, (OUTSIDE, NAT));
    }
}

#[test]
fn a_dead_engine_leaks_nothing_and_harms_neither_node_nor_probes() {
    for (options, _) in both_hooks() {
        let node = Node::new(&options);
        // As after SIGKILL: the trunk is persistent, and nobody reads it any more.
        ip("tuntap add dev t1 mode tap");
        ip("link set t1 up");
        let config = Config { nat_ip: NAT, trunk_ifindex: ifindex("t1"), on_failure_kernel: false };
        node.programs.set_config(&config).expect("configuration");
        let before = counters(&node.programs);
        let outside = node.wire.run(|| bound(OUTSIDE, 53));
        let pod = node.pod.run(|| bound(POD, 5000));
        pod.send_to(b"leak", (OUTSIDE, 53)).expect("sent");
        bound(NAT, OUR_PORT).send_to(b"leak", (OUTSIDE, 53)).expect("sent");
        assert_eq!(arrived(&outside), None);
        let node_socket = bound(NAT, HOST_PORT);
        node_socket.send_to(b"probe", (POD, 5000)).expect("sent");
        assert_eq!(arrived(&pod), wanted((NAT, HOST_PORT), b"probe"));
        node_socket.send_to(b"own", (OUTSIDE, 53)).expect("sent");
        assert_eq!(arrived(&outside), wanted((NAT, HOST_PORT), b"own"));
        let moved = moved(&before, &counters(&node.programs));
        for diverted in ["from_pod_redirect", "eni_out_redirect_port"] {
            assert!(moved.contains(&(diverted, 1)), "{diverted} in {moved:?}");
        }
    }
}

/// TAPs that play a pod's veth and an ENI give the programs frames that no socket would send: cut short, or with a tag
/// that the kernel has already taken off (`vlan_present`).
#[test]
fn odd_frames_end_where_they_should() {
    for (options, _) in both_hooks() {
        let mut node = Node::new(&options);
        let (mut pod, mut eni) = (sys::tap("podtap").expect("a TAP"), sys::tap("enitap").expect("a TAP"));
        for name in ["podtap", "enitap"] {
            ip(&format!("link set {name} up"));
        }
        let (pod_index, eni_index) = (ifindex("podtap"), ifindex("enitap"));
        node.programs.attach_pod(pod_index).expect("attached");
        node.programs.attach_eni_ingress(eni_index).expect("attached");
        node.programs.attach_eni_egress(eni_index).expect("attached");
        let link = Link { kind: LinkKind::Pod, mac: VETH_MAC, peer_mac: POD_MAC, ip: POD };
        node.programs.upsert_link(pod_index, &link).expect("a link");

        let from_pod = datagram((POD, 1), (OUTSIDE, 2));
        let from_wire = datagram((OUTSIDE, 2), (NAT, OUR_PORT));
        for length in 14..34 {
            node.expect(&["from_pod_drop_truncated"], |_| {
                pod.write_all(&from_pod[..length]).expect("written");
            });
            node.expect(&["eni_in_pass_truncated"], |_| {
                eni.write_all(&from_wire[..length]).expect("written");
            });
        }
        for length in 14..54 {
            let frame = &ipv6("fe80::1", "fe80::2")[..length];
            node.expect(&["from_pod_drop_truncated"], |_| pod.write_all(frame).expect("written"));
        }
        for tag in [0x8100u16, 0x88a8] {
            let tagged = |frame: &[u8]| ethernet(tag, &[&[0, 5][..], &frame[12..]].concat());
            node.expect(&["from_pod_drop_vlan"], |_| pod.write_all(&tagged(&from_pod)).expect("written"));
            node.expect(&["eni_in_pass_not_ipv4"], |_| eni.write_all(&tagged(&from_wire)).expect("written"));
        }

        let sent = datagram((NAT, OUR_PORT), (OUTSIDE, 2));
        for length in 14..34 {
            node.expect(&["eni_out_pass_truncated"], |_| {
                sys::send_raw(eni_index, &sent[..length]).expect("sent");
            });
        }

        // Towards a pod: through the trunk's "out by an ENI", which has an ingress interface but no way of its own here.
        let as_eni = Link { kind: LinkKind::Eni { slot: 1 }, ..link };
        node.programs.upsert_link(pod_index, &as_eni).expect("a link");
        for length in 14..34 {
            node.expect(&["to_pod_drop_truncated", "trunk_redirect_eni"], |node| {
                node.send_on_trunk(0x22, pod_index, POD_MAC, &from_wire[..length]);
            });
        }
        for length in 14..54 {
            node.expect(&["to_pod_drop_truncated", "trunk_redirect_eni"], |node| {
                node.send_on_trunk(0x22, pod_index, POD_MAC, &ipv6("fe80::1", "fe80::2")[..length]);
            });
        }
        // And onto the trunk: a bare tag.
        node.expect(&["trunk_drop_unknown_interface"], |node| {
            node.send_on_trunk(0x21, 9999, POD_MAC, &from_pod[..14]);
        });
    }
}
