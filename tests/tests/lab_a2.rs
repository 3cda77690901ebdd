//! Every row of the VPC CNI's behaviour that involves no service, with EXTERNALSNAT false and true: what the peer saw, by
//! which ENI it left, and which of the engine's counters moved. The rows were measured on VPC CNI's own rules.

use std::net::{Ipv4Addr, SocketAddrV4};

use sluice_tests::lab::{IMDS, Lab, NODE, NODE_ENI1, PEER, Seen, Sniffer, tcp_peer, udp_peer};

/// What a row must come to.
struct Row {
    /// Who begins, and which address it binds.
    from: &'static str,
    bind: Option<Ipv4Addr>,
    to: Ipv4Addr,
    /// The source that the peer must see.
    source: Ipv4Addr,
    /// The ENI that it must leave by; none: it never leaves.
    eni: Option<&'static str>,
    /// Packets of both directions cross the engine; otherwise none does.
    engine: bool,
}

#[test]
fn every_row_without_services_holds() {
    let lab = Lab::up("a", &[]);
    let sniffer = lab.sniff();
    rows(&lab, &sniffer, false);
    assert_eq!(lab.source_check_drops(), 0, "every packet left by the ENI that owns its source");
}

#[test]
fn every_row_without_services_holds_with_external_snat() {
    let lab = Lab::up("b", &["--external-snat"]);
    let sniffer = lab.sniff();
    rows(&lab, &sniffer, true);
    assert_eq!(lab.source_check_drops(), 0, "every packet left by the ENI that owns its source");
}

fn rows(lab: &Lab, sniffer: &Sniffer, external: bool) {
    let address = |member: &str| lab.address(member);
    for pod in ["pod-a", "pod-c"] {
        let eni = if pod == "pod-a" { "eni0" } else { "eni1" };
        assert_eq!(lab.eni(pod), eni);
        let own = Row { from: pod, bind: None, to: NODE, source: address(pod), eni: Some(eni), engine: true };
        for to in [address("host-x"), IMDS] {
            let kept = Row { to, ..own };
            let translated = Row { to, source: NODE, eni: Some("eni0"), ..own };
            check(lab, sniffer, if external { &kept } else { &translated });
        }
        for to in [address("host-v"), address("host-w")] {
            check(lab, sniffer, &Row { to, ..own });
        }
        for to in ["pod-a", "pod-b", "pod-c", "pod-d"].into_iter().filter(|to| *to != pod) {
            check(lab, sniffer, &Row { to: address(to), eni: None, ..own });
        }
        for to in [NODE, NODE_ENI1] {
            check(lab, sniffer, &Row { to, eni: None, engine: false, ..own });
        }
        let probe =
            Row { from: "node", bind: None, to: address(pod), source: NODE, eni: None, engine: false };
        check(lab, sniffer, &probe);
        for host in ["host-x", "host-v"] {
            inward(lab, sniffer, host, pod, eni);
        }
    }
    let node = Row {
        from: "node",
        bind: None,
        to: address("host-x"),
        source: NODE,
        eni: Some("eni0"),
        engine: false,
    };
    check(lab, sniffer, &node);
    // VPC CNI's rules send the primary address by the secondary ENI here unless EXTERNALSNAT, and AWS drops it.
    let bound = Row { bind: Some(NODE_ENI1), source: NODE_ENI1, eni: Some("eni1"), ..node };
    check(lab, sniffer, &bound);
}

#[track_caller]
fn check(lab: &Lab, sniffer: &Sniffer, row: &Row) {
    let Row { from, bind, to, source, eni, engine } = *row;
    let bind = bind.map(|address| SocketAddrV4::new(address, 0));
    let what = format!("{from} {bind:?} -> {to}");
    let (before, mark) = (lab.stats(), sniffer.mark());
    // IMDS has the peer port like every host of the lab.
    let seen = lab.within(from, || (tcp_peer(bind, to, PEER), udp_peer(bind, to, 100)));
    assert_eq!((*seen.0.ip(), *seen.1.ip()), (source, source), "{what}: what the peer saw");

    let packets = sniffer.since(mark);
    let left: Vec<_> = packets.iter().filter(|p| p.left_the_node() && p.ethertype == 0x0800).collect();
    match eni {
        Some(eni) => {
            let ports = [seen.0.port(), seen.1.port()];
            assert!(left.len() >= 5, "{what}: {} packets left", left.len());
            assert!(
                left.iter()
                    .all(|p| p.link == eni && p.src == source && p.dst == to && ports.contains(&p.sport)),
                "{what}: {left:?}"
            );
        }
        None => assert!(left.is_empty(), "{what} left the node: {left:?}"),
    }

    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    if !engine {
        return delta.assert(&[("engine.in", 0), ("engine.flows_opened", 0)]);
    }
    delta.assert(&[("engine.flows_opened", 2), ("engine.to_kernel_eni", 0), ("engine.to_kernel_pod", 0)]);
    let eni_packets = delta.of("engine.to_eni");
    match eni {
        Some(eni) => {
            assert_eq!(delta.of(&format!("{eni}.tx_packets")), i64::try_from(left.len()).unwrap(), "{what}");
            delta.assert_at_least(&[
                ("engine.to_eni", 5),
                ("engine.to_pod", 4),
                ("bpf.trunk_redirect_pod", 2),
            ]);
        }
        None => {
            assert_eq!(eni_packets, 0, "{what}: {:?}", delta.all());
            delta.assert(&[("bpf.xdp_redirect_pod", 0), ("bpf.xdp_redirect_port", 0)]);
            delta.assert_at_least(&[("engine.to_pod", 9)]);
        }
    }
}

/// A client that connects in: the pod's reply keeps the pod's address and leaves by the pod's own ENI.
#[track_caller]
fn inward(lab: &Lab, sniffer: &Sniffer, host: &str, pod: &str, eni: &str) {
    let (before, mark) = (lab.stats(), sniffer.mark());
    let (client, pod_address) = (lab.address(host), lab.address(pod));
    let seen = lab.within(host, || (tcp_peer(None, pod_address, PEER), udp_peer(None, pod_address, 100)));
    assert_eq!((*seen.0.ip(), *seen.1.ip()), (client, client), "the pod sees its client");
    let packets = sniffer.since(mark);
    let replies: Vec<&Seen> = packets.iter().filter(|p| p.left_the_node() && p.ethertype == 0x0800).collect();
    assert!(replies.len() >= 5, "{host} -> {pod}: {} replies", replies.len());
    assert!(
        replies.iter().all(|p| p.link == eni && p.src == pod_address && p.dst == client && p.sport == PEER),
        "{host} -> {pod}: {replies:?}"
    );
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.flows_opened", 2), ("engine.ports_taken", 0), ("bpf.xdp_redirect_port", 0)]);
    assert_eq!(delta.of(&format!("{eni}.tx_packets")), i64::try_from(replies.len()).unwrap());
}
