//! Path MTU discovery through the translation, our own frag-needed, and the clamp of TCP's segment size.

use std::net::{Ipv4Addr, UdpSocket};

use nix::sys::socket::{getsockopt, sockopt};
use sluice_tests::lab::{Lab, NODE, PEER, Seen, tcp_peer, udp_exchange};

/// The MSS option of a SYN, in bytes.
fn mss(packet: &Seen) -> Option<u16> {
    let tcp = etherparse::TcpSlice::from_slice(&packet.bytes[34..]).ok()?;
    tcp.options_iterator().flatten().find_map(|option| match option {
        etherparse::TcpOptionElement::MaximumSegmentSize(mss) => Some(mss),
        _ => None,
    })
}

/// Sends a datagram that the way is too narrow for, until it fits. Gives what the server saw and the MTU that was learnt.
fn discover(to: Ipv4Addr, len: usize) -> (Ipv4Addr, i32) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((to, PEER)).unwrap();
    let tries = (0..4).map(|_| udp_exchange(&socket, len));
    let seen = tries.flatten().next().expect("it fits at last");
    (*seen.ip(), getsockopt(&socket, sockopt::IpMtu).unwrap())
}

/// More than one segment, so that the path MTU matters to TCP; gives the MTU that it ended with.
fn discover_tcp(to: Ipv4Addr) -> (Ipv4Addr, i32) {
    use std::io::{Read as _, Write as _};
    let at = std::net::SocketAddrV4::new(to, PEER);
    let mut stream = sluice_tests::lab::connect(None, at, sluice_tests::lab::PATIENCE).unwrap();
    let payload = vec![b'.'; 100_000];
    let mut writer = stream.try_clone().unwrap();
    let mut back = vec![0; payload.len() + 64];
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&payload).unwrap());
        let mut got = 0;
        while got < payload.len() + 9 {
            got += stream.read(&mut back[got..]).unwrap();
        }
    });
    let line = String::from_utf8_lossy(&back[..32]).into_owned();
    let seen: std::net::SocketAddrV4 = line.lines().next().unwrap().parse().unwrap();
    (*seen.ip(), getsockopt(&stream, sockopt::IpMtu).unwrap())
}

#[test]
fn a_routers_frag_needed_reaches_the_pod_and_its_socket_shrinks() {
    for (tag, external) in [("a", false), ("b", true)] {
        let lab = Lab::up(tag, if external { &["--external-snat"] } else { &[] });
        let to = lab.address("host-y");
        for pod in ["pod-a", "pod-c"] {
            let source = if external { lab.address(pod) } else { NODE };
            let inside = lab.sniff_in(pod);
            let before = lab.stats();
            assert_eq!(
                lab.within(pod, || discover(to, 1440)),
                (source, 1400),
                "{pod}, EXTERNALSNAT {external}"
            );
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            let by = if external { "bpf.xdp_redirect_pod" } else { "bpf.xdp_redirect_icmp_error" };
            delta.assert_at_least(&[(by, 1)]);
            delta.assert(&[("engine.flows_opened", 1), ("engine.generated", 0)]);
            let errors: Vec<_> = inside.all().into_iter().filter(|p| p.icmp == Some((3, 4))).collect();
            assert_eq!(errors.len(), 1);
            // The error quotes the pod's own packet: its address, not the translated one.
            assert_eq!(errors[0].bytes[14 + 20 + 8 + 12..][..4], lab.address(pod).octets());
            assert_eq!(errors[0].dst, lab.address(pod));

            lab.sh(pod, "ip route flush cache");
            let before = lab.stats();
            assert_eq!(
                lab.within(pod, || discover_tcp(to)),
                (source, 1400),
                "{pod}, TCP, EXTERNALSNAT {external}"
            );
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            delta.assert_at_least(&[(by, 1)]);
        }
    }
}

#[test]
fn an_eni_narrower_than_the_pods_clamps_mss_and_answers_with_frag_needed() {
    let lab = Lab::up("c", &["--eni-mtu", "1400", "--pod-mtu", "1500"]);
    let sniffer = lab.sniff();
    for pod in ["pod-a", "pod-c"] {
        for host in ["host-x", "host-v"] {
            let (own, to) = (lab.address(pod), lab.address(host));
            let source = if host == "host-x" { NODE } else { own };
            let (before, mark) = (lab.stats(), sniffer.mark());
            assert_eq!(
                lab.within(pod, || discover(to, 1440)),
                (source, 1400),
                "{pod} -> {host}: it learns our MTU"
            );
            let delta = lab.since(&before);
            delta.assert_drops(&[("drop.frag_needed", 1)]);
            delta.assert(&[("engine.generated", 1), ("engine.flows_opened", 1)]);
            assert!(
                sniffer.since(mark).iter().all(|p| !p.left_the_node() || p.len <= 1400),
                "none is too large"
            );
            lab.sh(pod, "ip route flush cache");

            let (before, mark) = (lab.stats(), sniffer.mark());
            assert_eq!(*lab.within(pod, || tcp_peer(None, to, PEER)).ip(), source);
            let (own_syn, syn_ack) = syns(&sniffer.since(mark));
            assert_eq!((own_syn, syn_ack), (Some(1360), Some(1360)), "{pod} -> {host}");
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            // The SYN; the far side's SYN/ACK asks for no more than fits by itself.
            delta.assert(&[("engine.mss_clamped", 1)]);

            // Inward: the pod's SYN/ACK must ask for no more than the ENI takes.
            let (before, mark) = (lab.stats(), sniffer.mark());
            assert_eq!(*lab.within(host, || tcp_peer(None, own, PEER)).ip(), to);
            let packets = sniffer.since(mark);
            let answer = packets.iter().find(|p| p.left_the_node() && p.flags & 0x12 == 0x12).unwrap();
            assert_eq!(mss(answer), Some(1360), "{host} -> {pod}");
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            delta.assert(&[("engine.mss_clamped", 1)]);
        }
    }
    // Between pods nothing is narrow and nothing is clamped.
    let (before, to) = (lab.stats(), lab.address("pod-c"));
    lab.within("pod-a", || tcp_peer(None, to, PEER));
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.mss_clamped", 0)]);
}

/// The MSS of the SYN that left the node and of the SYN/ACK that came to it.
fn syns(packets: &[Seen]) -> (Option<u16>, Option<u16>) {
    let own = packets.iter().find(|p| p.left_the_node() && p.flags & 0x12 == 2);
    let answer = packets.iter().find(|p| p.link.starts_with("eni") && p.outgoing && p.flags & 0x12 == 0x12);
    (own.and_then(mss), answer.and_then(mss))
}
