//! Traffic that the kernel forwards into pods: `NodePort` and `hostPort`, by rules of the shape that kube-proxy and the
//! portmap plugin make. The client enters by eni0, the pod is on eni1, and the reply must leave by eni0 with the node's
//! address, through the kernel that knows the connection.

use std::net::{Ipv4Addr, SocketAddrV4};

use sluice_tests::kube_proxy::{Traffic, iptables, nft};
use sluice_tests::lab::{Lab, NODE, PEER, Seen, connect, greeting, is_open, tcp_peer, udp_exchange};

/// A port in the NodePort range, and one of a hostPort, which lies in Sluice's own set and is excluded by the operator.
const NODE_PORT: u16 = 30080;
const HOST_PORT: u16 = 8443;

#[test]
fn a_client_through_a_kernel_node_port_gets_its_reply_by_the_primary_eni() {
    let lab = Lab::up("a", &[]);
    lab.mark_node_ports();
    for traffic in [Traffic::Cluster, Traffic::Local] {
        for pod in ["pod-c", "pod-a"] {
            lab.nft(&nft(lab.address(pod), NODE_PORT, traffic));
            through(&lab, pod, NODE_PORT, traffic);
            lab.sh("node", "nft delete table ip kube-proxy");
        }
    }
}

#[test]
fn so_does_one_through_iptables_rules() {
    let lab = Lab::up("b", &[]);
    for traffic in [Traffic::Cluster, Traffic::Local] {
        let rules = iptables(lab.address("pod-c"), NODE_PORT, traffic);
        lab.sh("node", &format!("iptables-restore <<'EOF'\n{rules}EOF"));
        through(&lab, "pod-c", NODE_PORT, traffic);
    }
}

#[test]
fn a_host_port_of_portmaps_shape_works_likewise() {
    let lab = Lab::up("c", &["--snat-ports", "1024-29999,61000-65535,!8443"]);
    lab.mark_node_ports();
    lab.nft(&nft(lab.address("pod-c"), HOST_PORT, Traffic::Local));
    through(&lab, "pod-c", HOST_PORT, Traffic::Local);
    lab.sh("node", "nft delete table ip kube-proxy");
    let rules = iptables(lab.address("pod-c"), HOST_PORT, Traffic::Local).replace("KUBE-", "CNI-");
    lab.sh("node", &format!("iptables-restore <<'EOF'\n{rules}EOF"));
    through(&lab, "pod-c", HOST_PORT, Traffic::Local);
}

#[test]
fn node_ports_work_with_external_snat_too() {
    let lab = Lab::up("d", &["--external-snat"]);
    lab.mark_node_ports();
    for traffic in [Traffic::Cluster, Traffic::Local] {
        lab.nft(&nft(lab.address("pod-c"), NODE_PORT, traffic));
        through(&lab, "pod-c", NODE_PORT, traffic);
        lab.sh("node", "nft delete table ip kube-proxy");
    }
}

/// The kernel's masquerade chooses among all ports. Replies to a port of Sluice's set pass the engine, which cannot know whose
/// they are before it has looked; replies to another one do not.
#[test]
fn a_masqueraded_connection_outlives_the_timeout_of_half_open_ones_whether_its_replies_pass_the_engine_or_not()
 {
    let lab = Lab::up("e", &["--timeouts", "tcp_syn_sent=1,tcp_syn_received=1"]);
    lab.mark_node_ports();
    lab.nft(&nft(lab.address("pod-c"), NODE_PORT, Traffic::Cluster));
    let to = SocketAddrV4::new(NODE, NODE_PORT);
    for (ours, way) in [(false, "bpf.from_pod_pass_local"), (true, "bpf.from_pod_redirect_hairpin")] {
        let mut held = (0..64)
            .find_map(|_| {
                let mut held = lab
                    .within("host-x", || connect(None, to, sluice_tests::lab::PATIENCE))
                    .expect("a connection");
                let seen = greeting(&mut held).expect("a greeting");
                assert_eq!(*seen.ip(), NODE);
                (matches!(seen.port(), 1024..=29_999 | 61_000..) == ours).then_some(held)
            })
            .expect("one of 64 random ports");
        let before = lab.stats();
        std::thread::sleep(std::time::Duration::from_millis(2500));
        assert!(is_open(&mut held), "after a while of silence");
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert_at_least(&[("engine.to_pod", 1), (way, 1)]);
    }
}

/// TCP, UDP and a connection that stays open, from outside and from inside the VPC.
#[track_caller]
fn through(lab: &Lab, pod: &str, port: u16, traffic: Traffic) {
    let sniffer = lab.sniff();
    for host in ["host-x", "host-v"] {
        let client = lab.address(host);
        let source = if traffic == Traffic::Cluster { NODE } else { client };
        let (before, mark) = (lab.stats(), sniffer.mark());
        let (tcp, udp) = lab.within(host, || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((NODE, port)).unwrap();
            (tcp_peer(None, NODE, port), udp_exchange(&socket, 1000).expect("an answer"))
        });
        assert_eq!((*tcp.ip(), *udp.ip()), (source, source), "{host} {traffic:?}: what the pod saw");
        let packets = sniffer.since(mark);
        let left: Vec<&Seen> =
            packets.iter().filter(|p| p.left_the_node() && p.ethertype == 0x0800).collect();
        assert!(left.len() >= 5, "{host}: {} replies", left.len());
        assert!(
            left.iter().all(|p| p.link == "eni0" && p.src == NODE && p.sport == port && p.dst == client),
            "{host} {traffic:?}: {left:?}"
        );
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        // Into the pod by the engine, which sends nothing to an ENI itself.
        delta.assert(&[("engine.flows_opened", 2), ("engine.to_eni", 0), ("engine.ports_taken", 0)]);
        delta.assert(&[("engine.to_pod", delta.of("bpf.to_pod_redirect"))]);
        delta.assert_at_least(&[("engine.to_pod", 5)]);
        if traffic == Traffic::Cluster {
            // To an address of the node: the kernel's, without a detour unless masquerade took a port of our set.
            let detour = delta.of("bpf.from_pod_redirect_hairpin");
            delta.assert(&[("engine.to_kernel_pod", detour), ("bpf.from_pod_redirect", 0)]);
            assert!(delta.of("bpf.from_pod_pass_local") + detour >= 5, "{delta:?}");
        } else {
            // To the client: the engine knows the flow as the kernel's and hands it back on the pod's own veth.
            delta.assert(&[("engine.to_kernel_pod", delta.of("bpf.trunk_redirect_kernel_pod"))]);
            delta.assert(&[("bpf.from_pod_redirect", delta.of("bpf.from_pod_pass_handback"))]);
            delta.assert_at_least(&[("engine.to_kernel_pod", 5)]);
        }
        let flows = lab.flows(&["--pod", pod, "--port", &PEER.to_string()]);
        let kernel =
            flows.iter().filter(|f| f["origin"] == "kernel" && f.to_string().contains(&source.to_string()));
        assert!(kernel.count() >= 2, "marked as the kernel's: {flows:?}");
    }
    // A long-lived one beside the pod's own connections outward.
    let to = SocketAddrV4::new(NODE, port);
    let patience = sluice_tests::lab::PATIENCE;
    let mut held = lab.within("host-x", || connect(None, to, patience)).expect("a connection");
    let out = lab.address("host-x");
    assert_eq!(*lab.within(pod, || tcp_peer(None, out, PEER)).ip(), lab_source(lab, pod));
    greeting(&mut held).expect("the server's first line");
    assert!(is_open(&mut held), "it still carries bytes");
    assert_eq!(lab.source_check_drops(), 0);
}

fn lab_source(lab: &Lab, pod: &str) -> Ipv4Addr {
    if lab.status()["external_snat"] == true { lab.address(pod) } else { NODE }
}
