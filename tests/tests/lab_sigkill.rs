//! Without the daemon: what is Sluice's fails closed, or goes to the kernel where the operator chose that; the node and
//! its probes never notice; the next daemon takes over what is pinned (case I12, DESIGN "Life without the daemon").

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sluice_tests::lab::{
    Lab, NODE, NODE_ENI1, PATIENCE, PEER, Seen, Sniffer, connect, eventually, greeting, is_open, kill,
    tcp_peer, within,
};

/// Where the load goes: a port that tells it from everything else.
const LOAD: u16 = 4444;
const PODS: [&str; 2] = ["pod-a", "pod-c"];

#[test]
fn after_sigkill_nothing_of_a_pod_leaves_and_a_restart_resumes() {
    fails_closed("a", &[]);
}

#[test]
fn the_same_by_clsact_filters() {
    fails_closed("b", &["--force-clsact"]);
}

#[test]
fn the_same_without_af_xdp() {
    fails_closed("c", &["--eni-port=tap"]);
}

fn fails_closed(tag: &str, daemon: &[&str]) {
    let flags: Vec<_> = daemon.iter().map(|flag| format!("--sluiced-arg={flag}")).collect();
    let lab = Lab::up(tag, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let sniffer = lab.sniff();
    let (outside, inside) = (lab.address("host-x"), lab.address("host-v"));
    let before = lab.stats();

    // Connections from before: within the VPC, inward from outside, and one that is translated.
    let open = |from: &str, to: Ipv4Addr| {
        let mut stream = lab.within(from, || connect(None, SocketAddrV4::new(to, PEER), PATIENCE)).unwrap();
        greeting(&mut stream).unwrap();
        stream
    };
    let mut kept = [
        open("pod-c", inside),
        open("host-x", lab.address("pod-a")),
        open("pod-a", lab.address("pod-c")),
        open("node", lab.address("pod-c")),
        open("node", outside),
    ];
    let mut translated = open("pod-c", outside);
    assert!(is_open(&mut translated));

    assert_eq!(filters(&lab).is_empty(), !daemon.contains(&"--force-clsact"), "{}", filters(&lab));
    let load = Load::start(&lab);
    std::thread::sleep(Duration::from_millis(200));
    let alive = lab.stats().since(&before);
    alive.assert_at_least(&[("engine.to_eni", 100), ("engine.to_pod", 50)]);
    assert!(
        sniffer.all().iter().any(|p| p.left_the_node() && p.dport == LOAD),
        "the load leaves while it lives"
    );

    // A filter has no link that could be kept: its program is exchanged for the new one's.
    let lasting =
        |lab: &Lab| -> BTreeSet<_> { pins(lab).into_iter().filter(|p| !p.contains("clsact_")).collect() };
    let adopted = lasting(&lab);
    assert!(adopted.len() >= 8, "{adopted:?}");
    kill(lab.pid("sluiced"));
    // What the daemon had handed to the kernel already is translated and may still leave.
    std::thread::sleep(Duration::from_millis(30));
    let dead = (sniffer.mark(), load.sent());
    node_is_well(&lab);
    for pod in PODS {
        let to = SocketAddrV4::new(outside, PEER);
        let refused = lab.within(pod, || connect(None, to, Duration::from_millis(200)));
        assert!(refused.is_err(), "{pod} got out");
    }
    std::thread::sleep(Duration::from_millis(300));
    let while_dead = sniffer.since(dead.0);
    assert!(load.sent() > dead.1 + 200, "the load went on");
    let pods: Vec<_> = PODS.iter().map(|pod| lab.address(pod)).collect();
    let of_pods = |p: &&Seen| p.left_the_node() && (pods.contains(&p.src) || p.dport == LOAD);
    let leaked: Vec<_> = while_dead.iter().filter(of_pods).collect();
    assert!(leaked.is_empty(), "left without a daemon: {} packets, as {:?}", leaked.len(), leaked[0]);

    let mark = sniffer.mark();
    let pid = lab.start_daemon(daemon);
    assert_eq!(lasting(&lab), adopted, "links and maps are adopted, not made again");
    for pod in PODS {
        assert_eq!(*lab.within(pod, || tcp_peer(None, outside, PEER)).ip(), NODE, "{pod}: new connections");
        assert_eq!(*lab.within(pod, || tcp_peer(None, inside, PEER)).ip(), lab.address(pod));
        let to = lab.address(pod);
        assert_eq!(*lab.within("host-x", || tcp_peer(None, to, PEER)).ip(), outside, "inward to {pod}");
    }
    for (n, stream) in kept.iter_mut().enumerate() {
        assert!(is_open(stream), "connection {n} from before goes on");
    }
    node_is_well(&lab);
    // The translated one has lost its port: it is dropped by name.
    translated.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(!is_open(&mut translated));
    drop(load);
    let after = lab.stats();
    assert!(after.of("drop.no_flow") > 0);
    assert!(after.of("engine.to_eni") > 20);
    leaks(&sniffer, mark, &lab);
    leaks(&sniffer, 0, &lab);

    // SIGKILL again, and everything is taken away.
    kill(pid);
    detach(&lab);
}

/// Not one packet of the capture left with a pod's address to the outside, whatever happened meanwhile.
#[track_caller]
fn leaks(sniffer: &Sniffer, mark: usize, lab: &Lab) {
    let pods: Vec<_> = ["pod-a", "pod-b", "pod-c", "pod-d"].iter().map(|pod| lab.address(pod)).collect();
    let outside = lab.address("host-x");
    let inward = [LOAD, PEER];
    // Replies of a pod to who connected in keep its address, as they should: they come from the port that was asked.
    let leak = |p: &&Seen| {
        p.left_the_node()
            && pods.contains(&p.src)
            && p.dst == outside
            && !inward.contains(&p.sport)
            && p.icmp.is_none()
    };
    let packets = sniffer.since(mark);
    let leaked: Vec<_> = packets.iter().filter(leak).collect();
    assert!(leaked.is_empty(), "{} of {} untranslated, as {:?}", leaked.len(), packets.len(), leaked[0]);
}

/// What belongs to the node alone: probes of pods, its own connections, its own services.
#[track_caller]
fn node_is_well(lab: &Lab) {
    let outside = lab.address("host-x");
    for pod in PODS {
        let to = lab.address(pod);
        assert_eq!(*lab.within("node", || tcp_peer(None, to, PEER)).ip(), NODE, "a probe of {pod}");
        for node in [NODE, NODE_ENI1] {
            assert_eq!(*lab.within(pod, || tcp_peer(None, node, PEER)).ip(), to, "{pod} -> the node");
        }
    }
    assert_eq!(*lab.within("node", || tcp_peer(None, outside, PEER)).ip(), NODE, "the node -> outside");
    assert_eq!(*lab.within("host-x", || tcp_peer(None, NODE, PEER)).ip(), outside, "outside -> the node");
    lab.sh("host-x", &format!("ping -q -c 2 -i 0.02 -W 1 {NODE} | grep -q ' 2 received'"));
    // By an identifier of our set, and in fragments, which only a dead engine leaves to the kernel unseen.
    let ping = format!("ping -q -c 2 -i 0.02 -W 1 -e 2000 -s 4000 {outside} | grep -q ' 2 received'");
    eventually("the node's pings by an identifier of the set", || lab.try_sh("node", &ping).status.success());
}

/// Names and inode numbers of everything pinned (the kernel's own `*.debug` apart): a pin that is made again has another number.
fn pins(lab: &Lab) -> BTreeSet<String> {
    let found = Command::new("find")
        .arg(lab.path("bpf"))
        .args(["-type", "f", "!", "-name", "*.debug", "-printf", "%i %P\n"])
        .output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    found.lines().map(str::to_owned).collect()
}

/// Every tc filter of the node that is a BPF program.
fn filters(lab: &Lab) -> String {
    let all =
        "for i in $(ls /sys/class/net); do tc filter show dev $i ingress; tc filter show dev $i egress; done";
    let all = lab.sh("node", all);
    all.lines().filter(|line| line.contains("bpf")).map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn detach(lab: &Lab) {
    let bpffs = lab.path("bpf");
    let output = lab.sluiced(&["detach", "--bpffs", bpffs.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(pins(lab), BTreeSet::new());
    let links = lab.sh("node", "ip -d link show");
    assert!(!links.contains("xdp"), "{links}");
    assert!(!links.contains("sluice0"), "{links}");
    // The clsact qdisc stays: it may be another's.
    assert_eq!(filters(lab), "");
    // tcx links are seen by what they do: a pod's packet to the outside is the kernel's now, untranslated.
    let sniffer = lab.sniff();
    let to = lab.address("host-x");
    lab.within("pod-a", || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"unprotected", (to, 9)).unwrap());
    let left = sniffer.all().into_iter().filter(|p| p.left_the_node() && p.dport == 9).map(|p| p.src);
    assert_eq!(left.collect::<Vec<_>>(), [lab.address("pod-a")]);
}

#[test]
fn with_on_failure_kernel_the_kernel_has_the_traffic_meanwhile() {
    let lab = Lab::up("d", &["--dataplane", "none"]);
    let state = lab.path("state.toml");
    let text = std::fs::read_to_string(&state).unwrap();
    assert!(text.contains("on_failure = \"drop\""));
    std::fs::write(&state, text.replace("on_failure = \"drop\"", "on_failure = \"kernel\"")).unwrap();
    // What the operator keeps ready: VPC CNI's masquerade, with a counter.
    lab.nft(
        "table ip ready { counter masqueraded { }; \
         chain marks { type filter hook prerouting priority -90; policy accept;\n\
           iifname \"enia*\" ct state new fib daddr type != local ip daddr != { 10.0.0.0/16, 100.64.0.0/16 } \
             ct mark set ct mark or 0x80\n\
           iifname \"enia*\" meta mark set ct mark and 0x80 }; \
         chain nat { type nat hook postrouting priority srcnat; policy accept;\n\
           oifname \"eni0\" ip daddr != { 10.0.0.0/16, 100.64.0.0/16 } ip saddr != 10.0.9.5 \
             counter name masqueraded masquerade fully-random } }",
    );
    let masqueraded = || {
        let words = lab.sh("node", "nft list counter ip ready masqueraded");
        let mut words = words.split_whitespace().skip_while(|w| *w != "packets");
        words.nth(1).unwrap().parse::<u32>().unwrap()
    };
    let pid = lab.start_daemon(&[]);
    let sniffer = lab.sniff();
    everything_flows(&lab);
    assert_eq!(masqueraded(), 0, "while the daemon lives, the engine translates");

    kill(pid);
    everything_flows(&lab);
    node_is_well(&lab);
    let by_kernel = masqueraded();
    assert!(by_kernel >= 2, "the kernel has translated {by_kernel} connections");

    lab.start_daemon(&[]);
    let before = lab.stats();
    everything_flows(&lab);
    node_is_well(&lab);
    assert_eq!(masqueraded(), by_kernel, "the engine again");
    let delta = lab.since(&before);
    delta.assert_at_least(&[("engine.to_eni", 20), ("engine.to_pod", 20), ("engine.flows_opened", 6)]);
    leaks(&sniffer, 0, &lab);
    assert_eq!(lab.source_check_drops(), 0);
}

fn everything_flows(lab: &Lab) {
    let (outside, inside) = (lab.address("host-x"), lab.address("host-v"));
    for pod in PODS {
        let own = lab.address(pod);
        assert_eq!(*lab.within(pod, || tcp_peer(None, outside, PEER)).ip(), NODE, "{pod} -> outside");
        assert_eq!(*lab.within(pod, || tcp_peer(None, inside, PEER)).ip(), own, "{pod} -> in the VPC");
        assert_eq!(*lab.within("host-v", || tcp_peer(None, own, PEER)).ip(), inside, "inward to {pod}");
    }
}

/// Datagrams without end: pods outward and within the VPC, and both kinds of hosts to pods.
struct Load {
    state: std::sync::Arc<(AtomicBool, AtomicU32)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(lab: &Lab) -> Self {
        let state = std::sync::Arc::new((AtomicBool::new(false), AtomicU32::new(0)));
        let mut threads = Vec::new();
        let pairs = PODS.iter().flat_map(|pod| [(*pod, "host-x"), (*pod, "host-v"), ("host-v", *pod)]);
        for (from, to) in pairs.chain([("pod-a", "pod-c"), ("host-x", "pod-a")]) {
            let (namespace, to) = (lab.namespace(from), lab.address(to));
            let state = std::sync::Arc::clone(&state);
            threads.push(std::thread::spawn(move || {
                // New source ports all the time: new flows, not only old ones.
                while !state.0.load(Ordering::Relaxed) {
                    within(&namespace, || {
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        for _ in 0..5 {
                            // An ICMP error of the one before is no matter here.
                            let _ = socket.send_to(b"load", (to, LOAD));
                            state.1.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    });
                }
            }));
        }
        Self { state, threads }
    }

    fn sent(&self) -> u32 {
        self.state.1.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.0.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
