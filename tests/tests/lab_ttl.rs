//! Every forward costs one hop, once: IMDS' hop limit, by which operators keep pods away from it, depends on it
//! being right.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use sluice_tests::lab::{IMDS, Lab, NODE, PEER, Seen, eventually, try_tcp_peer, udp_exchange, udp_peer};

/// Sends one datagram with this TTL to port [`PEER`] and gives the error that the socket learnt, if any.
fn send_with_ttl(to: Ipv4Addr, ttl: u32) -> Option<Errno> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((to, PEER)).unwrap();
    socket.set_ttl(ttl).unwrap();
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap();
    let error = udp_exchange(&socket, 60).err()?;
    error.raw_os_error().map(Errno::from_raw)
}

fn requests(packets: &[Seen], to: Ipv4Addr) -> Vec<&Seen> {
    packets
        .iter()
        .filter(|p| p.left_the_node() && p.protocol == 17 && p.dst == to && p.dport == PEER)
        .collect()
}

#[test]
fn a_pods_packet_with_one_hop_left_does_not_leave_and_with_two_has_one() {
    let lab = Lab::up("a", &[]);
    let sniffer = lab.sniff();
    for pod in ["pod-a", "pod-c"] {
        for to in [lab.address("host-x"), lab.address("host-v"), IMDS] {
            let (before, mark) = (lab.stats(), sniffer.mark());
            let inside = lab.sniff_in(pod);
            let error = lab.within(pod, || send_with_ttl(to, 1));
            assert_eq!(error, Some(Errno::EHOSTUNREACH), "{pod} -> {to}: the socket learns of it");
            let errors: Vec<_> = inside.all().into_iter().filter(|p| p.icmp == Some((11, 0))).collect();
            assert_eq!(errors.len(), 1, "{pod} -> {to}: one time-exceeded");
            assert_eq!(requests(&sniffer.since(mark), to), [] as [&Seen; 0], "nothing leaves");
            let delta = lab.since(&before);
            delta.assert_drops(&[("drop.ttl_exceeded", 1)]);
            delta.assert(&[("engine.generated", 1), ("engine.to_eni", 0), ("engine.to_pod", 1)]);

            let (before, mark) = (lab.stats(), sniffer.mark());
            let error = lab.within(pod, || send_with_ttl(to, 2));
            assert_eq!(error, Some(Errno::EHOSTUNREACH), "{pod} -> {to}: the fabric has no hop left");
            let left = sniffer.since(mark);
            let ttls: Vec<_> = requests(&left, to).iter().map(|p| p.ttl).collect();
            assert_eq!(ttls, [1], "{pod} -> {to}: decremented once");
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            // The fabric's time-exceeded comes back through the engine, translated.
            delta.assert(&[("engine.to_eni", 1), ("engine.to_pod", 1), ("engine.generated", 0)]);
        }
    }
}

#[test]
fn imds_answers_with_one_hop_reach_the_node_and_no_pod() {
    let lab = Lab::up("b", &[]);
    // The fabric takes one hop, so that an answer arrives at the node with a TTL of 1: hop limit 1.
    lab.sh("imds", "sysctl -qw net.ipv4.ip_default_ttl=2");
    let node = lab.within("node", || udp_peer(None, IMDS, 60));
    assert_eq!(*node.ip(), NODE, "the node itself may");
    let to = SocketAddrV4::new(IMDS, 80);
    for pod in ["pod-a", "pod-c"] {
        let before = lab.stats();
        let inside = lab.sniff_in(pod);
        lab.within(pod, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((IMDS, PEER)).unwrap();
            socket.send(&[b' '; 60]).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            assert!(socket.recv(&mut [0; 100]).is_err(), "{pod} got an answer of IMDS");
        });
        let answers: Vec<_> = inside.all().into_iter().filter(|p| p.src == IMDS).collect();
        assert_eq!(answers, [], "{pod}");
        let delta = lab.since(&before);
        delta.assert_drops(&[("drop.ttl_exceeded", 1)]);
    }
    // With a hop limit of 2 a pod may, and sees the last hop.
    lab.sh("imds", "sysctl -qw net.ipv4.ip_default_ttl=3");
    let inside = lab.sniff_in("pod-c");
    let before = lab.stats();
    lab.within("pod-c", || {
        try_tcp_peer(None, SocketAddrV4::new(IMDS, PEER)).expect("IMDS answers");
        std::net::TcpStream::connect(to).expect("IMDS' page answers");
    });
    let answers: Vec<_> = inside.all().into_iter().filter(|p| p.src == IMDS).map(|p| p.ttl).collect();
    assert!(answers.len() > 4 && answers.iter().all(|ttl| *ttl == 1), "{answers:?}");
    lab.since(&before).assert_drops(&[]);
}

#[test]
fn one_hop_from_pod_to_pod_and_from_the_wire_to_a_pod() {
    let lab = Lab::up("c", &[]);
    for (from, to, hops_left) in [("pod-a", "pod-b", 63), ("pod-a", "pod-c", 63), ("host-x", "pod-c", 62)] {
        let inside = lab.sniff_in(to);
        let before = lab.stats();
        let (source, destination) = (lab.address(from), lab.address(to));
        lab.within(from, || udp_peer(None, destination, 60));
        let seen: Vec<_> = inside.all().into_iter().filter(|p| p.src == source).map(|p| p.ttl).collect();
        assert_eq!(seen, [hops_left], "{from} -> {to}; the fabric takes one itself");
        lab.since(&before).assert_drops(&[]);
    }
    // One hop left between two pods of the node is none.
    let before = lab.stats();
    let to = lab.address("pod-d");
    assert_eq!(lab.within("pod-a", || send_with_ttl(to, 1)), Some(Errno::EHOSTUNREACH));
    lab.since(&before).assert_drops(&[("drop.ttl_exceeded", 1)]);
    eventually("the flow table is still asked", || lab.stats().is_balanced());
}

#[test]
fn what_the_kernel_forwards_into_a_pod_loses_its_hop_there_and_not_again() {
    let lab = Lab::up("d", &[]);
    let pod = lab.address("pod-c");
    lab.mark_node_ports();
    lab.nft(&format!(
        "table ip k {{ chain pre {{ type nat hook prerouting priority dstnat; ip daddr {NODE} udp dport 30053 \
         dnat to {pod}:{PEER}; }} }}"
    ));
    let (inside, host) = (lab.sniff_in("pod-c"), lab.sniff_in("host-x"));
    let before = lab.stats();
    lab.within("host-x", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((NODE, 30053)).unwrap();
        udp_exchange(&socket, 60).unwrap();
    });
    let ttl = |seen: Vec<Seen>, from: Ipv4Addr| -> Vec<u8> {
        seen.into_iter().filter(|p| p.protocol == 17 && p.src == from).map(|p| p.ttl).collect()
    };
    assert_eq!(
        ttl(inside.all(), lab.address("host-x")),
        [62],
        "64, less the fabric's hop, less the kernel's"
    );
    assert_eq!(ttl(host.all(), NODE), [62], "64, less the kernel's hop, less the fabric's");
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[
        ("bpf.to_pod_redirect", 1),
        ("engine.to_pod", 1),
        ("engine.to_kernel_pod", 1),
        ("engine.to_eni", 0),
    ]);
}
