//! The node's address is the host's and Sluice's: ports of our set that the host uses all the same, by listening, by
//! connecting and by its own NAT (ADR 003, docs/runbooks/port-contract.md).

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};

use sluice_tests::lab::{
    ECHO, Lab, NODE, PATIENCE, PEER, Server, Signal, connect, eventually, greeting, is_open, signal,
    tcp_peer, udp_exchange,
};

#[test]
fn a_process_that_listens_on_a_port_of_ours_is_reached_from_outside() {
    let lab = Lab::up("a", &[]);
    let at = SocketAddrV4::new(NODE, 8080);
    let _server = Server::tcp(&lab.namespace("node"), at);
    let udp = lab.within("node", || UdpSocket::bind((NODE, 9000)).unwrap());
    for host in ["host-x", "host-v"] {
        let before = lab.stats();
        let seen = lab.within(host, || tcp_peer(None, NODE, 8080));
        assert_eq!(*seen.ip(), lab.address(host));
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.flows_opened", 1), ("engine.to_pod", 0), ("engine.ports_taken", 0)]);
        // The SYN by which nothing is known goes to the kernel; its SYN/ACK opens the host's flow.
        delta.assert(&[("engine.to_kernel_eni", delta.of("bpf.xdp_redirect_port"))]);
        delta.assert(&[("engine.to_eni", delta.of("bpf.eni_out_redirect_port"))]);
        delta.assert_at_least(&[("engine.to_kernel_eni", 4), ("engine.to_eni", 4)]);
        assert!(lab.flows(&["--port", "8080"]).iter().any(|f| f["origin"] == "host"), "{:?}", lab.flows(&[]));

        let before = lab.stats();
        let mut answer = [0; 16];
        let client = lab.within(host, || UdpSocket::bind("0.0.0.0:0").unwrap());
        client.connect((NODE, 9000)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..3_u8 {
            client.send(&[round; 8]).unwrap();
            let (len, peer) = udp.recv_from(&mut answer).expect("the node's process gets it");
            udp.send_to(&answer[..len], peer).unwrap();
            assert_eq!(client.recv(&mut answer).expect("an answer"), 8);
            assert_eq!(answer[..8], [round; 8]);
        }
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        delta.assert(&[("engine.to_kernel_eni", 3), ("engine.to_eni", 3), ("engine.flows_opened", 1)]);
    }
    // Nobody listens there: refused, as on any port, and no state is made.
    let before = lab.stats();
    let refused = lab.within("host-x", || connect(None, SocketAddrV4::new(NODE, 8081), PATIENCE));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[
        ("engine.to_kernel_eni", 1),
        ("engine.to_eni", 1),
        ("engine.flows_opened", 0),
        ("flows", 0),
    ]);
}

#[test]
fn the_contract_gives_a_listeners_port_up_and_its_connections_live_on() {
    let lab = Lab::up("b", &[]);
    let _server = Server::tcp(&lab.namespace("node"), SocketAddrV4::new(NODE, 8080));
    let mut held = lab.within("host-x", || connect(None, SocketAddrV4::new(NODE, 8080), PATIENCE)).unwrap();
    greeting(&mut held).unwrap();
    signal(lab.pid("sluiced"), Signal::SIGHUP);
    eventually("the contract names the listener", || {
        lab.ports()["listeners"].to_string().contains("8080")
            && lab.ports()["tcp"].to_string().contains("1024-8079")
    });
    assert!(is_open(&mut held), "the connection from before");
    let before = lab.stats();
    lab.within("host-x", || tcp_peer(None, NODE, 8080));
    let delta = lab.since(&before);
    delta.assert(&[("engine.in", 0), ("engine.flows_opened", 0)]);
    delta.assert_at_least(&[("bpf.xdp_pass_host_port", 4), ("bpf.eni_out_pass_port", 4)]);
    assert!(is_open(&mut held), "and again, past the engine");
}

#[test]
fn a_pods_connection_outlives_a_listener_on_its_port() {
    let lab = Lab::up("d", &["--randomize-snat", "none"]);
    let port = 22_000;
    let (own, to) = (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), lab.address("host-x"));
    let mut held = lab.within("pod-a", || connect(Some(own), SocketAddrV4::new(to, PEER), PATIENCE)).unwrap();
    assert_eq!(greeting(&mut held).unwrap(), SocketAddrV4::new(NODE, port), "the pod's port is kept");
    let _server = Server::tcp(&lab.namespace("node"), SocketAddrV4::new(NODE, port));
    signal(lab.pid("sluiced"), Signal::SIGHUP);
    eventually("the contract names the listener", || {
        lab.ports()["listeners"].to_string().contains(&port.to_string())
    });
    // The port is given to nobody any more, and still comes to the engine.
    assert!(is_open(&mut held), "the pod's connection");
    for host in ["host-x", "host-v"] {
        assert_eq!(*lab.within(host, || tcp_peer(None, NODE, port)).ip(), lab.address(host));
    }
    assert!(is_open(&mut held), "the pod's connection, after the listener's");
}

#[test]
fn a_process_that_connects_from_a_port_of_ours_gets_its_replies() {
    let lab = Lab::up("c", &["--randomize-snat", "none"]);
    let to = lab.address("host-x");
    let from = SocketAddrV4::new(NODE, 20_000);
    let before = lab.stats();
    let seen = lab.within("node", || tcp_peer(Some(from), to, PEER));
    assert_eq!(seen, from, "a port that nobody else holds is kept");
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.flows_opened", 1), ("engine.to_pod", 0), ("engine.ports_taken", 0)]);
    delta.assert(&[("engine.to_eni", delta.of("bpf.eni_out_redirect_port"))]);
    delta.assert(&[("engine.to_kernel_eni", delta.of("bpf.xdp_redirect_port"))]);

    // A pod holds the port towards that destination: the host gets another one, and both talk.
    let port = 21_000;
    let own = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    let target = SocketAddrV4::new(to, PEER);
    let mut pod = lab.within("pod-c", || connect(Some(own), target, PATIENCE)).unwrap();
    assert_eq!(greeting(&mut pod).unwrap(), SocketAddrV4::new(NODE, port), "the pod's port is kept");
    let before = lab.stats();
    let from = SocketAddrV4::new(NODE, port);
    let mut host = lab.within("node", || connect(Some(from), target, PATIENCE)).unwrap();
    let seen = greeting(&mut host).unwrap();
    assert_eq!(*seen.ip(), NODE);
    assert_ne!(seen.port(), port, "another port for the host");
    assert!(is_open(&mut pod) && is_open(&mut host) && is_open(&mut pod));
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.flows_opened", 1), ("engine.ports_taken", 1)]);

    // The same for UDP and for ICMP's identifiers.
    let sockets = ["pod-c", "node"].map(|member| {
        let bind = if member == "node" { NODE } else { Ipv4Addr::UNSPECIFIED };
        let socket = lab.within(member, || UdpSocket::bind((bind, 22_000)).unwrap());
        socket.connect(target).unwrap();
        socket
    });
    let seen = sockets.each_ref().map(|s| udp_exchange(s, 64).expect("an answer"));
    assert_eq!(seen[0], SocketAddrV4::new(NODE, 22_000));
    assert!(*seen[1].ip() == NODE && seen[1].port() != 22_000, "{seen:?}");
    assert_eq!(sockets.each_ref().map(|s| udp_exchange(s, 64).expect("an answer")), seen);
    let before = lab.stats();
    std::thread::scope(|scope| {
        for member in ["pod-c", "node"] {
            let (lab, ping) =
                (&lab, format!("ping -q -e 23000 -c 20 -i 0.02 -W 2 {to} | grep -q ' 20 received'"));
            scope.spawn(move || lab.sh(member, &ping));
        }
    });
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.to_eni", 40), ("engine.to_pod", 20), ("engine.to_kernel_eni", 20)]);
}

/// Connections of each of the three that share the node's address.
const EACH: usize = 200;

#[test]
fn kernel_masquerade_and_sluice_to_one_destination_cross_no_reply() {
    let lab = Lab::up("d", &["--snat-ports", "20000-21023"]);
    // A subnet that the node forwards and Sluice knows nothing of, as of a container engine beside Kubernetes.
    // It is named as a pod of the lab, so that it goes with the lab.
    let (other, node) = (lab.namespace("pod-z"), lab.namespace("node"));
    let added = std::process::Command::new("ip").args(["netns", "add", &other]).status();
    assert!(added.unwrap().success());
    lab.sh(
        "node",
        &format!(
            "ip -n {node} link add docker0 type veth peer name eth0 netns {other}; \
             ip -n {node} addr add 172.17.0.1/24 dev docker0; ip -n {node} link set docker0 up; \
             ip -n {other} addr add 172.17.0.2/24 dev eth0; ip -n {other} link set eth0 up; \
             ip -n {other} link set lo up; ip -n {other} route add default via 172.17.0.1"
        ),
    );
    // The kernel's own choice from all ports, then from just ours, where most of its choices clash.
    for (range, port) in [("", 8000), ("to :20000-21023", 8001)] {
        // One destination for all, a fresh one each time: closed connections hold their ports for a while.
        let to = SocketAddrV4::new(lab.address("host-x"), port);
        let _server = Server::tcp(&lab.namespace("host-x"), to);
        lab.nft(&format!(
            "table ip docker {{ chain nat {{ type nat hook postrouting priority srcnat; \
             oifname \"eni0\" ip saddr {{ 172.17.0.0/24, {NODE} }} meta l4proto {{ tcp, udp }} \
             masquerade {range} fully-random; }} }}"
        ));
        let before = lab.stats();
        let clients = ["pod-a", "pod-c", "pod-z", "node"];
        let mut open = std::thread::scope(|scope| {
            let lab = &lab;
            let threads = clients.map(|member| scope.spawn(move || lab.within(member, || many(to, member))));
            threads.map(|thread| thread.join().unwrap())
        });
        // All are open at once now, and every one of them still has its own peer.
        for (member, (streams, datagrams)) in clients.iter().zip(&mut open) {
            for (n, (stream, _)) in streams.iter_mut().enumerate() {
                token(stream, &format!("{member} again {n}"));
            }
            for (n, socket) in datagrams.iter().enumerate() {
                datagram(socket, &format!("{member} again {n}"));
            }
        }
        let seen: Vec<_> =
            open.iter().flat_map(|(streams, _)| streams.iter().map(|(_, seen)| *seen)).collect();
        assert_eq!(seen.len(), 4 * EACH);
        assert!(seen.iter().all(|s| *s.ip() == NODE));
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "a port was given out twice");
        let delta = lab.since(&before);
        delta.assert_drops(&[]);
        let pods = i64::try_from(2 * (EACH + EACH / 4)).unwrap();
        delta.assert_at_least(&[("engine.flows_opened", pods), ("engine.ports_taken", pods)]);
        drop(open);
        lab.sh("node", "nft delete table ip docker");
        if range.is_empty() {
            continue;
        }
        // Every connection is known, and the host's that clashed got other ports. A few datagrams continue flows of the
        // round before, whose ports the kernel's NAT has drawn again.
        delta.assert_at_least(&[("engine.flows_opened", 2 * pods - 20)]);
        delta.assert_at_least(&[("engine.ports_taken", pods + 20), ("engine.to_kernel_eni", 1500)]);
    }
    assert_eq!(lab.source_check_drops(), 0);
}

/// Opens many connections and UDP exchanges to one destination, each with a token of its own.
fn many(to: SocketAddrV4, member: &str) -> (Vec<(TcpStream, SocketAddrV4)>, Vec<UdpSocket>) {
    let streams = (0..EACH).map(|n| {
        let mut stream =
            connect(None, to, PATIENCE).unwrap_or_else(|e| panic!("{member}, connection {n}: {e}"));
        let seen = greeting(&mut stream).unwrap_or_else(|e| panic!("{member}, connection {n}: {e}"));
        token(&mut stream, &format!("{member} {n}"));
        (stream, seen)
    });
    let streams = streams.collect();
    let datagrams = (0..EACH / 4).map(|n| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((*to.ip(), ECHO)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        datagram(&socket, &format!("{member} {n}"));
        socket
    });
    (streams, datagrams.collect())
}

fn token(stream: &mut TcpStream, token: &str) {
    stream.write_all(token.as_bytes()).unwrap();
    let mut back = vec![0; token.len()];
    stream.read_exact(&mut back).unwrap_or_else(|e| panic!("{token}: {e}"));
    assert_eq!(String::from_utf8_lossy(&back), token, "a reply that belongs to another");
}

fn datagram(socket: &UdpSocket, token: &str) {
    socket.send(token.as_bytes()).unwrap();
    let mut back = [0; 64];
    let len = socket.recv(&mut back).unwrap_or_else(|e| panic!("{token}: {e}"));
    assert_eq!(String::from_utf8_lossy(&back[..len]), token, "a reply that belongs to another");
}
