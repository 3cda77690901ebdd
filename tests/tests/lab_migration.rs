//! A node moves over from the VPC CNI with its pods in use, and back: its rules laid by hand, its leases in its own file.
//! Connections that the kernel has translated are never cut on the way over, whatever step a kill may come at.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sluice_tests::lab::cni::Sandbox;
use sluice_tests::lab::{
    Lab, NODE, PATIENCE, PEER, Running, connect, eventually, greeting, is_open, program, sluice,
};

const PODS: [&str; 4] = ["pod-a", "pod-b", "pod-c", "pod-d"];
/// What the lab's rules call pods' veths: as an operator with AWS_VPC_K8S_CNI_VETHPREFIX=enia has it.
const PREFIX: &str = "enia";

/// A node of the VPC CNI.
struct Node {
    lab: Lab,
    files: tempfile::TempDir,
}

impl Node {
    /// Veths as the VPC CNI names them, and its leases: the four pods' and one of a pod that is gone.
    fn of_the_vpc_cni(tag: &str) -> Self {
        let lab = Lab::up(tag, &["--dataplane", "iptables"]);
        let node = Self { lab, files: tempfile::tempdir().expect("a folder") };
        let mut allocations = Vec::new();
        for (i, pod) in PODS.into_iter().enumerate() {
            let (old, address) = (node.lab.host_interface(pod).to_owned(), node.lab.address(pod));
            node.lab.sh(
                "node",
                &format!(
                    "new={PREFIX}$(printf %s lab.{pod} | sha1sum | cut -c1-11)\n\
                     ip link set {old} down && ip link set {old} name $new && ip link set $new up\n\
                     ip route replace {address}/32 dev $new scope link"
                ),
            );
            allocations.push(allocation(pod, &format!("c{i}"), address));
        }
        node.lab.sh(
            "node",
            "ip rule add to 10.0.2.99 lookup main pref 512; ip rule add from 10.0.2.99 lookup 2 pref 1536",
        );
        allocations.push(allocation("gone", "c9", Ipv4Addr::new(10, 0, 2, 99)));
        let text = json!({ "version": "vpc-cni-ipam/1", "allocations": allocations }).to_string();
        std::fs::write(node.file("ipam.json"), text).expect("the leases");
        node
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.files.path().join(name)
    }

    /// `sluice-agent` in the node, with the files of this test.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("sluice-agent"));
        command.args(args).env("AWS_VPC_K8S_CNI_VETHPREFIX", PREFIX).stdin(Stdio::null());
        if ["adopt", "restore-vpc-cni"].contains(&args[0]) {
            command.env("AWS_VPC_K8S_CNI_BACKING_STORE", self.file("ipam.json"));
            command.arg("--record").arg(self.file("record.json"));
        }
        if args[0] == "adopt" {
            command.arg("--query-socket").arg(self.lab.path("run/query.sock"));
        }
        command
    }

    fn agent(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        self.lab.within("node", || command.output().expect("sluice-agent runs"))
    }

    /// As [`Node::agent`], and it must end with this code and these words.
    #[track_caller]
    fn ends(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.agent(args);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let logs = ["sluiced.log", "agent.log"]
            .map(|log| std::fs::read_to_string(self.file(log)).unwrap_or_default());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}\n{}", logs.join("\n"));
        for word in words {
            assert!(said.contains(word), "`{word}` is not in what {args:?} says:\n{said}");
        }
    }

    fn plan(&self) -> Value {
        let output = self.agent(&["adopt", "--dry-run", "--output", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn log(&self, name: &str) -> std::fs::File {
        std::fs::File::create(self.file(name)).expect("a log")
    }

    /// The daemon without a state.
    fn daemon(&self) -> Running {
        let mut daemon = Command::new(program("sluiced"));
        daemon.arg("run").arg("--run-dir").arg(self.lab.path("run")).arg("--bpffs").arg(self.lab.path("bpf"));
        daemon.stdin(Stdio::null()).stdout(self.log("sluiced.out")).stderr(self.log("sluiced.log"));
        self.lab.on_the_node(&mut daemon)
    }

    /// The lab's state without its pods, and what goes in their place.
    fn inventory(&self, pods: &str) {
        let state = std::fs::read_to_string(self.lab.path("state.toml")).expect("the lab's state");
        let own = state.split("[[pod]]").next().expect("a beginning");
        let rest = state.split("\n[nat]").nth(1).map(|nat| format!("\n[nat]{nat}")).unwrap_or_default();
        let text = format!("{own}\n{pods}\n{rest}\n[cluster]\nservice_cidrs = [\"172.20.0.0/16\"]\n");
        std::fs::write(self.file("inventory.toml"), text).expect("an inventory");
        let manifests = self.file("manifests");
        std::fs::create_dir_all(&manifests).expect("a folder");
        for pod in PODS {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: lab, name: {pod}}}\n\
                 spec: {{containers: [{{name: c, image: i}}]}}\n"
            );
            std::fs::write(manifests.join(format!("{pod}.yaml")), text).expect("a manifest");
        }
    }

    fn start_agent(&self, more: &[&str]) -> Running {
        let mut agent = self.command(&["--manifests"]);
        agent.arg(self.file("manifests")).arg("--inventory").arg(self.file("inventory.toml"));
        agent.arg("--state-socket").arg(self.lab.path("run/state.sock")).args(more);
        agent.env("AWS_VPC_K8S_CNI_BACKING_STORE", self.file("ipam.json"));
        agent.stdout(Stdio::null()).stderr(self.log("agent.log"));
        self.lab.on_the_node(&mut agent)
    }

    /// The daemon, and an agent that has the pods' places from the VPC CNI's leases.
    fn sluice(&self) -> (Running, Running) {
        let daemon = self.daemon();
        let places = self.agent(&["adopt", "--dry-run", "--output", "inventory"]);
        self.inventory(&String::from_utf8_lossy(&places.stdout));
        (daemon, self.start_agent(&[]))
    }

    fn rules(&self) -> BTreeSet<String> {
        self.lab
            .sh("node", "ip rule")
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// The rules of iptables, all tables that are looked at, and nftables' tables.
    fn tables(&self) -> BTreeSet<String> {
        let text = self.lab.sh(
            "node",
            "for t in nat mangle filter; do iptables -t $t -S | sed \"s/^/$t /\"; done; nft list tables ip",
        );
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn talk(&self, from: &str, to: SocketAddrV4) -> (TcpStream, SocketAddrV4) {
        self.lab.within(from, || {
            let mut stream = connect(None, to, PATIENCE).unwrap_or_else(|e| panic!("{from} -> {to}: {e}"));
            let seen = greeting(&mut stream).expect("a greeting");
            assert!(is_open(&mut stream), "{from} -> {to}");
            (stream, seen)
        })
    }
}

fn allocation(name: &str, container: &str, address: Ipv4Addr) -> Value {
    json!({
        "networkName": "aws-cni", "containerID": container, "ifName": "eth0", "ipv4": address,
        "allocationTimestamp": 1_764_000_000_000_000_000_u64,
        "metadata": { "k8sPodNamespace": "lab", "k8sPodName": name, "interfacesCount": 1 },
    })
}

fn is_aws(line: &str) -> bool {
    line.contains("AWS") || line.ends_with("aws-cni")
}

/// What the VPC CNI's pods have rules for; the rest is its shared one, ENIs' and others'.
fn of_pods(rules: &BTreeSet<String>) -> BTreeSet<String> {
    rules.iter().filter(|rule| rule.starts_with("512:") || rule.starts_with("1536:")).cloned().collect()
}

/// Answers as ipamd's introspection does, in the node, until told to stop.
fn with_ipamd(lab: &Lab, work: impl FnOnce()) {
    let listener = lab.within("node", || TcpListener::bind("127.0.0.1:61679").expect("ipamd's port"));
    let address = listener.local_addr().expect("an address");
    std::thread::scope(|scope| {
        let ipamd = scope.spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut request = [0; 512];
                let read = stream.read(&mut request).unwrap_or_default();
                if request[..read].starts_with(b"stop") {
                    return;
                }
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"TotalIPs\":8,\"AssignedIPs\":4,\"ENIs\":{}}");
            }
        });
        // Whatever fails, ipamd ends: the scope waits for it.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        lab.within("node", || {
            TcpStream::connect(address).expect("ipamd").write_all(b"stop").expect("it hears");
        });
        ipamd.join().expect("ipamd");
        if let Err(failure) = worked {
            std::panic::resume_unwind(failure);
        }
    });
}

#[test]
fn a_node_comes_over_with_its_connections_and_goes_back() {
    let node = Node::of_the_vpc_cni("v");
    let lab = &node.lab;
    // What is others': beside, before and between the VPC CNI's.
    lab.sh(
        "node",
        "iptables -t nat -I POSTROUTING -d 10.99.0.0/16 -m comment --comment mine -j RETURN\n\
         iptables -t mangle -A PREROUTING -i eni0 -p tcp --dport 9 -j MARK --set-mark 0x4000\n\
         ip rule add pref 1024 fwmark 0x4000/0xff00 lookup 7\n\
         ip rule add pref 1536 from 10.0.66.6 lookup 7\n\
         ip rule add pref 900 iif eni0 lookup 7",
    );
    lab.mark_node_ports();
    lab.nft(&format!(
        "table ip proxy {{ chain in {{ type nat hook prerouting priority dstnat; \
         ip daddr {NODE} tcp dport 30080 dnat to {}:{PEER}; }} }}",
        lab.address("pod-c")
    ));
    let (rules, tables) = (node.rules(), node.tables());
    let saved = lab.sh("node", "iptables-save");
    let host = |name: &str| SocketAddrV4::new(lab.address(name), PEER);
    let mut held: Vec<(String, TcpStream)> = Vec::new();
    for (from, to) in [("pod-a", host("host-x")), ("pod-c", host("host-x"))] {
        let (stream, seen) = node.talk(from, to);
        assert_eq!(*seen.ip(), NODE, "the kernel translates");
        held.push((format!("{from} to outside as {seen}"), stream));
    }
    for (from, to) in [
        ("pod-c", host("host-v")),
        ("pod-a", SocketAddrV4::new(lab.address("pod-d"), PEER)),
        ("host-v", SocketAddrV4::new(lab.address("pod-c"), PEER)),
        ("host-x", SocketAddrV4::new(NODE, 30_080)),
        ("node", SocketAddrV4::new(lab.address("pod-c"), PEER)),
    ] {
        held.push((format!("{from} to {to}"), node.talk(from, to).0));
    }
    let all_open = |held: &mut Vec<(String, TcpStream)>, when: &str| {
        for (what, stream) in held.iter_mut() {
            assert!(is_open(stream), "{what}, {when}");
        }
    };

    // While ipamd answers, nobody begins.
    with_ipamd(lab, || {
        let words = ["the VPC CNI still runs", "127.0.0.1:61679", "delete daemonset aws-node"];
        node.ends(&["adopt"], 3, &words);
        node.ends(&["restore-vpc-cni"], 3, &words);
        node.ends(&["--manifests", "nowhere", "--inventory", "nowhere"], 3, &words);
        node.ends(&["adopt", "--dry-run"], 0, &["still runs here", "4 pod(s) would come over"]);
    });
    // Without a daemon nothing goes: the kernel's rules are all that the pods have.
    node.ends(&["adopt"], 3, &["no daemon answers", "Nothing was removed"]);
    let plan = node.plan();
    assert_eq!(
        (plan["taken"].as_array().map(Vec::len), plan["takes_all"].as_bool()),
        (Some(4), Some(true)),
        "{plan}"
    );
    let c = plan["taken"].as_array().and_then(|t| t.iter().find(|t| t["name"] == "pod-c")).expect("pod-c");
    let mac = lab.sh("pod-c", "cat /sys/class/net/eth0/address");
    assert_eq!((c["mac"].as_str(), c["eni"].as_str()), (Some(mac.trim()), Some("eni1")), "{c}");
    assert!(plan["dropped"][0]["what"].as_str().is_some_and(|what| what.contains("lab/gone 10.0.2.99")));
    assert_eq!((node.rules(), node.tables()), (rules.clone(), tables.clone()), "nothing has changed");
    assert!(node.file("ipam.json").exists() && !node.file("record.json").exists());

    let (daemon, agent) = node.sluice();
    all_open(&mut held, "while Sluice begins");
    // Step by step, each in a process of its own, as if the one before had been killed.
    node.ends(&["adopt", "--wait", "30", "--steps", "0"], 0, &[]);
    all_open(&mut held, "with pods in force");
    let mut steps = 0;
    loop {
        let remain = node.plan()["steps"].as_array().map(Vec::len).expect("steps");
        if remain == 0 {
            break;
        }
        node.ends(&["adopt", "--steps", "1"], 0, &["1 step(s)"].map(|_| "step(s)"));
        let now = node.plan()["steps"].as_array().map(Vec::len).expect("steps");
        assert_eq!(now, remain - 1, "a step is done once");
        steps += 1;
        all_open(&mut held, &format!("after step {steps}"));
        let (_stream, seen) = node.talk("host-x", SocketAddrV4::new(NODE, 30_080));
        assert_eq!(*seen.ip(), lab.address("host-x"), "a node port's client after step {steps}");
    }
    // A record, 2 + 1 by source, nat, mangle, aws-cni, 1024, 4 + 1 by destination, the leases.
    assert_eq!(steps, 1 + 3 + 3 + 1 + 5 + 1);

    let expected: BTreeSet<_> = rules
        .iter()
        .filter(|rule| !of_pods(&rules).contains(*rule) || rule.contains("10.0.66.6"))
        .filter(|rule| !rule.contains("fwmark 0x80/0x80"))
        .cloned()
        .collect();
    assert_eq!(node.rules(), expected, "others' rules, and those of the ENIs, are as they were");
    let expected: BTreeSet<_> = tables.iter().filter(|line| !is_aws(line)).cloned().collect();
    assert_eq!(node.tables(), expected, "others' rules are as they were");
    assert!(!node.file("ipam.json").exists() && node.file("ipam.json.adopted").exists());
    node.ends(&["adopt"], 0, &["4 pod(s) come over", "0 step(s)"]);

    // New connections are Sluice's, from their first packet.
    let before = lab.stats();
    let (_new, seen) = node.talk("pod-c", host("host-x"));
    assert!(*seen.ip() == NODE && ((1024..30_000).contains(&seen.port()) || seen.port() >= 61_000), "{seen}");
    assert_eq!(*node.talk("pod-c", host("host-v")).1.ip(), lab.address("pod-c"));
    lab.since(&before).assert_at_least(&[("engine.flows_opened", 2)]);
    assert_eq!(lab.source_check_drops(), 0, "no packet left by a wrong ENI");

    // And back: leases and pods' rules first, then aws-node lays the rest, then Sluice goes.
    drop(agent);
    node.ends(&["restore-vpc-cni", "--dry-run"], 0, &["4 lease(s) go back"]);
    assert!(!node.file("ipam.json").exists());
    node.ends(&["restore-vpc-cni"], 0, &["4 lease(s) go back"]);
    let back: Value =
        serde_json::from_slice(&std::fs::read(node.file("ipam.json")).expect("leases")).expect("JSON");
    let live: Vec<_> = (0..4).map(|i| allocation(PODS[i], &format!("c{i}"), lab.address(PODS[i]))).collect();
    assert_eq!(back, json!({ "version": "vpc-cni-ipam/1", "allocations": live }));
    let gone: BTreeSet<_> = of_pods(&rules).into_iter().filter(|rule| !rule.contains("10.0.2.99")).collect();
    assert_eq!(of_pods(&node.rules()), gone, "the rules of live pods are as they were");
    node.ends(&["restore-vpc-cni"], 0, &["4 lease(s)"]);
    lay_as_aws_node_does(&node, &saved);
    all_open(&mut held, "with the VPC CNI's rules back");
    daemon.stop();
    let untranslated = ["pod-c to 10.0.77.7", "host-v to", "node to", "pod-a to 10.0.2.21"];
    for (what, stream) in &mut held {
        if untranslated.iter().any(|begin| what.starts_with(begin)) {
            assert!(is_open(stream), "{what}, after Sluice has gone");
        }
    }
    assert_eq!(*node.talk("pod-c", host("host-x")).1.ip(), NODE, "the kernel translates again");
    assert_eq!(*node.talk("pod-c", host("host-v")).1.ip(), lab.address("pod-c"));
    assert_eq!(lab.source_check_drops(), 0, "each by its own ENI");
}

/// What aws-node lays by itself when it starts.
fn lay_as_aws_node_does(node: &Node, saved: &str) {
    let lines = saved.lines().filter(|line| {
        line.starts_with(['*', 'C']) || line.contains("AWS-SNAT-CHAIN") || line.contains("AWS")
    });
    let script: String = lines.map(|line| format!("{line}\n")).collect();
    std::fs::write(node.file("aws.rules"), script).expect("rules");
    let path = node.file("aws.rules");
    node.lab.sh("node", &format!("iptables-restore --noflush {}", path.display()));
    node.lab.sh("node", "ip rule add fwmark 0x80/0x80 lookup main pref 1024");
}

#[test]
fn legacy_tables_are_read_where_they_are_and_a_corrupt_file_is_kept_aside() {
    let node =
        Node { lab: Lab::up("w", &["--dataplane", "none"]), files: tempfile::tempdir().expect("a folder") };
    let lab = &node.lab;
    lab.start_daemon(&[]);
    let legacy = || lab.sh("node", "iptables-legacy-save");
    assert!(node.plan()["steps"].as_array().is_some_and(Vec::is_empty), "a node that never had the VPC CNI");
    let names = || lab.sh("node", "cat /proc/net/ip_tables_names");
    assert_eq!(names(), "", "looking has made no table");
    lab.sh(
        "node",
        "iptables-legacy -t nat -N AWS-SNAT-CHAIN-0\n\
         iptables-legacy -t nat -A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j RETURN\n\
         iptables-legacy -t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0\n\
         iptables-legacy -t nat -A POSTROUTING -d 10.9.0.0/16 -m comment --comment mine -j RETURN",
    );
    std::fs::write(node.file("ipam.json"), r#"{"version":"vpc-cni-ipam/1","allocations":[]}"#)
        .expect("leases");
    node.ends(&["adopt"], 0, &["iptables-legacy, table nat: 1 rule(s), chain(s) AWS-SNAT-CHAIN-0"]);
    let left = legacy();
    assert!(!left.contains("AWS") && left.contains("--comment mine"), "{left}");

    std::fs::write(node.file("ipam.json"), "{\"version\":\"vpc-cni-ipam/1\",\"alloc").expect("half a file");
    node.ends(&["adopt", "--dry-run"], 3, &["is no file of the VPC CNI's leases"]);
    assert!(node.file("ipam.json").exists(), "looking moves nothing");
    node.ends(&["adopt"], 3, &["was put aside as", "drain the node"]);
    let kept = std::fs::read_dir(node.files.path()).expect("the folder").flatten();
    let kept: Vec<_> = kept.map(|f| f.file_name().to_string_lossy().into_owned()).collect();
    assert!(kept.iter().any(|name| name.starts_with("ipam.json.corrupt-")), "{kept:?}");
    // Nothing to give back.
    std::fs::remove_file(node.file("record.json")).expect("the record of nothing");
    node.ends(&["restore-vpc-cni"], 3, &["no lease of a live pod is known"]);
    assert!(!Path::new(&node.file("ipam.json")).exists());
    eventually("the daemon still answers", || sluice(&["stats", "--lab", lab.name()], &[]).status.success());
}

#[test]
fn an_agent_that_leases_takes_the_leases_over_and_ends_them() {
    let node = Node::of_the_vpc_cni("x");
    let lab = &node.lab;
    let (mut held, seen) = node.talk("pod-a", SocketAddrV4::new(lab.address("host-x"), PEER));
    assert_eq!(*seen.ip(), NODE);
    let _daemon = node.daemon();
    node.inventory("");
    // What EC2 would tell: the ENIs carry the pods' addresses, and one more.
    let mut inventory = std::fs::read_to_string(node.file("inventory.toml")).expect("the inventory");
    for (eni, pods, more) in
        [("eni0", ["pod-a", "pod-b"], ""), ("eni1", ["pod-c", "pod-d"], ", \"10.0.2.77\"")]
    {
        let [first, second] = pods.map(|pod| lab.address(pod));
        let name = format!("[[eni]]\nname = \"{eni}\"\n");
        assert!(inventory.contains(&name), "{inventory}");
        let more = format!("{name}pod_addresses = [\"{first}\", \"{second}\"{more}]\n");
        inventory = inventory.replace(&name, &more);
    }
    std::fs::write(node.file("inventory.toml"), inventory).expect("the inventory");
    let socket = lab.path("cni/agent.sock");
    let leasing = ["--cni-socket", socket.to_str().expect("a path")];
    let agent = node.start_agent(&leasing);
    // Its own introspection is where ipamd's was, and is not taken for it.
    node.ends(&["adopt", "--wait", "30"], 0, &["4 pod(s) come over", "taken over"]);
    assert!(is_open(&mut held), "a connection that the kernel had translated");
    assert!(!node.file("ipam.json").exists());
    let leases = || -> Vec<Value> {
        let shown = lab.within("node", || {
            let mut command = Command::new(program("sluice"));
            command.args(["leases", "--output", "json", "--cni-socket"]).arg(&socket);
            command.output().expect("sluice runs")
        });
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    };
    let pods: Vec<_> = leases().iter().map(|lease| lease["pod"]["name"].clone()).collect();
    assert_eq!(pods.len(), 4, "{pods:?}");
    assert!(
        leases()
            .iter()
            .all(|lease| lease["eni"] != "eni-unknown" && lease["attachment"]["network"] == "sluice")
    );
    let (_new, seen) = node.talk("pod-c", SocketAddrV4::new(lab.address("host-x"), PEER));
    assert!((1024..30_000).contains(&seen.port()) || seen.port() >= 61_000, "{seen}");

    // They outlive the agent, and end as every other does.
    agent.stop();
    let _agent = node.start_agent(&leasing);
    eventually("the next agent answers", || leases().len() == 4);
    assert!(is_open(&mut held), "a restart of the agent");
    let sandbox = Sandbox::new(lab, "c2", "pod-c");
    sandbox.del();
    assert_eq!(leases().len(), 3);
    let veth = format!("{PREFIX}$(printf %s lab.pod-c | sha1sum | cut -c1-11)");
    assert_eq!(lab.sh("node", &format!("ip link show {veth} 2>/dev/null | wc -l")).trim(), "0");
    assert!(is_open(&mut held), "the others go on");
    // Its address cools down; a new pod gets the one that nobody had.
    let new = Sandbox::new(lab, "fresh", "pod-c");
    assert_eq!(new.add(), Ipv4Addr::new(10, 0, 2, 77));
    assert_eq!(lab.source_check_drops(), 0);
}
