//! A node that needs nothing but Sluice: the agent finds its ENIs by IMDS and EC2, takes addresses from there, follows an API
//! server, and answers the CNI plugin. EC2 and the API server are the fakes, in the node's own namespace; the ENIs are the
//! lab's links, which get their MAC addresses from the fake as a hypervisor would give them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_tests::fakes::ec2::http::Endpoint;
use sluice_tests::fakes::ec2::metadata::Metadata;
use sluice_tests::fakes::ec2::objects::{Interface, Tags};
use sluice_tests::fakes::ec2::serve::{Served, Shared, clock, serve};
use sluice_tests::fakes::ec2::{Delays, World, faults::Policy, shapes};
use sluice_tests::fakes::kubernetes::FakeApiServer;
use sluice_tests::fakes::kubernetes::kinds;
use sluice_tests::lab::cni::Sandbox;
use sluice_tests::lab::{Lab, NODE, PEER, Running, program, tcp_peer};

struct Bed {
    lab: Lab,
    api: FakeApiServer,
    shared: Arc<Shared>,
    instance: String,
    faces: [Served; 2],
    files: tempfile::TempDir,
    /// Serves the faces, in the node's namespace.
    _runtime: tokio::runtime::Runtime,
}

impl Bed {
    /// A node of a type with two ENIs of two addresses each: one pod on the primary, one on the other.
    fn up(tag: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let empty = files.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let args = ["--pods", "0", "--spare-addresses", "1", "--manifests", empty.to_str().unwrap()];
        let lab = Lab::up(tag, &args);
        lab.stop_agent();
        for file in ["net.d/05-sluice.conflist", "cni/ready", "cni/leases.json", "cni/attachments.json"] {
            let _ = std::fs::remove_file(lab.path(file));
        }
        let mut world = World::new("eu-central-1");
        world.delays = Delays::NONE;
        world.grant("node", Policy::amazon_eks_cni());
        world.add_key("AKIATEST", "node");
        let vpc = world.add_vpc(vec!["10.0.0.0/16".parse().unwrap(), "100.64.0.0/16".parse().unwrap()]);
        let subnet = world.add_subnet(&vpc, "eu-central-1a", "10.0.9.0/24".parse().unwrap(), Tags::new());
        let group = world.add_group(&vpc, "nodes");
        let shape = shapes::shape("t3.nano").unwrap();
        let mut instance = String::new();
        // Neighbours take what comes before the lab's address of the node.
        while world.interfaces().values().all(|eni| eni.primary != NODE) {
            instance = world.run_instance(clock(), shape, &subnet, &group, "node").unwrap();
        }
        let shared = Shared::new(world);
        let (runtime, faces, api) = lab.within("node", || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let any = "127.0.0.1:0".parse().unwrap();
            let faces = runtime.block_on(async {
                let ec2 = serve(any, Endpoint::new(shared.clone())).await.unwrap();
                let imds = serve(any, Metadata::new(shared.clone(), &instance)).await.unwrap();
                [ec2, imds]
            });
            (runtime, faces, FakeApiServer::start().unwrap())
        });
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: s, user: u}}}}]\n\
             clusters: [{{name: s, cluster: {{server: \"{}\"}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
            api.url()
        );
        std::fs::write(files.path().join("kubeconfig"), kubeconfig).unwrap();
        let bed = Self { lab, api, shared, instance, faces, files, _runtime: runtime };
        bed.api
            .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "lab" } }))
            .unwrap();
        bed.node(false);
        let primary = bed.interfaces().into_iter().find(|eni| eni.primary == NODE).unwrap();
        bed.lab.sh("node", &format!("ip link set eni0 address {}", primary.mac));
        bed.own("eni0", NODE, &primary.mac);
        bed
    }

    /// The node's object, cordoned or not.
    fn node(&self, unschedulable: bool) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "the-node" },
            "spec": { "unschedulable": unschedulable },
            "status": { "addresses": [{ "type": "InternalIP", "address": NODE }] },
        });
        self.api.apply(&node).unwrap();
    }

    /// The instance's own interfaces, the primary one first.
    fn interfaces(&self) -> Vec<Interface> {
        let world = self.shared.world();
        let all = world.interfaces().values().map(|eni| Interface::clone(eni));
        let mut own: Vec<Interface> = all.filter(|eni| eni.is_on(&self.instance)).collect();
        own.sort_by_key(|eni| eni.attachment.as_ref().map(|at| at.device));
        own
    }

    /// Tells the fabric that an ENI owns an address, as EC2 does when it assigns one.
    fn own(&self, eni: &str, address: Ipv4Addr, mac: &str) {
        let gateway = if eni == "eni0" { "10.0.9.1" } else { "10.0.10.1" };
        self.lab.sh(
            "vpc",
            &format!(
                "ip route replace {address}/32 dev {eni} src {gateway} && \
                 ip neigh replace {address} lladdr {mac} dev {eni} nud permanent && \
                 nft add element ip fabric own_{eni} '{{ {address} }}'"
            ),
        );
    }

    fn pod(&self, name: &str) -> Sandbox {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "lab", "name": name, "labels": { "app": name } },
            "spec": { "nodeName": "the-node", "containers": [{ "name": "c", "image": "i" }] },
        });
        self.api.apply(&pod).unwrap();
        let pods = kinds::of_path("", "v1", "pods").unwrap();
        let object = self.api.world(|world| world.object(pods, "lab", name).unwrap());
        let mut sandbox = Sandbox::new(&self.lab, name, name);
        sandbox.uid = object.value(pods)["metadata"]["uid"].as_str().unwrap().to_owned();
        sandbox
    }

    fn start_agent(&self, more: &[(&str, &str)]) -> Running {
        let mut agent = self.lab.agent(&program("sluice-agent"));
        agent.arg("--kubeconfig").arg(self.files.path().join("kubeconfig"));
        agent.env("MY_NODE_NAME", "the-node").env("IP_COOLDOWN_PERIOD", "1");
        agent.env("AWS_EC2_ENDPOINT", self.faces[0].url());
        agent.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.faces[1].url());
        agent.env("AWS_ACCESS_KEY_ID", "AKIATEST").env("AWS_SECRET_ACCESS_KEY", "any");
        self.lab.on_the_node(agent.envs(more.iter().copied()))
    }

    #[track_caller]
    fn soon(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}; the agent says\n{}", self.lab.agent_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The node's condition, as an operator sees it: reason and message.
    fn condition(&self) -> (String, String) {
        let nodes = kinds::of_path("", "v1", "nodes").unwrap();
        let node = self.api.world(|world| world.object(nodes, "", "the-node").unwrap().value(nodes));
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ours =
            conditions.into_iter().find(|condition| condition["type"] == sluice_kube::cluster::CONDITION);
        let text =
            |member: &str| ours.as_ref().and_then(|c| c[member].as_str()).unwrap_or_default().to_owned();
        (text("reason"), text("message"))
    }

    /// What the agent has at a port of its node.
    fn page(&self, port: u16, path: &str) -> String {
        self.lab.within("node", || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }

    /// The reasons of the Events about an object.
    fn events(&self, kind: &str) -> Vec<String> {
        let events = kinds::of_path("events.k8s.io", "v1", "events").unwrap();
        self.api.world(|world| {
            let all = world.store.table(events).range("default").map(|event| event.value(events));
            let ours = all.filter(|event| event["regarding"]["kind"] == kind);
            ours.map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
        })
    }

    fn is_ready(&self) {
        let conflist = self.lab.path("net.d/05-sluice.conflist");
        self.soon("the CNI configuration is there", || conflist.exists());
    }

    /// Gives the lab's second link the MAC address of the ENI that was attached, as a hypervisor plugs it in.
    fn plug(&self) -> Interface {
        self.soon("an ENI is attached", || self.interfaces().len() == 2);
        let eni = self.interfaces().remove(1);
        self.lab.sh(
            "node",
            &format!("ip addr flush dev eni1 && ip link set eni1 down && ip link set eni1 address {} && ip link set eni1 up", eni.mac),
        );
        self.own("eni1", eni.primary, &eni.mac);
        eni
    }
}

#[test]
fn a_node_finds_its_enis_gives_their_addresses_to_pods_and_keeps_both_over_a_restart() {
    let bed = Bed::up("a");
    let agent = bed.start_agent(&[]);
    bed.is_ready();
    let primary = bed.interfaces().remove(0);
    let p = bed.pod("p");
    let at_p = p.add();
    assert_eq!(primary.secondary, [at_p]);
    bed.own("eni0", at_p, &primary.mac);
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_p);
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-w"), PEER)).ip(), at_p);

    // The next pod's address is on another ENI, which the kernel has some time after EC2 has attached it.
    let second = bed.plug();
    let q = bed.pod("q");
    let mut at_q = None;
    bed.soon("an address of the second ENI", || {
        at_q = q
            .call("ADD", &q.configuration("1.0.0"))
            .ok()
            .map(|result| sluice_tests::lab::cni::address(&result));
        at_q.is_some()
    });
    let at_q = at_q.unwrap();
    assert_eq!(bed.interfaces().remove(1).secondary, [at_q]);
    bed.own("eni1", at_q, &second.mac);
    assert_eq!(*bed.lab.within("q", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_q);
    assert_eq!(*bed.lab.within("q", || tcp_peer(None, bed.lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(bed.lab.source_check_drops(), 0, "each source leaves by the ENI that owns it");

    // Where the VPC CNI has them.
    let metrics = bed.page(61678, "/metrics");
    for line in [
        "awscni_eni_allocated 2",
        "awscni_eni_max 2",
        "awscni_ec2api_req_count{fn=\"CreateNetworkInterface\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    assert!(bed.page(61678, "/v1/pods").contains("there is nothing here"), "for others only metrics");
    let pods = bed.page(61679, "/v1/pods");
    assert!(pods.contains(&at_p.to_string()) && pods.contains(&at_q.to_string()), "{pods}");

    agent.stop();
    let calls = bed.shared.world().counts().values().sum::<usize>();
    let _agent = bed.start_agent(&[]);
    bed.soon("the next agent answers", || p.call("STATUS", &p.configuration("1.1.0")).is_ok());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_p);
    let r = bed.pod("r");
    let error = r.call("ADD", &r.configuration("1.0.0")).unwrap_err();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("2 of 2 are in use"), "{error}");
    p.del();
    bed.soon("an address that has cooled down", || r.call("ADD", &r.configuration("1.0.0")).is_ok());
    let counts = bed.shared.world().counts();
    let asked = counts.values().sum::<usize>() - calls;
    assert!(asked <= 6, "a restart asks EC2 for what there is, and changes nothing: {counts:?}");
}

#[test]
fn under_custom_networking_pods_have_addresses_of_the_eniconfig_alone() {
    let bed = Bed::up("b");
    let custom = [("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"), ("ENI_CONFIG_LABEL_DEF", "zone")];
    let _agent = bed.start_agent(&custom);
    bed.soon("what is missing is said", || bed.lab.agent_log().contains("there is no ENIConfig default"));
    assert!(!bed.lab.path("net.d/05-sluice.conflist").exists(), "the node is not ready");
    bed.soon("the node has a condition", || bed.condition().0 == "ENIConfigUnusable");
    assert!(bed.condition().1.contains("there is no ENIConfig default"));
    let (wrong, right) = {
        let mut world = bed.shared.world();
        let vpc = world.interfaces().values().find(|eni| eni.primary == NODE).unwrap().vpc.clone();
        let wrong = world.add_subnet(&vpc, "eu-central-1b", "10.0.32.0/24".parse().unwrap(), Tags::new());
        let right = world.add_subnet(&vpc, "eu-central-1a", "10.0.33.0/24".parse().unwrap(), Tags::new());
        (wrong, right)
    };
    let config = |subnet: &str| {
        bed.api
            .apply(&json!({
                "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
                "metadata": { "name": "default" }, "spec": { "subnet": subnet },
            }))
            .unwrap();
    };
    config(&wrong);
    bed.soon("the wrong zone is said", || bed.lab.agent_log().contains("an interface cannot leave its zone"));
    assert_eq!(bed.interfaces().len(), 1);
    bed.soon("the condition says so too", || {
        bed.condition().1.contains("an interface cannot leave its zone")
    });
    bed.soon("an Event at the ENIConfig", || bed.events("ENIConfig") == ["ENIConfigUnusable"]);
    assert_eq!(bed.events("Node"), ["ENIConfigUnusable"], "another a minute later at the earliest");
    config(&right);
    let second = bed.plug();
    assert!(second.primary.to_string().starts_with("10.0.33."), "{second:?}");
    // The gateway of that subnet.
    bed.lab.sh("vpc", "ip addr add 10.0.33.1/32 dev eni1");
    bed.is_ready();
    bed.soon("the condition is well", || bed.condition().0 == "PodNetworkReady");
    let p = bed.pod("p");
    let mut at_p = None;
    bed.soon("an address of the ENIConfig's subnet", || {
        at_p = p
            .call("ADD", &p.configuration("1.0.0"))
            .ok()
            .map(|result| sluice_tests::lab::cni::address(&result));
        at_p.is_some()
    });
    let at_p = at_p.unwrap();
    assert!(at_p.to_string().starts_with("10.0.33."), "{at_p}");
    bed.own("eni1", at_p, &second.mac);
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-v"), PEER)).ip(), at_p);
    assert_eq!(*bed.lab.within("p", || tcp_peer(None, bed.lab.address("host-x"), PEER)).ip(), NODE);
    assert_eq!(bed.lab.source_check_drops(), 0);
}
