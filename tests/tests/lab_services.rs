//! Services as pods use them, on a node that has kube-proxy's rules as well: every place at which a service can be met, on
//! both ENIs, and no way around policy through any of them.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use serde_json::json;
use sluice_tests::cluster::{
    block, cluster_ip, external, identities, isolate, node_port, selected, services, without,
};
use sluice_tests::kube_proxy::{Traffic, iptables, nft};
use sluice_tests::lab::{
    Delta, Lab, NODE, NODE_ENI1, PATIENCE, PEER, Pusher, Server, connect, greeting, is_open, tcp_peer,
    udp_exchange,
};

const NODE_PORT: u16 = 30_080;
const HOST_PORT: u16 = 8443;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 5);
/// A load balancer's address: neither the VPC's nor the node's.
const BALANCER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
/// Long enough for an answer, shorter than the first repetition of a SYN.
const MOMENT: Duration = Duration::from_millis(500);

/// The places of a service that is everything at once.
const PLACES: [(Ipv4Addr, u16); 6] = [
    (CLUSTER_IP, 80),
    (NODE, NODE_PORT),
    (NODE_ENI1, NODE_PORT),
    (NODE, HOST_PORT),
    (BALANCER, 80),
    (NODE_ENI1, 8090),
];

fn everything() -> [serde_json::Value; 5] {
    [
        cluster_ip(CLUSTER_IP, 80),
        node_port(NODE_PORT),
        node_port(HOST_PORT),
        external(BALANCER, 80),
        external(NODE_ENI1, 8090),
    ]
}

#[track_caller]
fn refused_by_policy(lab: &Lab, pod: &str, drop: &str) {
    for (to, port) in PLACES {
        let before = lab.stats();
        let tried = lab.within(pod, || connect(None, SocketAddrV4::new(to, port), MOMENT));
        assert!(tried.is_err(), "{pod} -> {to}:{port} went around policy");
        let delta = lab.since(&before);
        delta.assert_drops(&[(drop, 1)]);
        delta.assert(&[("engine.flows_opened", 0), ("engine.to_pod", 0), ("bpf.to_pod_redirect", 0)]);
    }
}

/// TCP, UDP, and UDP in fragments, to every place; the endpoint sees the pod itself.
#[track_caller]
fn served_everywhere(lab: &Lab, pod: &str) {
    let own = lab.address(pod);
    for (to, port) in PLACES {
        let before = lab.stats();
        let seen = lab.within(pod, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect((to, port)).expect("a route");
            let udp = |len| {
                udp_exchange(&socket, len).unwrap_or_else(|e| panic!("{pod} -> {to}:{port}, {len}: {e}"))
            };
            [tcp_peer(None, to, port), udp(1000), udp(4000)]
        });
        assert!(seen.iter().all(|seen| *seen.ip() == own), "{pod} -> {to}:{port}: {seen:?}");
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.flows_opened", 2), ("engine.to_eni", 0), ("bpf.to_pod_redirect", 0)]);
        let local = to == NODE || to == NODE_ENI1;
        let frontend = delta.of("bpf.from_pod_redirect_frontend");
        assert_eq!(frontend > 0, local, "{to}:{port}: {:?}", delta.all());
        // Of the one datagram in fragments the first one has the port.
        assert_eq!(delta.of("bpf.from_pod_redirect_fragment"), if local { 2 } else { 0 });
    }
}

#[test]
fn no_place_of_a_service_leads_around_policy_whatever_rules_the_node_has() {
    let lab = Lab::up("a", &[]);
    lab.mark_node_ports();
    let mut pusher = Pusher::connect(&lab);
    let target = lab.address("pod-c");
    pusher.push_all(&[identities(&lab), services("all", &everything(), &[(target, PEER)])]);
    let held: Vec<_> = lab.ports()["services"].as_array().expect("ports of services").clone();
    let taken =
        |port: u16, protocol: &str| held.iter().any(|l| l["port"] == port && l["protocol"] == protocol);
    assert!(taken(HOST_PORT, "tcp") && taken(HOST_PORT, "udp"), "the contract says so: {held:?}");
    assert!(
        !taken(NODE_PORT, "tcp") && !taken(8090, "tcp"),
        "outside the set, and another address: {held:?}"
    );

    lab.nft(&nft(target, NODE_PORT, Traffic::Cluster));
    served_everywhere(&lab, "pod-a");
    served_everywhere(&lab, "pod-d");

    // Only pod-d may come, whichever way.
    pusher.push_all(&[isolate(1, target, Some(&[selected(4)]), None)]);
    served_everywhere(&lab, "pod-d");
    refused_by_policy(&lab, "pod-a", "drop.policy_ingress");
    lab.sh("node", "nft delete table ip kube-proxy");
    let rules = iptables(target, NODE_PORT, Traffic::Local);
    lab.sh("node", &format!("iptables-restore <<'EOF'\n{rules}EOF"));
    served_everywhere(&lab, "pod-d");
    refused_by_policy(&lab, "pod-a", "drop.policy_ingress");

    // And its own egress must let it: to pod-b it may, by the NodePort to pod-c it may not.
    pusher.push_all(&[isolate(2, lab.address("pod-d"), None, Some(&[selected(2)]))]);
    refused_by_policy(&lab, "pod-d", "drop.policy_egress");
    // Judged as if it went straight: the address that it asks for does not matter.
    pusher.push_all(&[isolate(2, lab.address("pod-d"), None, Some(&[block(&format!("{NODE}/32"))]))]);
    refused_by_policy(&lab, "pod-d", "drop.policy_egress");
    assert_eq!(lab.source_check_drops(), 0);
}

#[test]
fn a_pod_that_reaches_itself_sees_the_node_at_every_place() {
    let lab = Lab::up("h", &[]);
    let mut pusher = Pusher::connect(&lab);
    for pod in ["pod-a", "pod-c"] {
        let own = lab.address(pod);
        // Isolated from everybody: a pod always reaches itself.
        pusher.push_all(&[
            identities(&lab),
            services("all", &everything(), &[(own, PEER)]),
            isolate(1, own, Some(&[]), Some(&[])),
        ]);
        for (to, port) in PLACES {
            let before = lab.stats();
            let seen = lab.within(pod, || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.connect((to, port)).expect("a route");
                let udp =
                    |len| udp_exchange(&socket, len).unwrap_or_else(|e| panic!("{pod} -> {to}:{port}: {e}"));
                [tcp_peer(None, to, port), udp(1000), udp(4000)]
            });
            assert!(seen.iter().all(|seen| *seen.ip() == NODE), "{pod} -> {to}:{port}: {seen:?}");
            let delta = lab.since(&before);
            delta.assert_drops(&[]);
            delta.assert(&[("engine.flows_opened", 2), ("engine.ports_taken", 2), ("engine.to_eni", 0)]);
            // What answers goes to the node's address and a port of ours.
            delta.assert_at_least(&[
                ("bpf.from_pod_redirect_hairpin", 4),
                ("bpf.from_pod_redirect_fragment", 3),
            ]);
        }
    }
}

#[test]
fn a_process_of_the_node_serves_and_its_answers_come_from_the_service() {
    let lab = Lab::up("n", &[]);
    let mut pusher = Pusher::connect(&lab);
    // An egress that allows nothing does not cut a pod off its own node.
    pusher.push_all(&[
        identities(&lab),
        services("node", &[cluster_ip(CLUSTER_IP, 80)], &[(NODE, PEER)]),
        services("nobody", &[cluster_ip(CLUSTER_IP, 81)], &[(NODE, 9)]),
        isolate(1, lab.address("pod-c"), Some(&[]), Some(&[])),
    ]);
    for pod in ["pod-a", "pod-c"] {
        let (own, before) = (lab.address(pod), lab.stats());
        let seen = lab.within(pod, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect((CLUSTER_IP, 80)).expect("a route");
            let udp = |len| udp_exchange(&socket, len).unwrap_or_else(|e| panic!("{pod}, {len} B: {e}"));
            [tcp_peer(None, CLUSTER_IP, 80), udp(1000), udp(4000)]
        });
        assert!(seen.iter().all(|seen| *seen.ip() == own), "{pod}: {seen:?}");
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.flows_opened", 2), ("engine.to_eni", 0)]);
        delta.assert_at_least(&[
            ("bpf.to_pod_redirect_node", 5),
            ("bpf.to_pod_redirect_node_fragment", 3),
            ("engine.to_kernel_pod", 5),
        ]);
        // Nobody listens there: the kernel's refusal comes as the service's own.
        let before = lab.stats();
        let refused = lab.within(pod, || {
            let udp = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            udp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            udp.connect((CLUSTER_IP, 81)).expect("a route");
            udp.send(b"?").expect("sent");
            let tcp = connect(None, SocketAddrV4::new(CLUSTER_IP, 81), PATIENCE);
            [udp.recv(&mut [0; 9]).map(drop), tcp.map(drop)].map(|r| r.map_err(|e| e.kind()))
        });
        assert_eq!(refused, [Err(ErrorKind::ConnectionRefused); 2], "{pod}");
        lab.since(&before).assert_at_least(&[("bpf.to_pod_redirect_node_icmp_error", 1)]);
    }

    // A connection outlives its service: tc knows the endpoint for as long as a flow has it.
    let at = SocketAddrV4::new(CLUSTER_IP, 80);
    let mut held = lab.within("pod-a", || connect(None, at, PATIENCE)).expect("a connection");
    greeting(&mut held).expect("the server's first line");
    pusher.push_all(&[without("node")]);
    assert!(is_open(&mut held), "it was cut with its service");
    let new = lab.within("pod-a", || connect(None, at, PATIENCE)).map_err(|e| e.kind());
    assert_eq!(new.err(), Some(ErrorKind::ConnectionRefused));
}

#[test]
fn what_is_no_service_or_has_no_endpoint_is_refused_and_never_sent_out() {
    let lab = Lab::up("e", &[]);
    let mut pusher = Pusher::connect(&lab);
    let mut dropped = services("local", &[cluster_ip(CLUSTER_IP, 90)], &[]);
    for op in &mut dropped {
        op["upsert_service"]["without_endpoints"] = json!("drop");
    }
    let only_b = external(BALANCER, 80);
    let only_b = json!({ "sources": [format!("{}/32", lab.address("pod-b"))], "address": only_b["address"],
        "port": 80, "over_local": true });
    pusher.push_all(&[
        identities(&lab),
        services("empty", &[cluster_ip(CLUSTER_IP, 80), node_port(NODE_PORT)], &[]),
        dropped,
        services("guarded", &[only_b], &[(lab.address("pod-c"), PEER)]),
    ]);
    let sniffer = lab.sniff();
    let nobody = Ipv4Addr::new(172, 20, 9, 9);
    let refusals = [
        (CLUSTER_IP, 80, "drop.service_no_endpoints"),
        (NODE, NODE_PORT, "drop.service_no_endpoints"),
        (CLUSTER_IP, 8080, "drop.service_unknown"),
        (nobody, 80, "drop.service_unknown"),
    ];
    for (to, port, reason) in refusals {
        let before = lab.stats();
        let refused = lab.within("pod-a", || {
            let udp = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            udp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            udp.connect((to, port)).expect("a route");
            udp.send(b"?").expect("sent");
            let tcp = connect(None, SocketAddrV4::new(to, port), PATIENCE);
            [udp.recv(&mut [0; 9]).map(drop), tcp.map(drop)].map(|r| r.map_err(|e| e.kind()))
        });
        assert_eq!(refused, [Err(ErrorKind::ConnectionRefused); 2], "{to}:{port}");
        lab.since(&before).assert_drops(&[(reason, 2)]);
    }
    let silent = |pod: &str, to, port, reason: &str| {
        let before = lab.stats();
        let tried = lab.within(pod, || connect(None, SocketAddrV4::new(to, port), MOMENT));
        assert_ne!(tried.expect_err("dropped").kind(), ErrorKind::ConnectionRefused, "{to}:{port}");
        lab.since(&before).assert_drops(&[(reason, 1)]);
    };
    silent("pod-a", CLUSTER_IP, 90, "drop.service_no_local_endpoints");
    silent("pod-a", BALANCER, 80, "drop.service_source_range");
    lab.within("pod-b", || tcp_peer(None, BALANCER, 80));
    let left = sniffer.all().into_iter().filter(|p| p.left_the_node() && p.ethertype == 0x0800);
    assert_eq!(left.collect::<Vec<_>>(), [], "nothing of it may leave the node");
}

#[test]
fn an_address_that_node_local_dns_took_is_the_nodes_and_those_of_ipvs_are_not() {
    let lab = Lab::up("d", &[]);
    let mut pusher = Pusher::connect(&lab);
    let (dns, link_local) = (Ipv4Addr::new(172, 20, 0, 10), Ipv4Addr::new(169, 254, 20, 10));
    let target = lab.address("pod-c");
    pusher.push_all(&[
        identities(&lab),
        services("dns", &[cluster_ip(dns, 53)], &[(target, PEER)]),
        services("web", &[cluster_ip(CLUSTER_IP, 80)], &[(target, PEER)]),
    ]);
    let answered = |to, port| {
        let before = lab.stats();
        let mut stream = lab
            .within("pod-a", || connect(None, SocketAddrV4::new(to, port), PATIENCE))
            .unwrap_or_else(|e| panic!("{to}:{port}: {e}"));
        greeting(&mut stream).expect("the server's first line");
        drop(stream);
        lab.since(&before)
    };
    let by_the_engine =
        |delta: &Delta| delta.of("engine.flows_opened") == 1 && delta.of("bpf.from_pod_pass_local") == 0;
    assert!(by_the_engine(&answered(dns, 53)), "a service as any other");

    lab.sh("node", "ip tuntap add nodelocaldns mode tap && ip link set nodelocaldns up");
    lab.sh(
        "node",
        &format!("ip addr add {link_local}/32 dev nodelocaldns && ip addr add {dns}/32 dev nodelocaldns"),
    );
    lab.sh("node", "ip tuntap add kube-ipvs0 mode tap");
    lab.sh("node", &format!("ip addr add {CLUSTER_IP}/32 dev kube-ipvs0"));
    let servers = [dns, link_local].map(|at| Server::tcp(&lab.namespace("node"), SocketAddrV4::new(at, 53)));
    // The kernel's news of addresses are published a moment later.
    std::thread::sleep(Duration::from_millis(300));
    for (at, server) in [dns, link_local].into_iter().zip(&servers) {
        let delta = answered(at, 53);
        assert_eq!(server.accepted(), 1, "{at}: the node's own process answers");
        assert!(delta.of("engine.in") == 0 && delta.of("bpf.from_pod_pass_local") > 0, "{:?}", delta.all());
    }
    assert!(by_the_engine(&answered(CLUSTER_IP, 80)), "an address of kube-ipvs0 is a service's");
}

#[test]
fn the_node_reaches_its_pods_and_they_reach_it_under_a_policy_that_allows_nothing() {
    let lab = Lab::up("k", &[]);
    let mut pusher = Pusher::connect(&lab);
    for pod in ["pod-a", "pod-c"] {
        let own = lab.address(pod);
        pusher.push_all(&[identities(&lab), isolate(1, own, Some(&[]), Some(&[]))]);
        let before = lab.stats();
        for _ in 0..20 {
            lab.within("node", || tcp_peer(None, own, PEER));
        }
        for at in [NODE, NODE_ENI1] {
            assert_eq!(*lab.within(pod, || tcp_peer(None, at, PEER)).ip(), own);
        }
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.flows_opened", 0)]);
        delta.assert_at_least(&[("bpf.to_pod_pass_node", 60), ("bpf.from_pod_pass_local", 60)]);
        let other = if pod == "pod-a" { "pod-b" } else { "pod-d" };
        let denied = lab.within(other, || connect(None, SocketAddrV4::new(own, PEER), MOMENT));
        assert!(denied.is_err(), "others are denied");
    }
}
