//! What the agent writes to an API server: Events, a node's condition, an ENIConfig's status; each once, by one writer, and
//! not lost while the server is away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_kube::cluster::{Cluster, EniConfigStanding, Options, Server, Standing, Unready};
use sluice_kube::manifests::{Finding, Severity, Topic};
use sluice_tests::fakes::kubernetes::faults::{Fault, What};
use sluice_tests::fakes::kubernetes::{FakeApiServer, Options as FakeOptions, kinds};

const SOON: Duration = Duration::from_secs(20);

fn follow(server: &FakeApiServer, node: &str) -> Cluster {
    let options = Options {
        server: Server::Url(server.url()),
        endpoint: None,
        node: node.into(),
        instance: format!("agent-of-{node}"),
        watch_seconds: 60,
    };
    Cluster::start(&options, |_| true).unwrap()
}

fn server(options: &FakeOptions) -> FakeApiServer {
    let server = FakeApiServer::start_with(options).unwrap();
    for name in ["a", "b"] {
        server.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })).unwrap();
    }
    server
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }))
        .unwrap();
    server.apply(&service("web")).unwrap();
    let config = json!({
        "apiVersion": "crd.k8s.amazonaws.com/v1alpha1", "kind": "ENIConfig",
        "metadata": { "name": "default" }, "spec": { "subnet": "subnet-1" },
    });
    server.apply(&config).unwrap();
    server
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": name },
        "spec": { "ports": [{ "port": 80 }] },
    })
}

fn all(server: &FakeApiServer, group: &str, plural: &str) -> Vec<Value> {
    let kind = kinds::of_path(group, "v1", plural).unwrap();
    server.world(|world| {
        let table = world.store.table(kind);
        // Every namespace that a test has.
        let namespaces = ["default", "shop", "kube-system"];
        namespaces.iter().flat_map(|ns| table.range(ns)).map(|object| object.value(kind)).collect()
    })
}

fn events(server: &FakeApiServer) -> Vec<Value> {
    all(server, "events.k8s.io", "events")
}

fn get(server: &FakeApiServer, group: &str, version: &str, plural: &str, name: &str) -> Value {
    let kind = kinds::of_path(group, version, plural).unwrap();
    server.world(|world| world.object(kind, "", name).unwrap().value(kind))
}

fn condition(server: &FakeApiServer, node: &str) -> Value {
    let node = get(server, "", "v1", "nodes", node);
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == sluice_kube::cluster::CONDITION).unwrap_or_default()
}

#[track_caller]
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn denied(node: &str, words: &str) -> Standing {
    let topic = Topic::node("MissingIAMPermissions", node);
    Standing {
        unready: Some(Unready { reason: "MissingIAMPermissions", message: words.into() }),
        findings: vec![Finding::new(Severity::Error, words).about(topic)],
        eni_config: None,
    }
}

fn conflict() -> Finding {
    let topic = Topic {
        reason: "PortConflict",
        kind: "Service",
        namespace: "shop".into(),
        name: "web".into(),
        local: false,
    };
    Finding::new(Severity::Warning, "claims 10.0.0.1 80/TCP, which leads to shop/other").about(topic)
}

#[test]
fn a_node_has_an_event_and_a_condition_that_follow_what_holds() {
    let server = server(&FakeOptions::default());
    let cluster = follow(&server, "a");
    cluster.announce(Standing::default());
    soon("a condition", || condition(&server, "a")["status"] == "True");
    assert!(events(&server).is_empty());
    let well = condition(&server, "a");

    cluster.announce(denied("a", "ec2:CreateNetworkInterface fails (denied)"));
    soon("an event", || events(&server).len() == 1);
    let event = events(&server).remove(0);
    assert_eq!((&event["reason"], &event["type"]), (&json!("MissingIAMPermissions"), &json!("Warning")));
    assert_eq!(event["regarding"]["kind"], "Node");
    assert_eq!(event["regarding"]["uid"], "a", "kubectl describe finds it as kubelet's");
    assert_eq!(event["reportingInstance"], "agent-of-a");
    assert!(event["note"].as_str().unwrap().contains("ec2:CreateNetworkInterface"), "{event}");
    soon("a condition", || condition(&server, "a")["status"] == "False");
    let bad = condition(&server, "a");
    assert_eq!(bad["reason"], "MissingIAMPermissions");
    assert!(bad["lastTransitionTime"].as_str() >= well["lastTransitionTime"].as_str());

    // What passes before it is written is not written: a daemon that is restarted.
    cluster.announce(Standing::default());
    soon("the condition is over", || condition(&server, "a")["status"] == "True");
    let before = get(&server, "", "v1", "nodes", "a")["metadata"]["resourceVersion"].clone();
    let gone = Unready { reason: "DaemonUnreachable", message: "gone".into() };
    cluster.announce(Standing { unready: Some(gone), ..Standing::default() });
    std::thread::sleep(Duration::from_millis(500));
    cluster.announce(Standing::default());
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(get(&server, "", "v1", "nodes", "a")["metadata"]["resourceVersion"], before);
    assert_eq!(events(&server).len(), 1, "the same is not told twice");

    // Another agent of the same node finds the condition as it is to be.
    drop(cluster);
    let next = follow(&server, "a");
    next.announce(Standing::default());
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(get(&server, "", "v1", "nodes", "a")["metadata"]["resourceVersion"], before);
}

#[test]
fn what_every_node_finds_is_written_by_one_of_them() {
    let server = server(&FakeOptions::default());
    let nodes = [follow(&server, "a"), follow(&server, "b")];
    for node in &nodes {
        node.announce(Standing { findings: vec![conflict()], ..Standing::default() });
    }
    soon("an event", || !events(&server).is_empty());
    std::thread::sleep(Duration::from_millis(4_000));
    let told = events(&server);
    assert_eq!(told.len(), 1, "{told:?}");
    let service = kinds::of_path("", "v1", "services").unwrap();
    let uid = server.world(|world| world.object(service, "shop", "web").unwrap().value(service));
    assert_eq!(told[0]["regarding"]["uid"], uid["metadata"]["uid"]);
    let leases = all(&server, "coordination.k8s.io", "leases");
    assert_eq!(leases.len(), 1);
    let holder = leases[0]["spec"]["holderIdentity"].as_str().unwrap();
    assert_eq!(told[0]["reportingInstance"], format!("agent-of-{holder}"));

    // What has gone before it is told is nobody's business.
    let fleeting = |name: &str| {
        let topic = Topic { name: name.into(), ..conflict().topic.unwrap() };
        Finding::new(Severity::Warning, "passes").about(topic)
    };
    server.apply(&self::service("fleeting")).unwrap();
    for node in &nodes {
        node.announce(Standing { findings: vec![conflict(), fleeting("fleeting")], ..Standing::default() });
    }
    std::thread::sleep(Duration::from_millis(500));
    for node in &nodes {
        node.announce(Standing { findings: vec![conflict()], ..Standing::default() });
    }
    std::thread::sleep(Duration::from_millis(4_000));
    assert_eq!(events(&server).len(), 1);
}

#[test]
fn an_eniconfigs_status_is_written_where_there_is_one() {
    let standing = |problem: Option<&str>| Standing {
        eni_config: Some(EniConfigStanding { name: "default".into(), problem: problem.map(str::to_owned) }),
        ..Standing::default()
    };
    let config =
        |server: &FakeApiServer| get(server, "crd.k8s.amazonaws.com", "v1alpha1", "eniconfigs", "default");
    let with = server(&FakeOptions::default());
    let nodes = [follow(&with, "a"), follow(&with, "b")];
    nodes[0].announce(standing(Some("spec.subnet: does not exist")));
    soon("a status", || config(&with)["status"]["conditions"][0]["status"] == "False");
    let managers = config(&with)["metadata"]["managedFields"].to_string();
    assert!(managers.contains("sluice-agent") && managers.contains("Apply"), "{managers}");
    // Another node thinks otherwise; one of them writes.
    nodes[1].announce(standing(None));
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(config(&with)["status"]["conditions"][0]["status"], "False");
    nodes[0].announce(standing(None));
    soon("the status follows", || config(&with)["status"]["conditions"][0]["status"] == "True");
    let version = config(&with)["metadata"]["resourceVersion"].clone();
    drop(nodes);
    // A restarted agent of the node that wrote it writes nothing again.
    let again = follow(&with, "a");
    again.announce(standing(None));
    std::thread::sleep(Duration::from_millis(1_000));
    assert_eq!(config(&with)["metadata"]["resourceVersion"], version);

    let without = server(&FakeOptions { custom_status: false, ..FakeOptions::default() });
    let node = follow(&without, "a");
    node.announce(standing(Some("spec.subnet: does not exist")));
    soon("a condition", || condition(&without, "a")["status"] == "True");
    std::thread::sleep(Duration::from_millis(500));
    assert!(config(&without).get("status").is_none(), "the VPC CNI's definition has none");
    assert!(all(&without, "coordination.k8s.io", "leases").is_empty(), "nothing to be held");
}

#[test]
fn what_the_server_does_not_take_is_told_when_it_does() {
    let server = server(&FakeOptions::default());
    let cluster = follow(&server, "a");
    cluster.announce(Standing::default());
    soon("a condition", || condition(&server, "a")["status"] == "True");
    server.fault(Fault::new("events", "create", 2, What::TooManyRequests { retry_after: 1 }));
    server.fault(Fault::new("nodes", "patch", 1, What::TooManyRequests { retry_after: 1 }));
    cluster.announce(denied("a", "first"));
    soon("an event", || events(&server).len() == 1);
    soon("a condition", || condition(&server, "a")["status"] == "False");

    server.go_away();
    std::thread::sleep(Duration::from_millis(300));
    cluster.announce(denied("a", "second"));
    std::thread::sleep(Duration::from_millis(3_000));
    cluster.announce(denied("a", "third"));
    server.come_back().unwrap();
    soon("what holds by now", || condition(&server, "a")["message"] == "third");
    assert_eq!(events(&server).len(), 1, "other words about the same thing come once a minute");
}
