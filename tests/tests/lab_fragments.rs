//! Fragments for real: the node's own are reassembled by the kernel, the pods' are translated as the whole would be.

use etherparse::{IpNumber, Ipv4Header};
use sluice_tests::lab::{Lab, NODE, PEER, Seen, Sender, eventually, mac, udp_peer};

fn pieces(packets: &[Seen], left: bool) -> usize {
    packets.iter().filter(|p| p.link.starts_with("eni") && p.left_the_node() == left && p.fragment).count()
}

#[test]
fn fragments_to_the_node_reach_the_kernel_whole() {
    let lab = Lab::up("a", &[]);
    let sniffer = lab.sniff();
    for host in ["host-x", "host-v"] {
        let (before, mark) = (lab.stats(), sniffer.mark());
        let own = lab.address(host);
        assert_eq!(*lab.within(host, || udp_peer(None, NODE, 4000)).ip(), own);
        let packets = sniffer.since(mark);
        assert_eq!((pieces(&packets, false), pieces(&packets, true)), (3, 3), "in three pieces each way");
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[
            ("bpf.xdp_redirect_fragment", 3),
            ("engine.to_kernel_eni", 3),
            ("bpf.trunk_redirect_kernel_eni", 3),
            ("bpf.eni_out_redirect_fragment", 3),
            ("engine.to_eni", 3),
        ]);

        let before = lab.stats();
        lab.sh(host, &format!("ping -q -c 3 -i 0.02 -W 2 -s 4000 {NODE} | grep -q ' 3 received'"));
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("bpf.xdp_redirect_fragment", 9), ("engine.to_kernel_eni", 9)]);
    }
    // The node's own large datagrams and pings outward, too.
    let before = lab.stats();
    let to = lab.address("host-x");
    assert_eq!(*lab.within("node", || udp_peer(None, to, 4000)).ip(), NODE);
    lab.sh("node", &format!("ping -q -c 3 -i 0.02 -W 2 -s 4000 {to} | grep -q ' 3 received'"));
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("bpf.xdp_redirect_fragment", 12), ("engine.to_kernel_eni", 12), ("engine.to_pod", 0)]);
}

#[test]
fn fragments_in_reverse_order_reach_the_node_whole() {
    let lab = Lab::up("b", &[]);
    let text = |field: &str| mac(lab.member("host-x")[field].as_str().unwrap());
    let (own, gateway) = (text("mac"), text("gateway_mac"));
    let sender = Sender::open(&lab.namespace("host-x"), "eth0");
    let answers = lab.sniff_in("host-x");
    // Who asks listens too, or the answer would be answered.
    let _asks = lab.within("host-x", || std::net::UdpSocket::bind("0.0.0.0:5005").unwrap());
    let before = lab.stats();
    // One UDP datagram of 2,000 bytes in two pieces, the second one first.
    let payload = vec![b'.'; 2000];
    let (source, node) = (lab.address("host-x").octets(), NODE.octets());
    let udp =
        etherparse::UdpHeader::with_ipv4_checksum(5005, PEER, &ipv4(source, node, 2008), &payload).unwrap();
    let datagram = [&udp.to_bytes()[..], &payload].concat();
    for (offset, piece, more) in [(1400_usize, &datagram[1400..], false), (0, &datagram[..1400], true)] {
        let mut header = ipv4(source, node, piece.len());
        header.identification = 77;
        header.dont_fragment = false;
        header.more_fragments = more;
        header.fragment_offset = u16::try_from(offset / 8).unwrap().try_into().unwrap();
        header.header_checksum = header.calc_header_checksum();
        sender.send(&[&gateway[..], &own, &[8, 0], &header.to_bytes(), piece].concat());
    }
    let answer = |p: &Seen| !p.outgoing && p.src == NODE && p.protocol == 17;
    eventually("the node answers in two pieces", || answers.all().iter().filter(|p| answer(p)).count() == 2);
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("bpf.xdp_redirect_fragment", 2), ("engine.to_kernel_eni", 2)]);
}

fn ipv4(source: [u8; 4], destination: [u8; 4], payload: usize) -> Ipv4Header {
    Ipv4Header::new(u16::try_from(payload).unwrap(), 64, IpNumber::UDP, source, destination).unwrap()
}

#[test]
fn fragments_to_and_from_pods_are_translated_as_the_whole_would_be() {
    let lab = Lab::up("c", &[]);
    let sniffer = lab.sniff();
    // From, to, what the peer sees.
    let rows = [
        ("pod-a", "host-x", NODE),
        ("pod-c", "host-x", NODE),
        ("pod-c", "host-v", lab.address("pod-c")),
        ("host-x", "pod-c", lab.address("host-x")),
        ("host-v", "pod-a", lab.address("host-v")),
    ];
    for (from, to, source) in rows {
        let (before, mark) = (lab.stats(), sniffer.mark());
        let address = lab.address(to);
        let seen = lab.within(from, || udp_peer(None, address, 4000));
        assert_eq!(*seen.ip(), source, "{from} -> {to}");
        lab.sh(from, &format!("ping -q -c 2 -i 0.02 -W 2 -s 4000 {address} | grep -q ' 2 received'"));
        let packets = sniffer.since(mark);
        assert_eq!((pieces(&packets, true), pieces(&packets, false)), (9, 9), "{from} -> {to}");
        let pod = if from.starts_with("pod") { from } else { to };
        let (eni, own) = if source == NODE { ("eni0", NODE) } else { (lab.eni(pod), lab.address(pod)) };
        assert!(
            packets.iter().filter(|p| p.left_the_node() && p.fragment).all(|p| p.link == eni && p.src == own),
            "{from} -> {to}: a piece with another source or by another ENI"
        );
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[
            ("engine.to_eni", 9),
            ("engine.to_pod", 9),
            ("engine.flows_opened", 2),
            ("engine.held", 0),
        ]);
    }
    for (from, to) in [("pod-a", "pod-b"), ("pod-a", "pod-c")] {
        let before = lab.stats();
        let address = lab.address(to);
        assert_eq!(*lab.within(from, || udp_peer(None, address, 4000)).ip(), lab.address(from));
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.to_pod", 6), ("engine.to_eni", 0), ("engine.flows_opened", 1)]);
    }
}
