//! Pods in use, their packets forwarded and translated by the kernel with VPC CNI's rules: then the daemon begins, and no
//! connection is cut (DESIGN section 4).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_tests::lab::{Lab, NODE, PATIENCE, PEER, connect, greeting, is_open, kill, udp_exchange};

/// Enough for the kernel to choose ports of our set and others.
const MANY: i64 = 24;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn talk(lab: &Lab, from: &str, to: SocketAddrV4) -> (TcpStream, SocketAddrV4) {
    lab.within(from, || {
        let mut stream = connect(None, to, PATIENCE).unwrap_or_else(|e| panic!("{from} -> {to}: {e}"));
        let seen = greeting(&mut stream).unwrap();
        assert!(is_open(&mut stream), "{from} -> {to}");
        (stream, seen)
    })
}

#[test]
fn connections_that_the_kernel_forwards_go_on_when_the_daemon_begins() {
    let lab = Lab::up("a", &["--dataplane", "iptables"]);
    lab.mark_node_ports();
    lab.nft(&format!(
        "table ip proxy {{ chain in {{ type nat hook prerouting priority dstnat; \
         ip daddr {CLUSTER_IP} tcp dport 80 dnat to {}:{PEER}; \
         ip daddr {NODE} tcp dport 30080 dnat to {}:{PEER}; }} }}",
        lab.address("pod-b"),
        lab.address("pod-c")
    ));
    let peer = |host: &str| SocketAddrV4::new(lab.address(host), PEER);

    // pod to outside, in numbers; to the VPC; to another pod; to a service; outside to a pod, and by a node port.
    let mut held: Vec<(String, TcpStream)> = Vec::new();
    let mut ports = BTreeSet::new();
    for n in 0..MANY {
        let pod = if n % 2 == 0 { "pod-a" } else { "pod-c" };
        let (stream, seen) = talk(&lab, pod, peer("host-x"));
        assert_eq!(*seen.ip(), NODE, "the kernel translates");
        ports.insert(seen.port());
        held.push((format!("{pod} to outside as {seen}"), stream));
    }
    let ours = |port: &u16| (1024..30_000).contains(port) || *port >= 61_000;
    assert!(ports.iter().any(ours) && !ports.iter().all(ours), "ports of both kinds: {ports:?}");
    for (from, to) in [
        ("pod-c", peer("host-v")),
        ("pod-a", peer("pod-b")),
        ("pod-a", peer("pod-d")),
        ("pod-d", SocketAddrV4::new(CLUSTER_IP, 80)),
        ("host-x", peer("pod-c")),
        ("host-v", peer("pod-a")),
        ("host-x", SocketAddrV4::new(NODE, 30_080)),
    ] {
        held.push((format!("{from} to {to}"), talk(&lab, from, to).0));
    }
    let udp = lab.within("pod-a", || UdpSocket::bind("0.0.0.0:0").unwrap());
    udp.connect(peer("host-x")).unwrap();
    let seen = udp_exchange(&udp, 100).unwrap();

    // One connection that never rests while the daemon takes over.
    let (mut busy, _) = talk(&lab, "pod-a", SocketAddrV4::new(lab.address("host-x"), PEER));
    let stop = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let (mut longest, mut count) = (Duration::ZERO, 0u32);
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                assert!(is_open(&mut busy), "the busy connection after {count} rounds");
                longest = longest.max(begun.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(count > 20, "{count} rounds");
            longest
        });
        lab.start_daemon(&[]);
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        rounds.join().expect("the busy connection")
    });
    assert!(longest < Duration::from_secs(2), "a round took {longest:?}");

    let before = lab.stats();
    for (what, stream) in &mut held {
        assert!(is_open(stream), "{what}");
    }
    assert_eq!(udp_exchange(&udp, 100).unwrap(), seen, "the peer sees the same port");
    let delta = lab.since(&before);
    delta.assert_drops(&[]);
    delta.assert(&[("engine.flows_opened", 0), ("engine.ports_taken", 0)]);
    // The engine carries them now, both ways; the node port's come by the kernel.
    delta.assert_at_least(&[("engine.to_eni", MANY + 2), ("engine.to_pod", MANY + 7)]);
    delta.assert_at_least(&[("engine.to_kernel_pod", 1)]);
    let imported = lab.flows(&[]).len();
    assert!(imported >= held.len() + 2, "{imported} flows");

    // What the kernel chose outside of our set is steered for as long as a flow has it.
    let foreign = held.iter().position(|(what, _)| what.contains("outside as")).expect("one");
    assert!(is_open(&mut held[foreign].1));
    drop(held);
    drop(busy);
    // A connection of now is the engine's from its beginning.
    let (_stream, seen) = talk(&lab, "pod-c", SocketAddrV4::new(lab.address("host-x"), PEER));
    assert!(ours(&seen.port()), "{seen}");
}

#[test]
fn nothing_is_taken_over_when_off_nor_after_a_daemon_that_was_killed() {
    let lab = Lab::up("b", &["--dataplane", "iptables"]);
    let to = SocketAddrV4::new(lab.address("host-x"), PEER);
    let (mut stream, _) = talk(&lab, "pod-a", to);
    let daemon = lab.start_daemon(&["--import-conntrack", "off"]);
    assert_eq!(lab.stats().of("engine.flows_imported"), 0);
    assert!(!is_open(&mut stream), "nobody knows its port");
    assert!(lab.stats().of("drop.no_flow") > 0);
    kill(daemon);
    // What it left behind says that the kernel knows nothing new.
    lab.start_daemon(&[]);
    assert_eq!(lab.stats().of("engine.flows_imported"), 0);
}
