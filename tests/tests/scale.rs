//! Many pods, the last port, more load than there is room for, and a daemon that stays as small as it was.

use std::collections::BTreeSet;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_tests::lab::{
    ECHO, Lab, NODE, PATIENCE, PEER, connect, eventually, is_open, tcp_peer, udp_exchange, within,
};
use sluice_tests::node::{Usage, raw_stats, report};

#[test]
fn two_hundred_and_fifty_pods_start_soon_and_idle_for_nothing() {
    let lab = Lab::up("p", &["--pods", "250", "--enis", "2", "--queues", "4"]);
    let report = report(&lab);
    let queues: u64 =
        report["enis"].as_array().expect("ENIs").iter().filter_map(|e| e["queues"].as_u64()).sum();
    assert_eq!(queues, 8);
    let startup = report["startup_ms"].as_u64().expect("milliseconds");
    assert!(startup < 2_000, "it took {startup} ms to start");

    let pid = lab.pid("sluiced");
    let before = Usage::of(pid);
    std::thread::sleep(Duration::from_secs(5));
    let cores = Usage::of(pid).cores_since(&before);
    assert!(cores < 0.01, "it idles at {:.2} % of a core", cores * 100.0);

    let pods = lab.status()["pods"].as_array().expect("pods");
    let (stats, last) = (lab.stats(), pods.len() - 1);
    assert_eq!(last, 249);
    for pod in [&pods[0], &pods[100], &pods[last]] {
        let name = pod["name"].as_str().expect("a name");
        assert_eq!(*lab.within(name, || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE, "{name}");
    }
    let delta = lab.since(&stats);
    delta.assert(&[("engine.flows_opened", 3)]);
    delta.assert_drops(&[]);
}

#[test]
fn one_destination_is_filled_to_its_last_port_by_two_workers() {
    const PORTS: u16 = 96;
    let range = format!("2000-{}", 2_000 + PORTS - 1);
    let lab = Lab::up(
        "f",
        &["--queues", "2", "--sluiced-arg=--workers=2", "--snat-ports", &range, "--timeouts", "tcp_close=1"],
    );
    let (before, at) = (lab.stats(), SocketAddrV4::new(lab.address("host-x"), PEER));
    // Four pods at once, each a quarter of the ports and one more try than there are ports.
    let start = AtomicBool::new(false);
    let mut open: Vec<(SocketAddrV4, TcpStream, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = ["pod-a", "pod-b", "pod-c", "pod-d"]
            .into_iter()
            .map(|pod| {
                let (namespace, start) = (lab.namespace(pod), &start);
                scope.spawn(move || {
                    within(&namespace, || {
                        while !start.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                        }
                        let opened = (0..PORTS / 4).map(|_| open_one(at).expect("a port is left"));
                        opened.map(|(seen, stream)| (seen, stream, pod.to_owned())).collect::<Vec<_>>()
                    })
                })
            })
            .collect();
        start.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|t| t.join().expect("every connection is made")).collect()
    });
    let ports: BTreeSet<u16> = open.iter().map(|(seen, ..)| seen.port()).collect();
    assert!(open.iter().all(|(seen, ..)| *seen.ip() == NODE));
    assert_eq!(ports, (2_000..2_000 + PORTS).collect(), "every port exactly once");
    let opened = |worker: &serde_json::Value| worker["counters"]["flows_opened"].as_u64().expect("a counter");
    let workers: Vec<u64> =
        raw_stats(&lab)["workers"].as_array().expect("workers").iter().map(opened).collect();
    assert!(workers.len() == 2 && workers.iter().all(|n| *n > 0), "by one worker alone: {workers:?}");
    let delta = lab.since(&before);
    delta.assert(&[("engine.flows_opened", i64::from(PORTS))]);
    delta.assert_drops(&[]);

    // One more is refused by name; another destination has all ports of its own.
    let before = lab.stats();
    let refused = lab.within("pod-a", || connect(None, at, Duration::from_millis(700)));
    assert!(refused.is_err(), "no port is left");
    let delta = lab.since(&before);
    assert!(delta.of("drop.ports_exhausted") >= 1, "{:?}", delta.all());
    assert_eq!(delta.drops().len(), 1, "{:?}", delta.drops());
    let elsewhere = SocketAddrV4::new(*at.ip(), ECHO);
    lab.within("pod-a", || {
        connect(None, elsewhere, PATIENCE).expect("another port of that host is another destination")
    });

    // One is freed by RST and its short time; the next connection gets exactly that port.
    let (freed, stream, _) = open.remove(17);
    reset(&stream);
    drop(stream);
    eventually("the freed port is given out again", || {
        lab.within("pod-d", || open_one(at)).is_ok_and(|(seen, stream)| {
            let again = seen == freed;
            reset(&stream);
            again
        })
    });
    for (seen, stream, pod) in &mut open {
        assert!(is_open(stream), "{pod}'s connection by {seen} was harmed");
    }
}

/// A connection to the peer port and what it is seen as.
fn open_one(at: SocketAddrV4) -> std::io::Result<(SocketAddrV4, TcpStream)> {
    let mut stream = connect(None, at, PATIENCE)?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        std::io::Read::read_exact(&mut stream, &mut byte)?;
        line.push(byte[0]);
    }
    let seen = String::from_utf8_lossy(&line).trim().parse().map_err(std::io::Error::other)?;
    Ok((seen, stream))
}

/// Closing will send RST.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).expect("a socket");
}

#[test]
fn overload_costs_the_excess_only_and_the_daemon_stays_as_small() {
    let lab = Lab::up("o", &["--queues", "2", "--sluiced-arg=--workers=2"]);
    let pid = lab.pid("sluiced");
    let before = lab.stats();
    flood(&lab, Duration::from_secs(3));
    recovers(&lab);
    let delta = lab.since(&before);
    // What does not fit is dropped where there is no room, by name, and by nothing else.
    let known = ["drop.tx_full", "drop.handoff_full", "drop.no_frame"];
    let unexplained: Vec<_> = delta.drops().into_iter().filter(|(name, _)| !known.contains(name)).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert!(delta.of("engine.to_eni") > 50_000, "{:?}", delta.all());

    // What was needed once is there now: from here on nothing grows, a million packets long.
    let (small, from) = (Usage::of(pid).rss_kib, lab.stats().of("engine.in"));
    let since = Instant::now();
    while lab.stats().of("engine.in") - from < 1_000_000 {
        assert!(since.elapsed() < Duration::from_secs(40), "a million packets take too long here");
        flood(&lab, Duration::from_secs(2));
    }
    let large = Usage::of(pid).rss_kib;
    assert!(large < small + 4_096, "from {small} KiB to {large} KiB in a million packets");
    recovers(&lab);
    let delta = lab.since(&before);
    assert!(delta.of("engine.in") > 1_000_000, "and in is out, dropped and held: {:?}", delta.all());
}

/// Sends small datagrams from two pods as fast as they go.
fn flood(lab: &Lab, duration: Duration) {
    let to = (lab.address("host-x"), 9);
    std::thread::scope(|scope| {
        for pod in ["pod-a", "pod-c"] {
            let socket = lab.within(pod, || UdpSocket::bind("0.0.0.0:0").expect("a socket"));
            socket.connect(to).expect("a route");
            scope.spawn(move || {
                let until = Instant::now() + duration;
                while Instant::now() < until {
                    for _ in 0..256 {
                        // Nobody listens there: what comes back by ICMP is an error of some call, and no matter.
                        let _ = socket.send(&[0; 18]);
                    }
                }
            });
        }
    });
}

/// At once after the load everything passes again: connections, and 200 datagrams of 200.
#[track_caller]
fn recovers(lab: &Lab) {
    let since = Instant::now();
    let outside = lab.address("host-x");
    lab.within("pod-b", || {
        tcp_peer(None, outside, PEER);
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect((outside, PEER)).expect("a route");
        for n in 0..200 {
            udp_exchange(&socket, 64).unwrap_or_else(|e| panic!("datagram {n} after the load: {e}"));
        }
    });
    let took = since.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?} to recover");
}
