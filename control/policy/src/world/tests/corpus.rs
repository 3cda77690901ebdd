//! The shared cases, each in one batch, step by step, and with its policies in reverse; from each node of the case, for
//! every node is somebody's.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use sluice_state::Protocol;

use super::judge::Judge;
use super::{Followed, delete, policy, settings};
use crate::{Change, ContainerPort, Kind, Labels, Namespace, Node, Object, Phase, Pod};

#[test]
fn corpus() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/networkpolicy/corpus.jsonl");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{}: {error}", path.display());
            eprintln!("NOT TESTED: {} is not there ({error})", path.display());
            return;
        }
    };
    let (mut probes, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        for node in case["nodes"].as_array().unwrap() {
            for reverse in [false, true] {
                let mut run = Run::new(&case, text_of(&node["name"]), reverse);
                run.play(&case, &mut probes, &mut wrong);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {probes} probes:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    assert!(probes > 10_000, "only {probes} probes");
}

struct Run {
    followed: Followed,
    node: String,
    nodes: HashMap<String, Ipv4Addr>,
    pods: BTreeMap<String, Pod>,
    policies: Vec<String>,
}

impl Run {
    fn new(case: &Value, node: &str, reverse: bool) -> Self {
        let mut settings = settings();
        settings.node = node.into();
        let mut run = Self {
            followed: Followed::new(settings),
            node: node.to_owned(),
            nodes: HashMap::new(),
            pods: BTreeMap::new(),
            policies: Vec::new(),
        };
        for node in list(&case["nodes"]) {
            let (name, ip) = (text_of(&node["name"]), text_of(&node["ip"]).parse().unwrap());
            run.nodes.insert(name.to_owned(), ip);
            run.followed.apply([Change::Upsert(Object::Node(Node {
                name: name.into(),
                addresses: vec![ip],
                zone: None,
                labels: Labels::default(),
            }))]);
        }
        for namespace in list(&case["namespaces"]) {
            run.mutate(
                "create_namespace",
                &serde_json::json!({"namespace": namespace["name"], "labels": namespace["labels"]}),
            );
        }
        let mut policies: Vec<&Value> = list(&case["policies"]).collect();
        if reverse {
            policies.reverse();
        }
        for policy in &policies[..policies.len() / 2] {
            run.mutate("apply_policy", &serde_json::json!({"policy": policy}));
        }
        for pod in list(&case["pods"]) {
            run.mutate("create_pod", &serde_json::json!({"pod": pod}));
        }
        if reverse {
            run.followed.update();
        }
        for policy in &policies[policies.len() / 2..] {
            run.mutate("apply_policy", &serde_json::json!({"policy": policy}));
        }
        run
    }

    fn play(&mut self, case: &Value, probes: &mut usize, wrong: &mut Vec<String>) {
        self.followed.update();
        let id = text_of(&case["id"]).to_owned();
        self.probes(&format!("{id} {}", self.node), &case["probes"], probes, wrong);
        for (i, step) in list(&case["steps"]).enumerate() {
            for mutation in list(&step["mutations"]) {
                let (name, what) = named(mutation);
                self.mutate(&name, &what);
                self.followed.update();
            }
            self.probes(&format!("{id} {} step {i}", self.node), &step["probes"], probes, wrong);
        }
    }

    fn mutate(&mut self, name: &str, what: &Value) {
        let ns = || text_of(&what["namespace"]).to_owned();
        let change = match name {
            "apply_policy" => {
                self.policies.push(format!(
                    "{}/{}",
                    text_of(&what["policy"]["metadata"]["namespace"]),
                    text_of(&what["policy"]["metadata"]["name"])
                ));
                policy(what["policy"].clone())
            }
            "delete_policy" => delete(Kind::NetworkPolicy, &format!("{}/{}", ns(), text_of(&what["name"]))),
            "create_namespace" | "set_namespace_labels" => {
                let labels = read_labels(&what["labels"]);
                Change::Upsert(Object::Namespace(Namespace { name: ns().into(), labels }))
            }
            "delete_namespace" => {
                let within = format!("{}/", ns());
                let pods: Vec<String> =
                    self.pods.keys().filter(|k| k.starts_with(&within)).cloned().collect();
                for pod in pods {
                    self.pods.remove(&pod);
                    self.followed.apply([delete(Kind::Pod, &pod)]);
                }
                for policy in self.policies.iter().filter(|p| p.starts_with(&within)) {
                    self.followed.apply([delete(Kind::NetworkPolicy, policy)]);
                }
                delete(Kind::Namespace, &ns())
            }
            "create_pod" => {
                let pod = self.read_pod(&what["pod"]);
                self.keep(pod)
            }
            "delete_pod" => {
                self.pods.remove(text_of(&what["pod"]));
                delete(Kind::Pod, text_of(&what["pod"]))
            }
            "set_pod_labels" => self.change(what, |pod| pod.labels = read_labels(&what["labels"])),
            "set_pod_ip" => {
                self.change(what, |pod| pod.ip = what["ip"].as_str().map(|ip| ip.parse().unwrap()))
            }
            "set_pod_phase" => self.change(what, |pod| pod.phase = read_phase(&what["phase"])),
            other => panic!("{other} is no mutation"),
        };
        self.followed.apply([change]);
    }

    fn change(&mut self, what: &Value, f: impl FnOnce(&mut Pod)) -> Change {
        let mut pod = self.pods[text_of(&what["pod"])].clone();
        f(&mut pod);
        self.keep(pod)
    }

    fn keep(&mut self, pod: Pod) -> Change {
        self.pods.insert(format!("{}/{}", pod.namespace, pod.name), pod.clone());
        super::upsert(pod)
    }

    fn read_pod(&self, json: &Value) -> Pod {
        let node = text_of(&json["node"]);
        let host_network = json["hostNetwork"] == true;
        let ports = list(&json["ports"]).map(|p| ContainerPort {
            name: p["name"].as_str().map(Into::into),
            protocol: p["protocol"].as_str().unwrap_or("TCP").parse().unwrap(),
            port: p["port"].as_u64().unwrap().try_into().unwrap(),
            host_port: None,
            host_ip: None,
        });
        let ports: Vec<ContainerPort> = ports.collect();
        let ip = json["ip"].as_str().map(|ip| ip.parse().unwrap());
        Pod {
            namespace: text_of(&json["namespace"]).into(),
            name: text_of(&json["name"]).into(),
            uid: "".into(),
            labels: read_labels(&json["labels"]),
            ip: if host_network { Some(self.nodes[node]) } else { ip },
            node: Some(node.into()),
            host_network,
            phase: read_phase(&json["phase"]),
            terminating: false,
            created: None,
            ports: ports.into(),
        }
    }

    fn probes(&self, place: &str, probes: &Value, count: &mut usize, wrong: &mut Vec<String>) {
        let judge = Judge::new(&self.followed.state.policy);
        for probe in list(probes) {
            let matrix = &probe["matrix"];
            if matrix.is_null() {
                let half = |name: &str| probe.get(name).map(|v| v == "allow");
                let allowed = probe["expect"] == "allow";
                let expected = (half("egress").unwrap_or(allowed), half("ingress").unwrap_or(allowed));
                let at = |name: &str| text_of(&probe[name]);
                *count += 1;
                wrong.extend(
                    self.probe(&judge, at("from"), at("to"), probe, expected)
                        .map(|w| format!("{place}: {w}")),
                );
                continue;
            }
            for (from, row) in list(&matrix["from"]).zip(list(&matrix["rows"])) {
                for (to, cell) in list(&matrix["to"]).zip(text_of(row).chars()) {
                    let expected = match cell {
                        '.' => (true, true),
                        'e' => (false, true),
                        'i' => (true, false),
                        'x' => (false, false),
                        _ => continue,
                    };
                    *count += 1;
                    let (from, to) = (text_of(from), text_of(to));
                    wrong.extend(
                        self.probe(&judge, from, to, matrix, expected).map(|w| format!("{place}: {w}")),
                    );
                }
            }
        }
    }

    fn probe(
        &self,
        judge: &Judge<'_>,
        from: &str,
        to: &str,
        how: &Value,
        expected: (bool, bool),
    ) -> Option<String> {
        let protocol: Protocol = text_of(&how["protocol"]).parse().unwrap();
        let port = u16::try_from(how["port"].as_u64().unwrap()).unwrap();
        let (source, destination) = (self.endpoint(from)?, self.endpoint(to)?);
        // A pod and itself, a pod and its node: no packet of theirs comes to the engine.
        let node_of = |end: &End| end.node.clone();
        if source.ip == destination.ip
            || (source.is_node != destination.is_node && node_of(&source) == node_of(&destination))
        {
            return None;
        }
        let ours = |end: &End| !end.is_node && end.node.as_deref() == Some(&*self.node);
        let at = Some((protocol, port));
        let egress = judge.egress(source.ip, destination.ip, at);
        let ingress = judge.ingress(source.ip, destination.ip, at);
        let egress_ok = egress == if ours(&source) { expected.0 } else { true };
        let ingress_ok = ingress == if ours(&destination) { expected.1 } else { true };
        (!egress_ok || !ingress_ok).then(|| {
            format!(
                "{from} -> {to} {port}/{protocol}: egress {egress}, ingress {ingress}, expected {expected:?}"
            )
        })
    }

    fn endpoint(&self, text: &str) -> Option<End> {
        let (kind, name) = text.split_once(':').unwrap();
        let node = |name: &str| End { ip: self.nodes[name], node: Some(name.to_owned()), is_node: true };
        let of = |pod: &Pod| {
            let at = pod.node.as_deref().map(ToOwned::to_owned);
            if pod.host_network {
                return Some(node(pod.node.as_deref()?));
            }
            Some(End { ip: pod.address()?, node: at, is_node: false })
        };
        match kind {
            "node" => Some(node(name)),
            "pod" => of(self.pods.get(name)?),
            _ => {
                let ip: Ipv4Addr = name.parse().unwrap();
                if let Some((name, _)) = self.nodes.iter().find(|(_, address)| **address == ip) {
                    return Some(node(name));
                }
                let pod = self.pods.values().find(|pod| pod.address() == Some(ip));
                pod.map_or(Some(End { ip, node: None, is_node: false }), of)
            }
        }
    }
}

struct End {
    ip: Ipv4Addr,
    node: Option<String>,
    is_node: bool,
}

fn named(mutation: &Value) -> (String, Value) {
    let map = mutation.as_object().unwrap();
    for key in ["op", "type", "kind"] {
        if let Some(name) = map.get(key).and_then(Value::as_str) {
            return (name.to_owned(), mutation.clone());
        }
    }
    let (name, what) = map.iter().next().unwrap();
    (name.clone(), what.clone())
}

fn list(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}

fn text_of(json: &Value) -> &str {
    json.as_str().unwrap()
}

fn read_labels(json: &Value) -> Labels {
    let pairs = json.as_object().into_iter().flatten();
    Arc::new(pairs.map(|(k, v)| (Arc::from(k.as_str()), Arc::from(text_of(v)))).collect())
}

fn read_phase(json: &Value) -> Phase {
    match json.as_str() {
        None | Some("Running") => Phase::Running,
        Some("Pending") => Phase::Pending,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(other) => panic!("{other} is no phase"),
    }
}
