//! The same node, however its packets are taken: AF_XDP natively and generically, tc and the trunk, by tcx and by clsact,
//! with one worker and two over one queue, two and four. What peers see is the same, and the counters say which way the
//! packets took.

use std::net::Ipv4Addr;

use sluice_tests::lab::{Lab, NODE, PEER, eventually, tcp_peer, udp_peer};
use sluice_tests::node::{by_queue, report};

/// Flows of one run of [`traffic`]: five of each pod (two TCP, three UDP), pod to pod, a client's, the echoes. Each is
/// opened once, whatever the mode.
const FLOWS: i64 = 13;

#[test]
fn tc_and_the_trunk_take_the_enis_packets_too() {
    let lab = Lab::up("t", &["--sluiced-arg=--eni-port=tap", "--sluiced-arg=--workers=2"]);
    assert_modes(&lab, "tap", 2);
    let delta = traffic(&lab);
    delta.assert_at_least(&[
        ("bpf.trunk_redirect_eni", 20),
        ("bpf.eni_in_redirect_port", 5),
        ("bpf.eni_in_redirect_pod", 5),
        ("bpf.eni_in_redirect_fragment", 2),
    ]);
    delta.assert(&[("bpf.xdp_redirect_port", 0), ("bpf.xdp_redirect_pod", 0)]);
    assert!(by_queue(&lab, "eni0", "rx_packets").is_empty(), "there is no AF_XDP socket");
    assert!(!lab.sh("node", "ip link show eni0").contains("xdp"));
}

#[test]
fn generic_xdp_works_and_gives_the_offloads_back() {
    let gro = |lab: &Lab| lab.sh("node", "ethtool -k eni0").contains("generic-receive-offload: on");
    let lab = Lab::up("g", &["--sluiced-arg=--xdp-mode=generic", "--sluiced-arg=--eni-port=xdp"]);
    assert_modes(&lab, "xdp generic", 1);
    assert!(lab.sh("node", "ip link show eni0").contains("xdpgeneric"));
    assert!(!gro(&lab), "a super-packet does not fit a frame");
    assert_taken_by_xdp(&traffic(&lab));
    stop(&lab);
    assert!(gro(&lab), "as it was before");
}

#[test]
fn clsact_does_what_tcx_does() {
    let lab = Lab::up("c", &["--sluiced-arg=--force-clsact"]);
    assert_modes(&lab, "xdp native", 1);
    assert_eq!(report(&lab)["tc"], "clsact");
    let filters = lab.sh("node", &format!("tc filter show dev {} ingress", lab.host_interface("pod-a")));
    assert!(filters.contains("bpf"), "{filters}");
    assert_taken_by_xdp(&traffic(&lab));
    stop(&lab);
    let left = lab.sh(
        "node",
        "for i in $(ls /sys/class/net); do tc filter show dev $i ingress; tc filter show dev $i egress; done",
    );
    assert_eq!(left, "", "filters stay behind");
}

#[test]
fn one_worker_serves_four_queues() {
    queues("4", "1");
}

#[test]
fn two_workers_share_one_queue() {
    queues("1", "2");
}

#[test]
fn two_workers_share_two_queues() {
    queues("2", "2");
}

#[test]
fn two_workers_share_four_queues() {
    queues("4", "2");
}

fn queues(queues: &str, workers: &str) {
    let lab = Lab::up("q", &["--queues", queues, "--sluiced-arg", &format!("--workers={workers}")]);
    let allowed = std::thread::available_parallelism().expect("CPUs").get();
    assert_modes(&lab, "xdp native", workers.parse::<usize>().expect("a number").min(allowed));
    for eni in report(&lab)["enis"].as_array().expect("ENIs") {
        assert_eq!(eni["queues"].to_string(), queues, "{eni}");
    }
    assert_taken_by_xdp(&traffic(&lab));

    // Flow by flow, so that every queue of the trunk and of the ENI gets some: all of them answer.
    lab.within("pod-a", || {
        for _ in 0..24 {
            tcp_peer(None, lab.address("host-x"), PEER);
        }
    });
    let sent = by_queue(&lab, "eni0", "tx_packets");
    assert_eq!(sent.len().to_string(), queues);
    let trunk = by_queue(&lab, "trunk", "rx_packets");
    assert!(trunk.values().all(|packets| *packets > 0), "a worker's queue of the trunk is idle: {trunk:?}");
}

#[track_caller]
fn assert_modes(lab: &Lab, mode: &str, workers: usize) {
    let report = report(lab);
    assert_eq!(report["workers"].as_array().expect("workers").len(), workers, "{report}");
    for eni in report["enis"].as_array().expect("ENIs") {
        assert_eq!(eni["mode"], mode, "{report}");
    }
}

#[track_caller]
fn assert_taken_by_xdp(delta: &sluice_tests::lab::Delta) {
    delta.assert_at_least(&[
        ("bpf.xdp_redirect_port", 5),
        ("bpf.xdp_redirect_pod", 5),
        ("bpf.xdp_redirect_fragment", 2),
        ("eni0.rx_packets", 5),
        ("eni0.tx_packets", 5),
        ("eni1.rx_packets", 5),
        ("eni1.tx_packets", 5),
    ]);
    delta.assert(&[("bpf.trunk_redirect_eni", 0), ("bpf.eni_in_redirect_port", 0)]);
}

/// Every kind of conversation once; asserts what the peers saw and that nothing was dropped.
#[track_caller]
fn traffic(lab: &Lab) -> sluice_tests::lab::Delta {
    let before = lab.stats();
    let (outside, inside) = (lab.address("host-x"), lab.address("host-v"));
    for pod in ["pod-a", "pod-c"] {
        let own = lab.address(pod);
        let talk = |to: Ipv4Addr, sizes: &[usize]| {
            lab.within(pod, || {
                let udp = sizes.iter().map(|size| *udp_peer(None, to, *size).ip());
                std::iter::once(*tcp_peer(None, to, PEER).ip()).chain(udp).collect::<Vec<_>>()
            })
        };
        assert_eq!(talk(outside, &[100, 4_000]), [NODE; 3], "{pod}: translated, 4000 bytes in fragments");
        assert_eq!(talk(inside, &[100]), [own; 2], "{pod}: not translated inside the VPC");
    }
    let (a, c) = (lab.address("pod-a"), lab.address("pod-c"));
    assert_eq!(*lab.within("pod-a", || tcp_peer(None, c, PEER)).ip(), a, "from pod to pod");
    let client = lab.within("host-x", || tcp_peer(None, c, PEER));
    assert_eq!(*client.ip(), outside, "a client from outside");
    lab.sh("pod-a", &format!("ping -q -c 2 -i 0.1 -W 2 {outside}"));
    let delta = lab.since(&before);
    delta.assert(&[("engine.flows_opened", FLOWS)]);
    delta.assert_drops(&[]);
    assert_eq!(lab.source_check_drops(), 0, "every packet left by the ENI that owns its source");
    delta
}

/// Ends the daemon as its supervisor would, and waits for it.
fn stop(lab: &Lab) {
    let pid = nix::unistd::Pid::from_raw(lab.pid("sluiced"));
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("the daemon lives");
    eventually("the daemon ends", || nix::sys::signal::kill(pid, None).is_err());
}

#[test]
fn the_number_of_workers_may_change_with_a_restart() {
    let lab = Lab::up("w", &["--queues", "2", "--sluiced-arg=--workers=2"]);
    assert_modes(&lab, "xdp native", 2);
    traffic(&lab);
    stop(&lab);
    lab.start_daemon(&["--workers", "1"]);
    assert_modes(&lab, "xdp native", 1);
    traffic(&lab);
    // Killed: trunk, programs and links are adopted by one with another number.
    let pid = i32::try_from(report(&lab)["pid"].as_i64().expect("a pid")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("it lives");
    eventually("it is gone", || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_err());
    lab.start_daemon(&["--workers", "2"]);
    assert_modes(&lab, "xdp native", 2);
    traffic(&lab);
    lab.within("node", || tcp_peer(None, lab.address("pod-a"), PEER));
}
