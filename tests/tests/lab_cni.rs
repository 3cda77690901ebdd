//! Pods that come and go by the CNI plugin, on the lab's node: the built plugin called as a runtime calls it, the agent, the
//! daemon, real namespaces, real packets.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_tests::lab::cni::{Sandbox, address, answered};
use sluice_tests::lab::{
    Echoes, Lab, NODE, PATIENCE, PEER, Running, Server, connect, eventually, greeting, is_open, program,
    sluice, tcp_peer, try_tcp_peer, udp_peer,
};

/// A lab whose pods are a CNI plugin's, and its manifests.
struct Bed {
    lab: Lab,
    manifests: tempfile::TempDir,
}

impl Bed {
    fn up(tag: &str, spare: &str, pods: &[&str]) -> Self {
        let manifests = tempfile::tempdir().unwrap();
        let bed = |lab| Self { lab, manifests: tempfile::tempdir().unwrap() };
        for name in pods {
            std::fs::write(manifests.path().join(format!("{name}.yaml")), pod(name)).unwrap();
        }
        let directory = manifests.path().to_str().unwrap();
        let args = ["--pods", "0", "--spare-addresses", spare, "--manifests", directory];
        let lab = Lab::up(tag, &args);
        let bed = Self { manifests, ..bed(lab) };
        bed.lab.has_a_conflist();
        bed
    }

    fn write(&self, file: &str, text: &str) {
        let beside = self.manifests.path().join(".beside");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.manifests.path().join(file)).unwrap();
    }

    /// Starts an agent as the lab did.
    fn start_agent(&self) -> Running {
        let mut agent = self.lab.agent(&program("sluice-agent"));
        agent.arg("--manifests").arg(self.manifests.path());
        self.lab.on_the_node(agent.arg("--inventory").arg(self.lab.path("inventory.toml")))
    }

    /// Waits until these pods have paths, and no others: a DEL waits for no acknowledgement.
    #[track_caller]
    fn has_paths(&self, wanted: &[Ipv4Addr]) {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        eventually(&format!("{wanted:?} have paths"), || self.paths() == wanted);
    }

    fn paths(&self) -> Vec<Ipv4Addr> {
        let pods = sluice_tests::node::pods(&self.lab);
        let mut ips: Vec<_> = pods.iter().map(|pod| pod["ip"].as_str().unwrap().parse().unwrap()).collect();
        ips.sort_unstable();
        ips
    }
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: lab, name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{containers: [{{name: c, image: i}}]}}\n"
    )
}

/// Pods `to` take nothing but from pods `from`.
fn only(to: &str, from: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: lab, name: only-{from}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {to}}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]}}]}}\n"
    )
}

fn listen(bed: &Bed, sandbox: &Sandbox) -> Server {
    let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PEER);
    Server::tcp(&bed.lab.namespace(&sandbox.container), at)
}

#[test]
fn a_pod_that_is_added_has_its_address_its_policy_and_its_packets() {
    let bed = Bed::up("a", "4", &["p", "q", "r"]);
    let lab = &bed.lab;
    bed.write("policy.yaml", &only("q", "p"));
    let before = lab.stats();
    let [p, q, r] = ["p", "q", "r"].map(|name| Sandbox::new(lab, name, name));
    let result = p.call("ADD", &p.configuration("1.1.0")).unwrap();
    let (at_p, at_q, at_r) = (address(&result), q.add(), r.add());
    assert_eq!(bed.paths(), {
        let mut all = vec![at_p, at_q, at_r];
        all.sort_unstable();
        all
    });
    let interfaces = &result["interfaces"];
    assert_eq!((&interfaces[1]["name"], &interfaces[1]["mtu"]), (&json!("eth0"), &json!(1500)), "{result}");
    let inside: Value = serde_json::from_str(&lab.sh("p", "ip -j link show eth0")).unwrap();
    assert_eq!(inside[0]["address"], interfaces[1]["mac"]);

    let servers = [listen(&bed, &q), listen(&bed, &r)];
    // Policy is in force with the first packet, and the pod's own address arrives.
    assert_eq!(*lab.within("p", || tcp_peer(None, at_q, PEER)).ip(), at_p);
    let denied = lab.within("r", || connect(None, SocketAddrV4::new(at_q, PEER), Duration::from_millis(300)));
    assert!(denied.is_err(), "r is not among those that q takes");
    assert_eq!(*lab.within("q", || tcp_peer(None, at_r, PEER)).ip(), at_q);
    drop(servers);
    // Inside of the VPC with the pod's address, outside with the node's; the node reaches its pod, the pod the node.
    assert_eq!(*lab.within("p", || tcp_peer(None, lab.address("host-v"), PEER)).ip(), at_p);
    assert_eq!(*lab.within("p", || tcp_peer(None, lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(*lab.within("q", || udp_peer(None, lab.address("host-x"), 1_400)).ip(), NODE);
    assert_eq!(*lab.within("p", || tcp_peer(None, NODE, PEER)).ip(), at_p);
    lab.sh("node", &format!("ping -c 1 -W 1 {at_p}"));
    assert_eq!(lab.source_check_drops(), 0);
    // Asserts that no packet is unaccounted for.
    let _ = lab.since(&before);

    let shown = |what: &str, output: &str| {
        let done = sluice(&[what, "--lab", lab.name()], &["--output", output]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    assert!(shown("pods", "table").contains(&at_p.to_string()));
    assert!(shown("leases", "table").contains("3 of 8 addresses are leased"), "{}", shown("leases", "table"));
    let enis: Value = serde_json::from_str(&shown("enis", "json")).unwrap();
    assert_eq!((&enis["ready"], &enis["enis"][0]["link"]), (&json!(true), &json!("eni0")), "{enis}");
    assert_eq!(enis["leases"][0]["pod"]["namespace"], "lab");

    let check = |version: &str| {
        let mut configuration = p.configuration(version);
        configuration["prevResult"] = result.clone();
        p.call("CHECK", &configuration)
    };
    assert_eq!(check("1.1.0"), Ok(Value::Null));
    lab.sh("p", "ip route del default");
    assert_eq!(check("0.4.0").unwrap_err()["code"], 100);

    let link = interfaces[0]["name"].as_str().unwrap();
    p.del();
    p.del();
    assert!(!lab.try_sh("node", &format!("ip link show {link}")).status.success(), "the veth is gone");
    assert_eq!(lab.sh("node", &format!("ip route show {at_p}")), "");
    bed.has_paths(&[at_q, at_r]);
    let again = p.add();
    assert_ne!(again, at_p, "an address cools down");
    assert_eq!(*lab.within("p", || tcp_peer(None, lab.address("host-v"), PEER)).ip(), again);
}

#[test]
fn a_new_sandbox_takes_over_and_what_comes_late_for_the_old_one_finds_nothing() {
    let bed = Bed::up("s", "4", &["p"]);
    let (old, new) = (Sandbox::new(&bed.lab, "old", "p"), Sandbox::new(&bed.lab, "new", "p"));
    let before = old.add();
    let after = new.add();
    assert_ne!(before, after);
    assert_eq!(bed.paths(), [after]);
    old.del();
    assert_eq!(*bed.lab.within("new", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), after);
    // Not listed is gone, in its own network alone.
    let gc = |network: &str, valid: Value| {
        let mut configuration = new.configuration("1.1.0");
        configuration["name"] = network.into();
        configuration["cni.dev/valid-attachments"] = valid;
        assert_eq!(new.call("GC", &configuration), Ok(Value::Null));
    };
    gc("another", json!([]));
    gc("sluice", json!([{ "containerID": "new", "ifname": "eth0" }]));
    bed.has_paths(&[after]);
    gc("sluice", json!([]));
    bed.has_paths(&[]);
}

#[test]
fn what_cannot_be_added_is_told_with_its_code_and_leaves_nothing() {
    let bed = Bed::up("e", "1", &["p", "q", "r"]);
    let links = || bed.lab.sh("node", "ip -o link show type veth");
    let before = links();
    let stranger = Sandbox::new(&bed.lab, "x", "stranger");
    let error = stranger.call("ADD", &stranger.configuration("0.4.0")).unwrap_err();
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(11), &json!("0.4.0")), "{error}");
    assert!(error["msg"].as_str().unwrap().contains("no pod lab/stranger"), "{error}");
    assert_eq!(links(), before);
    let [p, q, r] = ["p", "q", "r"].map(|name| Sandbox::new(&bed.lab, name, name));
    bed.lab.sh("p", "ip link add eth0 type veth peer name eth9");
    let error = p.call("ADD", &p.configuration("1.0.0")).unwrap_err();
    assert!(error["code"] == 4 && error["msg"].as_str().unwrap().contains("eth0 is already in"), "{error}");
    bed.lab.sh("p", "ip link del eth0");
    // The stranger's address cools down: one ENI's is left.
    p.add();
    let error = q.call("ADD", &q.configuration("1.0.0")).unwrap_err();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("no free address"), "{error}");
    let twice = p.call("ADD", &p.configuration("1.0.0")).unwrap_err();
    assert_eq!(twice["code"], 4, "{twice}");
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), bed.paths()[0]);
    let garbage = r.call("ADD", &json!("nonsense")).unwrap_err();
    assert_eq!(garbage["code"], 6, "{garbage}");
    let unknown = r.call("ADD", &r.configuration("7.0.0")).unwrap_err();
    assert_eq!(unknown["code"], 1, "{unknown}");
    let versions = r.call("VERSION", &json!({ "cniVersion": "1.0.0" })).unwrap();
    assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

#[test]
fn a_restarting_agent_loses_no_connection_no_lease_and_makes_no_node_not_ready() {
    let bed = Bed::up("r", "4", &["p", "q", "r"]);
    let lab = &bed.lab;
    let [p, q, r] = ["p", "q", "r"].map(|name| Sandbox::new(lab, name, name));
    let (at_p, at_q) = (p.add(), q.add());
    let to = SocketAddrV4::new(lab.address("host-x"), PEER);
    let mut stream = lab.within("p", || connect(None, to, PATIENCE)).unwrap();
    greeting(&mut stream).unwrap();
    // An agent that is replaced loses no packet of a pod: each datagram is answered, while one goes and the next comes.
    let load = Echoes::start(lab, "p");
    bed.lab.stop_agent();
    assert!(is_open(&mut stream));
    assert_eq!(p.call("STATUS", &p.configuration("1.1.0")), Ok(Value::Null), "it has been ready before");
    let stood = Instant::now();
    q.del();
    assert!(stood.elapsed() < Duration::from_secs(6), "a pod can go without an agent");
    // An ADD that comes while the agent is away waits for the next one.
    let adding = r.begin("ADD", &r.configuration("1.0.0"));
    std::thread::sleep(Duration::from_millis(500));
    let _agent = bed.start_agent();
    let at_r = address(&answered(&adding.wait_with_output().unwrap()).unwrap());
    assert!(is_open(&mut stream));
    load.lost_none(500);
    assert_ne!(at_r, at_p);
    let paths = bed.paths();
    assert!(paths.contains(&at_p) && paths.contains(&at_r) && !paths.contains(&at_q), "{paths:?}");
    assert_eq!(p.call("STATUS", &p.configuration("1.1.0")), Ok(Value::Null));
    p.del();
    bed.has_paths(&[at_r]);
}

#[test]
fn a_hundred_adds_at_once() {
    let names: Vec<String> = (0..100).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let bed = Bed::up("h", "60", &names);
    let sandboxes: Vec<_> = names.iter().map(|name| Sandbox::new(&bed.lab, name, name)).collect();
    let calls: Vec<_> =
        sandboxes.iter().map(|sandbox| sandbox.begin("ADD", &sandbox.configuration("1.0.0"))).collect();
    let mut addresses: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let result = answered(&call.wait_with_output().unwrap());
            address(&result.unwrap_or_else(|error| panic!("{error}")))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 100);
    assert_eq!(bed.paths(), addresses);
    for sandbox in sandboxes.iter().step_by(9) {
        let to = SocketAddrV4::new(bed.lab.address("host-v"), PEER);
        bed.lab.within(&sandbox.container, || try_tcp_peer(None, to)).unwrap();
    }
    let calls: Vec<_> =
        sandboxes.iter().map(|sandbox| sandbox.begin("DEL", &sandbox.configuration("1.0.0"))).collect();
    for call in calls {
        answered(&call.wait_with_output().unwrap()).unwrap();
    }
    bed.has_paths(&[]);
}

#[test]
fn a_person_is_told_what_the_program_is() {
    let run = |args: &[&str]| Command::new(program("sluice-cni")).args(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("CNI_COMMAND"));
    assert_eq!(run(&["--wat"]).status.code(), Some(2));
    let alone = run(&[]);
    assert_eq!(alone.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert_eq!(error["code"], 4, "{error}");
}
