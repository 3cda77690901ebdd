//! What a cluster would add to the manifests.

use sluice_policy::{Kind, Phase};

use super::*;

fn workload(kind: &str, name: &str, spec: &str, pod: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{namespace: a, name: {name}}}\n\
         spec: {{selector: {{matchLabels: {{app: {name}}}}}, {spec} template: {{metadata: {{labels: {{app: {name}}}}}, \
         spec: {{containers: [{{name: c, image: i, ports: [{{name: web, containerPort: 8080}}]}}]{pod}}}}}}}\n---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: a, name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

#[test]
fn workloads_become_pods_with_stable_names() {
    let mut bed = Bed::new();
    bed.write("d.yaml", &workload("Deployment", "web", "replicas: 2,", ""));
    bed.write("s.yaml", &workload("StatefulSet", "db", "ordinals: {start: 3},", ", nodeName: there"));
    bed.write("e.yaml", &workload("DaemonSet", "agent", "", ", hostNetwork: true"));
    assert_eq!(bed.pods(), ["a/agent-here", "a/agent-there", "a/db-3", "a/web-0", "a/web-1"]);
    assert_eq!(&*bed.pod("a/db-3").labels["statefulset.kubernetes.io/pod-name"], "db-3");
    assert_eq!(bed.pod("a/agent-there").ip, Some(Ipv4Addr::new(10, 0, 9, 6)));
    let changed = bed.write("d.yaml", &workload("Deployment", "web", "replicas: 1,", ""));
    assert_eq!(changed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["Pod a/web-1"]);
    assert!(bed.errors().is_empty(), "{:?}", bed.errors());
}

#[test]
fn a_workload_that_does_not_select_its_own_pods_is_refused() {
    let mut bed = Bed::new();
    bed.write(
        "d.yaml",
        &workload("Deployment", "web", "", "").replace("labels: {app: web}", "labels: {app: x}"),
    );
    bed.error(&["`selector` does not match template `labels`"]);
    bed.write("d.yaml", &workload("Deployment", "web", "replicas: -1,", ""));
    bed.error(&["spec.replicas", "-1"]);
}

#[test]
fn pods_of_this_node_take_its_places_in_order_and_keep_them() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &format!("{}{}", pod("b", ""), pod("c", "")));
    bed.write("y.yaml", &pod("a", ""));
    let ip = |bed: &Bed, name: &str| bed.pod(name).ip.map(|ip| ip.octets()[3]);
    assert_eq!((ip(&bed, "a/b"), ip(&bed, "a/c"), ip(&bed, "a/a")), (Some(11), Some(12), Some(13)));
    assert_eq!(bed.pod("a/a").phase, Phase::Running);
    bed.write("z.yaml", &format!("{}{}", pod("fixed", ""), pod("late", "")));
    assert_eq!((ip(&bed, "a/fixed"), ip(&bed, "a/late")), (Some(10), None));
    assert_eq!(bed.pod("a/late").phase, Phase::Pending);
    let waits = bed.findings(Severity::Warning);
    assert!(waits[0].to_string().contains("a/late waits: none of this node's 4 places"), "{waits:?}");
    let changed = bed.remove("y.yaml");
    assert_eq!(changed.len(), 2, "one leaves, one gets its place: {changed:?}");
    assert_eq!(ip(&bed, "a/late"), Some(13));
    assert!(bed.findings(Severity::Warning).is_empty());
    // After a restart everybody has what he had, whatever the order would be now.
    let mut again = Directory::new(bed.root.path(), &placement(), &bed.directory.allocations());
    let batch = again.scan();
    let before = std::mem::take(&mut bed.objects);
    bed.take(batch);
    assert_eq!(format!("{before:?}"), format!("{:?}", bed.objects));
}

#[test]
fn places_come_and_go_and_their_pods_and_endpoints_with_them() {
    let mut bed = Bed::new();
    let all: String = ["p", "q", "r", "s", "t"].map(|name| pod(name, "")).concat();
    bed.write("x.yaml", &all);
    bed.write("svc.yaml", &service("t", "selector: {app: t}, ports: [{port: 80, targetPort: web}]"));
    assert_eq!((bed.pod("a/s").ip, bed.pod("a/t").ip), (None, None));
    let place = |last: u8, name: &str| Slot {
        ip: Ipv4Addr::new(10, 0, 1, last),
        pod: Some(("a".to_owned(), name.to_owned())),
    };
    let batch = bed.directory.open(place(40, "t"));
    let changed: Vec<_> = bed.take(batch).iter().map(ToString::to_string).collect();
    assert_eq!(changed.len(), 2, "the pod and its slice: {changed:?}");
    assert_eq!(bed.pod("a/t").ip, Some(Ipv4Addr::new(10, 0, 1, 40)));
    assert_eq!(bed.slices("t")[0].endpoints.len(), 1);
    let batch = bed.directory.close(Ipv4Addr::new(10, 0, 1, 40));
    bed.take(batch);
    assert_eq!(
        (bed.pod("a/t").ip, bed.slices("t").iter().map(|s| s.endpoints.len()).sum::<usize>()),
        (None, 0)
    );
    // Who has a place already moves into the one that is his.
    let batch = bed.directory.open(place(42, "p"));
    bed.take(batch);
    let last = |bed: &Bed, name: &str| bed.pod(name).ip.map(|ip| ip.octets()[3]);
    assert_eq!((last(&bed, "a/p"), last(&bed, "a/s")), (Some(42), Some(11)));
    let batch = bed.directory.close(Ipv4Addr::new(10, 0, 1, 42));
    bed.take(batch);
    bed.remove("x.yaml");
    bed.write("x.yaml", &all);
    // The number of a place that is no more is used again; who lost a place takes a free one.
    let batch = bed.directory.open(place(41, "s"));
    bed.take(batch);
    let batch = bed.directory.close(Ipv4Addr::new(10, 0, 1, 11));
    bed.take(batch);
    let ip = |name: &str| bed.pod(name).ip.map(|ip| ip.octets()[3]);
    assert_eq!(
        [ip("a/p"), ip("a/q"), ip("a/r"), ip("a/s"), ip("a/t")],
        [None, Some(12), Some(13), Some(41), None]
    );
    assert!(bed.directory.close(Ipv4Addr::UNSPECIFIED).changes.is_empty());
}

#[test]
fn pods_of_other_nodes_and_pods_that_say_where_they_are_have_that_place() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &pod("far", ", nodeName: there"));
    assert!("10.0.128.0/17".parse::<ipnet::Ipv4Net>().unwrap().contains(&bed.pod("a/far").ip.unwrap()));
    bed.write("x.yaml", &pod("far", ", nodeSelector: {disk: d6}"));
    assert_eq!(bed.pod("a/far").node.as_deref(), Some("there"));
    bed.write("x.yaml", &pod("far", ", nodeSelector: {disk: none}"));
    assert_eq!((bed.pod("a/far").node.as_deref(), bed.pod("a/far").phase), (None, Phase::Pending));
    assert_eq!(bed.findings(Severity::Warning).len(), 1);
    bed.write("x.yaml", &pod("far", ", nodeName: nowhere"));
    assert!(bed.findings(Severity::Warning)[0].message.contains("nowhere is in no inventory"));
    let status = |ip: &str, phase: &str| {
        pod("given", "").replace("\n---", &format!("\nstatus: {{podIP: {ip}, phase: {phase}}}\n---"))
    };
    bed.write("x.yaml", &status("10.0.1.12", "Running"));
    assert_eq!(bed.pod("a/given").ip, Some(Ipv4Addr::new(10, 0, 1, 12)));
    assert!(bed.findings(Severity::Warning).is_empty());
    bed.write("x.yaml", &status("10.0.1.99", "Running"));
    assert!(bed.findings(Severity::Warning)[0].message.contains("10.0.1.99 is no pod's of the inventory"));
    bed.write("x.yaml", &status("10.0.1.12", "Failed"));
    bed.write("y.yaml", &format!("{}{}{}", pod("k", ""), pod("l", ""), pod("m", "")));
    assert!(bed.pod("a/m").ip.is_some(), "a finished pod holds no place");
}

#[test]
fn a_node_that_comes_gets_its_daemon_sets_pod() {
    let mut bed = Bed::new();
    bed.write("e.yaml", &workload("DaemonSet", "agent", "", ""));
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: third}\nspec: {podCIDR: 10.3.0.0/24}\n\
                status: {addresses: [{type: InternalIP, address: 10.0.9.7}]}\n";
    bed.write("n.yaml", node);
    assert_eq!(bed.pods(), ["a/agent-here", "a/agent-there", "a/agent-third"]);
    assert_eq!(bed.pod("a/agent-third").ip.map(|ip| ip.octets()[..3].to_vec()), Some(vec![10, 3, 0]));
    bed.remove("n.yaml");
    assert_eq!(bed.pods(), ["a/agent-here", "a/agent-there"]);
    assert_eq!(bed.names(Kind::Node), ["/here", "/there"]);
}

#[test]
fn a_name_that_two_want_is_a_written_pods_whoever_came_first() {
    let mut bed = Bed::new();
    bed.write("a.yaml", &workload("Deployment", "web", "", ""));
    assert!(!bed.pod("a/web-0").host_network);
    bed.write("b.yaml", &pod("web-0", ", hostNetwork: true"));
    assert!(bed.pod("a/web-0").host_network);
    bed.error(&["a.yaml:1:", "a/web-0 is already there, made by Pod a/web-0"]);
    bed.remove("b.yaml");
    assert!(!bed.pod("a/web-0").host_network && bed.errors().is_empty());
}

#[test]
fn cluster_ips_and_node_ports_are_stable_and_given_ones_win() {
    let mut bed = Bed::new();
    bed.write("s.yaml", &service("web", "type: NodePort, ports: [{port: 80}]"));
    let (ip, port) = (bed.service("a/web").cluster_ips[0], bed.service("a/web").ports[0].node_port);
    assert!(ip.octets()[..2] == [172, 20] && port.is_some_and(|p| (30_000..=32_767).contains(&p)));
    assert!(bed.write("t.yaml", &service("other", "ports: [{port: 80}]")).len() == 1);
    bed.write("u.yaml", &service("given", &format!("clusterIP: {ip}, ports: [{{port: 80}}]")));
    assert_eq!(bed.service("a/given").cluster_ips, [ip]);
    assert_ne!(bed.service("a/web").cluster_ips, [ip], "it had only been given out");
    assert_eq!(bed.service("a/web").ports[0].node_port, port);
    bed.write("v.yaml", &service("twice", &format!("clusterIP: {ip}, ports: [{{port: 80}}]")));
    bed.error(&["v.yaml:1:", "provided IP is already allocated to Service a/given"]);
    bed.write("v.yaml", &service("twice", "clusterIP: 10.1.2.3, ports: [{port: 80}]"));
    bed.error(&["not in the service range [172.20.0.0/16]"]);
    bed.write(
        "v.yaml",
        &service("twice", &format!("type: NodePort, ports: [{{port: 1, nodePort: {}}}]", port.unwrap())),
    );
    bed.error(&["already allocated to Service a/web"]);
    bed.write("v.yaml", &service("twice", "clusterIP: None, ports: [{port: 80}]"));
    assert!(bed.service("a/twice").cluster_ips.is_empty() && bed.errors().is_empty());
}

#[test]
fn a_services_slices_follow_its_pods_and_hand_written_ones_win() {
    let mut bed = Bed::new();
    bed.write(
        "s.yaml",
        &service("web", "selector: {app: web}, ports: [{name: http, port: 80, targetPort: web}]"),
    );
    assert!(bed.slices("web").is_empty());
    bed.write("d.yaml", &workload("Deployment", "web", "replicas: 2,", ""));
    let slice = bed.slices("web")[0];
    assert_eq!((&*slice.ports[0].name, slice.ports[0].port), ("http", 8080));
    assert_eq!(slice.endpoints.len(), 2);
    assert!(slice.endpoints.iter().all(|e| e.ready && e.serving && e.node.as_deref() == Some("here")));
    let changed = bed.write("p.yaml", &pod("stranger", ""));
    assert_eq!(changed.len(), 1, "a pod that no service selects touches none: {changed:?}");
    let unready = pod("web", "").replace(
        "\n---",
        "\nstatus: {podIP: 10.0.1.13, phase: Running, conditions: [{type: Ready, status: \"False\"}]}\n---",
    );
    bed.remove("p.yaml");
    bed.write("p.yaml", &unready);
    assert_eq!(bed.slices("web")[0].endpoints.iter().filter(|e| e.ready).count(), 2);
    assert_eq!(bed.slices("web")[0].endpoints.len(), 3);
    let written = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                   metadata: {namespace: a, name: mine, labels: {kubernetes.io/service-name: web}}\n\
                   endpoints: [{addresses: [10.0.77.7]}]\nports: [{name: http, port: 81}]\n";
    bed.write("e.yaml", written);
    assert_eq!(bed.slices("web").iter().map(|s| &*s.name).collect::<Vec<_>>(), ["mine"]);
    bed.remove("e.yaml");
    assert_eq!(bed.slices("web")[0].endpoints.len(), 3);
    bed.remove("s.yaml");
    assert!(bed.slices("web").is_empty());
}

#[test]
fn a_namespace_that_is_used_is_there_with_its_name_as_a_label() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &pod("one", ""));
    let labels = |bed: &Bed| match bed.object(Kind::Namespace, "/a") {
        Object::Namespace(namespace) => namespace.labels.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(&*labels(&bed)["kubernetes.io/metadata.name"], "a");
    bed.write("n.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {team: t}}\n");
    assert_eq!((&*labels(&bed)["team"], &*labels(&bed)["kubernetes.io/metadata.name"]), ("t", "a"));
    bed.remove("n.yaml");
    assert!(!labels(&bed).contains_key("team"));
    bed.remove("x.yaml");
    assert!(bed.names(Kind::Namespace).is_empty());
}
