//! Policy on what the kernel forwards into a pod: clients outside and inside the VPC, pods on both ENIs, rules of
//! kube-proxy's shape, with the client's address kept (`externalTrafficPolicy: Local`) and replaced (`Cluster`).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::cluster::{block, external, identities, isolate, node_port, selected, services};
use sluice_tests::kube_proxy::{Traffic, iptables, nft};
use sluice_tests::lab::{
    Lab, NODE, PATIENCE, PEER, Pusher, Seen, connect, greeting, is_open, tcp_peer, udp_exchange,
};

const NODE_PORT: u16 = 30_080;
const HOST_PORT: u16 = 8443;
const MOMENT: Duration = Duration::from_millis(500);

/// A way for the kernel to forward into a pod, laid and taken off.
struct Rules {
    lay: fn(&Lab, Ipv4Addr, u16, Traffic),
    take: &'static str,
}

const NFT: Rules = Rules {
    lay: |lab, pod, port, traffic| lab.nft(&nft(pod, port, traffic)),
    take: "nft delete table ip kube-proxy",
};

const IPTABLES: Rules = Rules {
    lay: |lab, pod, port, traffic| restore(lab, &iptables(pod, port, traffic)),
    take: "iptables -t nat -F; iptables -t nat -X; iptables -t mangle -F",
};

/// The portmap plugin's chains differ from kube-proxy's in their names.
const PORTMAP: Rules = Rules {
    lay: |lab, pod, port, traffic| restore(lab, &iptables(pod, port, traffic).replace("KUBE-", "CNI-")),
    take: IPTABLES.take,
};

fn restore(lab: &Lab, rules: &str) {
    lab.sh("node", &format!("iptables-restore <<'EOF'\n{rules}EOF"));
}

/// Whom the pod takes, and who comes through then.
struct Case {
    takes: Vec<Value>,
    masqueraded: &'static str,
    traffic: Traffic,
    /// Drop reason for each client, none where it passes: outside, inside the VPC.
    outcome: [Option<&'static str>; 2],
}

fn cases(lab: &Lab) -> Vec<Case> {
    let client = |host: &str| block(&format!("{}/32", lab.address(host)));
    let node = || block(&format!("{NODE}/32"));
    let (ingress, unknown) = (Some("drop.policy_ingress"), Some("drop.policy_unknown_peer"));
    let case =
        |takes: Vec<Value>, masqueraded, traffic, outcome| Case { takes, masqueraded, traffic, outcome };
    vec![
        case(vec![], "allow", Traffic::Local, [ingress, ingress]),
        case(vec![client("host-x")], "allow", Traffic::Local, [None, ingress]),
        case(vec![client("host-v")], "allow", Traffic::Local, [ingress, None]),
        // A selector asks who it is: an address of the VPC that no pod has (yet) is told apart.
        case(vec![selected(2)], "allow", Traffic::Local, [ingress, unknown]),
        // What was masqueraded is the node's: allowed as under the VPC CNI, or judged by the node's address.
        case(vec![], "allow", Traffic::Cluster, [None, None]),
        case(vec![client("host-x")], "policy", Traffic::Cluster, [ingress, ingress]),
        case(vec![node()], "policy", Traffic::Cluster, [None, None]),
    ]
}

fn play(tag: &str, rules: &Rules, pods: &[&str], port: u16, args: &[&str]) {
    let lab = Lab::up(tag, args);
    play_in(&lab, rules, pods, SocketAddrV4::new(NODE, port), port);
}

/// `at`: where the clients go; `port`: the node's.
fn play_in(lab: &Lab, rules: &Rules, pods: &[&str], at: SocketAddrV4, port: u16) {
    lab.mark_node_ports();
    let mut pusher = Pusher::connect(lab);
    for pod in pods {
        let own = lab.address(pod);
        // The engine knows the service too, as it does on a node.
        pusher.push_all(&[identities(lab), services("web", &[node_port(port)], &[(own, PEER)])]);
        for case in cases(lab) {
            let settings = json!({ "policy_settings": {
                "on_change": "recheck", "masqueraded_node_traffic": case.masqueraded } });
            pusher.push_all(&[vec![settings], isolate(1, own, Some(&case.takes), Some(&[]))]);
            (rules.lay)(lab, own, port, case.traffic);
            for (host, outcome) in ["host-x", "host-v"].into_iter().zip(case.outcome) {
                match outcome {
                    None => passes(lab, host, at, port, case.traffic),
                    Some(reason) => denied(lab, host, at, reason),
                }
            }
            lab.sh("node", rules.take);
            // A client's port may come again, and the kernel still translates it by the rules that were.
            lab.sh("node", "conntrack -F 2>/dev/null");
        }
    }
    assert_eq!(lab.source_check_drops(), 0);
}

#[track_caller]
fn passes(lab: &Lab, host: &str, at: SocketAddrV4, port: u16, traffic: Traffic) {
    let (sniffer, before, client) = (lab.sniff(), lab.stats(), lab.address(host));
    let seen = lab.within(host, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(at).expect("a route");
        [
            tcp_peer(None, *at.ip(), at.port()),
            udp_exchange(&socket, 1000).unwrap_or_else(|e| panic!("{host}: {e}")),
        ]
    });
    let source = if traffic == Traffic::Cluster { NODE } else { client };
    assert!(seen.iter().all(|seen| *seen.ip() == source), "{host} {traffic:?}: {seen:?}");
    // An egress that allows nothing does not hold replies back, and they leave as the kernel has it.
    let packets = sniffer.all();
    let left: Vec<&Seen> = packets.iter().filter(|p| p.left_the_node() && p.ethertype == 0x0800).collect();
    let right = |p: &Seen| p.link == "eni0" && p.src == NODE && p.sport == port && p.dst == client;
    assert!(left.len() >= 5 && left.iter().all(|p| right(p)), "{host} {traffic:?}: {left:?}");
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.flows_opened", 2), ("engine.to_eni", 0)]);
}

#[track_caller]
fn denied(lab: &Lab, host: &str, at: SocketAddrV4, reason: &str) {
    let before = lab.stats();
    let tried = lab.within(host, || connect(None, at, MOMENT));
    assert!(tried.is_err(), "{host} came through");
    let delta = lab.since(&before);
    delta.assert_drops(&[(reason, 1)]);
    delta.assert(&[("engine.flows_opened", 0), ("engine.to_pod", 0)]);
}

#[test]
fn node_ports_by_nft_rules() {
    play("n", &NFT, &["pod-c", "pod-a"], NODE_PORT, &[]);
}

#[test]
fn node_ports_by_iptables_rules() {
    play("i", &IPTABLES, &["pod-c", "pod-a"], NODE_PORT, &[]);
}

#[test]
fn host_ports_whose_port_the_contract_takes_out_by_itself() {
    play("h", &NFT, &["pod-c"], HOST_PORT, &[]);
}

#[test]
fn host_ports_by_portmaps_rules() {
    play("p", &PORTMAP, &["pod-c", "pod-a"], HOST_PORT, &[]);
}

/// A network load balancer with instances as its targets: it keeps the client's address and sends to the node port, and
/// nothing of it is on the node.
#[test]
fn load_balancers_of_the_fabric() {
    let lab = Lab::up("b", &[]);
    let at = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 80), 80);
    lab.sh(
        "vpc",
        &format!(
            "nft -f - <<'EOF'\ntable ip balancer {{\n chain in {{\n type nat hook prerouting priority dstnat;\n \
             ip daddr {} meta l4proto {{ tcp, udp }} th dport {} dnat to {NODE}:{NODE_PORT}\n }}\n }}\nEOF",
            at.ip(),
            at.port()
        ),
    );
    play_in(&lab, &NFT, &["pod-c", "pod-a"], at, NODE_PORT);
    play_in(&lab, &IPTABLES, &["pod-c"], at, NODE_PORT);
}

#[test]
fn node_ports_with_external_snat() {
    play("e", &NFT, &["pod-c"], NODE_PORT, &["--external-snat"]);
}

#[test]
fn a_local_pods_own_packets_are_never_taken_for_masqueraded_ones() {
    let lab = Lab::up("m", &[]);
    lab.mark_node_ports();
    let mut pusher = Pusher::connect(&lab);
    let own = lab.address("pod-c");
    let frontends = [node_port(NODE_PORT), external(NODE, HOST_PORT)];
    pusher.push_all(&[
        identities(&lab),
        services("web", &frontends, &[(own, PEER)]),
        isolate(1, own, Some(&[]), None),
    ]);
    lab.nft(&nft(own, NODE_PORT, Traffic::Cluster));
    for pod in ["pod-a", "pod-d"] {
        for port in [NODE_PORT, HOST_PORT] {
            denied(&lab, pod, SocketAddrV4::new(NODE, port), "drop.policy_ingress");
        }
    }
    passes(&lab, "host-x", SocketAddrV4::new(NODE, NODE_PORT), NODE_PORT, Traffic::Cluster);
}

#[test]
fn a_live_connection_through_a_node_port_is_judged_again() {
    let lab = Lab::up("l", &[]);
    lab.mark_node_ports();
    let mut pusher = Pusher::connect(&lab);
    let own = lab.address("pod-c");
    let client = block(&format!("{}/32", lab.address("host-x")));
    pusher.push_all(&[identities(&lab), isolate(1, own, Some(&[client]), None)]);
    lab.nft(&nft(own, NODE_PORT, Traffic::Local));
    let at = SocketAddrV4::new(NODE, NODE_PORT);
    let mut held = lab.within("host-x", || connect(None, at, PATIENCE)).expect("a connection");
    greeting(&mut held).expect("the server's first line");
    let before = lab.stats();
    pusher.push_all(&[isolate(2, own, Some(&[block("10.0.0.0/8")]), None)]);
    held.set_read_timeout(Some(MOMENT)).expect("a timeout");
    let after = lab.stats();
    assert!(!is_open(&mut held), "its packets still arrive");
    lab.since(&before).assert_at_least(&[("engine.flows_revoked", 1), ("drop.revoked", 1)]);
    lab.since(&after).assert(&[("engine.to_pod", 0)]);
}
