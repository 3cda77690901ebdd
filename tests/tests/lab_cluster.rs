//! A node that follows an API server: pods by the CNI plugin, policies by the watch, real packets; with an API server that
//! is slow, away, or forgets, and an agent that is restarted meanwhile.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::fakes::kubernetes::FakeApiServer;
use sluice_tests::fakes::kubernetes::faults::{Fault, What};
use sluice_tests::fakes::kubernetes::kinds;
use sluice_tests::lab::cni::Sandbox;
use sluice_tests::lab::{
    Lab, NODE, PATIENCE, PEER, Running, Server, connect, eventually, greeting, is_open, program, tcp_peer,
};

/// A lab whose agent follows an API server in the node's namespace.
struct Bed {
    lab: Lab,
    server: FakeApiServer,
    files: tempfile::TempDir,
}

impl Bed {
    fn up(tag: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let empty = files.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let args = ["--pods", "0", "--spare-addresses", "6", "--manifests", empty.to_str().unwrap()];
        let lab = Lab::up(tag, &args);
        // The lab's own agent follows a directory.
        lab.stop_agent();
        for file in ["net.d/05-sluice.conflist", "cni/ready"] {
            let _ = std::fs::remove_file(lab.path(file));
        }
        let server = lab.within("node", || FakeApiServer::start().unwrap());
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: s, user: u}}}}]\n\
             clusters: [{{name: s, cluster: {{server: \"{}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
            server.url()
        );
        std::fs::write(files.path().join("kubeconfig"), kubeconfig).unwrap();
        let bed = Self { lab, server, files };
        for name in ["lab", "other"] {
            bed.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        }
        bed.apply(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": bed.lab.namespace("node") },
            "status": { "addresses": [{ "type": "InternalIP", "address": NODE }] },
        }));
        bed
    }

    fn apply(&self, manifest: &Value) {
        self.server.apply(manifest).unwrap();
    }

    /// A pod that is bound to this node and has no address yet, as kubelet finds it; and its sandbox.
    fn pod(&self, name: &str) -> Sandbox {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "lab", "name": name, "labels": { "app": name } },
            "spec": { "nodeName": self.lab.namespace("node"), "containers": [{ "name": "c", "image": "i" }] },
        }));
        let pods = kinds::of_path("", "v1", "pods").unwrap();
        let object = self.server.world(|world| world.object(pods, "lab", name).unwrap());
        let mut sandbox = Sandbox::new(&self.lab, name, name);
        sandbox.uid = object.value(pods)["metadata"]["uid"].as_str().unwrap().to_owned();
        sandbox
    }

    /// Pods `to` take nothing but from pods `from`.
    fn only(&self, to: &str, from: &str) {
        self.apply(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "lab", "name": format!("{to}-takes-{from}") },
            "spec": {
                "podSelector": { "matchLabels": { "app": to } },
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": from } } }] }],
            },
        }));
    }

    fn start_agent(&self) -> Running {
        let mut agent = self.lab.agent(&program("sluice-agent"));
        agent.arg("--kubeconfig").arg(self.files.path().join("kubeconfig"));
        agent.arg("--inventory").arg(self.lab.path("inventory.toml"));
        self.lab.on_the_node(agent.arg("--status").arg(self.files.path().join("status.json")))
    }

    fn paths(&self) -> usize {
        sluice_tests::node::pods(&self.lab).len()
    }

    fn listen(&self, member: &str) -> Server {
        Server::tcp(&self.lab.namespace(member), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PEER))
    }

    fn reaches(&self, from: &str, to: Ipv4Addr) -> bool {
        let to = SocketAddrV4::new(to, PEER);
        self.lab.within(from, || {
            connect(None, to, Duration::from_millis(300))
                .is_ok_and(|mut stream| greeting(&mut stream).is_ok())
        })
    }
}

#[test]
fn pods_and_policies_of_an_api_server_are_in_force_when_add_returns() {
    let bed = Bed::up("a");
    let (p, q) = (bed.pod("p"), bed.pod("q"));
    bed.only("q", "p");
    // Not ready while one watch has not synced: no configuration, and the plugin says so.
    let denied = Fault {
        resource: Some("services".into()),
        verb: None,
        times: None,
        what: What::Fail { status: 403 },
    };
    bed.server.fault(denied);
    let _agent = bed.start_agent();
    eventually("the agent answers", || bed.lab.path("cni/agent.sock").exists());
    let error = p.call("STATUS", &p.configuration("1.1.0")).unwrap_err();
    assert_eq!(error["code"], 50, "{error}");
    assert!(!bed.lab.path("net.d/05-sluice.conflist").exists());
    bed.server.faults().clear();
    eventually("the CNI configuration is there", || {
        bed.lab.path("net.d/05-sluice.conflist").exists() || {
            std::thread::sleep(Duration::from_millis(500));
            bed.lab.path("net.d/05-sluice.conflist").exists()
        }
    });
    let (at_p, at_q) = (p.add(), q.add());
    let servers = [bed.listen("q")];
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, at_q, PEER)).ip(), at_p);
    // A pod that the watch tells late is asked for, and denied from its first packet on.
    bed.server.fault(Fault::new("pods", "watch", 1, What::Lag { millis: 3_000 }));
    bed.server.restart();
    std::thread::sleep(Duration::from_millis(300));
    let r = bed.pod("r");
    let at_r = r.add();
    assert!(!bed.reaches("r", at_q), "r is not among those that q takes");
    assert_eq!(*bed.lab.within("r", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_r);
    assert_eq!(*bed.lab.within("r", || tcp_peer(None, bed.lab.address("host-x"), PEER)).ip(), NODE);
    bed.only("q", "r");
    eventually("q takes r", || bed.reaches("r", at_q));
    drop(servers);
    let stranger = Sandbox::new(&bed.lab, "s", "nobody");
    let error = stranger.call("ADD", &stranger.configuration("1.0.0")).unwrap_err();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("no pod lab/nobody"), "{error}");
    assert_eq!(bed.lab.source_check_drops(), 0);
}

#[test]
fn an_api_server_that_is_away_stops_no_packet_and_no_pod_that_is_known() {
    let bed = Bed::up("b");
    let (p, q, r) = (bed.pod("p"), bed.pod("q"), bed.pod("r"));
    bed.only("q", "p");
    let agent = bed.start_agent();
    bed.lab.has_a_conflist();
    let (_, at_q) = (p.add(), q.add());
    let _server = bed.listen("q");
    let to = SocketAddrV4::new(bed.lab.address("host-x"), PEER);
    let mut stream = bed.lab.within("p", || connect(None, to, PATIENCE)).unwrap();
    greeting(&mut stream).unwrap();
    bed.server.go_away();
    let at_r = r.add();
    assert_eq!(*bed.lab.within("r", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_r);
    let late = Sandbox::new(&bed.lab, "late", "late");
    let error = late.call("ADD", &late.configuration("1.0.0")).unwrap_err();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("API server"), "{error}");
    // A new agent knows nothing, and says nothing: the daemon keeps what it has.
    drop(agent);
    let _agent = bed.start_agent();
    eventually("the agent answers", || bed.lab.path("cni/agent.sock").exists());
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_open(&mut stream));
    assert_eq!(bed.paths(), 3);
    assert!(bed.reaches("p", at_q) && !bed.reaches("r", at_q), "policy is never off");
    assert_eq!(
        p.call("STATUS", &p.configuration("1.1.0")),
        Ok(Value::Null),
        "it was ready in an earlier life"
    );
    bed.lab.within("node", || bed.server.come_back().unwrap());
    bed.only("q", "r");
    // The longest wait between two attempts is not over yet at first.
    let opened = (0..60).any(|_| {
        std::thread::sleep(Duration::from_millis(500));
        bed.reaches("r", at_q)
    });
    assert!(opened, "the new agent has never heard of the new policy");
    assert!(is_open(&mut stream));
    assert_eq!(bed.paths(), 3, "leases and veths of before are this agent's, too");
}

#[test]
fn a_pod_that_is_deleted_by_force_keeps_path_and_policy_until_its_sandbox_goes() {
    let bed = Bed::up("c");
    let (p, q) = (bed.pod("p"), bed.pod("q"));
    bed.only("q", "p");
    let _agent = bed.start_agent();
    bed.lab.has_a_conflist();
    let (_, at_q) = (p.add(), q.add());
    let _server = bed.listen("q");
    assert!(bed.reaches("p", at_q));
    let node = bed.lab.namespace("node");
    let address = bed.server.address();
    let path = "/api/v1/namespaces/lab/pods/q?gracePeriodSeconds=0";
    let script = format!(
        "printf 'DELETE {path} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' | timeout 2 bash -c 'exec 3<>/dev/tcp/{}/{}; cat >&3; head -1 <&3'",
        address.ip(),
        address.port()
    );
    let said = Command::new("ip").args(["netns", "exec", &node, "bash", "-c", &script]).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("200"), "{said:?}");
    std::thread::sleep(Duration::from_millis(300));
    assert!(bed.reaches("p", at_q), "its path is there");
    q.del();
    eventually("one pod is left", || bed.paths() == 1);
}
